"""A batch: its arrays, checked, and the one pass over it that every quantity is contracted from.

The functions of `jaxmlp.backprop` take one example; here they are lifted to N of them, and the sums
over the examples are taken: Σ_n δ_n a_nᵀ as the product Δᵀ A, and Σ w_n E_n / Σ w_n. Shape letters
as in `jaxmlp.gradients`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxmlp.backprop import Masks, Trace, forward, product, propagate
from jaxmlp.losses import LOSSES
from jaxmlp.network import Layer, Network, Parameters, check_parameters
from jaxmlp.validation import as_array, as_host_array

_NARROW = 128  # bytes of a row of Δ
_WIDE = 128  # numbers of one
_TILE = 2**16  # (outputs + inputs) · examples, from which a product of float64 has several tiles
_SHARED = 2**17  # bytes of columns, beyond which threads share their sum, for nothing
_LARGE = 2**19  # until they are this large


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
    targets = _targets(network, targets)
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
        weights = as_array("sample_weight", sample_weight)
        if weights.shape != (n_examples,):
            raise ValueError(f"sample_weight: expected shape ({n_examples},), got {weights.shape}")
    return Batch(inputs, targets, weights)


def check_inputs(network: Network, inputs: ArrayLike) -> Array:
    """Return the inputs as an array (N, D); raise TypeError or ValueError if they are not one."""
    array = as_array("inputs", inputs)
    check_input_shape(network, array.shape)
    return array


def check_input_shape(network: Network, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the shape is (N, D)."""
    if len(shape) != 2 or shape[1] != network.sizes[0]:
        raise ValueError(f"inputs: expected shape (N, {network.sizes[0]}), got {shape}")


def _targets(network: Network, targets: ArrayLike) -> Array:
    """Return the targets as an array; integers that JAX would wrap to 32 bits stay what they are.

    One that is no class, whatever its size, stays none: −1.
    """
    if isinstance(targets, Array):
        return as_array("targets", targets)
    host = as_host_array("targets", targets)
    if host.dtype.kind in "iu" and host.dtype.itemsize == 8:
        if LOSSES[network.loss].takes_classes and host.ndim == 1:
            is_class = (host >= 0) & (host < network.sizes[-1])
            host = np.where(is_class, host.astype(np.int64), -1).astype(np.int32)
        else:
            host = host.astype(np.float64)
    return jnp.asarray(host)


def forward_batch(
    network: Network, params: Parameters, inputs: Array, masks: Masks | None = None
) -> Trace:
    """Return the `Trace` of a batch: `forward` over the rows of inputs (N, D), and of masks."""
    return jax.vmap(partial(forward, network, params))(inputs, masks)


def pass_batch(
    network: Network,
    params: Parameters,
    batch: Batch,
    finite_rows: bool = False,
    masks: Masks | None = None,
    columns: bool = False,
) -> Pass:
    """Return one forward and one backward pass over a batch, the deltas scaled by the weights.

    `masks` holds those of dropout, (N, n_l) or None for each hidden layer.

    Where the rows are known to be finite (`finite_rows`), a weight of 0 needs no other care; then
    the examples may go through the layers as `columns`, which is faster for large batches, and on a
    CPU for small networks and for many that are mapped over.
    """
    if columns:
        assert finite_rows
        return _pass_columns(network, params, batch, masks)
    if not finite_rows:
        batch, _ = without_garbage(network, batch)
    trace = forward_batch(network, params, batch.inputs, masks)
    losses = jax.vmap(LOSSES[network.loss].value)(trace.preactivations[-1], batch.targets)
    return backward_batch(network, params, trace, losses, batch, finite_rows, masks)


def _pass_columns(network: Network, params: Parameters, batch: Batch, masks: Masks | None) -> Pass:
    of = LOSSES[network.loss]
    if masks is not None:
        masks = [None if mask is None else mask.T for mask in masks]
    trace = forward(network, params, batch.inputs.T, masks)
    outputs = trace.preactivations[-1]
    losses = of.value(outputs, batch.targets.T)
    deltas = of.gradient(outputs, batch.targets.T)
    if batch.weights is not None:
        deltas = deltas * batch.weights.astype(deltas.dtype)[None, :]
    # Or XLA takes them as rows, and every product that follows is one of transposes.
    deltas = jax.lax.optimization_barrier(deltas)
    rows: Any = jax.tree.map(
        jnp.transpose, (trace, propagate(network, params, trace, deltas, masks))
    )
    return Pass(rows[0], losses, rows[1])


