"""`jaxmlp train`: from options to a run's folder, one seed or several, and back into it."""

import dataclasses
import math
import shlex
import signal
import sys
import time
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import jax
import numpy as np

import jaxmlp
from jaxmlp.backprop import product
from jaxmlp.cli.console import (
    bad_input,
    check_folder,
    failing_run,
    select_device,
    use_compile_cache,
    warn,
)
from jaxmlp.data import (
    Dataset,
    Examples,
    class_weights,
    example_weights,
    load_dataset,
    standardized,
)
from jaxmlp.evaluation import checked_examples
from jaxmlp.network import Network, init
from jaxmlp.progress import Progress, say
from jaxmlp.training import runs
from jaxmlp.training.checkpoints import FOLDER as CHECKPOINTS
from jaxmlp.training.checkpoints import Checkpoints
from jaxmlp.training.interruption import Interruption, Stopped
from jaxmlp.training.loop import Fit, Record, Snapshot, first_snapshot, fit
from jaxmlp.training.settings import Settings, check_count, check_number
from jaxmlp.validation import check_float_dtype, check_name

_LOSSES_OF_CLASSES = ("softmax_cross_entropy", "sigmoid_binary_cross_entropy", "squared_error")
_LOSSES_OF_NUMBERS = ("squared_error", "poisson")
_MOST_PARAMETERS = 2**40  # no machine holds them; where sizes overflow, XLA aborts the process


@dataclasses.dataclass
class Train:
    """Train a network on real data with the hand-derived gradient, and save it."""

    dataset: str = "digits"
    """The data: digits, iris, wine, breast_cancer or diabetes, which ship with scikit-learn, mnist,
    fashion_mnist, kmnist or emnist, or a file .npz or .csv."""
    data_dir: Path | None = None
    """A folder with the four idx files of mnist and its kind, gzipped or not, or with what `jaxmlp
    data prepare` prepared; by default what it prepared in its own default folder."""
    target: str | None = None
    """The column of a .csv file to predict; by default the last."""
    regression: bool = False
    """Take the targets of a file as numbers, where they could be classes."""
    validation_fraction: float = 0.0
    """Put aside this part of the training examples, stratified by class, for validation."""
    validation_file: Path | None = None
    """Or take them from this file, of the same kind."""
    test_file: Path | None = None
    """Take the test examples from this file, of the same kind."""
    standardize: bool = False
    """Bring every input to mean 0 and standard deviation 1, by the training part's figures, which
    are kept with the model."""
    class_weight: tuple[str, ...] = ()
    """`balanced`, or CLASS=WEIGHT for some classes: examples of a class count so much."""
    hidden: tuple[int, ...] = (128, 64)
    """Units of each hidden layer; give the option without a number for none."""
    activation: tuple[str, ...] = ("sigmoid",)
    """The hidden layers' activation, one for all or one for each: identity, sigmoid, tanh, relu,
    leaky_relu, elu, softplus, silu, gelu or gelu_tanh."""
    loss: str | None = None
    """For classes softmax_cross_entropy, the default, or sigmoid_binary_cross_entropy or
    squared_error, which take them as one-hot rows; for numbers squared_error, the default, or
    poisson."""
    bias: bool = True
    """Whether the layers have biases."""
    optimizer: str = "adam"
    """sgd, momentum, nesterov, adagrad, adam, adamw, amsgrad, lamb, lion, nadam, nadamw, radam or
    rmsprop."""
    optimizer_settings: tuple[str, ...] = ()
    """NAME=NUMBER for some of its settings by optax's names, such as b1=0.8."""
    learning_rate: float = 0.005
    """The largest learning rate."""
    schedule: str = "cosine"
    """cosine or linear, from the learning rate down to 0 over all steps, one_cycle, or constant."""
    warmup: float = 0.0
    """The fraction of all steps in which the rate grows to the schedule's."""
    batch_size: int = 32
    """Examples a step."""
    epochs: int = 20
    """How often all examples are seen."""
    weight_decay: float | None = None
    """Of the weights, not the biases; by default the optimiser's own (adamw and nadamw 1e-4, lion
    1e-3, others none)."""
    clip_norm: float | None = None
    """Scale a batch's gradient down to this norm where it is larger."""
    max_norm: float | None = None
    """Scale the incoming weights of a hidden unit down to this norm."""
    dropout: tuple[float, ...] = ()
    """The fraction of units dropped in the hidden layers, one for all or one for each."""
    input_dropout: float = 0.0
    """The fraction of inputs dropped."""
    label_smoothing: float = 0.0
    """Mix the targets with the uniform distribution by this much, for a cross-entropy."""
    average_decay: float | None = None
    """Save and evaluate the average of the weights, by this much less for each step back."""
    patience: int | None = None
    """Stop when the monitored figure has not improved for so many epochs, and keep the best."""
    monitor: str = "validation_loss"
    """The figure that patience watches: validation_loss or validation_accuracy."""
    seed: int = 0
    """Of the initial parameters, the order of the examples, the masks and the split."""
    seeds: int = 1
    """Train so many networks, with this seed and the next ones; report mean and deviation."""
    dtype: Literal["float32", "float64", "float16", "bfloat16"] = "float32"
    """Of the products and the saved model; float64 needs JAX_ENABLE_X64=1 in the environment."""
    precision: str | None = None
    """Of the matrix products: default, high, highest, or a name such as TF32_TF32_F32."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    output: Path | None = None
    """The run's folder, new or empty; by default runs/<dataset>-<n>."""
    resume: bool = False
    """Go on with the run in --output from its last checkpoint, or start it where there is none. Its
    options need not be given again."""
    keep: int = 3
    """How many checkpoints are kept."""
    checkpoint_every: float | None = None
    """Seconds from one checkpoint to the next; by default as many as keep their cost below a
    twenty-fifth of the running time, with the first after 8."""
    pictures: bool = True
    """Draw learning curves, confusion matrix and so on into the run's folder."""
    quiet: bool = False
    """Print the last line only."""
    compile_cache: Path | None = None
    """Keep compiled programs in this folder, for the next run."""


