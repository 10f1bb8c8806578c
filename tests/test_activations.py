"""Activations and their derivatives against jax.nn, jax.grad, their limits and exact values."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from cases import assert_close

from jaxmlp.activations import ACTIVATIONS
from jaxmlp.verification import oracles

# The step 1/8 is exact, so that the grid holds the kinks' place, 0.
GRID = np.linspace(-6, 6, 97)
KINKED = ("relu", "leaky_relu", "elu")

# Closed forms in another order of operations: some ten float64 roundings of 1.1e-16.
TOLERANCE = 1e-14

NAMES = pytest.mark.parametrize("name", sorted(ACTIVATIONS))


@pytest.fixture(scope="module")
def on_grid():
    """Name → f, f′, f″ on the grid in float64: ours, jax.nn's by jax.grad, and f′ and f″ by
    jax.grad of our f and f′; all in one program.
    """

    def tables(z):
        tables = {}
        for name, plain in oracles.ACTIVATIONS.items():
            slope = jax.grad(plain)
            theirs = [jax.vmap(f)(z) for f in (plain, slope, jax.grad(slope))]
            ours = [f(z) for f in ACTIVATIONS[name]]
            derived = [jax.vmap(jax.grad(f))(z) for f in ACTIVATIONS[name][:2]]
            tables[name] = ours, theirs, derived
        return tables

    with jax.enable_x64(True):
        return jax.device_get(jax.jit(tables)(jnp.asarray(GRID)))


def test_every_activation_has_a_counterpart_in_jax_nn():
    assert set(ACTIVATIONS) == set(oracles.ACTIVATIONS)


@NAMES
def test_the_function_is_that_of_jax_nn(on_grid, name):
    ours, theirs, _ = on_grid[name]
    assert ours[0].dtype == np.float64
    assert_close(ours[0], theirs[0], TOLERANCE)


@NAMES
def test_the_derivative_is_that_of_jax_grad_kinks_included(on_grid, name):
    ours, theirs, _ = on_grid[name]
    assert_close(ours[1], theirs[1], TOLERANCE)


@NAMES
def test_the_second_derivative_is_that_of_jax_grad_away_from_kinks(on_grid, name):
    ours, theirs, _ = on_grid[name]
    smooth = (GRID != 0) | (name not in KINKED)
    # jax.grad of jax.grad cancels in the tails: 1 − σ(6) alone loses two digits.
    assert_close(ours[2][smooth], theirs[2][smooth], 1e-13)


@pytest.mark.parametrize(("name", "slope"), [("relu", 0.0), ("leaky_relu", 1.0), ("elu", 1.0)])
def test_the_derivative_at_a_kink_is_the_convention_of_jax_nn(on_grid, name, slope):
    at_zero = np.flatnonzero(GRID == 0)
    assert on_grid[name][0][1][at_zero] == slope
    assert ACTIVATIONS[name].derivative(jnp.float32(-0.0)) == slope  # −0 is 0


@NAMES
def test_automatic_differentiation_of_the_function_gives_our_derivative_kinks_included(
    on_grid, name
):
    # jax.hessian(loss), and jax.jvp of jax.grad(loss), differentiate the function itself.
    ours, _, derived = on_grid[name]
    assert_close(derived[0], ours[1], TOLERANCE)


@NAMES
def test_automatic_differentiation_of_the_derivative_gives_our_second_derivative(on_grid, name):
    ours, _, derived = on_grid[name]
    smooth = (GRID != 0) | (name not in KINKED)
    assert_close(derived[1][smooth], ours[2][smooth], 1e-13)  # it cancels in the tails


# Far from 0 each function is a line: slope and offset for z → −∞, then for z → ∞.
ASYMPTOTES = {
    "identity": (1, 0, 1, 0),
    "sigmoid": (0, 0, 0, 1),
    "tanh": (0, -1, 0, 1),
    "relu": (0, 0, 1, 0),
    "leaky_relu": (0.01, 0, 1, 0),
    "elu": (0, -1, 1, 0),
    "softplus": (0, 0, 1, 0),
    "silu": (0, 0, 1, 0),
    "gelu": (0, 0, 1, 0),
    "gelu_tanh": (0, 0, 1, 0),
}


@NAMES
def test_far_from_zero_nothing_overflows_and_every_function_is_its_asymptote(name):
    left_slope, left_offset, right_slope, right_offset = ASYMPTOTES[name]
    z = np.array([-1e30, -1e4, 1e4, 1e30], np.float32)
    slopes = np.array([left_slope] * 2 + [right_slope] * 2, np.float32)
    offsets = np.array([left_offset] * 2 + [right_offset] * 2, np.float32)
    function, derivative, second_derivative = (f(jnp.asarray(z)) for f in ACTIVATIONS[name])
    # Beyond 1e4 the distance to the asymptote is below e^−1e4 = 0: equal to the last bit.
    np.testing.assert_array_equal(function, slopes * z + offsets)
    np.testing.assert_array_equal(derivative, slopes)
    np.testing.assert_array_equal(second_derivative, np.zeros(4))


@NAMES
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_dtype_is_kept_also_under_strict_promotion(strict_promotion, name, dtype):
    z = jax.ShapeDtypeStruct((3,), dtype)
    for function in ACTIVATIONS[name]:
        result = jax.eval_shape(function, z)
        assert (result.dtype, result.shape) == (dtype, (3,))


# ±z, sparse up to 80 and dense in 80 … 88, where e^−z leaves the normal float32 numbers, and at
# half of that for tanh′; 9 and 16.6 are where 1 − tanh² and 1 − σ become exactly 0.
MAGNITUDES = np.concatenate(
    [
        [0, 1e-6, 0.5, 3, 9, 16.6, 17, 20, 30, 60, 100, 1e4],
        np.arange(40, 46, 0.25),
        np.arange(80, 89),
    ]
)
EXACT = {
    "sigmoid": ("sigmoid", "function", lambda z: 1 / (1 + mpmath.exp(-z))),
    "sigmoid′": ("sigmoid", "derivative", lambda z: 1 / (2 * mpmath.cosh(z / 2)) ** 2),
    "tanh′": ("tanh", "derivative", lambda z: mpmath.sech(z) ** 2),
    "softplus": ("softplus", "function", lambda z: mpmath.log1p(mpmath.exp(z))),
    "softplus′": ("softplus", "derivative", lambda z: 1 / (1 + mpmath.exp(-z))),
}


@pytest.mark.parametrize("name", EXACT)
def test_saturated_values_keep_their_digits_in_float32(name):
    activation, part, exact = EXACT[name]
    z = np.concatenate([MAGNITUDES, -MAGNITUDES]).astype(np.float32)
    got = np.asarray(getattr(ACTIVATIONS[activation], part)(jnp.asarray(z)))
    smallest = float(np.finfo(np.float32).tiny)
    wrong = []
    with mpmath.workdps(50):
        for x, value in zip(z, got, strict=True):
            truth = exact(mpmath.mpf(float(x)))
            error = abs(mpmath.mpf(float(value)) - truth)
            # 1e-5 is e^z's relative error where z has the rounding error 88 · 6e-8; a subnormal
            # result may be flushed to 0.
            if error > (1e-5 * abs(truth) if abs(truth) >= smallest else smallest):
                wrong.append((float(x), float(value), mpmath.nstr(truth, 8)))
    assert not wrong, f"{name}: (z, got, exact) {wrong}"
