"""Steps, epochs and `fit`, against plain loops with jax.grad and optax; and what they compile."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import assert_close, compilations, distance, in_dtype

from jaxmlp import Layer, Network, evaluate, fit, init
from jaxmlp.batch import Batch
from jaxmlp.scaling import PIXELS, Scaling
from jaxmlp.training import batches, loops, steps
from jaxmlp.training.optimizers import OPTIMIZERS, SCHEDULES, optimizer_named, with_numbers
from jaxmlp.training.settings import Settings
from jaxmlp.training.snapshots import Snapshot, first_snapshot, largest
from jaxmlp.training.steps import TrainingState, run_steps, training_step
from jaxmlp.verification import oracles

# Gradients agree to 1e-15; twenty to sixty steps, in which Adam divides by the gradient's size,
# have room below this.
FLOAT64_STEPS = 1e-12

NETWORK = Network((4, 5, 3), "tanh")
BATCH_SIZE = 8


def problem(n_examples=30):
    """Inputs, classes that a linear map decides, and unequal weights; NumPy float64."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(n_examples, 4))
    t = np.argmax(x @ rng.normal(size=(4, 3)), axis=1)
    return x, t, rng.uniform(0.2, 2, size=n_examples)


X, T, W = problem()


@cache
def params_in(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        return init(NETWORK, jax.random.key(0), dtype)


def start(dtype=jnp.float32):
    """Fresh copies of the initial parameters, as NumPy arrays of that dtype."""
    return jax.tree.map(np.array, params_in(dtype))


def train(key, n_examples=30, network=NETWORK, **changes):
    """Fit the shared problem with the shared settings."""
    settings = {"batch_size": BATCH_SIZE, "epochs": 2, "learning_rate": 0.01} | changes
    rows = slice(0, n_examples)
    return fit(network, start(), X[rows], T[rows], key=jax.random.key(key), **settings)


def plain_loss(params, x, t, w):
    """The oracle's loss of NETWORK."""
    return oracles.plain_loss(NETWORK.activations, NETWORK.loss, params, x, t, w)


def test_one_output_is_none_for_softmax_cross_entropy():
    network = Network((4, 1))
    params = init(network, jax.random.key(0))
    with pytest.raises(ValueError, match="^network: expected at least two outputs for softmax_cr"):
        fit(network, params, X[:, :4], np.zeros(len(X), int), key=jax.random.key(1))


# Steps.


def steps_of(optimizer, n_steps):
    """Two compiled functions of the parameters: `n_steps` of ours, and of jax.grad and optax."""
    x, t, w = jnp.asarray(X), jnp.asarray(T), jnp.asarray(W)

    def ours(params):
        def step(state, _):
            state, sums = training_step(NETWORK, optimizer, state, Batch(x, t, w))
            return state, sums

        state = TrainingState(params, optimizer.init(params))
        state, sums = jax.lax.scan(step, state, length=n_steps)
        return state.params, sums.loss / sums.weight

    def theirs(params):
        def step(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(plain_loss)(params, x, t, w)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        (params, _), values = jax.lax.scan(step, (params, optimizer.init(params)), length=n_steps)
        return params, values

    return jax.jit(ours), jax.jit(theirs)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.5),
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        optax.adam(0.01),
        optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.01, weight_decay=0.1)),
        optax.rmsprop(0.01),
    ],
    ids=["sgd", "nesterov", "adam", "clipped adamw", "rmsprop"],
)
def test_twenty_steps_are_those_of_jax_grad_with_optax(optimizer):
    with jax.enable_x64(True):
        ours, theirs = steps_of(optimizer, 20)
        params = in_dtype(start(jnp.float64), jnp.float64)
        result, expected = jax.device_get((ours(params), theirs(params)))
    assert_close(result, expected, FLOAT64_STEPS)
    # The losses are those before each step, and the steps lead somewhere.
    assert distance(result[0][0].weight, start(jnp.float64)[0].weight) > 0.01


