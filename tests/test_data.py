"""The datasets: idx files read back, every fault of a file named, digits and MNIST as published."""

import gzip
import importlib.util
import os
import re
import struct
import subprocess
import sys
import tracemalloc
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import CODES, idx, message_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

import jaxmlp.data
from jaxmlp.data import DATASETS
from jaxmlp.data.files import read_idx

# Whether a dataset has a part for testing, say, a type checker cannot tell.
load_dataset: Any = jaxmlp.data.load_dataset

MNIST_DIR = os.environ.get("JAXMLP_MNIST_DIR")


def promise(code, *shape):
    """The header alone."""
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, code, len(shape), *shape)


ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
WHOLE = idx(ARRAY)  # a header of 16 bytes and 24 of numbers


def saved(folder, content, name="numbers"):
    path = folder / name
    path.write_bytes(content)
    return path


# ---------------------------------------------------------------------------------- idx files


@pytest.mark.parametrize("name", CODES)
def test_an_idx_file_worked_by_hand_is_read_in_every_type(tmp_path, name):
    # 1 and −2, which is 254 where a byte has no sign.
    numbers = {
        "uint8": "01 fe",
        "int8": "01 fe",
        "int16": "0001 fffe",
        "int32": "00000001 fffffffe",
        "float32": "3f800000 c0000000",
        "float64": "3ff0000000000000 c000000000000000",
    }[name]
    content = bytes.fromhex(f"0000 {CODES[name]:02x} 02  00000001 00000002 {numbers}")
    array = read_idx(saved(tmp_path, content))
    assert array.dtype == np.dtype(name) and array.dtype.isnative
    assert array.tolist() == [[1, 254 if name == "uint8" else -2]]
    assert array.flags.writeable and array.flags.c_contiguous


@given(
    array=numpy_strategies.arrays(
        st.sampled_from(list(CODES)),
        numpy_strategies.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
    ),
    gzipped=st.booleans(),
)
def test_what_was_written_is_read_back(tmp_path_factory, array, gzipped):
    content = gzip.compress(idx(array)) if gzipped else idx(array)
    path = saved(tmp_path_factory.getbasetemp(), content, "written-and-read-back")
    result = read_idx(path)
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result, array)
    assert result.shape == array.shape


@pytest.mark.parametrize("name", ["numbers", "numbers.gz"])
@pytest.mark.parametrize("content", [WHOLE, gzip.compress(WHOLE)], ids=["plain", "gzipped"])
def test_whether_a_file_is_gzipped_is_seen_from_its_content(tmp_path, name, content):
    path = saved(tmp_path, content, name)
    np.testing.assert_array_equal(read_idx(path), ARRAY)
    np.testing.assert_array_equal(read_idx(str(path)), ARRAY)


