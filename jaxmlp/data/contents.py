"""What a file of examples holds, before it is decided what its targets are."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SPLITS = ("train", "validation", "test")
"""What a row's `split` may say; 0, 1 and 2 stand for them."""

_SHOWN = 10


class Contents(NamedTuple):
    """A file's N rows.

    Attributes:
        path: The file.
        inputs: (N, D), uint8, float32 or float64, an array or `StoredInputs`.
        targets: (N,) strings, integers or numbers, or (N, K) numbers, as they were read.
        weights: (N,) float32, finite and not negative, or None.
        split: (N,), of each row its place in `SPLITS`, or None.
        features: The name of each input, or None.
        image_shape: (rows, columns) where each input is an image, or None.
        target: The name of the targets' column, or None where they have none.
        lines: (N,), of each row its line in the file, or None where it has no lines.
    """

    path: Path
    inputs: Any
    targets: list[str] | np.ndarray
    weights: np.ndarray | None = None
    split: np.ndarray | None = None
    features: tuple[str, ...] | None = None
    image_shape: tuple[int, int] | None = None
    target: str | None = None
    lines: np.ndarray | None = None

    def rows_of(self, part: str) -> np.ndarray | None:
        """Return the indices of the rows of one of `SPLITS`, or None where the file has no split.

        Args:
            part: One of `SPLITS`.

        Returns:
            The indices, rising.
        """
        return None if self.split is None else np.flatnonzero(self.split == SPLITS.index(part))

    def place(self, row: int) -> str:
        """Return where a row's target stands, for a message."""
        if self.lines is None:
            return f"targets[{row}]"
        return f"column {self.target!r} of row {self.lines[row]}"


def input_dtype(dtype: np.dtype) -> np.dtype:
    """Return in which dtype inputs are kept: bytes stay, all else is float32 or float64.

    Args:
        dtype: The file's dtype, of real numbers.

    Returns:
        uint8, float32, or float64 where float32 does not hold every number of the dtype.
    """
    if dtype == np.uint8:
        return np.dtype(np.uint8)
    wide = np.promote_types(dtype, np.float32)
    return wide if wide == np.float32 else np.dtype(np.float64)


def listed(names: Iterable[Any]) -> str:
    """Return names for a message, the first ten of them where there are more."""
    names = [repr(name) for name in names]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
