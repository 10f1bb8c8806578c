"""Preparing without TensorFlow: what was written is read back, or nothing is left of it."""

import gzip
import hashlib
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import idx, message_of

from jaxmlp.data import load_dataset, preparation, prepared
from jaxmlp.data.examples import Images
from jaxmlp.data.files import IDX_FILES, read_idx
from jaxmlp.data.preparation import default_folder, is_prepared, prepare, read_prepared
from jaxmlp.data.prepared import PUBLISHED, Published, content_hash

MNIST_DIR = os.environ.get("JAXMLP_MNIST_DIR")

# A set of the family's kind: 40 and 12 images of 28 × 28, half of their pixels 0, in ten classes.
GENERATOR = np.random.default_rng(0)
PARTS = tuple(
    Images(
        GENERATOR.integers(0, 256, (n, 28, 28), np.uint8)
        * GENERATOR.integers(0, 2, (n, 28, 28), np.uint8),
        (np.arange(n) % 10).astype(np.uint8),
    )
    for n in (40, 12)
)
ARRAYS = tuple(array for part in PARTS for array in part)  # in the order of IDX_FILES
SMALL = Published("mnist", IDX_FILES, 40, 12, 10, content_hash(*PARTS))


def written(folder, arrays=ARRAYS, names=IDX_FILES):
    folder.mkdir(exist_ok=True)
    for name, array in zip(names, arrays, strict=True):
        # No time stamp: the same file, and so the same checksum, at every run.
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array), mtime=0))
    return folder


def rows(images, labels):
    """The examples as a sorted list of bytes: equal lists are equal multisets."""
    return sorted(
        image.tobytes() + bytes([label]) for image, label in zip(images, labels, strict=True)
    )


def read_rows(examples):
    return rows(examples.inputs, examples.targets)


def assert_equal(one, other):
    for ours, theirs in ((one.train, other.train), (one.test, other.test)):
        for a, b in ((ours.inputs, theirs.inputs), (ours.targets, theirs.targets)):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """What the table says of mnist is what is true of the small set."""
    monkeypatch.setitem(PUBLISHED, "mnist", SMALL)


@pytest.fixture
def source(tmp_path):
    return written(tmp_path / "source")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with the small set prepared, for reading only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PUBLISHED, "mnist", SMALL)
        folder = tmp_path_factory.mktemp("done")
        prepare("mnist", folder / "data", written(folder / "source"))
    return folder / "data"


@pytest.fixture
def folder(done, tmp_path):
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(done, tmp_path / "data"))


def decoded(folder):
    return folder / "mnist" / "3.0.1" / "decoded.npz"


def records(folder, split="train"):
    return folder / "mnist" / "3.0.1" / f"mnist-{split}.array_record-00000-of-00001"


# ------------------------------------------------------------------------ preparing and reading


def test_what_was_prepared_is_read_back_from_the_records_and_from_the_arrays(source, tmp_path):
    target = tmp_path / "new" / "data"
    result = prepare("mnist", target, source)
    assert result == ("mnist", target / "mnist" / "3.0.1", False, 40, 12, result.compared_with)
    assert result.compared_with == "the hash of the published content"
    assert is_prepared("mnist", target) and not is_prepared("kmnist", target)
    assert [path.name for path in target.iterdir()] == ["mnist"]
    fast = read_prepared("mnist", target)
    decoded(target).unlink()
    slow = read_prepared("mnist", str(target))
    assert_equal(fast, slow)
    assert decoded(target).exists()  # the first reading made it anew
    assert fast.name == "mnist" and fast.source == str(result.folder)
    assert fast.n_outputs == 10 and fast.image_shape == (28, 28)
    assert fast.test is not None
    for examples, part in ((fast.train, PARTS[0]), (fast.test, PARTS[1])):
        assert examples.inputs.dtype == np.uint8 and examples.targets.dtype == np.int32
        assert read_rows(examples) == rows(*part)
    # tensorflow-datasets shuffles by a hash of each example's number: not the files' order, and
    # the same at every preparation.
    assert fast.train.targets.tolist() != PARTS[0].labels.tolist()


def test_the_order_is_the_same_at_every_preparation(source, done, tmp_path):
    prepare("mnist", tmp_path, source)
    assert_equal(read_prepared("mnist", tmp_path), read_prepared("mnist", done))


