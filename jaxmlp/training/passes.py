"""Passes: members of an ensemble that are trained at a time, mapped over by `jax.vmap`."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.random import clone

from jaxmlp.batch import Batch
from jaxmlp.evaluation import CHUNK, Sums, padded_batch
from jaxmlp.network import Network, Parameters
from jaxmlp.scaling import Scaling
from jaxmlp.training.distributed import Placement, on_host
from jaxmlp.training.epochs import Pace
from jaxmlp.training.mapped import (
    chosen,
    first_states,
    largest_of_members,
    members_sums,
    run_members,
    taken,
)
from jaxmlp.training.members import (
    optimizer_numbers,
    regularizations,
    transformation,
)
from jaxmlp.training.memory import free_beside, members_that_fit, tree_bytes
from jaxmlp.training.optimizers import rate_factors, with_numbers
from jaxmlp.training.orders import bucket, epoch_order
from jaxmlp.training.records import check_convergence, columns_of, is_better
from jaxmlp.training.regularization import Regularization
from jaxmlp.training.settings import Settings
from jaxmlp.training.snapshots import Record
from jaxmlp.training.steps import TrainingState, model_of, no_sums


class Progress(NamedTuple):
    """How far `fit_ensemble` is.

    `finished` of `members` are trained; those under way have done `epoch` epochs, and `active` of
    them are still trained.
    """

    finished: int
    members: int
    epoch: int
    active: int


class Members:
    """The members' data and results, and the training of some of them at a time."""

    def __init__(
        self,
        network: Network,
        dtype: np.dtype,
        settings: list[Settings],
        widths: np.ndarray | None,
        key: Array,
        examples: tuple[np.ndarray, np.ndarray, np.ndarray],
        scaling: Scaling | None,
        others: Mapping[str, tuple[Scaling | None, list[Batch]]],
        halving: int | None,
        group: int,
        placement: Placement | None,
    ) -> None:
        self.placement = placement
        self.n_devices = 1 if placement is None else placement.count
        self.network, self.settings, self.widths = network, settings, widths
        self.key = key
        self.scaling, self.others = self.everywhere((scaling, others))
        self.words = np.asarray(jax.random.key_data(key)).tolist()
        self.n_examples = len(examples[0])
        self.dtype = dtype
        self.wide = np.promote_types(dtype, np.float32)
        rows = bucket(self.n_examples)
        self.data: Batch = self.everywhere(padded_batch(*examples, rows))
        first = settings[0]
        self.batch_size = min(first.batch_size, rows)
        self.longest = -(-rows // self.batch_size)
        self.steps = -(-self.n_examples // self.batch_size)
        self.epochs, self.patience, self.monitor = first.epochs, first.patience, first.monitor
        self.optimizer = transformation(settings)
        self.averaging = first.average_decay is not None
        self.halving, self.group = halving, group
        self.histories: list[list[Record]] = [[] for _ in settings]
        self.best_epochs = [0] * len(settings)
        self.diverged: dict[int, str] = {}
        self.finished = 0
        self.compiling = 0.0  # what a program takes, in seconds

    def everywhere(self, tree: Any) -> Any:
        """Return the tree on the device, or with a copy on every device."""
        if self.placement is None:
            return jax.device_put(tree)
        return self.placement.everywhere(tree)

    def in_parts(self, tree: Any) -> Any:
        """Return the tree of leaves (slots, …) on the device, or a part on every device."""
        return jax.device_put(tree) if self.placement is None else self.placement.in_parts(tree)

    def that_fit(self, one: Parameters, group: int) -> int:
        """Return how many members, each like `one`, are trained at a time, at least a group.

        Raises:
            MemoryError: There is no room for them.
        """
        state = jax.eval_shape(
            partial(first_states, optimizer=self.optimizer, averaging=self.averaging),
            jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), one),
        )
        # The state, the gradient and the update; what is kept and what is returned, initial and
        # last; the layers of a batch forth and back; its own inputs and orders, if it has some: of
        # this epoch and the next.
        own = self.key.ndim or any(one.input_dropout for one in self.settings)
        inputs = 2 * self.network.sizes[0] if own else 0
        values = (self.batch_size + 1) * (4 * sum(self.network.sizes[1:]) + inputs)
        if self.others:  # a chunk's widest layer, before and after its activation
            values = max(values, CHUNK * 2 * max(self.network.sizes[1:]))
        values *= self.wide.itemsize
        order = 2 * self.longest * self.batch_size * 4 if self.key.ndim else 0
        each = tree_bytes(state) + 2 * tree_bytes(state.params) + 4 * tree_bytes(one)
        free = free_beside(jax.tree.leaves(self.data)[0], self.n_devices)
        groups = -(-len(self.settings) // group)
        size = group * members_that_fit(groups, group * (each + values + order), free)
        return size if self.placement is None else self.placement.agreed(size)

    def train(
        self,
        params: Parameters,
        ids: np.ndarray,
        count: int,
        watch: Callable[[Progress], None] | None,
    ) -> Parameters:
        """Train a pass of members, and return their parameters.

        Args:
            params: Their initial parameters.
            ids: The members' numbers, the last one repeated to fill up the pass.
            count: How many there are without that.
            watch: As for `fit_ensemble`.

        Returns:
            Those of the `count` members in the order of their numbers.
        """
        running = Pass(self, params, ids, count)
        running.run(watch)
        self.finished += count
        return running.parameters(count)


class Pass:
    """Members that are trained at a time, each in a slot of the arrays.

    A slot is live until its member stops: by patience, by halving, or by diverging. When half of
    them have stopped, those left are taken together if that saves more than it costs to compile.
    """

    def __init__(self, members: Members, params: Parameters, ids: np.ndarray, count: int) -> None:
        self.members, self.ids = members, ids
        self.live = np.arange(len(ids)) < count
        self.real = self.live.copy()  # the others fill up
        params = members.in_parts(params)
        state = first_states(params, optimizer=members.optimizer, averaging=members.averaging)
        numbers = optimizer_numbers([members.settings[m] for m in ids])
        state = state._replace(optimizer_state=with_numbers(state.optimizer_state, numbers))
        self.state: TrainingState = members.in_parts(state)
        # What is returned: the best so far with patience, or else that of the stopped.
        self.kept: Parameters = params
        self.done: list[tuple[np.ndarray, Parameters]] = []
        self.values = np.full(len(ids), np.nan)
        self.pace = Pace(members.placement)
        self._settle()

    def _settle(self) -> None:
        """Prepare what goes with the members in the slots."""
        of = self.members
        own = [of.settings[m] for m in self.ids]
        self.rates = np.array([one.learning_rate for one in own])
        self.scheduled: dict[tuple[str, float], list[int]] = {}
        for slot, one in enumerate(own):
            self.scheduled.setdefault((one.schedule, one.warmup), []).append(slot)
        self.next: tuple[int, tuple[Array, Array]] | None = None  # an epoch's order and rates
        widths = None if of.widths is None else of.widths[self.ids]
        self.regularization: Regularization = of.in_parts(
            regularizations(of.network, own, of.wide, widths)
        )
        random = self.regularization.dropout is not None
        self.key: Any = None
        if random:
            own = of.key.ndim == 1
            self.key = of.in_parts(clone(of.key)[self.ids]) if own else of.everywhere(of.key)

    def run(self, watch: Callable[[Progress], None] | None) -> None:
        """Train for all epochs, or until every member has stopped."""
        of = self.members
        compiling = self._compile()
        of.compiling = max(of.compiling, compiling)
        for epoch in range(of.epochs):
            begin = time.perf_counter()
            ready, self.next = self.next, None
            order, rates = ready[1] if ready and ready[0] == epoch else self._order(epoch)
            progress, step = no_sums(of.dtype, self.ids.shape), 0
            while step < of.steps:
                end = self.pace.end(step, of.steps)
                piece = time.perf_counter()
                self.state, progress = self._steps(progress, order, rates, epoch, step, end)
                if end == of.steps and epoch + 1 < of.epochs:  # while the device computes
                    self.next = epoch + 1, self._order(epoch + 1)
                jax.block_until_ready(progress)
                self.pace.took(end - step, time.perf_counter() - piece)
                step = end
                if watch is not None and step < of.steps:
                    watch(self._progress(epoch))
            seconds = time.perf_counter() - begin
            self._complete(epoch + 1, progress, seconds, compiling if epoch == 0 else None)
            if watch is not None:
                watch(self._progress(epoch + 1))
            if not self.live.any():
                break
            self._close_ranks((of.epochs - epoch - 1) * seconds)

    def _progress(self, epoch: int) -> Progress:
        of = self.members
        return Progress(of.finished, len(of.settings), epoch, int(self.live.sum()))

    def _compile(self) -> float:
        """Compile the programs, by taking no step, and return the seconds."""
        begin = time.perf_counter()
        order, rates = self._order(0)
        nothing = no_sums(self.members.dtype, self.ids.shape)
        self.state, sums = self._steps(nothing, order, rates, 0, 0, 0)
        figures = self._figures(sums)
        jax.block_until_ready((self.state, figures))
        return time.perf_counter() - begin

    def _order(self, epoch: int) -> tuple[Array, Array]:
        """Return the order of an epoch, one or each slot's, and the rates (slots, steps)."""
        of = self.members
        length = of.longest * of.batch_size
        if of.key.ndim == 0:
            order = of.everywhere(epoch_order(of.words, epoch, of.n_examples, length))
        else:
            orders = [epoch_order(of.words[m], epoch, of.n_examples, length) for m in self.ids]
            order = of.in_parts(np.stack(orders))
        rates = np.zeros((len(self.ids), of.longest), of.wide)
        steps = np.arange(epoch * of.steps, (epoch + 1) * of.steps)
        for (schedule, warmup), slots in self.scheduled.items():  # members have them in common
            factors = rate_factors(schedule, warmup, steps, of.epochs * of.steps)
            rates[slots, : of.steps] = self.rates[slots, None] * factors
        return order, of.in_parts(rates)

    def _steps(
        self, progress: Sums, order: Array, rates: Array, epoch: int, first: int, end: int
    ) -> tuple[TrainingState, Sums]:
        of = self.members
        place = {"first": first, "end": end, "before": epoch * of.steps}
        return run_members(
            of.network,
            self.state,
            progress,
            of.data,
            order,
            rates,
            self.regularization,
            of.scaling,
            self.key,
            {name: np.int32(number) for name, number in place.items()},
            optimizer=of.optimizer,
            batch_size=of.batch_size,
            dtype=of.dtype,
        )

    def _model(self) -> Parameters:
        """Return the parameters to predict with: the averages where there are some."""
        return model_of(self.state, self.members.dtype)

    def _figures(self, progress: Sums) -> tuple[dict[str, Any], np.ndarray]:
        """Return the sums (slots,) of every part, and the largest parameters (slots,)."""
        of, model = self.members, self._model()
        sums: dict[str, Any] = {"train": on_host(progress)}
        for name, (scaling, batches) in of.others.items():
            parts = [members_sums(of.network, model, scaling, batch) for batch in batches]
            total: Any = np.sum(on_host(parts), axis=0, dtype=np.float64)
            sums[name] = Sums(*total)
        return sums, on_host(largest_of_members(model))

    def _complete(
        self, epoch: int, progress: Sums, seconds: float, compiling: float | None
    ) -> None:
        """Record the figures of an epoch; see who is better, who diverged and who stops."""
        of = self.members
        sums, sizes = self._figures(progress)
        columns = columns_of(of.network, sums)
        rest = {
            "seconds": seconds,
            "examples_per_second": float(of.n_examples * self.live.sum() / seconds),
        }
        if compiling is not None:
            rest["compile_seconds"] = compiling
        losses = [column for name, column in columns.items() if name.endswith("_loss")]
        finite = np.isfinite([*losses, sizes]).all(axis=0)
        for slot in np.flatnonzero(self.live & ~finite):
            self._diverge(int(slot), epoch, sums, float(sizes[slot]))
        live = np.flatnonzero(self.live)
        # By columns, not member by member: of thousands this would take longer than their steps.
        figures = zip(*(column[live].tolist() for column in columns.values()), strict=True)
        for m, own in zip(self.ids[live].tolist(), figures, strict=True):
            of.histories[m].append({"epoch": epoch, **dict(zip(columns, own, strict=True)), **rest})
        better = self.live
        if of.patience is not None:
            value = columns[of.monitor]
            better = self.live & is_better(of.monitor, value, self.values)
            self.values[better] = value[better]
            self.kept = chosen(better, self._model(), self.kept)
        for m in self.ids[better].tolist():
            of.best_epochs[m] = epoch
        before = self.live.copy()
        self._stop(epoch)
        stopping = before & ~self.live if epoch < of.epochs else before
        if of.patience is None and stopping.any():
            self.kept = chosen(stopping, self._model(), self.kept)

    def _diverge(self, slot: int, epoch: int, sums: dict[str, Any], size: float) -> None:
        """Note why a member whose figures are not finite is trained no longer."""
        of, m = self.members, int(self.ids[slot])
        figures = {
            name: Sums(*(part[slot] for part in whole)).metrics(of.network)
            for name, whole in sums.items()
        }
        what = f"epoch {epoch} of {of.epochs}"
        try:
            check_convergence(figures, size, what, of.settings[m].learning_rate)
        except FloatingPointError as error:
            of.diverged[m] = str(error)
            self.live[slot] = False

    def _stop(self, epoch: int) -> None:
        """Let those stop whose patience has run out, or that are not among the best."""
        of = self.members
        if of.patience is not None:
            for slot in np.flatnonzero(self.live):
                if epoch - of.best_epochs[self.ids[slot]] >= of.patience:
                    self.live[slot] = False
        if of.halving is not None and is_power(epoch, of.halving) and epoch < of.epochs:
            groups: dict[int, list[float]] = {}
            for m in self.ids[self.live]:
                groups.setdefault(m // of.group, []).append(of.histories[m][-1][of.monitor])
            rising = of.monitor.endswith("_accuracy")
            best = sorted(groups, key=lambda group: np.mean(groups[group]), reverse=rising)
            self.live &= np.isin(self.ids // of.group, best[: -(-len(best) // of.halving)])

    def _close_ranks(self, seconds_left: float) -> None:
        """Go on with the live members alone where that saves more than compiling costs."""
        live = np.flatnonzero(self.live)
        size = 1 << (len(live) - 1).bit_length()
        size += -size % self.members.n_devices
        if size > len(self.ids) / 2:
            return
        pays = seconds_left * (1 - size / len(self.ids)) >= self.members.compiling
        placement = self.members.placement
        if not (pays if placement is None else placement.agreed(pays)):
            return
        stopped = np.flatnonzero(self.real & ~self.live)
        self.done.append((self.ids[stopped], taken(self.kept, stopped)))
        slots = live[np.minimum(np.arange(size), len(live) - 1)]
        self.state, self.kept = self.members.in_parts(taken((self.state, self.kept), slots))
        self.ids, self.values = self.ids[slots], self.values[slots]
        self.live = np.arange(size) < len(live)
        self.real = self.live.copy()
        self._settle()

    def parameters(self, count: int) -> Parameters:
        """Return the parameters of the pass's members in their order, NaN for the diverged."""
        of = self.members
        if of.placement is not None:  # so that every process has them
            self.kept = of.everywhere(self.kept)
            self.done = [(ids, of.everywhere(params)) for ids, params in self.done]
        parts = [*self.done, (np.where(self.real, self.ids, -1), self.kept)]
        ids, places = np.unique(np.concatenate([ids for ids, _ in parts]), return_index=True)
        ids, places = ids[ids >= 0], places[ids >= 0]
        assert len(ids) == count
        lost = np.array([m in of.diverged for m in ids.tolist()])

        def ordered(*leaves: Array) -> Array:
            taken = jnp.concatenate(leaves)[places]
            return jnp.where(jnp.reshape(lost, (-1,) + (1,) * (taken.ndim - 1)), jnp.nan, taken)

        return jax.tree.map(ordered, *(params for _, params in parts))


def is_power(number: int, base: int) -> bool:
    """Tell whether a number of at least 1 is a power of the base of at least 2, or 1."""
    return number == 1 or (number % base == 0 and is_power(number // base, base))
