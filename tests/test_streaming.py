"""Training on inputs that stay on disk: what the same inputs in memory yield, in little memory."""

import gc
import json
import os
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import compilations
from command import TINY, records, same_model, start
from files import message_of

from jaxmlp import Network, Scaling, fit, init
from jaxmlp.data import rows
from jaxmlp.data.rows import open_stored, stored_records
from jaxmlp.training import epochs, orders, runs, streaming
from jaxmlp.training.settings import Settings

FLOAT64 = 1e-12
NETWORK = Network((6, 5, 3), "tanh")
N = 301
RNG = np.random.default_rng(7)
X = RNG.normal(size=(N, 6))
T = RNG.integers(3, size=N)
W = RNG.uniform(0.1, 2, N)
EVERYTHING = {
    "dropout": 0.2, "input_dropout": 0.1, "average_decay": 0.9, "label_smoothing": 0.1,
    "clip_norm": 0.5, "max_norm": 2.0, "weight_decay": 0.01, "schedule": "cosine", "patience": 2,
    "evaluation": {"validation": (X[:40], T[:40])},
}  # fmt: skip
TIMES = ("seconds", "examples_per_second", "compile_seconds")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of four batches of 16 rows of six numbers in float32, or of two in float64."""
    monkeypatch.setattr(streaming, "SMALLEST_BLOCK", 4 * 16 * 6 * 4)
    monkeypatch.setattr(streaming, "LARGEST_BLOCK", 4 * 16 * 6 * 4)


@pytest.fixture(autouse=True)
def no_threads_are_left():
    yield
    end = time.monotonic() + 5
    while left := [t.name for t in threading.enumerate() if "grain" in t.name.lower()]:
        assert time.monotonic() < end, left
        time.sleep(0.01)


def saved(folder, array):
    np.save(folder / "inputs.npy", array)
    return open_stored(folder / "inputs.npy")


def train(inputs, targets=T, network=NETWORK, dtype=jnp.float32, **changes):
    settings = {"batch_size": 16, "epochs": 3, "learning_rate": 0.01} | changes
    params = init(network, jax.random.key(0), dtype)
    return fit(network, params, inputs, targets, key=jax.random.key(1), **settings)


def figures(history):
    return [{k: v for k, v in record.items() if k not in TIMES} for record in history]


def assert_same(one, other, tolerance=0.0):
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())
    assert one.best_epoch == other.best_epoch
    for a, b in zip(figures(one.history), figures(other.history), strict=True):
        assert a == pytest.approx(b, rel=max(tolerance, 1e-6 if tolerance else 0), abs=0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_the_same_as_from_memory(tmp_path, dtype):
    stored, settings = saved(tmp_path, X), {"sample_weight": W, **EVERYTHING}
    with jax.enable_x64(dtype == jnp.float64):
        got, same = train(stored, dtype=dtype, **settings), train(X, dtype=dtype, **settings)
        assert_same(got, same, FLOAT64 if dtype == jnp.float64 else 0)
        other = train(X[::-1], dtype=dtype, **settings)
    with pytest.raises(AssertionError):  # other inputs make a difference
        assert_same(got, other, FLOAT64)


@pytest.mark.parametrize(
    ("inputs", "scaling"),
    [
        (RNG.integers(0, 256, (N, 6), np.uint8), Scaling(np.arange(6.0), np.arange(1.0, 7))),
        (X.astype(">f4"), Scaling(np.arange(6.0), np.arange(1.0, 7))),
        (X.astype(np.float16), None),
        (RNG.integers(-9, 9, (N, 2, 3)), Scaling(np.float64(1), np.float64(0.5))),
    ],
    ids=["standardised bytes", "scaled", "half", "images"],
)
def test_the_same_whatever_is_stored_and_done_to_it(tmp_path, inputs, scaling):
    got = train(saved(tmp_path, inputs), scaling=scaling)
    same = inputs.astype(inputs.dtype.newbyteorder("="))  # as arrays in memory have to be
    assert_same(got, train(same.reshape(N, 6), scaling=scaling))


@pytest.mark.parametrize(
    ("n", "settings"),
    [
        (1, {}), (2, {"batch_size": 1}), (16, {}), (17, {}), (N, {"batch_size": 1000}),
        (20, {"batch_size": 5000}),
    ],
)  # fmt: skip
def test_the_same_for_any_number_of_examples(tmp_path, n, settings):
    stored = saved(tmp_path, X)[np.arange(N)[::-1][:n]]
    assert_same(train(stored, T[:n], **settings), train(X[::-1][:n], T[:n], **settings))


def test_chunks_are_the_same_from_disk_and_are_read_in_long_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(orders, "_LARGEST_WINDOW", 128 * 4)  # chunks of four examples
    n = 3001
    x, t = RNG.normal(size=(n, 6)).astype(np.float32), RNG.integers(3, size=n)
    stored, reads = saved(tmp_path, x), []
    monkeypatch.setattr(rows, "_NEAR", 24)  # bytes of a row: those next to each other
    pread = os.pread

    def counted(file, size, where):
        reads.append(size)
        return pread(file, size, where)

    monkeypatch.setattr(os, "pread", counted)
    got = train(stored, t, shuffle="chunks", sample_weight=np.ones(n))
    in_chunks, full = len(reads), train(stored, t)
    # In three epochs every chunk once, and the first batch of each epoch before and after it.
    assert in_chunks <= 3 * (3001 // 4 + 1 + 2 * 16) + 16 < (len(reads) - in_chunks) / 3
    assert_same(got, train(x, t, shuffle="chunks"))
    with pytest.raises(AssertionError):  # the order makes a difference
        assert_same(got, full, FLOAT64)


@pytest.mark.parametrize(("n", "window"), [(1, 256), (300, 256), (1000, 256), (5000, 1024)])
def test_chunks_are_mixed_within_windows(n, window):
    first, again = (orders.epoch_order([3, 4], 0, n, n + 7, window) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.int32 and (first[n:] == -1).all()
    np.testing.assert_array_equal(np.sort(first[:n]), np.arange(n))
    chunk = window // 128
    for place in range(0, n - window, window):  # the last chunk of all may be shorter
        own = np.unique(first[place : place + window] // chunk)
        assert len(own) <= 130
    if n == 5000:
        later = orders.epoch_order([3, 4], 1, n, n, window)
        assert set(first[:window] // chunk) != set(later[:window] // chunk)
        assert np.abs(np.diff(first[:window])).mean() > 500  # not in the order of the file


@pytest.mark.parametrize(("width", "window"), [(1, 8192), (784, 2048), (10**6, 256)])
def test_a_window_is_shorter_where_examples_are_longer(width, window):
    settings = Settings(shuffle="chunks")
    plan = orders.Plan([1], 10, width, 1, 10, None, settings, np.dtype(np.float32))
    assert plan.window == window
    assert plan._replace(settings=Settings()).window is None


def test_a_shuffle_that_is_none_and_a_private_one_in_chunks_are_refused():
    with pytest.raises(ValueError, match="unknown shuffle .rows.: expected one of full, chunks"):
        train(X, shuffle="rows")
    private = {"noise_multiplier": 1.0, "clip_norm": 1.0, "delta": 1e-5}
    with pytest.raises(ValueError, match="shuffle: expected full for a private training"):
        train(X, shuffle="chunks", **private)


def test_the_same_from_records_and_for_a_regression():
    network = Network((6, 4, 2), "relu", "squared_error")
    records = [{"features": row} for row in X.astype(np.float32)]
    targets = X[:, :2] ** 2
    got = train(stored_records(records, "features"), targets, network)
    assert_same(got, train(X.astype(np.float32), targets, network))


def test_what_weighs_nothing_is_not_looked_at(tmp_path):
    x, w = X.copy(), W.copy()
    x[[0, 5, 300]], w[[0, 5, 300]] = np.nan, 0
    got = train(saved(tmp_path, x), sample_weight=w)
    assert_same(got, train(x, sample_weight=w))


@pytest.mark.slow
def test_private_training_is_the_same(tmp_path):
    pytest.importorskip("dp_accounting")
    private = {"noise_multiplier": 1.0, "clip_norm": 0.5, "delta": 1e-5, "sample_weight": W}
    assert_same(train(saved(tmp_path, X), **private), train(X, **private))


class Cut(Exception):
    pass


@pytest.mark.parametrize(("first", "then"), [(True, True), (True, False), (False, True)])
def test_a_training_cut_in_the_middle_goes_on_from_disk_or_memory(
    tmp_path, monkeypatch, first, then
):
    monkeypatch.setattr(epochs, "_PIECE_SECONDS", 1e-9)
    monkeypatch.setattr(epochs.Pace, "smallest", 2)  # in the middle of a block
    inputs = {True: saved(tmp_path, X), False: X}
    whole = train(X, **EVERYTHING)
    for total in (21, 27):
        snapshots = []

        def watch(snapshot, total=total, snapshots=snapshots):
            if snapshot.total >= total:
                snapshots.append(snapshot)
                raise Cut

        with pytest.raises(Cut):
            train(inputs[first], watch=watch, **EVERYTHING)
        assert snapshots[0].step > 0
        assert_same(train(inputs[then], resume=snapshots[0], **EVERYTHING), whole)


def test_one_program_serves_all_blocks_and_other_numbers_of_examples(tmp_path):
    stored = saved(tmp_path, X)
    train(stored, epochs=2)
    with compilations() as names:
        train(stored, epochs=3, learning_rate=0.02)
        train(stored[np.arange(290)], T[:290])
    assert names == []


def test_a_block_has_its_examples_by_rising_numbers_and_the_row_of_each(tmp_path):
    network = Network((6, 5, 3), "tanh")
    params = init(network, jax.random.key(0))
    inputs, weights = X.astype(np.float32), np.ones(N, np.float32)
    inputs[0], weights[0] = np.nan, 0  # example 1 is read in its place, and weighs nothing
    stored = saved(tmp_path, inputs)
    examples = streaming.checked_stored(network, params, stored, T, weights)
    numbers = np.array([[7, 0, 2], [7, -1, 9]], np.int32)
    block, order = examples.block(numbers)
    assert [array.shape for array in block] == [(6, 6), (6,), (6,)]
    assert (order.reshape(2, 3) >= 0).tolist() == (numbers >= 0).tolist()
    assert np.array_equal(block.inputs[order[[0, 1, 2, 3, 5]]], inputs[[7, 1, 2, 7, 9]])
    assert np.array_equal(block.targets[order[[0, 2, 3, 5]]], T[[7, 2, 7, 9]])
    weights = np.asarray(block.weights)
    assert weights[order[[0, 1, 2, 3, 5]]].tolist() == [1, 0, 1, 1, 1]
    assert weights[5] == 0
    batches = examples.batches(numbers)
    assert np.array_equal(batches.inputs[1, [0, 2]], inputs[[7, 9]])
    assert np.array_equal(batches.weights, [[1, 0, 1], [1, 0, 1]])
    assert np.isfinite(batches.inputs).all()
    nothing, order = examples.block(np.full((2, 3), -1, np.int32))
    assert (order == -1).all()
    assert np.array_equal(nothing.inputs[0], inputs[1])  # what stands for none must be an example


@pytest.mark.parametrize("seed", range(4))
def test_what_weighs_nothing_does_not_move_what_else_is_read(tmp_path, seed):
    """In its place another example is read, once more: as many come twice as are left out."""
    rng = np.random.default_rng(seed)
    x, t, weights = X[:48], T[:48], rng.uniform(0.1, 2, 48)
    weights[rng.random(48) < 0.3] = 0
    streamed = train(saved(tmp_path, x), t, sample_weight=weights)
    assert_same(streamed, train(x, t, sample_weight=weights))


def test_threads_read_ahead_of_the_steps(tmp_path, monkeypatch):
    stored, seen = saved(tmp_path, X), []
    block = streaming.StoredExamples.block

    def noted(self, *arguments):
        seen.append(threading.current_thread() is threading.main_thread())
        return block(self, *arguments)

    monkeypatch.setattr(streaming.StoredExamples, "block", noted)
    train(stored)
    # Five blocks an epoch by the threads; the first batch, for its gradient, once and each epoch.
    assert (seen.count(False), seen.count(True)) == (15, 4)


@pytest.mark.parametrize("how", ["disk", "memory"])
def test_a_training_leaves_no_array_behind_for_the_collector(tmp_path, how):
    inputs = saved(tmp_path, X) if how == "disk" else X
    train(inputs)
    gc.collect()
    before = len(jax.live_arrays())
    gc.disable()
    try:
        train(inputs)
        assert len(jax.live_arrays()) == before
    finally:
        gc.enable()


# What goes wrong.


def test_bad_numbers_are_named_when_they_are_read(tmp_path):
    x = X.copy()
    x[7, 2] = np.nan
    message = message_of(streaming.ChangedInputs, lambda: train(saved(tmp_path, x)))
    assert message == f"{tmp_path / 'inputs.npy'}: expected finite inputs, got nan at [7, 2]"
    x[7, 2] = 1e6  # beyond float16
    message = message_of(
        streaming.ChangedInputs, lambda: train(saved(tmp_path, x), dtype=jnp.float16)
    )
    assert message.endswith("got inf at [7, 2] in float16, whose largest is 6.6e+04")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"targets": T[:-1]}, ValueError, "targets: expected"),
        ({"targets": T + 1}, ValueError, "targets: expected classes 0 to 2, got 3"),
        ({"targets": T * 1.0}, TypeError, "targets"),
        ({"sample_weight": -W}, ValueError, "sample_weight: expected numbers ≥ 0"),
        ({"sample_weight": W * 0}, ValueError, "sample_weight: expected a number above 0"),
        ({"network": Network((5, 3))}, ValueError, "inputs: expected"),
        ({"scaling": Scaling(np.ones(5), np.ones(5))}, ValueError, r"scaling.shift: expected"),
        ({"batch_size": 0}, ValueError, "batch_size: expected"),
    ],
)
def test_bad_arguments_are_those_from_memory(tmp_path, changes, error, message):
    stored = saved(tmp_path, X)
    with pytest.raises(error, match=message):
        train(stored, **changes)
    if "above 0" not in message:
        with pytest.raises(error, match=message):
            train(X, **changes)


def test_a_file_cut_off_during_the_training_ends_it_with_a_sentence(tmp_path):
    stored = saved(tmp_path, X)
    path = tmp_path / "inputs.npy"

    def cut(record, snapshot):
        os.truncate(path, path.stat().st_size // 2)

    message = message_of(streaming.LostInputs, lambda: train(stored, callbacks=[cut], epochs=50))
    assert message.startswith(f"{path}: expected 301 rows, as when it was opened")


def test_an_interrupt_leaves_no_thread_reading(tmp_path):
    def interrupt(snapshot):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(saved(tmp_path, X), watch=interrupt)


def test_without_grain_it_says_what_to_install(tmp_path, monkeypatch):
    stored = saved(tmp_path, X)
    monkeypatch.setitem(sys.modules, "grain", None)
    message = message_of(ValueError, lambda: train(stored))
    assert message.endswith('pip install "jaxmlp[stream]"')


# Several devices.

SPREAD = """
import sys, numpy as np, jax
from functools import partial
from jaxmlp import Network, fit, init
from jaxmlp.data import rows
from jaxmlp.data import rows
from jaxmlp.data.rows import open_stored
from jaxmlp.training import streaming
jax.config.update("jax_enable_x64", True)
path, port, number, processes = sys.argv[1], *map(int, sys.argv[2:])
if processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", processes, number)
streaming.SMALLEST_BLOCK = streaming.LARGEST_BLOCK = 4 * 16 * 6 * 8
count, pieces = [0], rows.FileRows.pieces
def counted(self, numbers, *memory):
    count[0] += len(numbers)
    return pieces(self, numbers, *memory)
