"""The contractions over a batch, and the loss with our backward, against jax.grad."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import (
    CASES,
    FLOAT64_BOUND,
    N_EXAMPLES,
    Case,
    all_zero,
    assert_close,
    compilations,
    draw,
    in_dtype,
)

import jaxmlp
from jaxmlp import Layer, Network, init, loss, loss_and_gradient
from jaxmlp.verification import oracles

IDS = [case.name for case in CASES]
COEFFICIENTS = np.random.default_rng(2).normal(size=N_EXAMPLES) * (np.arange(N_EXAMPLES) != 3)

# Two float32 programs that sum the same few numbers in other orders: some roundings of 6e-8.
FLOAT32 = 2e-6


def our_quantities(network, params, inputs, targets, weights, clip_norm):
    """Everything that gradients.py offers for one batch, through its public functions."""
    batch = (network, params, inputs, targets)
    value, gradient = loss_and_gradient(*batch, weights)
    argnums = [1, 2]
    argnums += [3] if jnp.issubdtype(targets.dtype, jnp.floating) else []
    argnums += [4] if weights is not None else []
    derivatives = jax.grad(loss, argnums=argnums)(*batch, weights)
    clipped, norms = jaxmlp.clipped_gradient_sum(*batch, clip_norm, weights)
    return {
        "logits": jaxmlp.logits(network, params, inputs),
        "loss": loss(*batch, weights),
        "value": value,
        "gradient": gradient,
        "derivatives": dict(zip(argnums, derivatives, strict=True)),
        "per example": jaxmlp.per_example_gradients(*batch, weights),
        "norms": jaxmlp.per_example_gradient_norms(*batch, weights),
        "weighted sum": jaxmlp.weighted_gradient_sum(
            *batch, COEFFICIENTS.astype(inputs.dtype), weights
        ),
        "clipped sum": clipped,
        "clipped norms": norms,
        "inputs": jaxmlp.input_gradients(*batch, weights),
    }


def plain_quantities(network, params, inputs, targets, weights):
    """The oracle: jax.grad of the plain loss, of the batch and of w_n E_n of every example."""
    plain = partial(oracles.plain_loss, network.activations, network.loss)
    argnums = [0, 1]
    argnums += [2] if jnp.issubdtype(targets.dtype, jnp.floating) else []
    argnums += [3] if weights is not None else []
    value, derivatives = jax.value_and_grad(plain, argnums)(params, inputs, targets, weights)

    def of_example(params, x, t, w):
        return w * plain(params, x[None, :], t[None], None)

    each = jax.vmap(jax.grad(of_example, argnums=(0, 1)), (None, 0, 0, 0))
    ones = jnp.ones(len(inputs)) if weights is None else weights
    per_example, at_inputs = each(params, inputs, targets, ones)
    return {
        "loss": value,
        "derivatives": {n + 1: leaf for n, leaf in zip(argnums, derivatives, strict=True)},
        "per example": per_example,
        "inputs": at_inputs,
    }


@cache
def computed(case):
    """(ours, theirs, clip_norm) in float64."""
    with jax.enable_x64(True):
        batch = in_dtype(draw(case), jnp.float64)
        theirs = jax.device_get(jax.jit(plain_quantities)(case.network, *batch))
        clip_norm = float(np.median(norms_of(theirs["per example"])))
        ours = jax.device_get(jax.jit(our_quantities)(case.network, *batch, clip_norm))
    return ours, theirs, clip_norm


def norms_of(per_example):
    """The norm of every example's gradient, all leaves together."""
    leaves = jax.tree.leaves(per_example)
    return np.sqrt(sum((leaf.reshape(len(leaf), -1) ** 2).sum(axis=1) for leaf in leaves))


def weighted(per_example, coefficients):
    """Σ_n c_n g_n of every leaf, and the largest entry of Σ_n |c_n g_n|: its rounding's scale."""
    total = jax.tree.map(lambda leaf: np.tensordot(coefficients, leaf, 1), per_example)
    scale = jax.tree.map(
        lambda leaf: np.tensordot(abs(coefficients), abs(leaf), 1).max(), per_example
    )
    return total, scale


def total_weight(case):
    weights = draw(case).weights
    return N_EXAMPLES if weights is None else weights.sum()


@pytest.fixture(params=CASES, ids=IDS)
def case(request):
    return request.param


def test_logits_are_those_of_a_network_in_numpy(case):
    params, inputs, *_ = draw(case)
    expected = oracles.numpy_logits(case.network.activations, params, inputs)
    assert_close(computed(case)[0]["logits"], expected, 1e-12)  # NumPy's formulas lose a digit


def test_loss_is_the_weighted_mean_of_the_plain_losses(case):
    ours, theirs, _ = computed(case)
    assert_close(ours["loss"], theirs["loss"], FLOAT64_BOUND)
    assert_close(ours["value"], theirs["loss"], FLOAT64_BOUND)


def test_the_gradient_is_that_of_jax_grad_of_the_plain_loss(case):
    ours, theirs, _ = computed(case)
    _, scale = weighted(theirs["per example"], np.full(N_EXAMPLES, 1 / total_weight(case)))
    expected = theirs["derivatives"][1]
    assert jax.tree.structure(ours["gradient"]) == jax.tree.structure(draw(case).params)
    assert_close(ours["gradient"], expected, FLOAT64_BOUND, scale)
    assert_close(ours["derivatives"][1], expected, FLOAT64_BOUND, scale)


