"""Files of predictions: what is in them, and that they are there whole or not at all."""

import csv
import errno
import gc
import tracemalloc

import numpy as np
import pytest
from files import message_of
from hypothesis import given
from hypothesis import strategies as st

from jaxmlp.data import predictions
from jaxmlp.data.predictions import open_predictions

CHUNKS = [
    np.array([[0.25, 0.5, 0.25], [1, 0, 0]], np.float32),
    np.array([[0.125, 0.125, 0.75]], np.float32),
]
NAMES = ("cat", 'a "dog"', "cow, or calf")


def written(path, chunks, classes, n_outputs, n_rows=None):
    with open_predictions(path, n_rows, classes, n_outputs) as out:
        for chunk in chunks:
            out.write(chunk)
    return path


def read_table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_a_table_has_the_class_and_every_probability(tmp_path):
    path = written(tmp_path / "out.csv", CHUNKS, NAMES, 3, n_rows=3)
    assert read_table(path) == [
        ["prediction", *(f"probability_{name}" for name in NAMES)],
        ['a "dog"', "0.25", "0.5", "0.25"],
        ["cat", "1", "0", "0"],
        ["cow, or calf", "0.125", "0.125", "0.75"],
    ]
    assert path.read_bytes().count(b"\r") == 0


def test_columns_that_are_kept_come_first(tmp_path):
    path = tmp_path / "out.csv"
    with open_predictions(path, 3, NAMES, 3, kept=("id", "note, if any")) as out:
        out.write(CHUNKS[0], kept=[["7", "8\n"], ["", 'say "x"']])
        out.write(CHUNKS[1], kept=[["9"], ["a,b\rc"]])
    assert read_table(path) == [
        ["id", "note, if any", "prediction", *(f"probability_{name}" for name in NAMES)],
        ["7", "", 'a "dog"', "0.25", "0.5", "0.25"],
        ["8\n", 'say "x"', "cat", "1", "0", "0"],
        ["9", "a,b\rc", "cow, or calf", "0.125", "0.125", "0.75"],
    ]


def test_what_cannot_be_kept_is_named(tmp_path):
    def written_with(name, *kept, fields=()):
        with open_predictions(tmp_path / name, None, NAMES, 3, kept=kept) as out:
            out.write(CHUNKS[0], kept=fields)

    path, archive = tmp_path / "out.csv", tmp_path / "out.npz"
    for call, expected in (
        (
            lambda: written_with("out.npz", "id"),
            f"keep: expected none for {archive}, which is no table, got 'id'",
        ),
        (
            lambda: written_with("out.csv", "prediction"),
            f"keep: expected other columns than those of {path}, once each, got 'prediction'",
        ),
        (
            lambda: written_with("out.csv", "id", "id"),
            f"keep: expected other columns than those of {path}, once each, got 'id'",
        ),
        (
            lambda: written_with("out.csv", "id", fields=[["7"]]),
            f"{path}: expected 2 fields of 1 columns that are kept, got [1]",
        ),
    ):
        assert message_of(ValueError, call) == expected
    assert list(tmp_path.iterdir()) == []


def test_an_archive_has_the_classes_and_the_probabilities(tmp_path):
    path = written(tmp_path / "out.npz", CHUNKS, NAMES, 3, n_rows=3)
    with np.load(path, allow_pickle=False) as file:
        assert sorted(file) == ["prediction", "probabilities"]
        assert file["prediction"].tolist() == ['a "dog"', "cat", "cow, or calf"]
        assert file["probabilities"].dtype == np.float32
        np.testing.assert_array_equal(file["probabilities"], np.concatenate(CHUNKS))


def test_a_regression_has_numbers_alone(tmp_path):
    one, two = [np.array([[1.5], [-2]])], [np.array([[1.5, 2], [-2, 3]])]
    assert read_table(written(tmp_path / "one.csv", one, None, 1)) == [
        *(["prediction"], ["1.5"], ["-2"]),
    ]
    assert read_table(written(tmp_path / "two.csv", two, None, 2)) == [
        *(["prediction_0", "prediction_1"], ["1.5", "2"], ["-2", "3"]),
    ]
    for name, chunks, expected in (("one", one, [1.5, -2]), ("two", two, [[1.5, 2], [-2, 3]])):
        path = written(tmp_path / f"{name}.npz", chunks, None, len(chunks[0][0]))
        with np.load(path) as file:
            assert list(file) == ["prediction"]
            assert file["prediction"].dtype == np.float32
            assert file["prediction"].tolist() == expected


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_a_tables_digits_give_back_every_float32(tmp_path_factory, numbers):
    numbers = np.array(numbers, np.float32)
    path = tmp_path_factory.getbasetemp() / "digits.csv"
    written(path, [numbers[:, None]], None, 1)
    back = np.array([float(row[0]) for row in read_table(path)[1:]], np.float32)
    assert back.tobytes() == numbers.tobytes()


@pytest.mark.parametrize("name", ["out.csv", "out.npz"])
def test_no_rows_make_a_file_without_rows(tmp_path, name):
    path = written(tmp_path / name, [np.zeros((0, 2))], ("a", "b"), 2, n_rows=0)
    if name == "out.csv":
        assert read_table(path) == [["prediction", "probability_a", "probability_b"]]
    else:
        with np.load(path) as file:
            assert file["prediction"].shape == (0,) and file["probabilities"].shape == (0, 2)


