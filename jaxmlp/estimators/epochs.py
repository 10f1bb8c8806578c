"""The compiled epochs of an estimator: scikit-learn's updates along our gradient.

A step on a batch of B rows minimises what scikit-learn's does, with weights w and layers W,

    Σ w_n E_n / Σ w_n + α ‖W‖² / (2 Σ w_n)

and an epoch's loss is the mean of that over its batches by their rows, each before its step.
Several epochs run in one program, which stops by itself when the loss no longer improves. All
numbers are data, so that neither another one nor another N in the same bucket compiles anything.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.scipy.special import xlogy

from jaxmlp.batch import Batch, safe_divide, weighted_sum
from jaxmlp.estimators.solvers import Solver
from jaxmlp.losses import LOSSES
from jaxmlp.network import Layer, Network, Parameters
from jaxmlp.training.batches import loop_over_batches
from jaxmlp.training.regularization import (
    Regularization,
    as_columns,
    gradient_of_pass,
    pass_as_trained,
)

_ROWS_AT_ONCE = 2**15  # of the orders of the epochs that one call runs
_EPOCHS_AT_ONCE = 16


class Progress(NamedTuple):
    """What an epoch changes.

    `idle` counts the epochs in which the loss was not better by `tol`; `squares` is Σ ‖W‖² of the
    parameters.
    """

    params: Parameters
    optimizer_state: Any
    steps: Any
    best_loss: Any
    idle: Any
    squares: Any


def reported_losses(network: Network, logits: Array, losses: Array, targets: Array) -> Array:
    """Return the losses of the examples (N,) as scikit-learn reports them, from ours.

    Of squared errors it takes the mean over the outputs, half the deviance for Poisson, and a
    cross-entropy with probabilities of at least the dtype's epsilon: 36.04 at most in float64.
    """
    if network.loss == "squared_error":
        return losses / network.sizes[-1]
    if network.loss == "poisson":
        return losses + jnp.sum(xlogy(targets, targets) - targets, axis=1)
    most = -np.log(jnp.finfo(losses.dtype).eps)
    if network.loss == "sigmoid_binary_cross_entropy" and network.sizes[-1] > 1:
        of_outputs = jax.vmap(jax.vmap(LOSSES[network.loss].value))
        each = of_outputs(logits[..., None], targets[..., None])
        return jnp.sum(jnp.minimum(each, most), axis=1)
    return jnp.minimum(losses, most)


def penalized(
    network: Network,
    params: Parameters,
    batch: Batch,
    alpha: Array,
    regularization: Regularization = Regularization(),  # noqa: B008 immutable
    key: Array | None = None,
    columns: bool = False,
    squares: Array | None = None,
    total: Array | None = None,
) -> tuple[Array, Parameters]:
    """Return the penalised loss of a batch, as scikit-learn reports it, and the gradient of ours.

    They differ by what `reported_losses` says. Of a batch without weight both are 0. The examples
    go through the layers as rows or as `columns`. `squares` are those of `squared_weights`, and
    `total` is Σ w_n (), where they are known.
    """
    assert batch.weights is not None
    result = pass_as_trained(network, params, batch, regularization, key, None, columns)
    gradient = gradient_of_pass(
        network, params, result, batch.weights, regularization, key, columns=columns, total=total
    )
    losses = result.losses
    if regularization.label_smoothing is None:
        logits = result.trace.preactivations[-1]
        losses = reported_losses(network, logits, losses, batch.targets)
    share = safe_divide(1, jnp.sum(batch.weights) if total is None else total)
    if regularization.privacy is not None:  # as its mean: the batch's own size is private
        share = 1 / regularization.privacy.expected_batch_size
    if squares is None:
        squares = squared_weights(params)
    data = weighted_sum(losses, batch.weights)
    layers = (
        Layer(own.weight + alpha * share * layer.weight, own.bias)
        for own, layer in zip(gradient, params, strict=True)
    )
    return share * (data + alpha * (squares / 2)), tuple(layers)


def squared_weights(params: Parameters) -> Array:
    """Return Σ ‖W‖² () over the layers."""
    total: Any = sum(jnp.sum(layer.weight**2) for layer in params)
    return total


def run_epoch(
    network: Network,
    progress: Progress,
    examples: Batch,
    order: Array,
    numbers: dict[str, Any],
    regularization: Regularization,
    key: Array | None,
    *,
    solver: Solver,
    batch_size: int,
    members: bool = False,
) -> tuple[Progress, Array]:
    """Return the progress after one epoch in this order (rows,), and its loss ().

    In private training, whose batches are filled up anywhere, the loss is that of nothing.
    Little is computed beside the products, and of that much by the host, before: XLA makes a kernel
    of every number that a step needs, and compiling one takes as long as dozens of steps.
    """
    dtype = np.dtype(progress.params[0].weight.dtype)
    columns = members or as_columns(network, regularization, batch_size, dtype)

    def step(place: Any, batch: Batch, carry: Any) -> Any:
        params, optimizer_state, total, squares = carry
        steps = progress.steps + place
        own = None if key is None else jax.random.fold_in(key, steps)
        rows = jnp.clip(numbers["n_examples"] - place * batch_size, 0, batch_size).astype(dtype)
        loss, gradient = penalized(
            network, params, batch, numbers["alpha"], regularization, own, columns, squares,
            rows if examples.weights is None else None,
        )  # fmt: skip
        updates, optimizer_state = solver.update(gradient, optimizer_state, params, numbers, steps)
        moved: Any = optax.apply_updates(params, updates)
        # Squares of the new weights: those of the old ones would have XLA keep a copy of them.
        return moved, optimizer_state, total + loss * rows, squared_weights(moved)

    begin = (progress.params, progress.optimizer_state, jnp.zeros((), dtype), progress.squares)
    params, optimizer_state, total, squares = loop_over_batches(
        network, examples, order, step, begin, first=0, end=numbers["steps"], scaling=None,
        batch_size=batch_size, dtype=dtype, alone=not members,
    )  # fmt: skip
    steps = progress.steps + numbers["steps"]
    loss = total * numbers["1 / n_examples"]
    idle = jnp.where(loss > progress.best_loss - numbers["tol"], progress.idle + 1, 0)
    best_loss = jax.lax.select(loss < progress.best_loss, loss, progress.best_loss)  # if a number
    return Progress(params, optimizer_state, steps, best_loss, idle, squares), loss


@partial(jax.jit, static_argnames=("solver", "batch_size"))
def run_epochs(
    network: Network,
    progress: Progress,
    examples: Batch,
    orders: Array,
    numbers: dict[str, Any],
    regularization: Regularization,
    key: Array | None,
    *,
    solver: Solver,
    batch_size: int,
) -> tuple[Progress, Array, Array]:
    """Return the progress after some epochs, their losses (E,), and how many were run.

    Args:
        network: The network.
        progress: What was reached before.
        examples: All examples, padded with rows of weight 0; weights of None are 1.
        orders: (E, rows) of the examples' numbers, each row padded with −1 at its end; in private
            training, whose examples have weights, anywhere.
        numbers: `epochs` to run, at most E, of `steps` each; `n_examples` and its inverse; `tol`,
            and the number `patience` of idle epochs after which no other is begun; `alpha`; the
            solver's own.
        regularization: Dropout, smoothing and privacy.
        key: Draws the masks of dropout and the noise of privacy.
        solver: The rule.
        batch_size: Rows of an order a step.
    """

    def epoch(carry: Any) -> Any:
        progress, losses, number = carry
        order = jax.lax.dynamic_index_in_dim(orders, number, keepdims=False)
        progress, loss = run_epoch(
            network, progress, examples, order, numbers, regularization, key,
            solver=solver, batch_size=batch_size,
        )  # fmt: skip
        return progress, jax.lax.dynamic_update_index_in_dim(losses, loss, number, 0), number + 1

    def going_on(carry: Any) -> Any:
        progress, _, number = carry
        # One at least: a warm start may begin with more idle epochs than there are to be.
        wanted = (number == 0) | (progress.idle <= numbers["patience"])
        return (number < numbers["epochs"]) & wanted

    losses = jnp.full(len(orders), jnp.nan, progress.params[0].weight.dtype)
    return jax.lax.while_loop(going_on, epoch, (progress, losses, jnp.zeros((), np.int32)))


@partial(jax.jit, static_argnames=("solver", "batch_size"))
def run_side_by_side(
    network: Network,
    progress: Progress,
    examples: Batch,
    orders: Array,
    numbers: dict[str, Any],
    regularization: Regularization,
    keys: Array | None,
    live: Array,
    *,
    solver: Solver,
    batch_size: int,
) -> tuple[Progress, Array, Array]:
    """Return the progress of S fits after some epochs, their losses (E, S), and how many were run.

    They end where the first of the live ones is to stop, so that none is computed along in vain.

    Args:
        network: The network of all.
        progress: What was reached before, every leaf (S, …).
        examples: The inputs (N, D) for all; the targets (S, N, …) and weights (S, N) of each.
        orders: (E, S, rows), as of `run_epochs`.
        numbers: As of `run_epochs`: `epochs` and `steps` for all, the others (S,).
        regularization: Every leaf (S,).
        keys: (S,) or None.
        live: (S,) whether there is a fit; what is beside them is computed along.
        solver: The rule.
        batch_size: Rows of an order a step.
    """
    shared = {"epochs": None, "steps": None}
    run = partial(run_epoch, network, solver=solver, batch_size=batch_size, members=True)
    own: Any = Batch(None, 0, 0)  # pyright: ignore
    each = jax.vmap(run, (0, own, 0, {name: shared.get(name, 0) for name in numbers}, 0, 0))

    def epoch(carry: Any) -> Any:
        progress, losses, number = carry
        order = jax.lax.dynamic_index_in_dim(orders, number, keepdims=False)
        progress, loss = each(progress, examples, order, numbers, regularization, keys)
        return progress, jax.lax.dynamic_update_index_in_dim(losses, loss, number, 0), number + 1

    def going_on(carry: Any) -> Any:
        progress, _, number = carry
        stopping = jnp.any(live & (progress.idle > numbers["patience"]))
        return (number < numbers["epochs"]) & ((number == 0) | ~stopping)

    losses = jnp.full(orders.shape[:2], jnp.nan, progress.params[0].weight.dtype)
    return jax.lax.while_loop(going_on, epoch, (progress, losses, jnp.zeros((), np.int32)))


def epochs_at_once(rows: int) -> int:
    """Return how many epochs' orders of so many rows one call takes."""
    return max(1, min(_EPOCHS_AT_ONCE, _ROWS_AT_ONCE // rows))


def padded_orders(orders: list[np.ndarray], rows: int, at_once: int) -> np.ndarray:
    """Return the orders of some epochs as (at_once, rows), padded with −1."""
    result = np.full((at_once, rows), -1, np.int32)
    for number, order in enumerate(orders):
        result[number, : len(order)] = order
    return result
