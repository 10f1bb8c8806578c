"""Tables of comma-separated values: what is read, what its targets are, every fault named."""

import csv
import itertools
import time
from typing import Any

import numpy as np
import pytest
from files import message_of
from hypothesis import given
from hypothesis import strategies as st

import jaxmlp.data
from jaxmlp.data.labels import MAX_INTEGER_CLASSES
from jaxmlp.data.splits import HasValidation
from jaxmlp.data.tables import BLOCK

# Whether a dataset has a part for testing, say, a type checker cannot tell.
load_dataset: Any = jaxmlp.data.load_dataset


def saved(folder, text, name="people.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


TABLE = "age,height,kind\n31,1.75,cat\n5,0.5,dog\n64,1.5,cat\n"


def assert_the_table(dataset):
    assert dataset.features == ("age", "height") and dataset.classes == ("cat", "dog")
    np.testing.assert_array_equal(dataset.train.inputs, [[31, 1.75], [5, 0.5], [64, 1.5]])
    assert dataset.train.inputs.dtype == np.float64
    assert dataset.train.targets.tolist() == [0, 1, 0]
    assert dataset.train.targets.dtype == np.int32


def test_a_table_becomes_inputs_by_name_and_classes_in_alphabetical_order(tmp_path):
    path = saved(tmp_path, TABLE)
    dataset = load_dataset(path)
    assert_the_table(dataset)
    assert (dataset.name, dataset.source) == ("people", str(path))
    assert dataset.validation is None and dataset.test is None
    assert dataset.train.weights is None and dataset.scaling is None
    assert dataset.n_outputs == 2


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + TABLE,
        TABLE.replace("\n", "\r\n"),
        TABLE.replace("\n", "\r"),
        TABLE.rstrip("\n"),
        TABLE + "\n\n",
        "\n" + TABLE.replace("\n", "\n\n"),
        '"age","height","kind"\n"31","1.75","cat"\n"5","0.5","dog"\n"64","1.5","cat"\n',
        "age, height, kind\n31, 1.75, cat\n 5, 0.5 , dog \n64, 1.50, cat\n",
        "age,height,kind\n+31.,175e-2,cat\n5.0,.5,dog\n6.4E1,1.5,cat\n",
    ],
    ids=[
        *["a byte order mark", "CRLF", "CR", "no last line end", "blank lines at the end"],
        *["blank lines between", "quoted fields", "spaces", "other spellings of the numbers"],
    ],
)
def test_however_a_table_is_written_it_is_the_same(tmp_path, text):
    assert_the_table(load_dataset(saved(tmp_path, text)))


def test_quoted_fields_may_hold_commas_quotes_and_line_ends(tmp_path):
    text = '"a,b",kind\n1,"x, ""y"""\n2,"two\nlines"\n'
    dataset = load_dataset(saved(tmp_path, text))
    assert dataset.features == ("a,b",)
    assert dataset.classes == ("two\nlines", 'x, "y"')


def test_a_row_is_named_by_the_line_where_it_begins(tmp_path):
    text = 'a,kind\n\n1,"two\nlines"\n2,x\nthree,x\n'
    path = saved(tmp_path, text)
    assert message_of(ValueError, lambda: load_dataset(path)) == (
        f"{path}: expected a number in column 'a' of row 6, got 'three'"
    )


@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=False, allow_infinity=False),
            st.integers(-(2**53), 2**53),
            st.text(st.characters(codec="utf-8", exclude_characters="\0")),
        ),
        min_size=2,
        max_size=20,
    )
)
def test_what_python_writes_is_read_back(tmp_path_factory, rows):
    # The csv module writes floats so that they are read back exactly.
    rows = [(x, n, f"<{text}>") for x, n, text in rows]
    rows[0], rows[1] = (*rows[0][:2], "first"), (*rows[1][:2], "second")
    path = tmp_path_factory.getbasetemp() / "written-by-python.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("x", "n", "kind"), *rows])
    dataset = load_dataset(path)
    np.testing.assert_array_equal(dataset.train.inputs, np.array([row[:2] for row in rows], float))
    names = [row[2] for row in rows]
    assert dataset.classes == tuple(sorted(set(names)))
    assert [dataset.classes[k] for k in dataset.train.targets] == names


# ---------------------------------------------------------------------------------- the targets


def dataset_of(folder, targets, **options):
    rows = "".join(f"{row},{text}\n" for row, text in enumerate(targets))
    return load_dataset(saved(folder, "x,y\n" + rows), **options)