def test_what_is_prepared_already_is_left_alone(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    result = prepare("mnist", folder, "no-such-source")
    assert result == ("mnist", folder / "mnist" / "3.0.1", True, 40, 12, None)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_neither_preparing_nor_reading_imports_tensorflow_or_prints(source, tmp_path):
    program = f"""
import sys
from jaxmlp.data import preparation, prepared
assert "tensorflow_datasets" not in sys.modules
prepared.PUBLISHED["mnist"] = prepared.PUBLISHED["mnist"]._replace(
    n_train=40, n_test=12, content={SMALL.content!r}
)
preparation.prepare("mnist", "data", {str(source)!r})
preparation.read_prepared("mnist", "data")
next(__import__("pathlib").Path("data").rglob("decoded.npz")).unlink()
preparation.read_prepared("mnist", "data")
assert "tensorflow_datasets" in sys.modules
print([name for name in sys.modules if name.split(".")[0] == "tensorflow"])
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_reading_the_arrays_imports_no_tensorflow_datasets(done):
    program = f"""
import sys
from jaxmlp.data import preparation, prepared
prepared.PUBLISHED["mnist"] = prepared.PUBLISHED["mnist"]._replace(n_train=40, n_test=12)
print(preparation.prepare("mnist", {str(done)!r}).already)
print(len(preparation.read_prepared("mnist", {str(done)!r}).train.targets))
print([name for name in sys.modules if name.startswith("tensorflow")])
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.stdout == "True\n40\n[]\n", result.stderr


def test_tensorflow_datasets_opens_it_as_its_own(done):
    import tensorflow_datasets as tfds

    builder = tfds.builder("mnist", data_dir=done, file_format="array_record")
    assert builder.is_prepared()
    assert builder.info.splits["train"].num_examples == 40
    info = json.loads((done / "mnist" / "3.0.1" / "dataset_info.json").read_text())
    assert info["moduleName"] == "tensorflow_datasets.image_classification.mnist"


def test_the_files_of_emnist_are_found_by_their_names(monkeypatch, tmp_path):
    entry = PUBLISHED["emnist"]._replace(n_train=40, n_test=12)
    monkeypatch.setitem(PUBLISHED, "emnist", entry)
    labels = PARTS[0].labels + 37  # classes up to 46
    arrays = (PARTS[0].images, labels, *PARTS[1])
    result = prepare("emnist", tmp_path, written(tmp_path / "source", arrays, entry.files))
    assert result.folder == tmp_path / "emnist" / "balanced" / "3.1.0"
    assert result.compared_with == "the published counts"
    data = read_prepared("emnist", tmp_path)
    assert data.n_outputs == 47 and data.train.targets.max() == 46
    assert read_rows(data.train) == rows(PARTS[0].images, labels)  # on their side, as they were
    assert_equal(load_dataset("emnist", tmp_path), data)
    assert load_dataset("emnist", tmp_path / "source").n_outputs == 47


def test_the_folder_is_the_one_that_is_named_first(monkeypatch):
    for name in ("JAXMLP_DATA_DIR", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_folder() == Path("/home/someone/tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", "/data/tfds")
    assert default_folder() == Path("/data/tfds")
    monkeypatch.setenv("JAXMLP_DATA_DIR", "~/ours")
    assert default_folder() == Path("/home/someone/ours")


def test_the_content_s_hash_sees_every_example_and_no_order():
    train, test = PARTS
    reverse = Images(train.images[::-1], train.labels[::-1])
    assert content_hash(reverse, test) == SMALL.content
    pixel, label = train.images.copy(), train.labels.copy()
    pixel[39, 27, 27] ^= 1
    label[39] ^= 1
    others = [
        (Images(pixel, train.labels), test),
        (Images(train.images, label), test),
        (test, train),
        (Images(train.images[:, :, ::-1], train.labels), test),
        (Images(train.images.reshape(40, 14, 56), train.labels), test),
        # An example twice instead of another.
        (Images(train.images[[0, *range(39)]], train.labels[[0, *range(39)]]), test),
    ]
    assert len({content_hash(*other) for other in others} | {SMALL.content}) == 7


# -------------------------------------------------------------------------- reading by its name


def test_a_dataset_is_read_from_where_it_is_prepared(done, source, monkeypatch):
    data = read_prepared("mnist", done)
    assert_equal(load_dataset("mnist", done), data)
    monkeypatch.setenv("JAXMLP_DATA_DIR", str(done))
    assert_equal(load_dataset("mnist"), data)
    # The publisher's files go first, in their own order.
    assert load_dataset("mnist", source).train.targets.tolist() == PARTS[0].labels.tolist()


def test_the_publisher_s_files_go_before_what_is_prepared_beside_them(folder):
    written(folder)
    assert load_dataset("mnist", folder).source == str(folder)


# -------------------------------------------------------------------------- what is not prepared


def test_a_set_that_is_not_prepared_says_how_to_prepare_it(tmp_path):
    assert not is_prepared("mnist", tmp_path / "missing")
    assert message_of(FileNotFoundError, lambda: read_prepared("mnist", tmp_path)) == (
        f"folder: expected mnist, prepared as array_record, in {tmp_path}, got none: "
        "`jaxmlp data prepare mnist --from DIR` prepares it"
    )


def with_tfrecord(info):
    info["fileFormat"] = "tfrecord"


def without_a_split(info):
    del info["splits"][1]


def with_another_shape(info):
    info["splits"] = 3


@pytest.mark.parametrize("change", [with_tfrecord, without_a_split, with_another_shape])
def test_another_description_is_no_preparation_and_is_not_overwritten(folder, source, change):
    path = folder / "mnist" / "3.0.1" / "dataset_info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))
    assert not is_prepared("mnist", folder)
    assert message_of(FileExistsError, lambda: prepare("mnist", folder, source)) == (
        f"folder: expected mnist in {path.parent} to be whole and array_record, or not there, got "
        "neither: move it away or choose another folder"
    )
    assert path.read_text() == json.dumps(info)


def test_a_missing_record_file_or_a_cut_off_description_is_no_preparation(folder):
    path = records(folder, "test").rename(folder / "away")
    assert not is_prepared("mnist", folder)
    path.rename(records(folder, "test"))
    assert is_prepared("mnist", folder)
    description = folder / "mnist" / "3.0.1" / "dataset_info.json"
    description.write_bytes(description.read_bytes()[:-5])
    assert not is_prepared("mnist", folder)


def test_another_number_of_examples_than_the_set_has_is_refused(done, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "mnist", SMALL._replace(n_train=60_000))
    assert message_of(ValueError, lambda: read_prepared("mnist", done)) == (
        f"{done / 'mnist' / '3.0.1'}: expected 60000 examples for training and 12 for testing, got "
        "40 and 12"
    )


def test_damaged_records_are_named(folder):
    decoded(folder).unlink()
    path = records(folder)
    whole = path.read_bytes()
    place = whole.index(b"IDAT") + 50
    for content in (whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :], whole[:100]):
        path.write_bytes(content)
        text = message_of(ValueError, lambda: read_prepared("mnist", folder))
        assert text.startswith(f"{path.parent}: expected intact records of train, got: ")
        assert not decoded(folder).exists()


# ----------------------------------------------------------------------------------- the arrays


def flipped(content):
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: content[:-1000], flipped],
    ids=["empty", "cut off", "a flipped bit"],
)  # fmt: skip
def test_damaged_arrays_are_made_anew_from_the_records(folder, done, damage):
    whole = decoded(folder).read_bytes()
    decoded(folder).write_bytes(damage(whole))
    assert_equal(read_prepared("mnist", folder), read_prepared("mnist", done))
    with np.load(decoded(folder)) as new, np.load(decoded(done)) as first:
        for name in first.files:
            np.testing.assert_array_equal(new[name], first[name])
    assert not list(decoded(folder).parent.glob("*unfinished*"))


