"""Our per-example quantities beside Opacus, BackPACK, jax_privacy and vmap(grad), on the CPU.

    python -m benchmarks.peers [--python PYTHON] [--jax-privacy-python PYTHON] [--rounds 15]

784-128-10 with sigmoid units, 1024 examples, float32, two threads. PYTHON is one that has torch,
Opacus and BackPACK (or jax_privacy); without it they are looked for in this one, and a peer that is
not installed is a row that says so. Every peer is a process of its own (`benchmarks.peer_workers`)
with the same data and parameters. First their values are compared with ours, in their scaling; then
they take turns, one quantity at a time, while the others wait. A row's times are over the rounds,
a ratio is theirs over ours in the same round.

A private step is the clipped sum, Gaussian noise and the update, of a batch that is given: no
sampling. BackPACK's times are of its forward and backward pass, which yield the gradient as well;
ours are given without the gradient and with it. "Microbatches" is the peer's best microbatch size
of three tried. Of KFAC's factors with sampled targets only A can be compared; the exact G is
compared with BackPACK's KFLR instead, untimed.

Exit status 1 where values differ or a ratio misses its bound.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

THREADS = 2
CLIP, NOISE, RATE = 1.0, 1.0, 0.1
SECONDS = 0.1  # of calls of one quantity in one round, of one call at least
PEERS = ("ours", "vmap(grad)", "jax_privacy", "Opacus", "BackPACK")
SIZES, EXAMPLES = (784, 128, 10), 1024
# Of max|d| over max|ours|. Opacus divides by ‖g‖ + 1e-6.
EQUAL = 1e-4
# Our quantity, the peer, its quantity, and how many times as fast ours is to be, if that is asked.
RATIOS = [
    ("private step", "Opacus", "private step", 1.5),
    ("private step", "vmap(grad)", "private step", 50.0),
    ("private step", "vmap(grad)", "private step, microbatches", None),
    ("private step", "jax_privacy", "private step", 50.0),
    ("private step", "jax_privacy", "private step, microbatches", None),
    ("plain step", "Opacus", "plain step", None),
    ("norms", "BackPACK", "norms", 1.0),
    ("variance", "BackPACK", "variance", 1.0),
    ("KFAC factors", "BackPACK", "KFAC factors", 1.0),
    ("Gauss–Newton diagonal", "BackPACK", "Gauss–Newton diagonal", 1.0),
    ("norms and gradient", "BackPACK", "norms", None),
    ("variance and gradient", "BackPACK", "variance", None),
    ("KFAC factors and gradient", "BackPACK", "KFAC factors", None),
    ("Gauss–Newton diagonal and gradient", "BackPACK", "Gauss–Newton diagonal", None),
]
PRIVATE_OVER_PLAIN = 1.25


class Offer(NamedTuple):
    """What a peer computes: values to be compared, and calls to be timed, blocked."""

    values: dict[str, np.ndarray]
    calls: dict[str, Callable[[], Any]]
    packages: tuple[str, ...]


def seconds(call: Callable[[], Any]) -> float:
    """Return the median time of the calls of a round, after one that is not timed."""
    call()
    times: list[float] = []
    while not times or sum(times) < SECONDS:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def serve(worker: Callable[[Any], Offer], name: str, folder: Path) -> None:
    """Write a peer's values, say what it can time, and time what is asked for, until input ends."""
    warnings.filterwarnings("ignore")
    if hasattr(os, "sched_setaffinity"):  # XLA makes a thread for each core it may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    answers, sys.stdout = sys.stdout, sys.stderr
    with np.load(folder / "problem.npz") as archive:
        problem = dict(archive)
    try:
        offer = worker(problem)
    except ModuleNotFoundError as error:
        print(json.dumps({"missing": error.name}), file=answers, flush=True)
        return
    np.savez(folder / f"{name}.npz", allow_pickle=False, **offer.values)  # pyright: ignore
    for call in offer.calls.values():
        call()
    versions = [f"{package} {importlib.metadata.version(package)}" for package in offer.packages]
    print(json.dumps({"versions": versions, "calls": list(offer.calls)}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(seconds(offer.calls[line.strip()])), file=answers, flush=True)


class Peer:
    """One worker process, asked for a round at a time."""

    def __init__(self, name: str, python: str, folder: Path):
        self.name = name
        threads = {f"{library}_NUM_THREADS": str(THREADS) for library in ("OMP", "MKL", "OPENBLAS")}
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.peer_workers", name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parent.parent,
            env=os.environ | threads | {"JAX_PLATFORMS": "cpu"},
        )
        self.offer = self._answer()
        self.missing: str | None = self.offer.get("missing")
        self.values: dict[str, np.ndarray] = {}
        if self.missing is None:
            with np.load(folder / f"{name}.npz") as archive:
                self.values = dict(archive)

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name}: its process ended with status {self.process.wait()}")
        return json.loads(line)

    def seconds(self, quantity: str) -> float:
        """Return the time of one round of a quantity."""
        assert self.process.stdin is not None
        print(quantity, file=self.process.stdin, flush=True)
        return self._answer()

    def end(self) -> None:
        """Close its input, upon which it ends."""
        self.process.communicate(timeout=60)