_OF_ONE_PROCESS = (
    "output", "resume", "keep", "checkpoint_every", "pictures", "quiet", "compile_cache", "device",
)  # fmt: skip
_OF_THE_TRAINING = [
    field.name for field in dataclasses.fields(Train) if field.name not in _OF_ONE_PROCESS
]


def resumed_options(arguments: list[str]) -> dict[str, Any]:
    """Return the default options for tyro where a run is to be resumed: those of the run."""
    if arguments[:1] != ["train"] or "--resume" not in arguments:
        return {}
    outputs = [value for name, value in zip(arguments, arguments[1:], strict=False)
               if name == "--output"]  # fmt: skip
    outputs += [
        word.removeprefix("--output=") for word in arguments if word.startswith("--output=")
    ]
    if not outputs:
        return {}
    with bad_input():
        saved = runs.training_options(Path(outputs[-1]))
        return {} if saved is None else {"default": saved_options(Path(outputs[-1]), saved)}


def saved_options(run: Path, saved: dict[str, Any]) -> Train:
    """Return the options that a run was begun with, as config.json has them.

    Raises:
        ValueError: One of them is of another type.
    """
    types, options = get_type_hints(Train), {}
    for name in _OF_THE_TRAINING:
        if name not in saved:
            continue
        value = saved[name]
        value = tuple(value) if isinstance(value, list) else value
        value = Path(value) if isinstance(value, str) and Path in get_args(types[name]) else value
        if not _is_of_type(value, types[name]):
            raise ValueError(
                f"{run / runs.CONFIG}: not a run's configuration: training.{name} is "
                f"{saved[name]!r:.60}"
            )
        options[name] = value
    return Train(**options)


