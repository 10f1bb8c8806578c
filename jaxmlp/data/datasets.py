"""The datasets: from a name or a file to arrays, split into training, validation and test."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmlp.data.assembly import SUFFIXES, is_file_name, read_dataset
from jaxmlp.data.contents import listed
from jaxmlp.data.examples import Dataset, image_dataset
from jaxmlp.data.files import find_idx_files, idx_file, read_idx_images
from jaxmlp.data.prepared import PUBLISHED, default_folder, is_prepared, read_prepared
from jaxmlp.data.scikit_learn import SCIKIT_LEARN, load_scikit_learn
from jaxmlp.data.splits import with_read_parts, with_validation
from jaxmlp.validation import check_name

DATASETS = (*SCIKIT_LEARN, *PUBLISHED)


def is_own(name: str | os.PathLike[str]) -> bool:
    """Return whether a dataset is the user's own, in a file or folder, and none of `DATASETS`."""
    return str(name) not in ("", *DATASETS) and is_file_name(name)


def load_dataset(
    name: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    *,
    target: str | None = None,
    validation_fraction: float = 0.0,
    validation_file: str | os.PathLike[str] | None = None,
    test_file: str | os.PathLike[str] | None = None,
    seed: int = 0,
    regression: bool | None = None,
    stream: bool = False,
    ignore: Sequence[str] = (),
) -> Dataset:
    """Return a dataset by its name or from a file, without any network.

    "digits" are the 1797 images of 8 × 8 pixels that scikit-learn ships: 1437 for training and 360
    for testing, by a fixed permutation. "iris", "wine", "breast_cancer" and "diabetes" (a
    regression) ship with it too, and a fixed fifth of each is for testing. "mnist",
    "fashion_mnist", "kmnist" and "emnist" (its part "balanced", 47 classes, images on their side as
    published) are read from the four idx files of their publishers, in the files' order, or from
    where `jaxmlp data prepare` has prepared them, in the order of tensorflow-datasets. The first
    three name their files alike, so the folder decides which of them is read.

    A file .csv is a table under a header, of numbers that are all there. The targets are its column
    `target`, by default the last. A file .npz has the arrays `inputs`, (N, D) or images (N, rows,
    columns), and `targets`, (N,) or (N, K); unsigned bytes stay bytes and are scaled to [0, 1]. So
    has a folder, in files inputs.npy, targets.npy and so on.
    Integers and strings are classes, in their order; numbers with a decimal point, and arrays of
    floats, are a regression (`jaxmlp.data.labels` has the rule in full). A column or array
    "sample_weight" weighs the examples, and one "split" of train, validation and test (or 0, 1 and
    2) says what they are for. Without it all are for training.

    Args:
        name: One of `DATASETS`, or a path that ends in .npz or .csv, or of a folder.
        data_dir: A folder with train-images-idx3-ubyte, train-labels-idx1-ubyte,
            t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte (emnist-balanced-train-images-… and
            so on for "emnist"). Each may end in .gz, and may be spelt with a dot, as in
            train-images.idx3-ubyte. Without any of them, a folder with prepared sets, as
            tensorflow-datasets keeps them. By default `preparation.default_folder()`, for prepared
            sets only. What ships with scikit-learn needs none.
        target: The name of the targets' column in a file .csv.
        validation_fraction: The share of the training examples that is kept for validation instead,
            in [0, 1), drawn by `seed`, with the same share of every class.
        validation_file: The examples for validation, in a file of the same kind and columns.
        test_file: The examples for testing, in a file of the same kind and columns.
        seed: Of the draw.
        regression: True to take a file's targets as numbers, False as classes.
        stream: Leave the inputs of the training examples where they are, in a folder or an
            uncompressed file .npz: they are `StoredInputs`, which `fit` reads as it needs them.
            What is for validation and testing is read.
        ignore: The names of a .csv's columns that are passed over, such as names or numbers of its
            rows.

    Returns:
        The dataset in NumPy arrays: inputs uint8, float32 or float64, targets int32 classes (N,)
        or float32 numbers (N, K).

    Raises:
        FileNotFoundError: `data_dir` or a file in it is missing, and the set is not prepared there;
            or the named file is missing.
        OSError: `data_dir` is no directory (`NotADirectoryError`), or a file cannot be read.
        ValueError: An unknown name (with the nearest one), no `data_dir` where the set is not
            prepared in the default folder, files that are damaged or do not fit each other, or an
            argument that the set does not take.

    Example:
        >>> digits = load_dataset("digits", validation_fraction=0.1)
        >>> [part.inputs.shape for part in (digits.train, digits.validation, digits.test)]
        [(1293, 64), (144, 64), (360, 64)]
        >>> iris = load_dataset("iris")
        >>> iris.classes, iris.train.targets.shape, iris.test.targets.shape
        (('setosa', 'versicolor', 'virginica'), (120,), (30,))
    """
    if not str(name):
        raise ValueError("dataset: expected a name, a file or a folder, got ''")
    if is_own(name):
        _check_none(str(name), "is a file itself", data_dir=data_dir)
        dataset = read_dataset(name, target, validation_file, test_file, regression, stream, ignore)
        return with_read_parts(with_validation(dataset, validation_fraction, seed))
    try:
        check_name("dataset", str(name), DATASETS)
    except ValueError as error:
        kinds = " or ".join(SUFFIXES)
        expected = f"dataset: expected a file {kinds} or a folder of .npy files, got {name}"
        if Path(name).expanduser().is_file():
            raise ValueError(expected) from None
        if Path(name).name != str(name):
            raise FileNotFoundError(f"{expected}, where nothing is") from None
        raise ValueError(f"{error}, or a file {kinds} or a folder of .npy files") from None
    name = str(name)
    _check_none(
        *(name, "is a known dataset"),
        target=target,
        validation_file=validation_file,
        test_file=test_file,
        regression=regression,
        ignore=listed(ignore) or None,
    )
    if stream:
        raise ValueError(
            f"stream: expected a folder of .npy files or an uncompressed .npz for it, got {name}, "
            "which is read into memory"
        )
    if name in SCIKIT_LEARN:
        ships = "ship" if name == "digits" else "ships"
        _check_none(name, f"{ships} with scikit-learn", data_dir=data_dir)
        dataset = load_scikit_learn(name)
    else:
        dataset = _load_published(name, data_dir)
    return with_validation(dataset, validation_fraction, seed)


def _check_none(name: str, reason: str, **arguments: Any) -> None:
    for argument, value in arguments.items():
        if value is not None:
            raise ValueError(f"{argument}: expected none for {name}, which {reason}, got {value}")


def _load_published(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
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
