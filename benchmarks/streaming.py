"""The suite `streaming`: training on data larger than the memory, beside the same data in memory.

    python -m benchmarks.streaming memory|disk FILE full|chunks SIZES    a worker of it

The data are five times as large as the memory that they are allowed. One process trains from disk
and one from memory. First both are compared after an epoch; then they are timed in turn, an epoch
each. The file is in the system's cache, as it was just written.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import Patience
from benchmarks.processes import Worker, serve
from benchmarks.rows import Row, measured
from benchmarks.training import OURS, Show

BATCH = 128
# Dtype, examples (627 MB of them), and each network with its shuffles.
CASES = (
    ("uint8", 800_000, {"784-128-10": ("full", "chunks")}),
    ("float32", 200_000, {"784-128-10": ("full",), "784-512-512-10": ("full",)}),
)
QUICK = (("uint8", 5_000, {"784-128-10": ("full", "chunks")}),)
ROUNDS = 3
ALLOWED = 0.2  # of what the data would take


def run(device: str, quick: bool, show: Show) -> list[Row]:
    """Return the examples a second from disk and from memory, and the memory that it took."""
    result, patience = [], Patience(device, quick)
    for dtype, n_examples, networks in QUICK if quick else CASES:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "inputs.npy")
            write(file, dtype, n_examples)
            pairs = [(sizes, shuffle) for sizes, own in networks.items() for shuffle in own]
            for sizes, shuffle in pairs:
                case = f"{dtype}, {sizes}, B={BATCH}, shuffle {shuffle}"
                how = [str(file), shuffle, sizes]
                new = compared(case, how, device, quick, patience)
                show(new)
                result += new
    return result


def write(file: Path, dtype: str, n_examples: int) -> None:
    """Write random pixels, some at a time."""
    array = np.lib.format.open_memmap(file, "w+", dtype, (n_examples, 784))
    rng = np.random.default_rng(0)
    for start in range(0, n_examples, 10_000):
        part = rng.integers(256, size=array[start : start + 10_000].shape, dtype=np.uint8)
        array[start : start + 10_000] = part if dtype == "uint8" else part / np.float32(255)


def compared(
    case: str, arguments: list[str], device: str, quick: bool, patience: Patience
) -> list[Row]:
    """Return the rows of one file."""
    workers = {
        how: Worker("benchmarks.streaming", how, *arguments, device=device)
        for how in ("disk", "memory")
    }
    rates: dict[str, list[float]] = {how: [] for how in workers}
    try:
        params = [worker.ask("params") for worker in workers.values()]
        note = "" if params[0] == params[1] else "DIFFERENT from memory"
        for _ in range(1 if quick else ROUNDS):
            for how, worker in workers.items():
                patience.wait()
                rates[how].append(worker.ask("epoch"))
        grown = {how: worker.ask("memory") for how, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.end()
    size = Path(arguments[0]).stat().st_size
    of = "rate from disk over that from memory"
    ratios = [disk / memory for disk, memory in zip(*rates.values(), strict=True)]
    bounds = ("", "") if quick else ("≥ 0.85", f"≤ {ALLOWED}")
    return [
        *(
            Row("streaming", case, f"from {how}", OURS, "examples/s", note=note, **measured(values))
            for how, values in rates.items()
        ),
        Row("streaming", case, of, OURS, "×", bound=bounds[0], **measured(ratios)),
        *(
            Row(
                *("streaming", case, f"memory from {how}, of the data's size", OURS, "×"),
                grown[how] / size,
                bound=bounds[1] if how == "disk" else "",
            )
            for how in workers
        ),
    ]


def begin() -> Callable[[Any], Any]:
    """Return what answers: the parameters of an epoch in short, the rate of another, memory."""
    import jax

    import jaxmlp
    from jaxmlp.data import open_stored
    from jaxmlp.scaling import PIXELS

    how, file, shuffle, shape = sys.argv[1:]
    sizes = tuple(map(int, shape.split("-")))
    stored = open_stored(file)
    targets = np.random.default_rng(1).integers(sizes[-1], size=len(stored))
    network = jaxmlp.Network(sizes, "relu")
    params = jaxmlp.init(network, jax.random.key(0))
    scaling = PIXELS if stored.dtype == np.uint8 else None

    def trained(inputs: Any) -> jaxmlp.Fit:
        return jaxmlp.fit(
            network, params, inputs, targets[: len(inputs)], key=jax.random.key(1), epochs=1,
            batch_size=BATCH, scaling=scaling, shuffle=shuffle,
        )  # fmt: skip

    trained(stored[np.arange(10 * BATCH)])  # loads and compiles what takes memory by itself
    before = used("VmRSS")
    inputs: Any = stored if how == "disk" else stored.in_memory()

    def handle(question: str) -> Any:
        if question == "memory":
            return used("VmHWM") - before
        if question == "params":
            return [float(np.sum(np.abs(leaf))) for leaf in jax.tree.leaves(trained(inputs).params)]
        time.sleep(0.1)  # until the threads of whoever was last sleep
        return trained(inputs).history[0]["examples_per_second"]

    return handle


def used(kind: str) -> int:
    """Return the bytes of this process that Linux counts so."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


if __name__ == "__main__":
    serve(begin)
