"""Inputs that stay on disk: the rows that are asked for, whatever the file, and nothing else."""

import os
import zipfile

import jax
import numpy as np
import pytest
from files import message_of

import jaxmlp
from jaxmlp.data import load_dataset
from jaxmlp.data import rows as rows_module
from jaxmlp.data.rows import open_stored, stored_records
from jaxmlp.data.standards import standardized

RNG = np.random.default_rng(0)
N = 300


def array_of(dtype, shape=(N, 6)):
    """Numbers that every dtype holds."""
    return RNG.integers(0, 100, shape).astype(dtype)


def saved(path, array):
    if path.suffix == ".npz":
        np.savez(path, targets=np.zeros(len(array)), inputs=array, more=np.ones(5))
    else:
        np.save(path, array)
    return path


@pytest.mark.parametrize("ending", ["npy", "npz"])
@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        ("uint8", "uint8"), ("float32", "float32"), ("float64", "float64"), (">f4", "float32"),
        (">i2", "float32"), ("float16", "float32"), ("int64", "float64"), ("bool", "float32"),
    ],
)  # fmt: skip
def test_rows_are_those_with_the_numbers_asked_for(tmp_path, ending, dtype, kept):
    array = array_of(dtype)
    inputs = open_stored(saved(tmp_path / f"set.{ending}", array))
    assert (inputs.shape, len(inputs), inputs.dtype) == ((N, 6), N, np.dtype(kept))
    assert inputs.image_shape is None and inputs.nbytes == N * 6 * inputs.dtype.itemsize
    for numbers in (np.array([7, 3, 3, 299, 0]), RNG.permutation(N), np.array([], int)):
        got = inputs.rows(numbers)
        assert got.dtype == np.dtype(kept)
        np.testing.assert_array_equal(got, array[numbers].astype(kept))
    np.testing.assert_array_equal(inputs.in_memory(), array.astype(kept))


@pytest.mark.parametrize("near", [0, 2**13])
def test_rows_near_and_far_from_one_another_are_the_same(tmp_path, monkeypatch, near):
    monkeypatch.setattr(rows_module, "_NEAR", near)
    monkeypatch.setattr(rows_module, "_MOST_ROWS", 7)
    monkeypatch.setattr(rows_module, "_CACHED_SECONDS", 0.0)  # all are slow: the disk is advised
    array = array_of("float32")
    inputs = open_stored(saved(tmp_path / "set.npz", array))
    numbers = RNG.permutation(N)[:100]
    np.testing.assert_array_equal(inputs.rows(numbers), array[numbers])


@pytest.mark.parametrize("numbers", [[1, 1, 3], [4, 0, 0, 2, 2], [5, 5, 6], [0, 2, 4]])
def test_as_many_rows_asked_for_twice_as_are_between_are_the_right_ones(tmp_path, numbers):
    array = array_of("float32")
    inputs = open_stored(saved(tmp_path / "set.npy", array))
    np.testing.assert_array_equal(inputs.rows(np.array(numbers)), array[numbers])


@pytest.mark.parametrize("dtype", ["uint8", "float32", ">f4"])
@pytest.mark.parametrize(("near", "long"), [(0, 0), (24, 0), (2**13, 0), (60, 48), (2**13, 2**11)])
def test_rows_are_put_one_after_another_however_they_are_read(
    tmp_path, monkeypatch, near, long, dtype
):
    monkeypatch.setattr(rows_module, "_NEAR", near)
    monkeypatch.setattr(rows_module, "_LONG", long)
    monkeypatch.setattr(rows_module, "_MOST_ROWS", 16)
    array = array_of(dtype)
    inputs = open_stored(saved(tmp_path / "set.npy", array))
    rng = np.random.default_rng(0)
    for size in (0, 1, 5, 40):
        for spread in (3, N):  # with many twice, and with few
            numbers = rng.integers(spread, size=size)
            memory = np.full((size + 2, 6), 77, inputs.dtype)
            places = [own for own, read in inputs.pieces(numbers, memory) if len(own) == len(read)]
            order = np.concatenate([np.zeros(0, int), *places])
            np.testing.assert_array_equal(np.sort(order), np.arange(size))
            np.testing.assert_array_equal(memory[:size], array[numbers[order]])
            assert (memory[size:] == 77).all()
            np.testing.assert_array_equal(inputs.rows(numbers), array[numbers])


