"""The gradient of every example by itself, its norm, and the sum of clipped ones.

All are contractions of the pairs (a_{l−1}, δ_l) of one forward and one backward pass: δ_n a_nᵀ kept
apart; ‖g_n‖² = Σ_l ‖δ_n‖² (‖a_n‖² + 1), the 1 where there is a bias; and with c_n = min(1, C/‖g_n‖)
the sum (c ∘ Δ)ᵀ A, for which no gradient of an example is built. Arguments and shape letters are
those of `jaxmlp.gradients`.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxmlp.batch import (
    Batch,
    Pass,
    blank,
    check_batch,
    contract,
    like,
    pass_batch,
    without_idle_rows,
)
from jaxmlp.network import Layer, Network, Parameters
from jaxmlp.validation import check_positive


@jax.jit
def _per_example_gradients(network: Network, params: Parameters, batch: Batch) -> Parameters:
    result = pass_batch(network, params, batch)
    layers = []
    for layer, a, delta in zip(params, result.trace.inputs, result.deltas, strict=True):
        outer = delta[:, :, None] * a.astype(delta.dtype)[:, None, :]
        layers.append(Layer(outer, None if layer.bias is None else delta))
    return like(params, tuple(layers))


def per_example_gradients(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> Parameters:
    """Return the gradient of w_n E_n for every example: the outer products δ_n a_nᵀ, kept apart.

    Costs N times the parameters' memory; their norms, sums and inner products are to be had without
    it, by `per_example_gradient_norms`, `clipped_gradient_sum`, `weighted_gradient_sum` and
    `gradient_gram_matrix`.

    Args:
        network: The network.
        params: Its parameters.
        inputs: (N, D).
        targets: As for `loss`.
        sample_weight: (N,) or None.

    Returns:
        A tree like `params` with a leading axis N on every leaf.

    Raises:
        TypeError: As for `loss`.
        ValueError: As for `loss`.

    References:
        The derivation on paper, equations 4 and 7, for each example.
    """
    batch = check_batch(network, params, inputs, targets, sample_weight)
    return _per_example_gradients(network, params, batch)


def squared_norms(params: Parameters, result: Pass) -> Array:
    """Return Σ_l ‖δ_n‖² (‖a_n‖² + 1) of every example (N,), the 1 for layers with a bias."""
    total = jnp.zeros_like(result.losses)
    for layer, a, delta in zip(params, result.trace.inputs, result.deltas, strict=True):
        a_squared = jnp.sum(a.astype(delta.dtype) ** 2, axis=1)
        total += jnp.sum(delta**2, axis=1) * (a_squared + float(layer.bias is not None))
    return total


@jax.jit
def _per_example_gradient_norms(network: Network, params: Parameters, batch: Batch) -> Array:
    batch = without_idle_rows(batch)
    return jnp.sqrt(squared_norms(params, pass_batch(network, params, batch)))


def per_example_gradient_norms(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> Array:
    """Return the Euclidean norm of each example's whole gradient, without building any gradient.

    ‖g_n‖² = Σ_l ‖δ_n‖² (‖a_n‖² + 1), since the Frobenius norm of an outer product is the product
    of the norms; the 1 stands where the layer has a bias. Costs less than one gradient. The squares
    are of the parameters' dtype: in float32 a norm below 1e-19 is 0, and one is infinite or NaN
    where it, or that of an example's inputs or activations, is 1.8e19 or more.

    Args:
        network: The network.
        params: Its parameters.
        inputs: (N, D).
        targets: As for `loss`.
        sample_weight: (N,) or None.

    Returns:
        ‖∂(w_n E_n)/∂θ‖, (N,).

    Raises:
        TypeError: As for `loss`.
        ValueError: As for `loss`.

    References:
        Goodfellow, Efficient Per-Example Gradient Computations, 2015.
    """
    batch = check_batch(network, params, inputs, targets, sample_weight)
    return _per_example_gradient_norms(network, params, batch)


def clipped_sum(
    network: Network,
    params: Parameters,
    result: Pass,
    clip_norm: Array,
    finite_rows: bool = False,
) -> tuple[Parameters, Array]:
    """Return Σ_n g_n min(1, C/‖g_n‖) of a pass as a tree like `params`, and the norms ‖g_n‖ (N,).

    The arguments and edge cases are those of `clipped_gradient_sum`. Where the inputs are known to
    be finite (`finite_rows`), they are not looked through for what is not.
    """
    norms = jnp.sqrt(squared_norms(params, result))
    within = jnp.minimum(1, clip_norm.astype(norms.dtype) / jnp.where(norms > 0, norms, 1))
    factors = jnp.where(jnp.isfinite(norms) & (clip_norm > 0), within, 0)
    idle = factors == 0  # 0 times what is not finite would not be 0
    first, *others = result.trace.inputs
    inputs = (first if finite_rows else blank(idle, first), *blank(idle, others))
    trace, deltas = result.trace._replace(inputs=inputs), blank(idle, result.deltas)
    deltas = jax.tree.map(lambda delta: factors[:, None] * delta, deltas)
    return like(params, contract(network, params, trace, deltas)), norms


@jax.jit
def _clipped_gradient_sum(
    network: Network, params: Parameters, batch: Batch, clip_norm: Array
) -> tuple[Parameters, Array]:
    batch = without_idle_rows(batch)
    return clipped_sum(network, params, pass_batch(network, params, batch), clip_norm)


def clipped_gradient_sum(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    clip_norm: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> tuple[Parameters, Array]:
    """Return Σ_n g_n min(1, C/‖g_n‖) with g_n = ∂(w_n E_n)/∂θ, and the norms ‖g_n‖.

    The sum, not the mean, that differentially private training adds its noise to. The factors scale
    the rows of Δ, so that one backward pass is enough. No example contributes more than C, up to
    the rounding of its entries (2⁻²⁴ of C in float32, 2⁻⁸ in bfloat16). One whose squared norm is
    not finite (in float32: where its norm, or that of its inputs, is 1.8e19 or more) contributes 0;
    its norm is returned as it is.

    Args:
        network: The network.
        params: Its parameters.
        inputs: (N, D).
        targets: As for `loss`.
        clip_norm: C > 0, a scalar; another value compiles nothing. Under a `jit` of the caller's,
            where it cannot be refused, one that is not above 0 makes the sum 0.
        sample_weight: (N,) or None.

    Returns:
        The sum, a tree like `params`, and the norms before clipping (N,).

    Raises:
        TypeError: As for `loss`.
        ValueError: As for `loss`, or a `clip_norm` that is not above 0.

    References:
        Abadi et al., Deep Learning with Differential Privacy, 2016, algorithm 1.
    """
    batch = check_batch(network, params, inputs, targets, sample_weight)
    clip = check_positive("clip_norm", clip_norm)
    return _clipped_gradient_sum(network, params, batch, clip)
