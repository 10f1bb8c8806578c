"""One forward and one backward pass for one example, against jax.grad of plain networks."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, FLOAT64_BOUND, assert_close, distance, draw, in_dtype

from jaxmlp import Layer, Network, backward, forward, init
from jaxmlp.backprop import input_delta, propagate
from jaxmlp.verification import oracles

IDS = [case.name for case in CASES]


def draw_masks(case, rng):
    """Scaled dropout masks for each example and hidden layer; the last layer's is None."""
    shapes = [(len(draw(case).inputs), width) for width in case.network.sizes[1:-1]]
    masks = [np.where(rng.random(shape) < 0.6, 1 / 0.6, 0.0) for shape in shapes]
    return (*masks[:-1], None) if len(masks) > 1 else tuple(masks)


def plain_example_loss(network, params, x, t, masks):
    """The oracle: one example's loss with masked activations, written as anybody would."""
    h = z = x
    for number, (weight, bias) in enumerate(params):
        z = weight @ h
        if bias is not None:
            z = z + bias
        if number < len(network.activations):
            h = oracles.ACTIVATIONS[network.activations[number]](z)
            if masks is not None and masks[number] is not None:
                h = h * masks[number]
    return oracles.example_losses(network.loss, z[None, :], t[None])[0]


def our_gradient(network, params, x, t, masks):
    """The gradient of one example from the pairs of our pass, with the trace and Wᵀδ at x."""
    trace = forward(network, params, x, masks)
    deltas = backward(network, params, trace, t, masks)
    layers = tuple(
        Layer(jnp.outer(delta, a), None if layer.bias is None else delta)
        for layer, a, delta in zip(params, trace.inputs, deltas, strict=True)
    )
    return layers, input_delta(network, params, 0, deltas[0]), trace


@cache
def passes(case):
    """(ours, theirs) without and with masks, each with a leading axis of examples, float64."""
    network = case.network
    masks = draw_masks(case, np.random.default_rng(1))

    @jax.jit
    def program(params, inputs, targets, masks):
        results = []
        for these, axes in ((None, None), (masks, 0)):
            ours = jax.vmap(partial(our_gradient, network, params), (0, 0, axes))
            plain = jax.grad(partial(plain_example_loss, network), argnums=(0, 1))
            theirs = jax.vmap(plain, (None, 0, 0, axes))
            results.append((ours(inputs, targets, these), theirs(params, inputs, targets, these)))
        return results

    with jax.enable_x64(True):
        params, inputs, targets, _ = in_dtype(draw(case), jnp.float64)
        return jax.device_get(program(params, inputs, targets, in_dtype(masks, jnp.float64)))


@pytest.mark.parametrize("masked", [False, True], ids=["no masks", "masks"])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_pairs_of_an_example_yield_the_gradient_of_jax_grad(case, masked):
    (ours, at_input, _), (theirs, theirs_at_input) = passes(case)[masked]
    assert_close(ours, theirs, FLOAT64_BOUND)
    assert_close(at_input, theirs_at_input, FLOAT64_BOUND)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_trace_holds_inputs_and_preactivations_of_every_layer(case):
    (_, _, trace), _ = passes(case)[False]
    params, inputs, *_ = draw(case)
    n, sizes = len(inputs), case.network.sizes
    assert [a.shape for a in trace.inputs] == [(n, size) for size in sizes[:-1]]
    assert [z.shape for z in trace.preactivations] == [(n, size) for size in sizes[1:]]
    np.testing.assert_array_equal(trace.inputs[0], inputs)
    for number, name in enumerate((*case.network.activations, "identity")):
        # A preactivation is the output of the network that ends there. NumPy's formulas lose a
        # digit or two (its elu is e^z − 1): 1e-12, as in DESIGN.md.
        ended = case.network.activations[:number], params[: number + 1]
        z = oracles.numpy_logits(*ended, inputs)
        assert_close(trace.preactivations[number], z, 1e-12)
        if number < len(params) - 1:
            assert_close(trace.inputs[number + 1], oracles.NUMPY_ACTIVATIONS[name](z), 1e-12)


def test_a_network_worked_by_hand():
    # oracles.py works it out: δ2 = y2_0 (1, −1), δ1 = y2_0 (0.36605…, −0.18898…).
    network = Network(oracles.WORKED_SIZES, bias=False)
    with jax.enable_x64(True):
        params = tuple(Layer(jnp.asarray(w), None) for w, _ in oracles.WORKED_PARAMETERS)
        x, t = jnp.asarray(oracles.WORKED_INPUT[0]), jnp.asarray(oracles.WORKED_TARGET[0])
        trace = jax.jit(forward)(network, params, x)
        deltas = jax.jit(backward)(network, params, trace, t)
    y2_0 = 1 / (1 + np.exp(1.0184848303214612))
    assert_close(trace.preactivations[0], np.array([-0.6, 2.0]), 1e-15)
    assert_close(trace.inputs[1], np.array([0.3543436937742045, 0.8807970779778825]), 1e-15)
    assert_close(
        trace.preactivations[1], np.array([-0.4565970767403628, 0.5618877535810984]), 1e-15
    )
    assert_close(deltas[1], y2_0 * np.array([1, -1]), 1e-14)
    assert_close(deltas[0], y2_0 * np.array([0.3660547847306517, -0.1889884537263117]), 1e-14)