def test_arrays_of_other_records_are_not_used(folder, source, tmp_path, monkeypatch):
    brighter = tuple(Images(part.images | 1, part.labels) for part in PARTS)
    other = SMALL._replace(content=content_hash(*brighter))
    monkeypatch.setitem(PUBLISHED, "mnist", other)
    arrays = tuple(array for part in brighter for array in part)
    prepare("mnist", tmp_path / "other", written(tmp_path / "brighter", arrays))
    shutil.copy(decoded(folder), decoded(tmp_path / "other"))
    data = read_prepared("mnist", tmp_path / "other")
    assert read_rows(data.train) == rows(*brighter[0])


def test_a_folder_that_cannot_be_written_is_read_all_the_same(folder, done, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    decoded(folder).unlink()
    monkeypatch.setattr(np, "savez", full)
    assert_equal(read_prepared("mnist", folder), read_prepared("mnist", done))
    assert not list(decoded(folder).parent.glob("decoded*"))


# ---------------------------------------------------------------------- preparing what is wrong


@pytest.mark.parametrize("call", [prepare, read_prepared, is_prepared])
def test_an_unknown_name_is_answered_with_the_nearest(call, tmp_path):
    assert message_of(ValueError, lambda: call("fashion-mnist", tmp_path)) == (
        "unknown dataset 'fashion-mnist': did you mean 'fashion_mnist'? expected one of mnist, "
        "fashion_mnist, kmnist, emnist"
    )


def test_a_source_that_is_missing_or_not_whole_is_named(source, tmp_path):
    target, missing = tmp_path / "data", tmp_path / "missing"
    assert message_of(FileNotFoundError, lambda: prepare("mnist", target, missing)) == (
        f"source: expected a folder, got {missing}, which does not exist"
    )
    file = source / "t10k-labels-idx1-ubyte.gz"
    assert message_of(NotADirectoryError, lambda: prepare("mnist", target, file)) == (
        f"source: expected a folder, got {file}, which is a file"
    )
    file.unlink()
    assert message_of(FileNotFoundError, lambda: prepare("mnist", target, source)) == (
        "source: expected t10k-labels-idx1-ubyte or t10k-labels.idx1-ubyte, with or without .gz, "
        f"in {source}, got no such file"
    )
    assert not target.exists()


def test_a_damaged_source_file_is_named_and_nothing_is_left(source, tmp_path):
    path = source / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    text = message_of(ValueError, lambda: prepare("mnist", tmp_path / "data", source))
    assert text.startswith(f"{path}: expected a whole gzip stream")
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda a, b, c, d: (a[:39], b[:39], c, d),
            "expected 40 images of shape (28, 28) for training, got 39 of shape (28, 28) in ",
        ),
        (
            lambda a, b, c, d: (a, b, c.repeat(2, 0), d.repeat(2, 0)),
            "expected 12 images of shape (28, 28) for testing, got 24 of shape (28, 28) in ",
        ),
        (
            lambda a, b, c, d: (a[:, 1:], b, c[:, 1:], d),
            "expected 40 images of shape (28, 28) for training, got 40 of shape (27, 28) in ",
        ),
        (
            lambda a, b, c, d: (a, b[::-1], c, d),
            f"expected the published mnist, whose content has the hash {SMALL.content}, got ",
        ),
    ],
    ids=["too few", "too many", "another shape", "labels of other images"],
)
def test_files_that_do_not_hold_the_set_are_refused(tmp_path, change, expected):
    source = written(tmp_path / "source", change(*ARRAYS))
    text = message_of(ValueError, lambda: prepare("mnist", tmp_path / "data", source))
    assert text.startswith(f"source: {expected}") and text.endswith(f" in {source}")
    assert list((tmp_path / "data").iterdir()) == []


