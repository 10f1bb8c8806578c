"""Predictions and figures of merit over arrays of any size.

Rows are taken `CHUNK` at a time and the last chunk is padded with rows of weight 0, so that arrays
of another length compile nothing and need no more memory.
"""

import contextlib
import math
import mmap
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from jaxmlp.batch import Batch, check_batch, check_input_shape, forward_batch, weighted_sum
from jaxmlp.gradients import logits
from jaxmlp.losses import LOSSES
from jaxmlp.network import Network, Parameters, check_parameters
from jaxmlp.scaling import Scaling, prepared_inputs
from jaxmlp.validation import as_array, as_host_array, check_classes, check_finite

CHUNK = 1024
_ALIGNMENT = 64  # bytes
_PAGES = 2**20  # bytes
_ROUNDING = 1e-6  # by which a target may be outside its range


class Metrics(NamedTuple):
    """The mean loss, and for classifiers the fraction of examples classified right, or None.

    With binary cross-entropy an example is right when the decisions of all K outputs are.
    """

    loss: float
    accuracy: float | None


class Sums(NamedTuple):
    """Σ w_n E_n, the weighted number of right predictions, Σ w_n: to be added up over batches."""

    loss: Array
    right: Array
    weight: Array

    def metrics(self, network: Network) -> Metrics:
        """Return the means on the host; 0 where Σ w_n is 0."""
        loss, right, weight = (float(value) for value in self)
        weight = weight or 1.0
        return Metrics(loss / weight, right / weight if is_classifier(network) else None)


def is_classifier(network: Network) -> bool:
    """Tell whether the network's loss is one of the two cross-entropies."""
    return network.loss in ("softmax_cross_entropy", "sigmoid_binary_cross_entropy")


def checked_examples(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    sample_weight: ArrayLike | None = None,
    scaling: Scaling | None = None,
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], Scaling | None]:
    """Return inputs, targets and weights as host arrays, and what is left to be scaled.

    The arrays are in the dtypes to compute with, but for bytes, which stay bytes. Where the values
    can be seen they are checked: all finite, classes in 0 … K − 1, weights not negative. Rows of
    weight 0 may hold anything; they become copies of one that counts. Only ratios of weights
    matter: the largest is brought to [1, 2) by a power of two, lest half precision overflow.

    Raises:
        TypeError: As for `jaxmlp.loss`.
        ValueError: No examples, shapes that do not fit, or values as above.
    """
    check_parameters(network, params)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, inputs, targets))):
        raise TypeError(
            "params, inputs, targets: expected arrays with values, got some that JAX is tracing: "
            "within jit, grad and vmap take jaxmlp.loss and loss_and_gradient"
        )
    dtype = np.dtype(params[0].weight.dtype)
    wide = np.promote_types(dtype, np.float32)
    inputs, targets = as_host_array("inputs", inputs), as_host_array("targets", targets)
    weights = None if sample_weight is None else as_host_array("sample_weight", sample_weight)
    # Shapes and dtypes by the same rules as everywhere, on no data: eval_shape moves nothing.
    jax.eval_shape(partial(check_batch, network), params, inputs, targets, weights)
    if len(inputs) == 0:
        raise ValueError("inputs: expected at least one example, got none")
    ready, left = prepared_inputs(scaling, inputs, dtype)
    weights = checked_weights(np.ones(len(inputs)) if weights is None else weights, wide)
    counted = weights > 0
    # A copy computes nothing that is not computed anyway: even zeros might overflow.
    one = int(np.argmax(counted))
    if not counted.all():
        ready = ready.copy()
        ready[~counted] = 0
    check_finite("inputs", ready)
    if not counted.all() and counted.any():
        ready[~counted] = ready[one]
    return (ready, checked_targets(network, targets, counted, wide), scaled_weights(weights)), left


