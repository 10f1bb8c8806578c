"""Tables of comma-separated values under a header.

A table is UTF-8, with or without a byte order mark, and its lines may end in any way; fields may be
quoted. A row is named by the line where it begins, the header being line 1. Blank lines are passed
over.
"""

import csv
import difflib
import itertools
import math
import operator
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmlp.data.contents import SPLITS, Contents, listed

WEIGHT = "sample_weight"
SPLIT = "split"

BLOCK = 8192
_CODES = {name: code for code, split in enumerate(SPLITS) for name in (split, str(code))}


class Block(NamedTuple):
    """Some rows of a table, each of as many fields as the header, and the line of each."""

    rows: list[list[str]]
    lines: list[int]

    def column(self, index: int) -> list[str]:
        """Return the fields of a column, without the spaces around them."""
        return [row[index].strip() for row in self.rows]


class Table(NamedTuple):
    """A csv file whose header was read and checked."""

    path: Path
    header: tuple[str, ...]

    def blocks(self) -> Iterator[Block]:
        """Yield the rows from the beginning, `BLOCK` at a time.

        Yields:
            Blocks of at least one row.

        Raises:
            OSError: The file cannot be read.
            ValueError: It holds no rows, or one that is no row of this table.
        """
        records = _records(self.path)
        next(records)  # the header
        empty = True
        while part := list(itertools.islice(records, BLOCK)):
            empty = False
            for line, row in part:
                if len(row) != len(self.header):
                    raise ValueError(
                        f"{self.path}: expected {len(self.header)} columns in row {line}, got "
                        f"{len(row)}"
                    )
            yield Block([row for _, row in part], [line for line, _ in part])
        if empty:
            raise ValueError(f"{self.path}: expected rows below the header, got none")

    def numbers(self, block: Block, columns: Sequence[int]) -> np.ndarray:
        """Return some columns of a block as numbers.

        Args:
            block: Rows of this table.
            columns: The columns' places in the header, at least one.

        Returns:
            (rows, columns), float64 and finite.

        Raises:
            ValueError: A field is missing or no finite number; it names the row and the column.
        """
        # One column more than is asked for, because of one alone itemgetter makes no tuple.
        pick = operator.itemgetter(*columns, columns[-1])
        fields = list(itertools.chain.from_iterable(map(pick, block.rows)))
        try:
            if "_" not in "".join(fields):  # float() would take 1_0 for ten
                values = np.fromiter(map(float, fields), np.float64, len(fields))
                if np.isfinite(values).all():
                    return values.reshape(len(block.rows), -1)[:, :-1]
        except ValueError:
            pass
        line, column, field = next(
            (line, column, row[column].strip())
            for row, line in zip(block.rows, block.lines, strict=True)
            for column in columns
            if not is_number(row[column])
        )
        raise ValueError(
            f"{self.path}: expected a number in column {self.header[column]!r} of row {line}, got "
            f"{field!r:.60}"
        )

    def place(self, name: str, kind: str = "column") -> int:
        """Return the place of a column in the header.

        Args:
            name: The column.
            kind: What the message calls it.

        Returns:
            Its place, from 0.

        Raises:
            ValueError: There is no such column; it names the nearest.
        """
        if name in self.header:
            return self.header.index(name)
        names = {known.lower(): known for known in self.header}
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
        guess = f"did you mean {names[near[0]]!r}? " if near else ""
        raise ValueError(
            f"{self.path}: unknown {kind} {name!r}: {guess}expected one of {listed(self.header)}"
        )


def is_number(text: str) -> bool:
    """Return whether a field is a finite number."""
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False


def open_table(path: str | os.PathLike[str]) -> Table:
    """Return a csv file with its header.

    Args:
        path: The file.

    Returns:
        The table, of at least two columns; its rows are yet to be read.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It is a directory (`IsADirectoryError`) or cannot be read.
        ValueError: It is empty, or its first line is no header.
    """
    path = Path(path)
    first = next(_records(path), None)
    if first is None:
        raise ValueError(f"{path}: expected a header and rows, got an empty file")
    header = tuple(name.strip() for name in first[1])
    if len(header) == 1 and any(separator in header[0] for separator in ";\t|"):
        raise ValueError(
            f"{path}: expected columns separated by commas, got one column {header[0]!r:.60}"
        )
    for number, name in enumerate(header, 1):
        if not name:
            raise ValueError(
                f"{path}: expected a name for every column, got none for column {number} (has the "
                "table been saved with its index?)"
            )
        if header.index(name) != number - 1:
            raise ValueError(
                f"{path}: expected a name of its own for every column, got {name!r} for columns "
                f"{header.index(name) + 1} and {number}"
            )
        # Names such as 0, 1, 2 are common; 5.1 is a value.
        if is_number(name) and not name.isdecimal():
            raise ValueError(
                f"{path}: expected a header with the names of the columns, got the number {name!r} "
                f"for column {number}"
            )
    return Table(path, header)