def test_another_set_s_files_are_refused_by_their_content(source, tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "kmnist", SMALL._replace(builder="kmnist", content=None))
    assert message_of(ValueError, lambda: prepare("kmnist", tmp_path, source)) == (
        f"source: expected the files of kmnist, got those of mnist in {source}"
    )


def recorded(monkeypatch, name, url, content):
    """Let tensorflow-datasets know a file of one set, by address and checksum."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.checksums import UrlInfo

    info = UrlInfo(
        size=len(content),
        checksum=hashlib.sha256(content).hexdigest(),
        filename=url.rsplit("/")[-1],
    )
    builders: dict[str, Any] = {each: tfds.builder_cls(each) for each in PUBLISHED}
    tables = {each: dict(builder.url_infos) for each, builder in builders.items()}
    tables[name][url] = info
    for each, builder in builders.items():  # all: the others inherit from mnist's
        monkeypatch.setattr(builder, "url_infos", tables[each])
    return builders[name]


def test_another_set_s_files_are_refused_by_their_checksum(source, tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "kmnist", SMALL._replace(builder="kmnist", content=None))
    monkeypatch.setitem(PUBLISHED, "mnist", SMALL._replace(content=None))
    content = (source / "train-labels-idx1-ubyte.gz").read_bytes()
    recorded(monkeypatch, "fashion_mnist", "http://example.org/labels.gz", content)
    assert message_of(ValueError, lambda: prepare("kmnist", tmp_path, source)) == (
        f"source: expected the files of kmnist, got those of fashion_mnist in {source}"
    )


def test_the_published_files_are_known_by_their_checksums(source, tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "mnist", SMALL._replace(content=None))
    for n, path in enumerate(source.iterdir()):
        expected = "the published counts"
        assert prepare("mnist", tmp_path / str(n), source).compared_with == expected
        recorded(monkeypatch, "mnist", f"http://example.org/{path.name}", path.read_bytes())
    expected = "the checksums of the published files"
    assert prepare("mnist", tmp_path / "all", source).compared_with == expected


def test_a_folder_that_cannot_be_made_is_named(source):
    below_a_file = source / "train-labels-idx1-ubyte.gz" / "data"
    text = message_of(NotADirectoryError, lambda: prepare("mnist", below_a_file, source))
    assert text == (
        f"folder: expected a folder that can be written, got {below_a_file}: Not a directory"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(source, tmp_path):
    target = tmp_path / "data"
    target.mkdir(mode=0o500)
    text = message_of(PermissionError, lambda: prepare("mnist", target, source))
    assert text == f"folder: expected a folder that can be written, got {target}: Permission denied"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (RuntimeError, OSError),  # of array_record where the disk is full
        (OSError, OSError),
        (KeyboardInterrupt, KeyboardInterrupt),
    ],
)
def test_a_preparation_that_breaks_off_leaves_nothing(source, tmp_path, monkeypatch, error, shown):
    calls = []

    def broken(image):
        calls.append(image)
        if len(calls) == 45:  # all of the training part is written
            raise error("on the way")
        return encode(image)

    encode = preparation.encode_png
    monkeypatch.setattr(preparation, "encode_png", broken)
    with pytest.raises(shown, match="on the way") as caught:
        prepare("mnist", tmp_path / "data", source)
    expected = f"folder: expected to write mnist to {tmp_path / 'data'}, got: "
    assert shown is KeyboardInterrupt or str(caught.value).startswith(expected)
    assert list((tmp_path / "data").iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setitem(PUBLISHED, "mnist", SMALL)
    assert not prepare("mnist", tmp_path / "data", source).already


def test_what_is_read_back_otherwise_is_not_kept(source, tmp_path, monkeypatch):
    def wrong(*args):
        train, test = decode(*args)
        train.images[7, 14, 14] ^= 1
        return train, test

    decode = prepared.decode_records
    monkeypatch.setattr(preparation, "decode_records", wrong)
    text = message_of(ValueError, lambda: prepare("mnist", tmp_path / "data", source))
    assert text.startswith(f"mnist: expected to read back content {SMALL.content}, got ")
    assert list((tmp_path / "data").iterdir()) == []


def test_of_two_that_prepare_at_once_the_second_finds_it_done(source, done, tmp_path, monkeypatch):
    target = tmp_path / "data"

    def meanwhile(*args):
        shutil.copytree(done, target, dirs_exist_ok=True)
        return decode(*args)

    decode = prepared.decode_records
    monkeypatch.setattr(preparation, "decode_records", meanwhile)
    assert prepare("mnist", target, source) == (
        *("mnist", target / "mnist" / "3.0.1", True, 40, 12, None),
    )
    assert [path.name for path in target.iterdir()] == ["mnist"]


# -------------------------------------------------------------------------------- downloading


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The address of a server of this machine, its folder, and the names that it was asked for."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    asked: set[str] = set()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, format, *args):
            asked.add(self.path.removeprefix("/"))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", folder, asked
        server.shutdown()
        thread.join()


def test_files_are_downloaded_when_asked_for_and_compared(served, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    url, folder, _ = served
    monkeypatch.setitem(PUBLISHED, "mnist", SMALL._replace(content=None))
    for path in written(folder).iterdir():
        recorded(monkeypatch, "mnist", url + path.name, path.read_bytes())
    monkeypatch.setattr(tfds.builder_cls("mnist"), "URL", url)
    result = prepare("mnist", tmp_path / "data")
    assert result.compared_with == "the checksums of the published files"
    assert read_rows(read_prepared("mnist", tmp_path / "data").train) == rows(*PARTS[0])
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"downloads", "mnist"}


def test_a_download_with_another_checksum_is_refused(served, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    url, folder, asked = served
    for path in written(folder).iterdir():
        recorded(monkeypatch, "mnist", url + path.name, path.read_bytes() + b"\0")
    monkeypatch.setattr(tfds.builder_cls("mnist"), "URL", url)
    text = message_of(ConnectionError, lambda: prepare("mnist", tmp_path / "data"))
    assert text.startswith(f"mnist: expected to download {url}train-images-idx3-ubyte.gz, got: ")
    assert "wrong checksum" in text
    assert not is_prepared("mnist", tmp_path / "data")
    # Nothing else is under way, which tensorflow-datasets would try again and again.
    assert {path.name for path in folder.iterdir()} - asked == {f"{f}.gz" for f in IDX_FILES[1:]}


def test_emnist_is_taken_from_its_archive(served, tmp_path, monkeypatch):
    url, folder, _ = served
    entry = PUBLISHED["emnist"]._replace(n_train=40, n_test=12)
    monkeypatch.setitem(PUBLISHED, "emnist", entry)
    arrays = (PARTS[0].images, PARTS[0].labels + 37, *PARTS[1])
    with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
        for path in written(tmp_path / "files", arrays, entry.files).iterdir():
            archive.write(path, f"gzip/{path.name}")
    content = (folder / "gzip.zip").read_bytes()
    builder = recorded(monkeypatch, "emnist", url + "gzip.zip", content)
    monkeypatch.setattr(builder, "URL", url + "gzip.zip")
    result = prepare("emnist", tmp_path / "data")
    assert result.compared_with == "the checksums of the published files"
    assert read_rows(read_prepared("emnist", tmp_path / "data").test) == rows(*PARTS[1])


def assert_no_download(url, tmp_path, monkeypatch, got):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds.builder_cls("mnist"), "URL", url)
    begin = time.perf_counter()
    text = message_of(ConnectionError, lambda: prepare("mnist", tmp_path / "data"))
    assert time.perf_counter() - begin < 5
    assert re.fullmatch(
        rf"mnist: expected to download {url}train-images-idx3-ubyte.gz, got: {got}; from files "
        r"that you have, `jaxmlp data prepare mnist --from DIR` prepares it without a network",
        text,
    )
    assert list((tmp_path / "data").iterdir()) == []


def test_a_publisher_that_cannot_be_reached_is_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        assert_no_download(url, tmp_path, monkeypatch, "ConnectionError")


@pytest.mark.slow  # on the default Python alone
def test_a_publisher_that_never_answers_is_named_within_five_seconds(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        got = "(no answer in 3 seconds|ReadTimeout)"
        assert_no_download(url, tmp_path, monkeypatch, got)


def test_a_file_that_the_publisher_no_longer_has_is_named(served, tmp_path, monkeypatch):
    assert_no_download(served[0], tmp_path, monkeypatch, "404 File not found")


# --------------------------------------------------------------------------------------- MNIST


@pytest.mark.slow
@pytest.mark.skipif(MNIST_DIR is None, reason="JAXMLP_MNIST_DIR names no folder with MNIST's files")
def test_mnist_read_back_is_the_idx_files_as_a_multiset_in_the_official_order(
    tmp_path, monkeypatch
):
    monkeypatch.undo()  # mnist is MNIST
    assert MNIST_DIR is not None
    result = prepare("mnist", tmp_path, MNIST_DIR)
    assert not result.already and (result.n_train, result.n_test) == (60_000, 10_000)
    assert result.compared_with == "the hash of the published content"
    data = read_prepared("mnist", tmp_path)
    assert data.test is not None
    # The official preparation's first labels.
    assert data.train.targets[:10].tolist() == [4, 1, 0, 7, 8, 1, 2, 7, 1, 6]
    for part, examples, n in (("train", data.train, 60_000), ("t10k", data.test, 10_000)):
        images, labels = (
            read_idx(next(Path(MNIST_DIR).glob(f"{part}-{kind}?idx?-ubyte*")))
            for kind in ("images", "labels")
        )
        assert len(examples.targets) == n
        assert read_rows(examples) == rows(images, labels)
    decoded(tmp_path).unlink()
    assert_equal(read_prepared("mnist", tmp_path), data)
