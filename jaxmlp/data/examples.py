"""What a dataset is: examples to learn from and examples to be judged by, as NumPy arrays."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxmlp.scaling import PIXELS, Scaling, TargetScaling


class Examples(NamedTuple):
    """Inputs (N, D), targets, and weights (N,) or None.

    The inputs are as they were read: uint8, float32 or float64; or `StoredInputs` of these. The
    targets are int32 classes (N,),
    or float32 numbers (N, K) for a regression. The weights are float32.
    """

    inputs: Any
    targets: np.ndarray
    weights: np.ndarray | None = None


class Dataset(NamedTuple):
    """Examples to learn from, examples to be judged by, and what is known of them.

    `source` says where the data was read from. `validation` and `test` are None where there are
    none. `classes` holds the name of each class, None for a regression, and `features` the name of
    each input, None where they have none. `scaling` is what the inputs go through before the first
    layer. `image_shape` is (rows, columns) where each input is an image, row after row. `target` is
    the name of the column that the targets are from, None where they are from none.
    `target_scaling` is what the targets of a regression go through before they are trained on; the
    targets here are as they were read. `rows` has for "train" and other parts of the same source
    where each example stands there: its line in a .csv, else its place in the array, from 0; None
    where that is its place in the part.
    """

    name: str
    source: str
    train: Examples
    validation: Examples | None
    test: Examples | None
    classes: tuple[str, ...] | None
    features: tuple[str, ...] | None = None
    scaling: Scaling | None = None
    image_shape: tuple[int, int] | None = None
    target: str | None = None
    target_scaling: TargetScaling | None = None
    rows: Mapping[str, np.ndarray] | None = None

    @property
    def n_outputs(self) -> int:
        """How many outputs a network for it has: one a class, or one a column of the targets."""
        return self.train.targets.shape[1] if self.classes is None else len(self.classes)


class Images(NamedTuple):
    """Images (N, rows, columns) and labels (N,), both uint8: examples as publishers store them."""

    images: np.ndarray
    labels: np.ndarray


def image_dataset(name: str, source: str, train: Images, test: Images, n_classes: int) -> Dataset:
    """Return a set of images as a dataset: every image a row of bytes, its label a class."""
    parts = [
        Examples(part.images.reshape(len(part.images), -1), part.labels.astype(np.int32))
        for part in (train, test)
    ]
    return Dataset(
        name,
        source,
        train=parts[0],
        validation=None,
        test=parts[1],
        classes=tuple(str(number) for number in range(n_classes)),
        scaling=PIXELS,
        image_shape=train.images.shape[1:],
    )
