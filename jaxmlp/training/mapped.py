"""The compiled programs of one training, mapped over the members of an ensemble."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxmlp.batch import Batch
from jaxmlp.evaluation import Sums, chunk_sums
from jaxmlp.network import Network, Parameters
from jaxmlp.scaling import Scaling
from jaxmlp.training.regularization import Regularization
from jaxmlp.training.snapshots import first_state
from jaxmlp.training.steps import TrainingState, take_steps


@partial(
    jax.jit,
    static_argnames=("optimizer", "batch_size", "dtype"),
    donate_argnames=("state", "progress"),
)
def run_members(
    network: Network,
    state: TrainingState,
    progress: Sums,
    examples: Batch,
    order: Array,
    rates: Array,
    regularization: Regularization,
    scaling: Scaling | None,
    key: Array | None,
    place: dict[str, Array],
    *,
    optimizer: tuple[str, bool, bool],
    batch_size: int,
    dtype: np.dtype,
) -> tuple[TrainingState, Sums]:
    """Return the states after some steps of an epoch, and the figures with theirs added.

    The arguments are those of `take_steps` with a leading axis M on every leaf of `state`,
    `progress`, `rates` and `regularization`, and on `order` and `key` where each member has its
    own.
    """
    own_order = 0 if order.ndim == 2 else None
    own_key = 0 if key is not None and key.ndim == 1 else None
    run = partial(take_steps, optimizer=optimizer, batch_size=batch_size, dtype=dtype, members=True)
    return jax.vmap(run, (None, 0, 0, None, own_order, 0, 0, None, own_key, None))(
        network, state, progress, examples, order, rates, regularization, scaling, key, place
    )


@jax.jit
def members_sums(
    network: Network, params: Parameters, scaling: Scaling | None, batch: Batch
) -> Sums:
    """Return the sums of a prepared chunk for every member, each (M,)."""
    return jax.vmap(chunk_sums, (None, 0, None, None))(network, params, scaling, batch)


@jax.jit  # unlike that of one network: all members' parameters are too many for the host
def largest_of_members(params: Parameters) -> Array:
    """Return the largest absolute parameter of every member, (M,), NaN where there is one."""

    def of_member(leaf: Array) -> Array:
        return jnp.max(jnp.abs(leaf), axis=tuple(range(1, leaf.ndim)))

    return jnp.max(jnp.stack([of_member(leaf) for leaf in jax.tree.leaves(params)]), axis=0)


@partial(jax.jit, static_argnames=("optimizer", "averaging"))
def first_states(
    params: Parameters, *, optimizer: tuple[str, bool, bool], averaging: bool
) -> TrainingState:
    """Return the states before any step, every leaf (M, …)."""
    return jax.vmap(partial(first_state, optimizer=optimizer, averaging=averaging))(params)


@jax.jit
def chosen(which: Array, new: Any, old: Any) -> Any:
    """Return the leaves (M, …) of `new` for the members that `which` (M,) tells, or of `old`."""

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(jnp.reshape(which, (-1,) + (1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, new, old)


@jax.jit
def taken(tree: Any, members: ArrayLike) -> Any:
    """Return some members of a tree of leaves (M, …)."""
    return jax.tree.map(lambda leaf: leaf[members], tree)
