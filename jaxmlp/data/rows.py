"""Rows that can be read in any order: of an array in a file, or the records of a sequence.

An array is one in a file .npy, or uncompressed in a file .npz. It is read, not mapped into memory:
a file that is cut off while it is used is an error in a sentence, not the end of the process, and
memory holds what is asked for and nothing around it.
"""

import math
import os
import struct
import time
import weakref
import zipfile
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlp.data.archives import (
    Header,
    check_inputs,
    open_member,
    opened_archive,
    opened_array,
)
from jaxmlp.data.contents import input_dtype, listed
from jaxmlp.data.stored import StoredInputs

_PIECE_BYTES = 2**20  # at a time: what is done to them stays in a core's cache
_MOST_ROWS = 2048  # at a time
_NEAR = 2**13  # bytes from row to row, within which what is between is read as fast
_LONG = 2**11  # bytes of a read, which then is not copied once more
_CACHED_SECONDS = 1e-5  # a row takes no longer where the system has it in memory
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip file's member: signature, two lengths


def open_stored(path: str | os.PathLike[str]) -> StoredInputs:
    """Return the inputs of a file, which stay there.

    Args:
        path: A file .npy of an array (N, D), or of images (N, rows, columns); or a file .npz with
            such an array `inputs`, as `numpy.savez` writes it.

    Returns:
        The inputs: uint8 and float32 as they are, other integers and floats in float32 or float64.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, compressed, in Fortran's order or of another kind.

    Example:
        >>> import pathlib, tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = pathlib.Path(folder.name, "inputs.npy")
        >>> np.save(path, np.arange(12.0).reshape(4, 3))
        >>> inputs = open_stored(path)
        >>> inputs.shape, inputs.rows(np.array([3, 0]))
        ((4, 3), array([[ 9., 10., 11.],
               [ 0.,  1.,  2.]]))
        >>> folder.cleanup()
    """
    path = Path(path).expanduser()
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return StoredInputs(_array_rows(path))
    if suffix == ".npz":
        return StoredInputs(_member_rows(path))
    raise ValueError(f"{path}: expected a file .npz or .npy")


def _array_rows(path: Path) -> "FileRows":
    with opened_array(path) as (stream, header):
        return _file_rows(path, header, stream.tell())


