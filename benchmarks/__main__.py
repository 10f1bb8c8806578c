"""The benchmark suite.

    python -m benchmarks --suite epoch [--quick] [--check] [--data-dir DIR] [--device cpu|gpu]

See benchmarks/README.md for what is measured and how.
"""

import argparse
import importlib.metadata
import os
import sys
import time
from collections.abc import Sequence

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

SUITES = (
    "gradients", "epoch", "small", "quantities", "ensembles", "streaming", "time_to_accuracy",
    "startup", "memory",
)  # fmt: skip


def measured(suite: str, device: str, quick: bool, data_dir: str | None) -> list[Row]:
    """Run a suite, show its rows as they come, and return them."""
    if suite == "gradients":
        return training.gradients(device, quick, report.show)
    if suite == "memory":
        return training.memory(device, quick, report.show)
    if suite == "startup":
        return startup.run(device, quick, report.show)
    if suite == "time_to_accuracy":
        return time_to_accuracy.run(device, quick, data_dir, report.show)
    if suite == "quantities":
        # JAX is imported here, in this process, whose own functions these modules time.
        from benchmarks import peers, private_steps, quantities

        result = []
        for module in (quantities, private_steps, peers):
            new = module.rows(quick)
            report.show(new)
            result += new
        return result
    if suite == "ensembles":
        return ensembles.run(device, quick, data_dir, report.show)
    if suite == "streaming":
        return streaming.run(device, quick, report.show)
    return training.run(suite, device, quick, report.show)


def wrong(row: Row) -> bool:
    """Tell whether somebody's figures were not those that were expected."""
    return any(word in row.note for word in ("DIFFERENT", "MISSED"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run suites, keep their rows, write the report; with --check exit 1 on a missed bound."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure jaxmlp.")
    parser.add_argument("--suite", choices=(*SUITES, "all"), help="what to measure")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="one small round: is all in order?")
    parser.add_argument("--check", action="store_true", help="exit 1 where a bound is missed")
    parser.add_argument("--data-dir", help="where MNIST is, for time_to_accuracy")
    parser.add_argument("--report", action="store_true", help="write the report from what is kept")
    options = parser.parse_args(arguments)
    if options.suite is None and not options.report:
        parser.error("--suite: expected one of what is measured, or --report")
    data_dir = None if options.data_dir is None else os.path.abspath(options.data_dir)
    os.environ["JAX_PLATFORMS"] = "cpu" if options.device == "cpu" else "cuda"
    pin()
    missed: list[Row] = []
    for suite in SUITES if options.suite == "all" else filter(None, [options.suite]):
        begin = time.perf_counter()
        jax = importlib.metadata.version("jax")
        name = machine.device_name(options.device)
        about = rows.context(name, machine.commit(), jax)
        result = measured(suite, options.device, options.quick, data_dir)
        if not options.quick:
            rows.append(result, about)
        print(f"{suite}: {time.perf_counter() - begin:.0f} s", flush=True)
        # Bounds are of quiet machines and whole runs, equality is of every run.
        missed += [row for row in result if wrong(row) or not (options.quick or row.holds)]
    if options.report or not options.quick:
        print(f"wrote {report.write()}")
    for row in missed:
        print(f"missed: {row.suite}, {row.case}, {row.quantity}, {row.who}: {report.figure(row)}")
    if missed and options.check:
        sys.exit(1)


if __name__ == "__main__":
    main()
