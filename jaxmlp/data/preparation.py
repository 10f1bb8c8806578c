"""Preparing datasets for tensorflow-datasets, without TensorFlow.

The preparation that tensorflow-datasets has for the MNIST family calls TensorFlow to unzip, to read
and to write PNG. Here its own builder is given images that are PNG files already, and writes them
as array_record in its own order. The result is a set like any other of tensorflow-datasets:

    tfds.data_source(name, data_dir=folder, builder_kwargs={"file_format": "array_record"})
"""

import contextlib
import hashlib
import io
import os
import queue
import sys
import tempfile
import threading
import urllib.parse
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmlp.data.examples import Images
from jaxmlp.data.files import find_idx_files, read_idx_images
from jaxmlp.data.png import encode_png
from jaxmlp.data.prepared import (
    PUBLISHED,
    Prepared,
    content_hash,
    decode_records,
    default_folder,
    find_prepared,
    is_prepared,
    read_prepared,
    write_decoded,
)

__all__ = ["PUBLISHED", "Preparation", "default_folder", "is_prepared", "prepare", "read_prepared"]

_PROBE_SECONDS = 3.0


class Preparation(NamedTuple):
    """What `prepare` did, or found done.

    Attributes:
        name: The set.
        folder: Where its records are.
        already: Whether it was prepared before, so that nothing was done.
        n_train: The number of examples for training.
        n_test: The number of examples for testing.
        compared_with: What the source was compared with; None where nothing was done.
    """

    name: str
    folder: Path
    already: bool
    n_train: int
    n_test: int
    compared_with: str | None


def prepare(
    name: str,
    folder: str | os.PathLike[str] | None = None,
    source: str | os.PathLike[str] | None = None,
) -> Preparation:
    """Prepare a set for tensorflow-datasets as array_record, without TensorFlow.

    Where it is prepared already, nothing is done. Otherwise it is written to a folder of its own
    and read back. Only where the counts and the hash of the decoded images and labels are the
    source's does it go, in one move, to its place: a preparation that breaks off or goes wrong
    leaves nothing that looks prepared.

    "mnist" is the published one or refused: the hash of its content is known. Of "fashion_mnist"
    and "kmnist" the checksums of the published gzipped files are known. Others, such as files that
    were unzipped, are taken where shape and counts are right, unless they are another set's. The
    images of "emnist", which is its part "balanced", lie on their side, rows for columns, as
    published; tensorflow-datasets keeps them so, and so do we.

    Args:
        name: One of `PUBLISHED`.
        folder: The data_dir of tensorflow-datasets, made where it is missing; `default_folder()` by
            default.
        source: A folder with the publisher's four idx files, gzipped or not. None asks for a
            download by tensorflow-datasets into `folder/downloads`, from its addresses and compared
            with its checksums.

    Returns:
        What was done.

    Raises:
        ConnectionError: A download was asked for and fails. That the publisher cannot be reached is
            said within five seconds.
        FileExistsError: Something that is no readable preparation stands in the set's place.
        FileNotFoundError: `source` or a file in it is missing.
        OSError: `folder` cannot be written, or a file cannot be read.
        ValueError: An unknown name (with the nearest one), or files that are damaged or do not hold
            the set.
    """
    root = default_folder() if folder is None else Path(folder).expanduser()
    if found := find_prepared(name, root):
        return _done(name, found, None)
    published = PUBLISHED[name]
    paths = None
    if source is not None:  # the files are looked for before anything slow
        paths = find_idx_files(Path(source).expanduser(), "source", published.files)

    import tensorflow_datasets as tfds

    official: Any = tfds.builder_cls(published.builder.split("/")[0])
    target = root / published.builder / str(official.VERSION)
    if target.exists():
        raise FileExistsError(
            f"folder: expected {name} in {target} to be whole and array_record, or not there, got "
            "neither: move it away or choose another folder"
        )
    with _staging(root) as staging, _progress_on_terminals_only():
        if paths is None:
            paths = _download(name, official, root / "downloads", staging)
        parts = read_idx_images(paths, published.n_classes)
        compared_with = _check_source(name, paths, parts, downloaded=source is None)
        with _writing(name, root):
            prepared = _write(name, official, staging, parts)
        decoded = decode_records(name, prepared)
        if (got := content_hash(*decoded)) != (expected := content_hash(*parts)):
            raise ValueError(f"{name}: expected to read back content {expected}, got {got}")
        with _writing(name, root):
            write_decoded(prepared, decoded)
            target.parent.mkdir(parents=True, exist_ok=True)
        try:
            prepared.folder.rename(target)
        except OSError:
            if found := find_prepared(name, root):  # another process was faster
                return _done(name, found, None)
            raise
    return _done(name, prepared._replace(folder=target), compared_with)


def _done(name: str, prepared: Prepared, compared_with: str | None) -> Preparation:
    counts = prepared.counts["train"], prepared.counts["test"]
    return Preparation(name, prepared.folder, compared_with is None, *counts, compared_with)


@contextlib.contextmanager
def _staging(root: Path) -> Iterator[Path]:
    """Give a folder inside `root`, which is made, and remove it with all that is left in it."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        staging = tempfile.TemporaryDirectory(prefix=".preparing-", dir=root)
    except OSError as error:
        raise type(error)(
            f"folder: expected a folder that can be written, got {root}: {error.strerror}"
        ) from error
    with staging as path:
        yield Path(path)


@contextlib.contextmanager
def _writing(name: str, root: Path) -> Iterator[None]:
    """Say what could not be written where; a full disk is a RuntimeError of array_record's."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().split("\n")[0]
        raise OSError(f"folder: expected to write {name} to {root}, got: {reason}") from error


