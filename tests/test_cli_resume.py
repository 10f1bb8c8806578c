"""A run that was stopped, killed or damaged anywhere goes on as if nothing had been."""

import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from command import TINY, ended, records, same_model, start, tree, write_data
from safetensors.numpy import load_file

from jaxmlp import cli
from jaxmlp.cli.console import STOPPING
from jaxmlp.training import interruption, runs

pytestmark = pytest.mark.slow  # on the default Python alone

# Everything that a checkpoint has to carry at once, over more epochs than a small pipe has lines.
OPTIONS = (
    *("--dataset", "images.npz", *TINY, "--hidden", 8, "--epochs", 150),
    *("--dropout", 0.2, "--average-decay", 0.9, "--validation-fraction", 0.2),
    *("--patience", 150, "--monitor", "validation_accuracy", "--schedule", "one_cycle"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same run, uninterrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        write_data(folder)
        cli.main(["train", *map(str, OPTIONS), "--output", "run"])
    return folder / "run"


@pytest.fixture(autouse=True)
def data(tmp_path):
    write_data(tmp_path)


def started(*more):
    """A process whose output is a pipe of few lines: it waits until they are read."""
    return start("train", *OPTIONS, "--output", "run", *more, pipesize=4096)


def resume(command, *options):
    result = command("train", "--resume", "--output", "run", *options)
    assert (result.status, result.errors) == (0, ""), result.errors
    return result.output.splitlines()


def assert_same(run, other):
    assert same_model(run, other)
    assert records(run) == records(other)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_run_that_is_stopped_is_saved_and_goes_on(command, whole, number, status):
    process = started()
    assert process.stdout is not None
    while not process.stdout.readline().startswith("epoch"):
        assert process.poll() is None
    process.send_signal(number)
    result = ended(process)
    assert result.status == status
    heard = STOPPING if number == signal.SIGINT else ""
    assert result.errors == (
        f"{heard}jaxmlp: stopped by {number.name}, saved; `jaxmlp train --output run --resume` "
        "goes on from there\n"
    )
    assert not Path("run/model.safetensors").exists()
    stopped = runs.read_metrics("run")
    assert 0 < len(stopped) < 150
    lines = resume(command)
    assert f"resumed   after {len(stopped)} epochs" in lines
    assert [line.split()[1] for line in lines if line.startswith("epoch")][0] == (
        f"{len(stopped) + 1:>3}/150".strip()
    )
    assert_same("run", whole)


def test_a_run_that_is_killed_goes_on_from_its_last_checkpoint(command, whole):
    process = started("--checkpoint-every", 0.1)
    assert process.stdout is not None
    checkpoints = Path("run/checkpoints")
    while not any(path.name.isdigit() for path in checkpoints.glob("*")):
        assert process.stdout.readline()
    process.kill()
    assert ended(process).status == -signal.SIGKILL
    newest = max(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
    # Three steps an epoch: 48 examples in batches of 16. What came after the checkpoint is cut.
    assert newest % 3 == 0 and len(runs.read_metrics("run")) >= newest // 3
    lines = resume(command)
    assert f"resumed   after {newest // 3} epochs" in lines
    assert_same("run", whole)


# The rest in this process: the signal comes when so many lines of metrics are written.


@pytest.fixture
def stop_after(monkeypatch):
    """Send this process a signal, or some, after so many epochs, of all seeds together."""

    def arm(epochs, *numbers):
        count = 0

        def append(run, record):
            nonlocal count
            append_metrics(run, record)
            count += 1
            if count == epochs:
                for number in numbers:
                    os.kill(os.getpid(), number)

        append_metrics = runs.append_metrics
        monkeypatch.setattr(runs, "append_metrics", append)

    return arm


def stopped(command, *options):
    result = command("train", *OPTIONS, "--output", "run", *options)
    assert result.status == 143, result.errors


def test_float64_goes_on_as_float64_and_is_used_without_a_word_to_jax(command, stop_after):
    double = ("--dtype", "float64")
    assert command("train", *OPTIONS, *double, "--output", "whole").status == 0
    assert not jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    stop_after(3, signal.SIGTERM)
    stopped(command, *double)
    assert any("resumed   after" in line for line in resume(command))
    assert_same("run", "whole")
    assert load_file("run/model.safetensors")["0.weight"].dtype == np.float64
    for arguments in (
        ("evaluate", "run"),
        ("predict", "run", "images.npz"),
        ("export", "run", "--format", "torch"),
        ("influence", "run", "--part", "train"),
    ):
        result = command(*arguments)
        assert (result.status, result.errors) == (0, ""), result.errors
    assert not jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]


def test_a_copied_run_finds_the_data_beside_it(command, whole, stop_after):
    Path("one").mkdir()
    Path("images.npz").rename("one/images.npz")
    os.chdir("one")
    stop_after(3, signal.SIGTERM)
    stopped(command)
    os.chdir("..")
    shutil.copytree("one", "two")
    shutil.copytree("one", "three")
    np.savez("one/images.npz", inputs=np.zeros((4, 20)), targets=np.arange(4) % 2)
    Path("one/run/checkpoints").rename("gone")
    os.chdir("two")
    for arguments in (("train", "--resume", "--output", "run"), ("evaluate", "run")):
        result = command(*arguments)
        assert (result.status, result.errors) == (0, ""), result.errors
    assert_same("run", whole)
    os.chdir("../three")
    np.savez("images.npz", inputs=np.zeros((4, 20)), targets=np.arange(4) % 2)
    result = command("train", "--resume", "--output", "run")
    assert result.status == 2
    assert "dataset: expected the data that run was begun with, got others from " in result.errors
    Path("../one/images.npz").write_text("none any more")
    Path("images.npz").write_text("nor here")
    result = command("train", "--resume", "--output", "run")
    assert result.status == 2 and "one/images.npz: expected an" in result.errors
    os.chdir("..")


def test_the_mode_of_64_bits_is_left_as_it_was(command):
    for mode in (False, True):
        with jax.enable_x64(mode):
            assert command("data", "list").status == 0
            result = command("train", *OPTIONS, "--dtype", "float64", "--output", f"run-{mode}")
            assert (result.status, result.errors) == (0, "")
            assert command("evaluate", f"run-{mode}", "--part", "test").status == 2
        assert not jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]


def test_a_run_goes_on_with_or_without_pictures_as_it_was_begun(command, whole, stop_after):
    drawn = [option for option in OPTIONS if option != "--no-pictures"]
    for number, (options, more, pictures) in enumerate(
        ((OPTIONS, (), False), (OPTIONS, ("--pictures",), True), (drawn, (), True))
    ):
        folder = Path(str(number))
        stop_after(3, signal.SIGTERM)
        assert command("train", *options, "--output", folder).status == 143
        assert command("train", "--output", folder, "--resume", *more).status == 0
        assert same_model(folder, whole)
        assert bool(list(folder.glob("*.png"))) == pictures


def test_data_are_those_of_the_folder_where_a_run_was_begun(command, whole, stop_after):
    stop_after(3, signal.SIGTERM)
    stopped(command)
    Path("other/images.npz").mkdir(parents=True)  # a stranger's, and not even a file
    os.chdir("other")
    for arguments in (("train", "--resume"), ("evaluate",)):
        name = "--output" if arguments[0] == "train" else None
        result = command(*arguments, *filter(None, [name]), "../run")
        assert (result.status, result.errors) == (0, ""), result.errors
    os.chdir("..")
    assert_same("run", whole)


def test_metrics_are_cut_to_the_checkpoint(command, whole, stop_after):
    stop_after(5, signal.SIGTERM)
    stopped(command)
    lines = Path("run/metrics.jsonl").read_text()
    # As a kill leaves it: epochs beyond the checkpoint, and half a line.
    Path("run/metrics.jsonl").write_text(lines + lines.splitlines()[-1] + "\n" + lines[:20])
    Path("run/.metrics.jsonl.123").write_text("half")
    assert "resumed   after 5 epochs" in resume(command)
    assert_same("run", whole)
    assert not Path("run/.metrics.jsonl.123").exists()


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(command, whole, stop_after):
    stop_after(7, signal.SIGTERM)
    stopped(command, "--checkpoint-every", "1e-9", "--keep", 2)
    checkpoints = Path("run/checkpoints")
    numbers = sorted(int(path.name) for path in checkpoints.iterdir())
    assert numbers == [18, 21]
    for path in (checkpoints / "21" / "arrays").rglob("d/*"):
        path.write_bytes(b"no array")
    # Several arrays fail at once, of which only a process of the command's own has one sentence.
    result = ended(start("train", "--resume", "--output", "run"))
    assert result.status == 0
    assert result.errors.startswith("jaxmlp: checkpoint run/checkpoints/21 is damaged (")
    assert result.errors.endswith("it is set aside as damaged-21\n")
    assert result.errors.count("\n") == 1
    assert "resumed   after 6 epochs" in result.output.splitlines()
    assert_same("run", whole)


def test_resume_of_nothing_starts(command, whole):
    lines = resume(command, *OPTIONS)
    assert not any(line.startswith("resumed") for line in lines)
    assert_same("run", whole)


def test_resume_where_nothing_was_written_yet_starts(command, whole):
    # As a kill leaves it before the first file is whole.
    Path("run").mkdir()
    Path("run/.config.json.123").write_text("half")
    resume(command, *OPTIONS)
    assert_same("run", whole)
    assert not Path("run/.config.json.123").exists()


def test_the_run_s_options_may_be_given_again_and_those_of_the_process_may_change(
    command, whole, stop_after
):
    stop_after(3, signal.SIGTERM)
    stopped(command)
    lines = resume(command, *OPTIONS, "--keep", 1, "--checkpoint-every", 60, "--quiet")
    assert len(lines) == 1 and lines[0].endswith("saved in run")
    assert_same("run", whole)


def test_an_option_with_an_equals_sign_names_the_run_too(command, whole, stop_after):
    stop_after(3, signal.SIGTERM)
    stopped(command)
    result = command("train", "--output=run", "--resume")
    assert (result.status, result.errors) == (0, "")
    assert_same("run", whole)


def test_a_finished_run_says_so_and_is_left_as_it_is(command, whole):
    shutil.copytree(whole, "run")
    before = tree("run")
    lines = resume(command)
    assert "run is trained already" in lines
    best = max(records("run"), key=lambda record: record["validation_accuracy"])
    assert lines[-1].startswith(f"validation accuracy {best['validation_accuracy']:.4f} after ")
    assert tree("run") == before
    assert len(resume(command, "--quiet")) == 1


def test_several_seeds_go_on_in_the_middle_of_one(command, stop_after):
    options = ("--epochs", 20, "--seeds", 3, "--patience", 4)
    assert command("train", *OPTIONS, *options, "--output", "straight").status == 0
    first = len(runs.read_metrics("straight/seed-0"))
    stop_after(first + 3, signal.SIGTERM)
    stopped(command, *options)
    assert {path.name for path in Path("run").iterdir()} == {"seed-0", "seed-1"}
    lines = resume(command)
    assert "run/seed-0 is trained already" in lines
    assert "resumed   after 3 epochs" in lines
    for seed in range(3):
        assert_same(f"run/seed-{seed}", f"straight/seed-{seed}")
    ours, theirs = (
        json.loads(Path(run, "summary.json").read_text()) for run in ("run", "straight")
    )
    assert ours["mean"] == theirs["mean"]
    assert ours["standard_deviation"] == theirs["standard_deviation"]


def test_a_second_ctrl_c_ends_it_at_once(command, stop_after, monkeypatch):
    monkeypatch.setattr(interruption, "_SAME", 0.0)
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background
    stop_after(3, signal.SIGINT, signal.SIGINT)
    result = command("train", *OPTIONS, "--output", "run")
    assert (result.status, result.errors) == (130, "jaxmlp: interrupted\n")
    assert not Path("run/checkpoints").exists()
    # The handlers are those from before.
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_ctrl_c_that_comes_with_the_first_is_the_same(command, stop_after):
    stop_after(3, signal.SIGINT, signal.SIGINT)  # as `timeout -s INT` sends it
    result = command("train", *OPTIONS, "--output", "run")
    assert result.status == 130 and "stopped by SIGINT, saved" in result.errors
    assert len(runs.read_metrics("run")) == 3 and Path("run/checkpoints").is_dir()


def test_a_run_from_before_an_option_goes_on(command, stop_after):
    stop_after(3, signal.SIGTERM)
    stopped(command)
    path = Path("run/config.json")
    config = json.loads(path.read_text())
    del config["training"]["standardize_targets"]
    for name in ("folder", "target", "target_scaling"):
        del config["dataset"][name]
    path.write_text(json.dumps(config))
    assert "resumed   after 3 epochs" in resume(command)


def test_the_way_on_is_one_that_a_shell_understands(command, stop_after):
    stop_after(1, signal.SIGTERM)
    result = command("train", *OPTIONS, "--output", "my run")
    assert "`jaxmlp train --output 'my run' --resume`" in result.errors
