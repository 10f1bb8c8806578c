"""Files .npz: what is read, what its targets are, every fault named."""

import io
import zipfile
from typing import Any

import numpy as np
import pytest
from files import message_of

import jaxmlp.data
from jaxmlp.scaling import PIXELS

# Whether a dataset has a part for testing, say, a type checker cannot tell.
load_dataset: Any = jaxmlp.data.load_dataset

INPUTS = np.array([[1, 2.5], [3, 4], [5, 6]], np.float32)


def saved(folder, name="set.npz", save=np.savez, **arrays):
    path = folder / name
    save(path, **arrays)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_inputs_and_targets_become_a_dataset(tmp_path, save):
    path = saved(tmp_path, save=save, inputs=INPUTS, targets=np.array([7, 3, 7]))
    dataset = load_dataset(str(path))
    assert (dataset.name, dataset.source) == ("set", str(path))
    assert dataset.classes == ("3", "7") and dataset.features is None
    assert dataset.train.targets.tolist() == [1, 0, 1]
    assert dataset.train.targets.dtype == np.int32
    np.testing.assert_array_equal(dataset.train.inputs, INPUTS)
    assert (dataset.validation, dataset.test, dataset.scaling) == (None, None, None)


def test_images_are_flattened_and_bytes_stay_bytes(tmp_path):
    images = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    dataset = load_dataset(saved(tmp_path, inputs=images, targets=[0, 1, 1, 0]))
    assert dataset.image_shape == (2, 3) and dataset.scaling == PIXELS
    assert dataset.train.inputs.dtype == np.uint8
    np.testing.assert_array_equal(dataset.train.inputs, np.arange(24).reshape(4, 6))
    dataset = load_dataset(saved(tmp_path, inputs=images.astype(float), targets=[0, 1, 1, 0]))
    assert dataset.image_shape == (2, 3) and dataset.scaling is None


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        *(("uint8", "uint8"), ("bool", "float32"), ("int8", "float32"), ("uint16", "float32")),
        *(("int32", "float64"), ("int64", "float64"), ("float16", "float32")),
        *(("float32", "float32"), ("float64", "float64"), ("longdouble", "float64")),
        *((">f4", "float32"), (">f8", "float64")),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_inputs_of_any_dtype_and_order_keep_their_values(tmp_path, dtype, kept, order):
    inputs = np.array([[0, 1], [1, 0], [1, 1]]).astype(dtype, order=order)
    dataset = load_dataset(saved(tmp_path, inputs=inputs, targets=["x", "y", "x"]))
    assert dataset.train.inputs.dtype == np.dtype(kept) and dataset.train.inputs.dtype.isnative
    assert dataset.train.inputs.flags.c_contiguous
    np.testing.assert_array_equal(dataset.train.inputs, [[0, 1], [1, 0], [1, 1]])


@pytest.mark.parametrize(
    ("targets", "regression", "classes", "expected"),
    [
        (np.array([10, 9, 10], np.uint8), None, ("9", "10"), [1, 0, 1]),
        (np.array(["b", "a", "b"]), None, ("a", "b"), [1, 0, 1]),
        (np.array(["é", "a", "é"]).astype(object).astype("U"), None, ("a", "é"), [1, 0, 1]),
        (np.array([b"b", b"a", b"b"]), None, ("a", "b"), [1, 0, 1]),
        (np.array(["1.5", "10", "1.5"]), None, ("1.5", "10"), [0, 1, 0]),
        (np.array([True, False, True]), None, ("False", "True"), [1, 0, 1]),
        (np.array([2.0, 1.0, 2.0]), False, ("1", "2"), [1, 0, 1]),
        (np.array([0.5, 1, 2]), None, None, [[0.5], [1], [2]]),
        (np.array([1, 2, 3]), True, None, [[1], [2], [3]]),
        (np.array([[1.0, 2], [3, 4], [5, 6]]), None, None, [[1, 2], [3, 4], [5, 6]]),
        (np.array([[1, 2], [3, 4], [5, 6]]), True, None, [[1, 2], [3, 4], [5, 6]]),
    ],
    ids=[
        *["integers", "strings", "beyond ASCII", "bytes", "strings that look like numbers"],
        *["truth values", "floats as classes", "floats", "integers as numbers", "several outputs"],
        "several outputs of integers",
    ],
)
def test_targets_are_classes_or_numbers(tmp_path, targets, regression, classes, expected):
    path = saved(tmp_path, inputs=INPUTS, targets=targets)
    dataset = load_dataset(path, regression=regression)
    assert dataset.classes == classes
    assert dataset.train.targets.tolist() == expected
    assert dataset.train.targets.dtype == (np.float32 if classes is None else np.int32)
    assert dataset.n_outputs == len(classes or expected[0])