@contextlib.contextmanager
def _progress_on_terminals_only() -> Iterator[None]:
    """Keep tensorflow-datasets from writing, except for progress bars on a terminal."""
    from tensorflow_datasets.core.utils import tqdm_utils

    before = tqdm_utils._active  # there is a public way to set it, and none to restore it
    tqdm_utils.display_progress_bar(before and sys.stderr.isatty())
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tqdm_utils.display_progress_bar(before)


# --------------------------------------------------------------------------------- the source


def _check_source(
    name: str, paths: Sequence[Path], parts: tuple[Images, Images], downloaded: bool
) -> str:
    """Raise ValueError unless the files hold the set; return what they were compared with."""
    import tensorflow_datasets as tfds

    published, folder = PUBLISHED[name], paths[0].parent
    checksums = {path: _sha256(path) for path in paths}
    content = content_hash(*parts)
    recorded = {}
    for other, its in PUBLISHED.items():
        infos: Any = tfds.builder_cls(its.builder.split("/")[0]).url_infos  # pyright: ignore
        recorded[other] = {info.checksum for info in infos.values()}
    for other, its in PUBLISHED.items():
        theirs = [path.name for path in paths if checksums[path] in recorded[other]]
        if other != name and (theirs or its.content == content):
            raise ValueError(
                f"source: expected the files of {name}, got those of {other} in {folder}"
            )
    for part, n, purpose in zip(
        parts, (published.n_train, published.n_test), ("training", "testing"), strict=True
    ):
        if part.images.shape != (n, *published.image_shape):
            raise ValueError(
                f"source: expected {n} images of shape {published.image_shape} for {purpose}, got "
                f"{len(part.images)} of shape {part.images.shape[1:]} in {folder}"
            )
    if published.content is not None:
        if content != published.content:
            raise ValueError(
                f"source: expected the published {name}, whose content has the hash "
                f"{published.content}, got {content} in {folder}"
            )
        return "the hash of the published content"
    if downloaded or set(checksums.values()) <= recorded[name]:
        return "the checksums of the published files"
    return "the published counts"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(name: str, official: Any, downloads: Path, unpacked: Path) -> list[Path]:
    """Return the set's files, downloaded and compared with the checksums of the publisher."""
    import tensorflow_datasets as tfds

    files = [f"{file}.gz" for file in PUBLISHED[name].files]
    archive = official.URL.endswith(".zip")  # one archive with the files of all configurations
    urls = [official.URL] if archive else [urllib.parse.urljoin(official.URL, f) for f in files]
    _probe(name, urls[0])
    manager = tfds.download.DownloadManager(
        download_dir=downloads,
        url_infos=official.url_infos,
        dataset_name=name,
        force_checksums_validation=True,
    )
    try:
        # One after the other: where one fails, those under way would be tried again for minutes by
        # threads that the end of the process waits for.
        paths: list[Path] = [Path(manager.download(url)) for url in urls]
    except Exception as error:  # of requests, urllib3 and tensorflow-datasets
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ConnectionError(f"{name}: expected to download {urls[0]}, got: {reason}") from error
    if not archive:
        return paths
    with zipfile.ZipFile(paths[0]) as file:
        return [Path(file.extract(f"gzip/{member}", unpacked)) for member in files]


def _probe(name: str, url: str) -> None:
    """Raise ConnectionError unless an address answers at once."""
    # tensorflow-datasets tries for minutes, and looking up a host's name knows no time limit: so it
    # is a thread that asks, and is left behind where it gets no answer.
    import requests

    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            with requests.get(url, stream=True, timeout=_PROBE_SECONDS) as response:
                ok = response.status_code < 400
                answers.put(None if ok else f"{response.status_code} {response.reason}")
        except Exception as error:
            answers.put(type(error).__name__)

    threading.Thread(target=ask, daemon=True).start()
    try:
        problem = answers.get(timeout=_PROBE_SECONDS)
    except queue.Empty:
        problem = f"no answer in {_PROBE_SECONDS:g} seconds"
    if problem:
        raise ConnectionError(
            f"{name}: expected to download {url}, got: {problem}; from files that you have, "
            f"`jaxmlp data prepare {name} --from DIR` prepares it without a network"
        )


# ------------------------------------------------------------------------------- the records


def _write(name: str, official: Any, folder: Path, parts: tuple[Images, Images]) -> Prepared:
    """Let the set's own builder write given images into a folder."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.registered import skip_registration

    with skip_registration():

        class Builder(official):
            """The official builder, fed with images that are PNG files already."""

            __module__ = official.__module__  # dataset_info.json tells it
            name = official.name

            def _split_generators(self, dl_manager: Any) -> Any:
                return {
                    split: self._generate_examples(part)
                    for split, part in zip(("train", "test"), parts, strict=True)
                }

            def _generate_examples(self, part: Images) -> Any:
                for index, (image, label) in enumerate(zip(*part, strict=True)):
                    yield index, {"image": encode_png(image), "label": int(label)}

    _, _, config = PUBLISHED[name].builder.partition("/")
    builder: Any = Builder(data_dir=folder, config=config or None, file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    prepared = find_prepared(name, folder)
    if prepared is None:
        raise ValueError(f"{name}: expected all its records in {folder}, got some or none")
    return prepared
