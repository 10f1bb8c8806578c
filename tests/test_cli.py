"""The command as a whole: usage, help, and the process with its streams and statuses."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import TINY, ended, start, write_data

import jaxmlp

COMMANDS = ("train", "evaluate", "predict", "export", "verify", "data", "info")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trian"],
        ["train", "--lerning-rate", "1"],
        ["train", "--batch-size", "3.5"],
        ["train", "--dtype", "float8"],
        ["train", "--device", "tpu"],
        ["train", "--resume", "--output"],
        ["evaluate"],
        ["evaluate", "run", "--part", "all"],
        ["predict", "run"],
        ["export", "run", "--format", "pickle"],
        ["verify", "--trials", "many"],
        ["data"],
    ],
    ids=" ".join,
)
def test_bad_usage_ends_with_2(command, arguments):
    status, _, errors = command(*arguments)
    assert status == 2
    assert errors and "Traceback" not in errors


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS), ["data", "prepare"]])
def test_every_command_has_help(command, arguments):
    status, output, errors = command(*arguments, "--help")
    assert (status, errors) == (0, "") and "usage: jaxmlp" in output
    if not arguments:
        assert all(name in output for name in COMMANDS)


def test_version_is_the_package_s(command):
    assert command("--version") == (0, f"{jaxmlp.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "both", "status"),
    [(["--help"], False, 0), (["--version"], False, 0), (["trian"], True, 2)],
)
def test_a_reader_who_leaves_changes_no_status(arguments, both, status):
    end, pipe = os.pipe()
    os.close(end)
    where = {"stdout": pipe, "stderr": pipe if both else subprocess.PIPE}
    process = subprocess.run([sys.executable, "-m", "jaxmlp", *arguments], **where)
    os.close(pipe)
    assert process.returncode == status and not process.stderr


def test_a_sentence_that_nobody_reads_keeps_its_status(command, monkeypatch):
    def gone(_):
        raise BrokenPipeError

    with monkeypatch.context() as patch:
        patch.setattr(sys.stderr, "write", gone)
        assert command("evaluate", "no-run").status == 2


def test_the_help_of_resume_shows_the_run_s_own_options(command, trained):
    status, output, _ = command("train", "--resume", "--output", "animals", "--help")
    assert status == 0 and "(default: animals.csv)" in " ".join(output.split())


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")
def test_a_report_that_cannot_be_written_is_one_sentence_and_1():
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "jaxmlp", "data", "list"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    message = "jaxmlp: standard output: cannot be written: No space left on device\n"
    assert (result.returncode, result.stderr) == (1, message)


def test_a_run_whose_output_nobody_reads_any_more_goes_on_and_is_saved(tmp_path):
    write_data(tmp_path)
    # A terminal of another time: no line is lost to it, nor the run to a ±.
    process = start(
        "train", "--dataset", "animals.csv", *TINY, "--epochs", 100, "--output", "run",
        cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    with process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 0
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 100
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_platform_that_jax_does_not_know_is_one_sentence(tmp_path):
    result = ended(start("train", cwd=tmp_path, env={**os.environ, "JAX_PLATFORMS": "bogus"}))
    assert result.status == 2
    assert result.errors.startswith("jaxmlp: device: JAX cannot start here: ")
    assert result.errors.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_a_bad_input_takes_seconds_and_prints_no_traceback(tmp_path):
    begin = time.perf_counter()
    process = start(
        "train", "--dataset", "mnist", "--data-dir", tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )  # fmt: skip
    result = ended(process)
    assert result.status == 2
    assert result.errors.startswith("jaxmlp: data_dir: expected train-images-idx3-ubyte, ")
    assert result.errors.count("\n") == 1
    assert time.perf_counter() - begin < 20  # three times what it takes on a busy machine
