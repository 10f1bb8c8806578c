"""A step's batch: rows of the examples that are on the device, in the epoch's order."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxmlp.batch import Batch
from jaxmlp.evaluation import scaled_batch
from jaxmlp.network import Network
from jaxmlp.scaling import Scaling
from jaxmlp.training.loops import Carry, loop_over, on_a_gpu

_SPREAD = 2**19  # bytes of an array and of the rows out of it, from which threads share a gather
_TILE, _DEEP = 2**16, 1024  # (rows + columns) · min(depth, 1024), from which they share a product
# Columns: up to so many outputs, from so many rows on whatever the widths, and from fewer where the
# inputs, the weights of the first layer and those of any other are no more than these.
_OUTPUTS, _MANY_ROWS, _FEW_ROWS, _INPUTS, _FIRST, _WEIGHTS = 32, 256, 32, 1024, 2**15, 2**14
_MANY_ON_A_GPU = 1024
_AT_ONCE = 2**20  # examples, up to which the classes of an epoch are gathered before its steps
_KEPT = 2**18  # weights of a layer, up to which a copy of them is best avoided


class Block(NamedTuple):
    """Batches in a row, of which a step takes its own: see `block_of`.

    Attributes:
        examples: Of arrays (N,) what the batches take, in their order; matrices whole. Without an
            order batches (k, B, …).
        order: Which rows of a matrix they take, −1 for none; or None.
        first: The number () of the first of the batches.
    """

    examples: Batch
    order: Array | None
    first: ArrayLike


def block_of(
    examples: Batch, order: Array | None, first: ArrayLike, count: int, *, batch_size: int
) -> Block:
    """Return the batches `first` … first + count − 1 of an epoch's order.

    Classes and weights (N,) are gathered for all of them at once, and a weight is 0 where the order
    has −1. Without weights there are none yet, see `_weighed_batch`. Without an order the examples
    are batches (k, B, …), all of them.
    """
    if order is None:
        return Block(examples, None, 0)
    begin = jnp.asarray(first) * batch_size
    rows = jax.lax.dynamic_slice(order, (begin,), (count * batch_size,))
    taken = jax.tree.map(lambda array: array if array.ndim > 1 else _rows(array, rows), examples)
    return Block(_weighed(taken, rows), rows, first)


def epoch_batch(
    block: Block,
    number: ArrayLike,
    *,
    scaling: Scaling | None,
    batch_size: int,
    dtype: np.dtype,
) -> Batch:
    """Return a step's batch, scaled; where the order has −1 for no example, a row of weight 0.

    Args:
        block: Some batches, this one among them.
        number: Which batch of the epoch, or of those without an order.
        scaling: What is left to be done to the inputs.
        batch_size: Rows of the order that a batch has.
        dtype: That of the scaled inputs.

    Returns:
        The batch.
    """
    taken = _weighed_batch(_taken(block, number, batch_size), block, number, batch_size, dtype)
    return scaled_batch(scaling, taken, dtype)


def _taken(block: Block, number: ArrayLike, batch_size: int) -> Batch:
    """Return the rows of a batch, as they are."""
    if block.order is None:
        place = jnp.subtract(number, block.first)
        return jax.tree.map(
            lambda array: jax.lax.dynamic_index_in_dim(array, place, keepdims=False),
            block.examples,
        )
    own = partial(_part, block, number, batch_size)
    rows = own(block.order)
    return jax.tree.map(
        lambda array: _rows(array, rows) if array.ndim > 1 else own(array), block.examples
    )


def _part(block: Block, number: ArrayLike, batch_size: int, array: Array) -> Array:
    """Return what a batch has of an array (N,) in the order of the block."""
    begin = jnp.subtract(number, block.first) * batch_size
    return jax.lax.dynamic_slice(array, (begin,), (batch_size,))


def _weighed_batch(
    batch: Batch, block: Block, number: ArrayLike, batch_size: int, dtype: np.dtype
) -> Batch:
    """Return the batch with weights: 1 where it had none, but 0 where the order has −1."""
    if batch.weights is not None:
        return batch
    assert block.order is not None
    there = _part(block, number, batch_size, block.order) >= 0
    return batch._replace(weights=there.astype(np.promote_types(dtype, np.float32)))


def loop_over_batches(
    network: Network,
    examples: Batch,
    order: Array | None,
    step: Callable[[Any, Batch, Carry], Carry],
    carry: Carry,
    *,
    first: ArrayLike,
    end: ArrayLike,
    scaling: Scaling | None,
    batch_size: int,
    dtype: np.dtype,
    alone: bool,
) -> Carry:
    """Return the loop over the batches `first` … end − 1 of an epoch.

    On a CPU, for one network, the classes and weights of an epoch of up to 2²⁰ examples are
    gathered before its steps, at every call, and the rows of a step by one thread where
    `one_thread_pays` says so.

    Args:
        network: What is trained on them.
        examples: All examples, or batches (k, B, …); weights of None are 1.
        order: The examples' numbers in the epoch's order, padded with −1; or None for batches.
        step: The body, of a number (), its batch, and what is carried.
        carry: What is carried into the first step.
        first: The first number ().
        end: The number () after the last.
        scaling: What is left to be done to the inputs.
        batch_size: Rows of the order a step.
        dtype: That of the scaled inputs.
        alone: Whether it is one network on one device.

    Returns:
        What the last step returns.
    """
    blocks = partial(block_of, examples, order, batch_size=batch_size)
    longest = len(examples.targets) if order is None else len(order) // batch_size
    spaces: list[Array | None] = [None for _ in jax.tree.leaves(examples)]
    if order is not None and alone and not on_a_gpu():
        whole = blocks(0, longest) if len(order) <= _AT_ONCE else None
        if one_thread_pays(network, batch_size):
            spaces = _spaces(examples, batch_size, dtype, flat=whole is None)
        if whole is not None:

            def blocks(first: ArrayLike, count: int) -> Block:
                return whole

    def body(number: Any, block: Block, carry: Any) -> Any:
        carry, spaces = carry
        spaces, taken = _through(spaces, _taken(block, number, batch_size))
        taken = _weighed_batch(taken, block, number, batch_size, dtype)
        return step(number, scaled_batch(scaling, taken, dtype), carry), spaces

    return loop_over(first, end, blocks, body, (carry, spaces), longest)[0]


def one_thread_pays(network: Network, batch_size: int) -> bool:
    """Return whether the rows of a batch of one network's are best gathered by one thread.

    On a CPU XLA has several threads share any gather out of much data, however few the rows. Where
    the first product is too small to be shared, the others sleep by then, and waking one takes
    longer than it helps; and what follows is computed by the thread that is ready last, whose
    caches hold nothing of the step.
    """
    n_in, n_out = network.sizes[:2]
    product = (batch_size + n_out) * min(n_in, _DEEP)
    return not on_a_gpu() and max(product, batch_size * n_in) < _TILE


def _spaces(examples: Batch, batch_size: int, dtype: np.dtype, *, flat: bool) -> list[Array | None]:
    """Return an array of rows for each of the examples' that threads would share a gather of.

    Such rows are written into a larger array, which is carried from step to step: what is written
    over in its place XLA leaves to one thread. `flat` tells whether classes and weights (N,) are
    gathered as well.
    """
    spaces: list[Array | None] = []
    for array in jax.tree.leaves(examples):
        shape, size = (batch_size + 1, *array.shape[1:]), max(array.dtype.itemsize, dtype.itemsize)
        numbers = batch_size * (array.size // max(len(array), 1))
        shared = array.size * array.dtype.itemsize + numbers * size >= _SPREAD
        shared &= batch_size > 1 and numbers < _TILE
        spaces.append(
            jnp.zeros(shape, array.dtype) if shared and (flat or array.ndim > 1) else None
        )
    return spaces


def _through(spaces: list[Array | None], batch: Batch) -> tuple[list[Array | None], Batch]:
    """Return the spaces with the rows of the batch in them, and the batch, read from there."""
    leaves, structure = jax.tree.flatten(batch)
    spaces = [
        None if space is None else jax.lax.dynamic_update_slice(space, rows, (0,) * rows.ndim)
        for space, rows in zip(spaces, leaves, strict=True)
    ]
    leaves = [
        rows if space is None else space[: len(rows)]
        for space, rows in zip(spaces, leaves, strict=True)
    ]
    return spaces, jax.tree.unflatten(structure, leaves)


def columns_pay(network: Network, batch_size: int, dtype: np.dtype, masked: bool) -> bool:
    """Return whether the examples of one network's batch are better columns than rows.

    They are for any network where the batch is large, but not with the masks of dropout then
    (`masked`), which are drawn by rows; and on a CPU for small networks, where the loss of a few
    outputs is much of the work, which vectors of examples make shorter.
    """
    sizes = network.sizes
    if dtype.itemsize < 4 or sizes[-1] > _OUTPUTS:
        return False
    if on_a_gpu():
        return batch_size >= _MANY_ON_A_GPU and not masked
    if batch_size >= _MANY_ROWS:
        return not masked
    first, *others = (a * b for a, b in itertools.pairwise(sizes))
    small = sizes[0] <= _INPUTS and first <= _FIRST and max(others, default=0) <= _WEIGHTS
    return batch_size >= _FEW_ROWS and small


def late_gradients_pay(network: Network) -> bool:
    """Return whether the gradients of one network's step are best held back for all deltas.

    XLA writes a layer's new weights over the old ones only where it sees that these are read by
    nothing later; the deltas below are not later where the new weights depend on them. Otherwise it
    copies the weights first. Not for large ones, whose copy is made beside the products; and small
    networks gain nothing.
    """
    first, *others = (a * b for a, b in itertools.pairwise(network.sizes))
    return not on_a_gpu() and first > _WEIGHTS and bool(others) and max(others) <= _KEPT


def _rows(array: Array, numbers: Array) -> Array:
    # The first row in the place of none: what follows is finite for it, for zeros it need not be.
    return array.at[jnp.maximum(numbers, 0)].get(mode="promise_in_bounds")


def _weighed(batch: Batch, numbers: Array) -> Batch:
    """Return the batch with weight 0 where there is no number, or as it is without weights."""
    if batch.weights is None:
        return batch
    weights = jax.lax.select(numbers < 0, jnp.zeros_like(batch.weights), batch.weights)
    return batch._replace(weights=weights)
