"""The known datasets: from a name to arrays, split into training and test."""

import importlib.util
import os
from pathlib import Path

import numpy as np

from jaxmlp.data.examples import Dataset, Examples, image_examples
from jaxmlp.data.files import IDX_FILES, find_idx_files, read_idx_images
from jaxmlp.validation import check_name

DATASETS = ("digits", "mnist", "fashion_mnist")

_DIGITS_IN_TRAIN = 1437  # four fifths of 1797


def load_dataset(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Return a dataset by its name, without any network.

    "digits" are the 1797 images of 8 × 8 pixels that scikit-learn ships: 1437 for training and 360
    for testing, by a fixed permutation. "mnist" and "fashion_mnist" are read from the four idx
    files of their publishers, in the files' order. Both sets name their files alike, so the folder
    decides which of them is read.

    Args:
        name: One of `DATASETS`.
        data_dir: For "mnist" and "fashion_mnist" the folder with train-images-idx3-ubyte,
            train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte. Each may
            end in .gz, and may be spelt with a dot, as in train-images.idx3-ubyte. "digits" needs
            none.

    Returns:
        The dataset in NumPy arrays: inputs float32 in [0, 1], targets int32.

    Raises:
        FileNotFoundError: `data_dir` or a file in it is missing.
        OSError: `data_dir` is no directory (`NotADirectoryError`), or a file cannot be read.
        ValueError: An unknown name (with the nearest one), no `data_dir` where it is needed, or
            files that are damaged or do not fit each other.

    Example:
        >>> digits = load_dataset("digits")
        >>> digits.train.inputs.shape, digits.test.inputs.shape
        ((1437, 64), (360, 64))
    """
    check_name("dataset", name, DATASETS)
    if name == "digits":
        return _load_digits()
    if data_dir is None:
        raise ValueError(
            f"data_dir: {name} is read from files: expected a folder (--data-dir DIR) with "
            f"{', '.join(IDX_FILES)}, each with or without .gz, got none"
        )
    return _load_idx_folder(name, Path(data_dir))


def _load_digits() -> Dataset:
    path = _digits_file()
    if path is not None:
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
        pixels, labels = table[:, :-1], table[:, -1]
    else:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    inputs = np.divide(pixels, 16, dtype=np.float32)[order]
    targets = labels.astype(np.int32)[order]
    return Dataset(
        name="digits",
        source="sklearn.datasets.load_digits()" if path is None else str(path),
        train=Examples(inputs[:_DIGITS_IN_TRAIN], targets[:_DIGITS_IN_TRAIN]),
        test=Examples(inputs[_DIGITS_IN_TRAIN:], targets[_DIGITS_IN_TRAIN:]),
        n_classes=10,
        image_shape=(8, 8),
    )


def _digits_file() -> Path | None:
    """Return scikit-learn's own file, found without importing it: the import takes a second."""
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            return path
    return None


def _load_idx_folder(name: str, folder: Path) -> Dataset:
    train, test = read_idx_images(find_idx_files(folder, "data_dir", IDX_FILES), 10)
    image_shape = train.images.shape[1:]
    return Dataset(name, str(folder), image_examples(train), image_examples(test), 10, image_shape)