def without_garbage(network: Network, batch: Batch) -> tuple[Batch, Array | None]:
    """Return the batch with the rows of weight 0 that hold garbage set to 0, and which (N,) do.

    Before the pass: what is not finite must not enter it, for a derivative of 0 times NaN is NaN.
    Other rows of weight 0 stay: the derivative in their weight is not 0. Without weights the
    classes are marked, see `_marked_classes`.
    """
    inputs, targets, weights = batch
    if weights is None:
        return batch._replace(targets=_marked_classes(network, targets)), None
    sound = _finite_rows(inputs)
    if jnp.issubdtype(targets.dtype, jnp.floating):
        sound &= _finite_rows(targets)
    elif LOSSES[network.loss].takes_classes and targets.ndim == 1:
        sound &= (targets >= 0) & (targets.astype(jnp.int32) < network.sizes[-1])
    garbage = (weights == 0) & ~sound
    inputs, targets = blank(garbage, (inputs, targets))
    return Batch(inputs, targets, weights), garbage


def _marked_classes(network: Network, targets: Array) -> Array:
    """Return the targets, classes (N,) that are none as −1: what they are to a loss already.

    A sum makes this a kernel of its own on a CPU, which waits for no product. XLA's runtime keeps
    what is ready alone in the thread that dispatched it, so that three threads share two cores from
    the first product on; of two it hands one over, and all that follows to its own threads.
    """
    if not LOSSES[network.loss].takes_classes or targets.ndim != 1:
        return targets

    def marked(classes: Array) -> Array:
        ends = np.array([[0, network.sizes[-1]]], classes.dtype)
        passed = jnp.sum(classes[:, None] >= ends, axis=1, dtype=np.int32)
        return jnp.where(passed == 1, classes, -1)

    # In a dtype in which −1 is none, and to which no wrong class narrows as right.
    classes = targets.astype(np.int64 if targets.dtype.itemsize == 8 else np.int32)
    return jax.lax.platform_dependent(classes, cpu=marked, default=lambda classes: classes)


def _finite_rows(array: Array) -> Array:
    return jnp.all(jnp.isfinite(array), axis=tuple(range(1, array.ndim)))


def backward_batch(
    network: Network,
    params: Parameters,
    trace: Trace,
    losses: Array,
    batch: Batch,
    finite_rows: bool = False,
    masks: Masks | None = None,
) -> Pass:
    """Return the pass over a batch from the trace and the losses (N,) of its forward half.

    A row of weight 0 that overflowed is set to 0 here.
    """
    targets, weights = batch.targets, batch.weights
    if weights is not None and not finite_rows:
        sound = jnp.isfinite(losses)
        for a in trace.inputs:
            sound &= _finite_rows(a)
        trace, targets = blank((weights == 0) & ~sound, (trace, targets))
    deltas = jax.vmap(LOSSES[network.loss].gradient)(trace.preactivations[-1], targets)
    if weights is not None:
        deltas = deltas * weights.astype(deltas.dtype)[:, None]
    return Pass(trace, losses, jax.vmap(partial(propagate, network, params))(trace, deltas, masks))


def blank(rows: Array, tree: Any) -> Any:
    """Return the tree of (N, …) arrays with those rows (N,) set to 0."""

    def select(leaf: Array) -> Array:
        at = jnp.reshape(rows, (-1,) + (1,) * (leaf.ndim - 1))
        return jnp.where(at, jnp.zeros_like(leaf), leaf)

    return jax.tree.map(select, tree)


def contract(
    network: Network,
    params: Parameters,
    trace: Trace,
    deltas: tuple[Array, ...],
    columns: bool = False,
) -> Parameters:
    """Return Σ_n δ_n a_nᵀ and Σ_n δ_n of every layer, in float32 or better: Δᵀ A and Δᵀ 1.

    `columns` tells whether the examples went through the layers as such, see `pass_batch`.
    """
    layers = []
    for layer, a, delta in zip(params, trace.inputs, deltas, strict=True):
        weight = product(network, _as_rows(delta.astype(a.dtype), a.shape[1]), a)
        layers.append(Layer(weight, None if layer.bias is None else _sum_of(delta, columns)))
    return tuple(layers)


def _sum_of(delta: Array, columns: bool) -> Array:
    """Return Δᵀ 1 (n_out,) of Δ (N, n_out), on a CPU as such a product where that pays.

    XLA has several threads share a sum along much memory. Where the products beside it are too
    small to be shared, waking a thread takes five times as long as the whole sum.
    """
    if not columns or not _SHARED < delta.size * delta.dtype.itemsize < _LARGE:
        return jnp.sum(delta, axis=0)
    ones = jnp.ones(len(delta), delta.dtype)
    return jax.lax.platform_dependent(
        delta.T,
        cpu=lambda rows: jax.lax.dot(rows, ones, precision="highest"),
        default=lambda rows: jnp.sum(rows, axis=1),
    )