def _is_of_type(value: Any, hint: Any) -> bool:
    """Tell whether a value is of one of the types that options have."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin is UnionType:
        return any(_is_of_type(value, argument) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_of_type(x, arguments[0]) for x in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def train(options: Train) -> None:
    """Train the networks of all seeds, and save them."""
    begin = time.perf_counter()
    with bad_input():
        if options.compile_cache is not None:
            check_folder("compile_cache", options.compile_cache)
        device = select_device(options.device)
        network, data, settings = _prepared(options, device)
        about = _about(options, data)
        run = _open_run(options, about)
        if options.compile_cache is not None:
            use_compile_cache(options.compile_cache)
    if not options.quiet:
        say(_heading(options, network, data, device))
    seeds = range(options.seed, options.seed + options.seeds)
    results = []
    try:
        with Interruption() as interruption, jax.default_device(device):
            for seed in seeds:
                folder = run if options.seeds == 1 else run / f"seed-{seed}"
                member = _Member(options, network, data, settings, about, seed, folder)
                with failing_run(device):
                    results.append(member.run(interruption))
    except Stopped as stopped:
        name = signal.Signals(stopped.signal).name
        again = f"jaxmlp train --output {shlex.quote(str(run))} --resume"
        warn(f"stopped by {name}, saved; `{again}` goes on from there")
        sys.exit(128 + stopped.signal)
    _finish(results, run, options, time.perf_counter() - begin)


class _Member:
    """The training of one seed, in its folder."""

    def __init__(
        self,
        options: Train,
        network: Network,
        data: Dataset,
        settings: Settings,
        about: dict[str, Any],
        seed: int,
        folder: Path,
    ) -> None:
        self.options, self.network, self.data, self.settings = options, network, data, settings
        self.about, self.seed, self.folder = about, seed, folder

    def run(self, interruption: Interruption) -> Record:
        """Return the record of the epoch whose parameters are saved."""
        options, network = self.options, self.network
        if options.resume and (self.folder / runs.MODEL).is_file():
            return self._trained_already()
        first_key, order_key = jax.random.split(jax.random.key(self.seed))
        # A CPU's memory that does not suffice is said here, and aborts the process elsewhere.
        params = jax.block_until_ready(init(network, first_key, options.dtype))
        checkpoints = Checkpoints(self.folder / CHECKPOINTS, options.keep, options.checkpoint_every)
        snapshot = self._restored(checkpoints, params)
        steps = -(-len(self.data.train.targets) // options.batch_size)
        mode = "quiet" if options.quiet else "auto"
        with Progress(mode, options.epochs, steps) as show:

            def after_epoch(record: Record, _: Snapshot) -> None:
                runs.append_metrics(self.folder, record)
                show.finished_epoch(record)

            def watch(snapshot: Snapshot) -> None:
                show.moved(snapshot.epoch, snapshot.step)
                if interruption.signal is not None:
                    checkpoints.save(snapshot)
                    raise Stopped(interruption.signal)
                checkpoints.watch(snapshot)

            train, evaluation = self._examples()
            settings = {
                field.name: getattr(self.settings, field.name)
                for field in dataclasses.fields(Settings)
            }
            try:
                fitted = fit(
                    network,
                    params,
                    *train[:2],
                    sample_weight=train[2],
                    key=order_key,
                    scaling=self.data.scaling,
                    evaluation=evaluation,
                    callbacks=[after_epoch],
                    watch=watch,
                    resume=snapshot,
                    **settings,
                )
            except FloatingPointError as error:
                place = checkpoints.save_last_good()
                last = f"the last good checkpoint is {place}" if place else "there is no checkpoint"
                raise FloatingPointError(f"{error}; {last}") from error
        runs.save_model(self.folder, fitted.params)
        self._draw(fitted)
        if fitted.best_epoch != len(fitted.history) and not options.quiet:
            say(f"the best epoch was {fitted.best_epoch}, by {options.monitor}: it is saved")
        return fitted.history[fitted.best_epoch - 1]

    def _trained_already(self) -> Record:
        """Return the record of the epoch that the saved model is from."""
        if not self.options.quiet:
            say(f"{self.folder} is trained already")
        name = self.options.monitor if self.options.patience is not None else "epoch"
        with bad_input():
            history = runs.read_metrics(self.folder)
            try:
                best = min if name.endswith("_loss") else max
                return best(history, key=lambda record: record[name])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.folder / runs.METRICS}: expected epochs with {name}, got others"
                ) from error

    def _restored(self, checkpoints: Checkpoints, params: Any) -> Snapshot | None:
        """Return the snapshot to go on from, or None; the folder holds what belongs to it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        snapshot = None
        if self.options.resume:
            template = first_snapshot(self.network, params, self.settings)
            snapshot, warnings = checkpoints.restore(template)
            for warning in warnings:
                warn(warning)
            if snapshot is not None and not self.options.quiet:
                step = f" and {snapshot.step} steps" if snapshot.step else ""
                say(f"resumed   after {snapshot.epoch} epochs{step}")
        about = {**self.about, "seed": self.seed}
        runs.write_config(self.folder, self.network, self.data.scaling, about)
        runs.write_metrics(self.folder, () if snapshot is None else snapshot.history)
        return snapshot

    def _examples(self) -> tuple[tuple[Any, ...], dict[str, tuple[Any, ...]]]:
        """Return the training examples, weighted by class, and those to evaluate on."""
        data = self.data
        weighted = _weighted(data, _class_weights(self.options.class_weight))
        train = _arrays(weighted, self.network, data)
        return train, {
            name: _arrays(part, self.network, data)
            for name, part in (("validation", data.validation), ("test", data.test))
            if part is not None
        }

    def _draw(self, fitted: Fit) -> None:
        if not self.options.pictures:
            return
        from jaxmlp.plots import draw_run

        data = self.data
        name, part = next(
            (name, part)
            for name, part in (
                ("test", data.test), ("validation", data.validation), ("training", data.train),
            )
            if part is not None
        )  # fmt: skip
        draw_run(
            self.folder,
            fitted.history,
            self.network,
            fitted.params,
            part,
            data.classes,
            data.image_shape,
            data.scaling,
            part=name,
        )


