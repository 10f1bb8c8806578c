"""The private gradient, its noise, its batches and its accountant; and trainings by them."""

import sys
from functools import cache, partial
from typing import Any

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CASES, FLOAT64_BOUND, all_zero, assert_close, compilations, draw, in_dtype
from scipy import stats

from jaxmlp import Layer, Network, fit, init, private_gradient
from jaxmlp.batch import check_batch, pass_batch
from jaxmlp.privacy import (
    epsilon,
    gaussian_noise,
    noise_multiplier_for,
    padded_size,
    poisson_batches,
)
from jaxmlp.privacy.gradient import noised_mean
from jaxmlp.training import epochs
from jaxmlp.verification import oracles

# The chance that a correct generator fails one of these checks, were its seed not fixed.
FAILURE = 1e-6

NETWORK = Network((4, 6, 3), "tanh")
RNG = np.random.default_rng(3)
X, T = RNG.normal(size=(40, 4)), RNG.integers(3, size=40)


def start(dtype=jnp.float32):
    return init(NETWORK, jax.random.key(0), dtype)


# Called as it is it would compile each of its operations by itself.
compiled_noise = jax.jit(gaussian_noise)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(tree))])


# The gradient.


@cache
def looped(case):
    """The gradients of w_n E_n, one jax.grad of the plain loss after the other, and their norms."""
    with jax.enable_x64(True):
        params, inputs, targets, weights = in_dtype(draw(case), jnp.float64)
        plain = partial(oracles.plain_loss, case.network.activations, case.network.loss)
        gradient = jax.jit(jax.grad(lambda p, x, t: plain(p, x[None, :], t[None], None)))
        each = []
        for number, (x, t) in enumerate(zip(inputs, targets, strict=True)):
            weight = 1.0 if weights is None else float(weights[number])
            g = jax.device_get(gradient(params, x, t))
            each.append(jax.tree.map(lambda leaf, w=weight: w * leaf, g))
    return each, [float(np.linalg.norm(flat(g))) for g in each]


EXPECTED_SIZE = 5.0  # of batches that have nine rows


def check_gradient(case, function):
    """Without noise it is the clipped sum of the looped gradients over the expected size."""
    each, norms = looped(case)
    clip_norm = float(np.median(norms))
    total = jax.tree.map(np.zeros_like, each[0])
    scale = jax.tree.map(np.zeros_like, each[0])
    for g, norm in zip(each, norms, strict=True):
        factor = min(1.0, clip_norm / norm) if norm else 1.0
        total = jax.tree.map(lambda a, b, c=factor: a + c * b / EXPECTED_SIZE, total, g)
        scale = jax.tree.map(lambda a, b, c=factor: a + abs(c * b) / EXPECTED_SIZE, scale, g)
    with jax.enable_x64(True):
        params, inputs, targets, weights = in_dtype(draw(case), jnp.float64)
        batch = check_batch(case.network, params, inputs, targets, weights)

        @jax.jit
        def ours(params, *numbers):
            result = pass_batch(case.network, params, batch)
            return function(case.network, params, result, *numbers, jax.random.key(0))

        ours = ours(params, *map(jnp.asarray, (clip_norm, 0.0, EXPECTED_SIZE)))
        assert_close(jax.device_get(ours), total, FLOAT64_BOUND, scale)


@pytest.mark.slow  # on the default Python alone: compiling takes most of it
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_without_noise_it_is_the_clipped_sum_over_the_expected_size(case):
    check_gradient(case, lambda *arguments: noised_mean(*arguments)[0])


def test_clipping_after_the_mean_is_seen():
    def fault(network, params, result, clip_norm, noise, size, key):
        total, _ = noised_mean(network, params, result, jnp.inf * clip_norm, noise, size, key)
        total = jax.tree.map(jnp.nan_to_num, total)  # 0 · ∞
        norm = optax.tree.norm(total)
        return jax.tree.map(lambda leaf: leaf * jnp.minimum(1, clip_norm / norm), total)

    with pytest.raises(AssertionError):
        check_gradient(CASES[0], fault)


def test_dividing_by_the_batch_s_own_size_is_seen():
    def fault(network, params, result, clip_norm, noise, size, key):
        own = jnp.asarray(float(len(result.losses)))
        return noised_mean(network, params, result, clip_norm, noise, own, key)[0]

    with pytest.raises(AssertionError):
        check_gradient(CASES[0], fault)


NUMBERS: dict[str, Any] = {"clip_norm": 0.5, "noise_multiplier": 1.5, "expected_batch_size": 8}


