"""`jaxmlp train --private`: what it spends and tells, and that it refuses what would leak."""

import itertools
import json
import os
import re
import secrets
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from command import TINY, records, same_model, tree, write_data
from safetensors.numpy import load_file

from jaxmlp.privacy import epsilon
from jaxmlp.training import epochs, runs

pytestmark = pytest.mark.slow  # on the default Python alone: compiling takes most of it


ANIMALS = ("--dataset", "animals.csv", "--test-file", "animals-test.csv")
PRIVATE = (
    *("--private", "--clip-norm", 0.5, "--noise-multiplier", 1.2, "--delta", 1e-3),
    *TINY,
)
STEPS = 4  # an epoch: ⌈60 / 16⌉


@pytest.fixture(autouse=True)
def data(tmp_path):
    write_data(tmp_path)


@pytest.fixture
def train(command):
    """Run `jaxmlp train --private` and expect success."""

    def run(*options):
        result = command("train", *PRIVATE, *options)
        assert (result.status, result.errors) == (0, ""), result.errors
        return result.output.splitlines()

    return run


@pytest.fixture
def same_secrets(monkeypatch):
    """Every run draws the same secret, so that two can be compared."""
    monkeypatch.setattr(secrets, "token_bytes", bytes)


def test_a_run_says_what_it_spends_and_records_nothing_of_its_examples(train):
    lines = train(*ANIMALS, "--output", "run")
    spent = [epsilon(1.2, 16 / 60, STEPS * epoch, 1e-3) for epoch in (1, 2)]
    assert "float32, matmul precision highest" in lines[0]
    assert lines[4] == (
        f"privacy    epsilon {spent[1]:.3f} at delta 0.001 for the training examples: clip norm "
        "0.5, noise multiplier 1.2, 8 Poisson batches"
    )
    shown = [line for line in lines if line.startswith("epoch")]
    assert [re.findall(r"epsilon (\S+)", line) for line in shown] == [[f"{e:.3f}"] for e in spent]
    assert f", epsilon {spent[1]:.3f} at delta 0.001 after " in lines[-1]
    figures = {"epoch", "test_loss", "test_accuracy", "epsilon"}
    assert [set(record) for record in records("run")] == [figures] * 2
    assert [record["epsilon"] for record in records("run")] == spent
    # No secret is left of a run that has ended.
    assert {path.name for path in Path("run").iterdir()} == {
        "config.json", "metrics.jsonl", "model.safetensors",
    }  # fmt: skip


def test_figures_of_the_examples_are_recorded_on_request(train):
    train(*ANIMALS, "--unprotected-figures", "--output", "run")
    expected = {"train_loss", "train_accuracy", "gradient_norm", "clipped_fraction"}
    assert all(expected < set(record) for record in records("run"))


def test_the_noise_is_solved_for(command):
    result = command(
        "train", "--private", "--clip-norm", 1, "--epsilon", 2, "--delta", 1e-3, *TINY, *ANIMALS,
        "--output", "run",
    )  # fmt: skip
    assert (result.status, result.errors) == (0, "")
    assert 1.98 <= records("run")[-1]["epsilon"] <= 2


def test_two_runs_of_one_seed_begin_alike(train, same_secrets):
    still = ("--learning-rate", 1e-30, "--optimizer", "sgd", *ANIMALS)
    for run in ("a", "b"):
        train(*still, "--output", run)
    begin, again = (load_file(f"{run}/model.safetensors") for run in ("a", "b"))
    assert all((begin[name] == again[name]).all() for name in begin)


def test_the_seed_does_not_give_the_noise_away(train):
    for run in ("a", "b"):
        train(*ANIMALS, "--output", run)
    assert not same_model("a", "b")


def test_the_configuration_holds_no_checksum_of_the_training_examples(train):
    train(*ANIMALS, "--output", "a")
    lines = Path("animals.csv").read_text().splitlines()
    lines[1], lines[2] = lines[1].replace(".", "1.", 1), lines[2]
    Path("animals.csv").write_text("\n".join(lines) + "\n")
    train(*ANIMALS, "--output", "b")
    one, other = (
        json.loads(Path(run, "config.json").read_text())["dataset"]["fingerprint"]
        for run in ("a", "b")
    )
    assert one == other
    # One row more is seen: resuming it would be another training.
    Path("animals.csv").write_text("\n".join([*lines, lines[1]]) + "\n")
    train(*ANIMALS, "--output", "c")
    assert json.loads(Path("c/config.json").read_text())["dataset"]["fingerprint"] != one