def _member_rows(path: Path) -> "FileRows":
    with opened_archive(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if "inputs" not in names:
            raise ValueError(f"{path}: expected an array 'inputs', got {listed(names)}")
        info = archive.getinfo("inputs.npy")
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(
                f"{path}: expected uncompressed inputs, which can be read where they are, got "
                "compressed ones: write them by numpy.savez, or a folder of .npy files"
            )
        stream, header = open_member(path, archive, "inputs")
        with stream:
            before = stream.tell()
        with path.open("rb") as file:
            file.seek(info.header_offset)
            local = file.read(_LOCAL_HEADER.size)
        if len(local) < _LOCAL_HEADER.size or local[:4] != b"PK\3\4":
            raise zipfile.BadZipFile("no header where the inputs begin")
        _, name, extra = _LOCAL_HEADER.unpack(local)
        return _file_rows(path, header, info.header_offset + len(local) + name + extra + before)


def _file_rows(path: Path, header: Header, offset: int) -> "FileRows":
    check_inputs(path, header)
    if header.fortran_order:
        raise ValueError(
            f"{path}: expected inputs row after row, got them in Fortran's order, column after "
            "column: write numpy.ascontiguousarray of them"
        )
    return FileRows(path, header, offset)


class FileRows:
    """The rows of an array in a file, read where they are.

    Args:
        path: The file.
        header: The array's header: in C's order, of real numbers.
        offset: Where in the file the array begins.

    Raises:
        OSError: The file cannot be read.
    """

    def __init__(self, path: Path, header: Header, offset: int) -> None:
        self.name, self.shape = str(path), header.shape
        self.dtype = input_dtype(header.dtype)
        self._stored_dtype, self._offset = header.dtype, offset
        self._width = math.prod(header.shape[1:])
        self._row_bytes = header.nbytes // header.shape[0]
        self._at_once = max(1, min(_MOST_ROWS, _PIECE_BYTES // self._row_bytes))
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def pieces(
        self, numbers: np.ndarray, memory: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield rows by rising numbers, some at a time.

        Args:
            numbers: The rows' numbers (n,).
            memory: (n, D) or more rows of the `dtype`, where they are put one after another.

        Yields:
            Places (m,) within `numbers`, and their rows (m, D).

        Raises:
            OSError: They cannot be read, or the file has become shorter.
        """
        order = np.argsort(numbers, kind="stable")
        slow = False
        for start in range(0, len(order), self._at_once):
            places = order[start : start + self._at_once]
            kept = None if memory is None else memory[start : start + len(places)]
            rows = kept
            if rows is None or rows.dtype != self._stored_dtype:
                rows = np.empty((len(places), self._width), self._stored_dtype)
            begin = time.perf_counter()
            self._read_rising(numbers[places].astype(np.int64), rows, advised=slow)
            slow = time.perf_counter() - begin > len(places) * _CACHED_SECONDS
            if kept is None:
                yield places, rows.astype(self.dtype, copy=False)
                continue
            if rows is not kept:
                kept[:] = rows
            yield places, kept

    def _read_rising(self, numbers: np.ndarray, rows: np.ndarray, advised: bool) -> None:
        """Read the rows (m, D) with these numbers, which do not fall, as they are stored.

        Rows that are near each other are read with what is between them. Where those before came
        from a disk, it is `advised` of all reads first, so that it looks for them together.
        """
        size = self._row_bytes
        steps = np.diff(numbers)
        far = np.flatnonzero((steps > 1) & (steps * size > _NEAR))
        begins, ends = np.append(0, far + 1), np.append(far, len(numbers) - 1)
        sizes = (numbers[ends] - numbers[begins] + 1) * size
        if advised and hasattr(os, "posix_fadvise"):
            where = self._offset + numbers[begins] * size
            for place, length in zip(where.tolist(), sizes.tolist(), strict=True):
                os.posix_fadvise(self._file, place, length, os.POSIX_FADV_WILLNEED)
        # What is long goes straight to its place, where nothing is between its rows and none is
        # asked for twice; from the rest, which costs less to copy than to read by itself, the rows
        # are picked.
        breaks = np.append(0, np.cumsum(steps != 1))
        direct = (breaks[ends] == breaks[begins]) & (sizes >= _LONG)
        for chosen, read in ((direct, self._read_into), (~direct, self._read_and_pick)):
            if chosen.any():
                read(rows, numbers, begins[chosen], ends[chosen])

    def _read_into(
        self, rows: np.ndarray, numbers: np.ndarray, begins: np.ndarray, ends: np.ndarray
    ) -> None:
        """Read spans of rows next to each other, from rows[begin] to rows[end] each."""
        firsts, counts = numbers[begins], ends - begins + 1
        buffers: Any = zip(map(rows.__getitem__, map(slice, begins.tolist(), (ends + 1).tolist())))
        where = (self._offset + firsts * self._row_bytes).tolist()
        got = list(map(os.preadv, repeat(self._file), buffers, where))
        for span in np.flatnonzero(np.not_equal(got, counts * self._row_bytes)).tolist():
            # Cut short by the system; or by the file's end, which this says.
            content = self._read(int(firsts[span]), int(counts[span]))
            rows[begins[span] : ends[span] + 1] = self._as_rows(content)

    def _read_and_pick(
        self, rows: np.ndarray, numbers: np.ndarray, begins: np.ndarray, ends: np.ndarray
    ) -> None:
        """Read spans with what is between their rows, rows[begin] to rows[end] of each."""
        firsts, counts = numbers[begins], numbers[ends] - numbers[begins] + 1
        where = (self._offset + firsts * self._row_bytes).tolist()
        sizes = (counts * self._row_bytes).tolist()
        content = b"".join(map(os.pread, repeat(self._file), sizes, where))
        if len(content) < sum(sizes):
            content = b"".join(map(self._read, firsts.tolist(), counts.tolist()))
        lengths = ends - begins + 1
        before = np.repeat(np.cumsum(counts) - counts - firsts, lengths)
        read = self._as_rows(content)
        if lengths.sum() == len(rows):  # all of them, and so in their order
            np.take(read, numbers + before, axis=0, out=rows, mode="clip")
            return
        at = np.repeat(begins - np.cumsum(lengths) + lengths, lengths)
        places = np.arange(len(at)) + at
        rows[places] = read[numbers[places] + before]

    def _as_rows(self, content: bytes) -> np.ndarray:
        return np.frombuffer(content, self._stored_dtype).reshape(-1, self._width)

    def _read(self, number: int, count: int) -> bytes:
        """Return the bytes of rows next to each other."""
        size, where = count * self._row_bytes, self._offset + number * self._row_bytes
        parts = []
        while size > 0:
            part = os.pread(self._file, size, where)
            if not part:
                raise OSError(
                    f"{self.name}: expected {self.shape[0]} rows, as when it was opened, got a "
                    f"file that ends before row {(where - self._offset) // self._row_bytes}"
                )
            parts.append(part)
            size, where = size - len(part), where + len(part)
        return b"".join(parts)


# ----------------------------------------------------------------------------------- records


def stored_records(records: Sequence[Any], inputs: str = "image") -> StoredInputs:
    """Return the inputs of a sequence of records, each of which is read when it is asked for.

    Args:
        records: Anything with a length whose items, by their numbers, are mappings: such as
            `tfds.data_source(…)["train"]`. Several threads read it.
        inputs: Under which key an item has its inputs: an array of any shape, the same in all.

    Returns:
        The inputs, flattened: uint8 as they are, other integers and floats in float32 or float64.

    Raises:
        TypeError: There is no sequence of mappings.
        ValueError: There is no record, or none of real numbers under the key.

    Example:
        >>> inputs = stored_records([{"x": [1.0, 2.0]}, {"x": [3.0, 4.0]}], "x")
        >>> inputs.rows(np.array([1]))
        array([[3., 4.]])
    """
    return StoredInputs(RecordRows(records, inputs))


class RecordRows:
    """The inputs of records, each a row.

    Args:
        records: The records.
        key: Under which key each has its inputs.

    Raises:
        TypeError: They are no sequence of mappings.
        ValueError: There is none, or it has no real numbers there.
    """

    def __init__(self, records: Sequence[Any], key: str) -> None:
        if not (hasattr(records, "__len__") and hasattr(records, "__getitem__")):
            raise TypeError(
                f"records: expected a sequence with a length, got {type(records).__name__}"
            )
        if len(records) == 0:
            raise ValueError("records: expected at least one, got none")
        self.name, self._records, self._key = f"records[…][{key!r}]", records, key
        first = self._inputs_of(0)
        if first.dtype.kind not in "biuf" or first.size == 0:
            raise ValueError(
                f"records[0][{key!r}]: expected real numbers, got {first.dtype} of shape "
                f"{first.shape}"
            )
        # Images of one channel are images.
        self._shape, squeezed = first.shape, first.shape
        if first.ndim == 3 and first.shape[2] == 1:
            squeezed = first.shape[:2]
        one = squeezed if len(squeezed) == 2 else (first.size,)
        self.shape: tuple[int, ...] = (len(records), *one)
        self._stored_dtype = first.dtype
        self.dtype = input_dtype(first.dtype)

    def _inputs_of(self, number: int) -> np.ndarray:
        try:
            return np.asarray(self._records[number][self._key])
        except (TypeError, KeyError, IndexError) as error:
            raise TypeError(
                f"records[{number}]: expected a mapping with {self._key!r}, got "
                f"{type(error).__name__}: {error}"
            ) from error

    def pieces(
        self, numbers: np.ndarray, memory: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield rows by rising numbers, some at a time.

        Args:
            numbers: The rows' numbers (n,).
            memory: (n, D) or more rows of the `dtype`, where they are put one after another.

        Yields:
            Places (m,) within `numbers`, and their rows (m, D).

        Raises:
            ValueError: A record is of another shape or dtype than the first.
        """
        order = np.argsort(numbers, kind="stable")
        width = math.prod(self.shape[1:])
        step = max(1, _PIECE_BYTES // (width * self.dtype.itemsize))
        for start in range(0, len(order), step):
            places = order[start : start + step]
            if memory is None:
                rows = np.empty((len(places), width), self.dtype)
            else:
                rows = memory[start : start + len(places)]
            for place, number in enumerate(numbers[places].tolist()):
                one = self._inputs_of(number)
                if one.shape != self._shape or one.dtype != self._stored_dtype:
                    raise ValueError(
                        f"records[{number}][{self._key!r}]: expected {self._stored_dtype} of shape "
                        f"{self._shape}, as in the first, got {one.dtype} of {one.shape}"
                    )
                rows[place] = one.reshape(-1)
            yield places, rows
