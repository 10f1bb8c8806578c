"""Files of predictions, written some rows at a time and there only when they are whole.

A file .csv has a column `prediction` and for each class `probability_<class>`; for a regression
`prediction`, or `prediction_0`, `prediction_1` … where there are several outputs. A file .npz has
an array `prediction` (N,), of the classes' names, and `probabilities` (N, K); for a regression
`prediction` alone, (N,) or (N, K). Of an ensemble there is a `disagreement` beside, (N,). Columns
of text that are kept, such as names of the rows, come first in a file .csv.
"""

import abc
import contextlib
import csv
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from jax.typing import ArrayLike
from numpy.lib import format as npy_format

from jaxmlp.data.contents import listed

SUFFIXES = (".csv", ".npz")

Fields = Sequence[Sequence[str]]
"""The fields of some columns of text."""


class Predictions(abc.ABC):
    """Where predictions go, chunk after chunk; `n_written` counts the rows."""

    def __init__(
        self,
        path: Path,
        file: IO[bytes],
        classes: Sequence[str] | None,
        n_outputs: int,
        disagreeing: bool,
        kept: Sequence[str],
        stack: contextlib.ExitStack,
    ):
        self.n_written = 0
        self._path = path
        self._file = file
        self._classes = classes
        self._n_outputs = n_outputs
        self._disagreeing = disagreeing
        self._kept = kept
        self._begin(stack)

    def write(
        self,
        chunk: ArrayLike,
        disagreement: ArrayLike | None = None,
        kept: Fields = (),
    ) -> None:
        """Append rows.

        Args:
            chunk: (n, K) probabilities or expected values; they are written as float32.
            disagreement: (n,), that of the members about each, where the file has one.
            kept: The n fields of every column that is kept.

        Raises:
            OSError: The file cannot be written.
            ValueError: The chunk has another shape, or there is no disagreement though there should
                be one, or the other way round, or other fields.
        """
        with np.errstate(over="ignore"):
            values = np.asarray(chunk, np.float32)
            beside = None if disagreement is None else np.asarray(disagreement, np.float32)
        if values.ndim != 2 or values.shape[1] != self._n_outputs:
            raise ValueError(
                f"{self._path}: expected predictions of shape (n, {self._n_outputs}), got "
                f"{values.shape}"
            )
        expected = values.shape[:1] if self._disagreeing else None
        if (got := None if beside is None else beside.shape) != expected:
            raise ValueError(
                f"{self._path}: expected a disagreement of shape {expected}, got {got}"
            )
        if [len(column) for column in kept] != [len(values)] * len(self._kept):
            raise ValueError(
                f"{self._path}: expected {len(values)} fields of {len(self._kept)} columns that "
                f"are kept, got {[len(column) for column in kept]}"
            )
        with _writing(self._path):
            self._append(values, beside, kept)
        self.n_written += len(values)

    @abc.abstractmethod
    def _begin(self, stack: contextlib.ExitStack) -> None:
        """Make ready; what must be closed goes on the stack."""

    @abc.abstractmethod
    def _append(self, values: np.ndarray, disagreement: np.ndarray | None, kept: Fields) -> None:
        """Append rows (n, K), the members' disagreement (n,) about them or None, what is kept."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Write what is left to be written."""