DIFFERENTIABLE = [
    pytest.param(case, number, id=f"{case.name}-{name}")
    for case in CASES
    for number, name in ((2, "inputs"), (3, "targets"), (4, "sample_weight"))
    if not (number == 3 and case.classes) and not (number == 4 and not case.weighted)
]


@pytest.mark.parametrize(("case", "number"), DIFFERENTIABLE)
def test_jax_grad_of_loss_is_right_in_the_other_arguments(case, number):
    ours, theirs, _ = computed(case)
    # (E_n − mean) / Σw cancels where E_n is near the mean: its scale is that of the mean.
    scale = abs(theirs["loss"]) / total_weight(case) if number == 4 else 0.0
    expected = theirs["derivatives"][number]
    assert_close(ours["derivatives"][number], expected, FLOAT64_BOUND, scale)


def test_per_example_gradients_are_the_vmapped_jax_grad(case):
    ours, theirs, _ = computed(case)
    assert_close(ours["per example"], theirs["per example"], FLOAT64_BOUND)


def test_per_example_gradient_norms_are_those_of_the_vmapped_jax_grad(case):
    ours, theirs, _ = computed(case)
    assert_close(ours["norms"], norms_of(theirs["per example"]), FLOAT64_BOUND)


def test_weighted_gradient_sum_is_the_sum_of_the_vmapped_jax_grad(case):
    ours, theirs, _ = computed(case)
    expected, scale = weighted(theirs["per example"], COEFFICIENTS)
    assert_close(ours["weighted sum"], expected, FLOAT64_BOUND, scale)


def test_clipped_gradient_sum_is_the_sum_of_the_clipped_vmapped_jax_grad(case):
    ours, theirs, clip_norm = computed(case)
    norms = norms_of(theirs["per example"])
    # The median clips half of the examples and leaves the other half.
    factors = np.where(norms > clip_norm, clip_norm / np.where(norms > 0, norms, 1), 1)
    assert 0 < (factors < 1).sum() < N_EXAMPLES
    expected, scale = weighted(theirs["per example"], factors)
    assert_close(ours["clipped sum"], expected, FLOAT64_BOUND, scale)
    assert_close(ours["clipped norms"], norms, FLOAT64_BOUND)


def test_input_gradients_are_the_vmapped_jax_grad_in_the_inputs(case):
    ours, theirs, _ = computed(case)
    assert_close(ours["inputs"], theirs["inputs"], FLOAT64_BOUND)


# The mathematics stands above. What follows is about borders, and shares one small float32 network,
# whose functions compile once for each number of examples.

NETWORK = Network((4, 3, 2), "tanh")
PARAMS = init(NETWORK, jax.random.key(0))
RNG = np.random.default_rng(3)
X = RNG.normal(size=(6, 4)).astype(np.float32)
T = np.array([0, 1, 1, 0, 1, 0], np.int32)
W = np.array([1.0, 0.0, 2.0, 0.5, 1.5, 0.0], np.float32)
BATCH = (NETWORK, PARAMS, X, T)
HUGE = 1e6  # clips nothing

FUNCTIONS = {
    "loss": loss,
    "loss_and_gradient": loss_and_gradient,
    "per_example_gradients": jaxmlp.per_example_gradients,
    "per_example_gradient_norms": jaxmlp.per_example_gradient_norms,
    "weighted_gradient_sum": lambda network, params, x, t, w=None: jaxmlp.weighted_gradient_sum(
        network, params, x, t, jnp.ones(len(x)), w
    ),
    "clipped_gradient_sum": lambda network, params, x, t, w=None: jaxmlp.clipped_gradient_sum(
        network, params, x, t, HUGE, w
    ),
    "input_gradients": jaxmlp.input_gradients,
    "jax.grad(loss)": jax.grad(loss, argnums=(1, 2)),
}
EACH = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def assert_same_bits(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def with_garbage(x, t, rows):
    """The batch with NaN, infinity and a class that does not exist in some rows."""
    x, t = x.copy(), t.copy()
    x[rows], x[rows[0], 0] = np.nan, np.inf
    t[rows] = -1 if np.issubdtype(t.dtype, np.integer) else np.nan
    return x, t


@EACH
@pytest.mark.parametrize("targets", ["classes", "distributions"])
def test_a_row_of_weight_0_contributes_exactly_0_whatever_it_holds(function, targets):
    t = T if targets == "classes" else np.eye(2, dtype=np.float32)[T]
    idle = np.flatnonzero(W == 0)
    with_nan = function(NETWORK, PARAMS, *with_garbage(X, t, idle), W)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(with_nan))
    assert_same_bits(with_nan, function(NETWORK, PARAMS, X, t, W))


def test_the_rows_of_weight_0_of_per_example_quantities_are_0():
    idle = np.flatnonzero(W == 0)
    x, t = with_garbage(X, T, idle)
    gradients = jaxmlp.per_example_gradients(NETWORK, PARAMS, x, t, W)
    assert all_zero(jax.tree.map(lambda leaf: leaf[idle], gradients))
    assert all_zero(jaxmlp.per_example_gradient_norms(NETWORK, PARAMS, x, t, W)[idle])
    assert all_zero(jaxmlp.input_gradients(NETWORK, PARAMS, x, t, W)[idle])
    _, at_inputs = jax.grad(loss, argnums=(1, 2))(NETWORK, PARAMS, x, t, W)
    assert all_zero(at_inputs[idle])