rows.FileRows.pieces = counted
stored, x = open_stored(path), np.load(path)
t = np.arange(len(x)) % 3
network = Network((6, 5, 3), "tanh")
train = partial(fit, network, init(network, jax.random.key(0), np.float64), batch_size=16, epochs=2,
    dropout=0.2, clip_norm=0.5, sample_weight=1.0 + t, key=jax.random.key(1))
spread = train(stored, t, devices=jax.devices())
read, count[0] = count[0], 0
alone = train(x, t)
apart = max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in
    zip(jax.tree.leaves(spread.params), jax.tree.leaves(alone.params), strict=True))
names = ("train_loss", "gradient_norm")
norms = [[r[k] for r in f.history for k in names] for f in (spread, alone)]
print(len(jax.devices()), read, max(apart, *np.abs(np.subtract(*norms))))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(1, 4), (2, 2)])
def test_each_process_reads_the_rows_of_its_devices_alone(tmp_path, processes, devices):
    import socket

    saved(tmp_path, X)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }  # fmt: skip
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SPREAD, str(tmp_path / "inputs.npy"), str(port), str(number),
             str(processes)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **flags},
        )
        for number in range(processes)
    ]  # fmt: skip
    try:
        for process in running:
            output, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors
            # Gloo's lines come before it, and may run into each other.
            count, read, apart = output.splitlines()[-1].split()
            assert int(count) == processes * devices
            assert float(apart) <= FLOAT64
            # 19 batches of 16 in each of two epochs, and three times the first of one. The last
            # batch lacks 3 examples, which are the last process's.
            lacking = 2 * 3 if process is running[-1] else 0
            assert int(read) == (2 * 19 + 3) * 16 // processes - lacking
    finally:
        for process in running:
            process.kill()