def _as_rows(delta: Array, n_in: int) -> Array:
    """Return Δᵀ (n_out, N) of Δ (N, n_out), in memory by its rows where that pays.

    On a CPU XLA multiplies in another way where the left side is a transpose. That is the slower
    one for a narrow layer; for a wide one and many examples; and in float64 also wherever the
    product with A (N, n_in) is large. A GPU's library reads either as fast.
    """
    n_examples, n_out = delta.shape
    if n_out * delta.dtype.itemsize > _NARROW:
        if not isinstance(n_examples, int):  # a symbol, in an export
            return delta.T
        large = delta.dtype.itemsize == 8 and (n_out + n_in) * n_examples >= _TILE
        if not large and not _WIDE <= n_out <= n_examples / 2:
            return delta.T
    return jax.lax.platform_dependent(
        delta.T, cpu=jax.lax.optimization_barrier, default=lambda rows: rows
    )


def like(params: Parameters, layers: Parameters) -> Parameters:
    """Return the layers as a tree like `params`, every leaf in the dtype of the parameter there."""
    leaves, structure = jax.tree.flatten(params)
    pairs = zip(leaves, jax.tree.leaves(layers), strict=True)
    return jax.tree.unflatten(structure, [leaf.astype(param.dtype) for param, leaf in pairs])


def weighted_sum(losses: Array, weights: Array) -> Array:
    """Return Σ w_n E_n, where a weight of 0 makes 0 of any E_n."""
    lost = (weights == 0) & ~jnp.isfinite(losses)
    counted = jax.lax.select(lost, jnp.zeros_like(losses), losses)
    return jnp.sum(weights.astype(losses.dtype) * counted)


def total_weight(losses: Array, weights: Array | None) -> Array:
    """Return Σ w_n (), or N, in the dtype of the losses (N,)."""
    if weights is None:
        return jnp.asarray(losses.shape[0], losses.dtype)
    return jnp.sum(weights.astype(losses.dtype))


def safe_divide(numerator: ArrayLike, denominator: Array) -> Array:
    """Return numerator / denominator, and 0 where the denominator is 0."""
    zero = denominator == 0
    return jnp.where(zero, 0, numerator / jnp.where(zero, 1, denominator))


def mean_loss(losses: Array, weights: Array | None) -> Array:
    """Return Σ w_n E_n / Σ w_n; 0 where Σ w_n is 0."""
    total = jnp.sum(losses) if weights is None else weighted_sum(losses, weights)
    return safe_divide(total, total_weight(losses, weights))


def over_total(cotangent: ArrayLike, losses: Array, weights: Array | None) -> Array:
    """Return cotangent / Σ w_n; 0 where Σ w_n is 0."""
    return safe_divide(cotangent, total_weight(losses, weights))


def mean_gradient(
    network: Network,
    params: Parameters,
    result: Pass,
    weights: Array | None,
    cotangent: ArrayLike = 1.0,
    columns: bool = False,
    total: Array | None = None,
) -> Parameters:
    """Return cotangent · Δᵀ A / Σ w_n as a tree like `params`: the gradient of `mean_loss`.

    `columns` is as for the pass; `total` is Σ w_n () where it is known.
    """
    total = total_weight(result.losses, weights) if total is None else total
    scale = safe_divide(cotangent, total)
    sums = contract(network, params, result.trace, result.deltas, columns)
    return like(params, jax.tree.map(lambda leaf: scale * leaf, sums))


def unweighted(result: Pass, weights: Array | None) -> tuple[Array, ...]:
    """Return Δ_1 … Δ_L of E_n, without its weight; the rows of weight 0 are 0."""
    if weights is None:
        return result.deltas
    return tuple(
        safe_divide(delta, weights.astype(delta.dtype)[:, None]) for delta in result.deltas
    )


def divided(tree: Any, total: Array) -> Any:
    """Return the tree of sums divided by Σ w_n; 0 where that is 0."""
    share = safe_divide(1.0, total)  # once: a quotient for every entry would cost a pass over it
    return jax.tree.map(lambda leaf: share * leaf, tree)


def without_idle_rows(batch: Batch) -> Batch:
    """Return the batch with all rows of weight 0 set to 0: for what has no derivative in weights.

    A finite row may be too large for its squares.
    """
    if batch.weights is None:
        return batch
    inputs, targets = blank(batch.weights == 0, (batch.inputs, batch.targets))
    return Batch(inputs, targets, batch.weights)


def weights_like(losses: Array, weights: Array | None) -> Array:
    """Return the weights (N,) in the dtype of the losses (N,), or ones."""
    return jnp.ones_like(losses) if weights is None else weights.astype(losses.dtype)


def sound_forward(network: Network, params: Parameters, batch: Batch) -> tuple[Batch, Trace, Array]:
    """Return a batch and its forward pass with nothing infinite in rows of weight 0.

    Returns:
        The batch, its trace, and its weights (N,), 1 where it has none.
    """
    batch = without_idle_rows(batch)
    trace = forward_batch(network, params, batch.inputs)
    weights = weights_like(trace.preactivations[-1][:, 0], batch.weights)
    if batch.weights is not None:
        sound = jnp.ones(len(weights), bool)
        for leaf in jax.tree.leaves(trace):
            sound &= _finite_rows(leaf)
        trace = blank((weights == 0) & ~sound, trace)
    return batch, trace, weights
