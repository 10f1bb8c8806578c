"""The epochs of a training: pieces of compiled steps, over what a feed has on the device.

An epoch runs in pieces of about half a second, between which it can be watched, saved and stopped;
the pieces change nothing in what is computed.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from jaxmlp.batch import Batch
from jaxmlp.evaluation import Sums, chunk_sums, padded_batch, sums_of_chunks, total_of
from jaxmlp.network import Network, Parameters, cast
from jaxmlp.privacy import epsilon, padded_size
from jaxmlp.privacy.gradient import check_wide, exact_products
from jaxmlp.scaling import Scaling
from jaxmlp.training.distributed import Placement, placed
from jaxmlp.training.feeds import Feed, Part, Resident
from jaxmlp.training.loops import on_a_gpu, steps_a_look
from jaxmlp.training.orders import Plan, bucket
from jaxmlp.training.records import check_convergence, is_better, record_of
from jaxmlp.training.settings import Settings
from jaxmlp.training.snapshots import (
    Best,
    Record,
    Snapshot,
    check_resumable,
    copied,
    copy_of,
    first_snapshot,
    largest,
)
from jaxmlp.training.steps import gradient_figures, model_of, no_sums, run_steps
from jaxmlp.training.streaming import StoredExamples, Streamed

_FIRST_PIECE = 64  # steps
_PIECE_SECONDS = 0.5
_MANY_STEPS = 10**6  # of a private training, in none of which a batch overflows


class Fit(NamedTuple):
    """What `fit` returns: parameters, the optimiser's last state, and a record of every epoch.

    `best_epoch` is the epoch that the parameters are from: the last, or with early stopping the one
    whose monitored figure was the best.
    """

    params: Parameters
    optimizer_state: Any
    history: list[Record]
    best_epoch: int


Callback = Callable[[Record, Snapshot], None]


class Pace:
    """How many steps take about half a second, the same in every process."""

    smallest = 1

    def __init__(self, placement: Placement | None = None) -> None:
        self.placement = placement
        self.per_second = _FIRST_PIECE / _PIECE_SECONDS  # before their speed is known

    def end(self, step: int, steps: int) -> int:
        """Return the step of an epoch up to which the next piece goes."""
        size = max(self.smallest, int(self.per_second * _PIECE_SECONDS))
        size += -size % steps_a_look()
        end = min(steps, step + size)
        end = steps if steps - end <= size // 2 else end  # no crumbs
        return end if self.placement is None else self.placement.agreed(end)

    def took(self, steps: int, seconds: float) -> None:
        """Note what a piece took."""
        self.per_second = steps / seconds


class Training:
    """A training under way: what does not change while it runs, and the steps of running it."""

    def __init__(
        self,
        network: Network,
        params: Parameters,
        settings: Settings,
        key: Array,
        examples: tuple[np.ndarray, np.ndarray, np.ndarray] | StoredExamples,
        scaling: Scaling | None,
        others: Mapping[str, tuple[Scaling | None, list[Batch]]],
        placement: Placement | None = None,
    ) -> None:
        self.placement = placement
        self.network = exact_products(network) if settings.private else network
        self.settings = settings
        self.scaling = self._placed(scaling)
        self.others = {name: self._placed(part) for name, part in others.items()}  # in their order
        self.n_examples = len(examples[1])
        self.dtype = np.dtype(params[0].weight.dtype)
        rows = bucket(self.n_examples)
        size = min(settings.batch_size, rows)  # beyond: nothing but padding
        longest = -(-rows // size)
        self.steps = -(-self.n_examples // size)
        self.batch_size = size  # with the padding of Poisson batches
        self.mechanism: tuple[float, float, float] | None = None
        if settings.private:
            self._begin_privacy()
        if placement is not None and self.batch_size % placement.count:
            if not settings.private:
                raise ValueError(
                    f"batch_size: expected a multiple of the {placement.count} devices, got {size}"
                )
            self.batch_size += -self.batch_size % placement.count  # its padding
        self.constants: Any = {
            "batch_size": self.batch_size,
            "dtype": self.dtype,
            "placement": placement,
        }
        wide = np.promote_types(self.dtype, np.float32)
        plan = Plan(
            words=np.asarray(jax.random.key_data(key)).tolist(),
            n_examples=self.n_examples,
            n_inputs=network.sizes[0],
            batch_size=self.batch_size,
            steps=self.steps,
            sampling=self.mechanism and self.mechanism[1],
            settings=settings,
            dtype=wide,
        )
        self.feed: Feed
        if isinstance(examples, StoredExamples):
            self.feed = Streamed(examples, plan, placement)
        else:
            data: Any = self._placed(padded_batch(*examples, rows))
            self.feed = Resident(data, plan, longest, placement)
        self.regularization = self._placed(settings.regularization(network, wide))
        random = settings.private or self.regularization.dropout is not None
        self.key = self._placed(key) if random else None
        self.pace = Pace(placement)
        self.history: list[Record] = []  # grows: a tuple anew each epoch would be quadratic

    def _placed(self, tree: Any) -> Any:
        """Return the tree on the device, or with a copy on every device."""
        return placed(tree, self.placement)

    def _begin_privacy(self) -> None:
        """Set the mechanism and the padded size of its batches.

        Raises:
            ValueError: The batch size, the dtype or the noise do not suit, or nothing is there to
                compute epsilon with.
        """
        check_wide(self.dtype)
        size, noise = self.settings.batch_size, self.settings.noise_multiplier
        if size > self.n_examples:
            raise ValueError(
                f"batch_size: expected at most the {self.n_examples} examples, got {size}"
            )
        assert noise is not None
        clip_norm = self.settings.clip_norm
        assert clip_norm is not None
        self.mechanism = float(noise), size / self.n_examples, float(clip_norm)
        self._epsilon(1)
        # Not by the number of epochs: with more of them it would be another program.
        steps = max(_MANY_STEPS, self.settings.epochs * self.steps)
        self.batch_size = padded_size(self.n_examples, self.mechanism[1], steps)

    def _epsilon(self, steps: int) -> float:
        """Return what so many private steps spend."""
        assert self.mechanism is not None and self.settings.delta is not None
        return epsilon(*self.mechanism[:2], steps, self.settings.delta)

    @property
    def _train_figures(self) -> bool:
        """Whether figures of the training examples are recorded: no guarantee covers them."""
        return not self.settings.private or self.settings.unprotected_figures

    def resumed(self, snapshot: Snapshot, params: Parameters) -> Snapshot:
        """Return a copy of a snapshot of this training, with the numbers of the settings.

        Args:
            snapshot: The snapshot.
            params: The initial parameters; only their shapes and dtypes count.

        Raises:
            ValueError: It is of another training, or its arrays are gone.
        """
        first = jax.eval_shape(
            lambda params: first_snapshot(self.network, params, self.settings).state, params
        )
        check_resumable(snapshot, first, self.steps, self.mechanism)
        return copied(snapshot, self.settings)

    def run(
        self,
        snapshot: Snapshot,
        callbacks: Sequence[Callback],
        watch: Callable[[Snapshot], None] | None,
    ) -> Fit:
        """Return the network trained from the snapshot on."""
        self.history = list(snapshot.history)
        snapshot = snapshot._replace(mechanism=self.mechanism)
        if self.placement is not None:
            state, progress = self._placed((snapshot.state, snapshot.progress))
            best = snapshot.best
            best = best and best._replace(params=self._placed(best.params))
            snapshot = snapshot._replace(state=state, progress=progress, best=best)
        with contextlib.closing(self.feed):
            snapshot = self._ran(snapshot, callbacks, watch)
        best, state = snapshot.best, snapshot.state
        model = model_of(state, self.dtype) if best is None else cast(best.params, self.dtype)
        epoch = snapshot.epoch if best is None else best.epoch
        return Fit(model, state.optimizer_state, self.history, epoch)

    def _ran(
        self,
        snapshot: Snapshot,
        callbacks: Sequence[Callback],
        watch: Callable[[Snapshot], None] | None,
    ) -> Snapshot:
        """Return the snapshot after all epochs."""
        compiling = None if self._done(snapshot) else self._compile(snapshot)
        while not self._done(snapshot):
            self.feed.begin(snapshot.epoch)
            while snapshot.step < self.steps:
                snapshot = self._piece(snapshot)
                if watch is not None and snapshot.step < self.steps:
                    watch(snapshot)
            snapshot, record = self._completed(snapshot, compiling)
            compiling = None
            for callback in callbacks:
                callback(record, snapshot)
            if watch is not None:
                watch(snapshot)
        return snapshot

    def _compile(self, snapshot: Snapshot) -> float:
        """Compile the programs of an epoch, the steps beside the figures.

        On a GPU one after the other: XLA tries out there which form of a product is the fastest,
        and where two programs do so at once, each waits for the other's trials.

        Returns:
            The seconds that it took.
        """
        part = self.feed.part(snapshot.epoch, snapshot.step)
        first = self.feed.first_batch(snapshot.epoch) if self._train_figures else None
        begin = time.perf_counter()
        with ThreadPoolExecutor(1 if on_a_gpu() else 2) as others:
            compiled = [
                others.submit(program.compile) for program in self._traced(snapshot, part, first)
            ]
            for program in compiled:
                program.result()
        return time.perf_counter() - begin

    def _traced(self, snapshot: Snapshot, part: Part, first: Part | None) -> Iterator[Any]:
        """Yield the programs of an epoch, to be compiled.

        Whoever asks for them traces them, under its own `jax.enable_x64`, which is a thread's.
        """
        yield run_steps.lower(
            *self._steps_arguments(snapshot, part, snapshot.step),
            optimizer=self.settings.transformation,
            **self.constants,
        )
        if first is not None:
            arguments = self._figures_arguments(snapshot, first)
            yield gradient_figures.lower(*arguments, **self.constants)
        model = model_of(snapshot.state, self.dtype)
        for scaling, batches in self.others.values():
            yield chunk_sums.lower(self.network, model, scaling, batches[0])

    def _steps_arguments(self, snapshot: Snapshot, part: Part, end: int) -> tuple[Any, ...]:
        """Return the arrays that `run_steps` takes, up to step `end` of the epoch."""
        place = {
            "first": snapshot.step - part.first,
            "end": end - part.first,
            "before": snapshot.epoch * self.steps + part.first,
        }
        return (
            self.network,
            snapshot.state,
            snapshot.progress,
            part.examples,
            part.order,
            part.rates,
            self.regularization,
            self.scaling,
            self.key,
            {name: np.int32(number) for name, number in place.items()},
        )

    def _figures_arguments(self, snapshot: Snapshot, part: Part) -> tuple[Any, ...]:
        """Return the arrays that `gradient_figures` takes."""
        return (
            self.network,
            snapshot.state.params,
            part.examples,
            part.order,
            self.regularization,
            self.scaling,
            self.key,
            np.int32(snapshot.epoch * self.steps),
        )

    def _piece(self, snapshot: Snapshot) -> Snapshot:
        """Return the snapshot after the next half second of steps, or those that are here."""
        begin = time.perf_counter()
        part = self.feed.part(snapshot.epoch, snapshot.step)
        end = self.pace.end(snapshot.step, part.end)
        state, progress = run_steps(
            *self._steps_arguments(snapshot, part, end),
            optimizer=self.settings.transformation,
            **self.constants,
        )
        if end == self.steps and snapshot.epoch + 1 < self.settings.epochs:
            self.feed.prepare(snapshot.epoch + 1)
        jax.block_until_ready((state, progress))
        seconds = time.perf_counter() - begin
        self.pace.took(end - snapshot.step, seconds)
        return snapshot._replace(
            step=end,
            total=snapshot.total + end - snapshot.step,
            state=state,
            progress=progress if self._train_figures else no_sums(self.dtype),
            seconds=snapshot.seconds + seconds,
        )

    def _completed(self, snapshot: Snapshot, compiling: float | None) -> tuple[Snapshot, Record]:
        """Return the snapshot at the end of its epoch, evaluated, and the epoch's record."""
        network, epoch = self.network, snapshot.epoch + 1
        model = model_of(snapshot.state, self.dtype)
        sums: dict[str, list[Sums]] = {}
        of_gradient = {}
        if self._train_figures:
            arguments = self._figures_arguments(snapshot, self.feed.first_batch(snapshot.epoch))
            of_gradient = gradient_figures(*arguments, **self.constants)
            sums["train"] = [snapshot.progress]
        for name, prepared in self.others.items():
            sums[name] = sums_of_chunks(network, model, *prepared)
        # All in one, for a GPU is waited for at every fetch.
        # As a list: names come back from it in the order of the alphabet.
        parts, of_gradient, fetched = jax.device_get((list(sums.values()), of_gradient, model))
        figures = {
            name: total_of(own).metrics(network) for name, own in zip(sums, parts, strict=True)
        }
        what = f"epoch {epoch} of {self.settings.epochs}"
        check_convergence(figures, largest(fetched), what, self.settings.learning_rate)
        # A norm may overflow where the parameters do not.
        finite = {name: float(x) for name, x in of_gradient.items() if np.isfinite(x)}
        record = record_of(epoch, figures, finite)
        if self.settings.private:
            record["epsilon"] = self._epsilon(snapshot.total)
        seconds = snapshot.seconds
        record |= {"seconds": seconds, "examples_per_second": self.n_examples / seconds}
        if compiling is not None:
            record["compile_seconds"] = compiling
        self.history.append(record)
        return Snapshot(
            epoch=epoch,
            step=0,
            total=snapshot.total,
            state=snapshot.state,
            progress=no_sums(self.dtype),
            best=self._best(snapshot.best, model, record),
            history=self.history,
            mechanism=self.mechanism,
        ), record

    def _best(self, best: Best | None, model: Parameters, record: Record) -> Best | None:
        if self.settings.patience is None:
            return None
        value = record[self.settings.monitor]
        if best is not None and not is_better(self.settings.monitor, value, best.value):
            return best
        return Best(copy_of(model), value, int(record["epoch"]))

    def _done(self, snapshot: Snapshot) -> bool:
        """Tell whether all epochs are done, or patience has run out."""
        patience, best = self.settings.patience, snapshot.best
        if patience is not None and best is not None and snapshot.epoch - best.epoch >= patience:
            return True
        return snapshot.epoch >= self.settings.epochs