def checked_weights(weights: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """Return the weights (N,) in `dtype`.

    Raises:
        ValueError: One is negative or not finite.
    """
    given = weights
    with np.errstate(over="ignore"):  # what is too large for the dtype is named as infinite
        weights = weights.astype(dtype)
    check_finite("sample_weight", weights)
    if (given > 0).any() and not weights.any():
        raise ValueError(
            f"sample_weight: expected a number above 0 in {weights.dtype}, got {given.max():g} at "
            "most"
        )
    if (weights < 0).any():
        place = int(np.argmax(weights < 0))
        raise ValueError(f"sample_weight: expected numbers ≥ 0, got {weights[place]} at [{place}]")
    return weights


def check_some_weight(weights: np.ndarray) -> None:
    """Raise ValueError where no weight (N,) is above 0."""
    if not (weights > 0).any():
        raise ValueError("sample_weight: expected a number above 0, got none")


def scaled_weights(weights: np.ndarray) -> np.ndarray:
    """Return the weights (N,) times the power of two that brings the largest to [1, 2)."""
    return np.ldexp(weights, 1 - np.frexp(weights.max())[1])


def checked_targets(
    network: Network, targets: np.ndarray, counted: np.ndarray, dtype: DTypeLike
) -> np.ndarray:
    """Return int32 classes, or numbers in `dtype`; what is not counted becomes what is.

    Raises:
        ValueError: A class is outside 0 … K − 1, or a number not finite or none of the loss's
            targets, among those counted.
    """
    if not counted.all():
        targets = targets.copy()
        targets[~counted] = 0
    if LOSSES[network.loss].takes_classes and targets.ndim == 1:
        check_classes("targets", targets, network.sizes[-1])
        targets = targets.astype(np.int32)
    else:
        with np.errstate(over="ignore"):
            targets = targets.astype(dtype)
        check_finite("targets", targets)
        _check_range(network, targets)  # 0, what is not counted, is in any
    if not counted.all() and counted.any():
        targets[~counted] = targets[np.argmax(counted)]
    return targets


def _check_range(network: Network, targets: np.ndarray) -> None:
    """Raise ValueError where a number is none of the loss's targets: it has no least value then."""
    least, most = LOSSES[network.loss].target_range
    outside = (targets < least - _ROUNDING) | (targets > most + _ROUNDING)
    if outside.any():
        place = np.unravel_index(np.argmax(outside), targets.shape)
        within = f"numbers from {least:g} to {most:g}" if most < np.inf else f"numbers ≥ {least:g}"
        raise ValueError(
            f"targets: expected {within} for {network.loss}, got {targets[place]:g} at "
            f"{[int(i) for i in place]}"
        )


def chunks(inputs: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> Iterator[Batch]:
    """Yield the examples as batches of exactly `CHUNK` rows, the last padded with weight 0."""
    for start in range(0, len(inputs), CHUNK):
        part = slice(start, start + CHUNK)
        yield padded_batch(inputs[part], targets[part], weights[part], CHUNK)


def padded_batch(
    inputs: np.ndarray, targets: np.ndarray, weights: np.ndarray | None, rows: int
) -> Batch:
    """Return a batch on the host of `rows` rows: the examples, then zeros, of weight 0 at most."""
    arrays: Any = [
        None if array is None else padded(array, rows) for array in (inputs, targets, weights)
    ]
    return Batch(*arrays)


def padded(array: np.ndarray, rows: int) -> np.ndarray:
    """Return the array with rows of 0 appended until it has `rows` of them."""
    if len(array) == rows:
        return array
    result = aligned_zeros((rows, *array.shape[1:]), array.dtype)
    result[: len(array)] = array
    return result


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Return zeros from a multiple of 64 bytes on: JAX takes them over on a CPU as they are.

    Large ones are the system's own pages, which it has back as soon as nobody needs them. The C
    library's memory would stay with the thread that took it.

    Raises:
        MemoryError: There is no room for them.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size >= _PAGES and hasattr(mmap, "MAP_PRIVATE"):  # Windows has none
        try:
            pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError) as error:
            raise MemoryError(f"no room for an array {shape} of {dtype}") from error
        if hasattr(mmap, "MADV_HUGEPAGE"):  # as NumPy does
            with contextlib.suppress(OSError):  # a kernel without them
                pages.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(pages, dtype).reshape(shape)
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return memory[begin : begin + size].view(dtype).reshape(shape)


def batch_sums(network: Network, outputs: Array, losses: Array, batch: Batch) -> Sums:
    """Return what a batch adds to the figures, from its logits (N, K) and losses (N,)."""
    weights = jnp.ones_like(losses) if batch.weights is None else batch.weights
    weights = weights.astype(losses.dtype)
    right = weights * _right(network, outputs, batch.targets).astype(losses.dtype)
    return Sums(weighted_sum(losses, weights), jnp.sum(right), jnp.sum(weights))


def _right(network: Network, outputs: Array, targets: Array) -> Array:
    """Return for each example whether it is classified right; False for a regression."""
    if network.loss == "softmax_cross_entropy":
        classes = targets if targets.ndim == 1 else jnp.argmax(targets, axis=1)
        # The first of the largest, and none beside a NaN; argmax would be a slow loop of pairs.
        # Along columns: where the outputs are columns transposed, rows cost 60 of 420 µs of a step
        # of 64 networks of 64-32-10, and where they are rows it makes no difference.
        outputs = outputs.T
        numbers = jnp.arange(outputs.shape[0])[:, None]
        largest = outputs == jnp.max(outputs, axis=0, keepdims=True)
        return jnp.min(jnp.where(largest, numbers, len(numbers)), axis=0) == classes
    if network.loss == "sigmoid_binary_cross_entropy":
        agree = (outputs > 0) == (jnp.reshape(targets, outputs.shape) > 0.5)
        return jnp.all(agree, axis=1)
    return jnp.zeros(outputs.shape[0], bool)


def scaled_batch(scaling: Scaling | None, batch: Batch, dtype: DTypeLike) -> Batch:
    """Return the batch with what was left of the scaling done to its inputs."""
    if scaling is None:
        return batch
    return batch._replace(inputs=scaling.on_device(batch.inputs, dtype))


@jax.jit
def chunk_sums(network: Network, params: Parameters, scaling: Scaling | None, batch: Batch) -> Sums:
    """Return the sums of a prepared chunk."""
    batch = scaled_batch(scaling, batch, params[0].weight.dtype)
    outputs = forward_batch(network, params, batch.inputs).preactivations[-1]
    losses = jax.vmap(LOSSES[network.loss].value)(outputs, batch.targets)
    return batch_sums(network, outputs, losses, batch)


def sums_of_chunks(
    network: Network, params: Parameters, scaling: Scaling | None, batches: list[Batch]
) -> list[Sums]:
    """Return the sums of each of the prepared chunks, on the device."""
    return [chunk_sums(network, params, scaling, batch) for batch in batches]


def total_of(sums: list[Sums]) -> Sums:
    """Return the total, in float64, of sums that were fetched from the device."""
    total: Any = np.sum(sums, axis=0, dtype=np.float64)
    return Sums(*total)


def evaluate(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    sample_weight: ArrayLike | None = None,
    *,
    scaling: Scaling | None = None,
) -> Metrics:
    """Return the mean loss and, for classifiers, the accuracy over any number of examples.

    Args:
        network: The network.
        params: Its parameters.
        inputs: (N, D), N ≥ 1, finite.
        targets: As for `jaxmlp.loss`, classes within 0 … K − 1.
        sample_weight: (N,), not negative, or None.
        scaling: What the inputs go through before the first layer, or None.

    Returns:
        `Metrics(loss, accuracy)`.

    Raises:
        TypeError: As for `jaxmlp.loss`.
        ValueError: No examples, or shapes or values that do not fit.
    """
    examples, left = checked_examples(network, params, inputs, targets, sample_weight, scaling)
    sums = sums_of_chunks(network, params, left, list(chunks(*examples)))
    return total_of(jax.device_get(sums)).metrics(network)


def predictions(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    *,
    scaling: Scaling | None = None,
) -> Array:
    """Return what the logits stand for: probabilities or expected values.

    softmax(z) for softmax cross-entropy, σ(z) for binary cross-entropy, z for the squared error and
    e^z for the Poisson loss. Arrays of another length compile nothing new, and inside a `jit` of
    the caller it is an ordinary function of traced arrays.

    Args:
        network: The network.
        params: Its parameters.
        inputs: (N, D).
        scaling: What the inputs go through before the first layer, or None.

    Returns:
        (N, K), in float32 or better.

    Raises:
        ValueError: Shapes that do not fit.
    """
    check_parameters(network, params)
    dtype = params[0].weight.dtype
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, inputs))):
        if scaling is not None:
            inputs = scaling.on_device(as_array("inputs", inputs), dtype)
        return jax.vmap(LOSSES[network.loss].prediction)(logits(network, params, inputs))
    # On the host throughout: `jnp.asarray` would compile a program for every new size.
    checked = as_host_array("inputs", inputs)
    check_input_shape(network, checked.shape)
    outputs = [np.zeros((0, network.sizes[-1]), np.promote_types(dtype, np.float32))]
    for start in range(0, len(checked), CHUNK):
        part, left = prepared_inputs(scaling, checked[start : start + CHUNK], dtype)
        chunk = _chunk_predictions(network, params, left, padded(part, CHUNK))
        outputs.append(np.asarray(chunk)[: len(part)])
    return jax.device_put(np.concatenate(outputs))


@jax.jit
def _chunk_predictions(
    network: Network, params: Parameters, scaling: Scaling | None, inputs: Array
) -> Array:
    if scaling is not None:
        inputs = scaling.on_device(inputs, params[0].weight.dtype)
    outputs = forward_batch(network, params, inputs).preactivations[-1]
    return jax.vmap(LOSSES[network.loss].prediction)(outputs)