# ------------------------------------------------------------------------------ whole or not at all


@pytest.mark.parametrize("name", ["out.csv", "out.npz"])
@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_where_the_block_raises_the_earlier_file_stays_and_nothing_else(tmp_path, name, error):
    path = tmp_path / name
    path.write_bytes(b"earlier")
    with pytest.raises(error, match="^in the block$"), open_predictions(path, 9, NAMES, 3) as out:
        out.write(CHUNKS[0])
        raise error("in the block")
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["out.csv", "out.npz"])
def test_until_the_end_the_earlier_file_is_read_and_then_the_new_one(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"earlier")
    with open_predictions(path, 2, NAMES, 3) as out:
        out.write(CHUNKS[0])
        assert path.read_bytes() == b"earlier"
        assert out.n_written == 2
        assert all(file.name.startswith(".") for file in tmp_path.iterdir() if file != path)
    assert path.read_bytes() != b"earlier"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["out.csv", "out.npz"])
def test_another_number_of_rows_or_outputs_is_named_and_leaves_nothing(tmp_path, name):
    path = tmp_path / name
    for chunks, n_rows, expected in (
        (CHUNKS, 4, "expected 4 rows of predictions, got 3"),
        ([np.zeros((2, 2))], 2, "expected predictions of shape (n, 3), got (2, 2)"),
        ([np.zeros(3)], 1, "expected predictions of shape (n, 3), got (3,)"),
    ):
        call = lambda chunks=chunks, n=n_rows: written(path, chunks, NAMES, 3, n)  # noqa: E731
        assert message_of(ValueError, call) == f"{path}: {expected}"
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_named_at_once(tmp_path):
    def call(path, classes=NAMES):
        with open_predictions(path, None, classes, 3):
            raise AssertionError("the block was entered")

    text = tmp_path / "out.txt"
    assert message_of(ValueError, lambda: call(text)) == (
        f"{text}: expected a file .csv or .npz for the predictions"
    )
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    assert message_of(OSError, lambda: call(folder)) == (
        f"{folder}: expected a file for the predictions, got a folder"
    )
    for name in ("out.csv", "out.npz"):
        missing = tmp_path / "missing" / name
        assert message_of(FileNotFoundError, lambda missing=missing: call(missing)) == (
            f"{missing}: expected to write the predictions, got: No such file or directory"
        )
    assert message_of(ValueError, lambda: call(tmp_path / "out.csv", ("a", "b"))) == (
        "classes: expected 3 names, one an output, got 2"
    )
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("kind", ["_Table", "_Archive"])
@pytest.mark.parametrize("step", ["_append", "finish"])
def test_a_full_disk_is_said_in_a_sentence_and_leaves_nothing(tmp_path, monkeypatch, kind, step):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(getattr(predictions, kind), step, full)
    path = tmp_path / ("out.csv" if kind == "_Table" else "out.npz")
    path.write_bytes(b"earlier")
    assert message_of(OSError, lambda: written(path, CHUNKS, NAMES, 3)) == (
        f"{path}: expected to write the predictions, got: No space left on device"
    )
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow  # on the default Python alone
@pytest.mark.parametrize(("name", "n_chunks"), [("out.csv", 50), ("out.npz", 200)])
def test_memory_does_not_grow_with_the_rows(tmp_path, name, n_chunks):
    # Files of 13 and 18 MB; a chunk of 2048 rows is 0.1 MB of float32 and 0.8 MB as lists and text.
    chunk = np.random.default_rng(0).dirichlet(np.ones(10), 2048).astype(np.float32)
    gc.collect()
    tracemalloc.start()
    try:
        path = written(tmp_path / name, n_chunks * [chunk], tuple(map(str, range(10))), 10)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 12e6
    assert peak < 6e6


@pytest.mark.parametrize("classes", [NAMES, None])
def test_a_disagreement_stands_beside_the_predictions(tmp_path, classes):
    given = [np.array([0.5, 0], np.float32), np.array([0.25], np.float32)]
    for name in ("out.csv", "out.npz"):
        with open_predictions(tmp_path / name, 3, classes, 3, disagreeing=True) as out:
            for chunk, own in zip(CHUNKS, given, strict=True):
                out.write(chunk, own)
    header, *lines = read_table(tmp_path / "out.csv")
    assert header[-1] == "disagreement" and len(header) == 4 + (classes is not None)
    assert [len(line) for line in lines] == [len(header)] * 3
    assert [line[-1] for line in lines] == ["0.5", "0", "0.25"]
    with np.load(tmp_path / "out.npz") as arrays:
        np.testing.assert_array_equal(arrays["disagreement"], np.concatenate(given))
        numbers = arrays["prediction" if classes is None else "probabilities"]
        np.testing.assert_array_equal(numbers, np.concatenate(CHUNKS))


@pytest.mark.parametrize(("disagreeing", "given"), [(True, None), (False, [0.0]), (True, [[0.0]])])
def test_a_disagreement_is_there_where_it_is_to_be(tmp_path, disagreeing, given):
    out = open_predictions(tmp_path / "out.csv", 1, NAMES, 3, disagreeing=disagreeing)
    with pytest.raises(ValueError, match="expected a disagreement of shape"), out as file:
        file.write(np.zeros((1, 3)), given)
    assert not list(tmp_path.iterdir())