def test_a_file_of_several_blocks_is_read_whole(tmp_path):
    # 3 MB and a bit: more than the reader takes at once, and no multiple of it.
    array = np.random.default_rng(0).integers(0, 256, (1001, 3001), np.uint8)
    np.testing.assert_array_equal(read_idx(saved(tmp_path, idx(array))), array)
    np.testing.assert_array_equal(read_idx(saved(tmp_path, gzip.compress(idx(array), 1))), array)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected an idx file, got an empty one"),
        (b"\0\0", "expected an idx header of at least 8 bytes, got a file of 2"),
        (WHOLE[:4], "expected an idx header of 16 bytes, got a file of 4"),
        (WHOLE[:15], "expected an idx header of 16 bytes, got a file of 15"),
        (
            WHOLE[:16],
            "expected 24 bytes of numbers for uint8 of shape (2, 3, 4), got 0",
        ),
        (
            WHOLE[:-1],
            "expected 24 bytes of numbers for uint8 of shape (2, 3, 4), got 23",
        ),
        (
            WHOLE + b"\0",
            "expected 24 bytes of numbers for uint8 of shape (2, 3, 4), got trailing bytes after "
            "them",
        ),
        (promise(0x0E, 2) + bytes(15), "expected 16 bytes of numbers for float64 of shape (2,), "),
        (promise(0x08, 0, 2**32 - 1, 2**32 - 1), "expected a shape that an array can have, got "),
    ],
    ids=[
        *["empty", "half a magic", "no sizes", "half the sizes", "no numbers", "a number short"],
        *["a byte more", "half a number", "a size beyond any array"],
    ],
)
def test_a_file_of_another_length_than_its_header_says_is_named(tmp_path, content, expected):
    for stored in (content, gzip.compress(content)):
        path = saved(tmp_path, stored)
        text = message_of(ValueError, lambda path=path: read_idx(path))
        assert text.startswith(f"{path}: {expected}")


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(40), r"got 89 50 4e 47 (b'\x89PNG')"),
        (b"<html>Not found</html>", "got 3c 68 74 6d (b'<htm')"),
        (promise(0x0A, 2) + bytes(2), r"got 00 00 0a 01 (b'\x00\x00\n\x01')"),
        (b"\0\0\x08\0" + bytes(1), r"got 00 00 08 00 (b'\x00\x00\x08\x00')"),
        (b"\0\0\x08\x41" + bytes(4 * 65), r"got 00 00 08 41 (b'\x00\x00\x08A')"),
        (gzip.compress(gzip.compress(WHOLE)), r"got 1f 8b 08 "),
    ],
    ids=["a picture", "a web page", "an unknown type", "rank 0", "rank 65", "gzipped twice"],
)
def test_a_file_that_is_no_idx_file_shows_its_first_bytes(tmp_path, content, got):
    path = saved(tmp_path, content)
    text = message_of(ValueError, lambda: read_idx(path))
    assert text.startswith(f"{path}: expected an idx file, which begins with two zero bytes, ")
    assert got in text


def test_a_gzip_stream_that_is_cut_off_says_so(tmp_path):
    packed = gzip.compress(WHOLE)
    path = saved(tmp_path, packed[:-9])
    assert message_of(ValueError, lambda: read_idx(path)) == (
        f"{path}: expected a whole gzip stream, got one that is cut off after "
        f"{len(packed) - 9} bytes"
    )


def test_a_gzip_stream_that_is_damaged_says_how(tmp_path):
    packed = bytearray(gzip.compress(WHOLE))
    packed[-8] ^= 1  # the checksum's first byte
    path = saved(tmp_path, packed)
    expected = f"{path}: expected an intact gzip stream, got a damaged one (CRC check failed"
    assert message_of(ValueError, lambda: read_idx(path)).startswith(expected)
    packed[10] = 0xFF  # the first block's type: 11 stands for none
    path = saved(tmp_path, packed)
    text = message_of(ValueError, lambda: read_idx(path))
    assert "invalid block type" in text


@pytest.mark.parametrize("whole", [WHOLE, gzip.compress(WHOLE)], ids=["plain", "gzipped"])
def test_no_beginning_of_a_file_is_taken_for_the_file(tmp_path, whole):
    for length in range(len(whole)):
        path = saved(tmp_path, whole[:length])
        assert str(path) in message_of(ValueError, lambda path=path: read_idx(path))


def test_no_flipped_bit_of_a_gzipped_file_changes_the_array(tmp_path):
    # A flipped bit of the time stamp, say, does no harm; the others must raise.
    packed = gzip.compress(WHOLE)
    raised = 0
    for bit in range(8 * len(packed)):
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            np.testing.assert_array_equal(read_idx(saved(tmp_path, flipped)), ARRAY)
        except ValueError:
            raised += 1
    assert raised > 4 * len(packed)


