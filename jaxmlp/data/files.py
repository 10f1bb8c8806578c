"""Files of arrays: the idx format of the MNIST family, and the four files of one of its sets.

An idx file is a header and the numbers, in big-endian order and with the last index running
fastest. The header is two zero bytes, a byte for the type of the numbers, a byte for the rank, and
each dimension's size in four bytes.
"""

import gzip
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np

from jaxmlp.data.examples import Images
from jaxmlp.validation import check_classes

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

_GZIP = b"\x1f\x8b"
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_RANK = 64  # NumPy's
_BLOCK = 2**20


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Return the array of an idx file, gzipped or not.

    Whether the file is gzipped is seen from its first two bytes, 1f 8b, whatever its name. Memory
    grows with what the file holds, never with what its header promises.

    Args:
        path: The file.

    Returns:
        The array in the file's shape, writable and in this machine's byte order: uint8, int8,
        int16, int32, float32 or float64.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It is a directory (`IsADirectoryError`) or cannot be read.
        ValueError: It is empty, no idx file, shorter or longer than its header says, or its gzip
            stream is cut off or damaged.

    References:
        LeCun, Cortes, Burges, The MNIST database of handwritten digits, "the IDX file format".
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if file.peek(len(_GZIP))[: len(_GZIP)] != _GZIP:
                return _read_idx_stream(path, file)
            with gzip.GzipFile(fileobj=file) as stream:
                return _read_idx_stream(path, stream)
    except EOFError as error:
        raise ValueError(
            f"{path}: expected a whole gzip stream, got one that is cut off after "
            f"{path.stat().st_size} bytes"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: expected an intact gzip stream, got a damaged one ({error})"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(f"{path}: expected a readable idx file, got: {reason}") from error


def _read_idx_stream(path: Path, stream: BinaryIO | gzip.GzipFile) -> np.ndarray:
    """Return the array of an opened idx file; `path` is for the messages."""

    def fail(expected: str, got: object) -> NoReturn:
        raise ValueError(f"{path}: expected {expected}, got {got}")

    magic = bytes(_read_at_most(stream, 4))
    if not magic:
        fail("an idx file", "an empty one")
    if len(magic) < 4:
        fail("an idx header of at least 8 bytes", f"a file of {len(magic)}")
    code, rank = magic[2:]
    if magic[:2] != b"\0\0" or code not in _IDX_TYPES or not 1 <= rank <= _MAX_RANK:
        fail(
            "an idx file, which begins with two zero bytes, a type (08, 09 or 0b to 0e) and a "
            f"rank (1 to {_MAX_RANK})",
            f"{magic.hex(' ')} ({magic!r})",
        )
    sizes = _read_at_most(stream, 4 * rank)
    if len(sizes) < 4 * rank:
        fail(f"an idx header of {4 + 4 * rank} bytes", f"a file of {4 + len(sizes)}")
    shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
    dtype = np.dtype(_IDX_TYPES[code])
    promised = f"bytes of numbers for {dtype.name} of shape {shape}"
    n_bytes = math.prod(shape) * dtype.itemsize
    # One byte more than promised: it shows trailing bytes, and makes gzip compare its checksum.
    content = _read_at_most(stream, n_bytes + 1)
    if len(content) < n_bytes:
        fail(f"{n_bytes} {promised}", len(content))
    if len(content) > n_bytes:
        fail(f"{n_bytes} {promised}", "trailing bytes after them")
    if math.prod(max(size, 1) for size in shape) > np.iinfo(np.intp).max // dtype.itemsize:
        fail("a shape that an array can have", shape)  # no numbers, yet a size beyond any array
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _read_at_most(stream: BinaryIO | gzip.GzipFile, limit: int) -> bytearray:
    """Return the next `limit` bytes, or as many as there are, without allocating ahead of them."""
    content = bytearray()
    while len(content) < limit and (block := stream.read(min(_BLOCK, limit - len(content)))):
        content += block
    return content


def find_idx_files(folder: Path, argument: str, names: Sequence[str]) -> list[Path]:
    """Return the files of a folder under whichever of their names is there.

    Args:
        folder: The folder.
        argument: What the messages call it.
        names: The files, as in `IDX_FILES`. Each may end in .gz, and may be spelt with a dot, as
            in train-images.idx3-ubyte.

    Returns:
        A path for each name, all of them looked for before any is read.

    Raises:
        FileNotFoundError: The folder or a file in it is missing.
        NotADirectoryError: The folder is a file.
    """
    if not folder.exists():
        raise FileNotFoundError(
            f"{argument}: expected a folder, got {folder}, which does not exist"
        )
    if not folder.is_dir():
        raise NotADirectoryError(f"{argument}: expected a folder, got {folder}, which is a file")
    paths = []
    for name in names:
        if (path := idx_file(folder, name)) is None:
            raise FileNotFoundError(
                f"{argument}: expected {' or '.join(_spellings(name))}, with or without .gz, in "
                f"{folder}, got no such file"
            )
        paths.append(path)
    return paths


def idx_file(folder: Path, name: str) -> Path | None:
    """Return the file under whichever of its names is in the folder, or None."""
    for spelling in _spellings(name):
        for ending in ("", ".gz"):
            # Some archives unpack to a folder of this name, with the file of the dotted name in it
            # or beside it: only a file counts.
            if (path := folder / (spelling + ending)).is_file():
                return path
    return None


def _spellings(name: str) -> tuple[str, str]:
    return name, name.replace("-idx", ".idx")


def read_idx_images(paths: Sequence[Path], n_classes: int) -> tuple[Images, Images]:
    """Return the training and the test part of the four files of a set of images.

    Args:
        paths: The four files, in the order of `IDX_FILES`.
        n_classes: How many classes there are: labels are below it.

    Returns:
        Images for training and for testing, all of one shape, with a label for each.

    Raises:
        OSError: A file is missing or cannot be read.
        ValueError: A file is damaged, or they do not fit each other.
    """
    train_images, train_labels, test_images, test_labels = paths
    train = _read_labelled_images(train_images, train_labels, n_classes)
    test = _read_labelled_images(test_images, test_labels, n_classes)
    expected, got = train.images.shape[1:], test.images.shape[1:]
    if got != expected:
        raise ValueError(
            f"{test_images}: expected images of shape {expected}, as in {train_images.name}, "
            f"got {got}"
        )
    return train, test


def _read_labelled_images(images_file: Path, labels_file: Path, n_classes: int) -> Images:
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
    check_classes(str(labels_file), labels, n_classes)
    return Images(images, labels)