def test_pictures_show_test_examples_or_none(train):
    train("--dataset", "images.npz", "--pictures", "--output", "a")
    assert {path.name for path in Path("a").glob("*.png")} == {"first-layer-weights.png"}
    train("--dataset", "images.npz", "--pictures", "--validation-fraction", 0.2, "--output", "b")
    assert {path.name for path in Path("b").glob("*.png")} == {
        "first-layer-weights.png", "learning-curves.png",
    }  # fmt: skip
    train(*ANIMALS, "--pictures", "--output", "c")
    assert Path("c/confusion-matrix.png").exists()


def test_without_other_examples_the_last_line_is_what_was_spent(train):
    lines = train("--dataset", "animals.csv", "--output", "run")
    assert lines[-1].startswith(f"epsilon {epsilon(1.2, 16 / 60, 8, 1e-3):.4f} after ")


def test_a_regression_does_not_begin_at_the_mean_of_its_targets(train):
    train("--dataset", "houses.csv", "--learning-rate", 1e-30, "--optimizer", "sgd",
          "--output", "run")  # fmt: skip
    assert np.abs(load_file("run/model.safetensors")["1.bias"]).max() < 1e-20


def test_figures_of_training_examples_are_said_to_be_outside_the_guarantee(train, command):
    train("--dataset", "animals.csv", "--output", "run")
    result = command("evaluate", "run")
    assert result.status == 0
    assert result.errors == (
        "jaxmlp: the guarantee of a private run does not cover figures of its training examples\n"
    )


def test_a_delta_that_allows_for_telling_an_example_is_warned_of(command):
    result = command("train", *PRIVATE, *ANIMALS, "--delta", 0.02, "--quiet", "--output", "run")
    assert result.status == 0
    assert result.errors == (
        "jaxmlp: delta: 0.02 is not below 1/N: it allows for telling a whole example\n"
    )


# Going on.


def stop_after(monkeypatch, number):
    """Send this process SIGTERM after so many epochs."""
    counter, append = itertools.count(1), runs.append_metrics

    def stopping(run, record):
        append(run, record)
        if next(counter) == number:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runs, "append_metrics", stopping)