def test_images_are_flattened_and_known(tmp_path):
    array = array_of("uint8", (N, 2, 3))
    inputs = open_stored(saved(tmp_path / "set.npy", array))
    assert inputs.shape == (N, 6) and inputs.image_shape == (2, 3)
    np.testing.assert_array_equal(inputs.rows(np.array([5])), array[5].reshape(1, -1))


def test_some_of_the_inputs_are_not_read_either(tmp_path):
    array = array_of("float32")
    inputs = open_stored(saved(tmp_path / "set.npy", array))
    some = inputs[np.array([9, 8, 7])]
    assert some.shape == (3, 6)
    np.testing.assert_array_equal(some.rows(np.array([2, 0])), array[[7, 9]])
    np.testing.assert_array_equal(some[np.array([1])].in_memory(), array[[8]])
    for wrong in (np.array([0, 3]), np.array([-1])):
        for call in (some.rows, some.__getitem__):
            message = message_of(ValueError, lambda call=call, wrong=wrong: call(wrong))
            assert message.startswith("numbers: expected 0 to 2, got ")


def test_numbers_are_integers_or_a_slice(tmp_path):
    array = np.arange(30.0).reshape(10, 3)
    np.save(tmp_path / "inputs.npy", array)
    stored = open_stored(tmp_path / "inputs.npy")
    np.testing.assert_array_equal(stored.rows([2, 0]), array[[2, 0]])
    np.testing.assert_array_equal(stored[1:8:3].in_memory(), array[1:8:3])
    assert stored[[]].shape == (0, array.shape[1])
    for numbers in (1, [[0]], [True, False], [0.5]):
        with pytest.raises(TypeError, match=r"numbers: expected integers \(n,\), got"):
            stored[numbers]
    with pytest.raises(TypeError, match=r"in_memory\(\) reads them"):
        np.asarray(stored)


def test_what_takes_arrays_in_memory_says_how_to_have_them(tmp_path):
    np.save(tmp_path / "inputs.npy", np.zeros((6, 3)))
    inputs = open_stored(tmp_path / "inputs.npy")
    network = jaxmlp.Network((3, 2))
    params = jaxmlp.init(network, jax.random.key(0))
    targets = np.zeros(6, np.int32)
    for call in (
        lambda: jaxmlp.predictions(network, params, inputs),
        lambda: jaxmlp.evaluate(network, params, inputs, targets),
        lambda: jaxmlp.loss(network, params, inputs, targets),
    ):
        assert message_of(TypeError, call) == (
            f"inputs: {tmp_path / 'inputs.npy'}: expected an array in memory, got inputs that stay "
            "where they are stored: in_memory() reads them"
        )


def test_what_is_not_finite_is_named_by_its_row_in_the_file(tmp_path):
    array = array_of("float32")
    array[7, 2], array[50, 1] = np.nan, np.inf
    inputs = open_stored(saved(tmp_path / "set.npy", array))
    inputs.rows(np.array([8, 6]))
    message = message_of(ValueError, lambda: inputs.rows(np.array([50, 6, 7])))
    assert message == f"{tmp_path / 'set.npy'}: expected finite inputs, got nan at [7, 2]"
    assert "at [7, 2]" in message_of(ValueError, lambda: inputs[np.array([7])].rows(np.array([0])))


@pytest.mark.parametrize("long", [0, 2**11])
def test_a_file_that_becomes_shorter_is_an_error_that_says_where(tmp_path, monkeypatch, long):
    monkeypatch.setattr(rows_module, "_LONG", long)
    path = saved(tmp_path / "set.npy", array_of("float32"))
    inputs = open_stored(path)
    whole = path.stat().st_size
    for lost, row in ((24 * 100, 200), (24 * 100 - 5, 200)):
        os.truncate(path, whole - lost)
        assert len(inputs.rows(np.arange(200))) == 200
        for numbers in (np.arange(N), np.array([0, 250])):
            message = message_of(OSError, lambda numbers=numbers: inputs.rows(numbers))
            assert "expected 300 rows, as when it was opened, got a file that ends" in message
        assert message_of(OSError, lambda: inputs.rows(np.arange(N))).endswith(f"row {row}")


