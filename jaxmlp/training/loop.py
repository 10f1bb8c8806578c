"""The training loop: one compiled program runs a whole epoch over data that stays on the device."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from jaxmlp.batch import Batch, mean_gradient, pass_batch
from jaxmlp.evaluation import (
    Metrics,
    Sums,
    batch_sums,
    checked_examples,
    chunks,
    evaluate_chunks,
    is_classifier,
    padded,
    padded_batch,
    scaled_batch,
)
from jaxmlp.losses import smooth
from jaxmlp.network import Network, Parameters, check_parameters
from jaxmlp.scaling import Scaling
from jaxmlp.training.optimizers import (
    OPTIMIZERS,
    SCHEDULES,
    optimizer_named,
    with_learning_rate,
)
from jaxmlp.validation import check_finite, check_key, check_name, check_positive

_SMALLEST_BUCKET = 2048
_LARGEST_STEP = 65536


class TrainingState(NamedTuple):
    """What a step changes: the parameters and the optimiser's state."""

    params: Parameters
    optimizer_state: Any


class Fit(NamedTuple):
    """What `fit` returns: the final state and a record of every epoch."""

    params: Parameters
    optimizer_state: Any
    history: list[dict[str, float]]


Callback = Callable[[dict[str, float], TrainingState], None]


def training_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    state: TrainingState,
    batch: Batch,
    label_smoothing: Array | None = None,
) -> tuple[TrainingState, Sums]:
    """Return the state after one step of the optimiser along our gradient of a batch.

    The figures returned are those of the parameters before the step, with the targets as trained.
    The examples are known to be finite, also those of weight 0.
    """
    params: Any = state.params  # optax's own types name only what its functions return
    trained = batch
    if label_smoothing is not None:
        blank = jnp.zeros((len(batch.inputs), network.sizes[-1]), params[0].weight.dtype)
        mixed = jax.vmap(smooth, (None, 0, 0, None))(
            network.loss, blank, batch.targets, label_smoothing
        )
        trained = batch._replace(targets=mixed)
    result = pass_batch(network, params, trained, finite_rows=True)
    gradient: Any = mean_gradient(network, params, result, batch.weights)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, params)
    sums = batch_sums(network, result.trace.preactivations[-1], result.losses, batch)
    moved: Any = optax.apply_updates(params, updates)
    return TrainingState(moved, optimizer_state), sums


@partial(jax.jit, static_argnames=("optimizer_name", "batch_size"), donate_argnames=("state",))
def _epoch(
    network: Network,
    state: TrainingState,
    examples: Batch,
    order: Array,
    rates: Array,
    n_examples: Array,
    label_smoothing: Array | None,
    scaling: Scaling | None,
    *,
    optimizer_name: str,
    batch_size: int,
) -> tuple[TrainingState, Sums]:
    """Return the state after the batches of `order`, the last of which may be ragged.

    `rates` holds the learning rate of each step. `examples`, `order` and `rates` are padded to
    sizes that do not follow N, and the number of steps is data: another N in the same bucket runs
    the same program.
    """
    optimizer = optimizer_named(optimizer_name)
    places = jnp.arange(batch_size)

    def step(number: Array, carry: tuple[TrainingState, Sums]) -> tuple[TrainingState, Sums]:
        state, total = carry
        rows = jax.lax.dynamic_slice(order, (number * batch_size,), (batch_size,))
        batch = jax.tree.map(lambda array: array[rows], examples)
        beyond = number * batch_size + places >= n_examples
        weights = jnp.where(beyond, jnp.zeros_like(batch.weights), batch.weights)
        batch = scaled_batch(scaling, batch._replace(weights=weights), state.params[0].weight.dtype)
        state = state._replace(
            optimizer_state=with_learning_rate(state.optimizer_state, rates[number])
        )
        state, sums = training_step(network, optimizer, state, batch, label_smoothing)
        return state, jax.tree.map(jnp.add, total, sums)

    wide = np.promote_types(state.params[0].weight.dtype, np.float32)
    steps = (n_examples + batch_size - 1) // batch_size
    nothing = Sums(*(jnp.zeros((), wide),) * 3)
    return jax.lax.fori_loop(0, steps, step, (state, nothing))


