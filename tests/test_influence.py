"""TracIn against inner products of jax.grad, one pair of examples at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, assert_close, compilations, draw, in_dtype

import jaxmlp
from jaxmlp import Layer, Network, influence, self_influence
from jaxmlp.scaling import Scaling
from jaxmlp.verification import oracles

pytestmark = pytest.mark.slow  # on the default Python alone: compiling takes most of it


IDS = [case.name for case in CASES]
RATES = np.array([0.3, 0.05])  # unequal, so that none can stand for the other

# Sums over all parameters in another order than the oracle's: the bound that was asked for.
FLOAT64 = 1e-12
FLOAT32 = 2e-6

NETWORK = Network((4, 5, 3), "tanh")
CHECKPOINTS = [jaxmlp.init(NETWORK, jax.random.key(seed)) for seed in (0, 1)]
RNG = np.random.default_rng(3)
X, T = RNG.normal(size=(7, 4)).astype(np.float32), RNG.integers(3, size=7)
X2, T2 = RNG.normal(size=(3, 4)).astype(np.float32), RNG.integers(3, size=3)
BATCH = (NETWORK, CHECKPOINTS, X, T)
TEST = (X2, T2)


def gradients(network, params, x, t, weights):
    """The gradient of w_n E_n of each example as one vector, by jax.grad in a Python loop."""
    weights = np.ones(len(x)) if weights is None else weights
    t = t[:, None] if network.sizes[-1] == 1 else t

    @jax.jit
    def gradient(x, t, weight):
        def weighted(params):
            of_one = network.activations, network.loss, params, x[None, :], t[None]
            return weight * oracles.plain_loss(*of_one, None)

        return jax.grad(weighted)(params)

    rows = []
    for one in zip(x, t, weights, strict=True):
        rows.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient(*one))]))
    return rows


def looped(network, checkpoints, train, test, rates):
    """Σ_c η_c ⟨g_n, g'_m⟩, and the same of absolute values, with explicit loops over n and m."""
    total = np.zeros((len(train[0]), len(test[0])))
    size = np.zeros_like(total)
    for params, rate in zip(checkpoints, rates, strict=True):
        ours = gradients(network, params, *train)
        others = gradients(network, params, *test)
        for n, one in enumerate(ours):
            for m, other in enumerate(others):
                total[n, m] += rate * sum(a * b for a, b in zip(one, other, strict=True))
                size[n, m] += rate * np.abs(one) @ np.abs(other)
    return total, size


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_influence_is_the_looped_inner_products_of_jax_grad(case):
    with jax.enable_x64(True):
        network = case.network
        draws = [draw(case, seed, n) for seed, n in ((0, 5), (1, 3))]
        checkpoints = [in_dtype(one.params, jnp.float64) for one in draws]
        train, test = ((one.inputs, one.targets, one.weights) for one in draws)
        expected, size = looped(network, checkpoints, train, test, RATES)
        ours = influence(
            network, checkpoints, *train[:2], *test[:2], RATES, train[2], test_sample_weight=test[2]
        )
        assert ours.dtype == np.float64
        assert_close(ours, expected, FLOAT64, size)
        own = self_influence(network, checkpoints, *train[:2], RATES, train[2])
        assert_close(own, np.diag(looped(network, checkpoints, train, train, RATES)[0]), FLOAT64)


@pytest.mark.parametrize("microbatch_size", [1, 2, 3, 7, 100])
def test_microbatches_of_any_size_change_nothing(microbatch_size):
    with jax.enable_x64(True):
        network, *others = in_dtype(BATCH, jnp.float64)
        batch = network, *others, X2.astype(float), T2, RATES
        ours = influence(*batch, microbatch_size=microbatch_size)
        assert_close(ours, influence(*batch), FLOAT64)
        own = self_influence(network, *others, RATES, microbatch_size=microbatch_size)
        assert_close(own, self_influence(network, *others, RATES), FLOAT64)


def test_the_influence_of_examples_on_themselves_is_symmetric_and_its_diagonal_the_self_influence():
    own = np.asarray(influence(*BATCH, X, T, RATES))
    assert_close(own, own.T, FLOAT32)
    assert_close(np.diag(own), self_influence(*BATCH, RATES), FLOAT32)
    assert np.linalg.eigvalsh(own).min() > -1e-5 * own.max()  # a Gram matrix


def test_one_checkpoint_is_the_gram_matrix_times_the_rate():
    expected = 0.5 * jaxmlp.gradient_gram_matrix(NETWORK, CHECKPOINTS[0], X, T, X2, T2)
    assert_close(influence(NETWORK, CHECKPOINTS[:1], X, T, X2, T2, 0.5), expected, FLOAT32)


def test_checkpoints_add_up():
    parts = [
        influence(NETWORK, [params], X, T, *TEST, rate)
        for params, rate in zip(CHECKPOINTS, RATES, strict=True)
    ]
    assert_close(influence(*BATCH, *TEST, RATES), parts[0] + parts[1], FLOAT32)
    assert_close(influence(*BATCH, *TEST, 0.1), influence(*BATCH, *TEST, [0.1, 0.1]), FLOAT32)


def test_a_small_step_lowers_the_loss_by_the_influence():
    rate = 1e-4
    with jax.enable_x64(True):
        params = in_dtype(CHECKPOINTS[0], jnp.float64)
        score = influence(NETWORK, [params], X[:1], T[:1], X2[:1], T2[:1], rate)
        gradient = jaxmlp.loss_and_gradient(NETWORK, params, X[:1], T[:1])[1]
        after = jax.tree.map(lambda leaf, slope: leaf - rate * slope, params, gradient)
        before, then = (float(jaxmlp.loss(NETWORK, p, X2[:1], T2[:1])) for p in (params, after))
    # The next order is rate times smaller, by a curvature of some tens.
    assert before - then == pytest.approx(float(score[0, 0]), rel=1e-2)