def private(x=X, t=T, seed=0, network=NETWORK, params=None, **changes):
    return private_gradient(
        network, start() if params is None else params, x, t, key=jax.random.key(seed),
        **NUMBERS | changes,
    )  # fmt: skip


def test_adding_an_example_moves_it_by_the_clip_norm_over_the_expected_size_at_most():
    with_it, without = flat(private(X, T)), flat(private(X[1:], T[1:]))
    # The key is the same, and so is the noise: what is left is one clipped gradient.
    distance = np.linalg.norm(with_it - without)
    assert 0 < distance <= 0.5 / 8 * (1 + 1e-5)


def test_the_empty_batch_is_noise_and_a_batch_of_padding_too():
    empty = private(np.zeros((0, 4)), np.zeros(0, int))
    padding = private(X, T, sample_weight=np.zeros(40))
    noise = compiled_noise(jax.random.key(0), start(), 1.5 * 0.5)
    expected = jax.tree.map(lambda leaf: leaf / 8, noise)
    for got in (empty, padding):
        assert_close(got, expected, 1e-6)
    assert not all_zero(empty)


def test_padding_changes_nothing():
    padded = private(np.vstack([X, np.full((5, 4), np.nan)]), np.append(T, [0] * 5),
                     sample_weight=np.arange(45) < 40)  # fmt: skip
    assert_close(padded, private(), 1e-6)


def test_the_products_are_of_full_precision_whatever_the_network_s():
    network = Network((4, 6, 3), "tanh", precision="default")
    jaxpr = str(jax.make_jaxpr(lambda p: private(network=network, params=p))(start()))
    # Two forward, one backward, two contractions.
    assert jaxpr.count("dot_general") == jaxpr.count("precision=(Precision.HIGHEST") == 5


def test_optax_s_noise_after_the_clipped_sum_has_the_same_law():
    chain = optax.chain(
        optax.add_noise(eta=(1.5 * 0.5) ** 2, gamma=0.0, key=jax.random.key(4)), optax.scale(1 / 8)
    )
    tree = {"a": jnp.zeros((200, 200)), "b": jnp.zeros((200, 200))}
    first, state = chain.update(tree, chain.init(tree))
    second, _ = chain.update(tree, state)
    check_noise([first, second], 1.5 * 0.5 / 8)


