"""Datasets put together from files of the user's own: one for training, and others if there are."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmlp.data.arrays import read_archive, read_folder
from jaxmlp.data.contents import Contents, listed
from jaxmlp.data.examples import Dataset, Examples
from jaxmlp.data.labels import Kind, different, encoded, is_integer, kind_of, numbers
from jaxmlp.data.splits import subset
from jaxmlp.data.tables import open_table, read_table
from jaxmlp.scaling import PIXELS

_AS_NUMBERS = " (--targets numbers, or regression=True, takes integers as numbers)"
SUFFIXES = (".npz", ".csv")


def is_file_name(name: str | os.PathLike[str]) -> bool:
    """Return whether a dataset's name ends as a file of examples does, or is that of a folder."""
    return str(name).lower().endswith(SUFFIXES) or Path(name).expanduser().is_dir()


def kind_of_file(path: Path) -> str:
    """Return the ending of a file of examples, or "folder"."""
    suffix = path.suffix.lower()
    return "folder" if suffix not in SUFFIXES and path.is_dir() else suffix


def read_dataset(
    path: str | os.PathLike[str],
    target: str | None = None,
    validation_file: str | os.PathLike[str] | None = None,
    test_file: str | os.PathLike[str] | None = None,
    regression: bool | None = None,
    stream: bool = False,
    ignore: Sequence[str] = (),
) -> Dataset:
    """Return the dataset of a file .npz or .csv or of a folder of .npy, and of its companions.

    Args:
        path: The file, as `load_dataset` describes it.
        target: The column of the targets, by default the last; for .csv only.
        validation_file: Examples for validation, in a file of the same kind.
        test_file: Examples for testing, in a file of the same kind.
        regression: Whether the targets are numbers; by default the rule of `jaxmlp.data.labels`.
        stream: Whether the inputs stay unread, as `StoredInputs`: those of all parts of the first
            file.
        ignore: The columns of a .csv that are neither inputs nor targets nor weights.

    Returns:
        The dataset. Where neither a `split` nor a file says which examples are for validation or
        for testing, there are none.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is damaged, or they do not fit each other.
    """
    contents = _read(path, target, stream, _checked_ignored(path, ignore), advise=True)
    kind = kind_of(contents, regression)
    train_rows = contents.rows_of("train")
    if train_rows is not None and not len(train_rows):
        raise ValueError(f"{contents.path}: expected rows for training in split, got none")
    classes: list[Any] | None = None
    if kind != "numbers":
        classes = sorted(different(contents, kind, train_rows))
        if len(classes) < 2:
            raise ValueError(
                f"{contents.path}: expected examples of at least two classes for training, got "
                f"{classes[0]!r} only{_AS_NUMBERS * (kind == 'integers')}"
            )
    whole = _examples(contents, kind, classes)
    train = whole if train_rows is None else subset(whole, train_rows)
    if train.weights is not None and not train.weights.any():
        raise ValueError(
            f"{contents.path}: expected a training example with a sample_weight above 0, got none"
        )
    width = 1 if classes is not None else whole.targets.shape[1]
    parts: dict[str, Examples | None] = {}
    places = np.arange(len(whole.targets)) if contents.lines is None else contents.lines
    places_of = {"train": places if train_rows is None else places[train_rows]}
    for part, file in (("validation", validation_file), ("test", test_file)):
        rows = contents.rows_of(part)
        parts[part] = None if rows is None or not len(rows) else subset(whole, rows)
        if parts[part] is not None:
            places_of[part] = places[rows]
        if file is not None:
            if parts[part] is not None:
                raise ValueError(
                    f"{part}_file: expected none where the split of {contents.path} has "
                    f"{part} examples, got {file}"
                )
            parts[part] = _companion(contents, part, file, kind, classes, width, ignore)
    return Dataset(
        name=contents.path.stem,
        source=str(contents.path),
        train=train,
        validation=parts["validation"],
        test=parts["test"],
        classes=None if classes is None else tuple(map(str, classes)),
        features=contents.features,
        scaling=PIXELS if contents.inputs.dtype == np.uint8 else None,
        image_shape=contents.image_shape,
        target=contents.target,
        rows=places_of if contents.lines is not None or train_rows is not None else None,
    )


class Expected(NamedTuple):
    """What a model expects of examples: how many inputs and outputs, and their names.

    `classes` and `features` are None where there are none; `target` is the column of the targets,
    None for the last. Columns to `ignore` may hold weights.
    """

    n_inputs: int
    n_outputs: int
    classes: Sequence[str] | None
    features: Sequence[str] | None = None
    target: str | None = None
    ignore: Sequence[str] = ()