def test_influence_is_that_of_scaled_inputs_bytes_included():
    scaling = Scaling(np.float64(0), np.float64(1 / 255))
    pixels = RNG.integers(256, size=(7, 4), dtype=np.uint8)
    scaled = pixels / 255
    expected = influence(NETWORK, CHECKPOINTS, scaled, T, scaled[:2], T[:2], RATES)
    ours = influence(*BATCH[:2], pixels, T, pixels[:2], T[:2], RATES, scaling=scaling)
    assert_close(ours, expected, FLOAT32)
    own = self_influence(*BATCH[:2], pixels, T, RATES, scaling=scaling)
    assert_close(own, self_influence(*BATCH[:2], scaled, T, RATES), FLOAT32)


def test_rows_of_weight_0_have_no_influence_whatever_they_hold():
    x, weights = X.copy(), np.ones(7, np.float32)
    x[2], weights[2] = np.nan, 0
    ours = influence(*BATCH[:2], x, T, *TEST, RATES, weights)
    assert (np.asarray(ours)[2] == 0).all()
    kept = np.arange(7) != 2
    assert_close(ours[kept], influence(*BATCH[:2], X[kept], T[kept], *TEST, RATES), FLOAT32)
    assert self_influence(*BATCH[:2], x, T, RATES, weights)[2] == 0


def test_weights_multiply_the_scores():
    w, v = np.linspace(0.5, 3, 7).astype(np.float32), np.array([2, 0.25, 1], np.float32)
    ours = influence(*BATCH, *TEST, RATES, w, test_sample_weight=v)
    assert_close(ours, np.outer(w, v) * influence(*BATCH, *TEST, RATES), FLOAT32)
    own = self_influence(*BATCH, RATES, w)
    assert_close(own, w**2 * self_influence(*BATCH, RATES), FLOAT32)


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("m", [0, 1])
def test_batches_of_none_and_of_one_have_their_shapes(n, m):
    ours = influence(*BATCH[:2], X[:n], T[:n], X2[:m], T2[:m], RATES)
    assert ours.shape == (n, m)
    assert_close(ours, influence(*BATCH, *TEST, RATES)[:n, :m], FLOAT32)
    own = self_influence(*BATCH[:2], X[:n], T[:n], RATES)
    assert own.shape == (n,)
    assert_close(own, self_influence(*BATCH, RATES)[:n], FLOAT32)


def test_half_precision_sums_in_float32():
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), CHECKPOINTS)
    ours = influence(NETWORK, half, X, T, *TEST, RATES)
    assert ours.dtype == np.float32
    # The parameters and activations have 8 bits: a few roundings of 4e-3.
    assert_close(ours, influence(*BATCH, *TEST, RATES), 6e-2)


def test_other_numbers_of_examples_rates_and_checkpoints_compile_nothing():
    def run(n, m, rate, checkpoints):
        x, t = np.resize(X, (n, 4)), np.resize(T, n)
        influence(NETWORK, checkpoints, x, t, x[:m], t[:m], rate, microbatch_size=8)
        self_influence(NETWORK, checkpoints, x, t, rate, microbatch_size=8)

    run(24, 3, 0.1, CHECKPOINTS)
    with compilations() as programs:
        run(32, 4, 0.2, CHECKPOINTS[:1])
    assert programs == []


def test_garbage_is_refused_by_name():
    params = (Layer(jnp.ones((3, 4)), None),)
    refused = {
        "checkpoints: expected at least one, got none": lambda: influence(
            NETWORK, [], X, T, *TEST, 0.1
        ),
        "checkpoints[1]: params: expected 2 layers, got 1": lambda: self_influence(
            NETWORK, [CHECKPOINTS[0], params], X, T, 0.1
        ),
        "learning_rates: expected shape () or (2,) for 2 checkpoints, got (3,)": (
            lambda: influence(*BATCH, *TEST, [0.1, 0.1, 0.1])
        ),
        "learning_rates: expected numbers ≥ 0, got -0.1": lambda: self_influence(*BATCH, -0.1),
        "learning_rates: expected finite numbers, got nan at [1] (1 of 2 are not finite)": (
            lambda: self_influence(*BATCH, [0.1, np.nan])
        ),
        "inputs: expected shape (N, 4), got (4,)": lambda: self_influence(
            NETWORK, CHECKPOINTS, X[0], T, 0.1
        ),
        "test_inputs: expected shape (N, 4), got (3, 2)": lambda: influence(
            *BATCH, X2[:, :2], T2, 0.1
        ),
        "test_inputs: expected shape (N, 4), got (0, 2)": lambda: influence(
            *BATCH, X2[:0, :2], T2[:0], 0.1
        ),
        "test_targets: expected classes 0 to 2, got 3 at [1] (1 of 3 are outside)": (
            lambda: influence(*BATCH, X2, [0, 3, 1], 0.1)
        ),
        "microbatch_size: expected at least 1, got 0": lambda: influence(
            *BATCH, *TEST, 0.1, microbatch_size=0
        ),
    }
    for message, call in refused.items():
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value) == message
    with pytest.raises(TypeError, match=r"^checkpoints: expected a list of parameters, got int"):
        influence(NETWORK, 3, X, T, *TEST, 0.1)
