"""What a dataset is: examples to learn from and examples to be judged by, as NumPy arrays."""

from typing import NamedTuple

import numpy as np


class Examples(NamedTuple):
    """Inputs (N, D), float32 in [0, 1], and targets (N,), int32 classes."""

    inputs: np.ndarray
    targets: np.ndarray


class Dataset(NamedTuple):
    """Examples to learn from, examples to be judged by, and what is known of both.

    `source` says where the data was read from. `image_shape` is (rows, columns) where each input
    is an image, row after row, and None where it is not.
    """

    name: str
    source: str
    train: Examples
    test: Examples
    n_classes: int
    image_shape: tuple[int, int] | None


class Images(NamedTuple):
    """Images (N, rows, columns) and labels (N,), both uint8: examples as publishers store them."""

    images: np.ndarray
    labels: np.ndarray


def image_examples(data: Images) -> Examples:
    """Return each image as a row of numbers in [0, 1], and its label as a class."""
    images, labels = data
    inputs = np.divide(images, np.float32(255), dtype=np.float32).reshape(len(images), -1)
    return Examples(inputs, labels.astype(np.int32))
