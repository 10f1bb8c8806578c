"""The suite `startup`: a whole process of `jaxmlp train`, and compiling a training step."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import Patience
from benchmarks.problems import Case
from benchmarks.processes import ROOT, environment
from benchmarks.rows import Row, measured
from benchmarks.training import IDENTICAL, OURS, OURS_TOO, Show, Worked

WARM, COLD = "≤ 1.8", "≤ 2.8"


def process_seconds(cache: Path, output: Path, device: str) -> float:
    """Return the seconds of `jaxmlp train` on digits, from process start to its saved model."""
    command = [
        sys.executable, "-m", "jaxmlp", "train", "--dataset", "digits", "--no-pictures", "--quiet",
        "--output", str(output), "--compile-cache", str(cache),
    ]  # fmt: skip
    begin = time.perf_counter()
    subprocess.run(
        command, check=True, cwd=ROOT, env=environment(device), stdout=subprocess.DEVNULL
    )
    assert (output / "model.safetensors").exists()
    return time.perf_counter() - begin


def run(device: str, quick: bool, show: Show) -> list[Row]:
    """Return the times of the process with and without a compile cache, and of compiling."""
    rounds = 1 if quick else 5
    times: dict[str, list[float]] = {"cold": [], "warm": []}
    patience = Patience(device, quick)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(rounds):
            cache = folder / f"cache-{number}"
            for state in times:  # the cold one fills the cache of the warm one
                patience.wait()
                seconds = process_seconds(cache, folder / f"{state}-{number}", device)
                times[state].append(seconds)
    result = [
        Row("startup", "digits", f"jaxmlp train, {state} compile cache", OURS, "s",
            bound="" if quick else {"cold": COLD, "warm": WARM}[state], **measured(values))
        for state, values in times.items()
    ]  # fmt: skip
    show(result)
    case = Case((784, 128, 10), 128, 3, n_examples=3 * 128)  # what is compiled is the same
    compiling: dict[str, list[float]] = {}
    for _ in range(1 if quick else 4):
        for who in (IDENTICAL, OURS_TOO, OURS):
            worked = Worked(device, [who])
            try:
                patience.wait()
                with tempfile.TemporaryDirectory() as name:
                    failed = worked.build(case, Path(name))
                if who not in failed:
                    seconds = worked.compiling[who]
                    assert seconds is not None
                    compiling.setdefault(who, []).append(seconds)
            finally:
                worked.end()
    new = [
        Row("startup", case.name, "compiling the training steps, cold", who, "s",
            versions="", **measured(values))
        for who, values in compiling.items()
    ]  # fmt: skip
    medians = {row.who: row.median for row in new}
    theirs, ours = medians.get(IDENTICAL), medians.get(OURS_TOO)
    if theirs and ours:
        of = "compiling our step, of the time of jax.grad's in the same scan"
        bound = "" if quick else "≤ 1.0"
        new.append(Row("startup", case.name, of, OURS_TOO, "×", ours / theirs, bound=bound))
    show(new)
    return result + new