# Memory.

MEASURED = """
import sys, numpy as np, jax
from jaxmlp import Network, fit, init
from jaxmlp.data import rows
from jaxmlp.data.rows import open_stored
def used(kind):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))
stored = open_stored(sys.argv[1])
t = np.arange(len(stored)) % 10
network = Network((784, 16, 10), "relu")
train = lambda x: fit(network, init(network, jax.random.key(0)), x, t[:len(x)], batch_size=512,
    key=jax.random.key(1), epochs=1, learning_rate=1e-4)
train(stored[np.arange(1000)])  # loads and compiles most of what takes memory by itself
before = used("VmRSS")
train(stored.in_memory() if sys.argv[2] == "memory" else stored)
print(used("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc here")
def test_memory_stays_below_a_fifth_of_the_file(tmp_path):
    path, n = tmp_path / "inputs.npy", 700_000
    array = np.lib.format.open_memmap(path, "w+", np.uint8, (n, 784))  # sparse: zeros on no disk
    array[::1000] = 1
    del array
    size = n * 784

    def measured(how):
        return int(
            subprocess.run(
                [sys.executable, "-c", MEASURED, path, how], capture_output=True, text=True,
                check=True, timeout=200, env={**os.environ, "JAX_PLATFORMS": "cpu"},
            ).stdout
        )  # fmt: skip

    assert measured("stream") < size / 5
    assert measured("memory") > size  # which is what it would be otherwise


# The command.


def write_folder(folder):
    folder.mkdir()
    targets = RNG.integers(3, size=200)
    images = RNG.integers(0, 60, (200, 4, 5), np.uint8)
    images[np.arange(200), 0, targets] = 255
    np.save(folder / "inputs.npy", images)
    np.save(folder / "targets.npy", targets)
    np.savez(folder.with_suffix(".npz"), inputs=images, targets=targets)


def test_the_command_streams_a_folder_and_makes_the_model_from_memory(tmp_path, command):
    write_folder(tmp_path / "set")
    options = (*TINY, "--validation-fraction", 0.2, "--standardize", "--seed", 3)
    for run, name, more in (
        ("memory", "set", ()), ("folder", "set", ("--stream",)), ("file", "set.npz", ("--stream",)),
    ):  # fmt: skip
        result = command("train", "--dataset", name, *options, *more, "--output", run)
        assert (result.status, result.errors) == (0, ""), result.errors
        assert "160 training and 40 validation examples" in result.output
        assert same_model(run, "memory") and records(run) == records("memory")
    about = [json.loads((tmp_path / run / "config.json").read_text()) for run in ("memory", "file")]
    assert about[0]["dataset"]["fingerprint"] == about[1]["dataset"]["fingerprint"]
    for arguments in (("--part", "train"), ("--dataset", "set"), ()):
        result = command("evaluate", "folder", *arguments)
        assert (result.status, result.errors) == (0, "")


def test_a_streamed_run_goes_on_with_its_own_data_alone(tmp_path, command):
    write_folder(tmp_path / "set")
    options = ("train", "--dataset", "set", *TINY, "--epochs", 4)
    assert command(*options, "--output", "whole").status == 0
    # The first two epochs of four, as a checkpoint has them.
    code = """
