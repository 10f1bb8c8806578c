"""The folder of a run: its configuration and its metrics."""

import contextlib
import json
import os
import re
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlp.data.stored import StoredInputs
from jaxmlp.network import Network
from jaxmlp.scaling import Scaling

FORMAT_VERSION = 1
CONFIG = "config.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
MODEL = "model.safetensors"
EPOCHS = "epochs"
SECRET = "secret.key"  # of a private run, while it runs

OWN_FILES = CONFIG, METRICS, SUMMARY, MODEL
"""What a run or a saved model is read from again."""

EPOCH_FILE = re.compile(r"([1-9][0-9]*)\.safetensors")
_LEFTOVER = re.compile(
    rf"\.({'|'.join(map(re.escape, (CONFIG, METRICS, SUMMARY, MODEL, SECRET)))}"
    rf"|{EPOCH_FILE.pattern})\.[0-9]+"
)  # what `write_file` leaves behind where it is killed


def new_run(path: str | os.PathLike[str] | None, dataset: str, name: str = "output") -> Path:
    """Return the folder of a new run, made, or raise where it already holds something.

    Args:
        path: The folder, or None for the first free `runs/<dataset>-<n>`.
        dataset: The data set's name.
        name: What the messages call the folder.

    Returns:
        The folder, empty.

    Raises:
        FileExistsError: `path` is a folder that is not empty.
        NotADirectoryError: `path` is a file.
        OSError: The folder cannot be made or written in.
    """
    if path is None:
        _make_folder(Path("runs"), name)
        number = 1
        while True:
            folder = Path("runs", f"{dataset}-{number}")
            try:
                _make_folder(folder, name, exist_ok=False)
                return folder
            except FileExistsError:
                number += 1
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{name}: expected a folder, got {folder}, which is a file")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"{name}: expected a new or empty folder, got {folder}, which already holds files"
        )
    _make_folder(folder, name)
    check_writable(name, folder)
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


def _make_folder(folder: Path, name: str, exist_ok: bool = True) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        raise type(error)(f"{name}: cannot make the folder {folder}: {error.strerror}") from error


def write_config(
    run: Path, network: Network, scaling: Scaling | None, metadata: Mapping[str, Any]
) -> None:
    """Write config.json: the format's version, the network, the scaling, and what else is known."""
    write_file(run / CONFIG, config_bytes(network, scaling, metadata))


def config_bytes(network: Network, scaling: Scaling | None, metadata: Mapping[str, Any]) -> bytes:
    """Return the content of config.json."""
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
    return (json.dumps(content, indent=2) + "\n").encode()


def as_json(content: Any) -> Any:
    """Return what is read back after it was written as JSON: lists for tuples, and so on."""
    return json.loads(json.dumps(content))


def training_options(run: Path) -> dict[str, Any] | None:
    """Return the options that a run, of one seed or several, was begun with; None for no run.

    Raises:
        ValueError: Its config.json is damaged.
    """
    for path in _configs(run):
        options = read_config(path).get("training")
        if options is None:
            raise ValueError(f"run: expected one that `jaxmlp train` made, got {run}")
        if not isinstance(options, dict):
            raise ValueError(f"{path}: not a run's configuration: its training is {options!r:.60}")
        return options
    return None


def begun_in(run: Path) -> str | None:
    """Return the folder that a run, of one seed or several, was begun in, where that is known."""
    for path in _configs(run):
        dataset = read_config(path).get("dataset")
        folder = dataset.get("folder") if isinstance(dataset, dict) else None
        return folder if isinstance(folder, str) else None
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


def began_with(run: Path | None, expected: str) -> bool:
    """Return whether a run, of one seed or several, was begun with data of this fingerprint.

    Where there is no run yet, it is.

    Raises:
        ValueError: Its config.json is damaged.
    """
    for path in () if run is None else _configs(run):
        dataset = read_config(path).get("dataset")
        if not isinstance(dataset, dict) or dataset.get("fingerprint") != expected:
            return False
    return True


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of config.json.

    Raises:
        ValueError: It is damaged, or of another format.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        version = config.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise ValueError(f"expected format {FORMAT_VERSION}, got {version!r}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a run's configuration: {error}") from error
    return config


def append_metrics(run: Path, record: Mapping[str, float]) -> None:
    """Append the record of an epoch to metrics.jsonl, one line of JSON, whole or not at all."""
    line, written = _line(record).encode(), 0
    with writing(run / METRICS), open(run / METRICS, "ab", buffering=0) as file:
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
    text = path.read_text(encoding="utf-8", errors="backslashreplace")  # which is no JSON
    for number, line in enumerate(text.splitlines(), 1):
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
        found = best(history, key=lambda record: record[name])
        if type(found["epoch"]) is not int or found["epoch"] < 1:
            raise ValueError(f"the epoch {found['epoch']!r:.60}")
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{Path(run, METRICS)}: expected epochs with {name}, got others"
        ) from error


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
    with writing(path):
        try:
            with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say which file could not be written."""
    try:
        yield
    except OSError as error:
        raise type(error)(f"{path}: cannot be written: {error.strerror}") from error