def test_a_row_of_coefficient_0_contributes_exactly_0_whatever_it_holds():
    coefficients = np.array([1.0, 0.0, -2.0, 0.5, 1.5, 0.0], np.float32)
    x, t = with_garbage(X, T, np.flatnonzero(coefficients == 0))
    ours = jaxmlp.weighted_gradient_sum(NETWORK, PARAMS, x, t, coefficients)
    assert_same_bits(ours, jaxmlp.weighted_gradient_sum(*BATCH, coefficients))


def test_a_weight_of_0_still_has_a_derivative():
    # ∂(Σ w E / Σ w)/∂w_n = (E_n − mean) / Σ w, also at w_n = 0; another row of weight 0 holds NaN.
    x, t = with_garbage(X, T, [5])
    derivative = jax.grad(loss, argnums=4)(NETWORK, PARAMS, x, t, jnp.asarray(W))
    losses = oracles.example_losses(NETWORK.loss, jaxmlp.logits(NETWORK, PARAMS, X), jnp.asarray(T))
    expected = (losses - np.average(losses, weights=W)) / W.sum()
    assert W[1] == 0
    assert_close(derivative[:5], expected[:5], FLOAT32, abs(np.max(losses)) / W.sum())


@EACH
def test_an_empty_batch_gives_0(function):
    results = function(NETWORK, PARAMS, np.zeros((0, 4)), np.zeros(0, int))
    assert all_zero(results)
    if function is loss_and_gradient:
        value, gradient = results
        assert value.shape == ()
        assert [leaf.shape for leaf in jax.tree.leaves(gradient)] == [(3, 4), (3,), (2, 3), (2,)]


@EACH
def test_weights_that_are_all_0_give_0(function):
    assert all_zero(function(*BATCH, np.zeros(6, np.float32)))
    x, t = with_garbage(X, T, list(range(6)))
    assert all_zero(function(NETWORK, PARAMS, x, t, np.zeros(6, np.float32)))


def test_the_mean_of_the_per_example_gradients_is_the_gradient():
    _, gradient = loss_and_gradient(*BATCH, W)
    each = jax.device_get(jaxmlp.per_example_gradients(*BATCH, W))
    mean, scale = weighted(each, np.full(6, 1 / W.sum()))
    assert_close(gradient, mean, FLOAT32, scale)


def test_the_norms_are_those_of_the_per_example_gradients():
    norms = jaxmlp.per_example_gradient_norms(*BATCH, W)
    each = jax.device_get(jaxmlp.per_example_gradients(*BATCH, W))
    assert_close(norms, norms_of(each), FLOAT32)


def test_duplicating_the_batch_or_scaling_the_weights_changes_neither_loss_nor_gradient():
    once = loss_and_gradient(*BATCH, W)
    twice = loss_and_gradient(NETWORK, PARAMS, np.tile(X, (2, 1)), np.tile(T, 2), np.tile(W, 2))
    assert_close(twice, once, FLOAT32)
    assert_close(loss_and_gradient(*BATCH, 8 * W), once, FLOAT32)


def test_padding_with_rows_of_weight_0_changes_nothing():
    x, t = with_garbage(np.tile(X, (2, 1)), np.tile(T, 2), np.arange(6, 12))
    padded = loss_and_gradient(NETWORK, PARAMS, x, t, np.concatenate([W, np.zeros(6, np.float32)]))
    assert_close(padded, loss_and_gradient(*BATCH, W), FLOAT32)


def test_no_weights_are_weights_of_1():
    for function in FUNCTIONS.values():
        assert_close(function(*BATCH), function(*BATCH, np.ones(6, np.float32)), FLOAT32)


def test_the_gradient_of_one_output_with_targets_n_is_that_with_targets_n_1():
    network = Network((4, 1), loss="squared_error")
    params, t = init(network, jax.random.key(0)), X[:, 0]
    assert_same_bits(
        loss_and_gradient(network, params, X, t), loss_and_gradient(network, params, X, t[:, None])
    )


def test_a_class_out_of_range_makes_that_example_nan_and_no_other():
    t = np.where(np.arange(6) == 2, 2, T)
    assert np.isnan(loss(NETWORK, PARAMS, X, t))
    norms = np.asarray(jaxmlp.per_example_gradient_norms(NETWORK, PARAMS, X, t))
    np.testing.assert_array_equal(np.isnan(norms), np.arange(6) == 2)


@pytest.mark.parametrize(
    ("dtype", "promotion"),
    [(np.uint8, "standard"), (np.int64, "strict"), (np.uint64, "strict")],
)
def test_a_class_of_any_integer_dtype_is_itself_or_none(dtype, promotion):
    none = [2, 200, 2**32 + 1] if np.dtype(dtype).itemsize == 8 else [2, 100]
    t = np.array([0, 1, *none, 1], dtype)
    with jax.enable_x64(True), jax.numpy_dtype_promotion(promotion):
        params = init(NETWORK, jax.random.key(0), jnp.float32)
        norms = jaxmlp.per_example_gradient_norms(NETWORK, params, X[: len(t)], jnp.asarray(t))
        expected = jaxmlp.per_example_gradient_norms(
            NETWORK, params, X[: len(t)], jnp.asarray(np.where(t < 2, t, 0).astype(np.int32))
        )
    np.testing.assert_array_equal(norms, np.where(t < 2, expected, np.nan))


