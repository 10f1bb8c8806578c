"""Inputs that stay where they are stored, and are read by the numbers of their rows."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from jaxmlp.validation import beyond

_CHUNK_BYTES = 2**22


class Rows(Protocol):
    """N rows of D real numbers that can be read in any order.

    Attributes:
        name: What messages call them.
        shape: Of the rows as they are stored: (N, D) or (N, rows, columns).
        dtype: In which dtype they are given: uint8, float32 or float64.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def pieces(
        self, numbers: np.ndarray, memory: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield some of the rows until all with these numbers (n,) were there.

        Args:
            numbers: The rows' numbers.
            memory: (n, D) or more rows of the `dtype`, where they are put as they come, or None.

        Yields:
            Places (m,) within `numbers`, and their rows (m, D).
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class StoredInputs:
    """Inputs (N, D) that are read when they are asked for.

    `fit` takes them in the place of an array. `inputs[numbers]` are some of them, not read either;
    `rows` reads.

    Attributes:
        stored: The rows as they are stored.
        numbers: (N,), which of the rows these inputs are, or None for all.
    """

    stored: Rows
    numbers: np.ndarray | None = None

    @property
    def name(self) -> str:
        """What messages call them."""
        return self.stored.name

    @property
    def shape(self) -> tuple[int, int]:
        """N and D."""
        n_rows = self.stored.shape[0] if self.numbers is None else len(self.numbers)
        return n_rows, math.prod(self.stored.shape[1:])

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """(rows, columns) where each row is an image."""
        shape = self.stored.shape
        return (shape[1], shape[2]) if len(shape) == 3 else None

    @property
    def dtype(self) -> np.dtype:
        """In which dtype they are read: uint8, float32 or float64."""
        return self.stored.dtype

    @property
    def nbytes(self) -> int:
        """How many bytes they would be in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, numbers: ArrayLike | slice) -> "StoredInputs":
        if isinstance(numbers, slice):
            numbers = np.arange(len(self))[numbers]
        return StoredInputs(self.stored, self._stored_numbers(as_numbers(numbers)))

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError(
            f"{self.name}: expected an array in memory, got inputs that stay where they are "
            "stored: in_memory() reads them"
        )

    def rows(self, numbers: ArrayLike) -> np.ndarray:
        """Return the inputs (n, D) with these numbers (n,), checked to be finite.

        Args:
            numbers: Integers within 0 … N − 1, in any order.

        Returns:
            They, in their `dtype`.

        Raises:
            TypeError: The numbers are none.
            ValueError: One of them is NaN or infinite, or a number of none.
            OSError: They cannot be read any more.
        """
        numbers = as_numbers(numbers)
        result = np.empty((len(numbers), self.shape[1]), self.dtype)
        for places, rows in self.pieces(numbers):
            self.check_finite(rows, numbers[places])
            result[places] = rows
        return result

    def pieces(
        self, numbers: np.ndarray, memory: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Return an iterator over the inputs with these numbers (n,), of which none is checked.

        Args:
            numbers: Within 0 … N − 1, in any order.
            memory: (n, D) or more rows of the `dtype`, where they are put as they come, or None.

        Returns:
            Places (m,) within `numbers` and their inputs (m, D), until all were there. It raises
            OSError where they cannot be read any more.
        """
        return self.stored.pieces(self._stored_numbers(numbers), memory)

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield all the inputs in their order as chunks (n, D) of some megabytes; none is checked.

        Raises:
            OSError: They cannot be read any more.
        """
        n_rows, width = self.shape
        step = max(1, _CHUNK_BYTES // (width * self.dtype.itemsize))
        for start in range(0, n_rows, step):
            numbers = np.arange(start, min(start + step, n_rows))
            chunk = np.empty((len(numbers), width), self.dtype)
            for places, rows in self.pieces(numbers):
                chunk[places] = rows
            yield chunk

    def in_memory(self) -> np.ndarray:
        """Return all the inputs (N, D); none is checked.

        Raises:
            OSError: They cannot be read any more.
        """
        result = np.empty(self.shape, self.dtype)
        start = 0
        for chunk in self.chunks():
            result[start : start + len(chunk)] = chunk
            start += len(chunk)
        return result

    def check_finite(self, rows: np.ndarray, numbers: np.ndarray) -> None:
        """Raise ValueError with the first of some inputs (n, D) that is not finite.

        Args:
            rows: They.
            numbers: Their numbers (n,).

        Raises:
            ValueError: It names the row as it is stored.
        """
        if rows.dtype.kind in "ui" or (finite := np.isfinite(rows)).all():
            return
        wrong = self._stored_numbers(numbers)
        row = int(np.argmin(np.where(finite.all(axis=1), wrong.max() + 1, wrong)))
        column = int(np.argmin(finite[row]))
        raise ValueError(
            f"{self.name}: expected finite inputs, got {rows[row, column]} at [{wrong[row]}, "
            f"{column}]{beyond(rows[row, column])}"
        )

    def _stored_numbers(self, numbers: np.ndarray) -> np.ndarray:
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise ValueError(
                f"numbers: expected 0 to {len(self) - 1}, got {numbers.min()} to {numbers.max()}"
            )
        return numbers if self.numbers is None else self.numbers[numbers]


def as_numbers(numbers: ArrayLike) -> np.ndarray:
    """Return numbers of rows as an array (n,) of integers.

    Raises:
        TypeError: They are of another kind or shape.
    """
    result = np.asarray(numbers)
    if result.ndim != 1 or (result.dtype.kind not in "iu" and result.size):
        raise TypeError(
            f"numbers: expected integers (n,), got {result.dtype} of shape {result.shape}"
        )
    return result.astype(np.int64, copy=False)
