"""The benchmark suite.

    python -m benchmarks --suite epoch [--quick] [--check] [--data-dir DIR] [--device cpu|gpu]

See benchmarks/README.md for what is measured and how.
"""

import argparse
import importlib.metadata
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks import (
    ensembles,
    machine,
    report,
    rows,
    startup,
    streaming,
    time_to_accuracy,
    training,
)
from benchmarks.machine import pin
from benchmarks.rows import Row
from benchmarks.training import Show

SUITES = (
    "gradients", "epoch", "small", "quantities", "ensembles", "streaming", "time_to_accuracy",
    "startup", "memory",
)  # fmt: skip
UNREST = 0.08  # between the percentiles of the median row: 0.02 to 0.06 on a quiet machine


def measured(
    suite: str,
    device: str,
    quick: bool,
    data_dir: str | None,
    wanted: Sequence[str],
    keep: Callable[[Sequence[Row]], object],
) -> list[Row]:
    """Run a suite, show its rows as they come, and return them; kept even where it is ended early.

    The bounds are those of two cores of a CPU, in a whole run: of a GPU and of a quick one nothing
    is asked.
    """
    shown: list[Row] = []
    asked = device != "gpu" and not quick

    def show(new: Sequence[Row]) -> None:
        shown.extend(row if asked else row._replace(bound="") for row in new)
        report.show(shown[len(shown) - len(new) :])

    try:
        run(suite, device, quick, data_dir, wanted, show)
    finally:
        if shown and not quick:
            keep(shown)
    return shown


def run(
    suite: str, device: str, quick: bool, data_dir: str | None, wanted: Sequence[str], show: Show
) -> None:
    """Run a suite and show its rows as they come."""
    if suite == "gradients":
        training.gradients(device, quick, show, wanted)
    elif suite == "memory":
        training.memory(device, quick, show)
    elif suite == "startup":
        startup.run(device, quick, show)
    elif suite == "time_to_accuracy":
        time_to_accuracy.run(device, quick, data_dir, show)
    elif suite == "quantities":
        # JAX is imported here, in this process, whose own functions these modules time.
        from benchmarks import peers, private_steps, quantities

        for new in quantities.rows(quick, wanted):
            show(new)
        show(private_steps.rows(quick, wanted))
        # The peers are measured on a CPU, all of them in one case.
        if device == "cpu" and not wanted:
            show(peers.rows(quick))
    elif suite == "ensembles":
        ensembles.run(device, quick, data_dir, show, wanted)
    elif suite == "streaming":
        streaming.run(device, quick, show)
    else:
        training.run(suite, device, quick, show, wanted)


def wrong(row: Row) -> bool:
    """Tell whether somebody's figures were not those that were expected."""
    return any(word in row.note for word in ("DIFFERENT", "MISSED"))


def about_rounds(spread: float) -> str:
    """Return in words how far the rounds of a row are apart."""
    unrest = "; the machine was not quiet" if spread > UNREST else ""
    return f", rounds {100 * spread:.0f} % apart{unrest}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run suites, keep their rows, write the report; with --check exit 1 on a missed bound."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure jaxmlp.")
    parser.add_argument("--suite", choices=(*SUITES, "all"), help="what to measure")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument(
        "--precision",
        choices=("tf32", "float32"),
        help="of products on a GPU; JAX's own choice is tf32",
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        default=[],
        metavar="PART",
        help="only the cases whose names contain one of these, where a suite has several",
    )
    parser.add_argument("--quick", action="store_true", help="one small round: is all in order?")
    parser.add_argument(
        "--patience",
        type=float,
        default=machine.Patience.seconds,
        metavar="SECONDS",
        help="how long a suite may wait in all until nobody else is at the two cores; 60",
    )
    parser.add_argument("--check", action="store_true", help="exit 1 where a bound is missed")
    parser.add_argument("--data-dir", help="where MNIST is, for time_to_accuracy")
    parser.add_argument("--report", action="store_true", help="write the report from what is kept")
    options = parser.parse_args(arguments)
    if options.suite is None and not options.report:
        parser.error("--suite: expected one of what is measured, or --report")
    if options.precision == "tf32" and options.device == "cpu":
        parser.error("--precision tf32: expected --device gpu with it, a CPU computes in float32")
    if not 0 <= options.patience < float("inf"):
        parser.error(f"--patience {options.patience}: expected a number of seconds, 0 or more")
    data_dir = None if options.data_dir is None else os.path.abspath(options.data_dir)
    os.environ["JAX_PLATFORMS"] = "cpu" if options.device == "cpu" else "cuda"
    os.environ.pop("JAX_DEFAULT_MATMUL_PRECISION", None)
    if options.device == "gpu" and options.precision == "float32":
        os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"  # of JAX's workers and of PyTorch's
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes share one GPU
    pin()
    machine.Patience.seconds = options.patience
    missed: list[Row] = []
    for suite in SUITES if options.suite == "all" else filter(None, [options.suite]):
        begin, waited = time.perf_counter(), machine.Patience.waited
        jax = importlib.metadata.version("jax")
        name = machine.device_name(options.device)
        precision = machine.precision(options.device)
        about = rows.context(name, machine.commit(), jax, precision)
        keep = partial(rows.append, about=about)
        result = measured(suite, options.device, options.quick, data_dir, options.cases, keep)
        took, spread = time.perf_counter() - begin, rows.spread(result)
        rounds = "" if spread is None else about_rounds(spread)
        waited = machine.Patience.waited - waited
        print(f"{suite}: {took:.0f} s, {waited:.0f} of them waited{rounds}", flush=True)
        # Bounds are of quiet machines and whole runs, equality is of every run.
        missed += [row for row in result if wrong(row) or not (options.quick or row.holds)]
    if options.report or not options.quick:
        print(f"wrote {report.write()}")
    for row in missed:
        print(f"missed: {row.suite}, {row.case}, {row.quantity}, {row.who}: {report.figure(row)}")
    if missed and options.check:
        sys.exit(1)


if __name__ == "__main__":
    # As Ctrl-C does, it leaves what was measured so far.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    main()
