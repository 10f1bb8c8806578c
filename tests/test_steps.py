"""The regularised step against jax.grad and optax, and what dropout, norms and averages promise."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import assert_close, in_dtype

from jaxmlp import Network, evaluate, fit, init, loss_and_gradient
from jaxmlp.batch import Batch
from jaxmlp.training.optimizers import (
    OPTIMIZERS,
    SCHEDULES,
    default_weight_decay,
    learning_rates,
    optimizer_named,
    with_numbers,
)
from jaxmlp.training.regularization import (
    Regularization,
    averaged,
    batch_gradient,
    bounded,
    draw_masks,
)
from jaxmlp.training.settings import Settings
from jaxmlp.verification import oracles

FLOAT64 = 1e-12
NETWORK = Network((4, 6, 5, 3), ("tanh", "relu"))
RNG = np.random.default_rng(11)
X, T = RNG.normal(size=(20, 4)), RNG.integers(3, size=20)
W = RNG.uniform(0.2, 2, size=20)


compiled_gradient = jax.jit(batch_gradient, static_argnums=5)


def start(dtype=jnp.float32, network=NETWORK):
    return init(network, jax.random.key(0), dtype)


def train(network=NETWORK, **arguments):
    settings = {"batch_size": 5, "epochs": 3, "learning_rate": 0.01, "optimizer": "sgd"} | arguments
    return fit(network, start(network=network), X, T, key=jax.random.key(1), **settings)


# Dropout.


def test_the_gradient_under_dropout_is_jax_grad_s_with_the_same_masks():
    with jax.enable_x64(True):
        params = in_dtype(start(jnp.float64), jnp.float64)
        rates = tuple(jnp.asarray(rate) for rate in (0.2, 0.5, 0.3))
        key = jax.random.key(5)
        weights = jnp.asarray(W)
        batch = Batch(jnp.asarray(X), jnp.asarray(T), weights)
        regularization = Regularization(dropout=rates)
        ours, _ = compiled_gradient(NETWORK, params, batch, regularization, key, None)
        masks: Any = jax.jit(draw_masks, static_argnums=3)(NETWORK, rates, key, len(X))

        def loss(params):
            a = batch.inputs * masks[0]
            for layer, name, mask in zip(params, NETWORK.activations, masks[1:], strict=False):
                f = {"tanh": jnp.tanh, "relu": jax.nn.relu}[name]
                a = f(a @ layer.weight.T + layer.bias[None, :]) * mask
            z = a @ params[-1].weight.T + params[-1].bias[None, :]
            losses = optax.softmax_cross_entropy_with_integer_labels(z, batch.targets)
            return jnp.sum(losses * weights) / jnp.sum(weights)

        expected = jax.jit(jax.grad(loss))(params)
        assert_close(jax.device_get(ours), jax.device_get(expected), FLOAT64)


def test_masks_drop_their_rate_and_keep_the_mean():
    network = Network((301, 400, 3))  # an odd size: a word of 32 bits serves two entries
    rates = (jnp.asarray(0.2), jnp.asarray(0.75))
    masks = draw_masks(network, rates, jax.random.key(0), 1000)
    for mask, rate, size in zip(masks, (0.2, 0.75), (301, 400), strict=True):
        values = np.asarray(mask)
        assert values.shape == (1000, size)
        # The binomial's standard deviation is √(p(1 − p)/n) < 9e-4: five of them.
        assert np.mean(values == 0) == pytest.approx(rate, abs=5e-3)
        # To 16 bits: 1/(1 − p) with p off by at most 2^-17.
        assert np.unique(values)[1:] == pytest.approx(1 / (1 - rate), rel=1e-4)
        # Neighbours are drawn from halves of one word: uncorrelated all the same, as are rows.
        dropped = (values == 0) - rate
        for shifted in (dropped[:, 1:] * dropped[:, :-1], dropped[1:] * dropped[:-1]):
            assert abs(shifted.mean()) < 5 * rate * (1 - rate) / np.sqrt(shifted.size)


def test_a_rate_of_0_beside_others_drops_nothing():
    masks = draw_masks(NETWORK, (None, jnp.asarray(0.5), None), jax.random.key(0), 8)
    assert masks[0] is None and masks[2] is None
    values = np.asarray(
        draw_masks(Network((64, 3)), (jnp.asarray(0.0),), jax.random.key(0), 500)[0]
    )
    assert (values == 1).all()


def test_every_step_draws_other_masks_and_every_key_too():
    # A rate too small to move anything: epochs differ by their masks alone.
    history = train(dropout=0.5, learning_rate=1e-30, epochs=3).history
    assert len({record["train_loss"] for record in history}) == 3
    plain = train(learning_rate=1e-30).history
    losses = [record["train_loss"] for record in plain]
    assert max(losses) == pytest.approx(min(losses), rel=1e-5)


def test_an_example_meets_other_masks_in_every_epoch():
    # One example has one order: with parameters that stand still only the masks are left.
    fitted = fit(
        NETWORK, start(), X[:1], T[:1], key=jax.random.key(1), dropout=0.5, optimizer="sgd",
        learning_rate=1e-30, epochs=6,
    )  # fmt: skip
    assert len({record["train_loss"] for record in fitted.history}) > 3


def test_dropout_is_not_applied_where_the_network_is_evaluated():
    fitted = train(dropout=(0.5, 0.2), input_dropout=0.2, evaluation={"all": (X, T)})
    assert fitted.history[-1]["all_loss"] == evaluate(NETWORK, fitted.params, X, T).loss


# Decay, clipping, norms.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_and_clipping_are_optax_s_for_every_optimizer(name):
    """Decoupled where optax decouples it, of the weights alone; else added to the gradient."""
    with jax.enable_x64(True):
        params = in_dtype(start(jnp.float64), jnp.float64)
        gradient = jax.tree.map(lambda leaf: 3 * leaf + 0.1, params)
        ours = optimizer_named(name, decaying=True, clipping=True)
        numbers = {"learning_rate": 0.03, "weight_decay": 0.2, "clip_norm": 0.7}
        state = with_numbers(ours.init(params), numbers)
        updates, _ = jax.jit(ours.update)(gradient, state, params)
        only_weights = jax.tree.map(lambda leaf: leaf.ndim == 2, params)
        entry = OPTIMIZERS[name]
        if name in ("adamw", "nadamw", "lamb", "lion"):
            core = entry.build(0.03, weight_decay=0.2, mask=only_weights)
            theirs = optax.chain(optax.clip_by_global_norm(0.7), core)
        else:
            decay = optax.add_decayed_weights(0.2, mask=only_weights)
            theirs = optax.chain(optax.clip_by_global_norm(0.7), decay, entry.build(0.03))
        expected, _ = jax.jit(theirs.update)(gradient, theirs.init(params), params)
        assert_close(jax.device_get(updates), jax.device_get(expected), FLOAT64)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_setting_of_every_optimizer_is_data_and_is_optax_s(name):
    entry = OPTIMIZERS[name]
    chosen = {setting: 0.5 * value for setting, value in entry.defaults().items()}
    with jax.enable_x64(True):
        params = in_dtype(start(jnp.float64), jnp.float64)
        gradient = jax.tree.map(lambda leaf: 3 * leaf + 0.1, params)
        ours, theirs = optimizer_named(name), entry.build(0.03, **chosen)
        states = [
            with_numbers(ours.init(params), {"learning_rate": 0.03, **chosen}),
            theirs.init(params),
        ]
        if entry.decays:
            theirs = entry.build(0.03, **chosen, weight_decay=0.0)
        results = []
        for optimizer, state in zip((ours, theirs), states, strict=True):
            _, state = optimizer.update(gradient, state, params)
            updates, _ = optimizer.update(gradient, state, params)  # sees the first one's moments
            results.append(jax.device_get(updates))
    assert_close(*results, FLOAT64)


def test_the_default_weight_decay_is_optax_s():
    expected = {"adamw": 1e-4, "nadamw": 1e-4, "lion": 1e-3}
    assert {name: default_weight_decay(name) for name in OPTIMIZERS} == {
        name: expected.get(name, 0.0) for name in OPTIMIZERS
    }


def test_weight_decay_shrinks_weights_and_not_biases():
    # Without a gradient (no hidden unit is on, and the outputs, their biases, are the targets) only
    # the decay moves anything.
    network = Network((5, 4, 2), "relu", "squared_error")
    first, last = init(network, jax.random.key(1))
    begin = first._replace(bias=-jnp.ones(4)), last._replace(bias=jnp.array([0.5, -0.25]))
    fitted = fit(
        network, begin, np.zeros((20, 5)), np.tile([0.5, -0.25], (20, 1)), key=jax.random.key(0),
        optimizer="sgd", learning_rate=0.1, weight_decay=0.5, batch_size=20, epochs=1,
    )  # fmt: skip
    assert fitted.history[0]["gradient_norm"] == 0
    for before, after in zip(jax.device_get(begin), fitted.params, strict=True):
        np.testing.assert_allclose(after.weight, before.weight * (1 - 0.1 * 0.5), rtol=1e-6)
        np.testing.assert_array_equal(after.bias, before.bias)


def test_max_norm_bounds_the_hidden_units_and_leaves_small_ones_alone():
    params = start()
    after = bounded(params, jnp.asarray(1.3))
    for old, new in zip(params[:-1], after[:-1], strict=True):
        norms = np.linalg.norm(old.weight, axis=1)
        assert norms.min() < 1.3 < norms.max()
        expected = np.minimum(norms, 1.3)
        np.testing.assert_allclose(np.linalg.norm(new.weight, axis=1), expected, rtol=1e-6)
        small = norms < 1.3
        np.testing.assert_array_equal(new.weight[small], old.weight[small])
    assert after[-1] is params[-1]
    fitted = train(max_norm=0.5, learning_rate=1.0, epochs=5)
    assert np.linalg.norm(fitted.params[0].weight, axis=1).max() <= 0.5 * (1 + 1e-6)
    nothing = bounded(jax.tree.map(jnp.zeros_like, params), jnp.asarray(1.0))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(nothing))


# The average.


def test_the_average_is_the_weighted_mean_of_all_parameters_so_far():
    path = RNG.normal(size=(7, 3))
    average = jnp.zeros(3)  # whatever it begins with, the first step replaces
    for count, point in enumerate(path):
        average = averaged(
            average, jnp.asarray(point, jnp.float32), jnp.float32(0.2), jnp.asarray(count)
        )
    weights = 0.8 ** np.arange(6, -1, -1)
    expected = weights @ path / weights.sum()
    np.testing.assert_allclose(average, expected, rtol=1e-5)  # seven float32 steps


def test_a_decay_that_float32_would_round_to_1_gives_the_mean_of_all_parameters():
    states = []
    fitted = train(
        average_decay=1 - 1e-12, batch_size=20, epochs=5, learning_rate=0.5,
        callbacks=[lambda _, snapshot: states.append(jax.device_get(snapshot.state.params))],
    )  # fmt: skip
    expected = np.mean([state[0].weight for state in states], axis=0)
    np.testing.assert_allclose(fitted.params[0].weight, expected, rtol=1e-5, atol=1e-7)


def test_what_is_evaluated_and_returned_is_the_average():
    states = []
    fitted = train(
        average_decay=0.9, learning_rate=0.5, evaluation={"all": (X, T)},
        callbacks=[lambda _, snapshot: states.append(jax.device_get(snapshot.state))],
    )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, fitted.params, states[-1].average)
    assert not np.array_equal(fitted.params[0].weight, states[-1].params[0].weight)
    assert fitted.history[-1]["all_loss"] == evaluate(NETWORK, fitted.params, X, T).loss


# What is the same for all steps of a program.


def test_the_optimizer_s_state_is_that_of_the_last_step():
    fitted = train(batch_size=3, epochs=2, learning_rate=0.1, schedule="linear")
    assert fitted.optimizer_state.count == 14
    rate = float(fitted.optimizer_state.hyperparams["learning_rate"])
    assert rate == pytest.approx(0.1 / 14, rel=1e-6)


# Half precision.


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_small_step_is_not_lost_on_a_half_precision_parameter(dtype):
    # 1e-4 of a weight is below bfloat16's 2^-8: in its own dtype no weight would ever move.
    states = []
    fitted = fit(
        NETWORK, start(dtype), X, T, key=jax.random.key(0), learning_rate=1e-4, optimizer="sgd",
        epochs=400, batch_size=20, callbacks=[lambda _, snapshot: states.append(snapshot)],
    )  # fmt: skip
    assert fitted.params[0].weight.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(states[-1].state.params)} == {
        np.dtype(np.float32)
    }
    plain = fit(
        NETWORK, in_dtype(start(dtype), jnp.float32), X, T, key=jax.random.key(0),
        learning_rate=1e-4, optimizer="sgd", epochs=400, batch_size=20,
    )  # fmt: skip
    fallen = fitted.history[0]["train_loss"] - fitted.history[-1]["train_loss"]
    expected = plain.history[0]["train_loss"] - plain.history[-1]["train_loss"]
    assert expected > 0.005 and fallen == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_half_precision_gradient_is_that_of_the_rounded_parameters(dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), start())
    x = np.asarray(X.astype(dtype), np.float64)
    batch = Batch(jnp.asarray(x, jnp.float32), jnp.asarray(T), jnp.asarray(W, jnp.float32))
    ours, _ = compiled_gradient(NETWORK, params, batch, Regularization(), None, dtype)
    with jax.enable_x64(True):
        wide = in_dtype(params, jnp.float64)
        expected = jax.jit(
            jax.grad(lambda p: oracles.plain_loss(NETWORK.activations, NETWORK.loss, p, x, T, W))
        )(wide)
        expected = jax.device_get(expected)
    # What enters a product is rounded to 8 or 11 bits; sums are float32's.
    assert_close(jax.device_get(ours), expected, 8 * float(jnp.finfo(dtype).eps))
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_in_half_precision_too_only_ratios_of_weights_count(factor):
    # Weights that sum to 1 would be lost below float16's 6e-8, and large ones overflow at 65504.
    fitted = [
        fit(
            NETWORK, start(jnp.float16), X, T, key=jax.random.key(0), sample_weight=weights,
            optimizer="sgd", learning_rate=0.5, epochs=3, batch_size=8,
        ).params
        for weights in (W, factor * W)
    ]  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, *fitted)


def test_parameters_that_overflow_in_half_precision_are_never_returned():
    # Finite in float32, which is what is trained, but infinite in float16.
    network = Network((1, 1), loss="squared_error", bias=False)
    params = init(network, jax.random.key(0), jnp.float16)
    with pytest.raises(FloatingPointError, match="^training diverged: a parameter became inf in"):
        fit(
            network, params, np.ones((1, 1)), np.full(1, 1e5), key=jax.random.key(0),
            optimizer="sgd", learning_rate=0.9, epochs=1,
        )  # fmt: skip


# Rates.


def test_the_one_cycle_schedule_is_optax_s():
    steps = np.arange(200)
    theirs = optax.cosine_onecycle_schedule(200, 0.3)
    ours = learning_rates(0.3, "one_cycle", 0.0, steps, 200)
    expected = np.asarray(jax.vmap(theirs)(steps))
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-8)  # theirs are float32


def test_the_linear_schedule_falls_evenly_and_warm_up_rises_evenly():
    np.testing.assert_allclose(SCHEDULES["linear"](np.array([0, 0.25, 1])), [1, 0.75, 0])
    # A quarter of 16 steps: 1/4, 2/4, 3/4, 4/4 of the rate, and then the schedule's.
    rates = learning_rates(0.8, "constant", 0.25, np.arange(16), 16)
    np.testing.assert_allclose(rates, 0.8 * np.array([0.25, 0.5, 0.75] + [1] * 13))


# Early stopping.


def test_early_stopping_returns_the_best_epoch_s_parameters():
    seen = []
    rows = RNG.normal(size=(40, 4)), RNG.integers(3, size=40)  # noise: it gets worse in time
    fitted = train(
        learning_rate=0.5, epochs=200, patience=4, evaluation={"validation": rows},
        callbacks=[lambda _, snapshot: seen.append(jax.device_get(snapshot.state.params))],
    )  # fmt: skip
    losses = [record["validation_loss"] for record in fitted.history]
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 4 < 200
    assert fitted.best_epoch == best + 1
    jax.tree.map(np.testing.assert_array_equal, fitted.params, seen[best])
    assert evaluate(NETWORK, fitted.params, *rows).loss == losses[best]


def test_early_stopping_on_the_accuracy_wants_more_of_it():
    fitted = train(
        learning_rate=0.3, epochs=60, patience=5, monitor="all_accuracy", evaluation={"all": (X, T)}
    )
    accuracies = [record["all_accuracy"] for record in fitted.history]
    assert fitted.best_epoch == int(np.argmax(accuracies)) + 1
    assert evaluate(NETWORK, fitted.params, X, T).accuracy == max(accuracies)


# Figures.


def test_the_gradient_norm_is_that_of_the_mean_loss():
    fitted = train(batch_size=20, learning_rate=1e-30, epochs=1)
    with jax.enable_x64(True):
        params = in_dtype(start(), jnp.float64)
        gradient = jax.grad(
            lambda p: oracles.plain_loss(NETWORK.activations, NETWORK.loss, p, X, T, np.ones(20))
        )(params)
        expected = float(optax.tree.norm(gradient))
    assert fitted.history[0]["gradient_norm"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("epoch", [1, 2])
def test_the_gradient_norm_is_that_of_the_epoch_s_first_batch_with_the_parameters_at_its_end(epoch):
    fitted = train(batch_size=3, learning_rate=0.1, epochs=epoch)
    words = [int(word) for word in jax.random.key_data(jax.random.key(1))]
    rows = np.random.default_rng([*words, epoch - 1]).permutation(20)[:3]
    _, gradient = loss_and_gradient(NETWORK, fitted.params, X[rows], T[rows])
    expected = float(optax.tree.norm(gradient))
    assert fitted.history[-1]["gradient_norm"] == pytest.approx(expected, rel=1e-5)


def test_the_gradient_norm_is_as_trained_and_before_clipping():
    settings = {"batch_size": 20, "learning_rate": 1e-30, "epochs": 1}
    plain = train(**settings).history[0]["gradient_norm"]
    assert train(**settings, clip_norm=1e-3).history[0]["gradient_norm"] == plain
    for other in ({"dropout": 0.5}, {"input_dropout": 0.5}, {"label_smoothing": 0.3}):
        norm = train(**settings, **other).history[0]["gradient_norm"]
        assert abs(norm - plain) > 1e-3 * plain, other


def test_compiling_is_timed_apart_and_once():
    fitted = train(Network((4, 7, 3), "softplus"), epochs=3)
    assert [("compile_seconds" in record) for record in fitted.history] == [True, False, False]
    first, second = fitted.history[0], fitted.history[1]
    assert first["compile_seconds"] > 10 * first["seconds"]
    assert first["seconds"] < 100 * second["seconds"]


# Settings.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer_settings": {"b3": 1}}, "optimizer_settings: expected b1, b2, eps for adam, g"),
        ({"optimizer_settings": {"b1": "x"}}, "optimizer_settings: b1: expected a number, got 'x'"),
        (
            {"optimizer_settings": {"b1": -1}},
            "optimizer_settings: b1: expected a number in [0, 1), got -1",
        ),
        ({"optimizer_settings": {"b2": 1}}, "optimizer_settings: b2: expected a number in [0, 1),"),
        (
            {"optimizer_settings": {"b2": 1 - 1e-9}},
            "optimizer_settings: b2: expected a number in [0, 1), got 0.999999999, which float32 r",
        ),
        ({"optimizer_settings": {"eps": -1}}, "optimizer_settings: eps: expected a number of at "),
        (
            {"max_norm": 1e39},
            "max_norm: expected a number above 0, got 1e+39, which float32 rounds",
        ),
        ({"clip_norm": 1e-50}, "clip_norm: expected a number above 0, got 1e-50, which float32 ro"),
        ({"dropout": np.full(2, 0.5)}, "dropout: expected a number, got array([0.5, 0.5])"),
        ({"optimizer_settings": [1]}, "optimizer_settings: expected name → number, got [1]"),
        ({"warmup": 1.5}, "warmup: expected a number in [0, 1), got 1.5"),
        ({"weight_decay": -1}, "weight_decay: expected a number of at least 0, got -1"),
        ({"weight_decay": np.inf}, "weight_decay: expected a number of at least 0 and finite, got"),
        ({"clip_norm": 0}, "clip_norm: expected a number above 0, got 0"),
        ({"max_norm": -2}, "max_norm: expected a number above 0, got -2"),
        ({"dropout": 1.0}, "dropout: expected a number in [0, 1), got 1.0"),
        (
            {"dropout": (0.1, 0.2, 0.3)},
            "dropout: expected one rate or 2, one for each hidden layer",
        ),
        ({"dropout": 0.9999}, "dropout: expected at most 0.999, got 0.9999"),
        ({"dropout": "half"}, "dropout: expected"),
        ({"input_dropout": -0.1}, "input_dropout: expected a number in [0, 1), got -0.1"),
        ({"average_decay": 0}, "average_decay: expected a number in (0, 1), got 0"),
        ({"average_decay": 1}, "average_decay: expected a number in (0, 1), got 1"),
        ({"patience": 0}, "patience: expected an integer of at least 1, got 0"),
        ({"patience": 2}, "monitor: expected a figure of an evaluation (none given), got 'validat"),
        ({"monitor": "loss"}, "monitor: expected the loss or the accuracy of an evaluation, such"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises((ValueError, TypeError)) as raised:
        fit(NETWORK, start(), X, T, key=jax.random.key(0), **change)
    assert str(raised.value).startswith(message)


def test_an_accuracy_is_no_figure_of_a_regression():
    network = Network((4, 1), loss="squared_error")
    with pytest.raises(ValueError, match="^monitor: expected a loss, as squared_error has no acc"):
        Settings(monitor="validation_accuracy").check(network)
    with pytest.raises(ValueError, match="^dropout: expected none for a network without a hidden"):
        Settings(dropout=(0.5,)).check(network)