def test_another_number_compiles_nothing():
    private()
    for value in (0.7, 2, np.float32(3), jnp.float32(5)):
        jnp.asarray(value, float)
    params = start()
    with compilations() as compiled:
        for value in (0.7, 2, np.float32(3), jnp.float32(5)):
            private(params=params, clip_norm=value, noise_multiplier=value)
            private(params=params, expected_batch_size=value)
        assert not compiled


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_norm": 0}, "clip_norm: expected a number above 0, got 0"),
        ({"noise_multiplier": 0.0}, "noise_multiplier: expected a number above 0, got 0.0"),
        ({"expected_batch_size": -1}, "expected_batch_size: expected a number above 0, got -1"),
        ({"params": start(jnp.bfloat16)}, "params: expected float32 or float64 for a private grad"),
        ({"params": start(jnp.float16)}, "params: expected float32 or float64 for a private grad"),
    ],
    ids=["clip norm", "noise", "size", "bfloat16", "float16"],
)
def test_what_voids_the_guarantee_is_refused(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        private(**change)


# The noise.


def check_noise(draws, standard_deviation):
    """Two trees of two leaves of one shape: the scale of each, and no correlation of any two."""
    samples = [np.ravel(leaf) / standard_deviation for tree in draws for leaf in
               jax.tree.leaves(jax.device_get(tree))]  # fmt: skip
    n = samples[0].size
    low, high = stats.chi2.interval(1 - FAILURE, n)
    for number, sample in enumerate(samples):
        assert low < np.sum(sample**2) < high
        assert abs(sample.mean()) < stats.norm.isf(FAILURE / 2) / np.sqrt(n)
        for other in samples[:number]:
            # Under independence r·√n is nearly N(0, 1).
            assert abs(np.corrcoef(sample, other)[0, 1]) < stats.norm.isf(FAILURE / 2) / np.sqrt(n)
    return samples


TREE = {"a": jnp.zeros((200, 200)), "b": jnp.zeros((200, 200))}


def test_the_noise_is_normal_of_the_given_scale_and_independent_between_leaves_and_keys():
    draws = [compiled_noise(jax.random.key(seed), TREE, 2.5) for seed in range(2)]
    for sample in check_noise(draws, 2.5):
        assert stats.kstest(sample, "norm").pvalue > FAILURE


def test_one_key_for_two_leaves_is_seen():
    def fault(seed):
        noise = jax.random.normal(jax.random.key(seed), (200, 200))
        return {"a": 2.5 * noise, "b": 2.5 * noise}

    with pytest.raises(AssertionError):
        check_noise([fault(0), fault(1)], 2.5)


def test_one_key_for_two_steps_is_seen():
    with pytest.raises(AssertionError):
        check_noise([compiled_noise(jax.random.key(0), TREE, 2.5)] * 2, 2.5)


def test_noise_that_is_a_hundredth_too_small_is_seen():
    draws = [compiled_noise(jax.random.key(seed), TREE, 2.5 * 0.98) for seed in range(2)]
    with pytest.raises(AssertionError):
        check_noise(draws, 2.5)


def test_the_noise_has_more_values_than_one_float32_normal():
    def duplicates(draws):
        return draws.size - np.unique(np.asarray(draws)).size

    # Of 2²³ equally likely values n draws meet n²/2²⁴ = 2.4e5 times; as float32 allows, 6e4 times.
    shape = (2000, 1000)
    assert duplicates(jax.random.normal(jax.random.key(2), shape)) > 2e5
    assert duplicates(compiled_noise(jax.random.key(3), jnp.zeros(shape), 1.0)) < 1e5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_the_noise_has_the_leaf_s_dtype_or_float32(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        noise = compiled_noise(jax.random.key(0), {"a": jnp.zeros(3, dtype)}, 1.0)["a"]
    assert noise.dtype == jnp.promote_types(dtype, jnp.float32)


# The batches.


def check_batches(rows, n_examples, rate):
    """Sizes are binomial, every example has its chance, and no two hang together, nor two steps."""
    steps = len(rows)
    drawn = np.zeros((steps, n_examples))
    for step, row in enumerate(rows):
        drawn[step, row[row >= 0]] = 1
    sizes = drawn.sum(axis=1)
    assert (sizes == (rows >= 0).sum(axis=1)).all()  # none twice
    bound = stats.norm.isf(FAILURE / n_examples**2)
    variance = n_examples * rate * (1 - rate)
    assert abs(sizes.mean() - n_examples * rate) < bound * np.sqrt(variance / steps)
    # The variance of a sample variance of nearly normal numbers is 2σ⁴/n.
    assert abs(sizes.var() - variance) < bound * variance * np.sqrt(2 / steps)
    spread = np.sqrt(rate * (1 - rate) / steps)
    assert np.abs(drawn.mean(axis=0) - rate).max() < bound * spread
    correlations = np.corrcoef(drawn.T) - np.eye(n_examples)
    assert np.abs(correlations).max() < bound / np.sqrt(steps)
    later = np.mean((drawn[1:] - rate) * (drawn[:-1] - rate), axis=0) / (rate * (1 - rate))
    assert np.abs(later).max() < bound / np.sqrt(steps - 1)


@pytest.mark.parametrize("rate", [0.03, 0.2, 0.9])
def test_every_example_joins_every_batch_independently(rate):
    rows = poisson_batches(np.random.default_rng(0), 50, rate, 20_000, 50)
    check_batches(rows, 50, rate)
    assert rows.dtype == np.int32 and rows.min() == -1
    assert ((rows == 0).any(axis=1)).mean() == pytest.approx(rate, abs=0.02)


def test_shuffled_batches_of_a_fixed_size_are_seen():
    rng = np.random.default_rng(0)
    epochs = [rng.permutation(50).reshape(5, 10) for _ in range(4000)]
    with pytest.raises(AssertionError):
        check_batches(np.concatenate(epochs), 50, 0.2)


def test_all_examples_join_where_the_rate_is_1_and_a_batch_may_be_empty():
    rows = poisson_batches(np.random.default_rng(0), 7, 1, 3, 7)
    np.testing.assert_array_equal(np.sort(rows), np.tile(np.arange(7), (3, 1)))
    assert (poisson_batches(np.random.default_rng(0), 7, 1e-9, 3, 1) == -1).all()


def test_a_batch_that_does_not_fit_raises_and_is_not_cut():
    with pytest.raises(OverflowError, match="^size: expected at least [0-9]+, the examples that"):
        poisson_batches(np.random.default_rng(0), 1000, 0.1, 5, 90)


@pytest.mark.parametrize("rng", [0, jax.random.key(0), np.random])
def test_what_is_no_generator_of_numpy_s_is_named(rng):
    with pytest.raises(TypeError, match=r"^rng: expected a numpy.random.Generator, .*, got "):
        poisson_batches(rng, 7, 0.5, 3, 7)


@pytest.mark.parametrize("steps", [1, 1180, 10**6])
@pytest.mark.parametrize(("n", "rate"), [(60_000, 1024 / 60_000), (1437, 0.02), (30, 0.5)])
def test_the_padded_size_is_the_least_that_almost_never_overflows(n, rate, steps):
    size = padded_size(n, rate, steps)
    assert steps * stats.binom.sf(size, n, rate) <= 1e-12
    assert steps * stats.binom.sf(size - 1, n, rate) > 1e-12 or size == 1


def test_a_small_set_is_padded_to_all_of_it_at_most():
    assert padded_size(10, 1, 100) == 10
    assert padded_size(10, 0.5, 100) == 10
    assert padded_size(10, 1e-15, 1) == 1


# The accountant.


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta"),
    [(1.0, 0.02, 1000, 1e-5), (2.0, 0.1, 40, 1e-6), (5.0, 1, 10, 1e-5), (0.7, 0.001, 300, 1e-7)],
)
def test_epsilon_is_dp_accounting_s_own(noise, rate, steps, delta):
    accountant = dp_accounting.pld.PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    )
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, steps))
    ours = epsilon(noise, rate, steps, delta)
    assert ours == pytest.approx(accountant.get_epsilon(delta), rel=1e-9)
    # Rényi divergences give an upper bound that is less tight, by a computation of its own.
    other = dp_accounting.rdp.RdpAccountant()
    other.compose(dp_accounting.SelfComposedDpEvent(event, steps))
    assert 0.4 * other.get_epsilon(delta) < ours < other.get_epsilon(delta)


