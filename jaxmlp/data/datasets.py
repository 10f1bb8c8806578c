"""The known datasets: from a name to arrays, split into training and test."""

import importlib.util
import os
from pathlib import Path

import numpy as np

from jaxmlp.data.examples import Dataset, Examples, image_dataset
from jaxmlp.data.files import find_idx_files, idx_file, read_idx_images
from jaxmlp.data.prepared import PUBLISHED, default_folder, is_prepared, read_prepared
from jaxmlp.scaling import Scaling
from jaxmlp.validation import check_name

DATASETS = ("digits", *PUBLISHED)

_DIGITS_IN_TRAIN = 1437  # four fifths of 1797


def load_dataset(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Return a dataset by its name, without any network.

    "digits" are the 1797 images of 8 × 8 pixels that scikit-learn ships: 1437 for training and 360
    for testing, by a fixed permutation. "mnist", "fashion_mnist", "kmnist" and "emnist" (its part
    "balanced", 47 classes, images on their side as published) are read from the four idx files of
    their publishers, in the files' order, or from where `jaxmlp data prepare` has prepared them, in
    the order of tensorflow-datasets. The first three name their files alike, so the folder decides
    which of them is read.

    Args:
        name: One of `DATASETS`.
        data_dir: A folder with train-images-idx3-ubyte, train-labels-idx1-ubyte,
            t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte (emnist-balanced-train-images-… and
            so on for "emnist"). Each may end in .gz, and may be spelt with a dot, as in
            train-images.idx3-ubyte. Without any of them, a folder with prepared sets, as
            tensorflow-datasets keeps them. By default `preparation.default_folder()`, for prepared
            sets only. "digits" needs none.

    Returns:
        The dataset in NumPy arrays: inputs uint8, targets int32.

    Raises:
        FileNotFoundError: `data_dir` or a file in it is missing, and the set is not prepared there.
        OSError: `data_dir` is no directory (`NotADirectoryError`), or a file cannot be read.
        ValueError: An unknown name (with the nearest one), no `data_dir` where the set is not
            prepared in the default folder, or files that are damaged or do not fit each other.

    Example:
        >>> digits = load_dataset("digits")
        >>> digits.train.inputs.shape, digits.test.inputs.shape
        ((1437, 64), (360, 64))
    """
    check_name("dataset", name, DATASETS)
    if name == "digits":
        return _load_digits()
    if data_dir is not None:
        return _load_folder(name, Path(data_dir))
    folder = default_folder()
    if not is_prepared(name, folder):
        raise ValueError(
            f"data_dir: {name} is read from files: expected a folder (--data-dir DIR) with "
            f"{', '.join(PUBLISHED[name].files)}, each with or without .gz, or what `jaxmlp data "
            f"prepare {name} --from DIR` prepares in {folder}, got neither"
        )
    return read_prepared(name, folder)


def _load_digits() -> Dataset:
    path = _digits_file()
    if path is not None:
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
        pixels, labels = table[:, :-1], table[:, -1]
    else:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    inputs = pixels.astype(np.uint8)[order]
    targets = labels.astype(np.int32)[order]
    return Dataset(
        name="digits",
        source="sklearn.datasets.load_digits()" if path is None else str(path),
        train=Examples(inputs[:_DIGITS_IN_TRAIN], targets[:_DIGITS_IN_TRAIN]),
        validation=None,
        test=Examples(inputs[_DIGITS_IN_TRAIN:], targets[_DIGITS_IN_TRAIN:]),
        classes=tuple("0123456789"),
        scaling=Scaling(np.float64(0), np.float64(1 / 16)),
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


def _load_folder(name: str, folder: Path) -> Dataset:
    published = PUBLISHED[name]
    if folder.is_dir() and not any(idx_file(folder, file) for file in published.files):
        if is_prepared(name, folder):
            return read_prepared(name, folder)
        raise FileNotFoundError(
            f"data_dir: expected {', '.join(published.files)}, each with or without .gz, or what "
            f"`jaxmlp data prepare {name} --from DIR` prepares, in {folder}, got neither"
        )
    paths = find_idx_files(folder, "data_dir", published.files)
    train, test = read_idx_images(paths, published.n_classes)
    return image_dataset(name, str(folder), train, test, published.n_classes)
