"""Losses of one example from its logits, each tied to its derivatives and its prediction.

Shape letter: K outputs. `z` (K,) are the logits and `t` the target: for softmax cross-entropy an
integer class () or a distribution (K,), for the other losses (K,), or () where K = 1. All formulas
are written so that nothing cancels: a confident, right classifier has a loss of 1e-9 and a gradient
of 1e-9, not 0.

| loss                           | E(z, t)                                | ∂E/∂z    | prediction |
| ------------------------------ | -------------------------------------- | -------- | ---------- |
| `softmax_cross_entropy`        | −Σ_k t_k log softmax(z)_k              | s y − t  | softmax(z) |
| `sigmoid_binary_cross_entropy` | Σ_k t softplus(−z) + (1−t) softplus(z) | σ(z) − t | σ(z)       |
| `squared_error`                | ½ Σ_k (z − t)²                         | z − t    | z          |
| `poisson`                      | Σ_k e^z − t z                          | e^z − t  | e^z        |

with y = softmax(z) and s = Σ_k t_k, which need not be 1. The Hessian in z is s (diag y − y yᵀ) for
softmax cross-entropy, and diagonal for the others: σ(z)σ(−z), 1 and e^z.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxmlp.activations import ACTIVATIONS

_softplus = ACTIVATIONS["softplus"].function
# R of `_softmax`, with K R² below the dtype's largest number.
_ROOT_SCALES = {"bfloat16": 2.0**32, "float16": 2.0**2, "float32": 2.0**32, "float64": 2.0**256}


class Loss(NamedTuple):
    """A loss of one example: E(z, t), its derivatives, and the prediction that z stands for.

    With H = ∂²E/∂z² (K, K): `hessian_product` is H v for a vector v (K,), and `hessian_root` a
    root S (K, K) of it, H = Sᵀ S, by rows; it is real where the target's total s is not negative.
    `sampled_gradient` is δ = ∂E/∂z for a target drawn from the model itself, so that E[δ δᵀ] = H:
    a class from softmax(z), bits from σ(z), a normal z + N(0, 1), or a Poisson count of rate e^z.
    `takes_classes` tells whether an integer target () is a class index; the numbers of a
    target (K,) are in `target_range`, outside of which the loss falls without end.

    `value` and `gradient` also take several examples as the columns of z (K, B) and of t (K, B); t
    is (B,) for classes, and may be where K = 1. The values are (B,) then.
    """

    value: Callable[[Array, Array], Array]
    gradient: Callable[[Array, Array], Array]
    target_gradient: Callable[[Array, Array], Array]
    prediction: Callable[[Array], Array]
    hessian_product: Callable[[Array, Array, Array], Array]
    hessian_root: Callable[[Array, Array], Array]
    sampled_gradient: Callable[[Array, Array, Array], Array]
    target_range: tuple[float, float] = (-math.inf, math.inf)
    takes_classes: bool = False


class _Softmax(NamedTuple):
    """The softmax of z in parts that keep their digits.

    With m = max z and e_j = e^{z_j − m}: `shift` m (1,), `log_total` log Σ e_j (1,), `y` (K,) =
    e_j / Σ e and `rest` (K,) = Σ_{i≠j} y_i, which is 1 − y_j without the cancellation where
    e_j = 1. Of several examples as the columns of z, every part has these columns.
    """

    shift: Array
    log_total: Array
    y: Array
    rest: Array


@partial(jax.jit, inline=True)  # traced once: the loss, its derivative and the prediction take it
def _softmax(z: Array) -> _Softmax:
    # Each e_j is the square of its root, and held R² times as large: beside e_j = 1 every other one
    # could be below the normal numbers, and flushed to 0, where their sum is not. R is a power of 2
    # and rounds nothing. What is compared or found the largest is a constant to a derivative, e_j
    # is not: others_j is exactly 0 where z_j = m, its derivative is not, and so the expressions may
    # be differentiated again.
    scale = _ROOT_SCALES[z.dtype.name]
    one = scale**2
    half = jax.lax.stop_gradient(jnp.max(z, axis=0, keepdims=True) / 2)
    root = scale * jnp.exp(z / 2 - half)
    largest = root == scale
    e = root * root
    others = jax.lax.select(largest, e - one, e)
    ties = jnp.sum(largest.astype(z.dtype), axis=0, keepdims=True) - 1
    tail = jnp.sum(others, axis=0, keepdims=True) / one + ties
    total = 1 + tail
    share = 1 / total / one  # the derivative of 1 / (one · total) would overflow
    rest = jax.lax.select(largest, tail * one - others, total * one - others) * share
    return _Softmax(2 * half, jnp.log1p(tail), e * share, rest)


def _is_class(t: Array, z: Array) -> bool:
    return t.ndim == z.ndim - 1 and jnp.issubdtype(t.dtype, jnp.integer)


def _index(t: Array, z: Array) -> tuple[Array, Array]:
    """Return class t () as an index of z, and whether it is one: whether 0 ≤ t < K holds.

    Of columns: classes (B,).
    """
    # In a dtype that counts all K outputs, and not in one to which a wrong class narrows as right.
    index = t.astype(jnp.int64 if t.dtype.itemsize == 8 else jnp.int32)
    return index, (index >= 0) & (index < z.shape[0])


def _one_hot(t: Array, z: Array) -> Array:
    """Return class t () as a distribution (K,) of z's dtype; NaN where 0 ≤ t < K does not hold.

    Of columns: classes (B,) as distributions (K, B).
    """
    index, is_class = (part[None] for part in _index(t, z))
    numbers = jax.lax.broadcasted_iota(index.dtype, z.shape, 0)
    one_hot = (numbers == index).astype(z.dtype)
    return jnp.where(is_class, one_hot, jnp.nan)


def _distribution(z: Array, t: Array) -> Array:
    if _is_class(t, z):
        return _one_hot(t, z)
    if t.shape != z.shape:
        raise ValueError(
            f"target: expected an integer class () or a distribution {z.shape}, got shape "
            f"{t.shape} of {t.dtype}"
        )
    return t.astype(z.dtype)


def _softmax_value(z: Array, t: Array) -> Array:
    """Return Σ_k t_k ((z_a − z_k) + log1p(Σ_{j≠a} e^{z_j − z_a})), every term ≥ 0."""
    if _is_class(t, z):  # the one term that is not 0: less to compute than a sum with zeros
        softmax, (index, is_class) = _softmax(z), _index(t, z)
        index = jax.lax.select(is_class, index, jnp.zeros_like(index))
        own = jnp.take_along_axis(z, index[None], axis=0, mode="promise_in_bounds")
        value = ((softmax.shift - own) + softmax.log_total)[0]
        return jnp.where(is_class, value, jnp.nan)
    return jnp.sum(_distribution(z, t) * _softmax_target_gradient(z, t), axis=0)


def _softmax_gradient(z: Array, t: Array) -> Array:
    """Return δ_j = y_j (s − t_j) − t_j Σ_{i≠j} y_i: s y − t for targets of any total s."""
    softmax = _softmax(z)
    distribution = _distribution(z, t)
    total = 1 if _is_class(t, z) else jnp.sum(distribution, axis=0, keepdims=True)
    return softmax.y * (total - distribution) - distribution * softmax.rest


def _softmax_target_gradient(z: Array, t: Array) -> Array:
    """Return −log softmax(z)."""
    softmax = _softmax(z)
    return (softmax.shift - z) + softmax.log_total


def _softmax_hessian_product(z: Array, t: Array, v: Array) -> Array:
    """Return s (y∘v − y (y·v)), with v relative to its entry at the largest logit.

    That changes nothing but the rounding: beside y_a ≈ 1, y·v would cancel v_a.
    """
    y = _softmax(z).y
    v = v - v[jnp.argmax(z)]
    return jnp.sum(_distribution(z, t)) * y * (v - jnp.sum(y * v))


def _softmax_hessian_root(z: Array, t: Array) -> Array:
    """Return the rows √(s y_c) (e_c − y), whose diagonal is Σ_{i≠c} y_i and not 1 − y_c."""
    softmax = _softmax(z)
    away = jnp.where(jnp.eye(len(z), dtype=bool), softmax.rest, -softmax.y)
    return jnp.sqrt(jnp.sum(_distribution(z, t)) * softmax.y)[:, None] * away


def _softmax_sampled_gradient(z: Array, t: Array, key: Array) -> Array:
    """Return √s (y − e_c) for a class c drawn from y = softmax(z)."""
    drawn = jax.random.categorical(key, z)
    return jnp.sqrt(jnp.sum(_distribution(z, t))) * _softmax_gradient(z, drawn)


def _as_outputs(z: Array, t: Array) -> Array:
    return jnp.reshape(t, z.shape).astype(z.dtype)


def _binary_value(z: Array, t: Array) -> Array:
    t = _as_outputs(z, t)
    return jnp.sum(t * _softplus(-z) + (1 - t) * _softplus(z), axis=0)


def _binary_gradient(z: Array, t: Array) -> Array:
    t = _as_outputs(z, t)
    return (1 - t) * jax.nn.sigmoid(z) - t * jax.nn.sigmoid(-z)


def _binary_curvature(z: Array) -> Array:
    return jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)


def _binary_sampled_gradient(z: Array, t: Array, key: Array) -> Array:
    drawn = jax.random.uniform(key, z.shape, z.dtype) < jax.nn.sigmoid(z)
    return _binary_gradient(z, drawn.astype(z.dtype))


def _squared_value(z: Array, t: Array) -> Array:
    return jnp.sum((z - _as_outputs(z, t)) ** 2, axis=0) / 2


def _squared_gradient(z: Array, t: Array) -> Array:
    return z - _as_outputs(z, t)


def _poisson_value(z: Array, t: Array) -> Array:
    return jnp.sum(jnp.exp(z) - _as_outputs(z, t) * z, axis=0)


def _poisson_gradient(z: Array, t: Array) -> Array:
    return jnp.exp(z) - _as_outputs(z, t)


def _poisson_sampled_gradient(z: Array, t: Array, key: Array) -> Array:
    return jnp.exp(z) - jax.random.poisson(key, jnp.exp(z)).astype(z.dtype)


def _elementwise(
    curvature: Callable[[Array], Array],
) -> tuple[Callable[[Array, Array, Array], Array], Callable[[Array, Array], Array]]:
    """Return the Hessian's product and root where it is diagonal, ∂²E/∂z_k² = curvature(z)_k."""
    return (
        lambda z, t, v: curvature(z) * v,
        lambda z, t: jnp.diag(jnp.sqrt(curvature(z))),
    )


