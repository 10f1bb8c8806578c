"""The folder of a run: its configuration, its metrics, and the trained model."""

import contextlib
import json
import os
import re
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.flax import load_file, save

from jaxmlp.data.stored import StoredInputs
from jaxmlp.network import Layer, Network, Parameters, check_parameters
from jaxmlp.scaling import Scaling
from jaxmlp.validation import check_float_dtype

FORMAT_VERSION = 1
CONFIG = "config.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
MODEL = "model.safetensors"
EPOCHS = "epochs"
SECRET = "secret.key"  # of a private run, while it runs

_EPOCH = re.compile(r"([1-9][0-9]*)\.safetensors")
_LEFTOVER = re.compile(
    rf"\.({'|'.join(map(re.escape, (CONFIG, METRICS, SUMMARY, MODEL, SECRET)))}"
    rf"|{_EPOCH.pattern})\.[0-9]+"
)  # what `write_file` leaves behind where it is killed


def new_run(path: str | os.PathLike[str] | None, dataset: str) -> Path:
    """Return the folder of a new run, made, or raise where it already holds something.

    Args:
        path: The folder, or None for the first free `runs/<dataset>-<n>`.
        dataset: The data set's name.

    Returns:
        The folder, empty.

    Raises:
        FileExistsError: `path` is a folder that is not empty.
        NotADirectoryError: `path` is a file.
        OSError: The folder cannot be made or written in.
    """
    if path is None:
        _make_folder(Path("runs"))
        number = 1
        while True:
            folder = Path("runs", f"{dataset}-{number}")
            try:
                _make_folder(folder, exist_ok=False)
                return folder
            except FileExistsError:
                number += 1
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"output: expected a folder, got {folder}, which is a file")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"output: expected a new or empty folder, got {folder}, which already holds files"
        )
    _make_folder(folder)
    check_writable("output", folder)
    return folder


def remove_leftovers(run: Path) -> None:
    """Remove what a killed process was about to write in a run's folder, of any number of seeds."""
    for folder in (run, *run.glob("seed-*"), *run.glob(EPOCHS), *run.glob(f"seed-*/{EPOCHS}")):
        for path in folder.iterdir() if folder.is_dir() else ():
            if _LEFTOVER.fullmatch(path.name):
                path.unlink(missing_ok=True)


def check_writable(name: str, folder: Path) -> None:
    """Raise OSError where no file can be made in a folder.

    Args:
        name: What the message calls it.
        folder: The folder, which is there.

    Raises:
        OSError: No file can be made in it.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(f"{name}: cannot write in {folder}: {error.strerror}") from error


def _make_folder(folder: Path, exist_ok: bool = True) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        raise type(error)(f"output: cannot make the folder {folder}: {error.strerror}") from error


def write_config(
    run: Path, network: Network, scaling: Scaling | None, metadata: Mapping[str, Any]
) -> None:
    """Write config.json: the format's version, the network, the scaling, and what else is known."""
    content = {
        "format_version": FORMAT_VERSION,
        "network": {
            "sizes": list(network.sizes),
            "activation": network.activation,
            "loss": network.loss,
            "bias": network.bias,
            "precision": network.precision,
        },
        "scaling": scaling
        and {name: np.asarray(part).tolist() for name, part in scaling._asdict().items()},
        **metadata,
    }
    write_file(run / CONFIG, (json.dumps(content, indent=2) + "\n").encode())


def as_json(content: Any) -> Any:
    """Return what is read back after it was written as JSON: lists for tuples, and so on."""
    return json.loads(json.dumps(content))


def training_options(run: Path) -> dict[str, Any] | None:
    """Return the options that a run, of one seed or several, was begun with; None for no run.

    Raises:
        ValueError: Its config.json is damaged.
    """
    for path in _configs(run):
        options = _read_config(path).get("training")
        if not isinstance(options, dict):
            raise ValueError(f"{path}: not a run's configuration: its training is {options!r:.60}")
        return options
    return None