def test_epsilon_of_one_full_batch_is_the_gaussian_mechanism_s():
    # Balle and Wang 2018, theorem 8: δ = Φ(1/2σ − εσ) − e^ε Φ(−1/2σ − εσ), of sensitivity 1.
    noise, delta = 2.0, 1e-5
    e = epsilon(noise, 1, 1, delta)
    exact = stats.norm.cdf(0.5 / noise - e * noise) - np.exp(e) * stats.norm.cdf(
        -0.5 / noise - e * noise
    )
    assert exact == pytest.approx(delta, rel=1e-2) and exact <= delta


def test_no_step_spends_nothing_and_more_steps_spend_more():
    assert epsilon(1.0, 0.02, 0, 1e-5) == 0
    spent = [epsilon(1.0, 0.02, steps, 1e-5) for steps in (1, 10, 100, 1000)]
    assert sorted(spent) == spent and spent[0] > 0


@pytest.mark.slow  # on the default Python alone
@pytest.mark.parametrize(
    "arguments",
    [
        (3.0, 1024 / 60_000, 1180, 1e-5),
        (0.5, 0.05, 200, 1e-6),
        (8.0, 1, 20, 1e-5),
        (0.01, 0.001, 10_000, 1e-6),
        (2e-3, 1, 400, 1e-8),  # where a rough look says little
    ],  # fmt: skip
)
def test_the_noise_that_is_solved_for_spends_what_was_asked_for(arguments):
    wanted, *others = arguments
    noise = noise_multiplier_for(*arguments)
    assert 0.99 * wanted <= epsilon(noise, *others) <= wanted * (1 + 1e-9)
    assert epsilon((1 - 2e-4) * noise, *others) > wanted


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (
            epsilon,
            (0.05, 0.1, 10, 1e-5),
            r"noise_multiplier: expected a number in \[0.2, ",
        ),
        (epsilon, (1.0, 0, 10, 1e-5), "sampling_rate: expected a number above 0, got 0"),
        (epsilon, (1.0, 1.5, 10, 1e-5), r"sampling_rate: expected a number in \(0, 1\], got 1.5"),
        (epsilon, (1.0, 0.1, -1, 1e-5), "steps: expected an integer of at least 1, got -1"),
        (epsilon, (1.0, 0.1, 10, 0), r"delta: expected a number in \(0, 1\), got 0"),
        (epsilon, (1.0, 0.1, 10, 1), r"delta: expected a number in \(0, 1\), got 1"),
        (noise_multiplier_for, (0, 0.1, 10, 1e-5), "epsilon: expected a number above 0, got 0"),
        pytest.param(
            noise_multiplier_for,
            (1e3, 1, 1, 0.5),
            "epsilon: expected one that a noise multiplier",
            marks=pytest.mark.slow,
        ),
        (padded_size, (0, 0.1, 10), "n_examples: expected an integer of at least 1, got 0"),
        (padded_size, (9, 0.1, 10, 1), r"failure: expected a number in \(0, 1\), got 1"),
    ],
)
def test_numbers_out_of_their_range_are_named(function, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        function(*arguments)


def test_a_little_more_noise_that_spends_more_is_not_enough():
    arguments = 1e-6, 1, 1e-12  # what is spent does not fall there with every step of noise
    assert epsilon(noise_multiplier_for(1e-5, *arguments), *arguments) <= 1e-5


@pytest.mark.slow  # on the default Python alone
def test_a_rough_look_at_the_least_noise_does_not_decide():
    arguments = 1e-6, 1, 1e-12
    wanted = epsilon(0.2, *arguments) * (1 - 1e-6)
    assert noise_multiplier_for(wanted, *arguments) == pytest.approx(0.2, rel=1e-3)


def test_dp_accounting_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ValueError, match=r'^epsilon: dp-acc.*pip install "jaxmlp\[privacy\]"$'):
        epsilon(1.2345, 0.02, 10, 1e-5)


