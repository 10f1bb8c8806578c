"""Several devices and several processes yield what one device does; and they share the work."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxmlp import Network, fit, fit_ensemble, init, init_members
from jaxmlp.training.distributed import placement_on

pytestmark = pytest.mark.slow  # on the default Python alone

FLOAT64 = 1e-12
SCRIPT = Path(__file__).parent / "spread.py"


def environment(devices=1, **more):
    flags = f"--xla_force_host_platform_device_count={devices}"
    # Compiling takes most of the time.
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"}
    return {**os.environ, "XLA_FLAGS": flags, **quick, **more}


def started(*arguments, devices=1):
    return subprocess.Popen(
        [sys.executable, SCRIPT, *map(str, arguments)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=environment(devices),
    )  # fmt: skip


def check(process, devices):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    lines = [line.split() for line in output.splitlines() if not line.startswith("[Gloo]")]
    expected = [("fit", "everything"), ("record", "everything"), ("ensemble", "shared")]
    if devices == 2:
        expected.pop()
    if devices == 8:
        expected[2:2] = [("resumed", "two"), ("resumed", "one")]
        expected.append(("ensemble", "own"))
    assert [(kind, name) for kind, name, *_ in lines] == expected
    for line in lines:
        assert int(line[2]) == devices
        assert float(line[3]) <= FLOAT64, line


def test_eight_devices_train_what_one_does():
    check(started(devices=8), 8)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_train_what_one_does(processes):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = [started(number, processes, port) for number in range(processes)]
    try:
        check(running[0], processes)
        for process in running[1:]:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
    finally:
        for process in running:
            process.kill()


def test_each_device_computes_its_part():
    """As compiled for 4 devices: a quarter of the batch or members each, and sums where needed."""
    code = """
import jax, numpy as np
from jaxmlp import Network, fit, fit_ensemble, init, init_members
from jaxmlp.training import epochs, passes
network = Network((12, 40, 3), "relu")
x, t = np.random.default_rng(0).normal(size=(64, 12)), np.arange(64) % 3
def show(module, name):
    program = getattr(module, name)
    class Shown:
        def lower(self, *arguments, **options):
            lowered = program.lower(*arguments, **options)
            print(name, lowered.compile().as_text())
            return lowered
        def __call__(self, *arguments, **options):
            if not hasattr(self, "done") and name == "run_members":
                self.done = self.lower(*arguments, **options)
            return program(*arguments, **options)
    setattr(module, name, Shown())
show(epochs, "run_steps")
fit(network, init(network, jax.random.key(0)), x, t, key=jax.random.key(1), batch_size=32, epochs=1,
    devices=jax.devices())
print("=====")
show(passes, "run_members")
fit_ensemble(network, init_members(network, jax.random.split(jax.random.key(0), 8)), x, t,
    key=jax.random.key(1), batch_size=32, epochs=1, devices=jax.devices())
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        check=True, timeout=300, env=environment(4, JAX_DISABLE_MOST_OPTIMIZATIONS="0"),
    )  # fmt: skip
    steps, members = result.stdout.split("=====")
    assert "all-reduce" in steps
    products = re.findall(r"f32\[([0-9,]+)\]\S* (?:dot|fusion)\(", steps)
    assert "8,40" in products  # 32 examples on 4 devices, 40 hidden units
    assert "32,40" not in products
    assert "all-reduce" not in members
    products = re.findall(r"f32\[([0-9,]+)\]\S* (?:dot|fusion)\(", members)
    assert "80,32" in products or "2,40,32" in products  # 2 of 8 networks, 32 examples
    assert "320,32" not in products


NETWORK = Network((4, 5, 3))
X, T = np.ones((20, 4)), np.arange(20) % 3


@pytest.mark.parametrize(
    ("devices", "error", "message"),
    [
        ([], ValueError, "devices: expected different ones of one kind, got 0"),
        ([0], TypeError, r"devices: expected some of jax.devices\(\)"),
        (3, TypeError, r"devices: expected some of jax.devices\(\)"),
        (jax.devices("cpu")[:1] * 2, ValueError, "devices: expected different ones"),
    ],
)
def test_bad_devices(devices, error, message):
    with pytest.raises(error, match=message):
        fit(NETWORK, init(NETWORK, jax.random.key(0)), X, T, key=jax.random.key(1), devices=devices)
    members = init_members(NETWORK, jax.random.split(jax.random.key(0), 2))
    with pytest.raises(error, match=message):
        fit_ensemble(NETWORK, members, X, T, key=jax.random.key(1), devices=devices)


def test_a_single_device_may_be_named():
    params = init(NETWORK, jax.random.key(0))
    settings = {"batch_size": 8, "epochs": 1}
    one = fit(NETWORK, params, X, T, key=jax.random.key(1), **settings)
    named = fit(
        NETWORK, params, X, T, key=jax.random.key(1), devices=jax.devices("cpu")[:1], **settings
    )
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(named.params), strict=True):
        np.testing.assert_array_equal(a, b)
    placement = placement_on(jax.devices("cpu")[:1])
    assert placement is not None and placement.count == 1
    assert placement_on(None) is None


def test_a_batch_that_does_not_divide_and_too_many_devices_are_bad_input(command):
    code = """
import sys
from jaxmlp.cli import main
main(sys.argv[1:])
"""
    for options, message in (
        (("--devices", "3"), "batch_size: expected a multiple of the 3 devices, got 32"),
        (("--devices", "9"), "devices: expected at most 8, which is what there is of cpu here"),
        (("--devices", "0"), "devices: expected an integer of at least 1, got 0"),
    ):
        result = subprocess.run(
            [sys.executable, "-c", code, "train", *options], env=environment(8),
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert result.returncode == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    assert command("train", "--devices", len(jax.devices("cpu")) + 1).status == 2


def test_the_commands_take_devices(tmp_path):
    for arguments, run in (
        (("train", "--devices", "8", "--epochs", "3"), "."),
        (("sweep", "--devices", "4", "--epochs", "2", "--learning-rate", "0.01", "0.1"), "best"),
    ):
        folder = tmp_path / arguments[0]
        result = subprocess.run(
            [sys.executable, "-m", "jaxmlp", *arguments, "--no-pictures", "--output", folder],
            env=environment(8), capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert (result.returncode, result.stderr) == (0, "")
        assert f"device     {arguments[2]} × cpu" in result.stdout
        assert (folder / run / "model.safetensors").is_file()
