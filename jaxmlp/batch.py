"""A batch: its arrays, checked, and the one pass over it that every quantity is contracted from.

The functions of `jaxmlp.backprop` take one example; here they are lifted to N of them, and the sums
over the examples are taken: Σ_n δ_n a_nᵀ as the product Δᵀ A, and Σ w_n E_n / Σ w_n. Shape letters
as in `jaxmlp.gradients`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxmlp.backprop import Trace, forward, product, propagate
from jaxmlp.losses import LOSSES
from jaxmlp.network import Layer, Network, Parameters, check_parameters


class Batch(NamedTuple):
    """Checked arrays of one batch: inputs (N, D), targets, and weights (N,) or None."""

    inputs: Array
    targets: Array
    weights: Array | None


class Pass(NamedTuple):
    """The forward and backward pass over a batch: everything the contractions need.

    `trace` has a leading axis N on every leaf; `losses` (N,) holds E_n without its weight; `deltas`
    holds Δ_1 … Δ_L, (N, n_l), of w_n E_n.
    """

    trace: Trace
    losses: Array
    deltas: tuple[Array, ...]


def check_batch(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    sample_weight: ArrayLike | None,
) -> Batch:
    """Return the batch as arrays; raise TypeError or ValueError where they do not fit."""
    check_parameters(network, params)
    inputs = check_inputs(network, inputs)
    n_examples, n_outputs = inputs.shape[0], network.sizes[-1]
    targets = jnp.asarray(targets)
    shapes: list[tuple[int, ...]] = [(n_examples, n_outputs)]
    if LOSSES[network.loss].takes_classes:
        if targets.ndim == 1 and not jnp.issubdtype(targets.dtype, jnp.integer):
            raise TypeError(
                f"targets: expected (N,) integer classes or (N, {n_outputs}) distributions for "
                f"{network.loss}, got (N,) of {targets.dtype}"
            )
        shapes.append((n_examples,))
    elif n_outputs == 1:
        shapes.append((n_examples,))
    if targets.shape not in shapes:
        expected = " or ".join(str(shape) for shape in shapes)
        raise ValueError(
            f"targets: expected shape {expected} for {n_examples} examples, got {targets.shape}"
        )
    weights = None
    if sample_weight is not None:
        weights = jnp.asarray(sample_weight)
        if weights.shape != (n_examples,):
            raise ValueError(f"sample_weight: expected shape ({n_examples},), got {weights.shape}")
    return Batch(inputs, targets, weights)


def check_inputs(network: Network, inputs: ArrayLike) -> Array:
    """Return the inputs as an array (N, D); raise ValueError or TypeError if they are not one."""
    inputs = jnp.asarray(inputs)
    if inputs.ndim != 2 or inputs.shape[1] != network.sizes[0]:
        raise ValueError(f"inputs: expected shape (N, {network.sizes[0]}), got {inputs.shape}")
    if jnp.issubdtype(inputs.dtype, jnp.complexfloating):
        raise TypeError(f"inputs: expected real numbers, got {inputs.dtype}")
    return inputs


def forward_batch(network: Network, params: Parameters, inputs: Array) -> Trace:
    """Return the `Trace` of a batch: `forward` over the rows of inputs (N, D)."""
    return jax.vmap(partial(forward, network, params))(inputs)


def pass_batch(
    network: Network, params: Parameters, batch: Batch, finite_rows: bool = False
) -> Pass:
    """Return one forward and one backward pass over a batch, the deltas scaled by the weights.

    Where the rows are known to be finite (`finite_rows`), a weight of 0 needs no other care.
    """
    trace = forward_batch(network, params, batch.inputs)
    losses = jax.vmap(LOSSES[network.loss].value)(trace.preactivations[-1], batch.targets)
    return backward_batch(network, params, trace, losses, batch, finite_rows)


def backward_batch(
    network: Network,
    params: Parameters,
    trace: Trace,
    losses: Array,
    batch: Batch,
    finite_rows: bool = False,
) -> Pass:
    """Return the pass over a batch from the trace and the losses (N,) of its forward half."""
    targets, weights = batch.targets, batch.weights
    if weights is not None and not finite_rows:
        idle = _idle_rows(trace, losses, weights)
        trace, targets, weights = blank(idle, (trace, targets, weights))
    deltas = jax.vmap(LOSSES[network.loss].gradient)(trace.preactivations[-1], targets)
    if weights is not None:
        deltas = deltas * weights.astype(deltas.dtype)[:, None]
    return Pass(trace, losses, jax.vmap(partial(propagate, network, params))(trace, deltas))


def _idle_rows(trace: Trace, losses: Array, weights: Array) -> Array:
    """Return which rows (N,) have weight 0 and hold something that 0 times it is not 0.

    The other rows of weight 0 are left as they are: their derivative in the weight is not 0.
    """
    sound = jnp.isfinite(losses)
    for a in trace.inputs:
        sound &= jnp.all(jnp.isfinite(a), axis=1)
    return (weights == 0) & ~sound


def blank(rows: Array, tree: Any) -> Any:
    """Return the tree of (N, …) arrays with those rows (N,) set to 0."""

    def select(leaf: Array) -> Array:
        at = jnp.reshape(rows, (-1,) + (1,) * (leaf.ndim - 1))
        return jnp.where(at, jnp.zeros_like(leaf), leaf)

    return jax.tree.map(select, tree)


def contract(
    network: Network, params: Parameters, trace: Trace, deltas: tuple[Array, ...]
) -> Parameters:
    """Return Σ_n δ_n a_nᵀ and Σ_n δ_n of every layer, in float32 or better: Δᵀ A and Δᵀ 1."""
    layers = []
    for layer, a, delta in zip(params, trace.inputs, deltas, strict=True):
        weight = product(network, delta.astype(a.dtype).T, a)
        layers.append(Layer(weight, None if layer.bias is None else jnp.sum(delta, axis=0)))
    return tuple(layers)


def like(params: Parameters, layers: Parameters) -> Parameters:
    """Return the layers as a tree like `params`, every leaf in the dtype of the parameter there."""
    leaves, structure = jax.tree.flatten(params)
    pairs = zip(leaves, jax.tree.leaves(layers), strict=True)
    return jax.tree.unflatten(structure, [leaf.astype(param.dtype) for param, leaf in pairs])


def weighted_sum(losses: Array, weights: Array) -> Array:
    """Return Σ w_n E_n, where a weight of 0 makes 0 of any E_n."""
    counted = jnp.where((weights == 0) & ~jnp.isfinite(losses), jnp.zeros_like(losses), losses)
    return jnp.sum(weights.astype(losses.dtype) * counted)


def _total(losses: Array, weights: Array | None) -> Array:
    """Return Σ w_n, or N."""
    if weights is None:
        return jnp.asarray(losses.shape[0], losses.dtype)
    return jnp.sum(weights.astype(losses.dtype))


def _safe_divide(numerator: ArrayLike, denominator: Array) -> Array:
    """Return numerator / denominator, and 0 where the denominator is 0."""
    zero = denominator == 0
    return jnp.where(zero, 0, numerator / jnp.where(zero, 1, denominator))


def mean_loss(losses: Array, weights: Array | None) -> Array:
    """Return Σ w_n E_n / Σ w_n; 0 where Σ w_n is 0."""
    total = jnp.sum(losses) if weights is None else weighted_sum(losses, weights)
    return _safe_divide(total, _total(losses, weights))


def over_total(cotangent: ArrayLike, losses: Array, weights: Array | None) -> Array:
    """Return cotangent / Σ w_n; 0 where Σ w_n is 0."""
    return _safe_divide(cotangent, _total(losses, weights))


def mean_gradient(
    network: Network,
    params: Parameters,
    result: Pass,
    weights: Array | None,
    cotangent: ArrayLike = 1.0,
) -> Parameters:
    """Return cotangent · Δᵀ A / Σ w_n as a tree like `params`: the gradient of `mean_loss`."""
    scale = over_total(cotangent, result.losses, weights)
    sums = contract(network, params, result.trace, result.deltas)
    return like(params, jax.tree.map(lambda leaf: scale * leaf, sums))
