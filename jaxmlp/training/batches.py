"""A step's batch: rows of the examples that are on the device, in the epoch's order."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxmlp.batch import Batch
from jaxmlp.evaluation import scaled_batch
from jaxmlp.network import Network
from jaxmlp.scaling import Scaling
from jaxmlp.training.loops import on_a_gpu

_BATCHES = 16  # gathered at once, at most
_FEWEST, _MOST = 3072, 2**15  # numbers of a batch of which more than one is gathered at once
_PRODUCT = 1.25e6  # multiplications of the first layer, up to which they are


def in_order(examples: Batch, order: Array | None) -> Batch:
    """Return the examples, classes and weights (N,) in an epoch's order, and weight 0 at its −1.

    Of those a step takes a slice, then. Matrices stay as they are, lest there be two of them: their
    rows are gathered in the step. Without an order all are as they come.
    """
    if order is None:
        return examples
    ordered = jax.tree.map(lambda array: array if array.ndim > 1 else _rows(array, order), examples)
    return _weighed(ordered, order)


def epoch_batch(
    examples: Batch,
    order: Array | None,
    number: ArrayLike,
    *,
    scaling: Scaling | None,
    batch_size: int,
    dtype: np.dtype,
) -> Batch:
    """Return a step's batch, scaled; where the order has −1 for no example, a row of weight 0.

    Args:
        examples: What `in_order` returns of them.
        order: The epoch's order; or None, and the examples are batches (k, B, …).
        number: Which batch.
        scaling: What is left to be done to the inputs.
        batch_size: Rows of the order that a batch has.
        dtype: That of the scaled inputs.

    Returns:
        The batch.
    """
    if order is None:
        taken = jax.tree.map(
            lambda array: jax.lax.dynamic_index_in_dim(array, number, keepdims=False), examples
        )
    else:
        own = partial(
            jax.lax.dynamic_slice,
            start_indices=(number * batch_size,),
            slice_sizes=(batch_size,),
        )
        rows = own(order)
        taken = jax.tree.map(
            lambda array: _rows(array, rows) if array.ndim > 1 else own(array), examples
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


def batches_a_gather(
    network: Network, examples: Batch, order: Array | None, batch_size: int
) -> int:
    """Return for how many steps of one network the rows are best gathered at once.

    XLA spreads a gather of some thousand numbers over a CPU's cores. Where the products are too
    small for that, the other core has gone to sleep since the step before, and waking it takes as
    long as the whole step; so there it is woken for a gather of many batches.
    """
    if order is None or on_a_gpu():
        return 1
    inputs = batch_size * network.sizes[0]
    entries = inputs + batch_size * math.prod(examples.targets.shape[1:])
    if entries > _MOST or inputs < _FEWEST or inputs * network.sizes[1] > _PRODUCT:
        return 1
    return min(_BATCHES, len(order) // batch_size)


def _rows(array: Array, numbers: Array) -> Array:
    # The first row in the place of none: what follows is finite for it, for zeros it need not be.
    return array.at[jnp.maximum(numbers, 0)].get(mode="promise_in_bounds")


def _weighed(batch: Batch, numbers: Array) -> Batch:
    """Return the batch with weight 0 where there is no number."""
    assert batch.weights is not None
    weights = jnp.where(numbers < 0, jnp.zeros_like(batch.weights), batch.weights)
    return batch._replace(weights=weights)