def test_a_step_counts_its_batch_before_it_moves():
    state = TrainingState(in_dtype(start(), jnp.float32), optax.EmptyState())
    batch = Batch(*in_dtype((X, T, W), jnp.float32))
    _, sums = jax.jit(partial(training_step, NETWORK, optax.identity()))(state, batch)
    metrics = evaluate(NETWORK, start(), X, T, W)
    assert sums.metrics(NETWORK) == pytest.approx(metrics, rel=1e-5)  # sums of 30 float32 numbers
    assert float(sums.weight) == pytest.approx(W.sum(), rel=1e-5)


# fit.


def plain_fit(key, optimizer, batch_size, epochs, schedule="constant", alpha=0.0, weights=None):
    """What `fit` says it does, with jax.grad and optax: (params, [(train_loss, accuracy)])."""
    n = len(X)
    weights = np.ones(n) if weights is None else weights
    targets = (1 - alpha) * np.eye(3)[T] + alpha / 3
    n_steps = -(-n // batch_size)
    total, done, history = n_steps * epochs, 0, []
    params = in_dtype(start(jnp.float64), jnp.float64)
    state = optimizer(0.0).init(params)

    @jax.jit
    def step(params, state, rate, x, t, w):
        z = oracles.plain_logits(NETWORK.activations, params, x)
        value, gradient = jax.value_and_grad(plain_loss)(params, x, t, w)
        updates, state = optimizer(rate).update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value, jnp.argmax(z, axis=1)

    for epoch in range(epochs):
        words = [int(word) for word in jax.random.key_data(key)]
        order = np.random.default_rng([*words, epoch]).permutation(n)
        losses, right, weight = 0.0, 0.0, 0.0
        for begin in range(0, n, batch_size):
            rows = order[begin : begin + batch_size]
            factor = {"constant": 1, "cosine": (1 + np.cos(np.pi * done / total)) / 2}[schedule]
            batch = X[rows], targets[rows], weights[rows]
            params, state, value, chosen = step(params, state, 0.05 * factor, *batch)
            losses += float(value) * weights[rows].sum()
            right += float(((np.asarray(chosen) == T[rows]) * weights[rows]).sum())
            weight += weights[rows].sum()
            done += 1
        history.append((losses / weight, right / weight))
    return jax.device_get(params), history


@pytest.mark.parametrize(
    ("name", "optimizer", "settings"),
    [
        ("adam", optax.adam, {"batch_size": 8}),  # 30 = 3 · 8 + 6: a ragged last batch
        ("momentum", partial(optax.sgd, momentum=0.9), {"batch_size": 10, "schedule": "cosine"}),
        ("sgd", optax.sgd, {"batch_size": 64, "label_smoothing": 0.2, "sample_weight": W}),
    ],
    ids=["ragged", "cosine", "one batch, weights, smoothing"],
)
def test_fit_is_a_plain_loop_with_jax_grad_and_optax_in_float64(name, optimizer, settings):
    key = jax.random.key(7)
    with jax.enable_x64(True):
        fitted = fit(
            NETWORK, start(jnp.float64), X, T,
            key=key, optimizer=name, learning_rate=0.05, epochs=3, **settings,
        )  # fmt: skip
        theirs = settings | {"alpha": settings.get("label_smoothing", 0.0)}
        theirs["weights"] = theirs.pop("sample_weight", None)
        theirs.pop("label_smoothing", None)
        params, history = plain_fit(key, optimizer, epochs=3, **theirs)
        ours = jax.device_get(fitted.params)
    assert_close(ours, params, FLOAT64_STEPS)
    figures = [(record["train_loss"], record["train_accuracy"]) for record in fitted.history]
    assert_close(np.array(figures), np.array(history), FLOAT64_STEPS)


def test_the_history_has_a_record_for_every_epoch_with_the_figures_of_every_evaluation():
    sets = {"validation": (X[:7], T[:7]), "test": (X[7:20], T[7:20])}
    fitted = train(1, epochs=3, evaluation=sets)
    assert [record["epoch"] for record in fitted.history] == [1, 2, 3]
    for name, (x, t) in sets.items():
        metrics = evaluate(NETWORK, fitted.params, x, t)
        last = fitted.history[-1]
        # The same program on the same parameters.
        assert (last[f"{name}_loss"], last[f"{name}_accuracy"]) == metrics
    for record in fitted.history:
        assert record["seconds"] > 0
        assert record["examples_per_second"] == pytest.approx(30 / record["seconds"])


def test_callbacks_see_every_epoch_with_its_record_and_state():
    seen = []

    def callback(record, snapshot):
        assert isinstance(snapshot, Snapshot) and snapshot.epoch == record["epoch"]
        assert snapshot.history[-1] == record and snapshot.step == 0
        seen.append((dict(record), jax.device_get(snapshot.state.params)))

    calls = []
    fitted = train(2, epochs=3, callbacks=[callback, lambda record, _: calls.append(record)])
    assert [record for record, _ in seen] == fitted.history == calls
    jax.tree.map(np.testing.assert_array_equal, seen[-1][1], fitted.params)
    assert not np.array_equal(seen[0][1][0].weight, seen[1][1][0].weight)


def test_the_caller_s_parameters_are_neither_changed_nor_donated():
    params = in_dtype(start(), jnp.float32)
    fitted = fit(NETWORK, params, X, T, key=jax.random.key(0), batch_size=BATCH_SIZE, epochs=1)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, params, start())
    assert not np.array_equal(fitted.params[0].weight, params[0].weight)


