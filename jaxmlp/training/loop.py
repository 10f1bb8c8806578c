"""The training loop: epochs of compiled steps, over data that stay on the device.

An epoch runs in pieces of about half a second, between which it can be watched, saved and stopped;
the pieces change nothing in what is computed.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxmlp.batch import Batch
from jaxmlp.evaluation import (
    Metrics,
    checked_examples,
    chunks,
    evaluate_chunks,
    padded,
    padded_batch,
)
from jaxmlp.network import Network, Parameters, check_parameters
from jaxmlp.scaling import Scaling
from jaxmlp.training.optimizers import optimizer_named, with_numbers
from jaxmlp.training.settings import Settings
from jaxmlp.training.steps import (
    NORM_EVERY,
    Progress,
    TrainingState,
    cast,
    no_progress,
    run_steps,
    wide_parameters,
)
from jaxmlp.validation import as_host_array, check_finite, check_key

_SMALLEST_BUCKET = 2048
_LARGEST_STEP = 65536
_FIRST_PIECE = 64  # steps, before their speed is known
_PIECE_SECONDS = 0.5

Record = dict[str, float]


class Best(NamedTuple):
    """The parameters of the epoch whose monitored figure was the best, and that figure."""

    params: Parameters
    value: float
    epoch: int


class Snapshot(NamedTuple):
    """All that a training needs to go on as if it had never stopped.

    `epoch` counts the epochs completed, `step` the steps done of the next one and `total` all steps
    done; `progress` holds the figures of the unfinished epoch and `seconds` its time. `history` has
    the record of every epoch, and grows with the training. The order of the examples and the masks
    follow from the key and these numbers. The arrays of `state` and `progress` are donated to the
    steps that follow: copy what must outlive them.
    """

    epoch: int
    step: int
    total: int
    state: TrainingState
    progress: Progress
    best: Best | None = None
    seconds: float = 0.0
    history: Sequence[Record] = ()


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


def first_snapshot(network: Network, params: Parameters, settings: Settings) -> Snapshot:
    """Return the snapshot of a training that has not begun, its arrays new.

    Args:
        network: The network.
        params: Its initial parameters.
        settings: The training's settings, checked.
    """
    dtype = np.dtype(params[0].weight.dtype)
    wide = wide_parameters(params)
    name, decaying, clipping = settings.transformation
    optimizer = optimizer_named(name, decaying=decaying, clipping=clipping)
    optimizer_state = with_numbers(optimizer.init(wide), settings.numbers)  # pyright: ignore[reportArgumentType]
    average = None if settings.average_decay is None else wide_parameters(params)
    return Snapshot(0, 0, 0, TrainingState(wide, optimizer_state, average), no_progress(dtype))


def fit(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    *,
    key: Array,
    sample_weight: ArrayLike | None = None,
    optimizer: str = "adam",
    optimizer_settings: Mapping[str, float] | None = None,
    learning_rate: ArrayLike = 1e-3,
    schedule: str = "constant",
    warmup: float = 0.0,
    batch_size: int = 128,
    epochs: int = 10,
    weight_decay: float | None = None,
    clip_norm: float | None = None,
    max_norm: float | None = None,
    dropout: float | Sequence[float] = (),
    input_dropout: float = 0.0,
    label_smoothing: float = 0.0,
    average_decay: float | None = None,
    patience: int | None = None,
    monitor: str = "validation_loss",
    scaling: Scaling | None = None,
    evaluation: Mapping[str, tuple[ArrayLike, ...]] | None = None,
    callbacks: Sequence[Callback] = (),
    watch: Callable[[Snapshot], None] | None = None,
    resume: Snapshot | None = None,
) -> Fit:
    """Return the network trained on examples in memory, with our gradient and an optax optimiser.

    An epoch is one compiled program with the state donated; the data stay on the device, pixels
    (uint8) as bytes. Another learning rate or other number of any kind, schedule, number of epochs
    or key compiles nothing new, nor does another N up to the same power of two (above 65,536: the
    same multiple of it). Switching something on that was off (dropout, smoothing, clipping …) does.

    Args:
        network: The network.
        params: Its initial parameters; they are copied, not donated. In float16 and bfloat16 only
            the products are computed in their dtype: what is trained is a float32 copy.
        inputs: (N, D), finite.
        targets: As for `jaxmlp.loss`, classes within 0 … K − 1.
        key: A typed key: it shuffles the examples anew in every epoch, and draws dropout's masks.
        sample_weight: (N,), not negative, or None. Each step takes the mean weighted within its
            batch: with `batch_size=1` weights above 0 change nothing.
        optimizer: A name from `jaxmlp.training.optimizers.OPTIMIZERS`.
        optimizer_settings: Its numbers by optax's names, such as {"b1": 0.8}; others keep optax's
            defaults.
        learning_rate: A scalar above 0.
        schedule: A name from `jaxmlp.training.optimizers.SCHEDULES`: "constant"; "linear" and
            "cosine", from the learning rate down to 0 over all steps; or "one_cycle", up within
            the first 0.3 of them and down to nearly 0.
        warmup: The fraction of all steps in which the rate grows linearly to the schedule's.
        batch_size: Examples a step, at least 1; the last step of an epoch takes what is left.
        epochs: How often all examples are seen, at least 1.
        weight_decay: λ, of weights and never of biases: subtracted from the weights (times the
            learning rate) by adamw, lamb, lion and nadamw, added to the gradient as λW elsewhere.
            None is the optimiser's own default in optax: 1e-4 for adamw and nadamw, 1e-3 for lion.
        clip_norm: Scale the gradient of a batch down to this norm where it is larger, or None.
        max_norm: Scale the incoming weights of a hidden unit down to this norm after each step.
        dropout: The fraction of each hidden layer's units dropped, one rate or one for each.
        input_dropout: The fraction of inputs dropped.
        label_smoothing: α in [0, 1): the targets of a cross-entropy are mixed with the uniform
            distribution, (1 − α) t + α/K.
        average_decay: d in (0, 1): evaluate and return the average of the parameters over all
            steps with weights falling by d each step back, or None for the last ones.
        patience: Stop early when `monitor` has not improved for so many epochs, and return the best
            epoch's parameters; or None.
        monitor: The figure that `patience` watches: `<name>_loss` or `<name>_accuracy` of an
            evaluation.
        scaling: What the inputs go through before the first layer, here and in every evaluation.
        evaluation: Name → (inputs, targets) or (inputs, targets, sample_weight): each is evaluated
            after every epoch.
        callbacks: Called after every epoch as callback(record, snapshot).
        watch: Called as watch(snapshot) after every piece of an epoch, about twice a second.
        resume: A snapshot of the same training, to go on from; it is copied, not donated. Numbers
            may be other ones and count from here on; so may the number of epochs.

    Returns:
        `Fit(params, optimizer_state, history, best_epoch)`. A record of the history holds `epoch`
        from 1, `train_loss` and for classifiers `train_accuracy` (means over the epoch's batches,
        before each step and with its masks), `gradient_norm` (the mean of every 16th step's),
        `<name>_loss` and `<name>_accuracy` of every evaluation, `seconds` of the training part,
        `examples_per_second`, and, in the first record of a call, `compile_seconds` apart.

    Raises:
        TypeError: As for `jaxmlp.loss`, no typed key, or a setting of another type.
        ValueError: No examples, values that do not fit or are not finite, an unknown name or a
            number out of its range.
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
    rate = as_host_array("learning_rate", learning_rate)
    if rate.shape != ():
        raise ValueError(f"learning_rate: expected a scalar, got shape {rate.shape}")
    settings = Settings(
        optimizer=optimizer,
        optimizer_settings={} if optimizer_settings is None else optimizer_settings,
        learning_rate=rate.item(),
        schedule=schedule,
        warmup=warmup,
        batch_size=batch_size,
        epochs=epochs,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        max_norm=max_norm,
        dropout=tuple(dropout) if isinstance(dropout, Sequence) else (dropout,),
        input_dropout=input_dropout,
        label_smoothing=label_smoothing,
        average_decay=average_decay,
        patience=patience,
        monitor=monitor,
    )
    settings.check(network)
    examples, left = checked_examples(network, params, inputs, targets, sample_weight, scaling)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        check_finite(f"params{jax.tree_util.keystr(path)}", np.asarray(leaf))
    if not isinstance(callbacks, Sequence):
        raise TypeError(f"callbacks: expected a list, got {type(callbacks).__name__}")
    if not isinstance(evaluation or {}, Mapping) or "train" in (evaluation or {}):
        raise ValueError(
            'evaluation: expected name → (inputs, targets) with other names than "train", got '
            f"{evaluation!r:.60}"
        )
    if patience is not None and monitor.rpartition("_")[0] not in (evaluation or {}):
        raise ValueError(
            f"monitor: expected a figure of an evaluation ({', '.join(evaluation or {}) or 'none'} "
            f"given), got {monitor!r}"
        )
    others = {}
    for name, arrays in (evaluation or {}).items():
        if not isinstance(arrays, Sequence) or len(arrays) not in (2, 3):
            raise TypeError(
                f"evaluation: expected (inputs, targets) or (inputs, targets, sample_weight) for "
                f"{name!r}, got {type(arrays).__name__}"
            )
        checked, scaling_left = checked_examples(network, params, *arrays, scaling=scaling)
        others[name] = scaling_left, jax.device_put(list(chunks(*checked)))
    training = _Training(network, params, settings, key, examples, left, others)
    del examples  # they are on the device
    if resume is None:
        snapshot = first_snapshot(network, params, settings)
    else:
        snapshot = training.resumed(resume, params)
    return training.run(snapshot, callbacks, watch)


class _Training:
    """A training under way: what does not change while it runs, and the steps of running it."""

    smallest_piece = 1

    def __init__(
        self,
        network: Network,
        params: Parameters,
        settings: Settings,
        key: Array,
        examples: tuple[np.ndarray, np.ndarray, np.ndarray],
        scaling: Scaling | None,
        others: Mapping[str, tuple[Scaling | None, list[Batch]]],
    ) -> None:
        self.network, self.settings = network, settings
        self.scaling, self.others = scaling, others
        self.n_examples = len(examples[0])
        self.dtype = np.dtype(params[0].weight.dtype)
        rows = _bucket(self.n_examples)
        self.data: Batch = jax.device_put(padded_batch(*examples, rows))
        self.batch_size = min(settings.batch_size, rows)  # beyond: nothing but padding
        self.longest = -(-rows // self.batch_size)
        self.steps = -(-self.n_examples // self.batch_size)
        self.words = np.asarray(jax.random.key_data(key)).tolist()
        self.wide = np.promote_types(self.dtype, np.float32)
        self.regularization = settings.regularization(network, self.wide)
        self.key = None if self.regularization.dropout is None else key
        self.per_second = _FIRST_PIECE / _PIECE_SECONDS  # steps
        self.history: list[Record] = []  # grows: a tuple anew each epoch would be quadratic

    def resumed(self, snapshot: Snapshot, params: Parameters) -> Snapshot:
        """Return a copy of a snapshot of this training, with the numbers of the settings.

        Args:
            snapshot: The snapshot.
            params: The initial parameters; only their shapes and dtypes count.

        Raises:
            ValueError: It is of another training, or its arrays are gone.
        """

        def shapes(state: TrainingState) -> Any:
            return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)

        first = jax.eval_shape(
            lambda params: first_snapshot(self.network, params, self.settings).state, params
        )
        if shapes(snapshot.state) != shapes(first):
            raise ValueError(
                "resume: expected a snapshot of a training of this network with this optimizer and "
                "the same settings on and off, got another one's"
            )
        if snapshot.total != snapshot.epoch * self.steps + snapshot.step:
            raise ValueError(
                f"resume: expected a snapshot of a training with {self.steps} steps an epoch, got "
                f"one of {snapshot.total} steps in {snapshot.epoch} epochs and {snapshot.step} "
                "steps: the examples or the batch size are others"
            )
        leaves = jax.tree.leaves((snapshot.state, snapshot.progress))
        if any(isinstance(leaf, Array) and leaf.is_deleted() for leaf in leaves):
            raise ValueError(
                "resume: expected a snapshot that holds its arrays, got one that a training has "
                "gone on from: copy what must outlive it"
            )
        copied: Any = jax.tree.map(partial(jnp.array, copy=True), snapshot.state)
        numbers = with_numbers(copied.optimizer_state, self.settings.numbers)
        return snapshot._replace(
            state=copied._replace(optimizer_state=numbers),
            progress=jax.tree.map(partial(jnp.array, copy=True), snapshot.progress),
        )

    def run(
        self,
        snapshot: Snapshot,
        callbacks: Sequence[Callback],
        watch: Callable[[Snapshot], None] | None,
    ) -> Fit:
        """Return the network trained from the snapshot on."""
        compiling = None
        self.history = list(snapshot.history)
        if not self._done(snapshot):
            snapshot, compiling = self._compiled(snapshot)
        while not self._done(snapshot):
            order, rates = self._order(snapshot.epoch)
            while snapshot.step < self.steps:
                snapshot = self._piece(snapshot, order, rates)
                if watch is not None and snapshot.step < self.steps:
                    watch(snapshot)
            snapshot, record = self._completed(snapshot, compiling)
            compiling = None
            for callback in callbacks:
                callback(record, snapshot)
            if watch is not None:
                watch(snapshot)
        best, state = snapshot.best, snapshot.state
        model = self._model(state) if best is None else cast(best.params, self.dtype)
        epoch = snapshot.epoch if best is None else best.epoch
        return Fit(model, state.optimizer_state, self.history, epoch)

    def _compiled(self, snapshot: Snapshot) -> tuple[Snapshot, float]:
        """Return the snapshot after no step at all, and the seconds that compiling took."""
        begin = time.perf_counter()
        order, rates = self._order(snapshot.epoch)
        state, progress = self._run(snapshot, order, rates, snapshot.step)
        for scaling, batches in self.others.values():
            evaluate_chunks(self.network, self._model(state), scaling, batches[:1])
        jax.block_until_ready((state, progress))
        return snapshot._replace(state=state, progress=progress), time.perf_counter() - begin

    def _order(self, epoch: int) -> tuple[Array, Array]:
        """Return an epoch's order of the examples and its learning rates, padded, on the device."""
        shuffle = np.random.default_rng([*self.words, epoch])
        order = shuffle.permutation(self.n_examples).astype(np.int32)
        first, total = epoch * self.steps, self.settings.epochs * self.steps
        rates = self.settings.rates(first, first + self.steps, total).astype(self.wide)
        return jax.device_put(
            (padded(order, self.longest * self.batch_size), padded(rates, self.longest))
        )

    def _run(
        self, snapshot: Snapshot, order: Array, rates: Array, end: int
    ) -> tuple[TrainingState, Progress]:
        before = snapshot.epoch * self.steps
        place = {
            "first": snapshot.step, "end": end, "n_examples": self.n_examples, "before": before,
        }  # fmt: skip
        return run_steps(
            self.network,
            snapshot.state,
            snapshot.progress,
            self.data,
            order,
            rates,
            self.regularization,
            self.scaling,
            self.key,
            {name: np.int32(value) for name, value in place.items()},
            optimizer=self.settings.transformation,
            batch_size=self.batch_size,
            dtype=self.dtype,
        )

    def _piece(self, snapshot: Snapshot, order: Array, rates: Array) -> Snapshot:
        """Return the snapshot after the next half second of steps."""
        size = max(self.smallest_piece, int(self.per_second * _PIECE_SECONDS))
        end = min(self.steps, snapshot.step + size)
        if self.steps - end <= size // 2:  # no crumbs
            end = self.steps
        begin = time.perf_counter()
        state, progress = jax.block_until_ready(self._run(snapshot, order, rates, end))
        seconds = time.perf_counter() - begin
        self.per_second = (end - snapshot.step) / seconds
        return snapshot._replace(
            step=end,
            total=snapshot.total + end - snapshot.step,
            state=state,
            progress=progress,
            seconds=snapshot.seconds + seconds,
        )

    def _completed(self, snapshot: Snapshot, compiling: float | None) -> tuple[Snapshot, Record]:
        """Return the snapshot at the end of its epoch, evaluated, and the epoch's record."""
        network, epoch = self.network, snapshot.epoch + 1
        model = self._model(snapshot.state)
        progress = jax.device_get(snapshot.progress)
        figures = {"train": progress.sums.metrics(network)} | {
            name: evaluate_chunks(network, model, *prepared)
            for name, prepared in self.others.items()
        }
        what = f"epoch {epoch} of {self.settings.epochs}"
        _check_convergence(figures, model, what, self.settings.learning_rate)
        record: Record = {"epoch": epoch}
        for name, metrics in figures.items():
            record[f"{name}_loss"] = metrics.loss
            if metrics.accuracy is not None:
                record[f"{name}_accuracy"] = metrics.accuracy
            if name == "train":
                norm = float(progress.gradient_norms) / -(-self.steps // NORM_EVERY)
                if np.isfinite(norm):  # it may overflow where the parameters do not
                    record["gradient_norm"] = norm
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
            progress=no_progress(self.dtype),
            best=self._best(snapshot.best, model, record),
            history=self.history,
        ), record

    def _best(self, best: Best | None, model: Parameters, record: Record) -> Best | None:
        if self.settings.patience is None:
            return None
        value = record[self.settings.monitor]
        if best is not None:
            better = value > best.value if self._rising else value < best.value
            if not better:
                return best
        return Best(jax.tree.map(partial(jnp.array, copy=True), model), value, int(record["epoch"]))

    @property
    def _rising(self) -> bool:
        return self.settings.monitor.endswith("_accuracy")

    def _done(self, snapshot: Snapshot) -> bool:
        """Tell whether all epochs are done, or patience has run out."""
        patience, best = self.settings.patience, snapshot.best
        if patience is not None and best is not None and snapshot.epoch - best.epoch >= patience:
            return True
        return snapshot.epoch >= self.settings.epochs

    def _model(self, state: TrainingState) -> Parameters:
        """Return the parameters to predict with: the average where there is one."""
        params = state.params if state.average is None else state.average
        return cast(params, self.dtype)


def _bucket(n_examples: int) -> int:
    """Return the padded number of rows: a power of two up to 65,536, then a multiple of it."""
    if n_examples > _LARGEST_STEP:
        return -(-n_examples // _LARGEST_STEP) * _LARGEST_STEP
    return max(_SMALLEST_BUCKET, 1 << (n_examples - 1).bit_length())


def _check_convergence(
    figures: Mapping[str, Metrics], params: Parameters, epoch: str, rate: float
) -> None:
    """Raise where an epoch ended with a loss or a parameter that is not finite.

    The training loss is that before each step: what the last step did shows in the others.

    Raises:
        FloatingPointError: With the name of the figure and the epoch.
    """
    losses = {f"the {name} loss": metrics.loss for name, metrics in figures.items()}
    sizes = {"a parameter": float(largest(params))}
    for name, value in (losses | sizes).items():
        if not np.isfinite(value):
            raise FloatingPointError(
                f"training diverged: {name} became {value} in {epoch}; a learning rate below "
                f"{rate:g} may help"
            )


@jax.jit
def largest(params: Parameters) -> Array:
    """Return the largest absolute value of all parameters, NaN where there is one."""
    leaves = jax.tree.leaves(params)
    return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in leaves]).astype(jnp.float32))
