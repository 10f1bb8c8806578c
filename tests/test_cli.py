"""The command line: a run from its start to its files, the table of verify, and every bad input."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from files import idx

import jaxmlp
from jaxmlp import cli
from jaxmlp.data import load_dataset
from jaxmlp.data.preparation import Preparation
from jaxmlp.data.prepared import Prepared
from jaxmlp.training import runs
from jaxmlp.verification import table
from jaxmlp.verification.comparison import NO_DIFFERENCE, Found

SMALL = ("--hidden", "8", "--epochs", "1")


@pytest.fixture(autouse=True)
def an_empty_folder(tmp_path, monkeypatch):
    """Runs go to runs/ of the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def command(capsys):
    """Run the command in this process: (exit status, standard output, standard error)."""

    def run(*arguments):
        status = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = error.code or 0
        return status, *capsys.readouterr()

    return run


def write_idx(path, array):
    """The array as an idx file of unsigned bytes; gzipped where its name says so."""
    content = idx(array.astype(np.uint8))
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def mnist(tmp_path):
    """A folder with four small idx files: three classes that a pixel each tells apart."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, n in (("train", 96), ("t10k", 30)):
        labels = rng.integers(3, size=n)
        images = rng.integers(60, size=(n, 4, 5))
        images[np.arange(n), 0, labels] = 255
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels)
    return folder


# A run.


def test_train_without_arguments_learns_the_digits(command):
    status, output, errors = command("train")
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0].startswith("device     ") and "float32, matmul precision default" in lines[0]
    assert lines[1].startswith("data       digits: 1437 training and 360 test examples from ")
    assert lines[2] == "network    64-128-64-10, sigmoid, softmax_cross_entropy, 17,226 parameters"
    assert lines[3] == "training   adam, learning rate 0.005 (cosine), batches of 32, seed 0"
    assert [line.split()[1] for line in lines[4:-1]] == [f"{n}/20" for n in range(1, 21)]
    last = re.fullmatch(
        r"test accuracy (0\.\d{4}) after \d+\.\d s; saved in runs/digits-1", lines[-1]
    )
    assert last and float(last[1]) >= 0.96
    # The run's files say the same, and the model is the one that was evaluated.
    run = Path("runs/digits-1")
    assert sorted(path.name for path in run.iterdir()) == [
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
    ]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == list(range(1, 21))
    assert records[-1].keys() == {
        "epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds",
        "examples_per_second",
    }  # fmt: skip
    assert f"{records[-1]['test_accuracy']:.4f}" == last[1]
    network, params, metadata = jaxmlp.load(run)
    assert network == jaxmlp.Network((64, 128, 64, 10))
    assert metadata["training"]["learning_rate"] == 0.005
    assert metadata["dataset"]["name"] == "digits"
    digits = load_dataset("digits")
    metrics = jaxmlp.evaluate(network, params, *digits.test, scaling=digits.scaling)
    assert metrics.accuracy == pytest.approx(records[-1]["test_accuracy"])
    assert metrics.loss == pytest.approx(records[-1]["test_loss"], rel=1e-6)


def test_the_same_seed_gives_the_same_model_and_another_seed_another(command):
    for seed in (3, 3, 4):
        assert command("train", *SMALL, "--seed", seed)[0] == 0
    one, two, other = (Path(f"runs/digits-{n}/model.safetensors").read_bytes() for n in (1, 2, 3))
    assert one == two != other


@pytest.mark.parametrize(
    ("options", "figure"),
    [
        ((), "test accuracy"),
        (("--loss", "sigmoid_binary_cross_entropy"), "test accuracy"),
        (("--loss", "squared_error", "--no-bias"), "test loss"),
        (("--dtype", "bfloat16"), "test accuracy"),
        (("--schedule", "constant", "--label-smoothing", "0.1"), "test accuracy"),
        (("--precision", "highest", "--device", "cpu", "--hidden"), "test accuracy"),
        (("--hidden", "8", "6", "--activation", "relu", "tanh"), "test accuracy"),
    ],
    ids=lambda options: " ".join(options) if isinstance(options, tuple) else "",
)
def test_idx_files_are_learnt_with_every_option(command, mnist, options, figure):
    run = Path("the run")
    status, output, errors = command(
        "train", "--dataset", "mnist", "--data-dir", mnist, "--batch-size", 8, "--epochs", 30,
        "--hidden", 16, "--learning-rate", 0.02, "--output", run, *options,
    )  # fmt: skip
    assert (status, errors) == (0, "")
    assert "mnist: 96 training and 30 test examples from " + str(mnist) in output
    last = output.splitlines()[-1]
    assert last.startswith(figure) and last.endswith("saved in the run")
    value = float(last.split()[2])
    assert value > 0.9 if figure == "test accuracy" else value < 0.25
    network, params, _ = jaxmlp.load(run)
    assert jaxmlp.predictions(network, params, np.zeros((2, 20))).shape == (2, 10)


def test_a_run_that_diverges_fails_and_names_the_epoch(command):
    status, output, errors = command(
        "train", "--loss", "squared_error", "--activation", "relu", "--optimizer", "sgd",
        "--learning-rate", "1e9", "--epochs", "3",
    )  # fmt: skip
    assert status == 1
    assert re.fullmatch(
        r"jaxmlp: training diverged: the train loss became \S+ in epoch \d of 3;.*\n", errors
    )
    assert not Path("runs/digits-1/model.safetensors").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 256 GB\nmore"),
            "RESOURCE_EXHAUSTED: 256 GB",
        ),
        (MemoryError("Unable to allocate 256 GB"), "out of memory: Unable to allocate 256 GB"),
    ],
    ids=["device", "host"],
)
def test_memory_that_runs_out_is_one_sentence(command, monkeypatch, error, message):
    def no_memory(*_, **__):
        raise error

    monkeypatch.setattr(cli, "init", no_memory)
    status, _, errors = command("train")
    assert status == 1
    assert errors.startswith("jaxmlp: ") and errors.endswith(f"{message}\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_is_full_is_one_sentence(command, monkeypatch):
    Path("run").mkdir()
    monkeypatch.setattr(runs, "METRICS", "/dev/full")
    status, _, errors = command("train", *SMALL, "--output", "run")
    assert status == 1
    assert errors == "jaxmlp: [Errno 28] No space left on device\n"


def test_a_run_whose_output_nobody_reads_any_more_goes_on_and_is_saved(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxmlp", "train", "--epochs", "100", "--output", "run"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    with process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 0
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 100
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_last_step_that_leads_to_nan_is_a_failure_and_no_model(command):
    # One step an epoch: the training loss is that before it, and fine.
    status, _, errors = command(
        "train", "--loss", "squared_error", "--activation", "relu", "--optimizer", "sgd",
        "--learning-rate", "1e38", "--epochs", "1", "--batch-size", "1437", "--output", "run",
    )  # fmt: skip
    assert status == 1
    assert errors.startswith("jaxmlp: training diverged: the test loss became ")
    assert not Path("run/model.safetensors").exists()
    assert not Path("run/metrics.jsonl").exists()


def test_a_link_to_nowhere_in_the_place_of_the_runs_is_named(command):
    Path("runs").symlink_to("nowhere/at/all")
    status, _, errors = command("train", *SMALL)
    assert status == 2
    assert errors == "jaxmlp: output: cannot make the folder runs: File exists\n"


@pytest.mark.parametrize("arguments", [["train"], ["verify"]])
def test_a_platform_that_jax_does_not_know_is_one_sentence(arguments):
    result = subprocess.run(
        [sys.executable, "-m", "jaxmlp", *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, "JAX_PLATFORMS": "bogus"},
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith("jaxmlp: device: JAX cannot start here: ")
    assert result.stderr.count("\n") == 1


def test_ctrl_c_ends_a_run_with_130_and_no_traceback(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxmlp", "train", "--epochs", "1000000", "--output", "run"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    while not process.stdout.readline().startswith("epoch"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "jaxmlp: interrupted\n")


# data.


def test_the_data_sets_are_listed_with_where_they_are(command, monkeypatch):
    found = Prepared(Path("there"), {}, {})
    monkeypatch.setattr(cli, "find_prepared", lambda name, _: found if name == "kmnist" else None)
    status, output, _ = command("data", "list", "--data-dir", "here")
    assert status == 0
    assert output == (
        "digits         ships with scikit-learn\n"
        "iris           ships with scikit-learn\n"
        "wine           ships with scikit-learn\n"
        "breast_cancer  ships with scikit-learn\n"
        "diabetes       ships with scikit-learn\n"
        "mnist          not prepared in here\n"
        "fashion_mnist  not prepared in here\n"
        "kmnist         prepared in there\n"
        "emnist         not prepared in here\n"
    )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["mnits", "--from", "."], 2, "unknown dataset 'mnits': did you mean 'mnist'?"),
        (["digits", "--from", "."], 2, "unknown dataset 'digits'"),
        (["mnist"], 2, "from: expected a folder with the files of mnist (--from DIR), or --down"),
        (["mnist", "--from", ".", "--download"], 2, "from: expected a folder with the files of "),
        (["mnist", "--from", "nowhere"], 2, "source: expected a folder, got nowhere, which does"),
        (["mnist", "--from", "."], 2, "source: expected train-images-idx3-ubyte"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_prepared_is_named_in_one_sentence(command, arguments, status, message):
    before = sorted(Path.cwd().rglob("*"))
    got, output, errors = command("data", "prepare", *arguments)
    assert (got, output) == (status, "")
    assert errors.startswith(f"jaxmlp: {message}") and errors.count("\n") == 1
    assert sorted(Path.cwd().rglob("*")) == before


@pytest.mark.parametrize("already", [False, True])
def test_prepare_says_what_it_did(command, monkeypatch, already):
    done = Preparation("mnist", Path("there"), already, 60_000, 10_000, "its hash")
    asked = []

    def prepare(*arguments):
        asked.append(arguments)
        return done

    monkeypatch.setattr(cli, "prepare", prepare)
    status, output, _ = command("data", "prepare", "mnist", "--from", "here", "--data-dir", "there")
    assert status == 0 and asked == [("mnist", Path("there"), Path("here"))]
    what = "was prepared already" if already else "is prepared, checked by its hash"
    assert output == f"mnist {what}: 60,000 training and 10,000 test examples in there\n"
    assert command("data", "prepare", "mnist", "--download")[0] == 0
    assert asked[-1] == ("mnist", None, None)


def test_a_publisher_that_cannot_be_reached_is_one_sentence_and_1(command, monkeypatch):
    def prepare(*_):
        raise ConnectionError("mnist: expected to download it, got: no answer")

    monkeypatch.setattr(cli, "prepare", prepare)
    status, _, errors = command("data", "prepare", "mnist", "--download")
    assert (status, errors) == (1, "jaxmlp: mnist: expected to download it, got: no answer\n")


# verify.


def test_verify_prints_a_row_for_everything_and_writes_json(command, monkeypatch):
    chosen = [row for row in table.ROWS if row[0] in ("equations", "faults")]
    monkeypatch.setattr(table, "ROWS", chosen)
    status, output, errors = command("verify", "--trials", 3, "--seed", 7, "--json", "table.json")
    assert (status, errors) == (0, "")
    assert "✓ equations     the paper's equations 4 and 7 against jax.grad: 6 cases" in output
    assert "✓ faults        planted mistakes, each seen and named: 12 cases" in output
    assert output.splitlines()[-1].startswith("every gradient holds: 2 rows in ")
    content = json.loads(Path("table.json").read_text())
    assert content["passed"] is True
    assert (content["trials"], content["seed"], content["jax"]) == (3, 7, jax.__version__)
    assert [row["name"] for row in content["rows"]] == ["equations", "faults"]


def test_verify_fails_when_a_bound_is_broken(command, monkeypatch):
    found = Found(NO_DIFFERENCE._replace(size=1e-3, leaf="params[0].weight"), "a case", "a call")
    monkeypatch.setattr(
        table,
        "ROWS",
        [("good", "what", 1e-2, lambda _: [found]), ("bad", "what", 1e-4, lambda _: [found])],
    )
    status, output, errors = command("verify", "--json", "table.json")
    assert status == 1
    assert errors == "jaxmlp: 1 of 2 rows failed: bad\n"
    assert "✗ bad           what: 1 cases, worst 1.0e-03, bound 1e-04" in output
    assert "to repeat it: a call" in output
    assert json.loads(Path("table.json").read_text())["passed"] is False


@pytest.mark.slow
def test_every_gradient_holds():
    # The whole proof, as its user runs it, with few draws: compiling takes most of the time.
    result = subprocess.run(
        [sys.executable, "-m", "jaxmlp", "verify", "--trials", "5", "--json", "table.json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "every gradient holds: 9 rows" in result.stdout
    rows = json.loads(Path("table.json").read_text())["rows"]
    assert {row["status"] for row in rows} == {"passed"}
    assert {row["name"]: row["cases"] for row in rows}["float64"] == 216


# Bad input: one clear sentence, exit status 2, nothing made.


def truncated(folder):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])


def short(folder):
    path = folder / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])


def label_10(folder):
    path = folder / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")


def empty(folder):
    write_idx(folder / "train-images-idx3-ubyte.gz", np.zeros((0, 4, 5)))
    write_idx(folder / "train-labels-idx1-ubyte", np.zeros(0))


def unequal(folder):
    write_idx(folder / "train-labels-idx1-ubyte", np.zeros(95))


def missing(folder):
    (folder / "t10k-images-idx3-ubyte.gz").unlink()


BAD_OPTIONS = {
    "--dataset mnits": "unknown dataset 'mnits': did you mean 'mnist'? expected one of digits, ",
    "--dataset mnist": "data_dir: mnist is read from files: expected a folder (--data-dir DIR)",
    "--dataset mnist --data-dir nowhere": "data_dir: expected a folder, got nowhere, which does",
    "--activation relo": "unknown activation 'relo': did you mean 'relu'? expected one of ",
    "--activation relu tanh silu": "activation: expected one name or 2, one for each hidden layer",
    "--loss square": "unknown loss 'square': did you mean 'squared_error'? expected one of ",
    "--optimizer adm": "unknown optimizer 'adm': did you mean 'adam'? expected one of sgd, ",
    "--schedule cosin": "unknown schedule 'cosin': did you mean 'cosine'?",
    "--precision hihg": "unknown precision 'hihg': did you mean 'high'?",
    "--hidden 0": "hidden: expected sizes of at least 1, got [0]",
    "--hidden 8 -3": "hidden: expected sizes of at least 1, got [8, -3]",
    "--hidden 99999999999999999999": "sizes: expected sizes of at most 2147483647, got 99999",
    "--data-dir file": "data_dir: expected none for digits, which ship with scikit-learn, got file",
    "--learning-rate 0": "learning_rate: expected a number above 0, got 0.0",
    "--learning-rate nan": "learning_rate: expected a number above 0, got nan",
    "--learning-rate inf": "learning_rate: expected a number above 0, got inf",
    "--batch-size 0": "batch_size: expected an integer of at least 1, got 0",
    "--epochs -1": "epochs: expected an integer of at least 1, got -1",
    "--label-smoothing 1": "label_smoothing: expected a number in [0, 1), got 1.0",
    "--label-smoothing 0.1 --loss squared_error": "label_smoothing: expected 0 for the loss",
    "--seed -1": "seed: expected an integer from 0 to 2^63 - 1, got -1",
    "--dtype float64": "dtype: float64 needs JAX's 64-bit mode, which is off: set JAX_ENABLE_X64=1",
    "--output full": "output: expected a new or empty folder, got full, which already holds files",
    "--output file": "output: expected a folder, got file, which is a file",
    "--output file/run": "output: cannot make the folder file/run: Not a directory",
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.items(), ids=BAD_OPTIONS)
def test_a_bad_option_is_named_in_one_sentence(command, options, message):
    Path("full").mkdir()
    Path("full/model.safetensors").write_text("a model that must not be lost")
    Path("file").write_text("a file")
    before = sorted(Path.cwd().rglob("*"))
    status, output, errors = command("train", *options.split())
    assert (status, output) == (2, "")
    assert errors.startswith(f"jaxmlp: {message}") and errors.count("\n") == 1
    assert sorted(Path.cwd().rglob("*")) == before
    assert Path("full/model.safetensors").read_text() == "a model that must not be lost"


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_named(command):
    status, _, errors = command("train", "--device", "gpu")
    assert status == 2
    assert errors == (
        "jaxmlp: device: expected a GPU that JAX can use, got none; is the CUDA extra installed "
        '(pip install "jaxmlp[cuda13]")?\n'
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            truncated,
            "train-images-idx3-ubyte.gz: expected a whole gzip stream, got one that is cut",
        ),
        (short, "t10k-labels-idx1-ubyte: expected 30 bytes of numbers for uint8 of shape (30,)"),
        (label_10, "train-labels-idx1-ubyte: expected classes 0 to 9, got 10 at [95]"),
        (empty, "train-images-idx3-ubyte.gz: expected at least one image, got shape (0, 4, 5)"),
        (unequal, "train-labels-idx1-ubyte: expected 96 labels, one for each image in "),
        (missing, "data_dir: expected t10k-images-idx3-ubyte or t10k-images.idx3-ubyte, with or "),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_damaged_data_is_named_in_one_sentence(command, mnist, damage, message):
    damage(mnist)
    status, output, errors = command("train", "--dataset", "mnist", "--data-dir", mnist)
    assert (status, output) == (2, "")
    assert message in errors and errors.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "--trials", "0"], "trials: expected an integer of at least 1, got 0"),
        (["verify", "--seed", "-1"], "seed: expected an integer of at least 0, got -1"),
        (["verify", "--json", "."], "json: expected a file, got ., which is a folder"),
        (["verify", "--json", "no/t.json"], "[Errno 2] No such file or directory: 'no/t.json'"),
    ],
)
def test_verify_refuses_bad_options_before_it_begins(command, arguments, message):
    assert command(*arguments) == (2, "", f"jaxmlp: {message}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trian"],
        ["train", "--lerning-rate", "1"],
        ["train", "--batch-size", "3.5"],
        ["train", "--dtype", "float16"],
        ["train", "--device", "tpu"],
        ["verify", "--trials", "many"],
    ],
    ids=" ".join,
)
def test_bad_usage_ends_with_2(command, arguments):
    status, _, errors = command(*arguments)
    assert status == 2
    assert "Traceback" not in errors


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["verify", "--help"]])
def test_every_command_has_help(command, arguments):
    status, output, _ = command(*arguments)
    assert status == 0 and "usage: jaxmlp" in output


def test_version_is_the_package_s(command):
    assert command("--version") == (0, f"{jaxmlp.__version__}\n", "")


def test_a_bad_input_takes_seconds_and_prints_no_traceback(tmp_path):
    begin = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-m", "jaxmlp", "train", "--dataset", "mnist", "--data-dir", tmp_path],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONWARNINGS": "error"},
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith("jaxmlp: data_dir: expected train-images-idx3-ubyte, ")
    assert result.stderr.count("\n") == 1
    assert time.perf_counter() - begin < 20  # three times what it takes on a busy machine