def read_examples(path: str | os.PathLike[str], expected: Expected) -> Examples:
    """Return all examples of a file .npz or .csv for a model that is trained already.

    Args:
        path: The file, as `load_dataset` describes it. A table's columns may be in another order,
            and columns that the model does not know are passed over.
        expected: What the model expects.

    Returns:
        The examples.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, or not what the model expects.
    """
    target = expected.target if str(path).lower().endswith(".csv") else None
    contents = _read(path, target, ignore=expected.ignore, features=expected.features)
    if contents.inputs.shape[1] != expected.n_inputs:
        raise ValueError(
            f"{contents.path}: expected {expected.n_inputs} inputs, got {contents.inputs.shape[1]}"
        )
    if expected.classes is None:
        examples = _examples(contents, "numbers", None)
        if examples.targets.shape[1] != expected.n_outputs:
            raise ValueError(
                f"{contents.path}: expected targets of {expected.n_outputs} columns, got "
                f"{examples.targets.shape[1]}"
            )
        return examples
    if all(is_integer(name) for name in expected.classes):
        return _examples(contents, "integers", [int(name) for name in expected.classes])
    return _examples(contents, "names", list(expected.classes))


def _checked_ignored(path: str | os.PathLike[str], ignore: Sequence[str]) -> Sequence[str]:
    """Return the names of the columns to ignore, each of which a table has.

    Raises:
        ValueError: It has not, or there is no table.
    """
    path = Path(path).expanduser()
    if ignore and kind_of_file(path) != ".csv":
        raise ValueError(
            f"ignore: expected none for {path}, whose inputs have no names, got {listed(ignore)}"
        )
    if ignore:
        table = open_table(path)
        for name in ignore:
            table.place(name, "ignored column")
    return ignore


def _read(
    path: str | os.PathLike[str],
    target: str | None,
    stream: bool = False,
    ignore: Sequence[str] = (),
    features: Sequence[str] | None = None,
    advise: bool = False,
) -> Contents:
    path = Path(path).expanduser()
    if kind_of_file(path) == ".csv":
        if stream:
            raise ValueError(
                f"stream: expected it for a file .npz or a folder of .npy, got {path}, which is "
                "read line after line"
            )
        return read_table(path, target, ignore, features, advise)
    if target is not None:
        raise ValueError(
            f"target: expected none for {path}, whose targets are its array 'targets', got "
            f"{target!r}"
        )
    return (read_folder if kind_of_file(path) == "folder" else read_archive)(path, stream)


def _examples(contents: Contents, kind: Kind, classes: list[Any] | None) -> Examples:
    targets = numbers(contents) if classes is None else encoded(contents, kind, classes)
    return Examples(contents.inputs, targets, contents.weights)


def _companion(
    first: Contents,
    part: str,
    file: str | os.PathLike[str],
    kind: Kind,
    classes: list[Any] | None,
    width: int,
    ignore: Sequence[str],
) -> Examples:
    """Return the examples of a file that goes with the one for training."""
    kind_of_first = kind_of_file(first.path)
    if kind_of_file(Path(file).expanduser()) != kind_of_first:
        expected = "folder" if kind_of_first == "folder" else f"file {kind_of_first}"
        raise ValueError(f"{part}_file: expected a {expected}, as {first.path}, got {file}")
    contents = _read(file, first.target, ignore=ignore)
    path = contents.path
    if contents.split is not None:
        raise ValueError(f"{path}: expected no split in a file for {part} alone, got one")
    if first.features is not None and contents.features is not None:
        for name in first.features:
            if name not in contents.features:
                raise ValueError(
                    f"{path}: expected a column {name!r}, as in {first.path}, got none"
                )
        if more := [name for name in contents.features if name not in first.features]:
            raise ValueError(
                f"{path}: expected the columns of {first.path} alone, got also {listed(more)}"
            )
        order = [contents.features.index(name) for name in first.features]
        contents = contents._replace(inputs=contents.inputs[:, order])
    expected, got = first.inputs, contents.inputs
    if got.shape[1] != expected.shape[1] or contents.image_shape != first.image_shape:
        raise ValueError(
            f"{path}: expected inputs of shape {first.image_shape or expected.shape[1:]}, as in "
            f"{first.path}, got {contents.image_shape or got.shape[1:]}"
        )
    if (got.dtype == np.uint8) is not (expected.dtype == np.uint8):
        raise ValueError(
            f"{path}: expected inputs of {expected.dtype}, as in {first.path}, got {got.dtype}"
        )
    examples = _examples(contents, kind, classes)
    if classes is None:
        if examples.targets.shape[1] != width:
            raise ValueError(
                f"{path}: expected targets of {width} columns, as in {first.path}, got "
                f"{examples.targets.shape[1]}"
            )
    return examples