def _configs(run: Path) -> Iterator[Path]:
    """Yield the config.json of a run, or of each of its seeds."""
    for path in (run / CONFIG, *sorted(run.glob(f"seed-*/{CONFIG}"))):
        if path.is_file():
            yield path


def fingerprint(*arrays: np.ndarray | StoredInputs | None) -> str:
    """Return a checksum of arrays, with which a resumed run knows its data again.

    Inputs that are stored are read for it, and have that of the same ones in memory.
    """
    total = 0
    for array in arrays:
        if array is None:
            total = zlib.crc32(b"None", total)
            continue
        total = zlib.crc32(f"{array.dtype} {array.shape}".encode(), total)
        for part in array.chunks() if isinstance(array, StoredInputs) else (array,):
            total = zlib.crc32(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data, total)
    return f"{total:08x}"


def check_fingerprint(run: Path, expected: str) -> None:
    """Raise ValueError where the run was begun with other data."""
    for path in _configs(run):
        dataset = _read_config(path).get("dataset")
        if not isinstance(dataset, dict) or dataset.get("fingerprint") != expected:
            raise ValueError(f"dataset: expected the data that {run} was begun with, got others")


def _read_config(path: Path) -> dict[str, Any]:
    """Return the content of config.json.

    Raises:
        ValueError: It is damaged, or of another format.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        version = config.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise ValueError(f"expected format {FORMAT_VERSION}, got {version!r}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a run's configuration: {error}") from error
    return config


def append_metrics(run: Path, record: Mapping[str, float]) -> None:
    """Append the record of an epoch to metrics.jsonl, one line of JSON, whole or not at all."""
    line, written = _line(record).encode(), 0
    with _writing(run / METRICS), open(run / METRICS, "ab", buffering=0) as file:
        before = file.tell()
        try:
            while written < len(line):  # a disk that becomes full takes a part, then raises
                written += file.write(line[written:])
        except OSError:
            file.truncate(before)
            raise


def write_metrics(run: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write metrics.jsonl anew, with a line for each of these epochs."""
    write_file(run / METRICS, "".join(map(_line, history)).encode())


def _line(record: Mapping[str, float]) -> str:
    return json.dumps(dict(record), allow_nan=False) + "\n"


