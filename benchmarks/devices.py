"""Examples and networks trained a second by the number of devices and processes.

    python -m benchmarks.devices            each pair of numbers in fresh processes, then the table

On a CPU the devices are virtual and the processes joined by gloo: they share the same cores, so
this shows what dividing the work costs, not what more machines would gain. Each row is checked to
train what one device trains.
"""

import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np

from benchmarks.machine import commit, device_name, pin
from benchmarks.processes import ROOT, environment

LAYOUTS = ((1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (4, 4))  # devices, processes
SIZES, BATCH_SIZES, N_EXAMPLES, EPOCHS = (784, 128, 10), (128, 1024), 16384, 4
MEMBERS, MEMBER_SIZES = 64, (64, 32, 10)
EQUAL = 1e-4  # of the largest parameter, in float32


def measure() -> dict[str, float]:
    """Return the examples a second of `fit` by batch size, the networks a second of `fit_ensemble`.

    Beside them is a figure of the parameters, by which the rows are compared.
    """
    import jax

    import jaxmlp

    rng = np.random.default_rng(0)
    x = rng.random((N_EXAMPLES, SIZES[0]), np.float32)
    t = rng.integers(SIZES[-1], size=N_EXAMPLES)
    network = jaxmlp.Network(SIZES)
    params = jaxmlp.init(network, jax.random.key(0))
    result = {}
    for batch_size in BATCH_SIZES:
        fitted = jaxmlp.fit(
            network, params, x, t, key=jax.random.key(1), batch_size=batch_size, epochs=EPOCHS,
            optimizer="sgd", learning_rate=0.1, devices=jax.devices(),
        )  # fmt: skip
        rates = [record["examples_per_second"] for record in fitted.history[1:]]
        result[f"examples a second, B={batch_size}"] = max(rates)
        result[f"B={batch_size}"] = float(np.linalg.norm(np.asarray(fitted.params[0].weight)))
    members = jaxmlp.Network(MEMBER_SIZES)
    first = jaxmlp.init_members(members, jax.random.split(jax.random.key(0), MEMBERS))
    x, t = x[:1437, : MEMBER_SIZES[0]], t[:1437]
    seconds = []
    for number in range(4):
        begin = time.perf_counter()
        trained = jaxmlp.fit_ensemble(
            members, first, x, t, key=jax.random.key(1), optimizer="sgd", batch_size=32, epochs=4,
            learning_rate=np.linspace(0.1, 0.2, MEMBERS) * (1 + 0.01 * number),
            devices=jax.devices(),
        )  # fmt: skip
        jax.block_until_ready(trained.params)
        seconds.append(time.perf_counter() - begin)
        if number == 0:
            result["members"] = float(np.linalg.norm(np.asarray(trained.params[0].weight)))
    result["networks a second"] = MEMBERS / min(seconds[1:])
    return result


def measured(devices: int, processes: int) -> dict[str, float]:
    """Return what the first of so many fresh processes measures on so many devices in all.

    Raises:
        RuntimeError: One of them failed.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices // processes}"
    running = []
    for number in range(processes):
        arguments = [str(number), str(processes), str(port)]
        running.append(
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.devices", *arguments], cwd=ROOT, text=True,
                env={**environment(), "XLA_FLAGS": flags}, stdout=subprocess.PIPE,
            )
        )  # fmt: skip
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"{devices} devices, {processes} processes: a process failed")
    return json.loads(outputs[0].splitlines()[-1])


def worker(number: int, processes: int, port: int) -> None:
    """Measure as one of several processes, or alone; the first one prints."""
    import jax

    pin()
    if processes > 1:
        jax.distributed.initialize(f"localhost:{port}", processes, number)
    result = measure()
    if number == 0:
        print(json.dumps(result), flush=True)


def main() -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table: Any = Table(title=f"{device_name('cpu')}, float32, {commit()}")
    names = [f"examples a second, B={batch_size}" for batch_size in BATCH_SIZES]
    names.append("networks a second")
    for name in ("devices", "processes", *names):
        table.add_column(name, justify="right")
    first: dict[str, float] = {}
    for devices, processes in LAYOUTS:
        result = measured(devices, processes)
        first = first or result
        for name in ("members", *(f"B={batch_size}" for batch_size in BATCH_SIZES)):
            difference = abs(result[name] / first[name] - 1)
            if not difference <= EQUAL:
                raise SystemExit(f"{devices} devices, {processes} processes: DIFFERENT, {name}")
        figures = [f"{result[name]:,.0f} ({result[name] / first[name]:.2f})" for name in names]
        table.add_row(str(devices), str(processes), *figures)
        print(f"{devices} devices in {processes} processes measured", file=sys.stderr)
    Console(width=max(100, int(os.environ.get("COLUMNS", "0")))).print(table)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        worker(*map(int, sys.argv[1:]))
    else:
        main()
