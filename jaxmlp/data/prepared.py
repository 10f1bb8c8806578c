"""Datasets that are prepared for tensorflow-datasets, read back without TensorFlow.

tensorflow-datasets keeps a set in `folder/name/version`, or `folder/name/configuration/version`:
dataset_info.json, and record files with an example each, whose image is a PNG file. It decodes them
one by one, with OpenCV or Pillow. Here the examples come undecoded from `tfds.data_source`, and the
images are decoded at once.

Beside the records stands decoded.npz with the same images as arrays. It counts only while the
records' SHA-256 is the one it was made from; then tensorflow-datasets need not even be imported.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmlp.data.examples import Dataset, Images, image_dataset
from jaxmlp.data.files import IDX_FILES
from jaxmlp.data.png import decode_pngs
from jaxmlp.validation import check_classes, check_name

_DECODED = "decoded.npz"
_SPLITS = ("train", "test")


class Published(NamedTuple):
    """What a set holds, according to its publisher.

    Attributes:
        builder: Its name in tensorflow-datasets, with the configuration where there are several.
        files: The publisher's idx files, in the order of `IDX_FILES`.
        n_train: The number of examples for training.
        n_test: The number of examples for testing.
        n_classes: The number of classes.
        content: `content_hash` of the set, where it is known.
        image_shape: (rows, columns) of each image.
    """

    builder: str
    files: tuple[str, ...]
    n_train: int
    n_test: int
    n_classes: int
    content: str | None = None
    image_shape: tuple[int, int] = (28, 28)


# Of EMNIST's six parts "balanced" is the one whose 47 classes are equally frequent. It is not the
# default of tensorflow-datasets, which is "byclass": 62 classes, 814,255 examples.
PUBLISHED = {
    "mnist": Published(
        *("mnist", IDX_FILES, 60_000, 10_000, 10),
        content="ed9617eece0a7e5f29997ae020862d84444db50ece3ef5ef2ef235dbef44e6b8",
    ),
    "fashion_mnist": Published("fashion_mnist", IDX_FILES, 60_000, 10_000, 10),
    "kmnist": Published("kmnist", IDX_FILES, 60_000, 10_000, 10),
    "emnist": Published(
        "emnist/balanced",
        tuple("emnist-balanced-" + name.replace("t10k", "test") for name in IDX_FILES),
        *(112_800, 18_800, 47),
    ),
}


class Prepared(NamedTuple):
    """Where a prepared set is: a version's folder, and of each split its records and their number.

    Only `find_prepared` makes one, so all the records are there.
    """

    folder: Path
    records: dict[str, list[Path]]
    counts: dict[str, int]


def default_folder() -> Path:
    """Return the folder of prepared sets: $JAXMLP_DATA_DIR, $TFDS_DATA_DIR or tfds' own default."""
    named = os.environ.get("JAXMLP_DATA_DIR") or os.environ.get("TFDS_DATA_DIR")
    return Path(named or "~/tensorflow_datasets").expanduser()


def is_prepared(name: str, folder: str | os.PathLike[str] | None = None) -> bool:
    """Return whether a set is prepared as array_record: a look at the folder, no more.

    Args:
        name: One of `PUBLISHED`.
        folder: The data_dir of tensorflow-datasets; `default_folder()` by default.

    Returns:
        Whether all its files are there. What they hold is checked when they are read.

    Raises:
        ValueError: An unknown name (with the nearest one).
    """
    return find_prepared(name, folder) is not None


def find_prepared(name: str, folder: str | os.PathLike[str] | None = None) -> Prepared | None:
    """Return where the newest version of a set is prepared as array_record, or None.

    Args:
        name: One of `PUBLISHED`.
        folder: The data_dir of tensorflow-datasets; `default_folder()` by default.

    Returns:
        The version's folder and records, or None where some or all are missing.

    Raises:
        ValueError: An unknown name (with the nearest one).
    """
    check_name("dataset", name, PUBLISHED)
    root = default_folder() if folder is None else Path(folder).expanduser()
    versions = []
    for path in (root / PUBLISHED[name].builder).glob("*.*.*/dataset_info.json"):
        with contextlib.suppress(ValueError):
            versions.append((tuple(map(int, path.parent.name.split("."))), path.parent))
    for _, version in sorted(versions, reverse=True):
        # Whatever else the file holds, it describes no preparation that we could read.
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            if prepared := _described(version):
                return prepared
    return None


def _described(version: Path) -> Prepared | None:
    info = json.loads((version / "dataset_info.json").read_text(encoding="utf-8"))
    lengths = {split["name"]: split["shardLengths"] for split in info["splits"]}
    records = {}
    for split in _SPLITS:
        n = len(lengths[split])
        stem = f"{info['name']}-{split}.array_record"
        records[split] = [version / f"{stem}-{i:05}-of-{n:05}" for i in range(n)]
    if info["fileFormat"] != "array_record":
        return None
    if not all(path.is_file() for paths in records.values() for path in paths):
        return None
    return Prepared(version, records, {split: sum(map(int, lengths[split])) for split in _SPLITS})