def _arrays(part: Examples, network: Network, data: Dataset) -> tuple[Any, ...]:
    """Return inputs, targets and weights as the loss takes them: classes, or one-hot rows."""
    targets = part.targets
    if data.classes is not None and network.loss != "softmax_cross_entropy":
        targets = np.eye(network.sizes[-1], dtype=np.float32)[targets]
    return part.inputs, targets, part.weights


def _prepared(options: Train, device: Any) -> tuple[Network, Dataset, Settings]:
    """Return the network, the data and the settings, checked before a run begins.

    Raises:
        ValueError: An option that does not fit, or damaged data.
        TypeError: As for `Network`.
        OSError: Files that are missing or unreadable.
    """
    check_float_dtype(options.dtype)
    check_count("seeds", options.seeds)
    check_count("keep", options.keep)
    if options.checkpoint_every is not None:
        check_number("checkpoint_every", options.checkpoint_every, 0, math.inf, above=True)
    if not 0 <= options.seed < 2**63 - options.seeds:
        raise ValueError(f"seed: expected an integer from 0 to 2^63 - 1, got {options.seed}")
    if min(options.hidden, default=1) < 1:
        raise ValueError(f"hidden: expected sizes of at least 1, got {list(options.hidden)}")
    activation = options.activation[0] if len(options.activation) == 1 else options.activation
    probe = Network((1, *options.hidden, 1), activation, precision=options.precision)
    if probe.precision is not None:  # not every device has every precision: ask before the data
        _check_precision(probe, options.dtype, device)
    settings = _settings(options)
    data = load_dataset(
        options.dataset,
        options.data_dir,
        target=options.target,
        regression=options.regression or None,
        validation_fraction=options.validation_fraction,
        validation_file=options.validation_file,
        test_file=options.test_file,
        seed=options.seed,
    )
    if options.standardize:
        data = standardized(data)
    known = _LOSSES_OF_NUMBERS if data.classes is None else _LOSSES_OF_CLASSES
    loss = options.loss or ("squared_error" if data.classes is None else "softmax_cross_entropy")
    check_name("loss", loss, known)
    if loss == "poisson" and data.train.targets.min() < 0:
        raise ValueError("loss: expected targets of at least 0 for poisson, got negative ones")
    _weighted(data, _class_weights(options.class_weight))
    network = Network(
        (data.train.inputs.shape[1], *options.hidden, data.n_outputs),
        activation,
        loss,
        options.bias,
        options.precision,
    )
    if network.n_parameters > _MOST_PARAMETERS:
        raise ValueError(
            f"hidden: expected at most 2^40 parameters, got {network.n_parameters:,} by "
            f"{list(options.hidden)}"
        )
    settings.check(network)
    if options.patience is not None or options.monitor != Train.monitor:
        there = [name for name in ("validation", "test") if getattr(data, name) is not None]
        if options.monitor.rpartition("_")[0] not in there:
            raise ValueError(
                f"monitor: expected a figure of {' or '.join(there) or 'no part'} of the data, got "
                f"{options.monitor} (--validation-fraction puts a part aside)"
            )
    _check_values(options, network, data)
    return network, data, settings


