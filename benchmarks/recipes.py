"""The README's recipes for MNIST: accuracy over five seeds, and time from process start to exit.

    python -m benchmarks.recipes fast --data-dir DIR
    python -m benchmarks.recipes accurate --data-dir DIR

DIR is what `jaxmlp data prepare mnist` prepared, or a folder with the four idx files. Every seed is
a process of its own. Exit status 1 where a stated accuracy or time is missed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple


class Recipe(NamedTuple):
    """The options of `jaxmlp train`, and what they promise: mean accuracy and seconds a process."""

    options: str
    accuracy: float
    seconds: float


RECIPES = {
    "fast": Recipe(
        "--hidden 256 --activation relu --batch-size 256 --epochs 5 --learning-rate 0.01 "
        "--schedule one_cycle --label-smoothing 0.1",
        accuracy=0.98,
        seconds=4.0,
    ),
    "accurate": Recipe(
        "--hidden 1024 512 --activation gelu --batch-size 256 --epochs 40 --learning-rate 0.0015 "
        "--schedule one_cycle --dropout 0.5 --input-dropout 0.25 --max-norm 2",
        accuracy=0.987,
        seconds=300.0,
    ),
}


def run(recipe: Recipe, data_dir: str, seed: int, folder: Path) -> tuple[float, float]:
    """Return the test accuracy of one seed, and the seconds of its process."""
    output = folder / f"seed-{seed}-{time.time_ns()}"
    command = [
        sys.executable, "-m", "jaxmlp", "train", "--dataset", "mnist", "--data-dir", data_dir,
        *recipe.options.split(), "--seed", str(seed), "--no-pictures", "--quiet",
        "--output", str(output), "--compile-cache", str(folder / "cache"),
    ]  # fmt: skip
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    last = (output / "metrics.jsonl").read_text().splitlines()[-1]
    return json.loads(last)["test_accuracy"], seconds


def main() -> None:
    """Run one recipe for several seeds, and judge it."""
    parser = argparse.ArgumentParser(description="Run a recipe of the README and judge it.")
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    recipe = RECIPES[options.recipe]
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.recipe == "fast":
            accuracy, seconds = run(recipe, options.data_dir, 0, folder)
            print(f"cold compile cache: {accuracy:.4f} in {seconds:.2f} s", flush=True)
        for seed in range(options.seeds):
            accuracy, seconds = run(recipe, options.data_dir, seed, folder)
            results.append((accuracy, seconds))
            print(f"seed {seed}: {accuracy:.4f} in {seconds:.2f} s", flush=True)
    accuracies, times = zip(*results, strict=True)
    mean, median = statistics.mean(accuracies), statistics.median(times)
    deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    print(f"{options.recipe}: {mean:.4f} ± {deviation:.4f}, median {median:.2f} s")
    if mean < recipe.accuracy or median > recipe.seconds:
        sys.exit(f"missed: at least {recipe.accuracy} in at most {recipe.seconds} s")


if __name__ == "__main__":
    main()
