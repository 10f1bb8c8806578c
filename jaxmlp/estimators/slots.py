"""Fits of one kind on their way through slots: a few side by side in one compiled program.

The inputs are on the device once for all fits; which rows of them a fit has, such as those of a
fold, its orders say. The program returns where the first of the fits in its slots is to stop, and
one that waits takes the slot, so that hardly anything is computed in vain. On a CPU every core has
slots of its own, few enough for its cache.
"""

import os
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmlp.batch import Batch
from jaxmlp.estimators.epochs import epochs_at_once, run_side_by_side
from jaxmlp.evaluation import padded
from jaxmlp.training.memory import free_bytes, members_that_fit, tree_bytes
from jaxmlp.training.orders import bucket

_CACHE = 2**22  # bytes of the fits side by side on one core: about what stays near it


class Examples(NamedTuple):
    """The rows (n,) of a block (N, D) of inputs, with their targets (n, …) and weights (n,)."""

    block: np.ndarray
    rows: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


class Program(NamedTuple):
    """The sizes that are compiled in: slots, and the rows of a batch, of an order, of the inputs.

    And the number of epochs whose orders a call takes.
    """

    slots: int
    batch: int
    order: int
    inputs: int
    epochs: int

    @classmethod
    def of(cls, fits: Sequence[Any]) -> "Program":
        """Return the one for fits of one kind.

        Raises:
            MemoryError: There is no room for one of them.
        """
        of, targets = fits[0].training, fits[0].examples.targets
        lengths = [len(block) for block in blocks_of(fits).values()]
        batch = max(fit.training.padding for fit in fits)
        order = -(-bucket(max(lengths)) // batch) * batch
        inputs, epochs = bucket(sum(lengths)), epochs_at_once(order)
        wide, sizes = of.dtype.itemsize, of.network.sizes
        # The state, the gradient and the update; a batch's inputs, its layers forth and back.
        working = tree_bytes(of.progress) + 2 * tree_bytes(of.progress.params)
        working += wide * batch * (sizes[0] + 4 * sum(sizes[1:]))
        own = inputs * (wide + targets.nbytes // len(targets)) + 4 * order * epochs
        each = working + 2 * tree_bytes(of.progress) + 2 * own
        device = device_of(fits[0])
        most, count = members_that_fit(len(fits), each, free_bytes(device)), cores(device)
        if device.platform == "cpu":
            most = min(max(1, most // count), max(1, _CACHE // working))

        def cost(slots: int) -> float:  # a step has some of its own
            return -(-len(fits) // (count * slots)) * (slots + 0.5)

        return cls(min(range(1, most + 1), key=cost), batch, order, inputs, epochs)

    def takes(self, fits: Sequence[Any], filled: bool) -> bool:
        """Tell whether fits can go through it, their batches filled up where they may be."""
        batches = [fit.training.padding for fit in fits]
        same = max(batches) <= self.batch if filled else set(batches) == {self.batch}
        inputs = sum(len(block) for block in blocks_of(fits).values())
        rows = fits[0].training.steps * self.batch
        return same and rows <= self.order and inputs <= self.inputs


def blocks_of(fits: Sequence[Any]) -> dict[int, np.ndarray]:
    """Return the blocks of inputs, each once, by their identity."""
    return {id(fit.examples.block): fit.examples.block for fit in fits}


def device_of(fit: Any) -> Any:
    """Return the device that a fit is computed on."""
    chosen = fit.estimator.device
    return jax.devices(None if chosen == "auto" else chosen)[0]


def cores(device: Any) -> int:
    """Return how many programs are best run at a time: on a CPU one a core."""
    if device.platform != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """What trains fits of one kind: threads of this process with slots of their own."""

    def __init__(self, fits: Sequence[Any], program: Program) -> None:
        self.program, self.first, self.n_fits = program, fits[0], len(fits)
        self.waiting, self.stopped = deque(fits), False
        self.compiling, self.compiled = threading.Lock(), False
        blocks = blocks_of(fits)
        starts = np.cumsum([0, *map(len, blocks.values())]).tolist()
        self.starts = dict(zip(blocks, starts, strict=False))
        parts = list(blocks.values())
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        self.inputs = jax.device_put(padded(whole, program.inputs))

    def run(self) -> None:
        """Train all."""
        count = min(cores(device_of(self.first)), -(-self.n_fits // self.program.slots))
        if count == 1:
            return self.work()
        with ThreadPoolExecutor(count) as pool:
            jobs = [pool.submit(self.work) for _ in range(count)]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                self.stopped = True
                raise

    def work(self) -> None:
        """Train fits until none waits."""
        slots: list[Any] = [None] * self.program.slots
        try:
            with self.first.estimator._computing(self.first.training.dtype):
                while not self.stopped:
                    slots = [self._next() if fit is None else fit for fit in slots]
                    if not any(slots):
                        return
                    slots = self._advanced(slots)
        except BaseException:
            self.stopped = True  # the others too
            raise

    def _next(self) -> Any:
        try:
            return self.waiting.popleft()
        except IndexError:
            return None

    def _advanced(self, slots: list[Any]) -> list[Any]:
        """Train the fits in the slots until one of them ends, and return those that do not."""
        live = {place: fit for place, fit in enumerate(slots) if fit is not None}
        one = next(iter(live.values()))
        filled = [one if fit is None else fit for fit in slots]  # computed along
        progress, numbers, regularization = jax.device_put(
            stacked(
                [
                    (
                        fit.training.progress,
                        fit.training.numbers
                        | {"learning_rate": fit.estimator._optimizer.learning_rate},
                        fit.training.regularization,
                    )
                    for fit in filled
                ],
                one.training.dtype,
            )
        )
        keys = None
        if one.training.key is not None:
            words = [np.asarray(jax.random.key_data(fit.training.key)) for fit in filled]
            keys = jax.random.wrap_key_data(jax.device_put(np.stack(words)))
        examples = Batch(self.inputs, *self._own(filled))
        numbers["steps"] = np.int32(one.training.steps)

        def call(count: int) -> tuple[Any, Any, Any]:
            return run_side_by_side(
                one.training.network,
                progress,
                examples,
                self._orders(live, count),
                numbers | {"epochs": np.int32(count)},
                regularization,
                keys,
                np.isin(np.arange(len(slots)), list(live)),
                solver=one.training.solver,
                batch_size=self.program.batch,
            )

        with self.compiling:
            if not self.compiled:
                jax.block_until_ready(call(0))
                self.compiled = True
        ended: list[int] = []
        while not ended and not self.stopped:
            count = min(self.program.epochs, *(fit.left for fit in live.values()))
            progress, losses, ran = call(count)
            ran, losses = int(ran), np.asarray(losses)
            best, idle = np.asarray(progress.best_loss), np.asarray(progress.idle)
            for place, fit in live.items():
                if fit.passed(losses[:ran, place].tolist(), float(best[place]), int(idle[place])):
                    ended.append(place)
        host = jax.device_get(progress)
        for place, fit in live.items():
            fit.training.progress = jax.tree.map(lambda leaf, at=place: np.array(leaf[at]), host)
        for place in ended:
            live[place].finish()
        return [None if place in ended else fit for place, fit in enumerate(slots)]

    def _own(self, filled: list[Any]) -> Any:
        """Return the targets (S, N, …) and the weights (S, N) of the fits in the slots."""
        targets, weights = [], []
        for fit in filled:
            block, rows, *own = fit.examples
            rows = rows + self.starts[id(block)]
            for arrays, array in zip((targets, weights), own, strict=True):
                there = np.zeros((self.program.inputs, *array.shape[1:]), array.dtype)
                there[rows] = array
                arrays.append(there)
        return jax.device_put((np.stack(targets), np.stack(weights)))

    def _orders(self, live: dict[int, Any], count: int) -> np.ndarray:
        """Return the orders (E, S, rows) of the next epochs, padded with −1."""
        orders = np.full(
            (self.program.epochs, self.program.slots, self.program.order), -1, np.int32
        )
        for place, fit in live.items():
            start = self.starts[id(fit.examples.block)]
            for number, order in enumerate(fit.upcoming(count)):
                orders[number, place, : len(order)] = order + start
        return orders


def stacked(trees: list[Any], dtype: np.dtype) -> Any:
    """Return trees as one with leaves (S, …), Python's numbers in a dtype."""

    def stack(*leaves: Any) -> np.ndarray:
        own = dtype if isinstance(leaves[0], float) else None
        return np.stack([np.asarray(leaf, own) for leaf in leaves])

    return jax.tree.map(stack, *trees)
