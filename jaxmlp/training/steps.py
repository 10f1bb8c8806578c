"""The compiled program: a step along our gradient, and a run of steps over data on the device."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import DTypeLike

from jaxmlp.batch import Batch, Pass, mean_gradient, pass_batch
from jaxmlp.evaluation import Sums, batch_sums
from jaxmlp.gradients import squared_norms
from jaxmlp.losses import smooth
from jaxmlp.network import Layer, Network, Parameters
from jaxmlp.privacy.gradient import noised_mean
from jaxmlp.scaling import Scaling
from jaxmlp.training.batches import (
    Block,
    batches_a_gather,
    block_of,
    columns_pay,
    epoch_batch,
    some_batches,
)
from jaxmlp.training.distributed import Placement
from jaxmlp.training.loops import loop_in_blocks, loop_over, on_a_gpu
from jaxmlp.training.optimizers import optimizer_named, with_numbers

_NOISE = 2**31  # folded into a step's key for its noise; the masks take the layers' numbers


class TrainingState(NamedTuple):
    """What a step changes: parameters, the optimiser's state, and their averaged copy or None.

    The parameters are float32 or wider, also where the products are computed in half precision: a
    small step would be lost on a parameter of 8 or 11 bits.
    """

    params: Parameters
    optimizer_state: Any
    average: Parameters | None = None


class Privacy(NamedTuple):
    """The numbers () of a private step: C, σ, and the expected batch size to divide by."""

    clip_norm: Array
    noise_multiplier: Array
    expected_batch_size: Array


class Regularization(NamedTuple):
    """What is done beside the plain step, each a number () and data, or None where it is not done.

    `dropout` has a rate for the inputs and for each hidden layer. `max_norm` bounds the norm of
    the incoming weights of every hidden unit. `average_forgets` is 1 − d for the averaged
    parameters' decay d, which would round to 1 itself. `privacy` clips every example's gradient and
    adds noise to their sum. `units` has an array (n_l,) for each hidden layer, 1 for the units that
    are there and 0 for those that are not: so a network trains as a narrower one.
    """

    label_smoothing: Array | None = None
    dropout: tuple[Array | None, ...] | None = None
    max_norm: Array | None = None
    average_forgets: Array | None = None
    privacy: Privacy | None = None
    units: tuple[Array, ...] | None = None


def no_sums(dtype: DTypeLike, shape: tuple[int, ...] = ()) -> Sums:
    """Return sums of nothing, on the host."""
    zero: Any = np.zeros(shape, np.promote_types(dtype, np.float32))
    return Sums(zero, zero, zero)


def wide_parameters(params: Parameters) -> Parameters:
    """Return a copy of the parameters in float32, or in their own dtype where that is wider."""
    wide = np.promote_types(params[0].weight.dtype, np.float32)
    return jax.tree.map(lambda leaf: jnp.array(leaf, wide, copy=True), params)


def cast(params: Parameters, dtype: DTypeLike) -> Parameters:
    """Return the parameters in another dtype."""
    return jax.tree.map(lambda leaf: leaf if leaf.dtype == dtype else leaf.astype(dtype), params)


def model_of(state: TrainingState, dtype: DTypeLike) -> Parameters:
    """Return the parameters to predict with: the average where there is one."""
    return cast(state.params if state.average is None else state.average, dtype)


def batch_gradient(
    network: Network,
    params: Parameters,
    batch: Batch,
    regularization: Regularization,
    key: Array | None,
    dtype: DTypeLike | None,
    columns: bool = False,
) -> tuple[Parameters, Sums]:
    """Return our gradient of the mean loss of a batch as trained, like `params`, and its figures.

    With privacy it is the clipped and noised one of `jaxmlp.private_gradient`. The figures are
    those of the parameters before any step, with the targets as trained for the loss, and the masks
    as drawn. The examples are known to be finite, also those of weight 0.
    """
    result = pass_as_trained(network, params, batch, regularization, key, dtype, columns)
    gradient = gradient_of_pass(network, params, result, batch.weights, regularization, key)
    return gradient, batch_sums(network, result.trace.preactivations[-1], result.losses, batch)


def gradient_of_pass(
    network: Network,
    params: Parameters,
    result: Pass,
    weights: Array | None,
    regularization: Regularization,
    key: Array | None,
) -> Parameters:
    """Return the gradient of `batch_gradient` from the pass over its batch, like `params`."""
    if regularization.privacy is None:
        return mean_gradient(network, params, result, weights)
    assert key is not None
    noise_key = jax.random.fold_in(key, _NOISE)
    return noised_mean(
        network, params, result, *regularization.privacy, noise_key, finite_rows=True
    )[0]


def pass_as_trained(
    network: Network,
    params: Parameters,
    batch: Batch,
    regularization: Regularization,
    key: Array | None,
    dtype: DTypeLike | None,
    columns: bool = False,
) -> Pass:
    """Return the pass over a batch with smoothed targets and with masks, where there are any.

    Its examples go through the layers as rows or as `columns`, see `columns_pay`.
    """
    computed = params if dtype is None else cast(params, dtype)
    trained = batch
    if regularization.label_smoothing is not None:
        wide = np.promote_types(computed[0].weight.dtype, np.float32)
        blank = jnp.zeros((len(batch.inputs), network.sizes[-1]), wide)
        mixed = jax.vmap(smooth, (None, 0, 0, None))(
            network.loss, blank, batch.targets, regularization.label_smoothing
        )
        trained = batch._replace(targets=mixed)
    masks: list[Array | None] = [None] * len(network.activations)
    if regularization.dropout is not None:
        assert key is not None
        drawn = draw_masks(network, regularization.dropout, key, len(batch.inputs))
        first, masks = drawn[0], drawn[1:]
        if first is not None:
            trained = trained._replace(inputs=trained.inputs * first)
    if regularization.units is not None:
        shape = len(batch.inputs), 1
        masks = [
            jnp.tile(there, shape) if mask is None else mask * there[None, :]
            for mask, there in zip(masks, regularization.units, strict=True)
        ]
    return pass_batch(network, computed, trained, finite_rows=True, masks=masks, columns=columns)


def draw_masks(
    network: Network, rates: tuple[Array | None, ...], key: Array, n_examples: int
) -> list[Array | None]:
    """Return a scaled mask (N, n) for the inputs and for each hidden layer; None for a rate None.

    An entry is 0 with the layer's rate p, to 16 bits, and else 1/(1 − p): the mean is 1.

    References:
        Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, Dropout, 2014 (with the scale at
        training time instead of at test time).
    """
    masks: list[Array | None] = []
    for number, (rate, size) in enumerate(zip(rates, network.sizes[:-1], strict=True)):
        if rate is None:
            masks.append(None)
            continue
        # Two entries from each word of 32 bits: drawing them is most of what dropout costs.
        words = jax.random.bits(
            jax.random.fold_in(key, number), (n_examples, (size + 1) // 2), jnp.uint32
        )
        bits = jax.lax.bitcast_convert_type(words, jnp.uint16)
        bits = jnp.reshape(bits, (n_examples, -1))[:, :size]
        dropped = jnp.round(rate * 65536)
        scale = 65536 / (65536 - dropped)
        masks.append(jnp.where(bits < dropped.astype(jnp.uint16), jnp.zeros_like(scale), scale))
    return masks


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

    Returns:
        The state; and the sums of `batch_gradient`, before the step.
    """
    params: Any = state.params  # optax's own types name only what its functions return
    gradient: Any
    gradient, sums = batch_gradient(network, params, batch, regularization, key, dtype, columns)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, params)
    moved: Any = optax.apply_updates(params, updates)
    if regularization.max_norm is not None:
        moved = bounded(moved, regularization.max_norm)
    average = state.average
    if average is not None:
        assert regularization.average_forgets is not None and count is not None
        average = averaged(average, moved, regularization.average_forgets, count)
    return TrainingState(moved, optimizer_state, average), sums


