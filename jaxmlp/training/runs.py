"""The folder of a run: its configuration, its metrics, and the trained model."""

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.flax import load_file, save

from jaxmlp.network import Layer, Network, Parameters, check_parameters
from jaxmlp.scaling import Scaling
from jaxmlp.validation import check_float_dtype

FORMAT_VERSION = 1
CONFIG = "config.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
MODEL = "model.safetensors"


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
        OSError: The folder cannot be made.
    """
    if path is None:
        _make_folder(Path("runs"))
        number = 1
        while True:
            folder = Path("runs", f"{dataset}-{number}")
            try:
                folder.mkdir()
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
    return folder


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"output: cannot make the folder {folder}: {error.strerror}") from error


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
    _write(run / CONFIG, (json.dumps(content, indent=2) + "\n").encode())


def as_json(content: Any) -> Any:
    """Return what is read back after it was written as JSON: lists for tuples, and so on."""
    return json.loads(json.dumps(content))


def training_options(run: Path) -> dict[str, Any] | None:
    """Return the options that a run, of one seed or several, was begun with; None for no run.

    Raises:
        ValueError: Its config.json is damaged.
    """
    for path in (run / CONFIG, *sorted(run.glob(f"seed-*/{CONFIG}"))):
        if path.is_file():
            options = _read_config(path).get("training")
            if not isinstance(options, dict):
                raise ValueError(f"{path}: not a run's configuration: expected its training")
            return options
    return None


def fingerprint(*arrays: np.ndarray) -> str:
    """Return a checksum of arrays, with which a resumed run knows its data again."""
    total = 0
    for array in arrays:
        total = zlib.crc32(f"{array.dtype} {array.shape}".encode(), total)
        total = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, total)
    return f"{total:08x}"


def check_fingerprint(run: Path, expected: str) -> None:
    """Raise ValueError where the run was begun with other data."""
    for path in (run / CONFIG, *sorted(run.glob(f"seed-*/{CONFIG}"))):
        if path.is_file():
            got = _read_config(path).get("dataset", {}).get("fingerprint")
            if got != expected:
                raise ValueError(
                    f"dataset: expected the training examples that {run} was begun with, got others"
                )


def _read_config(path: Path) -> dict[str, Any]:
    """Return the content of config.json.

    Raises:
        ValueError: It is damaged, or of another format.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        version = config.pop("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(f"expected format {FORMAT_VERSION}, got {version!r}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a run's configuration: {error}") from error
    return config


def append_metrics(run: Path, record: Mapping[str, float]) -> None:
    """Append the record of an epoch to metrics.jsonl, one line of JSON."""
    with open(run / METRICS, "a", encoding="utf-8") as file:
        file.write(_line(record))


def write_metrics(run: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write metrics.jsonl anew, with a line for each of these epochs."""
    _write(run / METRICS, "".join(map(_line, history)).encode())


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
    _write(run / SUMMARY, (json.dumps(content, indent=2) + "\n").encode())


def save_model(run: Path, params: Parameters) -> None:
    """Write model.safetensors: the arrays `0.weight`, `0.bias`, `1.weight` and so on."""
    arrays = {}
    for number, layer in enumerate(params):
        arrays[f"{number}.weight"] = layer.weight
        if layer.bias is not None:
            arrays[f"{number}.bias"] = layer.bias
    _write(run / MODEL, save(arrays))


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
            several = f": it holds runs of several seeds, such as {seeds[0]}" if seeds else ""
            raise FileNotFoundError(f"run: expected {name} in {folder}, got no such file{several}")
    config = _read_config(folder / CONFIG)
    try:
        network = Network(**config.pop("network"))
        scaling = config.pop("scaling", None)
        config["scaling"] = scaling and Scaling(
            *(np.asarray(scaling[name], np.float64) for name in Scaling._fields)
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: not a run's configuration: {error}") from error
    try:
        with safe_open(folder / MODEL, framework="numpy") as file:
            if any(file.get_slice(name).get_dtype() == "F64" for name in file.keys()):
                check_float_dtype(np.float64)
        arrays = load_file(folder / MODEL)
        params = tuple(
            Layer(
                jnp.asarray(arrays[f"{number}.weight"]),
                jnp.asarray(arrays[f"{number}.bias"]) if network.bias else None,
            )
            for number in range(len(network.sizes) - 1)
        )
        check_parameters(network, params)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{folder / MODEL}: not this network's parameters: {error}") from error
    return network, params, config


def _write(path: Path, content: bytes) -> None:
    """Write a file so that at every moment it is the old one or the new one, whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
