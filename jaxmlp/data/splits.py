"""Splits of examples into two parts, with the same share of every class."""

import numpy as np

from jaxmlp.data.examples import Dataset, Examples
from jaxmlp.data.stored import StoredInputs


def split_stratified(
    targets: np.ndarray, fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of two parts drawn at random, the second a fraction of all.

    Args:
        targets: (N,) integers: classes, of which either part gets its share; or anything else of
            length N, which is split as it comes.
        fraction: The second part's share, in [0, 1].
        rng: Draws.

    Returns:
        The rest and the part, both rising. The part has round(N · fraction) of them, and of each
        class its share rounded down or up (largest remainder); where there is a choice, no class
        is left without an example in the rest.

    Raises:
        ValueError: The fraction is outside [0, 1].

    Example:
        >>> rng = np.random.default_rng(0)
        >>> split_stratified(np.array([0, 0, 0, 0, 1, 1]), 0.5, rng)
        (array([1, 3, 4]), array([0, 2, 5]))
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction: expected a number in [0, 1], got {fraction}")
    n = len(targets)
    size = round(n * fraction)
    chosen = np.zeros(n, bool)
    if targets.ndim == 1 and targets.dtype.kind in "iu":
        _, codes, counts = np.unique(targets, return_inverse=True, return_counts=True)
        for code, share in enumerate(_shares(counts, fraction, size)):
            chosen[rng.permutation(np.flatnonzero(codes == code))[:share]] = True
    else:
        chosen[rng.permutation(n)[:size]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _shares(counts: np.ndarray, fraction: float, size: int) -> np.ndarray:
    """Return how many of each class belong to a part of `size`: by largest remainder."""
    quotas = counts * fraction
    # 0.1 · 30 must not become 2 and a remainder of almost one.
    shares = np.floor(quotas + 1e-9).astype(int)
    emptied = (shares + 1 >= counts).astype(int)
    order = np.lexsort((np.arange(len(counts)), shares - quotas, emptied))
    shares[order[: size - shares.sum()]] += 1
    return shares


class HasValidation(ValueError):
    """A dataset has a validation part, and no other can be put aside."""


def with_validation(dataset: Dataset, fraction: float, seed: int = 0) -> Dataset:
    """Return the dataset with a part of its training examples kept for validation.

    Args:
        dataset: A dataset without a validation part.
        fraction: The share of the training examples, in [0, 1); 0 changes nothing. Every class
            gives its share.
        seed: Of the draw.

    Returns:
        The dataset.

    Raises:
        HasValidation: The dataset has a validation part.
        ValueError: The fraction or the seed is out of range, or there are too few examples: either
            part gets at least one, and training one of every class.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"validation_fraction: expected a number in [0, 1), got {fraction}")
    if fraction == 0:
        return dataset
    if seed < 0:
        raise ValueError(f"seed: expected an integer of at least 0, got {seed}")
    if dataset.validation is not None:
        raise HasValidation(
            f"validation_fraction: expected 0 where {dataset.source} or a file of its own has the "
            f"validation examples, got {fraction}"
        )
    targets = dataset.train.targets
    rest, part = split_stratified(targets, fraction, np.random.default_rng(seed))
    if min(len(rest), len(part)) == 0:
        raise ValueError(
            f"validation_fraction: expected at least one example for training and one for "
            f"validation, got {len(rest)} and {len(part)} by {fraction} of {len(targets)}"
        )
    if dataset.classes is not None:
        lost = np.setdiff1d(targets, targets[rest])
        if lost.size:
            raise ValueError(
                f"validation_fraction: expected to leave an example of every class for training, "
                f"got none of {dataset.classes[lost[0]]!r} by {fraction} of {len(targets)}"
            )
    rows = dict(dataset.rows or {"train": np.arange(len(targets))})
    rows |= {"train": rows["train"][rest], "validation": rows["train"][part]}
    return dataset._replace(
        train=subset(dataset.train, rest), validation=subset(dataset.train, part), rows=rows
    )


def subset(examples: Examples, rows: np.ndarray) -> Examples:
    """Return some of the examples.

    Args:
        examples: All of them.
        rows: Their indices.

    Returns:
        The examples, copied; inputs that are stored stay where they are.
    """
    weights = None if examples.weights is None else examples.weights[rows]
    return Examples(examples.inputs[rows], examples.targets[rows], weights)


def read(examples: Examples) -> Examples:
    """Return the examples with their inputs in memory.

    Raises:
        OSError: They cannot be read any more.
    """
    if isinstance(examples.inputs, StoredInputs):
        return examples._replace(inputs=examples.inputs.in_memory())
    return examples


def with_read_parts(dataset: Dataset) -> Dataset:
    """Return the dataset with what is for validation and testing in memory.

    Raises:
        OSError: It cannot be read any more.
    """
    parts = {
        name: part and read(part)
        for name, part in (("validation", dataset.validation), ("test", dataset.test))
    }
    return dataset._replace(**parts)
