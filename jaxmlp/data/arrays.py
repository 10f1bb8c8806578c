"""A set of examples as arrays of certain names: in a file .npz, or in a folder of files .npy."""

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlp.data.archives import (
    Header,
    check_inputs,
    check_inputs_finite,
    opened_archive,
    opened_array,
    read_content,
    read_member,
)
from jaxmlp.data.contents import SPLITS, Contents, input_dtype, listed
from jaxmlp.data.rows import open_stored
from jaxmlp.data.stored import StoredInputs

_REQUIRED = ("inputs", "targets")
_OPTIONAL = ("sample_weight", "split")
_ARRAYS = _REQUIRED + _OPTIONAL


def read_archive(path: str | os.PathLike[str], stream: bool = False) -> Contents:
    """Return what a file .npz holds.

    Args:
        path: The file, with the arrays `inputs` (N, D), or images (N, rows, columns), and `targets`
            (N,) or (N, K); and if it has them `sample_weight` (N,), and `split` (N,) of "train",
            "validation" and "test" or of 0, 1 and 2. Others are passed over.
        stream: Whether the inputs stay unread, as `StoredInputs`.

    Returns:
        Its contents: inputs uint8 where they are, else float32 or float64; images flattened.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, an array is missing or spelt wrong, holds Python objects, or does
            not fit the others; or inputs that are to stay unread are compressed or in Fortran's
            order.
    """
    path = Path(path)
    with opened_archive(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        _check_names(path, names)
        arrays: dict[str, Any] = {
            name: open_stored(path)
            if stream and name == "inputs"
            else read_member(path, archive, name)
            for name in _ARRAYS
            if name in names
        }
    return _contents(path, arrays)


def read_folder(path: str | os.PathLike[str], stream: bool = False) -> Contents:
    """Return what a folder of files .npy holds: those of a file .npz, inputs.npy and so on.

    Args:
        path: The folder.
        stream: Whether the inputs stay unread, as `StoredInputs`.

    Returns:
        Its contents, as `read_archive` returns them.

    Raises:
        OSError: A file cannot be read.
        ValueError: As for `read_archive`.
    """
    path = Path(path)
    names = [file.stem for file in sorted(path.glob("*.npy"))]
    _check_names(path, names)
    arrays: dict[str, Any] = {}
    for name in _ARRAYS:
        file = path / f"{name}.npy"
        if name not in names:
            continue
        if stream and name == "inputs":
            arrays[name] = open_stored(file)
            continue
        with opened_array(file) as (content, header):
            arrays[name] = read_content(file, "the file", content, header)
    return _contents(path, arrays)


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Raise unless there are the arrays of a set of examples.

    Args:
        path: The file or folder, for the messages.
        names: Those of its arrays.

    Raises:
        ValueError: One is missing, or spelt wrong.
    """
    for name in set(names).difference(_ARRAYS):
        if near := difflib.get_close_matches(name.lower(), _OPTIONAL, n=1, cutoff=0.8):
            raise ValueError(f"{path}: unknown array {name!r}: did you mean {near[0]!r}?")
    for name in _REQUIRED:
        if name not in names:
            raise ValueError(
                f"{path}: expected the arrays 'inputs' and 'targets', got {listed(names) or 'none'}"
            )


def _contents(path: Path, arrays: Mapping[str, Any]) -> Contents:
    """Return what a set of examples holds, checked.

    Args:
        path: The file or folder, for the messages.
        arrays: Its arrays by their names; the inputs may be `StoredInputs`, which stay unread.

    Raises:
        ValueError: An array is of another kind, or does not fit the others.
    """
    inputs, targets = arrays["inputs"], arrays["targets"]
    stored = isinstance(inputs, StoredInputs)
    if not stored:
        check_inputs(path, Header(inputs.shape, False, inputs.dtype))
    if (
        targets.dtype.kind not in "biufUS"
        or targets.ndim not in ((1,) if targets.dtype.kind in "US" else (1, 2))
        or targets.shape[1:] == (0,)
    ):
        raise ValueError(
            f"{path}: expected targets (N,) or (N, K) of numbers, or (N,) of strings, got "
            f"{targets.dtype} of shape {targets.shape}"
        )
    for name, array in arrays.items():
        if name != "inputs" and (len(array) != len(inputs) if array.ndim else True):
            raise ValueError(
                f"{path}: expected {len(inputs)} rows in {name}, as in inputs, got shape "
                f"{array.shape}"
            )
    weights = _weights(path, arrays.get("sample_weight"))
    if stored:
        image_shape = inputs.image_shape
    else:
        image_shape = inputs.shape[1:] if inputs.ndim == 3 else None
        inputs = inputs.reshape(len(inputs), -1)
        inputs = np.ascontiguousarray(inputs, input_dtype(inputs.dtype))
        check_inputs_finite(path, inputs if weights is None else inputs[weights > 0])
    return Contents(
        path=path,
        inputs=inputs,
        targets=_strings(path, targets) if targets.dtype.kind in "US" else targets,
        weights=weights,
        split=_split(path, arrays.get("split")),
        image_shape=image_shape,
    )


def _strings(path: Path, targets: np.ndarray) -> list[str]:
    try:
        strings = np.char.decode(targets, "utf-8") if targets.dtype.kind == "S" else targets
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected targets in UTF-8, got {error.object!r:.60}") from error
    return [text.strip() for text in strings.tolist()]


def _weights(path: Path, array: np.ndarray | None) -> np.ndarray | None:
    if array is None:
        return None
    if array.dtype.kind not in "biuf" or array.ndim != 1:
        raise ValueError(
            f"{path}: expected a sample_weight (N,) of numbers, got {array.dtype} of shape "
            f"{array.shape}"
        )
    with np.errstate(over="ignore"):
        weights = array.astype(np.float32)
    wrong = ~np.isfinite(weights) | (weights < 0)
    if wrong.any():
        place = int(np.argmax(wrong))
        raise ValueError(
            f"{path}: expected a sample_weight of finite numbers ≥ 0, got {array[place]} at "
            f"[{place}]"
        )
    return weights


def _split(path: Path, array: np.ndarray | None) -> np.ndarray | None:
    if array is None:
        return None
    codes = np.full(array.shape, -1, np.int8)
    for code, name in enumerate(SPLITS):
        if array.dtype.kind in "U":
            codes[array == name] = code
        elif array.dtype.kind in "iu":
            codes[array == code] = code
    if array.ndim != 1 or (codes < 0).any():
        got = array.shape if array.ndim != 1 else repr(array[codes < 0][0].item())
        raise ValueError(
            f"{path}: expected a split (N,) of {listed(SPLITS)} or of 0, 1, 2, got {got}"
        )
    return codes
