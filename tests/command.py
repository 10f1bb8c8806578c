"""What the tests of the command share: small files of data, runs trained on them, processes."""

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from files import idx

TINY = ("--hidden", "4", "--batch-size", "16", "--epochs", "2", "--no-pictures")
ANIMALS = ("cat", "dog", "owl")
FEATURES = ("height", "weight", "tail")
TIMES = ("seconds", "examples_per_second", "compile_seconds")


def write_csv(path, header, *columns):
    """A table of these columns; every number as Python writes it."""
    rows = zip(*(np.asarray(column).tolist() for column in columns), strict=True)
    lines = [",".join(map(str, row)) for row in (header, *rows)]
    path.write_text("\n".join(lines) + "\n")


def animals(n=60, seed=0):
    """Inputs (n, 3) in units of their own, and the names of three kinds that they tell apart."""
    rng = np.random.default_rng(seed)
    kinds = rng.permutation(np.arange(n) % 3)
    centres = np.array([[30, 4, 25], [60, 20, 30], [25, 1, 8]])
    inputs = centres[kinds] + rng.normal(size=(n, 3)) * [3, 1, 2]
    return inputs, np.array(ANIMALS)[kinds]


def write_data(folder):
    """animals.csv, animals-test.csv (its columns in another order), images.npz, houses.csv."""
    inputs, names = animals()
    write_csv(folder / "animals.csv", (*FEATURES, "animal"), *inputs.T, names)
    inputs, names = animals(30, seed=1)
    header = ("tail", "height", "weight", "animal")
    write_csv(folder / "animals-test.csv", header, *inputs.T[[2, 0, 1]], names)
    rng = np.random.default_rng(2)
    labels = rng.permutation(np.arange(60) % 3)
    images = rng.integers(60, size=(60, 4, 5), dtype=np.uint8)
    images[np.arange(60), 0, labels] = 255
    np.savez(folder / "images.npz", inputs=images, targets=labels)
    area, rooms = rng.uniform(30, 200, 60), rng.integers(1, 7, 60)
    header = ("area", "rooms", "price")
    write_csv(folder / "houses.csv", header, area, rooms, area / 50 + rooms + 0.5)


def write_idx(path, array):
    """The array as an idx file of unsigned bytes; gzipped where its name says so."""
    content = idx(array.astype(np.uint8))
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder):
    """Four small idx files: three classes that a pixel each tells apart."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, n in (("train", 96), ("t10k", 30)):
        labels = rng.integers(3, size=n)
        images = rng.integers(60, size=(n, 4, 5))
        images[np.arange(n), 0, labels] = 255
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels)


class Result(NamedTuple):
    """How a process ended."""

    status: int
    output: str
    errors: str


def start(*arguments, **options):
    """Start `python -m jaxmlp` with these arguments in the working directory."""
    return subprocess.Popen(
        [sys.executable, "-m", "jaxmlp", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def ended(process, seconds=120):
    """The result of a started process."""
    output, errors = process.communicate(timeout=seconds)
    return Result(process.returncode, output, errors)


def tree(folder):
    """Every path below a folder, and of each file its content's hash."""
    return {
        path.relative_to(folder).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        )
        for path in sorted(Path(folder).rglob("*"))
    }


def records(run):
    """The records of a run's epochs, without what a clock says."""
    lines = Path(run, "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def same_model(one, other):
    """Whether two runs have the same parameters, bit by bit."""
    return (Path(one, "model.safetensors").read_bytes()) == (
        Path(other, "model.safetensors").read_bytes()
    )
