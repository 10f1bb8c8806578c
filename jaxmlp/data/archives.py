"""Files .npz: a zip file of arrays, each behind a header with its dtype and shape.

The headers are read by `numpy.lib.format`. An array is read only after its header was found to
promise what the zip file holds, and never where it is a pickle.
"""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy_format

from jaxmlp.validation import beyond

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
            f"{column}]{beyond(inputs[row, column])}"
        )


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


@contextlib.contextmanager
def opened_array(path: Path) -> Iterator[tuple[IO[bytes], Header]]:
    """Open a file .npy.

    Args:
        path: The file.

    Yields:
        The stream behind the header, and the header.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, or of objects.
    """
    try:
        with path.open("rb") as stream:
            yield stream, read_header(path, "the file", stream, path.stat().st_size)
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(f"{path}: expected a readable .npy file, got: {reason}") from error


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


def read_member(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Return an array, in this machine's byte order.

    Args:
        path: The file, for the messages.
        archive: The opened file.
        name: The array's name, which is there.

    Raises:
        ValueError: It is damaged, or does not fit into memory.
    """
    stream, header = open_member(path, archive, name)
    with stream:
        array = read_content(path, name, stream, header)
        stream.read(1)  # at the end the zip file compares its checksum
    return array


def read_content(path: Path, name: str, stream: IO[bytes], header: Header) -> np.ndarray:
    """Return the array behind a header, in this machine's byte order.

    Args:
        path: The file, for the messages.
        name: The array's name, for the messages.
        stream: Behind the header.
        header: What it says.

    Raises:
        ValueError: It does not fit into memory.
        EOFError: The stream ends before.
    """
    try:
        array = np.empty(header.shape[::-1] if header.fortran_order else header.shape, header.dtype)
    except (MemoryError, ValueError) as error:
        raise ValueError(
            f"{path}: expected {name} to fit into memory, got {header.dtype} of shape "
            f"{header.shape}"
        ) from error
    fill(stream, array)
    array = array.T if header.fortran_order else array
    return array.astype(array.dtype.newbyteorder("="), copy=False)
