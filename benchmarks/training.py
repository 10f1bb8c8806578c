"""The suites `epoch`, `small`, `gradients` and `memory`: every library's steps, side by side.

Run as a module it is the worker of one library.
"""

import itertools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.libraries import GRADIENTS, LIBRARIES, Trainer, trainer
from benchmarks.limits import Limits
from benchmarks.problems import Case, case_of, expected, problem
from benchmarks.processes import Unanswered, Worker, serve, timed, versions
from benchmarks.rows import OF_ALL, Row, chosen, measured

PACKAGES = {
    "ours": ("jax", "optax"),
    "jax_grad": ("jax", "optax"),
    "flax_nnx": ("flax",),
    "equinox_": ("equinox",),
    "pytorch": ("torch",),
    "scikit_learn": ("scikit-learn",),
}
OURS = "jaxmlp"
OURS_TOO = "hand backward, scan"
IDENTICAL = "jax.grad + optax, scan"
# Of the largest change of a layer's weights or biases in the steps of one turn; of a gradient.
EQUAL = {"training": 1e-2, "gradient": 1e-4}
# In TF32 ReLU units open by a rounding; what is compared then are the norms.
EQUAL_TF32 = {"training": 2e-2, "gradient": 5e-2}
EPOCH = 60000  # examples
# torch.compile takes ten seconds and more for each of them.
COMPILED_AT = {(128, 128), (1024, 128)}  # (H, B), one hidden layer
SPIN = 0.12  # seconds in which OpenBLAS's threads still look for work: 2^28 cycles
_ROUND = 0.05  # seconds of arithmetic in a run, at a rate that is about right
_ABOUT = 1.2e11  # additions and multiplications a second
_WARM = 0.05  # seconds of runs before those that are timed, which are as many


def steps_of(sizes: tuple[int, ...], batch_size: int, device: str) -> int:
    """Return how many steps a run has: of a GPU's hardly any takes longer than its launches."""
    if device == "gpu":
        return min(200, math.ceil(EPOCH / batch_size))
    flops = Case(sizes, batch_size, 1).flops
    return max(3, min(500, round(_ROUND * _ABOUT / flops)))


def epoch_cases(quick: bool, device: str = "cpu") -> list[Case]:
    """Return the cases of MNIST's shape."""
    widths, batches = ((128,), (128,)) if quick else ((32, 128, 512, 1024), (32, 128, 1024))
    return [
        Case(sizes, batch, 10 if quick else steps_of(sizes, batch, device), EPOCH)
        for width in widths
        for sizes in ((784, width, 10), (784, width, width, 10))
        for batch in batches
    ]


def small_cases(quick: bool) -> list[Case]:
    """Return the cases of small networks, of digits' shape."""
    sizes = ((64, 32, 10),) if quick else ((64, 32, 10), (64, 32, 32, 10))
    return [Case(own, 32, 56 * (2 if quick else 30), 56 * 32) for own in sizes]


