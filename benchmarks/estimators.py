"""The time of `fit` of our estimators beside scikit-learn's own.

    python -m benchmarks.estimators [--data-dir DIR] [--rounds 3]

Every time is of a process of its own, two threads, with the import and the data outside and the
compilation inside: "cold" without a compile cache, "warm" with one on disk that an earlier process
filled, "second fit" after a fit to other data with another learning rate in the same process. Both
take the same settings and the same seeds, so that they draw the same weights and batches, and the
accuracies on a held-out quarter are printed first, over five seeds. MNIST is left out without
--data-dir. Ratios are of the same round; exit status 1 where one is below its bound.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import THREADS, Patience, pin

# A row: its title, the worker's task, whether a cache is warm, and the ratio asked for, or None.
ROWS = [
    ("digits, default settings, cold", "digits", False, 1.1),
    ("the same of unscaled pixels (fewer epochs)", "unscaled", False, None),
    ("digits, default settings, warm cache", "digits", True, 2.2),
    ("digits, second fit in a process", "second", False, 3.5),
    ('the same with our dtype="float32"', "second32", False, None),
    ("MNIST (128,), 20 epochs, float32", "mnist32", False, 1.7),
    ("MNIST (128,), 20 epochs, float64", "mnist64", False, 2.2),
    ("digits, GridSearchCV, 6 settings, 5 folds", "search", False, 2.4),
    ('the same with our dtype="float32"', "search32", False, None),
    ("the same search by our SweepSearchCV", "sweep", False, 3.0),
    ('the same with our dtype="float32"', "sweep32", False, None),
]
SEEDS = 5


def classifier(who: str) -> Any:
    """Return the class of a library."""
    if who == "ours":
        from jaxmlp import MLPClassifier
    else:
        from sklearn.neural_network import MLPClassifier
    return MLPClassifier


def work(who: str, task: str, data_dir: str | None) -> dict[str, Any]:
    """Return the seconds of a task, or the accuracies."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import GridSearchCV, train_test_split

    warnings.simplefilter("ignore")
    Classifier = classifier(who)  # noqa: N806 a class
    x, y = load_digits(return_X_y=True)
    if task != "unscaled":
        x = x / 16  # the pixels are 0 to 16
    if task == "accuracy":
        train_x, test_x, train_y, test_y = train_test_split(x, y, random_state=0)
        models = [Classifier(random_state=seed).fit(train_x, train_y) for seed in range(SEEDS)]
        return {"accuracy": [float(model.score(test_x, test_y)) for model in models]}
    ours: dict[str, Any] = {}
    if who == "ours" and task in ("second32", "search32", "sweep32"):
        ours = {"dtype": "float32"}
    model = Classifier(random_state=0, **ours)
    if task.startswith("second"):
        Classifier(random_state=1, learning_rate_init=0.01, **ours).fit(
            x[::-1][:1500] + 0.1, y[::-1][:1500]
        )
    if task.startswith("mnist"):
        from jaxmlp.data import load_dataset

        train = load_dataset("mnist", data_dir).train
        dtype = np.float32 if task == "mnist32" else np.float64
        x, y = train.inputs.astype(dtype) / 255, train.targets
        model = Classifier((128,), max_iter=20, random_state=0)
    if task.startswith(("search", "sweep")):
        search: Any = GridSearchCV
        if who == "ours" and task.startswith("sweep"):
            from jaxmlp import SweepSearchCV as search  # noqa: N813
        grid = {"alpha": [1e-4, 1e-2, 1.0], "learning_rate_init": [1e-3, 1e-2]}
        model = search(model, grid, cv=5)
    begin = time.perf_counter()
    model.fit(x, y)
    return {"seconds": time.perf_counter() - begin}


def asked(who: str, task: str, data_dir: str | None, cache: str | None = None) -> dict[str, Any]:
    """Return what a process of its own answers."""
    threads = {f"{library}_NUM_THREADS": str(THREADS) for library in ("OMP", "MKL", "OPENBLAS")}
    env = os.environ | threads | {"JAX_PLATFORMS": "cpu"}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    if cache is not None:
        env["JAX_COMPILATION_CACHE_DIR"] = cache
        env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        env["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
    command = [sys.executable, "-m", "benchmarks.estimators", "--worker", who, "--task", task]
    if data_dir is not None:
        command += ["--data-dir", data_dir]
    root = Path(__file__).resolve().parent.parent
    result = subprocess.run(
        command, env=env, cwd=root, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    """Print the accuracies and the table; exit 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description="Time fit against scikit-learn's.")
    parser.add_argument("--data-dir", help="where MNIST is prepared")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", choices=("ours", "scikit-learn"))
    parser.add_argument("--task")
    options = parser.parse_args()
    pin()
    if options.worker:
        print(json.dumps(work(options.worker, options.task, options.data_dir)))
        return
    import jax
    import sklearn

    data_dir = None if options.data_dir is None else os.path.abspath(options.data_dir)
    print(f"scikit-learn {sklearn.__version__}, jax {jax.__version__}, {THREADS} threads")
    for who in ("ours", "scikit-learn"):
        found = asked(who, "accuracy", None)["accuracy"]
        spread = statistics.stdev(found)
        print(f"  digits, test accuracy of {who:<14} {statistics.mean(found):.4f} ± {spread:.4f}")
    print(f"{'seconds of fit, median':<44} {'theirs':>8} {'ours':>8} {'ratio':>7}")
    missed, patience = [], Patience()
    with tempfile.TemporaryDirectory() as cache:
        for title, task, warm, bound in ROWS:
            if task.startswith("mnist") and data_dir is None:
                print(f"  {title:<42} needs --data-dir")
                continue
            if warm:
                asked("ours", task, data_dir, cache)
            times: dict[str, list[float]] = {"scikit-learn": [], "ours": []}
            for _ in range(options.rounds):
                for who, values in times.items():
                    used = cache if warm and who == "ours" else None
                    patience.wait()
                    values.append(asked(who, task, data_dir, used)["seconds"])
            pairs = zip(*times.values(), strict=True)
            ratio = statistics.median(theirs / ours for theirs, ours in pairs)
            theirs, ours = (statistics.median(values) for values in times.values())
            note = ""
            if bound is not None:
                note = f"  at least {bound}"
                if ratio < bound:
                    note += " MISSED"
                    missed.append(title)
            print(f"  {title:<42} {theirs:8.2f} {ours:8.2f} {ratio:7.2f}{note}", flush=True)
    if missed:
        sys.exit(f"missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
