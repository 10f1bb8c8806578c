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
from jaxmlp.evaluation import padded_batch
from jaxmlp.losses import LOSSES
from jaxmlp.network import Layer, Network, Parameters
from jaxmlp.training.optimizers import OPTIMIZERS, optimizer_named, with_numbers
from jaxmlp.training.steps import Regularization, epoch_batch, gradient_of_pass, pass_as_trained

_ROWS_AT_ONCE = 2**15  # of the orders of the epochs that one call runs
_EPOCHS_AT_ONCE = 16


class Solver(NamedTuple):
    """What is compiled in: "sgd", "adam", a name of `OPTIMIZERS`, or a transformation of optax.

    "sgd" and "adam" are scikit-learn's: the momentum is of steps, the learning rate included, and
    ε is added to the root of the second moment as it is, not corrected for its bias.
    """

    rule: str | optax.GradientTransformation
    nesterov: bool = True

    def transformation(self, numbers: dict[str, Any], steps: Any) -> optax.GradientTransformation:
        """Return the transformation with its numbers, for the step after so many."""
        if self.rule == "sgd":
            momentum = optax.trace(numbers["momentum"], nesterov=self.nesterov)
            return optax.chain(optax.scale(-1 * numbers["learning_rate"]), momentum)
        if self.rule == "adam":
            return adam(numbers, steps)
        return optimizer_named(self.rule) if isinstance(self.rule, str) else self.rule

    def init(self, params: Parameters) -> Any:
        """Return the optimiser's first state."""
        numbers: dict[str, Any] = dict.fromkeys(
            ("learning_rate", "momentum", "beta_1", "beta_2", "epsilon"), 0.5
        )

        def first(params: Any) -> Any:
            return self.transformation(numbers, 0).init(params)

        if self.rule not in ("sgd", "adam"):
            return first(params)
        # Zeros of these shapes, on the host: computing them would compile eight small programs.
        shapes = jax.eval_shape(first, params)
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

    def update(self, gradient: Any, state: Any, params: Any, numbers: Any, steps: Any) -> Any:
        """Return what to add to the parameters, and the state after it."""
        if self.rule in OPTIMIZERS and self.rule not in ("sgd", "adam"):
            state = with_numbers(state, {"learning_rate": numbers["learning_rate"]})
        return self.transformation(numbers, steps).update(gradient, state, params)


class Moments(NamedTuple):
    """The state of `adam`: running means of the gradient and of its square."""

    first: Parameters
    second: Parameters