def kernels_that_wait_for_none(function, targets):
    """Return how many instructions of a compiled function take its arguments alone."""
    program = (
        jax.jit(partial(function, NETWORK)).lower(PARAMS, X, targets).compile().as_text() or ""
    )
    found = re.findall(r"(%\S+) = \S+ ([\w-]+)\((.*?)\)", program[program.index("\nENTRY") :])
    given = {name for name, kind, _ in found if kind in ("parameter", "constant")}
    return sum(
        given.issuperset(re.findall(r"%[\w.-]+", operands))
        for name, _, operands in found
        if name not in given
    )


@pytest.mark.parametrize("name", ["loss_and_gradient", "per_example_gradient_norms"])
def test_a_call_has_a_kernel_to_begin_with_beside_its_first_product(name):
    if jax.default_backend() != "cpu":
        pytest.skip("how a program is cut into kernels is asked of XLA on a CPU")
    function = getattr(jaxmlp, name)
    distributions = np.eye(2, dtype=np.float32)[T]  # their sums over the classes are one
    assert [kernels_that_wait_for_none(function, t) for t in (distributions, T)] == [2, 2]


@pytest.mark.parametrize(
    ("dtype", "n_examples", "n_in", "n_out", "rows"),
    [
        (np.float32, 200, 784, 128, False),
        (np.float32, 256, 784, 128, True),
        (np.float32, 200, 784, 32, True),
        (np.float64, 200, 784, 128, True),
        (np.float64, 200, 227, 100, False),  # 65,400 numbers: one tile of the product, one core
        (np.float64, 200, 228, 100, True),
        (np.float64, 200, 64, 16, True),
        (np.float64, 256, 64, 128, True),  # as in float32
    ],
)
def test_the_deltas_are_transposed_in_memory_where_xla_multiplies_faster_then(
    dtype, n_examples, n_in, n_out, rows
):
    if jax.default_backend() != "cpu":
        pytest.skip("which product is the faster one is asked on a CPU")
    network = Network((n_in, n_out, 3), "relu")
    with jax.enable_x64(dtype == np.float64):
        arrays = (
            jax.eval_shape(lambda: init(network, jax.random.key(0), dtype)),
            jax.ShapeDtypeStruct((n_examples, n_in), dtype),
            jax.ShapeDtypeStruct((n_examples,), np.int32),
        )
        program = jax.jit(partial(jaxmlp.loss_and_gradient, network)).lower(*arrays).compile()
    name = f"f{8 * np.dtype(dtype).itemsize}"
    found = re.findall(
        rf"{name}\[{n_out},{n_in}\]\S* dot\(.*lhs_contracting_dims={{(\d)}}", program.as_text()
    )
    assert found == ["1" if rows else "0"]


@pytest.mark.parametrize("n_examples", [399, 400])  # 65,436 and 65,600 numbers
def test_the_gradient_in_float64_is_the_plain_one_however_it_is_multiplied(n_examples):
    network = Network((64, 100, 10), "relu")
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        params = init(network, jax.random.key(0), np.float64)
        x = jnp.asarray(rng.normal(size=(n_examples, 64)))
        t, w = jnp.asarray(rng.integers(10, size=n_examples)), jnp.asarray(rng.random(n_examples))
        plain = partial(oracles.plain_loss, network.activations, network.loss)
        expected = jax.grad(plain)(params, x, t, w)
        assert_close(loss_and_gradient(network, params, x, t, w)[1], expected, 1e-12)


# Clipping.


def test_an_example_whose_gradient_is_not_finite_contributes_0_to_the_clipped_sum():
    x, t = with_garbage(X, T, [1, 5])
    ours, norms = jaxmlp.clipped_gradient_sum(NETWORK, PARAMS, x, t, 0.5)
    weights = np.array([1, 0, 1, 1, 1, 0], np.float32)
    expected, _ = jaxmlp.clipped_gradient_sum(*BATCH, 0.5, weights)
    assert_close(ours, expected, FLOAT32)
    np.testing.assert_array_equal(np.isnan(norms), weights == 0)


def test_an_example_without_a_gradient_contributes_0_to_the_clipped_sum():
    # z = 0 and t = 0: the squared error has no gradient in this row.
    network = Network((4, 1), loss="squared_error", bias=False)
    params = (Layer(jnp.zeros((1, 4)), None),)
    t = np.array([0, 1, 0, 0, 0, 0], np.float32)
    total, norms = jaxmlp.clipped_gradient_sum(network, params, X, t, 0.25)
    # The second row's is −x, of the norm ‖x‖ > 0.25: clipped to −0.25 x/‖x‖.
    length = np.linalg.norm(X[1])
    assert_close(norms, t * length, FLOAT32)
    assert_close(total[0].weight, -0.25 * X[1:2] / length, FLOAT32)