@contextlib.contextmanager
def open_predictions(
    path: str | os.PathLike[str],
    n_rows: int | None,
    classes: Sequence[str] | None,
    n_outputs: int,
    disagreeing: bool = False,
    kept: Sequence[str] = (),
) -> Iterator[Predictions]:
    """Open a file of predictions for writing.

    The file appears when the block ends, in the place of the one there was. Where the block raises,
    that one is left as it was. Memory does not grow with the number of rows.

    Args:
        path: A file .csv or .npz.
        n_rows: How many rows there will be, or None where that is not known.
        classes: The names of the K classes, or None for a regression.
        n_outputs: K.
        disagreeing: Whether the members of an ensemble disagree about each row.
        kept: The names of the columns of text that come first, in a file .csv.

    Yields:
        An object whose `write(chunk)` appends (n, K) probabilities or expected values, and
        `write(chunk, disagreement)` those of an ensemble.

    Raises:
        OSError: The path is a folder, or the file cannot be written.
        ValueError: The path ends in another way, there are other than K classes, a chunk is not
            (n, K), other than `n_rows` rows were written, or a column cannot be kept.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "predictions.csv")
        ...     with open_predictions(path, 2, ("cat", "dog"), 2) as out:
        ...         out.write(np.array([[0.75, 0.25], [0.5, 0.5]]))
        ...     print(path.read_text())
        prediction,probability_cat,probability_dog
        cat,0.75,0.25
        cat,0.5,0.5
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: expected a file {' or '.join(SUFFIXES)} for the predictions")
    if classes is not None and len(classes) != n_outputs:
        raise ValueError(f"classes: expected {n_outputs} names, one an output, got {len(classes)}")
    if kept and path.suffix.lower() != ".csv":
        raise ValueError(f"keep: expected none for {path}, which is no table, got {listed(kept)}")
    if path.is_dir():
        raise OSError(f"{path}: expected a file for the predictions, got a folder")
    kind = _Table if path.suffix.lower() == ".csv" else _Archive
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.ExitStack() as stack:
        with _writing(path):
            file = unfinished.open("wb")
        stack.callback(unfinished.unlink, missing_ok=True)
        stack.callback(_close, file)
        with _writing(path):
            writer = kind(path, file, classes, n_outputs, disagreeing, kept, stack)
        yield writer
        if n_rows is not None and writer.n_written != n_rows:
            raise ValueError(
                f"{path}: expected {n_rows} rows of predictions, got {writer.n_written}"
            )
        with _writing(path):
            writer.finish()
            file.close()
            unfinished.replace(path)


def _close(file: IO[bytes]) -> None:
    # Where the disk is full, what was buffered fails once more: the first error tells.
    with contextlib.suppress(OSError):
        file.close()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say which file could not be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(f"{path}: expected to write the predictions, got: {reason}") from error


class _Table(Predictions):
    """Lines of text. Nine digits tell every float32 from its neighbours."""

    def _begin(self, stack: contextlib.ExitStack) -> None:
        k = self._n_outputs
        if self._classes is not None:
            header = ["prediction", *(f"probability_{name}" for name in self._classes)]
            self._quoted = [_line([name]) for name in self._classes]
        else:
            header = ["prediction"] if k == 1 else [f"prediction_{index}" for index in range(k)]
        header += ["disagreement"] * self._disagreeing
        for number, name in enumerate(self._kept):
            if name in header or name in self._kept[:number]:
                raise ValueError(
                    f"keep: expected other columns than those of {self._path}, once each, got "
                    f"{name!r}"
                )
        header = [*self._kept, *header]
        self._format = ",".join(["%.9g"] * (k + self._disagreeing))
        self._file.write((_line(header) + "\n").encode())

    def _append(self, values: np.ndarray, disagreement: np.ndarray | None, kept: Fields) -> None:
        numbers = values if disagreement is None else np.column_stack([values, disagreement])
        lines = [self._format % tuple(row) for row in numbers.tolist()]
        if self._classes is not None:
            best = values.argmax(axis=1).tolist()
            lines = [f"{self._quoted[k]},{line}" for k, line in zip(best, lines, strict=True)]
        if kept:
            rows = zip(*kept, strict=True)
            lines = [f"{_line(row)},{line}" for row, line in zip(rows, lines, strict=True)]
        if lines:
            self._file.write(("\n".join(lines) + "\n").encode())

    def finish(self) -> None:
        """Do nothing: every line is written."""


class _Archive(Predictions):
    """Arrays, each in a nameless file beside until its length is known."""

    def _begin(self, stack: contextlib.ExitStack) -> None:
        def beside() -> IO[bytes]:
            return stack.enter_context(tempfile.TemporaryFile(dir=self._path.parent))

        self._prediction = beside()
        self._probabilities = None if self._classes is None else beside()
        self._names = None if self._classes is None else np.array(self._classes, np.str_)
        self._disagreement = beside() if self._disagreeing else None

    def _append(self, values: np.ndarray, disagreement: np.ndarray | None, kept: Fields) -> None:
        if self._disagreement is not None and disagreement is not None:
            self._disagreement.write(disagreement.tobytes())
        if self._names is None or self._probabilities is None:
            self._prediction.write(values.tobytes())
        else:
            self._prediction.write(self._names[values.argmax(axis=1)].tobytes())
            self._probabilities.write(values.tobytes())

    def finish(self) -> None:
        """Put the arrays into the file."""
        n, k = self.n_written, self._n_outputs
        numbers = np.dtype(np.float32)
        with zipfile.ZipFile(self._file, "w", allowZip64=True) as archive:
            if self._names is None or self._probabilities is None:
                shape = (n,) if k == 1 else (n, k)
                _copy(archive, "prediction", self._prediction, numbers, shape)
            else:
                _copy(archive, "prediction", self._prediction, self._names.dtype, (n,))
                _copy(archive, "probabilities", self._probabilities, numbers, (n, k))
            if self._disagreement is not None:
                _copy(archive, "disagreement", self._disagreement, numbers, (n,))


def _copy(
    archive: zipfile.ZipFile, name: str, file: IO[bytes], dtype: np.dtype, shape: tuple[int, ...]
) -> None:
    """Write an array into a zip file, its content from another file."""
    file.seek(0)
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        npy_format.write_array_header_1_0(member, header)
        shutil.copyfileobj(file, member, 2**20)


def _line(fields: Sequence[str]) -> str:
    """Return fields as a line of a table, quoted where they must be."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(fields)  # it quotes what has one of these
    return text.getvalue()[:-2]
