"""Inputs read some rows at a time: the same numbers, whatever the file, in little memory."""

import gc
import tracemalloc

import numpy as np
import pytest
from files import message_of

from jaxmlp.data.streams import open_inputs

RNG = np.random.default_rng(0)
N = 20_000  # over three chunks
ARRAYS = {
    "float32": RNG.standard_normal((N, 3)).astype(np.float32),
    "float64": RNG.standard_normal((N, 3)),
    "uint8": RNG.integers(0, 256, (N, 3), np.uint8),
    "images": RNG.integers(0, 256, (N, 2, 3), np.uint8),
}


def saved(folder, array, ending):
    if ending == "npy":
        path = folder / "set.npy"
        np.save(path, array)
        return path
    path = folder / "set.npz"
    save = np.savez_compressed if ending == "packed npz" else np.savez
    save(path, targets=np.zeros(len(array)), inputs=array)
    return path


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("ending", ["npz", "packed npz", "npy"])
@pytest.mark.parametrize("kind", ARRAYS)
def test_the_chunks_are_the_array_row_after_row(tmp_path, kind, ending, order):
    array = ARRAYS[kind]
    path = saved(tmp_path, np.asarray(array, order=order), ending)
    inputs = open_inputs(path, 6 if kind == "images" else 3)
    assert inputs.n_rows == N
    chunks = list(inputs)
    assert [len(chunk) for chunk in chunks] == [8192, 8192, N - 2 * 8192]
    assert all(chunk.dtype == array.dtype for chunk in chunks)
    np.testing.assert_array_equal(np.concatenate(chunks), array.reshape(N, -1))
    np.testing.assert_array_equal(next(iter(inputs)), chunks[0])  # from the beginning again


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [("int16", "float32"), ("int64", "float64"), (">f4", "float32"), ("float16", "float32")],
)
def test_other_numbers_become_floats_that_hold_them(tmp_path, dtype, kept):
    path = saved(tmp_path, np.array([[1, 2], [3, -4]]).astype(dtype), "npz")
    (chunk,) = open_inputs(path, 2)
    assert chunk.dtype == np.dtype(kept) and chunk.tolist() == [[1, 2], [3, -4]]


def test_long_rows_come_in_smaller_chunks(tmp_path):
    # 2^22 bytes a row: 16 of them are the 2^26 that a chunk may hold.
    path = saved(tmp_path, np.zeros((20, 2**22), np.uint8), "packed npz")
    assert [len(chunk) for chunk in open_inputs(path, 2**22)] == [16, 4]


def table(folder, text):
    path = folder / "set.csv"
    path.write_text(text)
    return path


def test_columns_of_a_table_are_matched_by_name_and_others_passed_over(tmp_path):
    path = table(tmp_path, "name,b,a,y\nAnn,1,2,x\nBob,3.5,4,\n")
    inputs = open_inputs(path, 2, features=("a", "b"), target="y")
    assert inputs.n_rows is None
    (chunk,) = inputs
    assert chunk.dtype == np.float64 and chunk.tolist() == [[2, 1], [4, 3.5]]


def test_the_fields_of_columns_that_are_kept_come_beside_every_chunk(tmp_path):
    path = table(tmp_path, "name,b,a,y\n Ann ,1,2,x\n,3.5,4,\n")
    for features in (("b", "a"), None):
        inputs = open_inputs(path, 2, features, target="y", keep=("y", "name"))
        assert inputs.kept == ("y", "name")
        ((chunk, kept),) = inputs.with_kept()
        assert chunk.tolist() == [[1, 2], [3.5, 4]]
        assert kept == [["x", ""], ["Ann", ""]]
        assert [part.tolist() for part in inputs] == [chunk.tolist()]
    assert message_of(ValueError, lambda: open_inputs(path, 2, ("a", "b"), keep=["nam"])) == (
        f"{path}: unknown kept column 'nam': did you mean 'name'? expected one of 'name', 'b', "
        "'a', 'y'"
    )
    np.save(tmp_path / "set.npy", np.zeros((2, 2)))
    assert message_of(ValueError, lambda: open_inputs(tmp_path / "set.npy", 2, keep=["a"])) == (
        f"keep: expected none for {tmp_path / 'set.npy'}, whose columns have no names, got 'a'"
    )


@pytest.mark.parametrize("header", ["a,b,y", "a,b", "a,b,sample_weight,split", "y,a,b,split"])
def test_without_names_all_columns_count_but_target_weight_and_split(tmp_path, header):
    fields = {"a": "1", "b": "2", "y": "x", "sample_weight": "1", "split": "test"}
    path = table(tmp_path, f"{header}\n" + ",".join(fields[name] for name in header.split(",")))
    (chunk,) = open_inputs(path, 2, target="y")
    assert chunk.tolist() == [[1, 2]]


def test_a_long_table_comes_in_chunks(tmp_path):
    path = table(tmp_path, "a,b\n" + "".join(f"{row},{row}.5\n" for row in range(N)))
    chunks = list(open_inputs(path, 2))
    assert [len(chunk) for chunk in chunks] == [8192, 8192, N - 2 * 8192]
    np.testing.assert_array_equal(np.concatenate(chunks)[:, 1], np.arange(N) + 0.5)