def test_a_clip_norm_of_infinity_clips_nothing():
    total, norms = jaxmlp.clipped_gradient_sum(*BATCH, np.inf, W)
    assert_close(total, jaxmlp.weighted_gradient_sum(*BATCH, np.ones(6, np.float32), W), FLOAT32)
    assert_close(norms, jaxmlp.per_example_gradient_norms(*BATCH, W), FLOAT32)


@pytest.mark.parametrize("clip_norm", [1e-3, 0.3, 1.0])
def test_no_example_s_clipped_gradient_is_longer_than_the_clip_norm(clip_norm):
    def of_one(x, t):
        batch = (NETWORK, PARAMS, x[None, :], t[None])
        return jaxmlp.clipped_gradient_sum(*batch, clip_norm)

    each, norms = jax.device_get(jax.vmap(of_one)(X, T))
    clipped = norms_of(each)
    # C/‖g‖ and its product with g are each rounded by 6e-8, as is the norm taken here.
    assert (clipped <= clip_norm * (1 + 1e-6)).all()
    expected = np.minimum(norms[:, 0], clip_norm)
    assert_close(clipped, expected, FLOAT32)


@pytest.mark.parametrize("clip_norm", [0, -1.0, np.nan, -np.inf])
def test_a_clip_norm_that_is_not_above_0_raises(clip_norm):
    with pytest.raises(
        ValueError, match=f"^clip_norm: expected a number above 0, got {clip_norm}$"
    ):
        jaxmlp.clipped_gradient_sum(*BATCH, clip_norm)


def test_a_clip_norm_that_is_no_scalar_raises():
    with pytest.raises(ValueError, match=r"^clip_norm: expected a scalar, got shape \(6,\)$"):
        jaxmlp.clipped_gradient_sum(*BATCH, np.ones(6))


# What is accepted, and what is refused.


@EACH
def test_uint8_inputs_are_the_same_numbers_as_floats(function):
    if function is FUNCTIONS["jax.grad(loss)"]:
        function = jax.grad(loss, argnums=1)  # there is no derivative in integers
    x = (100 * abs(X)).astype(np.uint8)
    expected = function(NETWORK, PARAMS, x.astype(np.float32), T, W)
    assert_same_bits(function(NETWORK, PARAMS, x, T, W), expected)


@pytest.mark.parametrize("dtype", [np.int64, np.int8, bool])
def test_other_integers_and_booleans_are_the_same_numbers_as_floats(dtype):
    x = (X > 0).astype(dtype)
    expected = loss_and_gradient(NETWORK, PARAMS, x.astype(np.float32), T, W)
    assert_same_bits(loss_and_gradient(NETWORK, PARAMS, x, T, W), expected)


@EACH
def test_lists_and_numpy_float64_are_taken_as_float32(function):
    expected = function(*BATCH, W)
    as_lists = (NETWORK, PARAMS, X.tolist(), T.tolist())
    if function is not FUNCTIONS["jax.grad(loss)"]:  # jax.grad itself takes no lists
        assert_same_bits(function(*as_lists, W.tolist()), expected)
    as_float64 = (X.astype(np.float64), T.astype(np.int64), W.astype(np.float64))
    assert_same_bits(function(NETWORK, PARAMS, *as_float64), expected)


@pytest.mark.parametrize("dtype", [np.int32, bool])
def test_integer_and_boolean_weights_are_numbers(dtype):
    weights = np.array([1, 0, 1, 1, 1, 0])
    expected = loss_and_gradient(*BATCH, weights.astype(np.float32))
    assert_same_bits(loss_and_gradient(*BATCH, weights.astype(dtype)), expected)


def test_integer_coefficients_do_not_round_the_sample_weights():
    # With all w_n = ½, c = 2 is c w = 1; were ½ rounded to an integer, the sum would be 0.
    half, two = np.full(6, 0.5, np.float32), np.full(6, 2)
    ours = jaxmlp.weighted_gradient_sum(*BATCH, two, half)
    assert_close(ours, jaxmlp.weighted_gradient_sum(*BATCH, np.ones(6, np.float32)), FLOAT32)


@pytest.mark.parametrize("dtype", [bool, np.float16, jnp.bfloat16])
def test_coefficients_of_a_narrow_dtype_do_not_round_the_sample_weights(dtype):
    weights = np.linspace(0.1, 99_000, 6).astype(np.float32)  # 99,000 is no float16
    ours = jaxmlp.weighted_gradient_sum(*BATCH, np.ones(6).astype(dtype), weights)
    assert_same_bits(ours, jaxmlp.weighted_gradient_sum(*BATCH, np.ones(6, np.float32), weights))


@pytest.mark.parametrize("label", [2**32, 2**32 + 1, -(2**32), 2**63])
def test_a_label_that_32_bits_would_wrap_to_a_class_stays_none(label):
    t = np.array([label, 1, 1, 0, 1, 0], np.uint64 if label == 2**63 else np.int64)
    for targets in (t, t.tolist()) if label != 2**63 else (t,):  # NumPy makes floats of that list
        norms = jaxmlp.per_example_gradient_norms(NETWORK, PARAMS, X, targets)
        np.testing.assert_array_equal(np.isnan(norms), np.arange(6) == 0)