def _check_precision(network: Network, dtype: str, device: Any) -> None:
    """Raise ValueError where the device has no such matrix product."""
    one = jax.ShapeDtypeStruct((1, 1), np.dtype(dtype))
    try:
        with jax.default_device(device):
            jax.jit(partial(product, network)).lower(one, one).compile()
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        raise ValueError(
            f"precision: expected one that {device.device_kind} has for {dtype}, got "
            f"{network.precision}"
        ) from error


def _check_values(options: Train, network: Network, data: Dataset) -> None:
    """Raise ValueError where a number does not fit the dtype that is computed in, by its place."""
    params = jax.eval_shape(lambda: init(network, jax.random.key(0), options.dtype))
    for name, part in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        if part is not None:
            try:
                inputs, targets, weights = _arrays(part, network, data)
                checked_examples(network, params, inputs, targets, weights, data.scaling)
            except ValueError as error:
                raise ValueError(f"{name} {error}") from error


def _settings(options: Train) -> Settings:
    """Return the settings of the training.

    Raises:
        ValueError: A setting of the optimiser that is no NAME=NUMBER.
    """
    chosen = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(Settings)
        if field.name != "optimizer_settings"
    }
    numbers = _pairs("optimizer_settings", options.optimizer_settings)
    return Settings(**chosen, optimizer_settings=numbers)


def _weighted(data: Dataset, how: Any) -> Examples:
    """Return the training examples, each weighted as its class.

    Raises:
        ValueError: The weights are not for these classes, or there are none.
    """
    if how is None:
        return data.train
    if data.classes is None:
        raise ValueError(f"class_weight: expected none for {data.name}, a regression")
    train = data.train
    of_classes = class_weights(train.targets, data.classes, how)
    return train._replace(weights=example_weights(train.targets, of_classes, train.weights))


def _class_weights(words: tuple[str, ...]) -> Any:
    """Return None, "balanced", or class → weight.

    Raises:
        ValueError: A word that is neither `balanced`, alone, nor CLASS=WEIGHT.
    """
    if words == ("balanced",) or not words:
        return words[0] if words else None
    return _pairs("class_weight", words)


def _pairs(option: str, words: tuple[str, ...]) -> dict[str, float]:
    """Return NAME=NUMBER words as a dictionary.

    Raises:
        ValueError: A word of another form.
    """
    pairs = {}
    for word in words:
        name, equals, number = word.rpartition("=")
        try:
            if not equals:
                raise ValueError
            value = float(number)
        except ValueError:
            raise ValueError(f"{option}: expected NAME=NUMBER, got {word!r}") from None
        if name in pairs:
            raise ValueError(f"{option}: expected every name once, got {name!r} twice")
        pairs[name] = value
    return pairs