def test_the_same_key_gives_the_same_result_and_another_key_another():
    first, second, other = train(3), train(3), train(4)
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    assert not np.array_equal(first.params[0].weight, other.params[0].weight)


def test_every_epoch_sees_every_example_once():
    # With a rate too small to move anything, an epoch's means over its batches are those of all.
    with jax.default_matmul_precision("highest"):  # in TF32 other shapes round otherwise
        fitted = train(9, epochs=3, optimizer="sgd", learning_rate=1e-30)
        whole = evaluate(NETWORK, start(), X, T)
    for record in fitted.history:
        assert record["train_loss"] == pytest.approx(whole.loss, rel=1e-5)
        assert record["train_accuracy"] == pytest.approx(whole.accuracy, rel=1e-5)


def test_rows_of_weight_0_may_hold_anything_and_change_nothing():
    weights = np.where(np.arange(30) % 5 == 0, 0, W)
    x, t = X.copy(), T.copy()
    x[weights == 0], t[weights == 0] = np.nan, -1
    fitted = [
        fit(
            NETWORK, start(), *examples, key=jax.random.key(1), sample_weight=weights,
            batch_size=BATCH_SIZE, epochs=2,
        )
        for examples in ((x, t), (X, T))
    ]  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, fitted[0].params, fitted[1].params)
    assert fitted[0].history[-1]["train_loss"] == fitted[1].history[-1]["train_loss"]


def test_a_row_of_weight_0_counts_for_nothing_where_zeros_overflow():
    # Of zeros the network predicts e^100, beyond float32; of the examples e^0.
    network = Network((1, 1), loss="poisson")
    params = (Layer(np.full((1, 1), -100, np.float32), np.full(1, 100, np.float32)),)
    weights = np.where(np.arange(5) == 3, 0, 1)
    fitted = fit(
        network, params, np.ones((5, 1)), np.ones(5), key=jax.random.key(0),
        sample_weight=weights, epochs=2, learning_rate=1e-4,
    )  # fmt: skip
    assert fitted.history[-1]["train_loss"] == pytest.approx(1, abs=1e-4)  # e^0 − 1·0