@pytest.mark.parametrize("split", [["train", "train", "validation", "test"], [0, 0, 1, 2]])
def test_weights_and_the_split_do_what_they_say(tmp_path, split):
    path = saved(
        tmp_path,
        inputs=np.arange(8.0).reshape(4, 2),
        targets=["x", "y", "x", "y"],
        sample_weight=np.array([1, 2, 3, 4]),
        split=split,
        ids=np.arange(4),
    )
    dataset = load_dataset(path)
    for part, inputs, targets, weights in (
        (dataset.train, [[0, 1], [2, 3]], [0, 1], [1, 2]),
        (dataset.validation, [[4, 5]], [0], [3]),
        (dataset.test, [[6, 7]], [1], [4]),
    ):
        assert part.inputs.tolist() == inputs and part.targets.tolist() == targets
        assert part.weights.tolist() == weights and part.weights.dtype == np.float32


def test_a_row_that_weighs_nothing_may_hold_anything(tmp_path):
    inputs = np.array([[1.0], [np.nan], [2.0]])
    path = saved(tmp_path, inputs=inputs, targets=[0, 1, 1], sample_weight=[1, 0, 1])
    assert np.isnan(load_dataset(path).train.inputs[1, 0])


def test_files_for_validation_and_testing_are_of_the_same_kind(tmp_path):
    first = saved(tmp_path, inputs=INPUTS, targets=["b", "a", "c"])
    second = saved(tmp_path, "second.npz", inputs=INPUTS[:2].astype(float), targets=["c", "a"])
    dataset = load_dataset(first, validation_file=second, test_file=second)
    assert dataset.validation.targets.tolist() == dataset.test.targets.tolist() == [2, 0]


# --------------------------------------------------------------------------------------- faults

