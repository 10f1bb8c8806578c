"""Files .npz: a zip file of arrays, each behind a header with its dtype and shape.

The headers are read by `numpy.lib.format`. An array is read only after its header was found to
promise what the zip file holds, and never where it is a pickle.
"""

import contextlib
import difflib
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy_format

from jaxmlp.data.contents import SPLITS, Contents, input_dtype, listed

_REQUIRED = ("inputs", "targets")
_OPTIONAL = ("sample_weight", "split")
_PIECE = 2**20


class Header(NamedTuple):
    """What an array's header says."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """How many bytes of content follow the header."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def read_archive(path: str | os.PathLike[str]) -> Contents:
    """Return what a file .npz holds.

    Args:
        path: The file, with the arrays `inputs` (N, D), or images (N, rows, columns), and `targets`
            (N,) or (N, K); and if it has them `sample_weight` (N,), and `split` (N,) of "train",
            "validation" and "test" or of 0, 1 and 2. Others are passed over.

    Returns:
        Its contents: inputs uint8 where they are, else float32 or float64; images flattened.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, an array is missing or spelt wrong, holds Python objects, or does
            not fit the others.
    """
    path = Path(path)
    with opened_archive(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        for name in set(names).difference(_REQUIRED + _OPTIONAL):
            if near := difflib.get_close_matches(name.lower(), _OPTIONAL, n=1, cutoff=0.8):
                raise ValueError(f"{path}: unknown array {name!r}: did you mean {near[0]!r}?")
        for name in _REQUIRED:
            if name not in names:
                raise ValueError(
                    f"{path}: expected the arrays 'inputs' and 'targets', got {listed(names)}"
                )
        arrays = {
            name: _read_member(path, archive, name)
            for name in _REQUIRED + _OPTIONAL
            if name in names
        }
    inputs, targets = arrays["inputs"], arrays["targets"]
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
        if len(array) != len(inputs) if array.ndim else True:
            raise ValueError(
                f"{path}: expected {len(inputs)} rows in {name}, as in inputs, got shape "
                f"{array.shape}"
            )
    weights = _weights(path, arrays.get("sample_weight"))
    flat = inputs.reshape(len(inputs), -1)
    flat = np.ascontiguousarray(flat, input_dtype(inputs.dtype))
    check_inputs_finite(path, flat if weights is None else flat[weights > 0])
    return Contents(
        path=path,
        inputs=flat,
        targets=_strings(path, targets) if targets.dtype.kind in "US" else targets,
        weights=weights,
        split=_split(path, arrays.get("split")),
        image_shape=inputs.shape[1:] if inputs.ndim == 3 else None,
    )


def _strings(path: Path, targets: np.ndarray) -> list[str]:
    try:
        strings = np.char.decode(targets, "utf-8") if targets.dtype.kind == "S" else targets
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected targets in UTF-8, got {error.object!r:.60}") from error
    return [text.strip() for text in strings.tolist()]


def check_inputs(path: Path, header: Header) -> None:
    """Raise ValueError unless the header is one of inputs (N, D) or (N, rows, columns)."""
    shape, dtype = header.shape, header.dtype
    if dtype.kind not in "biuf":
        raise ValueError(f"{path}: expected inputs of real numbers, got {dtype}")
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(
            f"{path}: expected inputs of shape (N, D) or (N, rows, columns), none of them 0, got "
            f"{shape}"
        )


def check_inputs_finite(path: Path, inputs: np.ndarray, start: int = 0) -> None:
    """Raise ValueError with the first of the inputs (n, D), rows `start` …, that is not finite."""
    if inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
        row, column = (int(place) for place in np.argwhere(~np.isfinite(inputs))[0])
        raise ValueError(
            f"{path}: expected finite inputs, got {inputs[row, column]} at [{start + row}, "
            f"{column}]"
        )


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


# --------------------------------------------------------------------------- members of the zip


@contextlib.contextmanager
def opened_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a file .npz, and say in a sentence what is wrong with it while it is read.

    Args:
        path: The file.

    Yields:
        The zip file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        reason = str(error) or "it ends too early"
        raise ValueError(
            f"{path}: expected an intact .npz file, got a damaged one ({reason})"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(f"{path}: expected a readable .npz file, got: {reason}") from error


def open_member(path: Path, archive: zipfile.ZipFile, name: str) -> tuple[IO[bytes], Header]:
    """Return the stream of an array's content, and its header.

    Args:
        path: The file, for the messages.
        archive: The opened file.
        name: The array's name, which is there.

    Returns:
        The stream, to be closed, and the header.

    Raises:
        ValueError: The array is compressed in another way than NumPy's, damaged, or of objects.
    """
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{path}: expected {name} stored or deflated, got another compression")
    stream = archive.open(info)
    try:
        return stream, read_header(path, name, stream, info.file_size)
    except BaseException:
        stream.close()
        raise


def read_header(path: Path, name: str, stream: IO[bytes], size: int) -> Header:
    """Return the header of an array in the format .npy, and leave the stream behind it.

    Args:
        path: The file, for the messages.
        name: The array's name, for the messages.
        stream: At its beginning.
        size: How many bytes it holds.

    Returns:
        The header, which promises as many bytes as are left.

    Raises:
        ValueError: It is no header, promises another number of bytes, or is one of objects.
    """
    try:
        version = npy_format.read_magic(stream)
        if version == (1, 0):
            header = Header(*npy_format.read_array_header_1_0(stream))
        else:  # version 3 is for names of fields only
            header = Header(*npy_format.read_array_header_2_0(stream))
    except ValueError as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path}: expected {name} in NumPy's format, got: {reason}") from error
    if header.dtype.hasobject:
        raise ValueError(
            f"{path}: expected {name} of numbers or strings, got Python objects, which are a "
            "pickle and not read"
        )
    left = size - stream.tell()
    if min(header.shape, default=0) < 0 or header.nbytes != left:
        raise ValueError(
            f"{path}: expected {header.nbytes} bytes in {name} for {header.dtype} of shape "
            f"{header.shape}, got {left}"
        )
    return header


def fill(stream: IO[bytes], array: np.ndarray) -> None:
    """Fill a contiguous array with the next bytes of a stream.

    Args:
        stream: The stream.
        array: The array.

    Raises:
        EOFError: The stream ends before.
    """
    if array.nbytes == 0:
        return
    content = array.reshape(-1).view(np.uint8).data
    place = 0
    while place < len(content):
        if not (piece := stream.read(min(_PIECE, len(content) - place))):
            raise EOFError
        content[place : place + len(piece)] = piece
        place += len(piece)


def _read_member(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Return an array, in this machine's byte order."""
    stream, header = open_member(path, archive, name)
    with stream:
        try:
            array = np.empty(
                header.shape[::-1] if header.fortran_order else header.shape, header.dtype
            )
        except (MemoryError, ValueError) as error:
            raise ValueError(
                f"{path}: expected {name} to fit into memory, got {header.dtype} of shape "
                f"{header.shape}"
            ) from error
        fill(stream, array)
        stream.read(1)  # at the end the zip file compares its checksum
    array = array.T if header.fortran_order else array
    return array.astype(array.dtype.newbyteorder("="), copy=False)