def test_what_is_not_finite_is_named_at_its_own_place_beside_rows_of_weight_0():
    x = X.copy()
    x[4, 1] = np.nan
    weights = np.where(np.arange(30) < 4, 0, W)  # the first row that counts is the bad one
    message = r"^inputs: expected finite numbers, got nan at \[4, 1\] \(1 of 120 are not finite\)$"
    with pytest.raises(ValueError, match=message):
        fit(NETWORK, start(), x, T, key=jax.random.key(0), sample_weight=weights)


# Going on from a snapshot.


def snapshot_of(key, **changes):
    """Train, and return the result with its last snapshot."""
    snapshots = []
    fitted = train(key, callbacks=[lambda _, snapshot: snapshots.append(snapshot)], **changes)
    return fitted, snapshots[-1]


def test_a_snapshot_may_be_resumed_again_and_again_and_donates_nothing_of_the_caller_s():
    fitted, snapshot = snapshot_of(5)
    before = jax.device_get(fitted.params)
    first, second = (train(5, epochs=4, resume=snapshot) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    jax.tree.map(np.testing.assert_array_equal, first.params, train(5, epochs=4).params)
    jax.tree.map(np.testing.assert_array_equal, fitted.params, before)


def test_other_numbers_count_from_the_snapshot_on():
    _, snapshot = snapshot_of(5)
    plain = train(5, epochs=4, resume=snapshot)
    for change in ({"optimizer_settings": {"b1": 0.5}}, {"learning_rate": 0.02}):
        other = train(5, epochs=4, resume=snapshot, **change)
        assert distance(other.params[0].weight, plain.params[0].weight) > 1e-4


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "sgd"},
        {"average_decay": 0.9},
        {"clip_norm": 1.0},
        {"network": Network((4, 5, 3), "tanh", bias=False)},
        {"batch_size": 7},
        {"n_examples": 20},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_snapshot_of_another_training_is_refused(change):
    _, snapshot = snapshot_of(5)
    params = start()
    if "network" in change:
        params = jax.tree.map(lambda layer: layer._replace(bias=None), params,
                              is_leaf=lambda leaf: isinstance(leaf, Layer))  # fmt: skip
    rows = slice(0, change.get("n_examples", 30))
    settings = {"batch_size": BATCH_SIZE, "network": NETWORK} | change
    settings.pop("n_examples", None)
    with pytest.raises(ValueError, match="^resume: expected a snapshot of a training "):
        fit(
            settings.pop("network"), params, X[rows], T[rows], key=jax.random.key(5), epochs=4,
            resume=snapshot, **settings,
        )  # fmt: skip


def test_what_is_no_snapshot_is_named():
    fitted = train(5, epochs=1)
    with pytest.raises(TypeError, match="^resume: expected a snapshot, which `fit` gives .* Fit$"):
        train(5, resume=fitted)


def test_a_snapshot_whose_arrays_were_donated_is_refused():
    snapshots = []
    train(5, epochs=2, callbacks=[lambda _, snapshot: snapshots.append(snapshot)])
    with pytest.raises(ValueError, match="^resume: expected a snapshot that holds its arrays"):
        train(5, resume=snapshots[0])


def test_label_smoothing_keeps_the_network_from_growing_certain():
    settings = {"epochs": 300, "batch_size": 32, "learning_rate": 0.02}
    plain, smoothed = train(1, **settings), train(1, label_smoothing=0.3, **settings)
    assert evaluate(NETWORK, plain.params, X, T).loss < 0.05
    # The best y of the class is 1 − 0.3 + 0.3/3 = 0.8: −log 0.8 = 0.22.
    assert evaluate(NETWORK, smoothed.params, X, T).loss == pytest.approx(-np.log(0.8), abs=0.06)
    # The training loss is that of the smoothed targets: at least their entropy.
    entropy = -0.8 * np.log(0.8) - 2 * 0.1 * np.log(0.1)
    assert smoothed.history[-1]["train_loss"] == pytest.approx(entropy, abs=0.05)
    assert smoothed.history[-1]["train_loss"] > entropy