GOOD: dict[str, Any] = {"inputs": INPUTS, "targets": np.array([0, 1, 0])}
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no targets": (
        {"targets": None, "y": [0, 1, 0]},
        "expected the arrays 'inputs' and 'targets', got 'inputs', 'y'",
    ),
    "no inputs": (
        {"inputs": None, "X": INPUTS},
        "expected the arrays 'inputs' and 'targets', got 'targets', 'X'",
    ),
    "weights spelt wrong": (
        {"sample_weights": [1, 1, 1]},
        "unknown array 'sample_weights': did you mean 'sample_weight'?",
    ),
    "inputs that are objects": (
        {"inputs": INPUTS.astype(object)},
        "expected inputs of numbers or strings, got Python objects, which are a pickle and not "
        "read",
    ),
    "targets that are objects": (
        {"targets": np.array(["a", None, "b"], object)},
        "expected targets of numbers or strings, got Python objects, which are a pickle and not "
        "read",
    ),
    "inputs that are strings": (
        {"inputs": np.array([["1"], ["2"], ["3"]])},
        "expected inputs of real numbers, got <U1",
    ),
    "complex inputs": (
        {"inputs": INPUTS.astype(np.complex64)},
        "expected inputs of real numbers, got complex64",
    ),
    "inputs of rank 1": (
        {"inputs": np.array([1.0, 2, 3])},
        "expected inputs of shape (N, D) or (N, rows, columns), none of them 0, got (3,)",
    ),
    "images of colours": (
        {"inputs": np.zeros((3, 2, 2, 3), np.uint8)},
        "expected inputs of shape (N, D) or (N, rows, columns), none of them 0, got (3, 2, 2, 3)",
    ),
    "no rows": (
        {"inputs": np.zeros((0, 2)), "targets": np.zeros(0, int)},
        "expected inputs of shape (N, D) or (N, rows, columns), none of them 0, got (0, 2)",
    ),
    "NaN": (
        {"inputs": np.array([[1.0, 2], [3, np.nan], [5, 6]])},
        "expected finite inputs, got nan at [1, 1]",
    ),
    "too few targets": (
        {"targets": np.array([0, 1])},
        "expected 3 rows in targets, as in inputs, got shape (2,)",
    ),
    "a target alone": (
        {"targets": np.array(1)},
        "expected targets (N,) or (N, K) of numbers, or (N,) of strings, got int64 of shape ()",
    ),
    "strings of rank 2": (
        {"targets": np.array([["a"], ["b"], ["a"]])},
        "expected targets (N,) or (N, K) of numbers, or (N,) of strings, got <U1 of shape (3, 1)",
    ),
    "integers of rank 2": (
        {"targets": np.array([[0], [1], [0]])},
        "expected targets (N,) for classes, got int64 of shape (3, 1) (regression=True takes them "
        "as numbers)",
    ),
    "a target that is NaN": (
        {"targets": np.array([0.5, np.nan, 1])},
        "expected finite numbers of float32 in targets[1], got nan",
    ),
    "an empty string": (
        {"targets": np.array(["a", "", "b"])},
        "expected a target in targets[1], got ''",
    ),
    "one class": (
        {"targets": np.array([4, 4, 4])},
        "expected examples of at least two classes for training, got 4 only (--targets numbers, or "
        "regression=True, takes integers as numbers)",
    ),
    "too few weights": (
        {"sample_weight": np.ones(2)},
        "expected 3 rows in sample_weight, as in inputs, got shape (2,)",
    ),
    "a negative weight": (
        {"sample_weight": np.array([1, -2, 1])},
        "expected a sample_weight of finite numbers ≥ 0, got -2 at [1]",
    ),
    "weights that are strings": (
        {"sample_weight": np.array(["1", "1", "1"])},
        "expected a sample_weight (N,) of numbers, got <U1 of shape (3,)",
    ),
    "another split": (
        {"split": np.array(["train", "val", "test"])},
        "expected a split (N,) of 'train', 'validation', 'test' or of 0, 1, 2, got 'val'",
    ),
    "a split beyond 2": (
        {"split": np.array([0, 1, 3])},
        "expected a split (N,) of 'train', 'validation', 'test' or of 0, 1, 2, got 3",
    ),
    "nothing to train on": (
        {"split": np.array([1, 1, 2])},
        "expected rows for training in split, got none",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_an_archive_is_named(tmp_path, fault):
    change, expected = FAULTS[fault]
    arrays = {name: array for name, array in (GOOD | change).items() if array is not None}
    path = saved(tmp_path, **arrays)
    assert message_of(ValueError, lambda: load_dataset(path)) == f"{path}: {expected}"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"inputs": INPUTS[:, :1]}, "expected inputs of shape (2,), as in {first}, got (1,)"),
        (
            {"inputs": INPUTS.astype(np.uint8)},
            "expected inputs of float32, as in {first}, got uint8",
        ),
        (
            {"targets": np.array([0, 2, 1])},
            "expected a class of the training examples (0, 1) in targets[1], got 2",
        ),
        (
            {"targets": np.array([0, 1.5, 1])},
            "expected a class of the training examples (0, 1) in targets[1], got 1.5",
        ),
        (
            {"targets": np.eye(3)},
            "expected targets (N,), as in the file for training, got shape (3, 3)",
        ),
    ],
    ids=["fewer inputs", "bytes", "an unknown class", "a fraction", "targets of rank 2"],
)
def test_every_fault_of_a_file_for_testing_is_named(tmp_path, change, expected):
    first, path = saved(tmp_path, **GOOD), saved(tmp_path, "test.npz", **(GOOD | change))
    assert message_of(ValueError, lambda: load_dataset(first, test_file=path)) == (
        f"{path}: {expected.format(first=first)}"
    )