def test_files_that_cannot_be_read_where_they_are_are_refused(tmp_path):
    array, path = array_of("float32"), tmp_path / "set.npy"

    def message(error=ValueError):
        return message_of(error, lambda: open_stored(path))

    assert "expected a readable .npy file, got: No such file" in message(FileNotFoundError)
    path.write_bytes(b"")
    assert "expected the file in NumPy's format" in message()
    np.save(path, np.asfortranarray(array))
    assert "expected inputs row after row, got them in Fortran's order" in message()
    np.save(path, np.array([[object()]]))
    assert "got Python objects, which are a pickle" in message()
    np.save(path, array.astype(complex))
    assert "expected inputs of real numbers, got complex128" in message()
    np.save(path, array[0])
    assert "expected inputs of shape (N, D) or (N, rows, columns)" in message()
    np.save(path, array[:0])
    assert "none of them 0, got (0, 6)" in message()
    np.save(path, array)
    os.truncate(path, path.stat().st_size - 1)
    assert "expected 7200 bytes in the file for float32 of shape (300, 6), got 7199" in message()
    path = tmp_path / "set.npz"
    np.savez_compressed(path, inputs=array)
    assert "got compressed ones: write them by numpy.savez, or a folder of .npy files" in message()
    np.savez(path, targets=array)
    assert "expected an array 'inputs', got 'targets'" in message()
    np.savez(path, inputs=array)
    os.truncate(path, 3000)
    assert "expected an intact .npz file, got a damaged one" in message()
    path.write_bytes(b"PK\3\4")
    assert "got a damaged one" in message()
    path = tmp_path / "set.csv"
    assert "expected a file .npz or .npy" in message()


def test_a_member_is_found_behind_a_local_header_of_another_length(tmp_path):
    # The extra field of the local header need not be that of the directory.
    path, array = tmp_path / "set.npz", array_of("float64")
    np.save(tmp_path / "inputs.npy", array)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("first.txt", "abc")
        info = zipfile.ZipInfo("inputs.npy")
        info.extra = b"\x99\x99\x04\x00abcd"
        archive.writestr(info, (tmp_path / "inputs.npy").read_bytes())
    np.testing.assert_array_equal(open_stored(path).in_memory(), array)


# Records.


def test_records_are_read_by_their_numbers():
    images = array_of("uint8", (20, 4, 5, 1))

    class Source:
        read = 0

        def __len__(self):
            return len(images)

        def __getitem__(self, number):
            Source.read += 1
            return {"image": images[number], "label": number % 3}

    inputs = stored_records(Source())
    assert inputs.shape == (20, 20) and inputs.image_shape == (4, 5) and inputs.dtype == np.uint8
    before = Source.read
    got = inputs.rows(np.array([4, 1]))
    assert Source.read == before + 2
    np.testing.assert_array_equal(got, images[[4, 1]].reshape(2, -1))


def test_bad_records_are_refused():
    assert "expected at least one, got none" in message_of(ValueError, lambda: stored_records([]))
    assert "expected a sequence" in message_of(TypeError, lambda: stored_records(iter([])))
    assert "expected a mapping with 'image', got KeyError" in message_of(
        TypeError, lambda: stored_records([{"x": 1}])
    )
    assert "records[0]['x']: expected real numbers, got <U1" in message_of(
        ValueError, lambda: stored_records([{"x": "a"}], "x")
    )
    uneven = stored_records([{"x": [1.0, 2.0]}, {"x": [1.0]}], "x")
    assert message_of(ValueError, lambda: uneven.rows(np.array([0, 1]))) == (
        "records[1]['x']: expected float64 of shape (2,), as in the first, got float64 of (1,)"
    )


# Data sets.


def folder_of(path, **arrays):
    path.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)
    return path


def test_a_data_set_that_stays_on_disk_is_that_in_memory(tmp_path):
    arrays = {
        "inputs": array_of("uint8", (N, 2, 3)), "targets": RNG.integers(3, size=N) * 5,
        "sample_weight": RNG.uniform(size=N), "split": np.arange(N) % 5 // 3,
    }  # fmt: skip
    np.savez(tmp_path / "set.npz", **arrays)
    whole = load_dataset(tmp_path / "set.npz")
    folder = folder_of(tmp_path / "set", **arrays)
    for name in (tmp_path / "set.npz", folder):
        for stream in (False, True):
            got = load_dataset(name, stream=stream)
            assert got.classes == whole.classes == ("0", "5", "10")
            assert got.image_shape == (2, 3) and got.scaling == whole.scaling and got.test is None
            for part in ("train", "validation"):
                one, other = getattr(got, part), getattr(whole, part)
                inputs = one.inputs
                if part == "train" and stream:
                    inputs = inputs.in_memory()
                assert isinstance(inputs, np.ndarray)
                np.testing.assert_array_equal(inputs, other.inputs)
                np.testing.assert_array_equal(one.targets, other.targets)
                np.testing.assert_array_equal(one.weights, other.weights)