LOSSES: dict[str, Loss] = {
    "softmax_cross_entropy": Loss(
        _softmax_value,
        _softmax_gradient,
        _softmax_target_gradient,
        lambda z: _softmax(z).y,
        _softmax_hessian_product,
        _softmax_hessian_root,
        _softmax_sampled_gradient,
        target_range=(0.0, math.inf),
        takes_classes=True,
    ),
    "sigmoid_binary_cross_entropy": Loss(
        _binary_value,
        _binary_gradient,
        lambda z, t: -z,
        jax.nn.sigmoid,
        *_elementwise(_binary_curvature),
        _binary_sampled_gradient,
        target_range=(0.0, 1.0),
    ),
    "squared_error": Loss(
        _squared_value,
        _squared_gradient,
        lambda z, t: _as_outputs(z, t) - z,
        lambda z: z,
        *_elementwise(jnp.ones_like),
        lambda z, t, key: jax.random.normal(key, z.shape, z.dtype),
    ),
    "poisson": Loss(
        _poisson_value,
        _poisson_gradient,
        lambda z, t: -z,
        jnp.exp,
        *_elementwise(jnp.exp),
        _poisson_sampled_gradient,
        target_range=(0.0, math.inf),
    ),
}
"""Name → loss."""


def smooth(loss: str, z: Array, t: Array, label_smoothing: Array) -> Array:
    """Return the target t of one example mixed with the uniform distribution.

    Softmax cross-entropy: (1 − α) t + α/K over the K classes; binary cross-entropy:
    (1 − α) t + α/2 for each output.

    Args:
        loss: The loss's name; only the two cross-entropies have a smoothed target.
        z: The logits (K,); only their shape and dtype count.
        t: The target: an integer class () or a distribution (K,); (K,) or () for binary.
        label_smoothing: α in [0, 1], a scalar.

    Returns:
        The smoothed target (K,).

    References:
        Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2016, section 7.
    """
    if loss == "softmax_cross_entropy":
        return optax.smooth_labels(_distribution(z, t), label_smoothing)
    t = _as_outputs(z, t)
    return (1 - label_smoothing) * t + label_smoothing / 2