def _about(options: Train, data: Dataset) -> dict[str, Any]:
    """Return what config.json says of a run beside its network."""
    training = {}
    for name in _OF_THE_TRAINING:
        value = getattr(options, name)
        training[name] = str(value) if isinstance(value, Path) else value
    return {
        "jaxmlp_version": jaxmlp.__version__,
        "dataset": {
            "name": data.name,
            "source": data.source,
            "classes": data.classes,
            "features": data.features,
            "image_shape": data.image_shape,
            "fingerprint": runs.fingerprint(
                *(
                    array
                    for part in (data.train, data.validation, data.test)
                    for array in part or (None,)
                )
            ),
        },
        "training": training,
    }


def _open_run(options: Train, about: dict[str, Any]) -> Path:
    """Return the run's folder: a new one, or the one to go on with.

    Raises:
        ValueError: The run was made with other options or other data.
        OSError: The folder is there already, or cannot be made.
    """
    if options.resume and options.output is None:
        raise ValueError("resume: expected the run's folder (--output RUN), got none")
    name = Path(options.dataset).stem
    if options.resume and options.output is not None:
        runs.remove_leftovers(options.output)
        saved = runs.training_options(options.output)
        if saved is not None:
            expected = runs.as_json(about["training"])
            for option, value in expected.items():
                if saved.get(option) != value:
                    raise ValueError(
                        f"{option}: expected {saved.get(option)}, with which {options.output} was "
                        f"begun, got {value}"
                    )
            runs.check_fingerprint(options.output, about["dataset"]["fingerprint"])
            return options.output
    return runs.new_run(options.output, name)


def _heading(options: Train, network: Network, data: Dataset, device: Any) -> str:
    """Return what is about to happen: device, dtype, precision, data, network."""
    sizes = "-".join(str(size) for size in network.sizes)
    activation = " ".join(options.activation) if network.activations else "no hidden layer"
    precision = options.precision or jax.config.jax_default_matmul_precision or "default"  # pyright: ignore[reportAttributeAccessIssue]
    counts = [
        f"{len(part.targets)} {name}"
        for name, part in (
            ("training", data.train), ("validation", data.validation), ("test", data.test),
        )
        if part is not None
    ]  # fmt: skip
    listed = " and ".join(filter(None, [", ".join(counts[:-1]), counts[-1]]))
    seeds = f"seed {options.seed}"
    if options.seeds > 1:
        seeds = f"seeds {options.seed} to {options.seed + options.seeds - 1}"
    return "\n".join(
        (
            f"device     {device.device_kind} ({device.platform}), {options.dtype}, "
            f"matmul precision {precision}",
            f"data       {data.name}: {listed} examples from {data.source}",
            f"network    {sizes}, {activation}, {network.loss}, "
            f"{network.n_parameters:,} parameters",
            f"training   {options.optimizer}, learning rate {options.learning_rate:g} "
            f"({options.schedule}), batches of {options.batch_size}, {seeds}",
        )
    )


def _finish(results: list[Record], run: Path, options: Train, seconds: float) -> None:
    """Print the last line, and for several seeds write their summary."""
    names = (
        "test_accuracy", "test_loss", "validation_accuracy", "validation_loss",
        "train_accuracy", "train_loss",
    )  # fmt: skip
    figure = next(name for name in names if name in results[0])
    values = np.array([result[figure] for result in results])
    shown = f"{values[0]:.4f}"
    if len(results) > 1:
        deviation = values.std(ddof=1)
        shown = f"{values.mean():.4f} ± {deviation:.4f} over {len(values)} seeds"
        runs.write_summary(run, results, options.seed)
    say(f"{figure.replace('_', ' ')} {shown} after {seconds:.1f} s; saved in {run}")
