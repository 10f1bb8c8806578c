"""Several devices and several processes yield what one device does; and they share the work."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxmlp import Network, fit, fit_ensemble, init, init_members
from jaxmlp.cli import processes
from jaxmlp.cli.problem import description
from jaxmlp.data import load_dataset
from jaxmlp.training.distributed import placement_on
from jaxmlp.training.epochs import Pace

pytestmark = pytest.mark.slow  # on the default Python alone

FLOAT64 = 1e-12
SCRIPT = Path(__file__).parent / "spread.py"


def environment(devices=1, **more):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
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


@pytest.mark.parametrize("count", [2, 4])
def test_processes_train_what_one_does(count):
    port = free_port()
    running = [started(number, count, port) for number in range(count)]
    try:
        check(running[0], count)
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
        check=True, timeout=300,
        env=environment(
            4, JAX_DISABLE_MOST_OPTIMIZATIONS="0",
            XLA_FLAGS="--xla_force_host_platform_device_count=4",
        ),
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


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def commands(count, *arguments, **more):
    """Start so many processes of one command, as a launcher does."""
    port = str(free_port())
    return [
        subprocess.Popen(
            [sys.executable, "-m", "jaxmlp", *map(str, arguments)], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
            env=environment(
                1, JAX_COORDINATOR_ADDRESS=f"localhost:{port}", JAX_NUM_PROCESSES=str(count),
                JAX_PROCESS_ID=str(number), JAX_ENABLE_X64="1", **more,
            ),
        )
        for number in range(count)
    ]  # fmt: skip


def ended(running, seconds=60):
    """Return the status, output and errors of each; no line of the libraries below JAX."""
    results = []
    try:
        for process in running:
            output, errors = process.communicate(timeout=seconds)
            lines = [line for line in output.splitlines() if not line.startswith("[Gloo]")]
            print(errors, file=sys.stderr)  # what JAX says, where a test fails
            own = [line for line in errors.splitlines() if line.startswith("jaxmlp: ")]
            results.append((process.returncode, lines, own))
    finally:
        for process in running:
            process.kill()
    return results


SHORT = ("--dtype", "float64", "--hidden", "8", "--no-pictures")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run that one process makes of these options, and the options."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    patience = ("--patience", "40", "--monitor", "test_loss")
    options = ("train", *SHORT, "--epochs", "40", "--batch-size", "256", *patience)
    subprocess.run(
        [sys.executable, "-m", "jaxmlp", *options, "--quiet", "--output", folder],
        env=environment(1, JAX_ENABLE_X64="1"), check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return folder, options


def check_same_model(run, expected):
    one, other = (load_file(folder / "model.safetensors") for folder in (run, expected))
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert np.max(np.abs(array - other[name])) <= FLOAT64 * np.max(np.abs(array)), name


def test_a_dead_process_ends_the_others_and_the_run_goes_on_in_one(alone, tmp_path):
    expected, options = alone
    run = tmp_path / "run"
    running = commands(2, *options, "--checkpoint-every", "0.1", "--output", run)
    try:
        deadline = time.monotonic() + 120
        while not (run / "checkpoints").is_dir():
            assert time.monotonic() < deadline and running[0].poll() is None
            time.sleep(0.01)
    finally:
        running[1].kill()
    begin = time.monotonic()
    (status, lines, errors), (killed, *_) = ended(running)
    assert time.monotonic() - begin < 60
    assert (status, killed) == (1, -9)
    assert "device     2 × cpu (cpu), float64, matmul precision default, 2 processes" in lines
    assert len(errors) == 1
    assert "process 0: another of the 2 processes has ended, or cannot be reached" in errors[0]
    assert not (run / "model.safetensors").exists()
    result = subprocess.run(
        [sys.executable, "-m", "jaxmlp", "train", "--resume", "--output", run],
        env=environment(1, JAX_ENABLE_X64="1"), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert "\nresumed   after" in result.stdout
    check_same_model(run, expected)


def test_a_signal_to_one_process_stops_all_and_the_run_goes_on_in_both(alone, tmp_path):
    expected, options = alone
    run = tmp_path / "run"
    running = commands(2, *options, "--output", run)
    try:
        deadline = time.monotonic() + 120
        while not (run / "metrics.jsonl").is_file() or not (run / "metrics.jsonl").read_bytes():
            assert time.monotonic() < deadline and running[0].poll() is None
            time.sleep(0.01)
    finally:
        running[1].terminate()
    first, second = ended(running)
    assert (first[0], second[0]) == (143, 143)
    assert len(first[2]) == 1 and "stopped by SIGTERM, saved; `jaxmlp train" in first[2][0]
    assert second[1:] == ([], [])  # the first one speaks
    assert len(list((run / "checkpoints").iterdir())) == 1
    first, second = ended(commands(2, "train", "--resume", "--output", run))
    assert (first[0], first[2], second) == (0, [], (0, [], []))
    assert any(line.startswith("resumed   after") for line in first[1])
    check_same_model(run, expected)


def test_a_signal_before_the_training_ends_the_processes(tmp_path):
    """JAX takes SIGTERM for itself when it joins them: it must not be lost."""
    running = commands(2, "train", *SHORT, "--epochs", "100000", "--quiet", "--output", tmp_path)
    try:
        for line in running[0].stdout:
            if line.startswith("[Gloo]"):  # joined, and not yet at the data
                break
    finally:
        for process in running:
            process.terminate()
    first, second = ended(running)
    assert {first[0], second[0]} <= {143, -15}
    assert not list(tmp_path.rglob("model.safetensors"))


def test_processes_share_a_sweep_and_a_private_run(tmp_path):
    rates = ("--learning-rate", "0.02", "0.1", "0.3")
    folders = tmp_path / "one", tmp_path / "two"
    options = ("sweep", *SHORT, *rates, "--epochs", "2", "--batch-size", "128")
    subprocess.run(
        [sys.executable, "-m", "jaxmlp", *options, "--output", folders[0]],
        env=environment(1, JAX_ENABLE_X64="1"), check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    first, second = ended(commands(2, *options, "--output", folders[1]), 120)
    assert (first[0], first[2], second) == (0, [], (0, [], []))
    check_same_model(folders[1] / "best", folders[0] / "best")
    again, second = ended(commands(2, "sweep", "--resume", "--output", folders[1]), 120)
    assert (again[0], again[1][-2], second) == (0, first[1][-2], (0, [], []))
    private = ("--private", "--noise-multiplier", "1", "--clip-norm", "1", "--delta", "1e-5")
    options = ("train", *SHORT, *private, "--batch-size", "256", "--epochs", "1")
    first, second = ended(commands(2, *options, "--output", tmp_path / "private"), 120)
    assert (first[0], first[2], second) == (0, [], (0, [], []))
    assert "epsilon" in first[1][-1]
    assert not (tmp_path / "private" / "secret.key").exists()


def test_bad_input_of_processes_is_said_once(tmp_path):
    (tmp_path / "there").touch()
    first, second = ended(commands(2, "train", "--output", tmp_path), 120)
    assert (first[:2], second) == ((2, []), (2, [], []))
    assert len(first[2]) == 1 and "output: expected a new or empty folder" in first[2][0]
    first, second = ended(commands(2, "sweep", "--devices", "3", "--learning-rate", "0.1"), 120)
    assert (first[:2], second) == ((2, []), (2, [], []))
    assert first[2][0].endswith("devices: expected none, or all 2 of the 2 processes, got 3")


def test_processes_with_other_options_or_data_are_refused(tmp_path):
    port, results = str(free_port()), []
    for number, seed in enumerate(("1", "2")):
        results += [
            subprocess.Popen(
                [sys.executable, "-m", "jaxmlp", "train", "--seed", seed],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
                env=environment(
                    1, JAX_COORDINATOR_ADDRESS=f"localhost:{port}", JAX_NUM_PROCESSES="2",
                    JAX_PROCESS_ID=str(number),
                ),
            )
        ]  # fmt: skip
    first, second = ended(results, 120)
    assert (first, second[0]) == ((2, [], []), 2)
    message = "jaxmlp: process 1: seed: expected 1, as in the first process, got 2"
    assert second[2] == [message]
    assert not list(tmp_path.iterdir())


def test_descriptions_tell_data_apart():
    data = load_dataset("digits")
    again = load_dataset("digits")
    assert description(data) == description(again)
    targets = data.train.targets.copy()
    targets[0] = (targets[0] + 1) % 10
    other = data._replace(train=data.train._replace(targets=targets))
    assert description(other) != description(data)
    assert description(data._replace(test=None)) != description(data)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_PROCESS_ID: expected an integer of at least 0"),
        ({"JAX_PROCESS_ID": "0"}, "JAX_NUM_PROCESSES: expected an integer of at least 1"),
        (
            {"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
            "JAX_NUM_PROCESSES: expected an integer of at least 1 beside the others of "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, got two",
        ),
        (
            {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "JAX_PROCESS_ID: expected a number below 2, got 2",
        ),
        (
            {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            "JAX_COORDINATOR_ADDRESS: expected HOST:PORT of process 0, got none",
        ),
        (
            {
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": "0",
                "JAX_COORDINATOR_ADDRESS": "localhost",
            },
            "JAX_COORDINATOR_ADDRESS: expected HOST:PORT of process 0, got localhost",
        ),
    ],
)
def test_processes_that_are_named_by_half_are_bad_input(command, monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = command("train")
    assert result.status == 2
    assert message in result.errors


def test_the_environment_of_a_cluster_is_respected(monkeypatch):
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: joined.append(options))
    assert not processes._join()
    slurm = {
        "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[001-002]", "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0",
    }  # fmt: skip
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    assert not processes._join()
    for count, joins in (("1", False), ("2", True)):
        monkeypatch.setenv("SLURM_NTASKS", count)
        assert processes._join() == joins
    assert len(joined) == 1  # JAX reads the rest itself
    assert "process_id" not in joined[0]
    monkeypatch.delenv("SLURM_STEP_NODELIST")  # a batch script, not a step of several tasks
    assert not processes._join()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "node:1234")
    assert processes._join()
    assert joined[-1]["coordinator_address"] == "node:1234"
    assert (joined[-1]["num_processes"], joined[-1]["process_id"]) == (2, 1)

    def fails(**_):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody there\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", fails)
    with pytest.raises(ValueError, match="expected to join the others at node:1234, got: DEADLINE"):
        processes._join()


def test_pieces_of_an_epoch_are_those_of_the_first_process():
    """Each process has a clock of its own, and waits for the others in every step."""

    class Agreed:
        def agreed(self, number):
            return number + 7

    assert Pace(Agreed()).end(0, 1000) == Pace().end(0, 1000) + 7