def test_a_mask_of_ones_changes_nothing_and_a_mask_of_zeros_stops_everything_below():
    network = Network((3, 4, 5, 2), "tanh")
    params = init(network, jax.random.key(0))
    x, t = jnp.array([0.5, -1.0, 2.0]), jnp.array(1)

    @jax.jit
    def deltas(masks):
        return backward(network, params, forward(network, params, x, masks), t, masks)

    plain = jax.jit(lambda: backward(network, params, forward(network, params, x), t))()
    for ours, theirs in zip(deltas((jnp.ones(4), jnp.ones(5))), plain, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    blocked = deltas((jnp.ones(4), jnp.zeros(5)))
    assert not blocked[0].any() and not blocked[1].any()
    assert blocked[2].all()  # the output's δ = y − t is 0 nowhere


def test_propagate_is_linear_in_the_vector_at_the_output():
    network = Network((3, 5, 4, 2), "gelu")
    with jax.enable_x64(True):
        params = init(network, jax.random.key(0), jnp.float64)
        trace = jax.jit(forward)(network, params, jnp.array([0.5, -1.0, 2.0]))
        u, v = np.array([1.0, -2.0]), np.array([0.3, 0.7])
        down = jax.jit(jax.vmap(propagate, (None, None, None, 0)))
        deltas = down(network, params, trace, jnp.stack([u, v, 2 * u - 3 * v]))
    for of_u, of_v, of_both in jax.device_get([tuple(delta) for delta in deltas]):
        assert_close(of_both, 2 * of_u - 3 * of_v, FLOAT64_BOUND)


def test_propagate_of_the_loss_s_gradient_is_backward():
    network = Network((3, 5, 2), "tanh", "squared_error")
    params = init(network, jax.random.key(0))

    @jax.jit
    def both(x, t):
        trace = forward(network, params, x)
        delta = trace.preactivations[-1] - t
        return backward(network, params, trace, t), propagate(network, params, trace, delta)

    ours, propagated = both(jnp.ones(3), jnp.array([0.5, -0.5]))
    assert_close(ours, propagated, 1e-6)  # the same program twice: float32 rounding at most


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_what_enters_a_product_has_the_parameters_dtype_and_the_rest_at_least_float32(
    strict_promotion, case, dtype
):
    with jax.enable_x64(dtype == jnp.float64):
        params, inputs, targets, _ = jax.eval_shape(partial(in_dtype, dtype=dtype), draw(case))
        row = jax.ShapeDtypeStruct(inputs.shape[1:], jnp.float32)  # another dtype than theirs
        target = jax.ShapeDtypeStruct(targets.shape[1:], targets.dtype)
        masks = tuple(jax.ShapeDtypeStruct((size,), dtype) for size in case.network.sizes[1:-1])
        trace = jax.eval_shape(partial(forward, case.network), params, row, masks)
        deltas = jax.eval_shape(partial(backward, case.network), params, trace, target, masks)
    assert {a.dtype for a in trace.inputs} == {jnp.dtype(dtype)}
    wide = jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
    assert {leaf.dtype for leaf in (*trace.preactivations, *deltas)} == {wide}


def test_bfloat16_differs_from_float64_by_its_own_rounding_only():
    # On the parameters and inputs rounded to bfloat16, whose numbers are 2^-8 apart: what enters a
    # product carries a relative error of 2^-9 = 0.002, and a few of them meet in each sum.
    case = next(case for case in CASES if case.name == "deep")
    rounded = in_dtype(draw(case), jnp.bfloat16)
    network = case.network

    @jax.jit
    def deltas(params, inputs, targets):
        def of_example(x, t):
            return backward(network, params, forward(network, params, x), t)

        return jax.vmap(of_example)(inputs, targets)

    ours = jax.device_get(deltas(*rounded[:3]))
    with jax.enable_x64(True):
        theirs = jax.device_get(deltas(*in_dtype(rounded, jnp.float64)[:3]))
    assert_close(ours, theirs, 0.01)
    # And it is bfloat16 that was used, not float32, whose rounding is 6e-8.
    assert all(distance(a, b) > 1e-5 for a, b in zip(ours, theirs, strict=True))


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


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, None),
        ("default", (jax.lax.Precision.DEFAULT,) * 2),
        ("high", (jax.lax.Precision.HIGH,) * 2),
        ("highest", (jax.lax.Precision.HIGHEST,) * 2),
        ("TF32_TF32_F32", jax.lax.DotAlgorithmPreset.TF32_TF32_F32),
        ("BF16_BF16_F32_X3", jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X3),
    ],
)
def test_every_product_of_the_pass_has_the_network_s_precision_and_sums_in_float32(name, expected):
    network = Network((3, 4, 2), precision=name)
    params = init(network, jax.random.key(0), jnp.bfloat16)

    def both(x):
        return backward(network, params, forward(network, params, x), jnp.array(1))

    found = list(products(jax.make_jaxpr(both)(jnp.ones(3)).jaxpr))
    assert len(found) == 2 * 3  # z_1, z_2 and W_2ᵀ δ_2, on a CPU and elsewhere
    for product in found:
        assert product.params["precision"] == expected
        assert product.params["preferred_element_type"] == jnp.float32
