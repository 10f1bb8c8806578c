"""The `jaxmlp` command: it composes the rooms of the library and holds nothing else.

Exit status: 0 good, 1 a run or a check failed, 2 bad usage or bad input.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import jax
import numpy as np
import tyro

import jaxmlp
from jaxmlp.backprop import product
from jaxmlp.data import DATASETS, Dataset, load_dataset
from jaxmlp.data.preparation import prepare
from jaxmlp.data.prepared import PUBLISHED, default_folder, find_prepared
from jaxmlp.network import Network, init
from jaxmlp.training import runs
from jaxmlp.training.loop import TrainingState, check_settings, fit
from jaxmlp.validation import check_float_dtype, check_name
from jaxmlp.verification.comparison import Row, to_json


@dataclasses.dataclass
class Train:
    """Train a network on real data with the hand-derived gradient, and save it."""

    dataset: str = "digits"
    """The data: digits (ships with scikit-learn), mnist, fashion_mnist, kmnist or emnist."""
    data_dir: Path | None = None
    """A folder with the four idx files of all but digits, gzipped or not, or with what `jaxmlp data
    prepare` prepared; by default what it prepared in its own default folder."""
    hidden: tuple[int, ...] = (128, 64)
    """Units of each hidden layer; give the option without a number for none."""
    activation: tuple[str, ...] = ("sigmoid",)
    """The hidden layers' activation, one for all or one for each: identity, sigmoid, tanh, relu,
    leaky_relu, elu, softplus, silu, gelu or gelu_tanh."""
    loss: str = "softmax_cross_entropy"
    """softmax_cross_entropy, sigmoid_binary_cross_entropy or squared_error; the last two take the
    classes as one-hot rows."""
    bias: bool = True
    """Whether the layers have biases."""
    optimizer: str = "adam"
    """sgd, momentum, nesterov, adagrad, adam, adamw, lamb, lion, nadam, radam or rmsprop."""
    learning_rate: float = 0.005
    """The learning rate at the beginning."""
    schedule: str = "cosine"
    """cosine, from the learning rate down to 0 over all steps, or constant."""
    batch_size: int = 32
    """Examples a step."""
    epochs: int = 20
    """How often all examples are seen."""
    label_smoothing: float = 0.0
    """Mix the targets with the uniform distribution by this much, for a cross-entropy."""
    seed: int = 0
    """Of the initial parameters and of the order of the examples."""
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    """Of the parameters; float64 needs JAX_ENABLE_X64=1 in the environment."""
    precision: str | None = None
    """Of the matrix products: default, high, highest, or a name such as TF32_TF32_F32."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    output: Path | None = None
    """The run's folder, new or empty; by default runs/<dataset>-<n>."""


@dataclasses.dataclass
class Verify:
    """Prove the gradients: against jax.grad, central differences, NumPy and mpmath."""

    trials: int = 20
    """Random networks drawn for each architecture."""
    seed: int = 0
    """Of the draws."""
    full: bool = False
    """Every activation × loss × depth × bias × weighting; by default the last two alternate."""
    json: Path | None = None
    """Also write the table to this file."""


@dataclasses.dataclass
class List:
    """List the data sets, and where each of them is."""

    data_dir: Path | None = None
    """Where it is: by default $JAXMLP_DATA_DIR, $TFDS_DATA_DIR or ~/tensorflow_datasets."""


@dataclasses.dataclass
class Prepare:
    """Prepare a data set for tensorflow-datasets, without TensorFlow."""

    name: tyro.conf.Positional[str]
    """mnist, fashion_mnist, kmnist or emnist (its part "balanced")."""
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """A folder with the publisher's four idx files, gzipped or not."""
    download: bool = False
    """Download them instead, by tensorflow-datasets, and compare their checksums."""
    data_dir: Path | None = None
    """Where to prepare it: by default $JAXMLP_DATA_DIR, $TFDS_DATA_DIR or ~/tensorflow_datasets."""


