"""Datasets whose inputs are standardised by the figures of their training part."""

import numpy as np

from jaxmlp.data.examples import Dataset
from jaxmlp.data.stored import StoredInputs
from jaxmlp.scaling import Scaling, scaling_of, standardization

_COLUMNS = 64


def standardized(dataset: Dataset) -> Dataset:
    """Return the dataset with the scaling to mean 0 and standard deviation 1 of every column.

    Only the training part is looked at, and of it only rows that weigh more than 0. The inputs
    stay what they are, bytes among them; `scaling` replaces the one there was. A column of one
    value is shifted to 0 and keeps its unit.

    Args:
        dataset: The dataset.

    Returns:
        The same dataset with another `scaling`.

    Raises:
        ValueError: No training example weighs more than 0, or numbers so large that a column's
            standard deviation is beyond float64.
    """
    inputs, _, weights = dataset.train
    if weights is not None and not weights.any():
        raise ValueError(
            f"{dataset.source}: expected a training example that weighs more than 0, got none"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(inputs, StoredInputs):
            scaling = _streamed(inputs, weights)
        else:
            # Some columns at a time: in float64 all images would take eight times their memory.
            parts = [
                standardization(inputs[:, start : start + _COLUMNS].astype(np.float64), weights)
                for start in range(0, inputs.shape[1], _COLUMNS)
            ]
            shift, factor = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            scaling = Scaling(shift, factor)
    for column in np.flatnonzero(scaling.factor == 0):  # else it would be 0 for all examples
        name = column if dataset.features is None else repr(dataset.features[column])
        raise ValueError(
            f"{dataset.source}: expected numbers in column {name} whose standard deviation is one "
            "of float64, got some that are too large"
        )
    return dataset._replace(scaling=scaling)


def _streamed(inputs: StoredInputs, weights: np.ndarray | None) -> Scaling:
    """Return the scaling of inputs that are read once, some rows at a time.

    References:
        Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample
        variances, 1979.
    """
    start, total = 0, 0.0
    mean, squares = np.zeros((2, inputs.shape[1]))  # of deviations from the mean, weighted
    for chunk in inputs.chunks():
        of_chunk = np.ones(len(chunk)) if weights is None else weights[start : start + len(chunk)]
        numbers = start + np.flatnonzero(of_chunk > 0)
        rows = chunk[of_chunk > 0]
        inputs.check_finite(rows, numbers)
        start += len(chunk)
        if not len(rows):
            continue
        its = of_chunk[of_chunk > 0].astype(np.float64)
        rows, weight = rows.astype(np.float64), its.sum()
        its_mean = np.average(rows, axis=0, weights=its)
        rows -= its_mean
        total += weight
        apart = its_mean - mean
        squares += its @ np.square(rows)
        if total > weight:  # of the first rows it would be 0 times what may overflow
            squares += np.square(apart) * (weight * (total - weight) / total)
        mean += apart * (weight / total)
    return scaling_of(mean, np.sqrt(squares / total))