def read_prepared(name: str, folder: str | os.PathLike[str] | None = None) -> Dataset:
    """Return a prepared set, in the order of tensorflow-datasets.

    The first reading decodes the records, a few seconds for 70,000 images, and keeps the arrays in
    decoded.npz beside them where the folder can be written. Later ones compare the records' hash
    and take the arrays.

    Args:
        name: One of `PUBLISHED`.
        folder: The data_dir of tensorflow-datasets; `default_folder()` by default.

    Returns:
        The dataset in NumPy arrays: inputs uint8, targets int32. The images of "emnist"
        lie on their side, rows for columns, as published.

    Raises:
        FileNotFoundError: The set is not prepared in the folder.
        ValueError: An unknown name (with the nearest one), records that are damaged, or another
            number of examples than the set has.
    """
    prepared = find_prepared(name, folder)
    if prepared is None:
        raise FileNotFoundError(
            f"folder: expected {name}, prepared as array_record, in {folder or default_folder()}, "
            f"got none: `jaxmlp data prepare {name} --from DIR` prepares it"
        )
    published = PUBLISHED[name]
    counts = tuple(prepared.counts.values())
    if counts != (published.n_train, published.n_test):
        raise ValueError(
            f"{prepared.folder}: expected {published.n_train} examples for training and "
            f"{published.n_test} for testing, got {counts[0]} and {counts[1]}"
        )
    records_hash = _records_hash(prepared)
    parts = _read_decoded(published, prepared, records_hash)
    if parts is None:
        parts = decode_records(name, prepared)
        with contextlib.suppress(OSError):  # a folder that cannot be written: decode every time
            write_decoded(prepared, parts)
    return image_dataset(name, str(prepared.folder), *parts, published.n_classes)


def decode_records(name: str, prepared: Prepared) -> tuple[Images, Images]:
    """Return the training and the test part of a prepared set, from its records.

    Args:
        name: One of `PUBLISHED`.
        prepared: Where it is.

    Returns:
        Images and labels, in the order of tensorflow-datasets.

    Raises:
        ImportError: A part of tensorflow-datasets is not installed.
        ValueError: The records are damaged, or hold another kind of image or label.
    """
    import tensorflow_datasets as tfds

    published = PUBLISHED[name]
    root = prepared.folder.parents[len(Path(published.builder).parts)]
    parts = []
    for split in _SPLITS:
        try:
            source: Any = tfds.data_source(
                f"{published.builder}:{prepared.folder.name}",
                split=split,
                data_dir=root,
                download=False,
                decoders={"image": tfds.decode.SkipDecoding()},
                builder_kwargs={"file_format": "array_record"},
            )
            examples = source.__getitems__(range(len(source)))
            images = decode_pngs([example["image"] for example in examples], published.image_shape)
            labels = np.array([example["label"] for example in examples], np.int64)
            check_classes("labels", labels, published.n_classes)
            if len(labels) != prepared.counts[split]:
                raise ValueError(f"expected {prepared.counts[split]} examples, got {len(labels)}")
        except ImportError:
            raise
        except Exception as error:  # the reader of array_record raises several kinds
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"{prepared.folder}: expected intact records of {split}, got: {reason}"
            ) from error
        parts.append(Images(images, labels.astype(np.uint8)))
    train, test = parts
    return train, test


def content_hash(train: Images, test: Images) -> str:
    """Return a hash of two parts' images and labels that does not depend on either's order.

    Args:
        train: Images and labels for training.
        test: Images and labels for testing.

    Returns:
        The SHA-256 of the two parts' examples, each stood for by a sorted hash of 16 bytes.
    """
    total = hashlib.sha256()
    for images, labels in (train, test):
        rows = np.column_stack([images.reshape(len(images), -1), labels])
        total.update(
            b"".join(sorted(hashlib.blake2b(row, digest_size=16).digest() for row in rows))
        )
        total.update(str(images.shape).encode())
    return total.hexdigest()


# -------------------------------------------------------------------------------- decoded.npz


def write_decoded(prepared: Prepared, parts: tuple[Images, Images]) -> None:
    """Keep a prepared set's decoded images and labels beside its records.

    Args:
        prepared: Where it is.
        parts: Its training and test part.

    Raises:
        OSError: The folder cannot be written.
    """
    path = prepared.folder / _DECODED
    unfinished = path.with_name(f"{_DECODED}.unfinished-{os.getpid()}")
    train, test = parts
    try:
        with unfinished.open("wb") as file:
            np.savez(
                file,
                records=np.array(_records_hash(prepared)),
                train_images=train.images,
                train_labels=train.labels,
                test_images=test.images,
                test_labels=test.labels,
            )
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _read_decoded(
    published: Published, prepared: Prepared, records_hash: str
) -> tuple[Images, Images] | None:
    """Return the arrays of decoded.npz, or None unless it is intact and made from these records."""
    try:
        with (
            (prepared.folder / _DECODED).open("rb") as stream,  # np.load leaves a bad file open
            np.load(stream, allow_pickle=False) as file,
        ):
            if file["records"].item() != records_hash:
                return None
            train, test = (
                Images(file[f"{split}_images"], file[f"{split}_labels"]) for split in _SPLITS
            )
    except Exception:  # a damaged zip file raises many kinds, and the records are still there
        return None
    for part, n in ((train, published.n_train), (test, published.n_test)):
        if part.images.shape != (n, *published.image_shape) or part.labels.shape != (n,):
            return None
    return train, test


def _records_hash(prepared: Prepared) -> str:
    total = hashlib.sha256()
    for paths in prepared.records.values():
        for path in paths:
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