@given(st.binary(max_size=40) | st.binary(max_size=40).map(lambda end: WHOLE[:4] + end))
def test_any_bytes_are_either_an_array_or_a_value_error(tmp_path_factory, content):
    path = saved(tmp_path_factory.getbasetemp(), content, "any-bytes")
    try:
        array = read_idx(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert idx(array) == content


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzipped"])
def test_a_header_that_promises_an_absurd_size_costs_no_memory(tmp_path, pack):
    # 2^96 doubles promised and 3 MB held. The reader takes 1 MiB at a time.
    content = promise(0x0E, *[2**32 - 1] * 3) + bytes(3_000_000)
    path = saved(tmp_path, pack(content))
    tracemalloc.start()
    try:
        text = message_of(ValueError, lambda: read_idx(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert f"expected {8 * (2**32 - 1) ** 3} bytes of numbers for float64" in text
    assert text.endswith("got 3000000")
    assert peak < 20e6


def test_a_missing_file_a_directory_and_an_unreadable_path_are_named(tmp_path):
    missing = tmp_path / "missing"
    assert message_of(FileNotFoundError, lambda: read_idx(missing)) == (
        f"{missing}: expected a readable idx file, got: No such file or directory"
    )
    assert message_of(IsADirectoryError, lambda: read_idx(tmp_path)) == (
        f"{tmp_path}: expected a readable idx file, got: Is a directory"
    )
    below_a_file = saved(tmp_path, WHOLE) / "numbers"
    assert str(below_a_file) in message_of(NotADirectoryError, lambda: read_idx(below_a_file))
    assert "name too long" in message_of(OSError, lambda: read_idx(tmp_path / (999 * "x")))


# ------------------------------------------------------------------------------------- digits


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def test_digits_have_the_shapes_and_dtypes_that_are_promised(digits):
    assert digits.name == "digits"
    assert digits.n_outputs == 10 and digits.image_shape == (8, 8)
    assert digits.source.endswith("digits.csv.gz")
    for examples, n in ((digits.train, 1437), (digits.test, 360)):
        assert examples.inputs.shape == (n, 64) and examples.inputs.dtype == np.uint8
        assert examples.targets.shape == (n,) and examples.targets.dtype == np.int32
        scaled = digits.scaling.on_host(examples.inputs)
        assert scaled.min() == 0 and scaled.max() == 1
        assert set(examples.targets.tolist()) == set(range(10))
        assert type(examples.inputs) is np.ndarray and type(examples.targets) is np.ndarray


def test_digits_are_scikit_learns_in_a_fixed_order(digits):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(1797)
    # Figures of past runs compare only while the split stays what it is: it is pinned here.
    assert order[:5].tolist() == [360, 1773, 1482, 600, 850]
    assert order[-5:].tolist() == [1449, 184, 1528, 975, 607]
    inputs, targets = np.empty((1797, 64)), np.empty(1797, int)
    inputs[order] = np.concatenate([digits.train.inputs, digits.test.inputs])
    targets[order] = np.concatenate([digits.train.targets, digits.test.targets])
    np.testing.assert_array_equal(inputs, images)
    np.testing.assert_array_equal(targets, labels)


def test_digits_are_the_same_where_scikit_learn_keeps_its_file_elsewhere(
    digits, monkeypatch, tmp_path
):
    import sklearn.datasets  # noqa: F401  before find_spec is replaced

    elsewhere = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: elsewhere)
    other = load_dataset("digits")
    assert other.source == "sklearn.datasets.load_digits()"
    for ours, theirs in ((digits.train, other.train), (digits.test, other.test)):
        for one, same in ((ours.inputs, theirs.inputs), (ours.targets, theirs.targets)):
            np.testing.assert_array_equal(one, same)
            assert one.dtype == same.dtype


def test_digits_import_no_scikit_learn_and_start_no_jax_backend():
    # With a platform that does not exist, the first use of a device would raise.
    program = (
        "import sys; from jaxmlp.data import load_dataset; print(load_dataset('digits').name); "
        "print([name for name in sys.modules if name.startswith('sklearn')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"JAX_PLATFORMS": "none_such"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.split("\n") == ["digits", "[]", ""], result.stderr


# ------------------------------------------------------------------- scikit-learn's other sets

SMALL = {"iris": (150, 4, 3), "wine": (178, 13, 3), "breast_cancer": (569, 30, 2)}


@pytest.mark.parametrize("name", [*SMALL, "diabetes"])
def test_scikit_learns_sets_are_its_own_and_split_for_good(name):
    import sklearn.datasets

    options = {"scaled": False} if name == "diabetes" else {}
    bunch = getattr(sklearn.datasets, f"load_{name}")(**options)
    data = load_dataset(name)
    assert (data.name, data.validation, data.scaling) == (name, None, None)
    assert data.features == tuple(bunch.feature_names)
    ours = [
        np.column_stack([part.inputs, part.targets.ravel()]) for part in (data.train, data.test)
    ]
    theirs = np.column_stack([bunch.data, bunch.target])
    together = np.concatenate(ours)
    np.testing.assert_array_equal(together[np.lexsort(together.T)], theirs[np.lexsort(theirs.T)])
    assert len(ours[1]) == round(len(theirs) / 5)
    if name == "diabetes":
        assert data.classes is None and data.n_outputs == 1
        assert data.train.targets.shape == (354, 1) and data.train.targets.dtype == np.float32
    else:
        assert data.classes == tuple(bunch.target_names)
        assert data.train.targets.dtype == np.int32
        assert (len(theirs), data.train.inputs.shape[1], data.n_outputs) == SMALL[name]
        quota = np.bincount(bunch.target) / 5
        assert (abs(np.bincount(data.test.targets) - quota) < 1).all()


def test_the_fifth_for_testing_is_pinned():
    # Figures of past runs compare only while the split stays what it is.
    sums = {"iris": 417.9, "wine": 31644.36, "breast_cancer": 206106.05, "diabetes": 54711.596}
    for name, total in sums.items():
        assert load_dataset(name).test.inputs.sum() == pytest.approx(total, abs=0.001)


def test_scikit_learns_sets_are_the_same_where_it_keeps_its_files_elsewhere(monkeypatch, tmp_path):
    import sklearn.datasets  # noqa: F401  before find_spec is replaced

    names = (*SMALL, "diabetes")
    before = [load_dataset(name) for name in names]
    elsewhere = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: elsewhere)
    for name, data in zip(names, before, strict=True):
        other = load_dataset(name)
        assert other.source == f"sklearn.datasets.load_{name}()"
        for ours, theirs in ((data.train, other.train), (data.test, other.test)):
            np.testing.assert_array_equal(ours.inputs, theirs.inputs)
            np.testing.assert_array_equal(ours.targets, theirs.targets)
            assert ours.targets.dtype == theirs.targets.dtype


def test_a_known_set_takes_no_option_that_is_for_files(tmp_path):
    for option in ("target", "validation_file", "test_file", "regression"):
        text = message_of(ValueError, lambda option=option: load_dataset("iris", **{option: "x"}))
        assert text == f"{option}: expected none for iris, which is a known dataset, got x"
    text = message_of(ValueError, lambda: load_dataset("iris", stream=True))
    assert text == (
        "stream: expected a folder of .npy files or an uncompressed .npz for it, got iris, which "
        "is read into memory"
    )
    for name, ships in (("digits", "ship"), ("wine", "ships")):
        text = message_of(ValueError, lambda name=name: load_dataset(name, "folder"))
        assert text == (
            f"data_dir: expected none for {name}, which {ships} with scikit-learn, got folder"
        )


# -------------------------------------------------------------------------------------- MNIST

PARTS = {
    "train-images-idx3-ubyte": np.arange(4 * 6, dtype=np.uint8).reshape(4, 2, 3) * 11,
    "train-labels-idx1-ubyte": np.array([5, 0, 9, 1], np.uint8),
    "t10k-images-idx3-ubyte": np.full((2, 2, 3), 255, np.uint8),
    "t10k-labels-idx1-ubyte": np.array([3, 7], np.uint8),
}


@pytest.fixture
def folder(tmp_path):
    """A folder like MNIST's with four images of 2 × 3 pixels for training and two for testing."""
    for name, array in PARTS.items():
        saved(tmp_path, idx(array), name)
    return tmp_path


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_four_files_become_training_and_test_in_their_order(folder, name):
    data = load_dataset(name, folder)
    assert (data.name, data.source) == (name, str(folder))
    assert data.n_outputs == 10 and data.image_shape == (2, 3)
    # The pixels of image n are 66n, 66n + 11, … 66n + 55, row after row.
    expected = np.array([[66 * n + 11 * pixel for pixel in range(6)] for n in range(4)]) % 256
    np.testing.assert_array_equal(data.train.inputs, expected)
    assert data.train.targets.tolist() == [5, 0, 9, 1]
    np.testing.assert_array_equal(data.scaling.on_host(data.test.inputs), np.ones((2, 6)))
    assert data.test.targets.tolist() == [3, 7]
    for examples in (data.train, data.test):
        assert examples.inputs.dtype == np.uint8 and examples.targets.dtype == np.int32
        assert examples.inputs.flags.c_contiguous


def test_every_grey_value_is_kept_and_its_scaling_is_a_255th_rounded_once(folder):
    greys = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    saved(folder, idx(greys), "train-images-idx3-ubyte")
    saved(folder, idx(greys[:2]), "t10k-images-idx3-ubyte")
    data = load_dataset("mnist", folder)
    np.testing.assert_array_equal(data.train.inputs.ravel(), np.arange(256))
    # x · (1/255) and x / 255 differ by the rounding of 1/255 and of the product: 2⁻⁵³ each.
    scaled = data.scaling.on_host(data.train.inputs).ravel()
    np.testing.assert_allclose(scaled, np.arange(256) / 255, rtol=2**-52, atol=0)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("dotted", [False, True])
def test_files_may_be_gzipped_and_may_have_a_dot_in_their_names(tmp_path, ending, dotted):
    for name, array in PARTS.items():
        spelling = name.replace("-idx", ".idx") if dotted else name
        saved(tmp_path, gzip.compress(idx(array)) if ending else idx(array), spelling + ending)
    data = load_dataset("mnist", str(tmp_path))
    assert data.train.targets.tolist() == [5, 0, 9, 1]


def test_a_folder_that_has_a_files_name_is_passed_over(folder):
    # As some archives unpack: the folder train-images-idx3-ubyte beside train-images.idx3-ubyte.
    path = folder / "train-images-idx3-ubyte"
    path.rename(folder / "train-images.idx3-ubyte")
    path.mkdir()
    assert load_dataset("mnist", folder).train.inputs.shape == (4, 6)


def test_an_unknown_name_is_answered_with_the_nearest():
    assert DATASETS == (
        *("digits", "iris", "wine", "breast_cancer", "diabetes"),
        *("mnist", "fashion_mnist", "kmnist", "emnist"),
    )
    assert message_of(ValueError, lambda: load_dataset("fashion-mnist")) == (
        "unknown dataset 'fashion-mnist': did you mean 'fashion_mnist'? expected one of digits, "
        "iris, wine, breast_cancer, diabetes, mnist, fashion_mnist, kmnist, emnist, or a file .npz "
        "or .csv or a folder of .npy files"
    )


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_a_name_that_needs_files_says_which_and_how_to_pass_them(name):
    assert message_of(ValueError, lambda: load_dataset(name)) == (
        f"data_dir: {name} is read from files: expected a folder (--data-dir DIR) with "
        "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, "
        "t10k-labels-idx1-ubyte, each with or without .gz, or what `jaxmlp data prepare "
        f"{name} --from DIR` prepares in {os.environ['JAXMLP_DATA_DIR']}, got neither"
    )


def test_a_data_dir_that_is_missing_or_a_file_is_named(tmp_path):
    missing = tmp_path / "missing"
    assert message_of(FileNotFoundError, lambda: load_dataset("mnist", missing)) == (
        f"data_dir: expected a folder, got {missing}, which does not exist"
    )
    file = saved(tmp_path, WHOLE)
    assert message_of(NotADirectoryError, lambda: load_dataset("mnist", file)) == (
        f"data_dir: expected a folder, got {file}, which is a file"
    )


def test_a_folder_without_any_of_the_files_names_both_ways(tmp_path):
    assert message_of(FileNotFoundError, lambda: load_dataset("emnist", tmp_path)) == (
        "data_dir: expected emnist-balanced-train-images-idx3-ubyte, "
        "emnist-balanced-train-labels-idx1-ubyte, emnist-balanced-test-images-idx3-ubyte, "
        "emnist-balanced-test-labels-idx1-ubyte, each with or without .gz, or what `jaxmlp data "
        f"prepare emnist --from DIR` prepares, in {tmp_path}, got neither"
    )


@pytest.mark.parametrize("name", PARTS)
def test_each_missing_file_is_named_with_its_folder(folder, name):
    (folder / name).unlink()
    assert message_of(FileNotFoundError, lambda: load_dataset("mnist", folder)) == (
        f"data_dir: expected {name} or {name.replace('-idx', '.idx')}, with or without .gz, in "
        f"{folder}, got no such file"
    )


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        (
            "train-labels-idx1-ubyte",
            np.array([5, 0, 9], np.uint8),
            "expected 4 labels, one for each image in train-images-idx3-ubyte, got 3",
        ),
        (
            "t10k-images-idx3-ubyte",
            np.zeros((3, 2, 3), np.uint8),
            "expected 3 labels, one for each image in t10k-images-idx3-ubyte, got 2",
        ),
        (
            "train-images-idx3-ubyte",
            np.zeros((4, 6), np.uint8),
            "expected an array of shape (N, rows, columns), got (4, 6)",
        ),
        (
            "t10k-labels-idx1-ubyte",
            np.zeros((2, 10), np.uint8),
            "expected an array of shape (N,), got (2, 10)",
        ),
        (
            "train-images-idx3-ubyte",
            np.zeros((4, 2, 3), np.float32),
            "expected unsigned bytes, got float32",
        ),
        (
            "train-labels-idx1-ubyte",
            np.array([5, 0, 9, 1], np.int32),
            "expected unsigned bytes, got int32",
        ),
        (
            "train-images-idx3-ubyte",
            np.zeros((0, 2, 3), np.uint8),
            "expected at least one image, got shape (0, 2, 3)",
        ),
        (
            "t10k-images-idx3-ubyte",
            np.zeros((2, 0, 3), np.uint8),
            "expected at least one image, got shape (2, 0, 3)",
        ),
        (
            "train-labels-idx1-ubyte",
            np.array([5, 10, 9, 255], np.uint8),
            "expected classes 0 to 9, got 10 at [1] (2 of 4 are outside)",
        ),
        (
            "t10k-images-idx3-ubyte",
            np.zeros((2, 3, 2), np.uint8),
            "expected images of shape (2, 3), as in train-images-idx3-ubyte, got (3, 2)",
        ),
    ],
    ids=[
        *["too few labels", "too many images", "images of rank 2", "labels of rank 2"],
        *["images of floats", "labels of another type", "no image", "images without pixels"],
        *["labels outside", "test images of another shape"],
    ],
)
def test_files_that_do_not_fit_are_named(folder, name, array, expected):
    saved(folder, idx(array), name)
    text = message_of(ValueError, lambda: load_dataset("mnist", folder))
    assert text.endswith(expected)
    assert re.match(rf"{re.escape(str(folder))}/(train|t10k)-(images|labels)-idx\d-ubyte: ", text)


def test_a_damaged_file_is_named(folder):
    path = folder / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    assert message_of(ValueError, lambda: load_dataset("mnist", folder)).startswith(f"{path}: ")


@pytest.mark.skipif(MNIST_DIR is None, reason="JAXMLP_MNIST_DIR names no folder with MNIST's files")
def test_mnist_is_the_published_one():
    assert MNIST_DIR is not None
    data = load_dataset("mnist", Path(MNIST_DIR))
    assert data.image_shape == (28, 28) and data.n_outputs == 10
    assert data.train.inputs.shape == (60_000, 784) and data.train.targets.shape == (60_000,)
    assert data.test.inputs.shape == (10_000, 784) and data.test.targets.shape == (10_000,)
    assert data.train.targets[:5].tolist() == [5, 0, 4, 1, 9]
    for examples, pixels in ((data.train, 1_567_298_545), (data.test, 264_923_200)):
        assert examples.inputs.dtype == np.uint8 and examples.targets.dtype == np.int32
        assert examples.inputs.sum(dtype=np.int64) == pixels