def test_an_integer_target_of_a_regression_is_the_number_that_it_is():
    network = Network((4, 1), loss="squared_error")
    params = init(network, jax.random.key(0))
    large = np.full(6, 2**40)
    assert float(loss(network, params, X, large)) == pytest.approx(2.0**80 / 2, rel=1e-6)


@pytest.mark.parametrize("rows", ["inputs", "targets", "both"])
def test_garbage_in_rows_of_weight_0_enters_no_second_derivative_either(rows):
    idle = np.flatnonzero(W == 0)
    garbage_x, garbage_t = with_garbage(X, T, idle)
    x = X if rows == "targets" else garbage_x
    t = T if rows == "inputs" else garbage_t
    direction = jax.tree.map(jnp.ones_like, PARAMS)

    def along(params, x, t):  # reverse over reverse: where ∇E is small, ∇(∇E · v)
        gradient = jax.grad(loss, argnums=1)(NETWORK, params, x, t, W)
        return sum(map(jnp.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))

    def by_hand(params, x, t):
        return loss_and_gradient(NETWORK, params, x, t, W)[0]

    for function in (along, by_hand):
        clean = jax.grad(function)(PARAMS, X, T)
        assert_close(jax.grad(function)(PARAMS, x, t), clean, FLOAT32)
    none = jax.jacrev(lambda p: jax.grad(loss, 1)(NETWORK, p, x, t, jnp.zeros(6)))(PARAMS)
    assert all_zero(none)


def test_the_derivative_in_the_weight_of_garbage_is_0():
    x, t = with_garbage(X, T, np.flatnonzero(W == 0))
    derivative = jax.grad(loss, argnums=4)(NETWORK, PARAMS, x, t, jnp.asarray(W))
    assert all_zero(derivative[W == 0]) and np.isfinite(derivative).all()


@pytest.mark.parametrize("clip_norm", [-1.0, 0.0, np.nan])
def test_a_traced_clip_norm_that_is_not_above_0_makes_the_sum_0(clip_norm):
    clipped = jax.jit(lambda c: jaxmlp.clipped_gradient_sum(*BATCH, c)[0])
    assert all_zero(clipped(clip_norm))


@pytest.mark.parametrize(
    "function", ["loss_and_gradient", "jax.grad(loss)", "clipped_gradient_sum"]
)
def test_parameters_in_a_list_yield_a_gradient_in_a_list(function):
    # check_parameters takes a list of layers; a gradient has the tree of the parameters.
    ours = FUNCTIONS[function](NETWORK, list(PARAMS), X, T)
    theirs = FUNCTIONS[function](*BATCH)
    place = 1 if function == "loss_and_gradient" else 0
    assert jax.tree.structure(ours[place]) == jax.tree.structure(list(PARAMS))
    assert_close(jax.tree.leaves(ours), jax.tree.leaves(theirs), FLOAT32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inputs": X[0]}, ValueError, "inputs: expected shape (N, 4), got (4,)"),
        ({"inputs": X[:, :3]}, ValueError, "inputs: expected shape (N, 4), got (6, 3)"),
        ({"inputs": X * 1j}, TypeError, "inputs: expected real numbers, got complex64"),
        (
            {"targets": T.astype(np.float32)},
            TypeError,
            "targets: expected (N,) integer classes or (N, 2) distributions for "
            "softmax_cross_entropy, got (N,) of float32",
        ),
        (
            {"targets": T[:5]},
            ValueError,
            "targets: expected shape (6, 2) or (6,) for 6 examples, got (5,)",
        ),
        (
            {"targets": np.eye(3)[T]},
            ValueError,
            "targets: expected shape (6, 2) or (6,) for 6 examples, got (6, 3)",
        ),
        ({"sample_weight": W[:5]}, ValueError, "sample_weight: expected shape (6,), got (5,)"),
        ({"sample_weight": 1.0}, ValueError, "sample_weight: expected shape (6,), got ()"),
        ({"params": PARAMS[:1]}, ValueError, "params: expected 2 layers, got 1"),
        ({"params": PARAMS[0].weight}, TypeError, "params: expected a tuple of 2 jaxmlp.Layer"),
        (
            {"network": Network((4, 3, 2), bias=False)},
            ValueError,
            "params[0].bias: expected None since the network has bias=False, got an array",
        ),
        (
            {"network": Network((4, 3, 2), loss="poisson")},
            ValueError,
            "targets: expected shape (6, 2) for 6 examples, got (6,)",
        ),
    ],
)
def test_what_does_not_fit_is_named_by_every_function(change, error, message):
    arguments = {"network": NETWORK, "params": PARAMS, "inputs": X, "targets": T}
    arguments |= {"sample_weight": W} | change
    for name, function in FUNCTIONS.items():
        if name == "jax.grad(loss)":
            continue  # jax.grad looks at its arguments first
        with pytest.raises(error) as raised:
            function(*arguments.values())
        assert str(raised.value).startswith(message), name


def test_coefficients_of_another_shape_are_named():
    with pytest.raises(ValueError, match=r"^coefficients: expected shape \(6,\), got \(5,\)$"):
        jaxmlp.weighted_gradient_sum(*BATCH, W[:5])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("inputs", [np.uint8, np.float32])
