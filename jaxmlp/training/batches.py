"""A step's batch: rows of the examples that are on the device, in the epoch's order."""

import itertools
import math
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
from jaxmlp.training.loops import Carry, loop_in_blocks, loop_over, on_a_gpu

_BATCHES, _NUMBERS = 16, 2**17  # gathered at once: so many batches, or more if small
_FEWEST, _MOST = 3072, 2**15  # numbers of a batch of which more than one is gathered at once
_CACHED = 2**20  # bytes of all inputs, beyond which fewer numbers are gathered so as well
_PRODUCT = 1.25e6  # multiplications of the first layer, up to which they are
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
    has −1. Without an order the examples are batches (k, B, …), all of them.
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
    place = jnp.subtract(number, block.first)
    if block.order is None:
        taken = jax.tree.map(
            lambda array: jax.lax.dynamic_index_in_dim(array, place, keepdims=False),
            block.examples,
        )
    else:
        own = partial(
            jax.lax.dynamic_slice,
            start_indices=(place * batch_size,),
            slice_sizes=(batch_size,),
        )
        rows = own(block.order)
        taken = jax.tree.map(
            lambda array: _rows(array, rows) if array.ndim > 1 else own(array), block.examples
        )
    return scaled_batch(scaling, taken, dtype)


def some_batches(
    examples: Batch, order: Array, number: ArrayLike, *, count: int, batch_size: int
) -> Batch:
    """Return the batches number·count … (number + 1)·count − 1 of the order, (count, B, …).

    Not scaled; rows beyond the order's end have the weight 0.
    """
    size = count * batch_size
    places = jnp.asarray(number) * size + jnp.arange(size)
    rows = order.at[places].get(mode="fill", fill_value=-1)
    gathered = _weighed(jax.tree.map(lambda array: _rows(array, rows), examples), rows)
    return jax.tree.map(
        lambda array: jnp.reshape(array, (count, batch_size, *array.shape[1:])), gathered
    )


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
    gathered before its steps, at every call, and where `batches_a_gather` says so the rows of some
    batches together.

    Args:
        network: What is trained on them.
        examples: All examples, or batches (k, B, …).
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
    batch_of = partial(epoch_batch, scaling=scaling, batch_size=batch_size, dtype=dtype)
    size = batches_a_gather(network, examples, order, batch_size) if alone else 1
    if order is not None and size > 1:
        return loop_in_blocks(
            first,
            end,
            size,
            partial(some_batches, examples, order, count=size, batch_size=batch_size),
            lambda number, batches, carry: step(
                number, batch_of(Block(batches, None, 0), number % size), carry
            ),
            carry,
        )
    blocks = partial(block_of, examples, order, batch_size=batch_size)
    longest = len(examples.targets) if order is None else len(order) // batch_size
    if order is not None and alone and not on_a_gpu() and len(order) <= _AT_ONCE:
        whole = blocks(0, longest)

        def blocks(first: ArrayLike, count: int) -> Block:
            return whole

    return loop_over(
        first,
        end,
        blocks,
        lambda number, block, carry: step(number, batch_of(block, number), carry),
        carry,
        longest,
    )


def batches_a_gather(
    network: Network, examples: Batch, order: Array | None, batch_size: int
) -> int:
    """Return for how many steps of one network the rows are best gathered at once.

    XLA spreads a gather of some thousand numbers over a CPU's cores. Where the products are too
    small for that, the other core has gone to sleep since the step before, and waking it takes as
    long as the whole step; so there it is woken for a gather of many batches. With fewer numbers
    much of a step is waiting for the memory where the rows are, if no cache has them: less for
    those of many batches.
    """
    if order is None or on_a_gpu():
        return 1
    inputs = batch_size * network.sizes[0]
    targets = batch_size * math.prod(examples.targets.shape[1:])
    cached = examples.inputs.size * examples.inputs.dtype.itemsize <= _CACHED
    few = inputs < _FEWEST and cached
    if few or inputs + targets > _MOST or inputs * network.sizes[1] > _PRODUCT:
        return 1
    most = min(max(_BATCHES, _NUMBERS // max(inputs, targets)), len(order) // batch_size)
    return 1 << (most.bit_length() - 1)  # a batch's place among them takes no division then


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
    """Return the batch with weight 0 where there is no number."""
    assert batch.weights is not None
    weights = jnp.where(numbers < 0, jnp.zeros_like(batch.weights), batch.weights)
    return batch._replace(weights=weights)
