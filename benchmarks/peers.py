"""Our per-example quantities beside Opacus, BackPACK, jax_privacy and vmap(grad), on the CPU.

784-128-10 with sigmoid units, 1024 examples, float32, two threads. Every peer is a process of its
own (`benchmarks.peer_workers`) with the same data and parameters. First their values are compared
with ours, in their scaling; then they take turns, one quantity at a time, while the others wait. A
ratio is theirs over ours in the same round.

A private step is the clipped sum, Gaussian noise and the update, of a batch that is given: no
sampling. BackPACK's times are of its forward and backward pass, which yield the gradient as well;
ours are given without the gradient and with it. "Microbatches" is the peer's best microbatch size
of three tried. Of KFAC's factors with sampled targets only A can be compared; the exact G is
compared with BackPACK's KFLR instead, untimed.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.processes import Unanswered, Worker
from benchmarks.rows import Row, measured

CLIP, NOISE, RATE = 1.0, 1.0, 0.1
SECONDS = 0.1  # of calls of one quantity in one round
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
    ("norms and gradient", "BackPACK", "norms", 1.0),
    ("variance and gradient", "BackPACK", "variance", 1.0),
    ("KFAC factors and gradient", "BackPACK", "KFAC factors", 1.0),
    ("Gauss–Newton diagonal and gradient", "BackPACK", "Gauss–Newton diagonal", None),
]
PRIVATE_OVER_PLAIN = 1.25


class Offer(NamedTuple):
    """What a peer computes: values to be compared, and calls to be timed, blocked."""

    values: dict[str, np.ndarray]
    calls: dict[str, Callable[[], Any]]
    packages: tuple[str, ...]


def seconds(call: Callable[[], Any], least: float) -> float:
    """Return the median time of calls of so many seconds, one at least, after one not timed."""
    call()
    times: list[float] = []
    while not times or sum(times) < least:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


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


def differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> list[str]:
    """Return which of a peer's values are too far from ours, and how far.

    Where there is noise, its standard deviation is compared with RATE · NOISE · CLIP / N instead.
    """
    wrong = []
    for name, values in theirs.items():
        if name.endswith(", noise"):
            noise = values - theirs[name.removesuffix(", noise")]
            expected = RATE * NOISE * CLIP / EXAMPLES
            difference, bound = abs(float(np.std(noise)) / expected - 1), 0.02
        else:
            mine = ours[name.removesuffix(", microbatches")]
            difference = float(np.max(np.abs(mine - values)) / np.max(np.abs(mine)))
            bound = EQUAL
        if not difference <= bound:
            wrong.append(f"{name} DIFFERENT from ours by {difference:.1e}")
    return wrong


def rows(quick: bool) -> list[Row]:
    """Return the time of every peer's quantities, and how many times as fast ours is."""
    case = f"{'-'.join(map(str, SIZES))} sigmoid B={EXAMPLES}"
    names = ("ours", "vmap(grad)") if quick else PEERS
    offers: dict[str, Any] = {}
    missing: dict[str, str] = {}
    times: dict[tuple[str, str], list[float]] = {}
    workers: dict[str, Worker] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_problem(folder)
        try:
            values = {}
            for who in names:
                least = "0" if quick else str(SECONDS)
                workers[who] = Worker("benchmarks.peer_workers", who, str(folder), least)
                try:
                    offers[who] = workers[who].ask()
                except Unanswered as error:
                    missing[who] = str(error)
                    continue
                with np.load(folder / f"{who}.npz") as archive:
                    values[who] = dict(archive)
                wrong = differences(values["ours"], values[who])
                if wrong:
                    missing[who] = "; ".join(wrong)
                    del offers[who]
            rng = np.random.default_rng(0)
            for _ in range(1 if quick else 5):
                # A quantity's peers follow each other, so that they share the machine's state.
                for quantity in dict.fromkeys(
                    q for offer in offers.values() for q in offer["calls"]
                ):
                    for who in rng.permutation(list(offers)).tolist():
                        if quantity in offers[who]["calls"]:
                            time.sleep(0.02)  # the last one's threads may still spin
                            own = times.setdefault((who, quantity), [])
                            own.append(workers[who].ask(quantity))
        finally:
            for worker in workers.values():
                worker.end()
    result = [
        Row("quantities", case, quantity, who.replace("ours", "jaxmlp"), "ms",
            versions=offers[who]["versions"], **measured([1e3 * second for second in values]))
        for (who, quantity), values in times.items()
    ]  # fmt: skip
    result += [Row("quantities", case, "all", who, "", note=why) for who, why in missing.items()]
    for mine, who, theirs, bound in RATIOS:
        if who in offers:
            pairs = zip(times[who, theirs], times["ours", mine], strict=True)
            result.append(
                Row("quantities", case, f"their {theirs}, of the time of our {mine}", who, "×",
                    statistics.median(a / b for a, b in pairs),
                    bound="" if bound is None else f"≥ {bound:g}")
            )  # fmt: skip
    pairs = zip(times["ours", "private step"], times["ours", "plain step"], strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    of = "private step in single calls, of a plain one's time"
    result.append(
        Row("quantities", case, of, "jaxmlp", "×", ratio, bound=f"≤ {PRIVATE_OVER_PLAIN}")
    )
    return result
