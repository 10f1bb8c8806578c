"""Activations, each tied to its first and second derivative.

Every function acts elementwise on the preactivation z, and the derivatives are taken from z and not
from the activation's value, in a form that does not cancel: σ(z)(1 − σ(z)) is 0 in float32 from
z = 17 on, σ(z)σ(−z) is right down to the smallest normal number. At kinks the derivative is the
one `jax.nn` has: relu′(0) = 0, leaky_relu′(0) = elu′(0) = 1.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import erfc

# Kinks are written with `where`, not `jnp.maximum` or `jnp.abs`: automatic differentiation of what
# stands here, as `jax.hessian` does, then takes one side's derivative, the one named above.


class Activation(NamedTuple):
    """An elementwise function f(z) with f′(z) and f″(z)."""

    function: Callable[[Array], Array]
    derivative: Callable[[Array], Array]
    second_derivative: Callable[[Array], Array]


def _magnitude(z: Array) -> Array:
    return jnp.where(z < 0, -z, z)


def _sigmoid_derivative(z: Array) -> Array:
    """Return σ′(z) = σ(z) σ(−z)."""
    return jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)


def _sigmoid_second_derivative(z: Array) -> Array:
    """Return σ″(z) = σ′(z) (σ(−z) − σ(z)) = −σ′(z) tanh(z/2)."""
    return -_sigmoid_derivative(z) * jnp.tanh(z / 2)


def _tanh_derivative(z: Array) -> Array:
    """Return tanh′(z) = sech²(z) = (2u / (1 + u²))² with u = e^{−|z|}.

    The same as 4 σ(2z) σ(−2z), whose last factor is 0 in float32 where four times it is not yet.
    sech is even: with the sign a constant, its derivatives are right at 0 too, where |z| has none.
    """
    u = jnp.exp(-_magnitude(z))
    return (2 * u / (1 + u * u)) ** 2


def _tanh_second_derivative(z: Array) -> Array:
    """Return tanh″(z) = −2 tanh(z) tanh′(z)."""
    return -2 * jnp.tanh(z) * _tanh_derivative(z)


def _relu(z: Array) -> Array:
    return jax.lax.select(z <= 0, jnp.zeros_like(z), z)


def _relu_derivative(z: Array) -> Array:
    return jax.lax.select(z > 0, jnp.ones_like(z), jnp.zeros_like(z))


_LEAKY_SLOPE = 0.01


def _leaky_relu(z: Array) -> Array:
    return jnp.where(z >= 0, z, _LEAKY_SLOPE * z)


def _leaky_relu_derivative(z: Array) -> Array:
    return jnp.where(z >= 0, jnp.ones_like(z), jnp.full_like(z, _LEAKY_SLOPE))


def _nonpositive(z: Array) -> Array:
    """Return min(z, 0): it keeps e^z from overflowing where e^z is not used."""
    return jnp.where(z > 0, jnp.zeros_like(z), z)


def _elu(z: Array) -> Array:
    return jnp.where(z > 0, z, jnp.expm1(_nonpositive(z)))


def _elu_derivative(z: Array) -> Array:
    """Return e^z below 0 and 1 from 0 on."""
    return jnp.exp(_nonpositive(z))


def _elu_second_derivative(z: Array) -> Array:
    return jnp.where(z > 0, jnp.zeros_like(z), _elu_derivative(z))


def _softplus(z: Array) -> Array:
    """Return log(1 + e^z) = max(z, 0) + log1p(e^{−|z|})."""
    return jnp.where(z < 0, jnp.zeros_like(z), z) + jnp.log1p(jnp.exp(-_magnitude(z)))


def _silu(z: Array) -> Array:
    return z * jax.nn.sigmoid(z)


def _silu_derivative(z: Array) -> Array:
    """Return (z σ(z))′ = σ(z) (1 + z σ(−z))."""
    return jax.nn.sigmoid(z) * (1 + z * jax.nn.sigmoid(-z))


def _silu_second_derivative(z: Array) -> Array:
    """Return (z σ(z))″ = 2σ′(z) + z σ″(z) = σ′(z) (2 − z tanh(z/2))."""
    return _sigmoid_derivative(z) * (2 - z * jnp.tanh(z / 2))


def _normal_cdf(z: Array) -> Array:
    """Return Φ(z) = ½ erfc(−z/√2), which keeps its digits where Φ is tiny."""
    return erfc(-z * math.sqrt(0.5)) / 2


def _normal_pdf(z: Array) -> Array:
    return jnp.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _gelu(z: Array) -> Array:
    return z * _normal_cdf(z)


def _gelu_derivative(z: Array) -> Array:
    """Return (z Φ(z))′ = Φ(z) + z φ(z)."""
    return _normal_cdf(z) + z * _normal_pdf(z)


def _gelu_second_derivative(z: Array) -> Array:
    """Return (z Φ(z))″ = φ(z) (2 − z²)."""
    z = jnp.clip(z, -_FLAT, _FLAT)
    return _normal_pdf(z) * (2 - z * z)


# Beyond |z| = 40 the Gaussian's and the logistic function's tails multiply a polynomial in z to 0
# in every precision; z is clipped there so that the polynomial cannot overflow and give 0·∞.
_FLAT = 40.0
_GELU_SLOPE = 2 * math.sqrt(2 / math.pi)
_GELU_CUBIC = 0.044715


def _gelu_tanh_argument(z: Array) -> tuple[Array, Array, Array]:
    """Return v, v′, v″ of v(z) = 2√(2/π) (z + 0.044715 z³); then gelu_tanh(z) = z σ(v)."""
    z = jnp.clip(z, -_FLAT, _FLAT)
    square = z * z
    value = _GELU_SLOPE * z * (1 + _GELU_CUBIC * square)
    return value, _GELU_SLOPE * (1 + 3 * _GELU_CUBIC * square), 6 * _GELU_SLOPE * _GELU_CUBIC * z


def _gelu_tanh(z: Array) -> Array:
    """Return ½ z (1 + tanh(v/2)) = z σ(v)."""
    v, _, _ = _gelu_tanh_argument(z)
    return z * jax.nn.sigmoid(v)


def _gelu_tanh_derivative(z: Array) -> Array:
    """Return (z σ(v))′ = σ(v) (1 + z v′ σ(−v))."""
    v, dv, _ = _gelu_tanh_argument(z)
    z = jnp.clip(z, -_FLAT, _FLAT)
    return jax.nn.sigmoid(v) * (1 + z * dv * jax.nn.sigmoid(-v))


def _gelu_tanh_second_derivative(z: Array) -> Array:
    """Return (z σ(v))″ = σ′(v) (2v′ + z v″ − z v′² tanh(v/2))."""
    v, dv, ddv = _gelu_tanh_argument(z)
    z = jnp.clip(z, -_FLAT, _FLAT)
    return _sigmoid_derivative(v) * (2 * dv + z * ddv - z * dv * dv * jnp.tanh(v / 2))


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(lambda z: z, jnp.ones_like, jnp.zeros_like),
    "sigmoid": Activation(jax.nn.sigmoid, _sigmoid_derivative, _sigmoid_second_derivative),
    "tanh": Activation(jnp.tanh, _tanh_derivative, _tanh_second_derivative),
    "relu": Activation(_relu, _relu_derivative, jnp.zeros_like),
    "leaky_relu": Activation(_leaky_relu, _leaky_relu_derivative, jnp.zeros_like),
    "elu": Activation(_elu, _elu_derivative, _elu_second_derivative),
    "softplus": Activation(_softplus, jax.nn.sigmoid, _sigmoid_derivative),
    "silu": Activation(_silu, _silu_derivative, _silu_second_derivative),
    "gelu": Activation(_gelu, _gelu_derivative, _gelu_second_derivative),
    "gelu_tanh": Activation(_gelu_tanh, _gelu_tanh_derivative, _gelu_tanh_second_derivative),
}
"""Name → activation."""