def test_results_have_the_parameters_dtype_and_the_loss_at_least_float32(
    strict_promotion, dtype, inputs
):
    with jax.enable_x64(dtype == jnp.float64):
        params = jax.eval_shape(partial(init, NETWORK, dtype=dtype), jax.random.key(0))
        x = jax.ShapeDtypeStruct(X.shape, inputs)
        t, w = jax.ShapeDtypeStruct(T.shape, jnp.int32), jax.ShapeDtypeStruct(W.shape, jnp.float32)
        shapes = {
            name: jax.eval_shape(partial(function, NETWORK), params, x, t, w)
            for name, function in FUNCTIONS.items()
            if name != "jax.grad(loss)"
        }
    wide = jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
    value, gradient = shapes["loss_and_gradient"]
    total, norms = shapes["clipped_gradient_sum"]
    for result in (value, norms, shapes["loss"], shapes["per_example_gradient_norms"]):
        assert result.dtype == wide
    for tree in (
        gradient,
        total,
        shapes["per_example_gradients"],
        shapes["weighted_gradient_sum"],
        shapes["input_gradients"],
    ):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype(dtype)}


def test_bfloat16_gradients_differ_from_float64_by_their_own_rounding_only():
    rounded = in_dtype((PARAMS, X), jnp.bfloat16)
    ours = loss_and_gradient(NETWORK, *rounded, T, W)
    with jax.enable_x64(True):
        theirs = loss_and_gradient(NETWORK, *in_dtype(rounded, jnp.float64), T, W)
    # bfloat16 numbers are 2^-8 apart: a relative rounding of 0.002 in each of δ, a and the result.
    assert_close(ours[0], theirs[0], 0.005)
    assert_close(ours[1], theirs[1], 0.01)


# The loss inside transformations.


def test_jax_jvp_of_loss_raises_type_error():
    def of_params(params):
        return loss(NETWORK, params, X, T)

    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(of_params, (PARAMS,), (PARAMS,))


SMALL = Case("small", Network((2, 3, 2), "tanh", "sigmoid_binary_cross_entropy"), weighted=True)


@jax.jit
def second_derivatives(*batch):
    plain = partial(oracles.plain_loss, SMALL.network.activations, SMALL.network.loss)
    every = (0, 1, 2, 3)
    gradient = jax.grad(partial(loss, SMALL.network), every)
    forward, reverse = jax.jacfwd(gradient, every), jax.jacrev(gradient, every)
    return forward(*batch), reverse(*batch), jax.hessian(plain, every)(*batch)


@cache
def hessians(weights):
    """(jax.hessian of loss, jacrev of grad of it, Hessian of the plain loss), in all arguments."""
    with jax.enable_x64(True):
        batch = draw(SMALL, n_examples=3)._replace(weights=np.array(weights))
        return jax.device_get(second_derivatives(*in_dtype(batch, jnp.float64)))


@pytest.mark.parametrize("order", [0, 1], ids=["jax.hessian", "jacrev of grad"])
def test_second_derivatives_of_loss_in_all_arguments_are_those_of_the_plain_loss(order):
    *ours, theirs = hessians((0.5, 2.0, 1.5))
    # Blocks of second derivatives may cancel to any size: measured by the largest of them all.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    assert_close(ours[order], theirs, FLOAT64_BOUND, jax.tree.map(lambda _: largest, theirs))


@pytest.mark.parametrize("order", [0, 1], ids=["jax.hessian", "jacrev of grad"])
def test_the_gradient_has_a_derivative_in_a_weight_of_0(order):
    # ∂²(Σ w E / Σ w)/∂w_n ∂θ = (g_n − g) / Σ w − …, which is not 0 at w_n = 0: learning to
    # reweight examples starts from it.
    *ours, theirs = hessians((0.5, 0.0, 1.5))
    mixed, expected = ours[order][0], theirs[0]
    mixed, expected = ([layer.weight[3] for layer in tree] for tree in (mixed, expected))
    largest = max(np.abs(leaf).max() for leaf in expected)
    assert_close(mixed, expected, FLOAT64_BOUND, [largest] * len(expected))


def test_second_derivatives_follow_jax_nn_where_preactivations_are_exactly_0():
    # Hidden weights of 0, as at many a start: relu′(0) = 0, elu′(0) = 1, softplus′(0) = ½.
    names = ("relu", "leaky_relu", "elu", "softplus")
    rng = np.random.default_rng(4)
    inputs, targets = rng.normal(size=(3, 2)), rng.normal(size=(3, 2))
    output = Layer(rng.normal(size=(2, 3)), rng.normal(size=2))
    params = (Layer(np.zeros((3, 2)), np.zeros(3)), output)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)

    def products(params, direction, inputs, targets):
        def product(function):
            return jax.jvp(jax.grad(function), (params,), (direction,))[1]

        results = {}
        for name in names:
            network = Network((2, 3, 2), name, "squared_error")
            plain = partial(oracles.plain_loss, (name,), "squared_error")
            results[name] = (
                product(lambda p, n=network: loss(n, p, inputs, targets)),
                product(lambda p, f=plain: f(p, inputs, targets, None)),
            )
        return results

    with jax.enable_x64(True):
        arguments = in_dtype((params, direction, inputs, targets), jnp.float64)
        results = jax.device_get(jax.jit(products)(*arguments))
    assert_close(
        {name: ours for name, (ours, _) in results.items()},
        {name: theirs for name, (_, theirs) in results.items()},
        FLOAT64_BOUND,
    )


