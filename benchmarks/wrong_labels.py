"""Do wrong labels come first by self-influence? The digits, with 5 % of the training labels wrong.

    python -m benchmarks.wrong_labels [FOLDER]

For each of five seeds FOLDER (by default a new one, removed afterwards) takes the data, 0.npz, and
the run, 0/, with its ranking and its picture. Prints the share of the wrong labels that are within
the first tenth of the ranking, which by chance would be a tenth, and beside it that of a ranking by
the final model's loss; exit status 1 below the README's figure.
"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import jaxmlp
from jaxmlp.data import load_dataset

SHARE = 0.05
PROMISED = 0.95
SEEDS = range(5)
TRAIN = "--hidden 32 --activation relu --epochs 10 --keep-epochs 1 --no-pictures --quiet"


def write_data(path: Path, seed: int) -> np.ndarray:
    """Write the digits with wrong labels, and return the numbers of the examples that have one."""
    data = load_dataset("digits")
    assert data.test is not None
    rng = np.random.default_rng(seed)
    labels = data.train.targets.copy()
    wrong = rng.choice(len(labels), round(SHARE * len(labels)), replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, len(wrong))) % 10
    parts = (data.train.inputs, labels), (data.test.inputs, data.test.targets)
    inputs, targets = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    np.savez(
        path,
        inputs=np.round(inputs * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8),
        targets=targets,
        split=np.repeat(["train", "test"], [len(labels), len(data.test.targets)]),
    )
    return wrong


def ranking(run: Path) -> np.ndarray:
    """Return the numbers of the training examples in the order that the command ranked them."""
    with (run / "self-influence.csv").open(newline="") as file:
        return np.array([int(row["example"]) for row in csv.DictReader(file)])


def ranking_by_loss(run: Path, data: Path) -> np.ndarray:
    """Return them by the loss of the final model, the largest first."""
    train = load_dataset(str(data)).train
    network, params, metadata = jaxmlp.load(run)
    outputs = jaxmlp.predictions(network, params, train.inputs, scaling=metadata["scaling"])
    return np.argsort(np.asarray(outputs)[np.arange(len(train.targets)), train.targets])


def found(order: np.ndarray, wrong: np.ndarray) -> float:
    """Return the share of the wrong labels that are within the first tenth of the ranking."""
    return float(np.isin(wrong, order[: len(order) // 10]).mean())


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shares = []
    for seed in SEEDS:
        data, run = folder / f"{seed}.npz", folder / str(seed)
        wrong = write_data(data, seed)
        train = ("train", "--dataset", data, "--output", run, "--seed", seed, *TRAIN.split())
        for command in (train, ("influence", run, "--self-influence")):
            arguments = [sys.executable, "-m", "jaxmlp", *map(str, command)]
            subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
        shares.append(found(ranking(run), wrong))
        peer = found(ranking_by_loss(run, data), wrong)
        print(
            f"seed {seed}: {shares[-1]:.1%} of {len(wrong)} wrong labels in the first tenth by "
            f"self-influence, {peer:.1%} by the final model's loss, 10 % by chance",
            flush=True,
        )
    sys.exit(min(shares) < PROMISED)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