def test_a_stopped_run_goes_on_with_its_secret_bit_by_bit(
    train, command, monkeypatch, same_secrets
):
    options = (*ANIMALS, "--epochs", 6, "--dropout", 0.2, "--patience", 6, "--monitor", "test_loss")
    train(*options, "--output", "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert command("train", *PRIVATE, *options, "--output", "run").status == 143
    secret = Path("run/secret.key")
    assert secret.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(secrets, "token_bytes", None)  # it is not drawn anew
    result = command("train", "--output", "run", "--resume")
    assert (result.status, result.errors) == (0, "")
    assert same_model("run", "whole") and records("run") == records("whole")
    assert not secret.exists()


def test_a_run_that_begins_again_draws_the_same_noise(train, command, monkeypatch):
    # Other noise for epochs that were written already would spend epsilon twice.
    options = (*ANIMALS, "--epochs", 4, "--keep-epochs", 1, "--output", "run")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert command("train", *PRIVATE, *options).status == 143
    secret, first = Path("run/secret.key").read_bytes(), Path("run/epochs/1.safetensors")
    before = first.read_bytes()
    shutil.rmtree("run/checkpoints")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert command("train", "--output", "run", "--resume").status == 143
    assert Path("run/secret.key").read_bytes() == secret
    assert first.read_bytes() == before


def test_a_run_without_its_secret_is_not_gone_on_with(command, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        command("train", *PRIVATE, *ANIMALS, "--epochs", 6, "--output", "run")
    Path("run/secret.key").unlink()
    result = command("train", "--output", "run", "--resume")
    assert result.status == 2
    assert result.errors == (
        "jaxmlp: run/secret.key: expected the secret that the run was begun with, got no such "
        "file\n"
    )


def test_a_batch_that_overflows_ends_the_run(command, monkeypatch):
    monkeypatch.setattr(epochs, "padded_size", lambda *_: 5)
    result = command("train", *PRIVATE, *ANIMALS, "--output", "run")
    assert result.status == 1
    assert re.fullmatch(r"jaxmlp: size: expected at least \d+, the examples that[^\n]+\n",
                        result.errors)  # fmt: skip
    assert not Path("run/model.safetensors").exists()


# What is refused.

COMPLETE = "--private --clip-norm 0.5 --noise-multiplier 1.2 --delta 1e-3 "
REFUSED = {
    "no clip norm": (
        "--private --noise-multiplier 1 --delta 1e-3",
        "clip_norm: expected a number with --private, got none",
    ),
    "no delta": (
        "--private --clip-norm 1 --noise-multiplier 1",
        "delta: expected a number with --private, got none",
    ),
    "a delta of 0": (COMPLETE + "--delta 0", "delta: expected a number in (0, 1), got 0.0"),
    "a delta below what can be reckoned with": (
        COMPLETE + "--delta 1e-18", "delta: expected at least 1e-12, got 1e-18",
    ),
    "a delta of 1": (COMPLETE + "--delta 1", "delta: expected a number in (0, 1), got 1.0"),
    "noise and epsilon": (
        COMPLETE + "--epsilon 3", "noise_multiplier: expected it or --epsilon, for which it is sol",
    ),
    "neither noise nor epsilon": (
        "--private --clip-norm 1 --delta 1e-3", "noise_multiplier: expected it or --epsilon, for w",
    ),
    "no noise": (
        COMPLETE + "--noise-multiplier 0", "noise_multiplier: expected a number in [0.2, ",
    ),
    "a clip norm of 0": (COMPLETE + "--clip-norm 0", "clip_norm: expected a number above 0, got 0"),
    "an epsilon of 0": (
        "--private --clip-norm 1 --delta 1e-3 --epsilon 0", "epsilon: expected a number above 0, g",
    ),
    "standardised inputs": (
        COMPLETE + "--standardize", "standardize: expected none with --private: means and deviati",
    ),
    "standardized targets": (
        COMPLETE + "--standardize-targets", "standardize_targets: expected none with --private: me",
    ),
    "balanced classes": (
        COMPLETE + "--class-weight balanced", "class_weight: expected CLASS=WEIGHT with --private",
    ),
    "stopping by a part of them": (
        COMPLETE + "--validation-fraction 0.2 --patience 2",
        "patience: expected none with --private and --validation-fraction: examples that",
    ),
    "several seeds": (COMPLETE + "--seeds 2", "seeds: expected 1 with --private, got 2: each netw"),
    "half precision": (
        COMPLETE + "--dtype bfloat16", "dtype: expected float32 or float64 with --private, got bfl",
    ),
    "products that round": (
        COMPLETE + "--precision high", "precision: expected highest with --private, got high, whi",
    ),
    "more than all examples": (
        COMPLETE + "--batch-size 61", "batch_size: expected at most the 60 training examples with",
    ),
    "no batches": (COMPLETE + "--batch-size 0", "batch_size: expected an integer of at least 1"),
    "no epochs": (COMPLETE + "--epochs 0", "epochs: expected an integer of at least 1, got 0"),
    "noise without privacy": (
        "--noise-multiplier 1", "noise_multiplier: expected none without --private",
    ),
    "no noise without privacy": (
        "--noise-multiplier 0", "noise_multiplier: expected none without --private",
    ),
    "epsilon without privacy": ("--epsilon 1", "epsilon: expected none without --private"),
    "delta without privacy": ("--delta 1e-3", "delta: expected none without --private"),
    "figures without privacy": (
        "--unprotected-figures", "unprotected_figures: expected none without --private",
    ),
}  # fmt: skip


def check_refused(command, options, message):
    before = tree(".")
    status, output, errors = command("train", "--dataset", "animals.csv", *options.split())
    assert (status, output) == (2, ""), errors
    assert re.fullmatch(r"jaxmlp: [^\n]+\n", errors), errors
    assert errors.startswith(f"jaxmlp: {message}")
    assert tree(".") == before


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_leak_is_refused_in_one_sentence(command, options, message):
    check_refused(command, options, message)


def test_dp_accounting_that_is_not_installed_is_named(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    options = COMPLETE + "--noise-multiplier 1.2345"
    check_refused(command, options, "epsilon: dp-accounting is missing, which computes it")


def test_weights_of_classes_that_are_given_are_taken(train):
    train(*ANIMALS, "--class-weight", "cat=2", "--output", "run")
    assert np.isfinite(records("run")[-1]["epsilon"])