def test_a_fault_far_down_is_named_when_it_is_met(tmp_path):
    lines = [f"{row},1" for row in range(N)]
    lines[N - 1] = ",1"
    path = table(tmp_path, "a,b\n" + "\n".join(lines))
    inputs = iter(open_inputs(path, 2))
    assert next(inputs)[-1, 0] == 8191
    assert message_of(ValueError, lambda: list(inputs)) == (
        f"{path}: expected a number in column 'a' of row {N + 1}, got ''"
    )
    array = ARRAYS["float32"].copy()
    array[N - 1, 2] = np.inf
    for order in "CF":
        path = saved(tmp_path, np.asarray(array, order=order), "npz")
        assert message_of(ValueError, lambda path=path: list(open_inputs(path, 3))) == (
            f"{path}: expected finite inputs, got inf at [{N - 1}, 2] in float32, whose largest is "
            "3.4e+38"
        )


@pytest.mark.parametrize("ending", ["npz", "packed npz"])
def test_a_damaged_byte_is_found_by_the_checksum(tmp_path, ending):
    path = saved(tmp_path, ARRAYS["uint8"], ending)
    content = bytearray(path.read_bytes())
    content[3 * len(content) // 4] ^= 1  # in the midst of `inputs`, which is the longer
    path.write_bytes(content)
    text = message_of(ValueError, lambda: list(open_inputs(path, 3)))
    assert text.startswith(f"{path}: expected an intact .npz file, got a damaged one (")


@pytest.mark.parametrize(
    ("text", "features", "expected"),
    [
        (
            "Age,b\n1,2\n",
            ("age", "b"),
            "expected a column 'age' as trained, got 'Age', 'b'",
        ),
        ("a,b,c\n1,2,3\n", None, "expected 2 columns of inputs, got 3: 'a', 'b', 'c'"),
        ("a,y\n1,2\n", None, "expected 2 columns of inputs, got 1: 'a'"),
        ("", None, "expected a header and rows, got an empty file"),
        ("a,b\n", None, "expected rows below the header, got none"),
        ("a,b\n1\n", None, "expected 2 columns in row 2, got 1"),
    ],
    ids=["a missing column", "too many", "too few", "empty", "a header alone", "a short row"],
)
def test_a_table_with_other_columns_is_named(tmp_path, text, features, expected):
    path = table(tmp_path, text)
    call = lambda: list(open_inputs(path, 2, features, target="y"))  # noqa: E731
    assert message_of(ValueError, call) == f"{path}: {expected}"


def test_arrays_with_other_inputs_are_named(tmp_path):
    for ending in ("npz", "npy"):
        for array, expected in (
            (
                np.zeros((5, 2, 2)),
                "expected 3 inputs for each row, got 4 in an array of shape (5, 2, 2)",
            ),
            (
                np.zeros(5),
                "expected inputs of shape (N, D) or (N, rows, columns), none of them 0, got (5,)",
            ),
            (np.array([["a"]]), "expected inputs of real numbers, got <U1"),
        ):
            path = saved(tmp_path, array, ending)
            text = message_of(ValueError, lambda path=path: open_inputs(path, 3))
            assert text == f"{path}: {expected}"
    path = tmp_path / "set.npz"
    np.savez(path, X=np.zeros((5, 3)))
    assert message_of(ValueError, lambda: open_inputs(path, 3)) == (
        f"{path}: expected an array 'inputs', got 'X'"
    )


def test_files_that_are_none_of_the_three_kinds_are_named(tmp_path):
    path = tmp_path / "set.npy"
    path.write_bytes(b"not an array")
    assert message_of(ValueError, lambda: open_inputs(path, 3)).startswith(
        f"{path}: expected the file in NumPy's format, got: "
    )
    np.save(path, np.zeros((5, 3)))
    path.write_bytes(path.read_bytes()[:-1])
    assert message_of(ValueError, lambda: open_inputs(path, 3)) == (
        f"{path}: expected 120 bytes in the file for float64 of shape (5, 3), got 119"
    )
    other = tmp_path / "set.txt"
    assert message_of(ValueError, lambda: open_inputs(other, 3)) == (
        f"{other}: expected a file .npz, .npy or .csv"
    )
    for kind in ("npz", "npy", "csv"):
        missing = tmp_path / f"missing.{kind}"
        text = message_of(FileNotFoundError, lambda missing=missing: open_inputs(missing, 3))
        assert text == (
            f"{missing}: expected a readable {'csv' if kind == 'csv' else '.' + kind} file, got: "
            "No such file or directory"
        )


@pytest.mark.slow  # on the default Python alone
@pytest.mark.parametrize("ending", ["npz", "packed npz", "npy"])
def test_memory_does_not_grow_with_the_rows(tmp_path, ending):
    # 32 MB of zeros; a chunk of 8192 rows takes 0.5 MB, and the zip file's reader a few.
    path = saved(tmp_path, np.zeros((500_000, 16), np.float32), ending)
    gc.collect()
    tracemalloc.start()
    try:
        assert sum(len(chunk) for chunk in open_inputs(path, 16)) == 500_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6


def test_what_is_not_read_to_its_end_is_closed(tmp_path):
    # An open file that is collected would warn, and a warning is an error here.
    for ending in ("npz", "npy"):
        for order in "CF":
            path = saved(tmp_path, np.asarray(ARRAYS["float32"], order=order), ending)
            for _ in open_inputs(path, 3):
                break
    for _ in open_inputs(table(tmp_path, "a,b\n1,2\n"), 2):
        break
    gc.collect()
