"""Examples whose inputs are not in memory: read block after block, ahead of the steps.

A block is the examples of some steps: about a 64th of all, from 4 to 32 MiB. Threads of grain's
read the next blocks and put them on the device while the steps of one are computed. The batches
are those of an epoch in memory, row by row, so the same comes out.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxmlp.batch import Batch, check_batch
from jaxmlp.data.stored import StoredInputs
from jaxmlp.evaluation import (
    aligned_zeros,
    check_some_weight,
    checked_targets,
    checked_weights,
    scaled_weights,
)
from jaxmlp.network import Network, Parameters
from jaxmlp.scaling import Scaling, prepared_inputs
from jaxmlp.training.distributed import Placement, placed
from jaxmlp.training.feeds import Part
from jaxmlp.training.orders import Plan
from jaxmlp.validation import as_host_array

SMALLEST_BLOCK = 2**22  # bytes
LARGEST_BLOCK = 2**25
_BLOCKS = 64  # an epoch, where blocks are neither of these
_MOST_THREADS = 4
_MOST_EXAMPLES = 2**31 - 1  # an order is in int32


class ChangedInputs(ValueError):
    """Stored inputs are not, or not any more, what can be trained on, as it shows at reading."""


class LostInputs(OSError):
    """Stored inputs cannot be read any more."""


class StoredExamples(NamedTuple):
    """Examples that are checked but for their inputs, which are checked as they are read.

    Attributes:
        inputs: (N, D), stored.
        targets: int32 classes (N,) or numbers, in the dtype to compute with.
        weights: (N,), as `checked_examples` returns them.
        scaling: What the inputs go through when they are read, unless they are bytes; or None.
        dtype: That of the parameters.
        counted: The number of an example that weighs more than 0.
        left: What is left of the scaling for the device: all of it for bytes, else None.
    """

    inputs: StoredInputs
    targets: np.ndarray
    weights: np.ndarray
    scaling: Scaling | None
    dtype: np.dtype
    counted: int
    left: Scaling | None

    @property
    def ready_dtype(self) -> np.dtype:
        """In which dtype the inputs go to the device."""
        return self.inputs.dtype if self.inputs.dtype == np.uint8 else self.dtype

    @property
    def _as_stored(self) -> bool:
        """Whether the inputs go to the device as they are stored."""
        if self.inputs.dtype == np.uint8:
            return True
        return self.scaling is None and self.inputs.dtype == self.dtype

    def block(
        self, numbers: np.ndarray, memory: np.ndarray | None = None
    ) -> tuple[Batch, np.ndarray]:
        """Return the examples with some numbers as they were read, and where each of them is.

        Args:
            numbers: (k, B), −1 for no example.
            memory: The inputs (k·B, D) of another block, nobody's any more, whose place these
                take; or None.

        Returns:
            (k·B, …) examples by rising numbers, on the host, padded with rows of weight 0; and
            (k·B,) int32, the row of each of the numbers, −1 for no example. Row 0 is an example.

        Raises:
            ValueError: An input is NaN or infinite, or too large for the dtype.
            OSError: The inputs cannot be read any more.
        """
        flat = numbers.reshape(-1)
        seen = np.flatnonzero(flat >= 0)
        wanted = flat[seen] if len(seen) else np.array([self.counted])
        # In the place of what weighs nothing, which may hold anything, what weighs something.
        read = np.where(self.weights[wanted] > 0, wanted, self.counted)
        inputs = memory
        if inputs is None:
            inputs = aligned_zeros((len(flat), self.inputs.shape[1]), self.ready_dtype)
        order = np.empty(len(wanted), np.int32)
        filled = 0
        in_place = inputs if self._as_stored else None
        for places, rows in self.inputs.pieces(read, in_place):
            end = filled + len(places)
            ready = self._ready(rows, read[places])
            if in_place is None:
                inputs[filled:end] = ready
            order[places] = np.arange(filled, end)
            filled = end
        targets, weights = (
            np.zeros((len(flat), *array.shape[1:]), array.dtype)
            for array in (self.targets, self.weights)
        )
        targets[order], weights[order] = self.targets[wanted], self.weights[wanted]
        rows_of = np.full(len(flat), -1, np.int32)
        rows_of[seen] = order[: len(seen)]
        arrays: Any = inputs, targets, weights
        return Batch(*arrays), rows_of

    def batches(self, numbers: np.ndarray) -> Batch:
        """Return batches of the examples with some numbers, on the host.

        Args:
            numbers: (k, B), −1 for a row of weight 0.

        Returns:
            A batch whose arrays begin with the axes of `numbers`.

        Raises:
            ValueError: As for `block`.
            OSError: As for `block`.
        """
        examples, order = self.block(numbers)
        batch: Any = jax.tree.map(lambda array: array[np.maximum(order, 0)], examples)
        batch.weights[order < 0] = 0
        return jax.tree.map(lambda array: array.reshape(*numbers.shape, *array.shape[1:]), batch)

    def check_inputs(self) -> None:
        """Read all inputs of weight above 0, and check them.

        Raises:
            ValueError: One is NaN or infinite, or too large for the dtype.
            OSError: They cannot be read any more.
        """
        if self.ready_dtype == np.uint8:
            return
        start = 0
        for chunk in self.inputs.chunks():
            numbers = start + np.flatnonzero(self.weights[start : start + len(chunk)] > 0)
            self._ready(chunk[numbers - start], numbers)
            start += len(chunk)

    def _ready(self, rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Return some inputs as they go to the device, checked."""
        if rows.dtype == np.uint8:
            return rows
        ready = rows
        if not self._as_stored:
            ready, _ = prepared_inputs(self.scaling, rows, self.dtype)
        self.inputs.check_finite(ready, numbers)
        return ready