# Training.


SETTINGS = {
    "batch_size": 10, "epochs": 3, "learning_rate": 0.1, "optimizer": "sgd", "clip_norm": 0.5,
    "noise_multiplier": 1.1, "delta": 1e-5,
}  # fmt: skip


def train(seed=1, **changes):
    arguments: dict[str, Any] = SETTINGS | changes
    x, t = arguments.pop("examples", (X, T))
    network, params = arguments.pop("network", NETWORK), arguments.pop("params", start())
    return fit(network, params, x, t, key=jax.random.key(seed), **arguments)


def test_a_training_is_the_loop_over_private_gradients_of_poisson_batches():
    fitted = train()
    key, params = jax.random.key(1), start()
    words = jax.random.key_data(key).tolist()
    count = 0
    for epoch in range(3):
        rows = poisson_batches(np.random.default_rng([*words, epoch]), 40, 0.25, 4, 40)
        for row in rows:
            step_key = jax.random.fold_in(jax.random.fold_in(key, count), 2**31)
            gradient = private_gradient(
                NETWORK, params, X[row], T[row], clip_norm=0.5, noise_multiplier=1.1,
                expected_batch_size=10, key=step_key, sample_weight=row >= 0,
            )  # fmt: skip
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
            count += 1
    assert_close(fitted.params, params, 1e-5)


def test_the_noise_of_a_training_is_independent_between_leaves_and_steps():
    # Examples of weight 0 have no gradient: steps along the noise alone, of 1 · 1.5 · 0.5.
    network = Network((200, 200, 200), "identity", "squared_error", bias=False)
    params = tuple(Layer(jnp.zeros((200, 200)), None) for _ in range(2))
    states = [params]
    fit(
        network, params, np.zeros((4, 200)), np.zeros((4, 200)), sample_weight=np.zeros(4),
        key=jax.random.key(0), batch_size=4, epochs=2, learning_rate=4.0, optimizer="sgd",
        clip_norm=0.5, noise_multiplier=1.5, delta=1e-5, dropout=0.5,
        callbacks=[lambda _, snapshot: states.append(jax.device_get(snapshot.state.params))],
    )  # fmt: skip
    steps = [
        jax.tree.map(jnp.subtract, new, old) for old, new in zip(states, states[1:], strict=False)
    ]
    check_noise(steps, 1.5 * 0.5)


def test_every_record_has_the_epsilon_of_all_steps_so_far_and_no_figure_of_the_examples():
    fitted = train(evaluation={"test": (X, T)})
    for record in fitted.history:
        assert set(record) - {"compile_seconds"} == {
            "epoch", "test_loss", "test_accuracy", "epsilon", "seconds", "examples_per_second",
        }  # fmt: skip
        assert record["epsilon"] == epsilon(1.1, 0.25, 4 * int(record["epoch"]), 1e-5)