def read_metrics(run: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Return the record of every epoch of a run.

    Args:
        run: The run's folder.

    Raises:
        OSError: metrics.jsonl is missing or cannot be read.
        ValueError: A line of it is damaged.
    """
    path = Path(run, METRICS)
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}: expected JSON in line {number}, got {line!r:.60}") from error
    return records


def write_summary(run: Path, results: Sequence[Mapping[str, float]], seed: int) -> None:
    """Write summary.json: the figures of every seed, their means and standard deviations."""
    times = ("epoch", "seconds", "examples_per_second", "compile_seconds")
    names = [name for name in results[0] if name not in times]
    values = {name: np.array([result[name] for result in results]) for name in names}
    content = {
        "seeds": {str(seed + number): dict(result) for number, result in enumerate(results)},
        "mean": {name: float(array.mean()) for name, array in values.items()},
        "standard_deviation": {name: float(array.std(ddof=1)) for name, array in values.items()},
    }
    write_file(run / SUMMARY, (json.dumps(content, indent=2) + "\n").encode())


def saved_record(run: str | os.PathLike[str], monitor: str | None) -> dict[str, float]:
    """Return the record of the epoch that a run's model is from.

    Args:
        run: The run's folder.
        monitor: The figure by which the best epoch was kept, or None where the last one was.

    Raises:
        OSError: metrics.jsonl is missing or cannot be read.
        ValueError: It is damaged, or lacks the figure.
    """
    name = "epoch" if monitor is None else monitor
    history = read_metrics(run)
    try:
        best = min if name.endswith("_loss") else max
        return best(history, key=lambda record: record[name])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{Path(run, METRICS)}: expected epochs with {name}, got others"
        ) from error


def save_model(run: Path, params: Parameters) -> None:
    """Write model.safetensors: the arrays `0.weight`, `0.bias`, `1.weight` and so on."""
    _write_parameters(run / MODEL, params)


def save_epoch(run: Path, epoch: int, params: Parameters) -> None:
    """Write the parameters after an epoch to epochs/<epoch>.safetensors, as in the model's file."""
    folder = run / EPOCHS
    with _writing(folder):
        folder.mkdir(exist_ok=True)
    _write_parameters(folder / f"{epoch}.safetensors", params)


def kept_epochs(run: Path) -> dict[int, Path]:
    """Return epoch → file of the parameters kept after it, in the order of the epochs."""
    folder = run / EPOCHS
    found = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := _EPOCH.fullmatch(path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def _write_parameters(path: Path, params: Parameters) -> None:
    arrays = {}
    for number, layer in enumerate(params):
        arrays[f"{number}.weight"] = layer.weight
        if layer.bias is not None:
            arrays[f"{number}.bias"] = layer.bias
    write_file(path, save(arrays))


def read_parameters(path: Path, network: Network) -> Parameters:
    """Return the parameters in a file that `save_model` or `save_epoch` wrote.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged or of another network; or it holds float64 while JAX's 64-bit mode
            is off.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            if any(file.get_slice(name).get_dtype() == "F64" for name in file.keys()):
                check_float_dtype(np.float64)
        arrays = load_file(path)
        params = tuple(
            Layer(
                jnp.asarray(arrays[f"{number}.weight"]),
                jnp.asarray(arrays[f"{number}.bias"]) if network.bias else None,
            )
            for number in range(len(network.sizes) - 1)
        )
        check_parameters(network, params)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not this network's parameters: {error}") from error
    return params


def load(run: str | os.PathLike[str]) -> tuple[Network, Parameters, dict[str, Any]]:
    """Return the network, the parameters and the metadata of a run.

    Args:
        run: The folder that `jaxmlp train` wrote.

    Returns:
        The network; its parameters; and the rest of config.json, such as `dataset` and `training`,
        with `scaling`, the `jaxmlp.Scaling` that `evaluate` and `predictions` take, or None.

    Raises:
        FileNotFoundError: The folder or one of its files is missing.
        ValueError: A file is damaged, of a later format, or does not fit the other; or the
            parameters are float64 while JAX's 64-bit mode is off.
    """
    folder = Path(run)
    for name in (CONFIG, MODEL):
        if not (folder / name).is_file():
            seeds = sorted(path.parent.name for path in folder.glob(f"seed-*/{MODEL}"))
            more = f": it holds runs of several seeds, such as {seeds[0]}" if seeds else ""
            if (folder / "best" / MODEL).is_file():
                more = f": it holds a sweep, whose best run is {folder / 'best'}"
            if name == MODEL:
                more = f": it has not ended (`jaxmlp train --output {folder} --resume` goes on)"
            raise FileNotFoundError(f"run: expected {name} in {folder}, got no such file{more}")
    config = _read_config(folder / CONFIG)
    try:
        network = Network(**config.pop("network"))
        scaling = config.pop("scaling", None)
        config["scaling"] = None if scaling is None else _read_scaling(scaling, network.sizes[0])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: not a run's configuration: {error}") from error
    return network, read_parameters(folder / MODEL, network), config


def _read_scaling(content: Any, n_inputs: int) -> Scaling:
    scaling = Scaling(*(np.asarray(content[name], np.float64) for name in Scaling._fields))
    for name, part in scaling._asdict().items():
        if part.shape not in ((), (n_inputs,)) or not np.isfinite(part).all():
            raise ValueError(f"expected one finite number or {n_inputs} for the scaling's {name}")
    return scaling


def write_file(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write a file so that at every moment it is the old one or the new one, whole.

    Args:
        path: The file.
        content: What is to be in it.
        mode: Its permissions, of which the user's umask takes away.

    Raises:
        OSError: It cannot be written; what was there before is as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with _writing(path):
        try:
            with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say which file could not be written."""
    try:
        yield
    except OSError as error:
        raise type(error)(f"{path}: cannot be written: {error.strerror}") from error
