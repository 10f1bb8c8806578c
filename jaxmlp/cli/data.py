"""`jaxmlp data`: the data sets, listed and prepared."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxmlp.cli.console import bad_input, fail
from jaxmlp.data import DATASETS
from jaxmlp.data.preparation import prepare
from jaxmlp.data.prepared import PUBLISHED, default_folder, find_prepared
from jaxmlp.progress import say
from jaxmlp.validation import check_name


@dataclasses.dataclass
class List:
    """List the data sets, and where each of them is."""

    data_dir: Path | None = None
    """Where it is: by default $JAXMLP_DATA_DIR, $TFDS_DATA_DIR or ~/tensorflow_datasets."""


@dataclasses.dataclass
class Prepare:
    """Prepare a data set for tensorflow-datasets, without TensorFlow."""

    name: tyro.conf.Positional[str]
    """mnist, fashion_mnist, kmnist or emnist (its part "balanced")."""
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """A folder with the publisher's four idx files, gzipped or not."""
    download: bool = False
    """Download them instead, by tensorflow-datasets, and compare their checksums."""
    data_dir: Path | None = None
    """Where to prepare it: by default $JAXMLP_DATA_DIR, $TFDS_DATA_DIR or ~/tensorflow_datasets."""


@dataclasses.dataclass
class Data:
    """The data sets: list them, or prepare one."""

    action: (
        Annotated[List, tyro.conf.subcommand("list")]
        | Annotated[Prepare, tyro.conf.subcommand("prepare")]
    )


def list_data(options: List) -> None:
    """Print where each data set is."""
    folder = options.data_dir or default_folder()
    if options.data_dir is not None and not folder.is_dir():
        fail(f"data_dir: expected a folder, got {folder}, which is none", 2)
    width = max(map(len, DATASETS))
    for name in DATASETS:
        if name not in PUBLISHED:
            where = "ships with scikit-learn"
        elif found := find_prepared(name, folder):
            where = f"prepared in {found.folder}"
        else:
            where = f"not prepared in {folder}"
        say(f"{name:<{width}}  {where}")


def prepare_data(options: Prepare) -> None:
    """Prepare a data set."""
    if (options.source is None) is not options.download:
        fail(
            f"from: expected a folder with the files of {options.name} (--from DIR), or --download "
            f"to fetch them, got {'both' if options.download else 'neither'}",
            2,
        )
    with bad_input():
        check_name("dataset", options.name, PUBLISHED)
        try:
            done = prepare(options.name, options.data_dir, options.source)
        except ConnectionError as error:
            fail(error, 1)
    counts = f"{done.n_train:,} training and {done.n_test:,} test examples in {done.folder}"
    if done.already:
        say(f"{done.name} was prepared already: {counts}")
    else:
        say(f"{done.name} is prepared, checked by {done.compared_with}: {counts}")