def test_no_snapshot_holds_a_figure_of_the_examples(monkeypatch):
    monkeypatch.setattr(epochs, "_FIRST_PIECE", 1)
    monkeypatch.setattr(epochs, "_PIECE_SECONDS", 1e-9)  # a piece is a step

    def progress_of(**changes):
        seen = []

        def watch(snapshot):
            if snapshot.step:
                seen.append(float(snapshot.progress.loss))

        train(watch=watch, **changes)
        return seen

    assert progress_of() == [0] * 9  # 4 steps an epoch, of which 3 are in its midst
    assert min(progress_of(unprotected_figures=True)) > 0


def test_figures_of_the_examples_are_recorded_where_they_are_asked_for():
    plain, asked = train(), train(unprotected_figures=True)
    jax.tree.map(np.testing.assert_array_equal, plain.params, asked.params)
    for record in asked.history:
        assert record["train_loss"] > 0 and record["gradient_norm"] > 0
        assert 0 <= record["clipped_fraction"] <= 1
    assert train(unprotected_figures=True, clip_norm=1e6).history[0]["clipped_fraction"] == 0
    assert train(unprotected_figures=True, clip_norm=1e-6).history[0]["clipped_fraction"] == 1


@pytest.mark.parametrize("change", [{}, {"dropout": 0.3, "optimizer": "adam"}], ids=["", "dropout"])
def test_a_resumed_training_is_bit_by_bit_the_uninterrupted_one(change):
    snapshots = []
    train(epochs=2, callbacks=[lambda _, snapshot: snapshots.append(snapshot)], **change)
    resumed, whole = train(resume=snapshots[-1], **change), train(**change)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    assert [r["epsilon"] for r in resumed.history] == [r["epsilon"] for r in whole.history]


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 1.2},
        {"noise_multiplier": None, "delta": None},
        {"clip_norm": 0.3},  # the same noise at another scale: both together would reveal it
    ],
)
def test_a_snapshot_of_other_noise_is_refused(change):
    snapshots = []
    train(callbacks=[lambda _, snapshot: snapshots.append(snapshot)])
    if change.get("noise_multiplier", 1) is None:
        change = change | {"clip_norm": None}
    with pytest.raises(ValueError, match="^resume: expected a snapshot of a training with the noi"):
        train(epochs=4, resume=snapshots[-1], **change)


@pytest.mark.slow  # on the default Python alone: four programs
def test_weights_are_taken_as_they_are_and_not_by_the_largest():
    # With weights brought to the largest one, the one of 1e4 would make nothing of the others.
    weights = np.full(40, 0.05)  # so small that the last is not clipped, and 1e4 is
    moved = train(sample_weight=weights)
    weights = np.append(np.full(39, 0.05), 1e4)
    other = train(sample_weight=weights)
    # One example, clipped to 0.5: in 12 steps it moves them by 12 · 0.1 · 0.5/10 and what follows.
    assert 1e-3 < np.linalg.norm(flat(moved.params) - flat(other.params)) < 0.2
    halves = train(sample_weight=np.full(40, 0.5), clip_norm=1e6, noise_multiplier=0.5)
    ones = train(sample_weight=np.full(40, 1.0), clip_norm=1e6, noise_multiplier=0.5)
    assert np.linalg.norm(flat(halves.params) - flat(ones.params)) > 0


def test_a_training_s_products_are_of_full_precision(monkeypatch):
    seen = []

    class Seen:
        """The compiled steps, and a note of the precision that they are compiled and called for."""

        def __call__(self, network, *arguments, **options):
            seen.append(network.precision)
            return actual(network, *arguments, **options)

        def lower(self, network, *arguments, **options):
            seen.append(network.precision)
            return actual.lower(network, *arguments, **options)

    actual = epochs.run_steps
    monkeypatch.setattr(epochs, "run_steps", Seen())
    train(network=Network((4, 6, 3), "tanh", precision="default"))
    assert set(seen) == {"highest"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_norm": None}, "clip_norm: expected a number for a private training, got none"),
        ({"delta": None}, "delta: expected a number for a private training, got none"),
        ({"delta": 1.0}, r"delta: expected a number in \(0, 1\), got 1.0"),
        ({"noise_multiplier": 0.0}, "noise_multiplier: expected a number above 0, got 0.0"),
        (
            {"noise_multiplier": 0.01},
            r"noise_multiplier: expected a number in \[0.2, ",
        ),
        ({"noise_multiplier": None}, "delta: expected none without a noise_multiplier"),
        ({"batch_size": 41}, "batch_size: expected at most the 40 examples, got 41"),
        ({"params": start(jnp.bfloat16)}, "params: expected float32 or float64 for a private grad"),
    ],
)
def test_settings_that_do_not_make_a_private_training_are_named(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        train(**change)