import sys
import importlib
from jaxmlp.cli import main
train = importlib.import_module("jaxmlp.cli.train")
fit = train.fit
def cut(*arguments, watch, **more):
    def stop(snapshot):
        watch(snapshot)
        if snapshot.epoch == 2:
            raise SystemExit(9)
    return fit(*arguments, watch=stop, **more)
train.fit = cut
main(sys.argv[1:])
"""
    more = ("--checkpoint-every", "1e-9", "--stream", "--output", "run")
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, (*options, *more))], capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 9, result.stderr
    result = command("train", "--resume", "--output", "run")
    assert (result.status, result.errors) == (0, ""), result.errors
    assert "resumed   after 2 epochs" in result.output
    assert same_model("run", "whole")
    inputs = np.load(tmp_path / "set" / "inputs.npy")
    inputs[17, 0, 0] ^= 1
    np.save(tmp_path / "set" / "inputs.npy", inputs)
    result = command("train", "--resume", "--output", "run")
    assert result.status == 2
    assert "dataset: expected the data that run was begun with, got others" in result.errors


@pytest.mark.slow  # on the default Python alone
def test_a_file_that_is_cut_while_it_is_trained_on_costs_little(tmp_path, command, monkeypatch):
    write_folder(tmp_path / "set")
    options = ("train", "--dataset", "set", *TINY, "--epochs", 30, "--stream", "--no-pictures")
    assert command(*options, "--output", "whole").status == 0
    path = tmp_path / "set/inputs.npy"
    content = path.read_bytes()
    append_metrics = runs.append_metrics

    def cut(run, record):
        append_metrics(run, record)
        if record["epoch"] == 5:
            os.truncate(path, len(content) // 2)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "append_metrics", cut)
        result = command(*options, "--output", "run", "--checkpoint-every", 1e-9)
    assert result.status == 1 and result.errors.count("\n") == 1
    assert "set/inputs.npy: expected" in result.errors
    assert "rows, as when it was opened, got a file that ends before row" in result.errors
    assert "; the last good checkpoint is run/checkpoints/" in result.errors
    again = "; with the data as they were `jaxmlp train --output run --resume` goes on\n"
    assert result.errors.endswith(again)
    path.write_bytes(content)
    assert command("train", "--output", "run", "--resume").status == 0
    assert same_model("run", "whole")


def test_pictures_are_of_the_first_training_examples_where_there_are_no_others(tmp_path, command):
    write_folder(tmp_path / "set")
    options = [option for option in TINY if option != "--no-pictures"]
    result = command("train", "--dataset", "set", *options, "--stream", "--output", "run")
    assert (result.status, result.errors) == (0, "")
    assert list((tmp_path / "run").glob("*.png"))


def test_the_command_says_what_it_cannot_stream(tmp_path, command, monkeypatch):
    write_folder(tmp_path / "set")

    def errors(name, *more):
        result = command("train", "--dataset", name, *TINY, "--stream", *more)
        assert result.status == 2 and result.errors.count("\n") == 1
        return result.errors

    assert "stream: expected a folder of .npy files" in errors("digits")
    (tmp_path / "empty").mkdir()
    assert "expected the arrays 'inputs' and 'targets', got none" in errors("empty")
    np.savez_compressed("packed.npz", inputs=X, targets=T)
    assert "expected uncompressed inputs" in errors("packed.npz")
    x = X.copy()
    x[7, 1] = np.nan
    np.savez("bad.npz", inputs=x, targets=T)
    assert "train bad.npz: expected finite inputs, got nan at [7, 1]" in errors("bad.npz")
    assert not (tmp_path / "runs").exists()
    monkeypatch.setitem(sys.modules, "grain", None)
    assert 'pip install "jaxmlp[stream]"' in errors("set")


@pytest.mark.slow
def test_the_command_is_stopped_while_it_streams(tmp_path):
    import signal

    write_folder(tmp_path / "set")
    process = start(
        "train", "--dataset", "set", *TINY, "--epochs", 100_000, "--stream", "--output", "run",
        cwd=tmp_path,
    )  # fmt: skip
    for line in process.stdout:
        if "epoch " in line:
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "stopped by SIGINT, saved" in errors