def test_a_regression_needs_as_many_outputs_in_every_file(tmp_path):
    first = saved(tmp_path, inputs=INPUTS, targets=np.ones((3, 2)))
    path = saved(tmp_path, "test.npz", inputs=INPUTS, targets=np.ones(3))
    assert message_of(ValueError, lambda: load_dataset(first, test_file=path)) == (
        f"{path}: expected targets of 2 columns, as in {first}, got 1"
    )


def test_an_archive_has_no_column_to_name_as_target(tmp_path):
    path = saved(tmp_path, **GOOD)
    assert message_of(ValueError, lambda: load_dataset(path, target="y")) == (
        f"target: expected none for {path}, whose targets are its array 'targets', got 'y'"
    )


def test_files_that_are_no_archives_are_named(tmp_path):
    path = tmp_path / "set.npz"
    for content in (b"", b"a,b\n1,2\n", b"PK\x03\x04"):
        path.write_bytes(content)
        assert message_of(ValueError, lambda: load_dataset(path)) == (
            f"{path}: expected an intact .npz file, got a damaged one (File is not a zip file)"
        )
    np.save(path.with_suffix(".npy"), INPUTS)
    path.with_suffix(".npy").replace(path)
    assert "File is not a zip file" in message_of(ValueError, lambda: load_dataset(path))
    path.unlink()
    assert message_of(FileNotFoundError, lambda: load_dataset(path)) == (
        f"{path}: expected a readable .npz file, got: No such file or directory"
    )


def test_a_header_that_promises_more_than_there_is_costs_no_memory(tmp_path):
    path = tmp_path / "set.npz"
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        content, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 2**10)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inputs.npy", content.getvalue() + bytes(80))
        archive.writestr("targets.npy", b"")
    assert message_of(ValueError, lambda: load_dataset(path)) == (
        f"{path}: expected {2**53} bytes in inputs for float64 of shape ({2**40}, 1024), got 80"
    )


def test_no_damage_of_a_byte_is_met_without_the_file_being_named(tmp_path):
    # A changed name of a member or a changed date does no harm, or leaves an array out.
    whole = saved(tmp_path, save=np.savez_compressed, **GOOD).read_bytes()
    path = tmp_path / "damaged.npz"
    raised = 0
    for place in range(len(whole)):
        for flip in (0xFF, 0x01):
            damaged = bytearray(whole)
            damaged[place] ^= flip
            path.write_bytes(damaged)
            try:
                dataset = load_dataset(path)
            except (ValueError, OSError) as error:
                assert str(path) in str(error), (place, flip, error)
                raised += 1
            else:
                np.testing.assert_array_equal(dataset.train.inputs, INPUTS)
                assert dataset.train.targets.tolist() == [0, 1, 0]
    assert raised > len(whole)


def test_no_beginning_of_an_archive_is_taken_for_the_whole(tmp_path):
    whole = saved(tmp_path, **GOOD).read_bytes()
    path = tmp_path / "cut.npz"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert str(path) in message_of(ValueError, lambda: load_dataset(path))


def test_floats_that_are_no_integers_are_no_classes(tmp_path):
    path = saved(tmp_path, inputs=INPUTS, targets=np.array([1, 2.5, 1]))
    assert message_of(ValueError, lambda: load_dataset(path, regression=False)) == (
        f"{path}: expected integers or strings for classes, got 2.5 in targets[1]"
    )


def test_strings_that_are_not_utf8_and_other_compressions_are_named(tmp_path):
    path = saved(tmp_path, inputs=INPUTS, targets=np.array([b"a", b"\xe9", b"a"]))
    assert message_of(ValueError, lambda: load_dataset(path)) == (
        f"{path}: expected targets in UTF-8, got b'\\xe9'"
    )
    with zipfile.ZipFile(saved(tmp_path, **GOOD)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert message_of(ValueError, lambda: load_dataset(path)) == (
        f"{path}: expected inputs stored or deflated, got another compression"
    )
