"""The known datasets: from a name to arrays, split into training and test."""

import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmlp.data.files import read_idx
from jaxmlp.validation import check_classes, check_name

DATASETS = ("digits", "mnist", "fashion_mnist")

_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_DIGITS_IN_TRAIN = 1437  # four fifths of 1797


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
            f"{', '.join(_IDX_FILES)}, each with or without .gz, got none"
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
    if not folder.exists():
        raise FileNotFoundError(f"data_dir: expected a folder, got {folder}, which does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"data_dir: expected a folder, got {folder}, which is a file")
    # All four are looked for before the first is read.
    paths = [_idx_file(folder, file_name) for file_name in _IDX_FILES]
    train_images, train_labels, test_images, test_labels = paths
    train, image_shape = _read_examples(train_images, train_labels)
    test, test_shape = _read_examples(test_images, test_labels)
    if test_shape != image_shape:
        raise ValueError(
            f"{test_images}: expected images of shape {image_shape}, as in {train_images.name}, "
            f"got {test_shape}"
        )
    return Dataset(name, str(folder), train, test, 10, image_shape)


def _idx_file(folder: Path, file_name: str) -> Path:
    """Return the file under whichever of its names is in the folder."""
    spellings = (file_name, file_name.replace("-idx", ".idx"))
    for spelling in spellings:
        for ending in ("", ".gz"):
            # Some archives unpack to a folder of this name, with the file of the dotted name in it
            # or beside it: only a file counts.
            if (path := folder / (spelling + ending)).is_file():
                return path
    raise FileNotFoundError(
        f"data_dir: expected {' or '.join(spellings)}, with or without .gz, in {folder}, "
        "got no such file"
    )


def _read_examples(images_file: Path, labels_file: Path) -> tuple[Examples, tuple[int, int]]:
    """Return the examples of two files and the shape of their images."""
    images, labels = read_idx(images_file), read_idx(labels_file)
    for path, array, rank, shape in (
        (images_file, images, 3, "(N, rows, columns)"),
        (labels_file, labels, 1, "(N,)"),
    ):
        if array.dtype != np.uint8:
            raise ValueError(f"{path}: expected unsigned bytes, got {array.dtype.name}")
        if array.ndim != rank:
            raise ValueError(f"{path}: expected an array of shape {shape}, got {array.shape}")
    if images.size == 0:
        raise ValueError(f"{images_file}: expected at least one image, got shape {images.shape}")
    if len(labels) != len(images):
        raise ValueError(
            f"{labels_file}: expected {len(images)} labels, one for each image in "
            f"{images_file.name}, got {len(labels)}"
        )
    check_classes(str(labels_file), labels, 10)
    inputs = np.divide(images, np.float32(255), dtype=np.float32).reshape(len(images), -1)
    _, rows, columns = images.shape
    return Examples(inputs, labels.astype(np.int32)), (rows, columns)
