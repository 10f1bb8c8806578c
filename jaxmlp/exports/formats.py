"""The formats, by name."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxmlp.exports.onnx import to_onnx
from jaxmlp.exports.stablehlo import to_stablehlo
from jaxmlp.exports.torch import to_torch
from jaxmlp.network import Network, Parameters
from jaxmlp.scaling import Scaling
from jaxmlp.validation import check_name


class Exported(NamedTuple):
    """Where a model was written, and the lines of Python that read it and predict with it."""

    path: Path
    usage: str


class Format(NamedTuple):
    """A kind of file: the function that writes it, and the file's name by default."""

    write: Callable[..., str]
    file_name: str


FORMATS: dict[str, Format] = {
    "onnx": Format(to_onnx, "model.onnx"),
    "stablehlo": Format(to_stablehlo, "model.stablehlo"),
    "torch": Format(to_torch, "model.torch.safetensors"),
}
"""Name → what writes it."""


def export(
    format: str,
    network: Network,
    params: Parameters,
    scaling: Scaling | None,
    path: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
) -> Exported:
    """Write a network in one of `FORMATS`.

    Args:
        format: "onnx", "stablehlo" or "torch".
        network: The network.
        params: Its parameters.
        scaling: What raw inputs go through before the first layer, or None.
        path: The file, or a folder in which it gets the format's own name.
        classes: The name of each output, kept in the file where the format has a place for it.

    Returns:
        Where the file is, and how it is used.

    Raises:
        OSError: The file cannot be written.
        TypeError: Parameters of another kind.
        ValueError: An unknown format, parameters or a scaling that do not fit the network or are
            not finite, or a package that is missing.
    """
    check_name("format", format, FORMATS)
    path = Path(path)
    if path.is_dir():
        path = path / FORMATS[format].file_name
    return Exported(path, FORMATS[format].write(network, params, scaling, path, classes))