def read_table(
    path: str | os.PathLike[str],
    target: str | None = None,
    ignore: Sequence[str] = (),
    features: Sequence[str] | None = None,
    advise: bool = False,
) -> Contents:
    """Return the rows of a csv file.

    Args:
        path: The file.
        target: The column of the targets; by default the last one that is neither "sample_weight"
            nor "split".
        ignore: Columns that are passed over where they are there.
        features: The columns of a model's inputs, in their order; by default all others.
        advise: Whether the message names the options that pass over columns of words.

    Returns:
        Its contents: inputs float64, targets as strings. The columns "sample_weight" and "split"
        are no inputs.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is damaged, there is no such target or no input, or a field is missing
            or none of what its column holds; it names the row and the column.
    """
    table = open_table(path)
    columns = [place for place in input_columns(table) if table.header[place] not in ignore]
    if target is not None:
        place = table.place(target, "target column")
    elif columns:
        place = columns[-1]
    else:
        raise ValueError(f"{table.path}: expected a column of targets, got {listed(table.header)}")
    if table.header[place] in ignore:
        raise ValueError(
            f"ignore: expected other columns than that of the targets, got {table.header[place]!r}"
        )
    if features is not None:
        for name in features:
            if name not in table.header:
                raise ValueError(
                    f"{table.path}: expected a column {name!r} as trained, got "
                    f"{listed(table.header)}"
                )
        columns = list(map(table.place, features))
    columns = [column for column in columns if column != place]
    if not columns:
        raise ValueError(
            f"{table.path}: expected at least one column of inputs beside {table.header[place]!r}, "
            "got none"
        )
    inputs, targets, weights, split, lines = [], [], [], [], []
    for block in table.blocks():
        try:
            inputs.append(table.numbers(block, columns))
        except ValueError as error:
            words = [own for own in columns if not any(map(is_number, block.column(own)))]
            if not advise or not words:
                raise
            names = [*ignore, *(table.header[own] for own in words)]
            message = f"{error}; --ignore {shlex.join(names)} leaves columns of words out"
            if target is None:
                message += f", --target takes one for the targets, not {table.header[place]!r}"
            raise ValueError(message) from None
        targets += block.column(place)
        lines += block.lines
        if WEIGHT in table.header and WEIGHT not in ignore:
            weights.append(_weights(table, block))
        if SPLIT in table.header and SPLIT not in ignore:
            split.append(_split(table, block))
    return Contents(
        path=table.path,
        inputs=np.concatenate(inputs),
        targets=targets,
        weights=np.concatenate(weights) if weights else None,
        split=np.concatenate(split) if split else None,
        features=tuple(table.header[column] for column in columns),
        target=table.header[place],
        lines=np.array(lines),
    )


def input_columns(table: Table) -> list[int]:
    """Return the places of all columns but "sample_weight" and "split"."""
    return [place for place, name in enumerate(table.header) if name not in (WEIGHT, SPLIT)]


def _weights(table: Table, block: Block) -> np.ndarray:
    weights = table.numbers(block, [table.place(WEIGHT)])[:, 0]
    outside = (weights < 0) | (weights > np.finfo(np.float32).max)
    if outside.any():
        place = int(np.argmax(outside))
        raise ValueError(
            f"{table.path}: expected a number of at least 0 in column {WEIGHT!r} of row "
            f"{block.lines[place]}, got {weights[place]:g}"
        )
    return weights.astype(np.float32)


def _split(table: Table, block: Block) -> np.ndarray:
    names = block.column(table.place(SPLIT))
    for name, line in zip(names, block.lines, strict=True):
        if name not in _CODES:
            raise ValueError(
                f"{table.path}: expected {', '.join(SPLITS[:-1])} or {SPLITS[-1]} in column "
                f"{SPLIT!r} of row {line}, got {name!r:.60}"
            )
    return np.array([_CODES[name] for name in names], np.int8)


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line where each row begins and its fields, the header first."""
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            for row in reader:
                if row:
                    yield line, row
                line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}: expected fields separated by commas, got in row {line}: {error}"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected UTF-8, got the byte {error.object[error.start]:#04x} in line "
            f"{_undecodable_line(path)}"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(f"{path}: expected a readable csv file, got: {reason}") from error


def _undecodable_line(path: Path) -> int:
    """Return the number of the first line that is not UTF-8."""

    # The decoder reads ahead in blocks: its own position is none in the file.
    def is_utf8(line: bytes) -> bool:
        try:
            line.decode()
        except UnicodeDecodeError:
            return False
        return True

    with path.open("rb") as file:
        return next(number for number, line in enumerate(file, 1) if not is_utf8(line))