def write_problem(folder: Path) -> None:
    """Write the data and the parameters that all peers start from."""
    rng = np.random.default_rng(0)
    inputs, hidden, outputs = SIZES
    shapes = {"w0": (hidden, inputs), "b0": (hidden,), "w1": (outputs, hidden), "b1": (outputs,)}
    arrays = {
        name: rng.normal(size=shape) * (shape[-1] ** -0.5 if name[0] == "w" else 0.1)
        for name, shape in shapes.items()
    }
    arrays["x"] = rng.normal(size=(EXAMPLES, inputs))
    single = {name: array.astype(np.float32) for name, array in arrays.items()}
    classes = rng.integers(outputs, size=EXAMPLES).astype(np.int32)
    np.savez(folder / "problem.npz", allow_pickle=False, t=classes, **single)  # pyright: ignore


def differences(ours: dict[str, np.ndarray], peer: Peer) -> list[str]:
    """Print how far a peer's values are from ours; return what is too far, and what is unchecked.

    Where there is noise, its standard deviation is compared with RATE · NOISE · CLIP / N instead.
    """
    wrong = []
    for name, theirs in peer.values.items():
        if name.endswith(", noise"):
            noise = theirs - peer.values[name.removesuffix(", noise")]
            expected = RATE * NOISE * CLIP / EXAMPLES
            difference, bound = abs(float(np.std(noise)) / expected - 1), 0.02
        else:
            mine = ours[name.removesuffix(", microbatches")]
            difference = float(np.max(np.abs(mine - theirs)) / np.max(np.abs(mine)))
            bound = EQUAL
            if mine is theirs:
                continue
        verdict = "" if difference <= bound else "  DIFFERENT"
        print(f"  {peer.name:<12} {name:<36} {difference:8.1e}{verdict}")
        if verdict:
            wrong.append(f"{peer.name}'s {name}")
    return wrong


def spread(values: list[float]) -> tuple[float, float, float]:
    """Return the median and the 20th and 80th percentile."""
    low, high = np.percentile(values, [20, 80])
    return statistics.median(values), float(low), float(high)


def main() -> None:
    """Compare, time, and print both tables; exit 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description="Time our quantities against their peers'.")
    parser.add_argument("--python", default=sys.executable, help="with torch, Opacus, BackPACK")
    parser.add_argument("--jax-privacy-python", default=sys.executable, help="with jax_privacy")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    for option in ("python", "jax_privacy_python"):
        found = shutil.which(getattr(options, option))
        if found is None:
            parser.error(f"{option}: expected a Python, got {getattr(options, option)}")
        setattr(options, option, os.path.abspath(found))
    pythons = {
        "Opacus": options.python,
        "BackPACK": options.python,
        "jax_privacy": options.jax_privacy_python,
    }
    failed: list[str] = []
    times: dict[tuple[str, str], list[float]] = {}
    peers: dict[str, Peer] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_problem(folder)
        try:
            for worker in PEERS:
                peers[worker] = Peer(worker, pythons.get(worker, sys.executable), folder)
            present = [peer for peer in peers.values() if peer.missing is None]
            shape = "-".join(map(str, SIZES))
            versions = sorted({version for peer in present for version in peer.offer["versions"]})
            print(f"{shape} sigmoid, {EXAMPLES} examples, float32, {THREADS} threads")
            print(f"{', '.join(versions)}; {options.rounds} rounds")
            print("differences, of the largest entry; of noise, of its standard deviation")
            ours = peers["ours"].values
            for peer in present:
                failed += differences(ours, peer)
            if failed:
                sys.exit(f"different: {', '.join(failed)}")
            for _ in range(options.rounds):
                # A quantity's peers follow each other, so that they share the machine's state.
                for quantity in dict.fromkeys(q for p in present for q in p.offer["calls"]):
                    for peer in present:
                        if quantity in peer.offer["calls"]:
                            time.sleep(0.02)  # the last one's threads may still spin
                            key = (peer.name, quantity)
                            times.setdefault(key, []).append(peer.seconds(quantity))
        finally:
            for peer in peers.values():
                peer.end()
    print(f"{'milliseconds':<50} {'median':>8} {'20 %':>8} {'80 %':>8}")
    for (who, quantity), values in times.items():
        print(f"  {who:<12} {quantity:<35}", *(f"{1e3 * s:8.2f}" for s in spread(values)))
    print(f"{'how many times as fast as its peer is ours':<83} median   20 %   80 %")
    for mine, who, theirs, bound in RATIOS:
        title = f"  {mine:<35} {who}'s {theirs}"
        if peers[who].missing is not None:
            print(f"{title:<82} not installed ({peers[who].missing})")
            continue
        pairs = zip(times[who, theirs], times["ours", mine], strict=True)
        ratio = spread([a / b for a, b in pairs])
        verdict = "" if bound is None else f"  at least {bound:g}"
        if bound is not None and ratio[0] < bound:
            failed.append(f"{mine} against {who}")
            verdict += " MISSED"
        print(f"{title:<82}", *(f"{value:6.2f}" for value in ratio), verdict)
    pairs = zip(times["ours", "private step"], times["ours", "plain step"], strict=True)
    ratio = spread([a / b for a, b in pairs])
    verdict = f"  at most {PRIVATE_OVER_PLAIN}"
    if ratio[0] > PRIVATE_OVER_PLAIN:
        failed.append("private step over plain step")
        verdict += " MISSED"
    print(f"{'  our private step, of our plain step':<82}", *(f"{v:6.2f}" for v in ratio), verdict)
    if failed:
        sys.exit(f"missed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