def lanes(names: Sequence[str], device: str) -> list[list[str]]:
    """Return who compiles one after the other, in the order of the beginnings; two lanes at once.

    On a GPU PyTorch's are beside JAX's: XLA tries products out there, and two of its programs would
    disturb each other's trials. On a CPU each is a lane, one of the first half and one of the
    second in turn, so that PyTorch's do not wait for work on both cores at once.
    """
    if device == "gpu":
        others = [who for who in names if not who.startswith("PyTorch")]
        return [others, [who for who in names if who not in others]]
    half = -(-len(names) // 2)
    pairs = itertools.zip_longest(names[:half], names[half:])
    return [[who] for pair in pairs for who in pair if who is not None]


class Worked:
    """The workers of all libraries, and one case at a time with each of them."""

    def __init__(
        self, device: str, names: Sequence[str], table: str = "training", quick: bool = False
    ) -> None:
        self.workers = {
            who: Worker("benchmarks.training", who, device, table, device=device) for who in names
        }
        self.table, self.device = table, device
        self.patience = machine.Patience(device, quick)
        self.missing: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self.compiling: dict[str, float | None] = {}

    def build(self, case: Case, folder: Path) -> dict[str, str]:
        """Have every library do the steps once; return who cannot or does not agree, and why."""
        failed = dict(self.missing)
        asked: dict[str, Path] = {}
        for number, who in enumerate(self.workers):
            at = (case.sizes[1], case.batch_size)
            if who == "PyTorch, torch.compile" and not (len(case.sizes) == 3 and at in COMPILED_AT):
                failed.setdefault(who, "not compiled for this case")
            if who not in failed:
                asked[who] = folder / f"{number}.npz"

        def build(lane: list[str]) -> dict[str, str | None]:
            return {who: self._build(who, case, asked[who]) for who in lane}

        # Two at a time, unless it is timed how long they compile.
        with ThreadPoolExecutor(1 if self.table == "gradient" else 2) as pool:
            for reasons in pool.map(build, lanes(list(asked), self.device)):
                failed |= {who: why for who, why in reasons.items() if why is not None}
        own = problem(case)
        pairs = zip(own.weights, own.biases, strict=True)
        before = [array * (self.table == "training") for pair in pairs for array in pair]
        wanted = expected(own, self.table)
        for who, path in asked.items():
            if who in failed:
                continue
            with np.load(path) as archive:
                arrays = [archive[name] for name in archive.files]
            differences = [
                self._difference(array - start, change)
                for start, change, array in zip(before, wanted, arrays, strict=True)
            ]
            difference = np.max(differences)  # NaN where one of them is
            if not difference <= self._bound:
                failed[who] = f"DIFFERENT from NumPy in float64 by {difference:.1e}"
        return failed

    def _build(self, who: str, case: Case, path: Path) -> str | None:
        """Have one library do the steps once; return why it cannot, or None."""
        try:
            answer = self.workers[who].ask({"case": case._asdict(), "path": str(path)})
        except Unanswered as error:
            why = str(error)
            if "not installed" in why or self.workers[who].process.poll() is not None:
                self.missing[who] = why
            return why
        self.compiling[who] = answer["compiling"]
        self.versions[who] = answer["versions"]
        return None

    @property
    def _bound(self) -> float:
        exact = machine.precision(self.device) == "float32"
        return (EQUAL if exact else EQUAL_TF32)[self.table]

    def _difference(self, change: np.ndarray, wanted: np.ndarray) -> float:
        """Return the difference of the largest entry wanted, in TF32 by the norms of both."""
        exact = machine.precision(self.device) == "float32"
        size = partial(np.linalg.norm, ord=np.inf if exact else None)
        return float(size((change - wanted).reshape(-1)) / size(wanted.reshape(-1)))

    def seconds(self, names: Sequence[str], rounds: int) -> dict[str, list[float]]:
        """Return the times of one run of the steps, round by round and in turn.

        A run at whose end somebody else is at our cores is done again, whoever's it is. Whoever
        fails meanwhile is left out from then on, and `missing` says why.
        """
        times: dict[str, list[float]] = {who: [] for who in names}
        rng = np.random.default_rng(0)
        for _ in range(rounds):
            for who in rng.permutation(names).tolist():  # nobody always after the same one
                if who in self.missing:
                    continue
                try:
                    times[who].append(self._undisturbed(who))
                except Unanswered as error:
                    self.missing[who] = str(error)
                    del times[who]
        return times

    def _undisturbed(self, who: str) -> float:
        seconds = self._turn(who)
        while self.patience.wait():
            begin = time.perf_counter()
            seconds = self._turn(who)
            self.patience.spend(time.perf_counter() - begin)
        return seconds

    def _turn(self, who: str) -> float:
        seconds = self.workers[who].ask(None)
        if LIBRARIES.get(who, ("",))[0] == "scikit_learn":
            time.sleep(SPIN)
        return seconds

    def end(self) -> None:
        """End all workers."""
        for worker in self.workers.values():
            worker.end()


def rows_of(
    suite: str, case: Case, times: dict[str, list[float]], peak: float | None, worked: Worked
) -> list[Row]:
    """Return the rows of a case: every library, and the ratios of medians to ours."""
    scale, unit = 1e6, "µs a step"
    if suite == "epoch":
        scale, unit = math.ceil(EPOCH / case.batch_size), "s an epoch"
    rows = []
    for who, values in times.items():
        each = [value / case.steps * scale for value in values]
        share = None
        if peak is not None:
            share = case.flops / peak * scale / statistics.median(each)
        own = worked.versions[who]
        rows.append(
            Row(
                suite, case.name, "training", who, unit, share=share, versions=own, **measured(each)
            )
        )
    return rows


def ratios(suite: str, case: Case, rows: list[Row]) -> list[Row]:
    """Return how many times as fast as every other is ours, and as the fastest of them."""
    medians: dict[str, float] = {row.who: row.median for row in rows if row.median is not None}
    others = {who: time for who, time in medians.items() if who not in (OURS, OURS_TOO)}
    ours = medians[OURS]
    if not others:
        return []
    fastest = min(others, key=lambda who: others[who])
    bound = "≥ 0.97" if suite == "epoch" else ""
    return [
        Row(suite, case.name, "of the fastest peer's time", fastest, "×", others[fastest] / ours,
            bound=bound)
    ]  # fmt: skip


def geometric(suite: str, rows: list[Row], who: str, bound: str) -> Row | None:
    """Return the geometric mean over the cases of a library's time divided by ours."""
    medians: dict[tuple[str, str], float] = {
        (row.who, row.case): row.median
        for row in rows
        if row.quantity == "training" and row.median is not None
    }
    logs = [
        math.log(median / medians[OURS, case])
        for (other, case), median in medians.items()
        if other == who and (OURS, case) in medians
    ]
    if not logs:
        return None
    mean = math.exp(statistics.mean(logs))
    return Row(suite, f"{len(logs)} cases", OF_ALL, who, "×", mean, bound=bound)


SMALL_BOUNDS = {"scikit-learn": "≥ 12", "PyTorch, eager": "≥ 20"}
MEAN_BOUNDS = {"PyTorch, eager": "≥ 1.8", "scikit-learn": "≥ 2.2", IDENTICAL: "≥ 1.0"}


def share_bound(case: Case) -> str:
    """Return what part of the arithmetic's floor is asked for."""
    if set(case.sizes[1:-1]) == {1024}:
        return "≥ 0.80"
    return "≥ 0.65" if case.sizes == (784, 128, 10) and case.batch_size == 128 else ""


Show = Callable[[Sequence[Row]], None]


def gradients(device: str, quick: bool, show: Show, wanted: Sequence[str] = ()) -> list[Row]:
    """Return the times of one gradient in calls of its own, and of compiling it."""
    cases = [Case((784, 128, 10), 128, 5 if quick else 100)]
    if not quick:
        cases += [Case((64, 32, 10), 32, 1000), Case((784, 1024, 10), 128, 20)]
        cases += [Case((784, 256, 256, 10), 256, 40)]
    result: list[Row] = []
    worked = Worked(device, list(GRADIENTS), "gradient", quick)
    try:
        for case in (case for case in cases if chosen(case.name, wanted)):
            with tempfile.TemporaryDirectory() as folder:
                failed = worked.build(case, Path(folder))
            times = worked.seconds([w for w in GRADIENTS if w not in failed], 1 if quick else 9)
            new = []
            for who, values in times.items():
                each = [1e6 * value / case.steps for value in values]
                new.append(
                    Row("gradients", case.name, "a gradient in calls", who, "µs",
                        versions=worked.versions[who], **measured(each))
                )  # fmt: skip
                compiling = worked.compiling[who]
                if compiling is not None:
                    of = "compiling it, in a process that goes on"
                    new.append(Row("gradients", case.name, of, who, "s", compiling))
            new += [
                Row("gradients", case.name, "a gradient in calls", who, "", note=why)
                for who, why in failed.items()
            ]
            show(new)
            result += new
    finally:
        worked.end()
    return result


def memory(device: str, quick: bool, show: Show) -> list[Row]:
    """Return the most memory of a process of each library that trains MNIST's shape."""
    case = Case((784, 128, 10), 128, 10 if quick else 469)
    result: list[Row] = []
    for who in [OURS, IDENTICAL] if quick else LIBRARIES:
        if who in (OURS_TOO, "PyTorch, CUDA graph"):
            continue
        worked = Worked(device, [who])
        try:
            with tempfile.TemporaryDirectory() as folder:
                failed = worked.build(case, Path(folder))
            what = "peak memory of the process, data of 60,000 included"
            if who in failed:
                row = Row("memory", case.name, what, who, "", note=failed[who])
            else:
                megabytes = worked.workers[who].ask("memory")
                row = Row("memory", case.name, what, who, "MB", megabytes,
                          versions=worked.versions[who])  # fmt: skip
                if device == "gpu":
                    on_it = worked.workers[who].ask("device memory")
                    result.append(row._replace(quantity="peak memory of the GPU", median=on_it))
                    show(result[-1:])
        finally:
            worked.end()
        show([row])
        result.append(row)
    return result


def run(suite: str, device: str, quick: bool, show: Show, wanted: Sequence[str] = ()) -> list[Row]:
    """Return the rows of a suite; each case's are shown as soon as they are there."""
    cases = epoch_cases(quick, device) if suite == "epoch" else small_cases(quick)
    names = [who for who in LIBRARIES if device == "gpu" or who != "PyTorch, CUDA graph"]
    all_rows: list[Row] = []
    worked = Worked(device, names, quick=quick)
    limits = Limits(device)
    try:
        for case in (case for case in cases if chosen(case.name, wanted)):
            with tempfile.TemporaryDirectory() as folder:
                failed = worked.build(case, Path(folder))
            if OURS in failed:
                raise SystemExit(f"{OURS}: {failed[OURS]}")
            names_here = [who for who in worked.workers if who not in failed]
            rounds = 1 if quick else 3 if case.flops > 5e8 or device == "gpu" else 4
            times = worked.seconds(names_here, rounds)
            failed |= worked.missing
            if OURS in failed:
                raise SystemExit(f"{OURS}: {failed[OURS]}")
            peak = None if quick else limits.peak(case.products)
            rows = rows_of(suite, case, times, peak, worked)
            rows += [
                Row(suite, case.name, "training", who, "", note=why)
                for who, why in failed.items()
                if why != "not compiled for this case"
            ]
            new = rows + ratios(suite, case, rows)
            bound = share_bound(case)
            ours = next(row for row in rows if row.who == OURS)
            if suite == "epoch" and peak is not None:
                about = f"peak {peak / 1e9:.0f} GFLOP/s"
                of = "part of the arithmetic's floor"
                new.append(Row(suite, case.name, of, OURS, "", ours.share, bound=bound, note=about))
            if suite == "small" and case.sizes == (64, 32, 10):
                medians = {row.who: row.median for row in rows if row.median}
                new += [
                    Row(
                        suite,
                        case.name,
                        "ratio",
                        who,
                        "×",
                        medians[who] / medians[OURS],
                        bound=asked,
                    )
                    for who, asked in SMALL_BOUNDS.items()
                    if who in medians
                ]
            show(new)
            all_rows += new
    finally:
        worked.end()
        limits.end()
    if suite == "epoch":
        means = [geometric(suite, all_rows, who, bound) for who, bound in MEAN_BOUNDS.items()]
        new = [row for row in means if row is not None]
        show(new)
        all_rows += new
    return all_rows


def repeated(call: Callable[[], None], count: int) -> None:
    """Call so many times."""
    for _ in range(count):
        call()


def begin() -> Callable[[Any], Any]:
    """Return what answers: a case is built and run once, and None is the time of another run."""
    who, device, table = sys.argv[1:]
    module = {"training": LIBRARIES, "gradient": GRADIENTS}[table][who][0]
    now: Trainer | None = None

    def handle(question: Any) -> Any:
        nonlocal now
        if question is None:
            assert now is not None
            # Meanwhile the threads of whoever was last go to sleep, and caches and clocks become
            # this one's again.
            start, runs = time.perf_counter(), 0
            while runs == 0 or time.perf_counter() - start < _WARM:
                now.run()
                runs += 1
            return timed(partial(repeated, now.run, runs)) / runs
        if question == "memory":
            return machine.peak_memory()
        if question == "device memory":
            return machine.peak_device_memory(module)
        now = None  # its memory, before the next one's
        now = trainer(who, problem(case_of(question["case"])), device, table)
        now.run()
        np.savez(question["path"], *now.params())
        return {"compiling": now.compile_seconds, "versions": versions(*PACKAGES[module])}

    return handle


if __name__ == "__main__":
    serve(begin)