@pytest.mark.parametrize(
    ("targets", "regression", "classes", "expected"),
    [
        (["b", "a", "b"], None, ("a", "b"), [1, 0, 1]),
        (["10", "9", "-1"], None, ("-1", "9", "10"), [2, 1, 0]),
        (["01", "1", "+2"], None, ("1", "2"), [0, 0, 1]),
        (["1", "2", "other"], None, ("1", "2", "other"), [0, 1, 2]),
        (["1", "2.5", "2"], None, None, [1, 2.5, 2]),
        (["1e0", "1", "2"], None, None, [1, 1, 2]),
        (["3", "1", "2"], True, None, [3, 1, 2]),
        (["1.5", "2.5", "1.5"], False, ("1.5", "2.5"), [0, 1, 0]),
        (["1.5", "x", "1.5"], False, ("1.5", "x"), [0, 1, 0]),
    ],
    ids=[
        *["names", "integers in their order", "spellings of integers", "integers and a name"],
        *["a decimal point", "an exponent", "integers as numbers", "numbers as classes"],
        "numbers and a name as classes",
    ],
)
def test_targets_are_classes_or_numbers_by_a_rule_that_can_be_overridden(
    tmp_path, targets, regression, classes, expected
):
    dataset = dataset_of(tmp_path, targets, regression=regression)
    assert dataset.classes == classes
    if classes is None:
        assert dataset.train.targets.dtype == np.float32 and dataset.n_outputs == 1
        assert dataset.train.targets.tolist() == [[number] for number in expected]
    else:
        assert dataset.train.targets.dtype == np.int32 and dataset.n_outputs == len(classes)
        assert dataset.train.targets.tolist() == expected


def test_many_different_integers_are_taken_for_neither_classes_nor_numbers_unasked(tmp_path):
    few, many = range(MAX_INTEGER_CLASSES), range(MAX_INTEGER_CLASSES + 1)
    assert dataset_of(tmp_path, few).n_outputs == 100
    text = message_of(ValueError, lambda: dataset_of(tmp_path, many))
    assert text.endswith(
        "people.csv: expected targets that are clearly classes or numbers, got 101 different "
        "integers in column 'y': say which (--targets classes or numbers; regression=False or True)"
    )
    assert dataset_of(tmp_path, many, regression=True).classes is None
    assert dataset_of(tmp_path, many, regression=False).n_outputs == 101


def test_a_name_is_no_number_where_numbers_are_asked_for(tmp_path):
    text = message_of(ValueError, lambda: dataset_of(tmp_path, ["1", "x"], regression=True))
    assert text.endswith("people.csv: expected a number in column 'y' of row 3, got 'x'")


def test_any_column_may_be_the_target(tmp_path):
    dataset = load_dataset(saved(tmp_path, "kind,a,b\nx,1,2\ny,3,4\n"), target="kind")
    assert dataset.features == ("a", "b") and dataset.classes == ("x", "y")
    np.testing.assert_array_equal(dataset.train.inputs, [[1, 2], [3, 4]])


# ------------------------------------------------------------------------- weights and the split


def test_columns_of_weights_and_of_the_split_are_no_inputs_and_do_what_they_say(tmp_path):
    text = "sample_weight,a,y,split\n1,1,x,train\n0.5,2,y,train\n2,3,y,validation\n3,4,x,test\n"
    for spelling in (
        text,
        text.replace("train", "0").replace("validation", "1").replace("test", "2"),
    ):
        dataset = load_dataset(saved(tmp_path, spelling))
        assert dataset.features == ("a",)
        for part, inputs, targets, weights in (
            (dataset.train, [[1], [2]], [0, 1], [1, 0.5]),
            (dataset.validation, [[3]], [1], [2]),
            (dataset.test, [[4]], [0], [3]),
        ):
            assert part.inputs.tolist() == inputs and part.targets.tolist() == targets
            assert part.weights.tolist() == weights and part.weights.dtype == np.float32


def test_files_for_validation_and_testing_have_the_same_columns_in_any_order(tmp_path):
    validation = saved(tmp_path, "kind,height,age\ndog,0.25,7\n", "validation.csv")
    test = saved(tmp_path, TABLE.replace("31", "32"), "test.csv")
    dataset = load_dataset(saved(tmp_path, TABLE), validation_file=validation, test_file=test)
    assert_the_table(dataset)
    np.testing.assert_array_equal(dataset.validation.inputs, [[7, 0.25]])
    assert dataset.validation.targets.tolist() == [1]
    np.testing.assert_array_equal(dataset.test.inputs[0], [32, 1.75])


