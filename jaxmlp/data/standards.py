"""Datasets whose inputs are standardised by the figures of their training part."""

import numpy as np

from jaxmlp.data.examples import Dataset
from jaxmlp.scaling import Scaling, standardization

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
        ValueError: No training example weighs more than 0.
    """
    inputs, _, weights = dataset.train
    if weights is not None and not weights.any():
        raise ValueError(
            f"{dataset.source}: expected a training example that weighs more than 0, got none"
        )
    # Some columns at a time: in float64 all the images would take eight times their memory.
    parts = [
        standardization(inputs[:, start : start + _COLUMNS].astype(np.float64), weights)
        for start in range(0, inputs.shape[1], _COLUMNS)
    ]
    shift, factor = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return dataset._replace(scaling=Scaling(shift, factor))
