"""The compiled program: a step along our gradient, and a run of steps over data on the device."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import DTypeLike

from jaxmlp.batch import Batch, mean_gradient
from jaxmlp.evaluation import Sums
from jaxmlp.network import Network, Parameters, cast
from jaxmlp.per_example import squared_norms
from jaxmlp.scaling import Scaling
from jaxmlp.training.batches import (
    block_of,
    epoch_batch,
    late_gradients_pay,
    loop_over_batches,
)
from jaxmlp.training.distributed import Placement
from jaxmlp.training.loops import on_a_gpu
from jaxmlp.training.optimizers import (
    after_a_loop,
    optimizer_named,
    with_numbers,
    within_a_loop,
)
from jaxmlp.training.regularization import (
    Regularization,
    as_columns,
    averaged,
    batch_gradient,
    bounded,
    pass_as_trained,
)


class TrainingState(NamedTuple):
    """What a step changes: parameters, the optimiser's state, and their averaged copy or None.

    The parameters are float32 or wider, also where the products are computed in half precision: a
    small step would be lost on a parameter of 8 or 11 bits.
    """

    params: Parameters
    optimizer_state: Any
    average: Parameters | None = None


def no_sums(dtype: DTypeLike, shape: tuple[int, ...] = ()) -> Sums:
    """Return sums of nothing, on the host."""
    zero: Any = np.zeros(shape, np.promote_types(dtype, np.float32))
    return Sums(zero, zero, zero)


def wide_parameters(params: Parameters) -> Parameters:
    """Return a copy of the parameters in float32, or in their own dtype where that is wider."""
    wide = np.promote_types(params[0].weight.dtype, np.float32)
    return jax.tree.map(lambda leaf: jnp.array(leaf, wide, copy=True), params)


def model_of(state: TrainingState, dtype: DTypeLike) -> Parameters:
    """Return the parameters to predict with: the average where there is one."""
    return cast(state.params if state.average is None else state.average, dtype)


def training_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    state: TrainingState,
    batch: Batch,
    regularization: Regularization = Regularization(),  # noqa: B008 immutable
    *,
    key: Array | None = None,
    count: Array | None = None,
    dtype: DTypeLike | None = None,
    columns: bool = False,
    late: bool = False,
) -> tuple[TrainingState, Sums]:
    """Return the state after one step of the optimiser along our gradient of a batch.

    Args:
        network: The network.
        optimizer: Any of optax's.
        state: The state before it.
        batch: Inputs, targets and weights, all finite.
        regularization: What is done beside the plain step.
        key: For dropout and privacy: draws the masks and the noise.
        count: For the average: the number () of this step, from 0.
        dtype: The dtype of the products, or None for that of the parameters.
        columns: Whether the examples go through the layers as columns.
        late: Whether the gradient of every layer waits for the deltas of all.

    Returns:
        The state; and the sums of `batch_gradient`, before the step.
    """
    params: Any = state.params  # optax's own types name only what its functions return
    gradient: Any
    gradient, sums = batch_gradient(
        network, params, batch, regularization, key, dtype, columns, late
    )
    updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, params)
    moved: Any = optax.apply_updates(params, updates)
    if regularization.max_norm is not None:
        moved = bounded(moved, regularization.max_norm)
    average = state.average
    if average is not None:
        assert regularization.average_forgets is not None and count is not None
        average = averaged(average, moved, regularization.average_forgets, count)
    return TrainingState(moved, optimizer_state, average), sums


def take_steps(
    network: Network,
    state: TrainingState,
    progress: Sums,
    examples: Batch,
    order: Array | None,
    rates: Array,
    regularization: Regularization,
    scaling: Scaling | None,
    key: Array | None,
    place: dict[str, Array],
    *,
    optimizer: tuple[str, bool, bool],
    batch_size: int,
    dtype: np.dtype,
    members: bool = False,
    placement: Placement | None = None,
) -> tuple[TrainingState, Sums]:
    """Return the state after some steps of an epoch, and the figures with theirs added.

    All sizes are data: another number of examples in the same bucket, or another number of steps,
    runs the same program; so an epoch in pieces is bit by bit the epoch in one.

    Args:
        network: The network.
        state: The state before; `run_steps` donates it.
        progress: What to add the figures to; `run_steps` donates it.
        examples: All examples, padded with rows of weight 0; or batches (k, B, …) of some steps.
        order: The examples' numbers in the epoch's order, padded with −1; or None for batches.
        rates: The learning rate of each step of the epoch, or of each batch, padded.
        regularization: What is done beside the plain step.
        scaling: What is left to be done to the inputs.
        key: Draws the masks of dropout and the noise of privacy: the training's.
        place: Numbers (): `first` and `end` of the steps to take, and `before`, the number of steps
            in the epochs before this one (of batches, before the first of them).
        optimizer: The arguments of `optimizer_named`: name, decaying, clipping.
        batch_size: Rows of the order a step; the last step of an epoch takes what is left.
        dtype: The dtype of the products.
        members: Whether the members of an ensemble are mapped over.
        placement: Where several devices take a part of every batch each, or None.
    """
    name, decaying, clipping = optimizer
    transformation = optimizer_named(name, decaying=decaying, clipping=clipping)
    half = dtype if state.params[0].weight.dtype != dtype else None
    alone = not members and placement is None
    columns = members or (alone and as_columns(network, regularization, batch_size, dtype))
    late = alone and regularization.privacy is None and late_gradients_pay(network)
    # On a GPU the three sums are an array: three additions are one kernel then, and the barrier
    # keeps that from being one with the reductions before it, which would be slower than all four.
    as_one = on_a_gpu()

    def step(
        number: Array, batch: Batch, carry: tuple[TrainingState, Any]
    ) -> tuple[TrainingState, Any]:
        state, total = carry
        if placement is not None:
            batch = jax.lax.with_sharding_constraint(batch, placement.parts)
        count = place["before"] + number
        before = state.optimizer_state
        state, sums = training_step(
            network,
            transformation,
            state._replace(optimizer_state=with_numbers(before, {"learning_rate": rates[number]})),
            batch,
            regularization,
            key=None if key is None else jax.random.fold_in(key, count),
            count=count,
            dtype=half,
            columns=columns,
            late=late,
        )
        state = state._replace(optimizer_state=within_a_loop(state.optimizer_state, before))
        if as_one:
            total += jnp.stack(jax.lax.optimization_barrier(sums))
        else:
            total = jax.tree.map(jnp.add, total, sums)
        result = state, total
        if placement is not None:
            result = jax.lax.with_sharding_constraint(result, placement.copies)
        return result

    state, total = loop_over_batches(
        network,
        examples,
        order,
        step,
        (state, jnp.stack(progress) if as_one else progress),
        first=place["first"],
        end=place["end"],
        scaling=scaling,
        batch_size=batch_size,
        dtype=dtype,
        alone=alone,
    )
    first, end = place["first"], place["end"]
    last = {"learning_rate": rates[jnp.maximum(end - 1, 0)]}
    optimizer_state = after_a_loop(state.optimizer_state, end - first, last)
    return state._replace(optimizer_state=optimizer_state), Sums(*total)


run_steps = partial(
    jax.jit,
    static_argnames=("optimizer", "batch_size", "dtype", "placement"),
    donate_argnames=("state", "progress"),
)(take_steps)


@partial(jax.jit, static_argnames=("batch_size", "dtype", "placement"))
def gradient_figures(
    network: Network,
    params: Parameters,
    examples: Batch,
    order: Array | None,
    regularization: Regularization,
    scaling: Scaling | None,
    key: Array | None,
    before: Array,
    *,
    batch_size: int,
    dtype: np.dtype,
    placement: Placement | None = None,
) -> dict[str, Array]:
    """Return figures () of the gradient of an epoch's first batch, as trained, before any clipping.

    `gradient_norm`, that of the mean gradient; and with privacy `clipped_fraction`, the part of the
    batch whose gradients are clipped. Taken once an epoch, with the parameters at its end: in the
    loop they would cost up to 8 % of a step. The arguments are those of `run_steps`, with `before`
    of its place.
    """
    block = block_of(examples, order, 0, 1, batch_size=batch_size)
    batch = epoch_batch(block, 0, scaling=scaling, batch_size=batch_size, dtype=dtype)
    if key is not None:
        key = jax.random.fold_in(key, before)
    half = dtype if params[0].weight.dtype != dtype else None
    # As in the steps: products of one form only are set up once in a process.
    columns = placement is None and as_columns(network, regularization, batch_size, dtype)
    result = pass_as_trained(network, params, batch, regularization, key, half, columns)
    gradient = mean_gradient(network, params, result, batch.weights, columns=columns)
    figures = {"gradient_norm": optax.tree.norm(gradient)}
    if regularization.privacy is not None:
        assert batch.weights is not None
        counted = batch.weights > 0
        clipped = squared_norms(params, result) > jnp.square(regularization.privacy.clip_norm)
        share = jnp.sum(clipped & counted) / jnp.maximum(jnp.sum(counted), 1)
        figures["clipped_fraction"] = share
    return figures