@dataclasses.dataclass
class Data:
    """The data sets: list them, or prepare one."""

    action: (
        Annotated[List, tyro.conf.subcommand("list")]
        | Annotated[Prepare, tyro.conf.subcommand("prepare")]
    )


_LOSSES_OF_CLASSES = ("softmax_cross_entropy", "sigmoid_binary_cross_entropy", "squared_error")

_Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Data, tyro.conf.subcommand("data")]
)


def main(arguments: list[str] | None = None) -> None:
    """Run the `jaxmlp` command with these arguments, by default the process's, and exit."""
    if (sys.argv[1:] if arguments is None else arguments) == ["--version"]:
        print(jaxmlp.__version__)
        return
    command: Any = tyro.cli(
        _Command,  # pyright: ignore[reportArgumentType]
        prog="jaxmlp",
        args=arguments,
        description="Multi-layer perceptrons in JAX with gradients derived by hand, and proved.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    try:
        if isinstance(command, Train):
            _train(command)
        elif isinstance(command, Verify):
            _verify(command)
        elif isinstance(command.action, List):
            _list_data(command.action)
        else:
            _prepare_data(command.action)
    except KeyboardInterrupt:
        print("jaxmlp: interrupted", file=sys.stderr)
        sys.exit(130)


def _say(text: str) -> None:
    """Print at once; where nobody reads any more (`| head`), work on without a word."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 until the process ends


def _fail(message: object, status: int) -> NoReturn:
    print(f"jaxmlp: {message}", file=sys.stderr)
    sys.exit(status)


def _checked(prepare: Callable[[], Any]) -> Any:
    """Return what is prepared; where the input does not allow it, one sentence and exit 2."""
    try:
        return prepare()
    except (ValueError, TypeError, OSError) as error:
        _fail(error, 2)


def _train(options: Train) -> None:
    begin = time.perf_counter()
    device = _checked(lambda: _device(options.device))
    network, data = _checked(lambda: _prepared(options, device))
    run = _checked(lambda: runs.new_run(options.output, options.dataset))
    _say(_heading(options, network, data, device))
    try:
        with jax.default_device(device):
            last = _fit_and_save(options, network, data, run)
    except (FloatingPointError, OSError) as error:
        _fail(error, 1)
    except MemoryError as error:
        _fail(f"out of memory: {error}", 1)
    except jax.errors.JaxRuntimeError as error:  # out of memory, most likely
        _fail(f"{device.device_kind}: {str(error).splitlines()[0]}", 1)
    figure = next(name for name in ("test_accuracy", "test_loss") if name in last)
    seconds = time.perf_counter() - begin
    _say(f"{figure.replace('_', ' ')} {last[figure]:.4f} after {seconds:.1f} s; saved in {run}")


def _fit_and_save(options: Train, network: Network, data: Dataset, run: Path) -> dict[str, float]:
    """Train the network, write the run's files, and return the record of the last epoch."""
    first_key, order_key = jax.random.split(jax.random.key(options.seed))
    params = init(network, first_key, options.dtype)
    metadata = {
        "jaxmlp_version": jaxmlp.__version__,
        "dataset": {"name": data.name, "source": data.source, "classes": data.classes},
        "training": {
            field.name: getattr(options, field.name)
            for field in dataclasses.fields(options)
            if field.name not in ("dataset", "data_dir", "output")
        },
    }
    runs.write_config(run, network, metadata)

    def after_epoch(record: dict[str, float], _: TrainingState) -> None:
        runs.append_metrics(run, record)
        _say(_line(record, options.epochs))

    train, test = (_arrays(part, network) for part in (data.train, data.test))
    fitted = fit(
        network,
        params,
        *train,
        key=order_key,
        optimizer=options.optimizer,
        learning_rate=options.learning_rate,
        schedule=options.schedule,
        batch_size=options.batch_size,
        epochs=options.epochs,
        label_smoothing=options.label_smoothing,
        scaling=data.scaling,
        evaluation={"test": test},
        callbacks=[after_epoch],
    )
    runs.save_model(run, fitted.params)
    return fitted.history[-1]


def _device(choice: str) -> Any:
    """Return the device to compute on.

    Raises:
        ValueError: A GPU is asked for and there is none, or JAX cannot start at all.
    """
    if choice == "cpu":  # do not start, nor take the memory of, any other
        jax.config.update("jax_platforms", "cpu")
    try:
        return jax.devices("gpu" if choice == "gpu" else None)[0]
    except (RuntimeError, AssertionError) as error:
        if choice == "gpu":
            raise ValueError(
                "device: expected a GPU that JAX can use, got none; is the CUDA extra installed "
                '(pip install "jaxmlp[cuda13]")?'
            ) from error
        reason = str(error).splitlines() or ["it has no platform to start"]
        raise ValueError(f"device: JAX cannot start here: {reason[0]}") from error


def _prepared(options: Train, device: Any) -> tuple[Network, Dataset]:
    """Return the network and the data that the options name, checked before a run begins.

    Raises:
        ValueError: An option that does not fit, or damaged data.
        TypeError: As for `Network`.
        OSError: Files that are missing or unreadable.
    """
    check_float_dtype(options.dtype)
    if not 0 <= options.seed < 2**63:
        raise ValueError(f"seed: expected an integer from 0 to 2^63 - 1, got {options.seed}")
    if min(options.hidden, default=1) < 1:
        raise ValueError(f"hidden: expected sizes of at least 1, got {list(options.hidden)}")
    check_name("loss", options.loss, _LOSSES_OF_CLASSES)
    activation = options.activation[0] if len(options.activation) == 1 else options.activation
    probe = Network((1, *options.hidden, 1), activation, precision=options.precision)
    if probe.precision is not None:  # not every device has every precision: ask before the data
        with jax.default_device(device):
            one = jax.ShapeDtypeStruct((1, 1), np.dtype(options.dtype))
            jax.jit(partial(product, probe)).lower(one, one)
    if options.dataset == "digits" and options.data_dir is not None:
        raise ValueError(
            f"data_dir: expected none for digits, which ship with scikit-learn, got "
            f"{options.data_dir}"
        )
    data = load_dataset(options.dataset, options.data_dir)
    network = Network(
        (data.train.inputs.shape[1], *options.hidden, data.n_outputs),
        activation,
        options.loss,
        options.bias,
        options.precision,
    )
    check_settings(
        network,
        options.optimizer,
        options.learning_rate,
        options.schedule,
        options.batch_size,
        options.epochs,
        options.label_smoothing,
    )
    return network, data


def _arrays(examples: Any, network: Network) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and targets as the loss takes them: classes, or one-hot rows."""
    if network.loss == "softmax_cross_entropy":
        return examples.inputs, examples.targets
    return examples.inputs, np.eye(network.sizes[-1], dtype=np.float32)[examples.targets]


def _heading(options: Train, network: Network, data: Dataset, device: Any) -> str:
    """Return what is about to happen: device, dtype, precision, data, network."""
    sizes = "-".join(str(size) for size in network.sizes)
    activation = " ".join(options.activation) if network.activations else "no hidden layer"
    precision = options.precision or jax.config.jax_default_matmul_precision or "default"  # pyright: ignore[reportAttributeAccessIssue]
    return "\n".join(
        (
            f"device     {device.device_kind} ({device.platform}), {options.dtype}, "
            f"matmul precision {precision}",
            f"data       {data.name}: {len(data.train.targets)} training and "
            f"{len(data.test.targets)} test examples from {data.source}",
            f"network    {sizes}, {activation}, {options.loss}, "
            f"{network.n_parameters:,} parameters",
            f"training   {options.optimizer}, learning rate {options.learning_rate:g} "
            f"({options.schedule}), batches of {options.batch_size}, seed {options.seed}",
        )
    )


def _line(record: dict[str, float], epochs: int) -> str:
    """Return the line of one epoch."""
    shown = [f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}"]
    for name in ("train", "test"):
        shown.append(f"{name} loss {record[f'{name}_loss']:.4f}")
        if f"{name}_accuracy" in record:
            shown.append(f"accuracy {record[f'{name}_accuracy']:.4f}")
    shown.append(f"{record['seconds']:.2f} s")
    shown.append(f"{record['examples_per_second']:,.0f} examples/s")
    return "  ".join(shown)


def _verify(options: Verify) -> None:
    from jaxmlp.verification import table
    from jaxmlp.verification.trials import Settings

    if options.trials < 1:
        _fail(f"trials: expected an integer of at least 1, got {options.trials}", 2)
    if options.seed < 0:
        _fail(f"seed: expected an integer of at least 0, got {options.seed}", 2)
    json = options.json
    if json is not None:
        _checked(lambda: _check_writable(json))
    device = _checked(lambda: _device("auto"))
    settings = Settings(options.trials, options.seed, options.full)
    begin = time.perf_counter()
    _say(f"jax {jax.__version__} on {device.device_kind}, {settings}")
    rows = []
    for row in table.verify(settings, table.ROWS):
        rows.append(row)
        _say(_row_text(row))
    seconds = time.perf_counter() - begin
    if json is not None:
        about = {**settings._asdict(), "jax": jax.__version__, "seconds": seconds}
        try:
            json.write_text(to_json(rows, about), encoding="utf-8")
        except OSError as error:
            _fail(error, 1)
    failed = [row.name for row in rows if row.status == "failed"]
    if failed:
        _fail(f"{len(failed)} of {len(rows)} rows failed: {', '.join(failed)}", 1)
    skipped = [row.name for row in rows if row.status == "not run"]
    verdict = f"; not run: {', '.join(skipped)}" if skipped else ""
    _say(f"every gradient holds: {len(rows) - len(skipped)} rows in {seconds:.0f} s{verdict}")


def _check_writable(path: Path) -> None:
    """Raise OSError now, and not after a minute of work, where the file cannot be written."""
    if path.is_dir():
        raise IsADirectoryError(f"json: expected a file, got {path}, which is a folder")
    with open(path, "a", encoding="utf-8"):
        pass


def _row_text(row: Row) -> str:
    """Return a row of the table as a few lines."""
    if row.status == "not run":
        return f"- {row.name:<13} {row.what}: not run, {row.note}"
    mark = "✓" if row.status == "passed" else "✗"
    measured = f"{row.cases} cases"
    if row.bound is not None:
        measured += f", worst {row.worst.size:.1e}, bound {row.bound:.0e}"
    lines = [f"{mark} {row.name:<13} {row.what}: {measured} ({row.seconds:.1f} s)"]
    if row.bound is not None:
        lines.append(f"    {row.worst}")
        lines.append(f"    in {row.where}")
        if row.reproduce:
            lines.append(f"    to repeat it: {row.reproduce}")
    lines += [f"    {detail}" for detail in row.details]
    if row.note:
        lines.append(f"    failed: {row.note}")
    return "\n".join(lines)


def _list_data(options: List) -> None:
    folder = options.data_dir or default_folder()
    width = max(map(len, DATASETS))
    for name in DATASETS:
        if name not in PUBLISHED:
            where = "ships with scikit-learn"
        elif found := find_prepared(name, folder):
            where = f"prepared in {found.folder}"
        else:
            where = f"not prepared in {folder}"
        _say(f"{name:<{width}}  {where}")


def _prepare_data(options: Prepare) -> None:
    if (options.source is None) is not options.download:
        _fail(
            f"from: expected a folder with the files of {options.name} (--from DIR), or --download "
            f"to fetch them, got {'both' if options.download else 'neither'}",
            2,
        )
    try:
        check_name("dataset", options.name, PUBLISHED)
        done = prepare(options.name, options.data_dir, options.source)
    except ConnectionError as error:
        _fail(error, 1)
    except (ValueError, OSError) as error:
        _fail(error, 2)
    counts = f"{done.n_train:,} training and {done.n_test:,} test examples in {done.folder}"
    if done.already:
        _say(f"{done.name} was prepared already: {counts}")
    else:
        _say(f"{done.name} is prepared, checked by {done.compared_with}: {counts}")