def checked_stored(
    network: Network,
    params: Parameters,
    inputs: StoredInputs,
    targets: ArrayLike,
    sample_weight: ArrayLike | None = None,
    scaling: Scaling | None = None,
    *,
    private: bool = False,
) -> StoredExamples:
    """Return the examples of stored inputs, all but these checked as by `checked_examples`.

    Args:
        network: The network.
        params: Its parameters, checked.
        inputs: (N, D); none is read.
        targets: As for `jaxmlp.loss`.
        sample_weight: (N,), not negative and not all 0, or None.
        scaling: What the inputs go through before the first layer.
        private: Whether the weights stay as they are.

    Raises:
        TypeError: As for `jaxmlp.loss`.
        ValueError: No examples, shapes that do not fit, values as in `checked_examples`, or no
            grain to read with.
    """
    _grain()
    dtype = np.dtype(params[0].weight.dtype)
    wide = np.promote_types(dtype, np.float32)
    targets = as_host_array("targets", targets)
    weights = None if sample_weight is None else as_host_array("sample_weight", sample_weight)
    kind = jax.dtypes.canonicalize_dtype(inputs.dtype)
    described: Any = jax.ShapeDtypeStruct(inputs.shape, kind)
    jax.eval_shape(functools.partial(check_batch, network), params, described, targets, weights)
    if len(inputs) == 0:
        raise ValueError("inputs: expected at least one example, got none")
    if len(inputs) > _MOST_EXAMPLES:
        raise ValueError(f"inputs: expected at most 2^31 - 1 rows, got {len(inputs)}")
    weights = checked_weights(np.ones(len(inputs)) if weights is None else weights, wide)
    counted = weights > 0
    check_some_weight(weights)
    _, left = prepared_inputs(scaling, np.zeros((1, inputs.shape[1]), inputs.dtype), dtype)
    return StoredExamples(
        inputs,
        checked_targets(network, targets, counted, wide),
        weights if private else scaled_weights(weights),
        scaling,
        dtype,
        int(np.argmax(counted)),
        left,
    )