def _bucket(n_examples: int) -> int:
    """Return the padded number of rows: a power of two up to 65,536, then a multiple of it."""
    if n_examples > _LARGEST_STEP:
        return -(-n_examples // _LARGEST_STEP) * _LARGEST_STEP
    return max(_SMALLEST_BUCKET, 1 << (n_examples - 1).bit_length())


def fit(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    *,
    key: Array,
    sample_weight: ArrayLike | None = None,
    optimizer: str = "adam",
    learning_rate: ArrayLike = 1e-3,
    schedule: str = "constant",
    batch_size: int = 128,
    epochs: int = 10,
    label_smoothing: float = 0.0,
    scaling: Scaling | None = None,
    evaluation: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Fit:
    """Return the network trained on examples in memory, with our gradient and an optax optimiser.

    An epoch is one compiled program with the state donated; the data stay on the device. Another
    learning rate, schedule, number of epochs, label smoothing above 0 or key compiles nothing new,
    nor does another N up to the same power of two (above 65,536: the same multiple of it).

    Args:
        network: The network.
        params: Its initial parameters; they are copied, not donated.
        inputs: (N, D), finite.
        targets: As for `jaxmlp.loss`, classes within 0 … K − 1.
        key: A typed key: it shuffles the examples anew in every epoch.
        sample_weight: (N,), not negative, or None. Each step takes the mean weighted within its
            batch: with `batch_size=1` weights above 0 change nothing.
        optimizer: A name from `jaxmlp.training.optimizers.OPTIMIZERS`.
        learning_rate: A scalar above 0.
        schedule: A name from `jaxmlp.training.optimizers.SCHEDULES`: "constant", or "cosine", from
            the learning rate down to 0 over all steps.
        batch_size: Examples a step, at least 1; the last step of an epoch takes what is left.
        epochs: How often all examples are seen, at least 1.
        label_smoothing: α in [0, 1): the targets of a cross-entropy are mixed with the uniform
            distribution, (1 − α) t + α/K.
        scaling: What the inputs go through before the first layer, or None.
        evaluation: Name → (inputs, targets): each is evaluated after every epoch.
        callbacks: Called after every epoch as callback(record, state); `state` holds until then.

    Returns:
        `Fit(params, optimizer_state, history)`. A record of the history holds `epoch` from 1,
        `train_loss` and for classifiers `train_accuracy` (means over the epoch's batches, before
        each step), `<name>_loss` and `<name>_accuracy` of every evaluation, `seconds` of the
        training part (the first includes compiling) and `examples_per_second`.

    Raises:
        TypeError: As for `jaxmlp.loss`, no typed key, or a setting of another type.
        ValueError: No examples, values that do not fit or are not finite, an unknown optimiser.
        FloatingPointError: A loss or a parameter became infinite or NaN, with the epoch.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmlp
        >>> network = jaxmlp.Network((2, 8, 2), activation="tanh")
        >>> x = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> exclusive_or = jnp.array([0, 1, 1, 0])
        >>> params = jaxmlp.init(network, jax.random.key(0))
        >>> fitted = jaxmlp.fit(
        ...     network, params, x, exclusive_or, key=jax.random.key(1), batch_size=4,
        ...     learning_rate=0.05, epochs=100,
        ... )
        >>> fitted.history[-1]["train_accuracy"]
        1.0
    """
    check_parameters(network, params)
    check_key(key)
    rate = float(check_positive("learning_rate", learning_rate))
    check_settings(network, optimizer, rate, schedule, batch_size, epochs, label_smoothing)
    smoothing = jnp.asarray(label_smoothing, float) if label_smoothing else None
    examples, left = checked_examples(network, params, inputs, targets, sample_weight, scaling)
    n_examples = len(examples[0])
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        check_finite(f"params{jax.tree_util.keystr(path)}", np.asarray(leaf))
    if not isinstance(callbacks, Sequence):
        raise TypeError(f"callbacks: expected a list, got {type(callbacks).__name__}")
    if not isinstance(evaluation or {}, Mapping) or "train" in (evaluation or {}):
        raise ValueError(
            'evaluation: expected name → (inputs, targets) with other names than "train", got '
            f"{evaluation!r:.60}"
        )
    others = {}
    for name, pair in (evaluation or {}).items():
        arrays, scaling_left = checked_examples(network, params, *pair, scaling=scaling)
        others[name] = scaling_left, jax.device_put(list(chunks(*arrays)))
    rows = _bucket(n_examples)
    data = jax.device_put(padded_batch(*examples, rows))
    copied: Any = jax.tree.map(partial(jnp.array, copy=True), params)
    state = TrainingState(copied, optimizer_named(optimizer).init(copied))
    shuffle = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    batch_size = min(batch_size, rows)  # beyond that there is nothing but padding
    longest, steps = -(-rows // batch_size), -(-n_examples // batch_size)
    wide = np.promote_types(params[0].weight.dtype, np.float32)
    history: list[dict[str, float]] = []
    for epoch in range(1, epochs + 1):
        order = padded(shuffle.permutation(n_examples).astype(np.int32), longest * batch_size)
        done = np.arange((epoch - 1) * steps, epoch * steps) / (steps * epochs)
        rates = (rate * SCHEDULES[schedule](done)).astype(wide)
        begin = time.perf_counter()
        state, sums = _epoch(
            network, state, data, order, padded(rates, longest), np.int32(n_examples), smoothing,
            left,
            optimizer_name=optimizer, batch_size=batch_size,
        )  # fmt: skip
        train = sums.metrics(network)
        seconds = time.perf_counter() - begin
        figures = {"train": train} | {
            name: evaluate_chunks(network, state.params, *prepared)
            for name, prepared in others.items()
        }
        _check_convergence(figures, state.params, f"epoch {epoch} of {epochs}", rate)
        record: dict[str, float] = {"epoch": epoch}
        for name, metrics in figures.items():
            record[f"{name}_loss"] = metrics.loss
            if metrics.accuracy is not None:
                record[f"{name}_accuracy"] = metrics.accuracy
        record |= {"seconds": seconds, "examples_per_second": n_examples / seconds}
        history.append(record)
        for callback in callbacks:
            callback(record, state)
    return Fit(state.params, state.optimizer_state, history)


def _check_convergence(
    figures: Mapping[str, Metrics], params: Parameters, epoch: str, rate: float
) -> None:
    """Raise where an epoch ended with a loss or a parameter that is not finite.

    The training loss is that before each step: what the last step did shows in the others.

    Raises:
        FloatingPointError: With the name of the figure and the epoch.
    """
    losses = {f"the {name} loss": metrics.loss for name, metrics in figures.items()}
    sizes = {"a parameter": float(_largest(params))}
    for name, value in (losses | sizes).items():
        if not np.isfinite(value):
            raise FloatingPointError(
                f"training diverged: {name} became {value} in {epoch}; a learning rate below "
                f"{rate:g} may help"
            )


@jax.jit
def _largest(params: Parameters) -> Array:
    leaves = jax.tree.leaves(params)
    return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in leaves]).astype(jnp.float32))


def check_settings(
    network: Network,
    optimizer: str,
    learning_rate: float,
    schedule: str,
    batch_size: int,
    epochs: int,
    label_smoothing: float,
) -> None:
    """Raise ValueError, as `fit` does, where a setting is unknown or out of its range."""
    check_name("optimizer", optimizer, OPTIMIZERS)
    for name, value in (("learning_rate", learning_rate), ("label_smoothing", label_smoothing)):
        if not isinstance(value, (int, float, np.number)):
            raise TypeError(f"{name}: expected a number, got {value!r:.60}")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate: expected a number above 0, got {learning_rate!r}")
    check_name("schedule", schedule, SCHEDULES)
    for name, value in (("batch_size", batch_size), ("epochs", epochs)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1), got {label_smoothing!r}")
    if label_smoothing and not is_classifier(network):
        raise ValueError(f"label_smoothing: expected 0 for the loss {network.loss}, which has none")
