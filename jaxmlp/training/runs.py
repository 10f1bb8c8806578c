"""The folder of a run: its configuration, its metrics, and the trained model."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.flax import load_file, save_file

from jaxmlp.network import Layer, Network, Parameters, check_parameters
from jaxmlp.validation import check_float_dtype

FORMAT_VERSION = 1
CONFIG = "config.json"
METRICS = "metrics.jsonl"
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


def write_config(run: Path, network: Network, metadata: Mapping[str, Any]) -> None:
    """Write config.json: the format's version, the network, and what else is known of the run."""
    content = {
        "format_version": FORMAT_VERSION,
        "network": {
            "sizes": list(network.sizes),
            "activation": network.activation,
            "loss": network.loss,
            "bias": network.bias,
            "precision": network.precision,
        },
        **metadata,
    }
    _replace(run / CONFIG, (json.dumps(content, indent=2) + "\n").encode())


def append_metrics(run: Path, record: Mapping[str, float]) -> None:
    """Append the record of an epoch to metrics.jsonl, one line of JSON."""
    with open(run / METRICS, "a", encoding="utf-8") as file:
        file.write(json.dumps(dict(record), allow_nan=False) + "\n")


def save_model(run: Path, params: Parameters) -> None:
    """Write model.safetensors: the arrays `0.weight`, `0.bias`, `1.weight` and so on."""
    arrays = {}
    for number, layer in enumerate(params):
        arrays[f"{number}.weight"] = layer.weight
        if layer.bias is not None:
            arrays[f"{number}.bias"] = layer.bias
    partial = run / f".{MODEL}.{os.getpid()}"
    save_file(arrays, partial)
    partial.replace(run / MODEL)


def load(run: str | os.PathLike[str]) -> tuple[Network, Parameters, dict[str, Any]]:
    """Return the network, the parameters and the metadata of a run.

    Args:
        run: The folder that `jaxmlp train` wrote.

    Returns:
        The network; its parameters; and the rest of config.json, such as `dataset` and `training`.

    Raises:
        FileNotFoundError: The folder or one of its files is missing.
        ValueError: A file is damaged, of a later format, or does not fit the other; or the
            parameters are float64 while JAX's 64-bit mode is off.
    """
    folder = Path(run)
    for name in (CONFIG, MODEL):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"run: expected {name} in {folder}, got no such file")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        version = config.pop("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(f"expected format {FORMAT_VERSION}, got {version!r}")
        network = Network(**config.pop("network"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
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


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that at every moment it is the old one or the new one, whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)
