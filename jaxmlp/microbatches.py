"""Sums over the examples of a batch, of some at a time: for what does not fit into memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxmlp.batch import Batch


def _sum(first: Any, second: Any) -> Any:
    return jax.tree.map(jnp.add, first, second)


def sum_over_microbatches(
    total: Callable[..., Any],
    batch: Batch,
    size: int | None,
    *rows: Array,
    add: Callable[[Any, Any], Any] = _sum,
) -> Any:
    """Return total(batch, *rows), a tree of sums over the examples, from `size` of them at a time.

    Args:
        total: A sum over the rows of a batch: what it makes of rows of weight 0 is 0.
        batch: The whole batch.
        size: Rows at a time, or None for all.
        rows: Further arrays (N, …) to be cut in the same way.
        add: What makes one of the trees of two parts; of zeros and another it makes the other.
    """
    n_examples = len(batch.inputs)
    if size is None or n_examples <= size:
        return total(batch, *rows)
    if batch.weights is None:
        wide = np.promote_types(batch.inputs.dtype, np.float32)
        wide = wide if jnp.issubdtype(wide, jnp.floating) else np.dtype(np.float32)
        batch = batch._replace(weights=jnp.ones(n_examples, wide))
    pieces = cut((batch, *rows), size)
    shapes = jax.eval_shape(lambda piece: total(*piece), jax.tree.map(lambda leaf: leaf[0], pieces))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def step(carry: Any, piece: Any) -> tuple[Any, None]:
        return add(carry, total(*piece)), None

    return jax.lax.scan(step, nothing, pieces)[0]


def cut(rows: Any, size: int) -> Any:
    """Return a tree of arrays (N, …) as (pieces, size, …), the last piece filled up with 0."""

    def cut_leaf(leaf: Array) -> Array:
        n_pieces = -(-len(leaf) // size)
        filled = jnp.pad(leaf, [(0, n_pieces * size - len(leaf))] + [(0, 0)] * (leaf.ndim - 1))
        return jnp.reshape(filled, (n_pieces, size, *leaf.shape[1:]))

    return jax.tree.map(cut_leaf, rows)


def check_microbatch_size(size: int | None) -> None:
    """Raise ValueError or TypeError unless the size is None or an integer of at least 1."""
    if size is None:
        return
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)):
        raise TypeError(f"microbatch_size: expected an integer or None, got {size!r}")
    if size < 1:
        raise ValueError(f"microbatch_size: expected at least 1, got {size}")