def test_what_the_targets_are_is_decided_by_the_training_file(tmp_path):
    integers = saved(tmp_path, "a,y\n1,2\n2,3\n", "integers.csv")
    numbers = saved(tmp_path, "a,y\n1,2.5\n2,3\n", "numbers.csv")
    dataset = load_dataset(numbers, validation_file=integers)
    assert dataset.classes is None
    assert dataset.validation.targets.tolist() == [[2], [3]]
    again = saved(tmp_path, "a,y\n1,03\n", "again.csv")
    assert load_dataset(integers, test_file=again).test.targets.tolist() == [1]


# --------------------------------------------------------------------------------------- faults

FAULTS = {
    "an empty file": ("", "expected a header and rows, got an empty file"),
    "only blank lines": ("\n\n", "expected a header and rows, got an empty file"),
    "a header alone": ("a,b\n", "expected rows below the header, got none"),
    "an empty field": (
        "age,y\n1,x\n2,y\n3,x\n4,x\n5,x\n,y\n",
        "expected a number in column 'age' of row 7, got ''",
    ),
    "NA": ("a,b,y\n1,2,x\n1,NA,y\n", "expected a number in column 'b' of row 3, got 'NA'"),
    "NaN": ("a,b,y\n1,NaN,x\n1,2,y\n", "expected a number in column 'b' of row 2, got 'NaN'"),
    "an infinity": ("a,y\n1,x\ninf,y\n", "expected a number in column 'a' of row 3, got 'inf'"),
    "a word": ("a,y\n1,x\ntwo,y\n", "expected a number in column 'a' of row 3, got 'two'"),
    "an underscore": ("a,y\n1,x\n1_0,y\n", "expected a number in column 'a' of row 3, got '1_0'"),
    "beyond float64": (
        "a,y\n1,x\n1e999,y\n",
        "expected a number in column 'a' of row 3, got '1e999'",
    ),
    "too few fields": ("a,b,y\n1,2,x\n3,y\n", "expected 3 columns in row 3, got 2"),
    "too many fields": ("a,b,y\n1,2,x\n1,2,3,y\n", "expected 3 columns in row 3, got 4"),
    "a comma at the end": ("a,b,y\n1,2,x,\n", "expected 3 columns in row 2, got 4"),
    "a name twice": (
        "a,b,a\n1,2,x\n",
        "expected a name of its own for every column, got 'a' for columns 1 and 3",
    ),
    "a column without a name": (
        ",a,y\n0,1,x\n",
        "expected a name for every column, got none for column 1 (has the table been saved with "
        "its index?)",
    ),
    "no header": (
        "5.1,3,x\n4.9,2,y\n",
        "expected a header with the names of the columns, got the number '5.1' for column 1",
    ),
    "semicolons": (
        "a;b;y\n1;2;x\n",
        "expected columns separated by commas, got one column 'a;b;y'",
    ),
    "one column": ("y\nx\n", "expected at least one column of inputs beside 'y', got none"),
    "no column for targets": (
        "sample_weight,split\n1,train\n",
        "expected a column of targets, got 'sample_weight', 'split'",
    ),
    "a quote that is never closed": (
        'a,y\n1,"x\n2,y\n',
        "expected fields separated by commas, got in row 2: unexpected end of data",
    ),
    "text behind a quote": (
        'a,y\n1,"x"z\n',
        "expected fields separated by commas, got in row 2: ',' expected after '\"'",
    ),
    "a field without end": (
        "a,y\n1," + 200_000 * "x" + "\n",
        "expected fields separated by commas, got in row 2: field larger than field limit (131072)",
    ),
    "Latin-1": (
        "a,y\n1,x\n2,caf\u00e9\n".encode("latin-1"),
        "expected UTF-8, got the byte 0xe9 in line 3",
    ),
    "UTF-16": ("a,y\n1,x\n".encode("utf-16"), "expected UTF-8, got the byte 0xff in line 1"),
    "a missing target": ("a,y\n1,x\n2,\n", "expected a target in column 'y' of row 3, got ''"),
    "a target NA": ("a,y\n1,1.5\n2,NA\n", "expected a target in column 'y' of row 3, got 'NA'"),
    "a name among numbers": (
        "a,y\n1,1.5\n2,x\n",
        "expected a number in column 'y' of row 3, as in other rows, got 'x' (regression=False "
        "takes all of them as names)",
    ),
    "a target beyond float32": (
        "a,y\n1,1.5\n2,1e39\n",
        "expected finite numbers of float32 in column 'y' of row 3, got 1e+39",
    ),
    "one class": (
        "a,y\n1,x\n2,x\n",
        "expected examples of at least two classes for training, got 'x' only",
    ),
    "one integer": (
        "a,y\n1,3\n2,3\n",
        "expected examples of at least two classes for training, got 3 only (--targets numbers, or "
        "regression=True, takes integers as numbers)",
    ),
    "a column of words that is not the last": (
        "a,kind,y\n1,x,2\n2,z,3\n",
        "expected a number in column 'kind' of row 2, got 'x'; --ignore kind leaves columns of "
        "words out, --target takes one for the targets, not 'y'",
    ),
    "a negative weight": (
        "a,y,sample_weight\n1,x,1\n2,y,-1\n",
        "expected a number of at least 0 in column 'sample_weight' of row 3, got -1",
    ),
    "a weight that is a word": (
        "a,y,sample_weight\n1,x,1\n2,y,much\n",
        "expected a number in column 'sample_weight' of row 3, got 'much'",
    ),
    "no weight": (
        "a,y,sample_weight\n1,x,0\n2,y,0\n",
        "expected a training example with a sample_weight above 0, got none",
    ),
    "another split": (
        "a,y,split\n1,x,train\n2,y,valid\n",
        "expected train, validation or test in column 'split' of row 3, got 'valid'",
    ),
    "nothing to train on": (
        "a,y,split\n1,x,test\n2,y,test\n",
        "expected rows for training in split, got none",
    ),
    "a class that is only tested": (
        "a,y,split\n1,x,train\n2,y,train\n3,z,test\n",
        "expected a class of the training examples ('x', 'y') in column 'y' of row 4, got 'z'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_a_table_is_named_where_it_is(tmp_path, fault):
    text, expected = FAULTS[fault]
    path = saved(tmp_path, text)
    assert message_of(ValueError, lambda: load_dataset(path)) == f"{path}: {expected}"


COMPANIONS = {
    "a column too few": (
        "age,kind\n1,cat\n",
        "expected a column 'height', as in {train}, got none",
    ),
    "a column too many": (
        "age,height,shoes,kind\n1,2,3,cat\n",
        "expected the columns of {train} alone, got also 'shoes'",
    ),
    "no target": (
        "age,height,Kind\n1,2,cat\n",
        "unknown target column 'kind': did you mean 'Kind'? expected one of 'age', 'height', "
        "'Kind'",
    ),
    "an unknown class": (
        "age,height,kind\n1,2,cat\n3,4,cow\n",
        "expected a class of the training examples ('cat', 'dog') in column 'kind' of row 3, got "
        "'cow'",
    ),
    "a missing target": (
        "age,height,kind\n1,2,\n",
        "expected a target in column 'kind' of row 2, got ''",
    ),
    "a split": (
        "age,height,kind,split\n1,2,cat,test\n",
        "expected no split in a file for validation alone, got one",
    ),
    "a word": (
        "age,height,kind\n1,tall,cat\n",
        "expected a number in column 'height' of row 2, got 'tall'",
    ),
}


@pytest.mark.parametrize("fault", COMPANIONS)
def test_every_fault_of_a_file_for_validation_is_named(tmp_path, fault):
    text, expected = COMPANIONS[fault]
    train, path = saved(tmp_path, TABLE), saved(tmp_path, text, "validation.csv")
    assert message_of(ValueError, lambda: load_dataset(train, validation_file=path)) == (
        f"{path}: {expected.format(train=train)}"
    )


NAMED = """who,age,height,note,kind,sample_weight
1,2,3,good,cat,5
2,4,5,,dog,0
3,6,7,"a, b",cat,1
"""


def test_columns_that_are_ignored_are_passed_over_in_every_file(tmp_path):
    train, path = saved(tmp_path, NAMED), saved(tmp_path, TABLE, "validation.csv")
    data = load_dataset(train, validation_file=path, ignore=("who", "note"))
    assert data.features == ("age", "height")
    assert (data.target, data.classes) == ("kind", ("cat", "dog"))
    np.testing.assert_array_equal(data.train.inputs, [[2, 3], [4, 5], [6, 7]])
    np.testing.assert_array_equal(data.train.weights, [5, 0, 1])
    assert data.validation is not None and data.validation.inputs.shape[1] == 2
    same = load_dataset(train, ignore=["who", "note", "sample_weight"], target="kind")
    assert same.train.weights is None and same.features == data.features
    # The last column is that of the targets, of those that are left.
    other = load_dataset(train, ignore=["who", "note", "kind"])
    assert (other.target, other.features) == ("height", ("age",))


def test_what_cannot_be_ignored_is_named(tmp_path):
    path = saved(tmp_path, NAMED)
    for options, expected in (
        (
            {"ignore": ["who", "nots"]},
            f"{path}: unknown ignored column 'nots': did you mean 'note'? expected one of 'who', ",
        ),
        (
            {"ignore": ["kind"], "target": "kind"},
            "ignore: expected other columns than that of the targets, got 'kind'",
        ),
        (
            {"ignore": ["who", "age", "height", "note"]},
            f"{path}: expected at least one column of inputs beside 'kind', got none",
        ),
        (
            {"ignore": ["who"], "target": "kind"},
            f"{path}: expected a number in column 'note' of row 2, got 'good'; --ignore who note "
            "leaves columns of words out",
        ),
    ):
        text = message_of(ValueError, lambda options=options: load_dataset(path, **options))
        assert text.startswith(expected)
    archive = tmp_path / "a.npz"
    np.savez(archive, inputs=np.zeros((2, 2)), targets=np.arange(2))
    assert message_of(ValueError, lambda: load_dataset(archive, ignore=["a"])) == (
        f"ignore: expected none for {archive}, whose inputs have no names, got 'a'"
    )
    assert message_of(ValueError, lambda: load_dataset("iris", ignore=["a"])).startswith(
        "ignore: expected none for iris, which is a known dataset"
    )


def test_an_unknown_target_is_answered_with_the_nearest(tmp_path):
    path = saved(tmp_path, TABLE)
    assert message_of(ValueError, lambda: load_dataset(path, target="hieght")) == (
        f"{path}: unknown target column 'hieght': did you mean 'height'? expected one of 'age', "
        "'height', 'kind'"
    )


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    missing = tmp_path / "missing.csv"
    assert message_of(FileNotFoundError, lambda: load_dataset(missing)) == (
        f"{missing}: expected a readable csv file, got: No such file or directory"
    )
    folder = tmp_path / "folder.CSV"
    folder.mkdir()
    assert message_of(IsADirectoryError, lambda: load_dataset(folder)) == (
        f"{folder}: expected a readable csv file, got: Is a directory"
    )


def test_options_that_contradict_each_other_are_named(tmp_path):
    split = saved(tmp_path, "a,y,split\n1,x,train\n2,y,train\n3,y,validation\n")
    other = saved(tmp_path, "a,y\n1,x\n", "other.csv")
    archive = tmp_path / "other.npz"
    for options, expected in (
        (
            {"validation_file": other},
            f"validation_file: expected none where the split of {split} has validation examples, "
            f"got {other}",
        ),
        (
            {"validation_fraction": 0.5},
            f"validation_fraction: expected 0 where {split} or a file of its own has the "
            "validation examples, got 0.5",
        ),
        ({"data_dir": tmp_path}, f"data_dir: expected none for {split}, which is a file itself, "),
        ({"test_file": archive}, f"test_file: expected a file .csv, as {split}, got {archive}"),
    ):
        error = HasValidation if "validation_fraction" in options else ValueError
        text = message_of(error, lambda options=options: load_dataset(split, **options))
        assert text.startswith(expected)


@given(st.binary(max_size=60) | st.text('a,"\n\r1.;-', max_size=30).map(str.encode))
def test_any_bytes_are_either_a_dataset_or_a_value_error_with_the_file(tmp_path_factory, content):
    path = saved(tmp_path_factory.getbasetemp(), content, "any-bytes.csv")
    try:
        dataset = load_dataset(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert np.isfinite(dataset.train.inputs).all()


def test_a_fault_far_down_a_long_table_is_named_in_time(tmp_path):
    # 100,000 rows of 30 numbers take 1.5 s on two busy cores; here are 20,000, over three blocks.
    n = 20_000
    assert n > 2 * BLOCK
    numbers = np.random.default_rng(0).standard_normal((n, 30))
    lines = [",".join(map(str, row)) for row in numbers.tolist()]
    header = ",".join(f"x{column}" for column in range(30))
    text = "\n".join(f"{line},{kind}" for line, kind in zip(lines, itertools.cycle("ab")))  # noqa: B905
    path = saved(tmp_path, f"{header},y\n{text}\n")
    begin = time.process_time()
    dataset = load_dataset(path)
    assert time.process_time() - begin < 2
    np.testing.assert_array_equal(dataset.train.inputs, numbers)
    lines[n - 2] = lines[n - 2].rpartition(",")[0] + ",?"
    text = "\n".join(f"{line},{kind}" for line, kind in zip(lines, itertools.cycle("ab")))  # noqa: B905
    path = saved(tmp_path, f"{header},y\n{text}\n")
    assert message_of(ValueError, lambda: load_dataset(path)) == (
        f"{path}: expected a number in column 'x29' of row {n}, got '?'"
    )
