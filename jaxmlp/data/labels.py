"""What a file's targets are: classes, which have names, or numbers.

The rule, which `regression` overrides:

- Integers are classes, in the order of the integers. Of more than `MAX_INTEGER_CLASSES` different
  ones it must be said what they are.
- Numbers of a table of which one is written with a decimal point or an exponent, and arrays of
  floats, are numbers: a regression.
- All else is a class's name, and the classes are in alphabetical order. Beside numbers with a
  decimal point a name is refused.

A missing target ("", NA, N/A, NaN, nan) is neither.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from jaxmlp.data.contents import Contents, listed
from jaxmlp.data.tables import is_number

Kind = Literal["numbers", "integers", "names"]

MAX_INTEGER_CLASSES = 100

_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}")  # as many as int() takes
_MISSING = ("", "NA", "N/A", "NaN", "nan")


def kind_of(contents: Contents, regression: bool | None) -> Kind:
    """Return what a file's targets are.

    Args:
        contents: The file's contents.
        regression: True for numbers, False for classes, None for the rule of this room.

    Returns:
        "numbers" for a regression; "integers" or "names" for classes.

    Raises:
        ValueError: A target is missing, none of what is asked for, or of a kind that cannot be
            told.
    """
    if isinstance(contents.targets, list):
        kind = _kind_of_strings(contents, contents.targets, regression)
    else:
        kind = _kind_of_array(contents, contents.targets, regression)
    if kind == "integers" and regression is None:
        count = len(different(contents, kind))
        if count > MAX_INTEGER_CLASSES:
            where = "targets" if contents.target is None else f"column {contents.target!r}"
            raise ValueError(
                f"{contents.path}: expected targets that are clearly classes or numbers, got "
                f"{count} different integers in {where}: say which (--targets classes or "
                "numbers; regression=False or True)"
            )
    return kind


def _kind_of_strings(contents: Contents, targets: list[str], regression: bool | None) -> Kind:
    check_present(contents)
    if regression:
        return "numbers"
    different = set(targets)
    if all(map(_INTEGER.fullmatch, different)):
        return "integers"
    if regression is False or contents.lines is None or not any(map(is_number, different)):
        return "names"
    if all(map(is_number, different)):
        return "numbers"
    if any(is_number(text) and not _INTEGER.fullmatch(text) for text in different):
        row = next(row for row, text in enumerate(targets) if not is_number(text))
        raise ValueError(
            f"{contents.path}: expected a number in {contents.place(row)}, as in other rows, got "
            f"{targets[row]!r:.60} (regression=False takes all of them as names)"
        )
    return "names"


def _kind_of_array(contents: Contents, targets: np.ndarray, regression: bool | None) -> Kind:
    got = f"got {targets.dtype} of shape {targets.shape}"
    if targets.ndim == 2:
        if regression is False or (regression is None and targets.dtype.kind != "f"):
            raise ValueError(
                f"{contents.path}: expected targets (N,) for classes, {got} (regression=True takes "
                "them as numbers)"
            )
        return "numbers"
    if regression or (targets.dtype.kind == "f" and regression is None):
        return "numbers"
    broken = ~np.isfinite(targets) | (targets != np.floor(targets))
    if broken.any():
        row = int(np.argmax(broken))
        raise ValueError(
            f"{contents.path}: expected integers or strings for classes, got {targets[row]} in "
            f"{contents.place(row)}"
        )
    return "integers"


def is_integer(text: str) -> bool:
    """Return whether a string is an integer, and so a class of its own kind."""
    return _INTEGER.fullmatch(text) is not None


def check_present(contents: Contents) -> None:
    """Raise ValueError with the first string among the targets that stands for a missing one."""
    missing = set(contents.targets).intersection(_MISSING)
    if missing:
        row = next(row for row, text in enumerate(contents.targets) if text in missing)
        raise ValueError(
            f"{contents.path}: expected a target in {contents.place(row)}, got "
            f"{contents.targets[row]!r}"
        )


def keys(contents: Contents, kind: Kind) -> list[Any]:
    """Return of each row what tells its class: an integer, or a name.

    Args:
        contents: The file's contents.
        kind: "integers" or "names".

    Returns:
        N integers or strings; what is no integer among integers stays what it is.
    """
    if isinstance(contents.targets, np.ndarray):
        values = contents.targets.tolist()
        if contents.targets.dtype.kind == "f":
            values = [int(value) if value.is_integer() else value for value in values]
        return values if kind == "integers" else list(map(str, values))
    if kind == "names":
        return contents.targets
    different = set(contents.targets)
    value = {text: int(text) if _INTEGER.fullmatch(text) else text for text in different}
    return [value[text] for text in contents.targets]


def different(contents: Contents, kind: Kind, rows: np.ndarray | None = None) -> set[Any]:
    """Return the different classes, each as `keys` returns it.

    Args:
        contents: The file's contents.
        kind: "integers" or "names".
        rows: The rows to look at, or None for all.
    """
    targets = contents.targets
    if isinstance(targets, np.ndarray):  # of all the rows: a list would be several times as large
        chosen = np.unique(targets if rows is None else targets[rows])
        return set(keys(contents._replace(targets=chosen), kind))
    known = keys(contents, kind)
    return set(known if rows is None else [known[row] for row in rows])


def encoded(contents: Contents, kind: Kind, classes: Sequence[Any]) -> np.ndarray:
    """Return the targets as the places of their classes.

    Args:
        contents: The file's contents.
        kind: "integers" or "names".
        classes: The classes, each as `keys` returns it.

    Returns:
        (N,) int32.

    Raises:
        ValueError: A target is missing, or none of the classes.
    """
    if isinstance(contents.targets, list):
        check_present(contents)
    elif contents.targets.ndim != 1:
        raise ValueError(
            f"{contents.path}: expected targets (N,), as in the file for training, got shape "
            f"{contents.targets.shape}"
        )
    place = {key: index for index, key in enumerate(classes)}
    if isinstance(contents.targets, np.ndarray):
        chosen, inverse = np.unique(contents.targets, return_inverse=True)
        found = keys(contents._replace(targets=chosen), kind)
        codes = np.array([place.get(key, -1) for key in found], np.int32)[inverse]
    else:
        codes = np.array([place.get(key, -1) for key in keys(contents, kind)], np.int32)
    if (codes < 0).any():
        row = int(np.argmax(codes < 0))
        target: Any = contents.targets[row]
        got = target if isinstance(target, str) else target.item()
        raise ValueError(
            f"{contents.path}: expected a class of the training examples ({listed(classes)}) in "
            f"{contents.place(row)}, got {got!r:.60}"
        )
    return codes


def numbers(contents: Contents) -> np.ndarray:
    """Return the targets as numbers.

    Args:
        contents: The file's contents.

    Returns:
        (N, K) float32, finite.

    Raises:
        ValueError: A target is no number, or too large for float32.
    """
    targets = contents.targets
    if isinstance(targets, list):
        for row, text in enumerate(targets):
            if not is_number(text):
                raise ValueError(
                    f"{contents.path}: expected a number in {contents.place(row)}, got {text!r:.60}"
                )
        targets = np.array(list(map(float, targets)))
    with np.errstate(over="ignore"):
        result = targets.reshape(len(targets), -1).astype(np.float32)
    if not np.isfinite(result).all():
        row = int(np.argmin(np.isfinite(result).all(axis=1)))
        raise ValueError(
            f"{contents.path}: expected finite numbers of float32 in {contents.place(row)}, got "
            f"{targets[row]}"
        )
    return result