def test_companions_and_splits_of_a_folder(tmp_path):
    x, t = array_of("float32"), RNG.integers(3, size=N)
    folder = folder_of(tmp_path / "set", inputs=x, targets=t)
    more = folder_of(tmp_path / "more", inputs=x[:20], targets=t[:20])
    got = load_dataset(folder, validation_fraction=0.2, test_file=more, stream=True)
    assert (len(got.train.inputs), len(got.validation.inputs), len(got.test.inputs)) == (
        240, 60, 20,
    )  # fmt: skip
    same = load_dataset(folder, validation_fraction=0.2)
    np.testing.assert_array_equal(got.train.inputs.in_memory(), same.train.inputs)
    np.testing.assert_array_equal(got.validation.inputs, same.validation.inputs)
    np.savez(tmp_path / "more.npz", inputs=x, targets=t)
    message = message_of(ValueError, lambda: load_dataset(folder, test_file=tmp_path / "more.npz"))
    assert message.startswith("test_file: expected a folder, as ")


def test_data_sets_that_cannot_stay_on_disk_are_refused(tmp_path):
    def message(name, error=ValueError, **more):
        return message_of(error, lambda: load_dataset(name, stream=True, **more))

    assert message("digits").startswith("stream: expected a folder of .npy files")
    (tmp_path / "set.csv").write_text("a,b\n1,2\n")
    assert message(tmp_path / "set.csv").startswith("stream: expected it for a file .npz or a")
    folder = folder_of(tmp_path / "set")
    assert message(folder).endswith("expected the arrays 'inputs' and 'targets', got none")
    folder_of(folder, inputs=array_of("float32"))
    assert message(folder).endswith("expected the arrays 'inputs' and 'targets', got 'inputs'")
    folder_of(folder, targets=np.zeros(7, int))
    assert "expected 300 rows in targets, as in inputs, got shape (7,)" in message(folder)
    folder_of(folder, targets=np.full(N, None))
    assert "got Python objects" in message(folder)
    folder_of(folder, targets=np.arange(N) % 2, sample_wieght=np.ones(N))
    assert "unknown array 'sample_wieght': did you mean 'sample_weight'?" in message(folder)
    (folder / "sample_wieght.npy").unlink()
    folder_of(folder, sample_weight=-np.ones(N))
    assert "expected a sample_weight of finite numbers ≥ 0, got -1.0 at [0]" in message(folder)


def test_standardising_reads_once_and_finds_the_same_figures(tmp_path, monkeypatch):
    from jaxmlp.data import stored

    monkeypatch.setattr(stored, "_CHUNK_BYTES", 1000)  # many chunks
    x = RNG.normal(1e3, 2, (N, 6))
    x[:, 3] = 0.1  # constant
    w = RNG.uniform(size=N)
    w[:40], x[5] = 0, np.nan  # a row that does not count may hold anything, a chunk nothing
    for weights in (w, None):
        x[5] = np.nan if weights is not None else 1e3
        arrays = {} if weights is None else {"sample_weight": weights}
        folder_of(tmp_path / "set", inputs=x, targets=np.arange(N) * 1.0, **arrays)
        got = standardized(load_dataset(tmp_path / "set", stream=True)).scaling
        same = standardized(load_dataset(tmp_path / "set")).scaling
        np.testing.assert_allclose(got.shift, same.shift, rtol=1e-13)
        np.testing.assert_allclose(got.factor, same.factor, rtol=1e-9)
        (tmp_path / "set" / "sample_weight.npy").unlink(missing_ok=True)
    x[9] = np.inf
    np.save(tmp_path / "set" / "inputs.npy", x)
    data = load_dataset(tmp_path / "set", stream=True)
    assert "got inf at [9, 0]" in message_of(ValueError, lambda: standardized(data))