def test_training_that_diverges_raises_with_the_epoch():
    network = Network((4, 1), loss="squared_error")
    params = init(network, jax.random.key(0))
    message = (
        r"^training diverged: the train loss became (inf|nan) in epoch \d+ of 50; a learning rate "
    )
    with pytest.raises(FloatingPointError, match=message):
        fit(
            network, params, X, X[:, :1], key=jax.random.key(0), optimizer="sgd",
            learning_rate=1e6, epochs=50, batch_size=BATCH_SIZE,
        )  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_the_table_reduces_the_loss(name):
    # 30 epochs of 4 steps; adagrad, whose steps shrink, and lamb need the longer ones.
    rate = 0.1 if name in ("sgd", "momentum", "nesterov", "adagrad") else 0.02
    fitted = train(6, optimizer=name, learning_rate=rate, epochs=30)
    history = fitted.history
    assert history[-1]["train_loss"] < 0.6 * history[0]["train_loss"]


def test_an_optimizer_of_the_table_is_optax_s_with_the_rate_in_its_state():
    with jax.enable_x64(True):
        params = in_dtype(start(jnp.float64), jnp.float64)
        gradient = jax.tree.map(lambda leaf: leaf + 0.1, params)
        for name in ("adam", "nesterov"):
            ours, theirs = optimizer_named(name), OPTIMIZERS[name].build(0.03)
            state = with_numbers(ours.init(params), {"learning_rate": 0.03})
            updates, _ = jax.jit(ours.update)(gradient, state, params)
            expected, _ = jax.jit(theirs.update)(gradient, theirs.init(params), params)
            assert_close(updates, expected, FLOAT64_STEPS)
    assert optimizer_named("adam") is optimizer_named("adam")


