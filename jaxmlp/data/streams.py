"""Inputs of files of any size, some rows at a time.

An array in a file .npz is read from the zip file as it is unpacked, one in a file .npy from the
file, a table line by line. So memory depends on the length of a row alone. Only an array in
Fortran's order, column after column, is mapped into memory, from a temporary copy where it is
packed.
"""

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from jaxmlp.data.archives import (
    Header,
    check_inputs,
    check_inputs_finite,
    fill,
    open_member,
    opened_archive,
    read_header,
)
from jaxmlp.data.contents import input_dtype, listed
from jaxmlp.data.tables import BLOCK, Table, input_columns, open_table

_CHUNK_BYTES = 2**26


Chunk = tuple[np.ndarray, list[list[str]]]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A file's inputs, to be iterated over: chunks (n, D) of at most 8192 rows, in order.

    Each iteration reads the file from the beginning. What it meets on the way it raises as
    `open_inputs` does: a damaged file, numbers that are missing or not finite.

    Attributes:
        n_rows: The number of rows, or None where only reading tells.
        n_inputs: D.
        kept: The names of the columns that come beside the inputs, see `with_kept`.
    """

    n_rows: int | None
    n_inputs: int
    _chunks: Callable[[], Iterator[Chunk]] = dataclasses.field(repr=False)
    kept: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the chunks."""
        for chunk, _ in self._chunks():
            yield chunk

    def with_kept(self) -> Iterator[Chunk]:
        """Yield the chunks, and beside each the n fields of every column that is kept."""
        return self._chunks()


def open_inputs(
    path: str | os.PathLike[str],
    n_inputs: int,
    features: Sequence[str] | None = None,
    target: str | None = None,
    keep: Sequence[str] = (),
) -> Inputs:
    """Return the inputs of a file, to be read some rows at a time.

    Args:
        path: A file .npz with an array `inputs`, (N, D) or images (N, rows, columns); a file .npy
            of such an array, or a folder with it in inputs.npy; or a table .csv under a header.
        n_inputs: D, the number of inputs that there must be.
        features: The names of the D inputs: a table's columns of these names are taken in this
            order, and others passed over. By default all its columns but "sample_weight" and
            "split".
        target: The column of the targets, which is passed over if it is there.
        keep: Columns of a table whose fields are kept beside the inputs. Without the names of the
            inputs they are none.

    Returns:
        The inputs: uint8 and float32 as they are, other integers and floats in float32 or float64,
        tables in float64.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file ends in another way or is damaged, or has other inputs.
    """
    path = Path(path).expanduser()
    if path.is_dir() and (path / "inputs.npy").exists():
        path /= "inputs.npy"
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _open_table(path, n_inputs, features, target, keep)
    if keep:
        raise ValueError(
            f"keep: expected none for {path}, whose columns have no names, got {listed(keep)}"
        )
    if suffix == ".npz":
        return _open_archive(path, n_inputs)
    if suffix == ".npy":
        return _open_array(path, n_inputs)
    expected = "inputs.npy in it, got none" if path.is_dir() else "a file .npz, .npy or .csv"
    raise ValueError(f"{path}: expected {expected}")


def _open_table(
    path: Path,
    n_inputs: int,
    features: Sequence[str] | None,
    target: str | None,
    keep: Sequence[str],
) -> Inputs:
    table = open_table(path)
    kept = [table.place(name, "kept column") for name in keep]
    if features is not None:
        for name in features:
            if name not in table.header:
                raise ValueError(
                    f"{path}: expected a column {name!r} as trained, got {listed(table.header)}"
                )
        columns = [table.header.index(name) for name in features]
    else:
        others = (target, *keep)
        columns = [place for place in input_columns(table) if table.header[place] not in others]
    if len(columns) != n_inputs:
        raise ValueError(
            f"{path}: expected {n_inputs} columns of inputs{' beside those kept' * bool(keep)}, "
            f"got {len(columns)}: {listed(table.header[column] for column in columns)}"
        )
    return Inputs(None, n_inputs, lambda: _table_chunks(table, columns, kept), tuple(keep))


def _table_chunks(table: Table, columns: list[int], kept: list[int]) -> Iterator[Chunk]:
    for block in table.blocks():
        yield table.numbers(block, columns), [block.column(place) for place in kept]


def _open_archive(path: Path, n_inputs: int) -> Inputs:
    with opened_archive(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if "inputs" not in names:
            raise ValueError(f"{path}: expected an array 'inputs', got {listed(names)}")
        stream, header = open_member(path, archive, "inputs")
        stream.close()
    _check_width(path, header, n_inputs)

    def chunks() -> Iterator[Chunk]:
        with opened_archive(path) as archive:
            stream, header = open_member(path, archive, "inputs")
            with stream:
                if not header.fortran_order:
                    yield from _chunks(path, stream, header, n_inputs)
                    return
                with tempfile.TemporaryFile() as copy:
                    shutil.copyfileobj(stream, copy)
                    copy.flush()
                    yield from _fortran_chunks(path, copy, 0, header)

    return Inputs(header.shape[0], n_inputs, chunks)


def _open_array(path: Path, n_inputs: int) -> Inputs:
    def opened() -> tuple[IO[bytes], Header]:
        try:
            stream = path.open("rb")
        except OSError as error:
            raise type(error)(
                f"{path}: expected a readable .npy file, got: {error.strerror}"
            ) from error
        try:
            return stream, read_header(path, "the file", stream, path.stat().st_size)
        except BaseException:
            stream.close()
            raise

    stream, header = opened()
    stream.close()
    _check_width(path, header, n_inputs)

    def chunks() -> Iterator[Chunk]:
        stream, header = opened()
        with stream:
            if header.fortran_order:
                yield from _fortran_chunks(path, stream, stream.tell(), header)
            else:
                yield from _chunks(path, stream, header, n_inputs)

    return Inputs(header.shape[0], n_inputs, chunks)


def _check_width(path: Path, header: Header, n_inputs: int) -> None:
    check_inputs(path, header)
    if (width := int(np.prod(header.shape[1:], dtype=object))) != n_inputs:
        raise ValueError(
            f"{path}: expected {n_inputs} inputs for each row, got {width} in an array of shape "
            f"{header.shape}"
        )


def _slices(header: Header) -> Iterator[tuple[int, int]]:
    """Yield where each chunk begins and ends: no longer than a block, and of bounded size."""
    n_rows = header.shape[0]
    step = max(1, min(BLOCK, _CHUNK_BYTES * n_rows // header.nbytes))
    for start in range(0, n_rows, step):
        yield start, min(start + step, n_rows)


def _chunks(path: Path, stream: IO[bytes], header: Header, n_inputs: int) -> Iterator[Chunk]:
    for start, end in _slices(header):
        raw = np.empty((end - start, n_inputs), header.dtype)
        fill(stream, raw)
        chunk = raw.astype(input_dtype(raw.dtype), copy=False)
        check_inputs_finite(path, chunk, start)
        yield chunk, []
    stream.read(1)  # at the end a zip file compares its checksum


def _fortran_chunks(path: Path, file: IO[bytes], offset: int, header: Header) -> Iterator[Chunk]:
    array = np.memmap(file, header.dtype, "r", offset, header.shape, "F")
    for start, end in _slices(header):
        rows = np.ascontiguousarray(array[start:end]).reshape(end - start, -1)
        chunk = rows.astype(input_dtype(rows.dtype), copy=False)
        check_inputs_finite(path, chunk, start)
        yield chunk, []