def adam(numbers: dict[str, Any], steps: Any) -> optax.GradientTransformation:
    """Return scikit-learn's Adam: the bias of both moments is corrected in the learning rate.

    ε is then relative to the uncorrected second moment, unlike in `optax.adam`; and an element
    takes one division and one root.
    """
    beta_1, beta_2 = numbers["beta_1"], numbers["beta_2"]
    rate = numbers["learning_rate"] * jnp.sqrt(1 - beta_2 ** (steps + 1))
    rate = rate / (1 - beta_1 ** (steps + 1))

    def init(params: Any) -> Any:
        return Moments(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        first = optax.tree.update_moment(updates, state.first, beta_1, 1)
        second = optax.tree.update_moment(updates, state.second, beta_2, 2)

        def change(first: Array, second: Array) -> Array:
            return -rate * first / (jnp.sqrt(second) + numbers["epsilon"])

        return jax.tree.map(change, first, second), Moments(first, second)

    return optax.GradientTransformation(init, update)


class Progress(NamedTuple):
    """What an epoch changes. `idle` counts the epochs in which the loss was not better by `tol`."""

    params: Parameters
    optimizer_state: Any
    steps: Any
    best_loss: Any
    idle: Any


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
) -> tuple[Array, Parameters]:
    """Return the penalised loss of a batch, as scikit-learn reports it, and the gradient of ours.

    They differ by what `reported_losses` says. Of a batch without weight both are 0.
    """
    assert batch.weights is not None
    result = pass_as_trained(network, params, batch, regularization, key, None)
    gradient = gradient_of_pass(network, params, result, batch.weights, regularization, key)
    losses = result.losses
    if regularization.label_smoothing is None:
        logits = result.trace.preactivations[-1]
        losses = reported_losses(network, logits, losses, batch.targets)
    share = safe_divide(1, jnp.sum(batch.weights))
    if regularization.privacy is not None:  # as its mean: the batch's own size is private
        share = 1 / regularization.privacy.expected_batch_size
    squares = sum(jnp.sum(layer.weight**2) for layer in params)
    data = weighted_sum(losses, batch.weights)
    layers = (
        Layer(own.weight + alpha * share * layer.weight, own.bias)
        for own, layer in zip(gradient, params, strict=True)
    )
    return share * (data + alpha / 2 * squares), tuple(layers)


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
        examples: All examples, padded with rows of weight 0.
        orders: (E, rows) of the examples' numbers, each row padded with −1.
        numbers: `epochs` to run, at most E, of `steps` each; `tol`, and the number `patience` of
            idle epochs after which no other is begun; `alpha`; the solver's own.
        regularization: Dropout, smoothing and privacy.
        key: Draws the masks of dropout and the noise of privacy.
        solver: The rule.
        batch_size: Rows of an order a step.
    """
    dtype = np.dtype(progress.params[0].weight.dtype)

    def epoch(carry: Any) -> Any:
        progress, losses, number = carry

        def step(place: Any, carry: Any) -> Any:
            params, optimizer_state, steps, total = carry
            order = orders[number]
            batch = epoch_batch(examples, order, place, None, batch_size=batch_size, dtype=dtype)
            own = None if key is None else jax.random.fold_in(key, steps)
            loss, gradient = penalized(
                network, params, batch, numbers["alpha"], regularization, own
            )
            updates, optimizer_state = solver.update(
                gradient, optimizer_state, params, numbers, steps
            )
            rows = jax.lax.dynamic_slice(order, (place * batch_size,), (batch_size,))
            total += loss * jnp.sum(rows >= 0)
            moved: Any = optax.apply_updates(params, updates)
            return moved, optimizer_state, steps + 1, total

        begin = (*progress[:3], jnp.zeros((), dtype))
        params, optimizer_state, steps, total = jax.lax.fori_loop(0, numbers["steps"], step, begin)
        loss = total / numbers["n_examples"]
        idle = jnp.where(loss > progress.best_loss - numbers["tol"], progress.idle + 1, 0)
        best_loss = jnp.fmin(loss, progress.best_loss)
        progress = Progress(params, optimizer_state, steps, best_loss, idle)
        return progress, losses.at[number].set(loss), number + 1

    def going_on(carry: Any) -> Any:
        progress, _, number = carry
        # One at least: a warm start may begin with more idle epochs than there are to be.
        wanted = (number == 0) | (progress.idle <= numbers["patience"])
        return (number < numbers["epochs"]) & wanted

    losses = jnp.full(len(orders), jnp.nan, dtype)
    return jax.lax.while_loop(going_on, epoch, (progress, losses, jnp.zeros((), int)))


def epochs_at_once(rows: int) -> int:
    """Return how many epochs' orders of so many rows one call takes."""
    return max(1, min(_EPOCHS_AT_ONCE, _ROWS_AT_ONCE // rows))


@jax.jit
def _whole(
    network: Network, params: Parameters, examples: Batch, alpha: Array
) -> tuple[Array, Parameters]:
    return penalized(network, params, examples, alpha)


class Packed:
    """The penalised loss of all examples as a function of one vector, as SciPy's solvers want it.

    The vector holds the weights (n_in, n_out) of every layer, then the biases, as scikit-learn's.
    """

    def __init__(
        self,
        network: Network,
        params: Parameters,
        examples: tuple[np.ndarray, np.ndarray, np.ndarray],
        alpha: float,
    ) -> None:
        self.network, self.like = network, params
        n_examples = len(examples[0])
        step = max(64, 1 << max(0, n_examples.bit_length() - 4))  # little padding
        rows = -(-n_examples // step) * step
        self.examples = jax.device_put(padded_batch(*examples, rows))
        self.alpha = jax.device_put(np.asarray(alpha, params[0].weight.dtype))

    def pack(self, params: Parameters) -> np.ndarray:
        """Return parameters, or a gradient, as one vector in float64."""
        layers = jax.device_get(params)
        parts = [np.asarray(layer.weight).T.ravel() for layer in layers]
        return np.concatenate([*parts, *(layer.bias for layer in layers)]).astype(np.float64)

    def unpack(self, vector: np.ndarray) -> Parameters:
        """Return the parameters of a vector."""
        layers, place = [], 0
        for layer in self.like:
            n_out, n_in = layer.weight.shape
            weight = vector[place : place + n_in * n_out].reshape(n_in, n_out).T
            place += n_in * n_out
            layers.append([weight.astype(layer.weight.dtype), None])
        for parts, layer in zip(layers, self.like, strict=True):
            assert layer.bias is not None
            parts[1] = vector[place : place + len(layer.bias)].astype(layer.bias.dtype)
            place += len(layer.bias)
        return tuple(Layer(*parts) for parts in layers)

    def __call__(self, vector: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the loss and its gradient."""
        loss, gradient = _whole(self.network, self.unpack(vector), self.examples, self.alpha)
        return float(loss), self.pack(gradient)


def padded_orders(orders: list[np.ndarray], rows: int, at_once: int) -> np.ndarray:
    """Return the orders of some epochs as (at_once, rows), padded with −1."""
    result = np.full((at_once, rows), -1, np.int32)
    for number, order in enumerate(orders):
        result[number, : len(order)] = order
    return result