def test_a_row_of_weight_0_contributes_exactly_0_to_second_derivatives():
    @jax.jit
    def product(x, t):
        gradient = jax.grad(lambda params: loss(NETWORK, params, x, t, W))
        return jax.jvp(gradient, (PARAMS,), (PARAMS,))[1]

    assert_same_bits(product(*with_garbage(X, T, np.flatnonzero(W == 0))), product(X, T))


def test_vmap_of_the_loss_and_of_its_gradient_is_the_loop():
    keys = jax.random.split(jax.random.key(1), 3)
    members = jax.vmap(partial(init, NETWORK))(keys)
    values, gradients = jax.vmap(loss_and_gradient, (None, 0, None, None))(NETWORK, members, X, T)
    derivatives = jax.vmap(jax.grad(loss, 1), (None, 0, None, None))(NETWORK, members, X, T)
    for number in range(3):
        member = jax.tree.map(lambda leaf, number=number: leaf[number], (members, gradients))
        value, gradient = loss_and_gradient(NETWORK, member[0], X, T)
        assert_close(values[number], value, FLOAT32)
        assert_close(member[1], gradient, FLOAT32)
    assert_close(derivatives, gradients, FLOAT32)


def test_the_loss_trains_inside_the_user_s_own_jit_with_optax():
    optimizer = optax.adam(0.05)

    @jax.jit
    def step(network, params, state):
        value, gradient = jax.value_and_grad(loss, 1)(network, params, X, T)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    params, state, values = PARAMS, optimizer.init(PARAMS), []
    for _ in range(60):
        params, state, value = step(NETWORK, params, state)
        values.append(float(value))
    # Six examples in general position can be learned by heart.
    assert values[-1] < 0.2 * values[0]


def test_a_second_call_and_another_clip_norm_compile_nothing():
    changes = [0.7, 2, np.float32(3), np.float64(4), jnp.float32(5), jnp.array(6)]
    again = (2 * X, 1 - T, 3 * W)
    with compilations() as compiled:
        jax.jit(lambda x: 7 * x + len(T))(X)
        assert len(compiled) == 1  # the counter counts
        for function in FUNCTIONS.values():
            function(*BATCH, W)
        for clip_norm in changes:  # a number of another dtype is converted by a program of its own
            jnp.asarray(clip_norm, float)
        before = len(compiled)
        for function in FUNCTIONS.values():
            function(Network([4, 3, 2], "tanh"), PARAMS, *again)
        for clip_norm in changes:
            jaxmlp.clipped_gradient_sum(*BATCH, clip_norm, W)
        assert len(compiled) == before


def products(jaxpr):
    """Every dot_general in a jaxpr and in those inside it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in equation.params.values():
            # The branches of a choice, by the platform, are several.
            for one in value if isinstance(value, tuple) else (value,):
                inner = getattr(one, "jaxpr", one)
                if hasattr(inner, "eqns"):
                    yield from products(inner)


@EACH
def test_every_product_has_the_network_s_precision_and_sums_in_float32(function):
    network = Network((4, 3, 2), "tanh", precision="highest")
    params = in_dtype(PARAMS, jnp.bfloat16)
    jaxpr = jax.make_jaxpr(partial(function, network))(params, jnp.asarray(X), T, W)
    found = list(products(jaxpr.jaxpr))
    assert len(found) >= 2  # the forward pass alone has two
    for product in found:
        assert product.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2
        assert product.params["preferred_element_type"] == jnp.float32


# Two programs, which may sum the examples in different orders: of what the sums are without signs.
@pytest.mark.parametrize(
    ("sizes", "dtype", "bound"),
    [
        ((3, 20, 2), "float32", 1e-6),
        ((3, 128, 10), "float32", 1e-6),
        ((3, 300, 200, 10), "float32", 1e-6),
        ((3, 300, 200, 10), "float64", FLOAT64_BOUND),
    ],
)
def test_a_gradient_is_exported_for_any_number_of_examples(sizes, dtype, bound):
    with jax.enable_x64(dtype == "float64"):
        network = Network(sizes, "tanh")
        params = init(network, jax.random.key(0), dtype=jnp.dtype(dtype))
        (n,) = jax.export.symbolic_shape("n")
        x = jax.ShapeDtypeStruct((n, 3), dtype)
        t = jax.ShapeDtypeStruct((n,), jnp.int32)
        function = jax.jit(partial(loss_and_gradient, network))
        exported = jax.export.export(function, platforms=("cpu", "cuda"))(params, x, t)
        if jax.default_backend() != "cpu":
            pytest.skip("run on a CPU")
        for n_examples in (1, 7, 600):
            rng = np.random.default_rng(n_examples)
            x, t = rng.normal(size=(n_examples, 3)).astype(dtype), rng.integers(2, size=n_examples)
            value, gradient = exported.call(params, x, t.astype(np.int32))
            expected = loss_and_gradient(network, params, x, t)
            each = jaxmlp.per_example_gradients(network, params, x, t)
            unsigned = jax.tree.map(lambda leaf: np.max(np.mean(np.abs(leaf), axis=0)), each)
            assert_close(value, expected[0], bound)
            assert_close(gradient, expected[1], bound, unsigned)