class Streamed:
    """The blocks of all epochs to come, one after another.

    Args:
        examples: The examples.
        plan: The order of every epoch.
        placement: Where several devices have a part of every batch each, or None.
    """

    def __init__(
        self, examples: StoredExamples, plan: Plan, placement: Placement | None = None
    ) -> None:
        self.examples, self.plan, self.placement = examples, plan, placement
        batch_bytes = plan.batch_size * examples.inputs.shape[1] * examples.ready_dtype.itemsize
        block = min(LARGEST_BLOCK, max(SMALLEST_BLOCK, plan.steps * batch_bytes // _BLOCKS))
        # A power of two: most other numbers of examples compile nothing new.
        size = 1 << (max(1, block // batch_bytes).bit_length() - 1)
        if plan.window is not None:  # whose chunks are better read once
            size = max(size, 1 << (-(-plan.window // plan.batch_size) - 1).bit_length())
        self.block_steps = min(size, 1 << (plan.steps - 1).bit_length())
        self._x64 = jnp.result_type(float) == np.float64
        self._device: Any = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
        self._blocks: Any = None
        self._current: Part | None = None
        self._memory: np.ndarray | None = None  # of the current block's inputs
        self._spare: list[np.ndarray] = []  # that of blocks whose steps are done
        self._orders: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def begin(self, epoch: int) -> None:
        """Do nothing: the threads that read make an epoch's order when they come to it."""

    def prepare(self, epoch: int) -> None:
        """Do nothing: they come to the next epoch while this one is computed."""

    def part(self, epoch: int, step: int) -> Part:
        """Return the block that has a step, which is the next one or that of the last call."""
        current = self._current
        if current is None or not (current.epoch == epoch and current.first <= step < current.end):
            if self._blocks is None:
                self._blocks = self._begun(epoch, step)
            self._current = current = None  # before the next one is here, lest there be one more
            if self._memory is not None:  # its steps are done, and so is the copy to a GPU
                self._spare.append(self._memory)
                self._memory = None
            current, self._memory = next(self._blocks)
            self._current = current
            assert current.epoch == epoch and current.first == step
        return current

    def first_batch(self, epoch: int) -> Part:
        """Return a block of one step, the first of an epoch."""
        return self._block(epoch, 0, 1, 1, None)[0]

    def close(self) -> None:
        """Read no more."""
        blocks, self._blocks, self._current, self._memory = self._blocks, None, None, None
        self._spare.clear()
        if blocks is not None:
            blocks.close()

    def _begun(self, epoch: int, step: int) -> Any:
        """Return an iterator over the blocks from a step on, with threads that read ahead."""
        size, steps = self.block_steps, self.plan.steps
        left = -(-(steps - step) // size)  # blocks of the first epoch
        blocks = -(-steps // size)
        epochs = self.plan.settings.epochs - epoch

        def block(number: int) -> tuple[Part, np.ndarray | None]:
            later, place, begin = 0, number, step
            if number >= left:
                later, place = divmod(number - left, blocks)
                later, begin = later + 1, 0
            first = begin + place * size
            # Memory that was used is there already: the system gives new pages one by one.
            try:
                memory = self._spare.pop()
            except IndexError:
                memory = None
            return self._block(epoch + later, first, min(first + size, steps), size, memory)

        grain = _grain()
        threads = max(1, min(_MOST_THREADS, (os.cpu_count() or 1) // 2))
        ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        numbers = grain.MapDataset.range(left + (epochs - 1) * blocks)
        return iter(numbers.map(block).to_iter_dataset(ahead))

    def _block(
        self, epoch: int, first: int, end: int, size: int, memory: np.ndarray | None
    ) -> tuple[Part, np.ndarray | None]:
        """Return the steps `first` … `end` − 1 of an epoch, padded to so many, and their memory."""
        size_of_batch = self.plan.batch_size
        numbers = np.full((size, size_of_batch), -1, np.int32)
        rows = self._rows(epoch)[first * size_of_batch : end * size_of_batch]
        numbers[: end - first] = rows.reshape(-1, size_of_batch)
        rates = np.zeros(size, self.plan.dtype)
        rates[: end - first] = self.plan.rates(epoch, first, end)
        # What `jax.enable_x64` and `jax.default_device` set is a thread's own.
        with self._as_called():
            try:
                arrays, memory = self._put(numbers, rates, memory)
                return Part(epoch, first, end, *arrays), memory
            except ValueError as error:
                raise ChangedInputs(str(error)) from error
            except OSError as error:
                raise LostInputs(str(error)) from error

    @contextlib.contextmanager
    def _as_called(self) -> Iterator[None]:
        with jax.enable_x64(self._x64), jax.default_device(self._device):
            yield

    def _put(
        self, numbers: np.ndarray, rates: np.ndarray, memory: np.ndarray | None
    ) -> tuple[tuple[Batch, Array | None, Array], Any]:
        """Return the examples of these numbers (k, B), their order and their rates; their memory.

        On one device they are as they were read, and the steps take them by the order, which costs
        them nothing; on several each device has its part of every batch.
        """
        if self.placement is None:
            examples, order = self.examples.block(numbers, memory)
            return jax.device_put((examples, order, rates)), examples.inputs
        batches = self.placement.batches(numbers, self.examples.batches)
        return (batches, None, placed(rates, self.placement)), None

    def _rows(self, epoch: int) -> np.ndarray:
        """Return an epoch's order; those of this epoch and the one before are kept."""
        with self._lock:
            if epoch not in self._orders:
                self._orders = {
                    number: rows for number, rows in self._orders.items() if number == epoch - 1
                }
                self._orders[epoch] = self.plan.rows(epoch)
            return self._orders[epoch]


def _grain() -> Any:
    """Return grain.

    Raises:
        ValueError: It is not installed.
    """
    try:
        import grain
    except ModuleNotFoundError as error:
        raise ValueError(
            "inputs: expected an array in memory where grain is not installed, got inputs that are "
            'to be streamed: pip install "jaxmlp[stream]"'
        ) from error
    return grain