def test_the_schedules_begin_with_the_whole_rate_and_the_cosine_ends_with_none():
    done = np.array([0, 0.25, 0.5, 1])
    np.testing.assert_array_equal(SCHEDULES["constant"](done), np.ones(4))
    # (1 + cos πd)/2: 1, (1 + √½)/2, ½, 0
    expected = np.array([1, (1 + np.sqrt(0.5)) / 2, 0.5, 0])
    assert_close(SCHEDULES["cosine"](done), expected, 1e-15)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_parameters_of_every_dtype_are_trained_and_keep_it(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        fitted = fit(
            NETWORK, params_in(dtype), X, T, key=jax.random.key(1), batch_size=BATCH_SIZE,
            learning_rate=0.02, epochs=30, evaluation={"all": (X, T)},
        )  # fmt: skip
    assert {leaf.dtype for leaf in jax.tree.leaves(fitted.params)} == {jnp.dtype(dtype)}
    assert fitted.history[-1]["train_loss"] < 0.5 * fitted.history[0]["train_loss"]
    assert fitted.history[-1]["all_accuracy"] >= 0.8


@pytest.mark.parametrize(
    ("network", "targets"),
    [
        (Network((4, 5, 1), "tanh", "squared_error"), X[:, 0]),
        (Network((4, 2), loss="sigmoid_binary_cross_entropy"), (X[:, :2] > 0).astype(int)),
        (Network((4, 2), loss="poisson"), np.round(np.exp(X[:, :2] / 2))),
        (Network((4, 5, 3), "tanh"), np.eye(3)[T]),
    ],
    ids=["regression", "binary", "counts", "distributions"],
)
def test_every_kind_of_target_is_learned(network, targets):
    params = init(network, jax.random.key(0))
    fitted = fit(
        network, params, X, targets, key=jax.random.key(1), batch_size=BATCH_SIZE,
        learning_rate=0.05, epochs=60,
    )  # fmt: skip
    first, last = fitted.history[0], fitted.history[-1]
    assert last["train_loss"] < first["train_loss"] - 0.1
    classifier = network.loss in ("softmax_cross_entropy", "sigmoid_binary_cross_entropy")
    assert ("train_accuracy" in last) == classifier
    if classifier:
        assert last["train_accuracy"] > 0.9


def test_uint8_inputs_and_batches_larger_than_the_data_are_taken():
    x = (20 * (X - X.min())).astype(np.uint8)
    whole = [
        fit(NETWORK, start(), inputs, T, key=jax.random.key(1), batch_size=100, epochs=2)
        for inputs in (x, x.astype(np.float32))
    ]
    jax.tree.map(np.testing.assert_array_equal, whole[0].params, whole[1].params)


def test_bytes_are_scaled_on_the_device_as_numbers_are_on_the_host_and_evaluations_too():
    x = (20 * (X - X.min())).astype(np.uint8)
    scaling = Scaling(np.arange(4.0), np.float64(1 / 50))
    plain = (x - np.arange(4.0)) / 50
    fitted = [
        train_on(inputs, scaling=given, evaluation={"all": (inputs, T, W)})
        for inputs, given in ((x, scaling), (x.astype(int), scaling), (plain, None))
    ]
    for other in fitted[:2]:
        # Forty float32 steps of sgd from inputs that differ in the last digit.
        assert_close(other.params, fitted[2].params, 1e-5)
        metrics = evaluate(NETWORK, other.params, plain, T, W)
        assert other.history[-1]["all_loss"] == pytest.approx(metrics.loss, rel=1e-5)


def train_on(inputs, **settings):
    return fit(
        NETWORK, start(), inputs, T, key=jax.random.key(1), batch_size=BATCH_SIZE, epochs=10,
        optimizer="sgd", learning_rate=0.1, **settings,
    )  # fmt: skip


# Bad arguments.


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inputs": X[:0], "targets": T[:0]}, ValueError, "inputs: expected at least one example"),
        ({"inputs": np.where(X == X[2, 1], np.nan, X)}, ValueError, "inputs: expected finite num"),
        ({"targets": np.where(T == 2, 3, T)}, ValueError, "targets: expected classes 0 to 2, got"),
        ({"targets": T - 1}, ValueError, "targets: expected classes 0 to 2, got -1"),
        ({"targets": T * 1.0}, TypeError, "targets: expected (N,) integer classes"),
        ({"sample_weight": -W}, ValueError, "sample_weight: expected numbers ≥ 0"),
        (
            {"sample_weight": 1e-60 * W},
            ValueError,
            "sample_weight: expected a number above 0 in f",
        ),
        ({"sample_weight": 0 * W}, ValueError, "sample_weight: expected a number above 0, got non"),
        ({"key": 0}, TypeError, "key: expected a typed key such as jax.random.key(0), got int"),
        ({"key": jax.random.split(jax.random.key(0))}, (TypeError, ValueError), "key: expected"),
        ({"optimizer": "adma"}, ValueError, "unknown optimizer 'adma': did you mean 'adam'?"),
        ({"optimizer": optax.adam(0.1)}, TypeError, "optimizer: expected a name such as 'adam' (a"),
        (
            {"evaluation": (X, T)},
            ValueError,
            'evaluation: expected name → (inputs, targets) with other names than "train", got tupl',
        ),
        ({"schedule": "cosin"}, ValueError, "unknown schedule 'cosin': did you mean 'cosine'?"),
        ({"learning_rate": 0}, ValueError, "learning_rate: expected a number above 0, got 0"),
        ({"learning_rate": np.nan}, ValueError, "learning_rate: expected a number above 0"),
        ({"learning_rate": [0.1]}, ValueError, "learning_rate: expected a scalar, got shape (1,)"),
        ({"batch_size": 0}, ValueError, "batch_size: expected an integer of at least 1, got 0"),
        ({"batch_size": 8.0}, ValueError, "batch_size: expected an integer of at least 1, got 8."),
        ({"batch_size": True}, ValueError, "batch_size: expected an integer of at least 1"),
        ({"epochs": 0}, ValueError, "epochs: expected an integer of at least 1, got 0"),
        ({"epochs": -3}, ValueError, "epochs: expected an integer of at least 1, got -3"),
        ({"label_smoothing": 1}, ValueError, "label_smoothing: expected a number in [0, 1), got 1"),
        ({"label_smoothing": -0.1}, ValueError, "label_smoothing: expected a number in [0, 1)"),
        ({"label_smoothing": np.nan}, ValueError, "label_smoothing: expected a number in [0, 1)"),
        ({"scaling": Scaling(np.zeros(5), 1.0)}, ValueError, "scaling.shift: expected shape () or"),
        ({"scaling": Scaling(0.0, np.inf)}, ValueError, "scaling.factor: expected finite numbers"),
        ({"scaling": (0.0, 1.0)}, TypeError, "scaling: expected a jaxmlp.Scaling, got tuple"),
        ({"evaluation": {"all": X}}, TypeError, "evaluation: expected (inputs, targets) or (inp"),
        ({"evaluation": {"all": (X,)}}, TypeError, "evaluation: expected (inputs, targets) or ("),
        ({"params": ()}, ValueError, "params: expected 2 layers, got 0"),
        ({"params": None}, TypeError, "params: expected a tuple of 2 jaxmlp.Layer"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"params": start(), "inputs": X, "targets": T, "key": jax.random.key(0)} | change
    with pytest.raises(error) as raised:
        fit(NETWORK, **arguments)
    assert str(raised.value).startswith(message)


def test_label_smoothing_is_refused_where_targets_are_no_classes():
    network = Network((4, 1), loss="squared_error")
    params = init(network, jax.random.key(0))
    with pytest.raises(ValueError, match="^label_smoothing: expected 0 for the loss squared_error"):
        fit(network, params, X, X[:, :1], key=jax.random.key(0), label_smoothing=0.1)


def test_an_empty_or_wrong_evaluation_set_is_refused():
    with pytest.raises(ValueError, match="expected at least one example, got none"):
        train(0, evaluation={"validation": (X[:0], T[:0])})
    with pytest.raises(ValueError, match="expected classes 0 to 2, got 3"):
        train(0, evaluation={"validation": (X, np.full(30, 3))})


# What is compiled.


def test_a_second_fit_with_other_numbers_compiles_nothing():
    sets = {"validation": (X[:9], T[:9])}
    with compilations() as compiled:
        jax.jit(lambda x: 3 * x + len(T))(1.0)
        assert len(compiled) == 1  # the counter counts
        train(1, evaluation=sets, label_smoothing=0.1)
        train(1, evaluation=sets)
        evaluate(NETWORK, start(), X, T)
        before = len(compiled)
        for rate in (0.02, np.float32(0.03), 1):
            train(1, learning_rate=rate)
        for n_examples in (29, 24, 9, 1):  # ragged last batches of 5, 8, 1 and 1
            train(1, n_examples)
        for size in (1, 5, 11, 20, 30):
            train(1, evaluation={"a": (X[:size], T[:size]), "b": sets["validation"]})
            evaluate(NETWORK, start(), X[:size], T[:size])
        train(1, schedule="cosine")
        train(2)
        train(1, epochs=5)
        train(1, sample_weight=W)
        train(1, label_smoothing=0.3)
        train(1, network=Network([4, 5, 3], "tanh"))
        assert len(compiled) == before


@pytest.mark.parametrize("name", ["sgd", "adam", "lamb"])
def test_an_epoch_lowers_for_cuda_on_any_machine(name, monkeypatch):
    for module in (batches, loops, steps):  # in the form that it has there
        monkeypatch.setattr(module, "on_a_gpu", lambda: True)
    regularized = {"dropout": (0.5,), "label_smoothing": 0.1, "max_norm": 2.0, "clip_norm": 1.0}
    settings = Settings(optimizer=name, average_decay=0.9, **regularized)
    snapshot = first_snapshot(NETWORK, start(), settings)
    data = Batch(np.zeros((2048, 4), np.uint8), np.zeros(2048, np.int32), np.ones(2048, np.float32))
    exported = jax.export.export(run_steps, platforms=["cuda"])(
        NETWORK, snapshot.state, snapshot.progress, data, np.zeros(2048, np.int32),
        np.zeros(2048 // BATCH_SIZE, np.float32), settings.regularization(NETWORK, np.float32),
        PIXELS, jax.random.key(0), dict.fromkeys(("first", "end", "before"), np.int32(30)),
        optimizer=settings.transformation, batch_size=BATCH_SIZE, dtype=np.dtype(np.float32),
    )  # fmt: skip
    assert exported.platforms == ("cuda",)
    assert "dot_general" in exported.mlir_module()
    assert "optimization_barrier" in exported.mlir_module()  # the three sums as one


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [None, "highest"])
def test_training_on_the_gpu_learns_and_agrees_with_its_evaluation(precision):
    network = Network((4, 32, 3), "relu", precision=precision)
    x, t, _ = problem(3000)
    fitted = fit(
        network, init(network, jax.random.key(0)), x, t, key=jax.random.key(1), epochs=20,
        learning_rate=0.01, evaluation={"all": (x, t)},
    )  # fmt: skip
    for leaf in jax.tree.leaves(fitted.params):
        assert {device.platform for device in leaf.devices()} == {"gpu"}
    assert fitted.history[-1]["all_accuracy"] > 0.97
    # TF32 products, the default, round to 2^-11: 5e-4 in each logit.
    expected = oracles.numpy_loss(network.activations, network.loss, fitted.params, x, t, None)
    bound = 1e-4 if precision == "highest" else 1e-2
    assert fitted.history[-1]["all_loss"] == pytest.approx(expected, rel=bound)


def test_a_fit_compiles_its_programs_once_each_and_nothing_beside_them():
    """They compile in threads, before the epoch: a call of each must find them."""
    names = []

    def listen(event, seconds, **about):
        if "backend_compile" in event:
            names.append(about.get("fun_name"))

    network = Network((4, 11, 3), "tanh")  # which no other test here trains
    params = jax.tree.map(np.array, init(network, jax.random.key(0)))
    key = jax.random.key(1)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        fit(
            network, params, X, T, key=key, epochs=2, evaluation={"validation": (X, T)}, patience=2,
            monitor="validation_loss",
        )  # fmt: skip
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    programs = ["chunk_sums", "first_state", "gradient_figures", "take_steps"]
    assert sorted(str(name)[len("jit(") : -1] for name in names) == programs


@pytest.mark.parametrize(
    ("entries", "expected"),
    [((1.0, -3.0), 3.0), ((0.0,), 0.0), ((1.0, -np.inf), np.inf), ((np.nan, 9.0), np.nan)],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_largest_parameter_is_that_of_all_leaves_and_nan_where_one_is(entries, expected, dtype):
    weight = jnp.zeros((2, 3), dtype)
    leaves = [jnp.array([0, entry], dtype) for entry in entries]
    params = [Layer(weight, leaf) for leaf in leaves]
    for order in (params, params[::-1]):
        np.testing.assert_equal(largest(tuple(order)), expected)


def test_a_record_has_the_training_figures_first_and_the_others_as_they_were_given():
    network = Network((4, 5, 3), "tanh")
    evaluation = {"validation": (X, T), "a": (X, T)}
    fitted = fit(
        network, init(network, jax.random.key(0)), X, T, key=jax.random.key(1), epochs=1,
        evaluation=evaluation,
    )  # fmt: skip
    names = ["epoch", "train_loss", "train_accuracy", "gradient_norm", "validation_loss"]
    names += ["validation_accuracy", "a_loss", "a_accuracy"]
    assert list(fitted.history[0])[: len(names)] == names