def bounded(params: Parameters, max_norm: Array) -> Parameters:
    """Return the parameters with ‖W_u‖ ≤ max_norm for every unit u of every hidden layer.

    References:
        Srebro, Shraibman, Rank, trace-norm and max-norm, 2005; Srivastava et al. 2014, section 5.1.
    """

    def rows(layer: Layer) -> Layer:
        norms = jnp.sqrt(jnp.sum(jnp.square(layer.weight), axis=1, keepdims=True))
        return layer._replace(
            weight=layer.weight * jnp.minimum(1, max_norm / jnp.maximum(norms, max_norm / 2))
        )

    return (*(rows(layer) for layer in params[:-1]), params[-1])


def averaged(average: Parameters, params: Parameters, forgets: Array, count: Array) -> Parameters:
    """Return the exponential average of all parameters so far, Σ d^(t−i) p_i / Σ d^(t−i).

    With `forgets` = 1 − d, however small: the mean of all of them where d is as good as 1.

    Divided by its sum of weights at every step, it owes nothing to where it began.
    """
    steps = count.astype(forgets.dtype) + 1
    share = forgets / -jnp.expm1(steps * jnp.log1p(-forgets))
    return jax.tree.map(
        lambda old, new: old + share.astype(old.dtype) * (new - old), average, params
    )


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
    columns = members or (
        placement is None
        and regularization.privacy is None
        and columns_pay(network, batch_size, dtype)
    )
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
        state, sums = training_step(
            network,
            transformation,
            state._replace(
                optimizer_state=with_numbers(
                    state.optimizer_state, {"learning_rate": rates[number]}
                )
            ),
            batch,
            regularization,
            key=None if key is None else jax.random.fold_in(key, count),
            count=count,
            dtype=half,
            columns=columns,
        )
        if as_one:
            total += jnp.stack(jax.lax.optimization_barrier(sums))
        else:
            total = jax.tree.map(jnp.add, total, sums)
        result = state, total
        if placement is not None:
            result = jax.lax.with_sharding_constraint(result, placement.copies)
        return result

    span = place["first"], place["end"]
    batch_of = partial(epoch_batch, scaling=scaling, batch_size=batch_size, dtype=dtype)
    begin = state, jnp.stack(progress) if as_one else progress
    alone = not members and placement is None
    size = batches_a_gather(network, examples, order, batch_size) if alone else 1
    if order is None or size <= 1:
        state, total = loop_over(
            *span,
            partial(block_of, examples, order, batch_size=batch_size),
            lambda number, block, carry: step(number, batch_of(block, number), carry),
            begin,
        )
    else:
        state, total = loop_in_blocks(
            *span,
            size,
            partial(some_batches, examples, order, count=size, batch_size=batch_size),
            lambda number, batches, carry: step(
                number, batch_of(Block(batches, None, 0), number % size), carry
            ),
            begin,
        )
    return state, Sums(*total)


run_steps = partial(
    jax.jit,
    static_argnames=("optimizer", "batch_size", "dtype", "placement"),
    donate_argnames=("state", "progress"),
)(take_steps)


@partial(jax.jit, static_argnames=("batch_size", "dtype"))
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
    result = pass_as_trained(network, params, batch, regularization, key, half)
    gradient = mean_gradient(network, params, result, batch.weights)
    figures = {"gradient_norm": optax.tree.norm(gradient)}
    if regularization.privacy is not None:
        assert batch.weights is not None
        counted = batch.weights > 0
        clipped = squared_norms(params, result) > jnp.square(regularization.privacy.clip_norm)
        share = jnp.sum(clipped & counted) / jnp.maximum(jnp.sum(counted), 1)
        figures["clipped_fraction"] = share
    return figures
