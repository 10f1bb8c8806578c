"""`jaxmlp influence` and `train --keep-epochs`: the scores of the run's way."""

import csv
import importlib.util
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import ANIMALS, TINY, same_model, tree
from safetensors.numpy import load_file, save_file

import jaxmlp
from jaxmlp.data import class_weights, example_weights, load_dataset
from jaxmlp.training import models, runs
from jaxmlp.training.optimizers import learning_rates

pytestmark = pytest.mark.slow  # on the default Python alone: compiling takes most of it


ROOT = Path(__file__).parents[1]

# Two programs that sum the same float32 numbers in other orders.
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-7}


@pytest.fixture
def succeed(command, trained):
    """Run the command beside what was trained, and expect success."""

    def run(*arguments):
        result = command(*arguments)
        assert (result.status, result.errors) == (0, ""), result.errors
        return result.output

    return run


def fail(command, arguments, message, cwd):
    """It ends with status 2 and this sentence alone, and changes no file."""
    before = tree(cwd)
    status, output, errors = command(*arguments.split())
    assert (status, output) == (2, ""), errors
    assert re.fullmatch(r"jaxmlp: [^\n]+\n", errors), errors
    assert errors.startswith(f"jaxmlp: {message}")
    assert tree(cwd) == before


def table(path):
    """A table's header, its text columns by name, and the scores (N, M)."""
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    text = {name: [row[k] for row in rows] for k, name in enumerate(header)}
    scores = [name for name in header if "influence" in name]
    return header, text, np.array([text[name] for name in scores], float).T


def kept(run, epochs, network):
    """The parameters kept after these epochs."""
    return [models.read_parameters(Path(run, f"epochs/{n}.safetensors"), network) for n in epochs]


def rates(run, epochs, n_examples):
    """The mean learning rate of each of these epochs, by the schedule's formula."""
    options = json.loads(Path(run, "config.json").read_text())["training"]
    steps = -(-n_examples // options["batch_size"])
    return [
        learning_rates(
            options["learning_rate"], options["schedule"], options["warmup"],
            np.arange((n - 1) * steps, n * steps), steps * options["epochs"],
        ).mean()
        for n in epochs
    ]  # fmt: skip


# The demonstration.


def test_wrong_labels_of_real_digits_come_first_by_self_influence(command, tmp_path):
    spec = importlib.util.spec_from_file_location("wrong", ROOT / "benchmarks/wrong_labels.py")
    assert spec is not None and spec.loader is not None
    wrong_labels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(wrong_labels)
    wrong = wrong_labels.write_data(Path("digits-5.npz"), seed=0)
    assert len(wrong) == 72  # 5 % of 1437
    train = ("train", "--dataset", "digits-5.npz", "--output", "run", *wrong_labels.TRAIN.split())
    assert command(*train).status == 0
    assert command("influence", "run", "--self-influence", "--no-pictures").status == 0
    # By chance a tenth of them would be in the first tenth; measured 0.97 to 1 over five seeds.
    assert wrong_labels.found(wrong_labels.ranking(Path("run")), wrong) >= wrong_labels.PROMISED
    # The wrong label is what is listed.
    _, text, _ = table("run/self-influence.csv")
    data, true = load_dataset("digits-5.npz"), load_dataset("digits")
    first = [int(n) for n in text["example"][:50]]
    assert text["class"][:50] == [str(data.train.targets[n]) for n in first]
    assert np.mean(data.train.targets[first] != true.train.targets[first]) > 0.9


# What is computed.


@pytest.fixture
def kept_run(succeed):
    """A run on the animals, weighted by class, with the parameters of epochs 2 and 4 of 5."""
    succeed(
        "train", "--dataset", "animals.csv", *TINY, "--epochs", "5", "--keep-epochs", "2",
        "--standardize", "--validation-fraction", "0.2", "--class-weight", "cat=2", "dog=0.5",
        "--output", "kept",
    )  # fmt: skip
    return Path("kept")


def test_the_scores_are_those_of_the_library_at_the_epochs_kept(succeed, kept_run):
    assert sorted(path.name for path in Path("kept/epochs").iterdir()) == [
        "2.safetensors", "4.safetensors",
    ]  # fmt: skip
    output = succeed("influence", kept_run, "--examples", "5", "0", "5")
    assert output.startswith(
        "influence of 48 training examples on 2 validation examples of animals, by the parameters "
        "after 2 of its epochs\n"
    )
    network, _, metadata = jaxmlp.load("kept")
    data = load_dataset("animals.csv", validation_fraction=0.2)
    assert data.validation is not None and data.classes is not None
    of_classes = class_weights(data.train.targets, data.classes, {"cat": 2.0, "dog": 0.5})
    weights = example_weights(data.train.targets, of_classes, None)
    others = [array[[5, 0]] for array in data.validation[:2]]
    points = kept("kept", (2, 4), network), rates("kept", (2, 4), 48)
    assert points[1][0] > 2 * points[1][1] > 0  # a cosine has fallen by then
    expected = jaxmlp.influence(
        network, points[0], *data.train[:2], *others, points[1], weights,
        scaling=metadata["scaling"],
    )  # fmt: skip
    header, text, scores = table("kept/influence.csv")
    assert header == ["example", "row", "class", "influence_on_5", "influence_on_0"]
    assert text["example"] == [str(n) for n in range(48)]
    assert text["class"] == np.array(ANIMALS)[data.train.targets].tolist()
    # A row is a line of the file: that example's, whatever was put aside for validation.
    lines = [line.split(",") for line in Path("animals.csv").read_text().splitlines()]
    for row, example in zip(map(int, text["row"]), data.train.inputs, strict=True):
        assert [float(field) for field in lines[row - 1][:3]] == example.tolist()
    titles = re.findall(r"validation example (\d+) \(row (\d+)\): true (\w+), ", output)
    assert [int(number) for number, _, _ in titles] == [5, 0]
    for number, row, name in titles:
        *fields, animal = lines[int(row) - 1]
        assert animal == name
        assert list(map(float, fields)) == data.validation.inputs[int(number)].tolist()
    np.testing.assert_allclose(scores, expected, **CLOSE)
    # What is printed is the extremes of each column.
    for column, block in zip(scores.T, output.split("\n\n")[1:3], strict=True):
        numbers = [int(line.split()[0]) for line in block.splitlines() if line.split()[-1][0] in
                   "+-"]  # fmt: skip
        order = np.argsort(-column)
        assert numbers == [*order[:5], *order[:-6:-1]]
    # And the ranking by self-influence.
    output = succeed("influence", kept_run, "--self-influence", "--top", "3", "--output", "s.npz")
    expected = jaxmlp.self_influence(
        network, points[0], *data.train[:2], points[1], weights, scaling=metadata["scaling"]
    )
    with np.load("s.npz") as file:
        np.testing.assert_allclose(file["self_influence"], expected, **CLOSE)
        assert file["ranking"].tolist() == np.argsort(-file["self_influence"]).tolist()
        rows = [line.split() for line in output.splitlines() if line.split()[:1] != ["rank"]]
        printed = [row[1:3] for row in rows if len(row) == 5 and row[0].isdigit()]
        assert file["rows"].tolist() == [int(row) for row in text["row"]]
        assert printed == [[str(n), str(file["rows"][n])] for n in file["ranking"][:3]]
    assert Path("s.png").is_file() and Path("kept/influence.png").is_file()


def test_a_table_of_the_ranking_begins_with_the_highest(succeed, kept_run):
    succeed("influence", kept_run, "--self-influence", "--no-pictures")
    header, text, scores = table("kept/self-influence.csv")
    assert header == ["rank", "example", "row", "class", "self_influence"]
    assert text["rank"] == [str(n) for n in range(1, 49)]
    assert (np.diff(scores[:, 0]) <= 0).all() and scores[-1, 0] >= 0
    assert not Path("kept/self-influence.png").exists()


def test_without_numbers_the_three_mistakes_furthest_from_right_are_explained(succeed):
    succeed("influence", "images", "--part", "train", "--output", "i.npz")
    network, params, metadata = jaxmlp.load("images")
    data = load_dataset("images.npz")
    outputs = np.asarray(
        jaxmlp.predictions(network, params, data.train.inputs, scaling=metadata["scaling"])
    )
    of_truth = outputs[np.arange(60), data.train.targets]
    mistakes = np.flatnonzero(outputs.argmax(axis=1) != data.train.targets)
    assert len(mistakes) > 3
    with np.load("i.npz") as file:
        assert file["examples"].tolist() == mistakes[np.argsort(of_truth[mistakes])][:3].tolist()
        assert file["influence"].shape == (60, 3)
        # An example helps itself: it is of the training part.
        assert (file["influence"][file["examples"], range(3)] > 0).all()


def test_a_regression_is_explained_by_the_targets_values(succeed):
    output = succeed("influence", "houses", "--part", "train", "--examples", "7", "--top", "2")
    assert (
        "1 train example of houses, by its final model alone (train --keep-epochs keeps" in output
    )
    target = load_dataset("houses.csv").train.targets[7, 0]
    assert f"train example 7 (row 9): true {target:.5g}, predicted " in output
    header, text, _ = table("houses/influence.csv")
    assert header == ["example", "row", "target", "influence_on_7"]
    assert text["target"][7] == f"{target:.5g}"


@pytest.mark.parametrize("loss", ["squared_error", "sigmoid_binary_cross_entropy"])
def test_the_other_losses_of_classes_are_explained_too(succeed, loss):
    options = ("--loss", loss, "--output", "other", "--dtype", "float16")
    succeed("train", "--dataset", "animals.csv", *TINY, *options)
    output = succeed("influence", "other", "--part", "train", "--examples", "3")
    name = np.array(ANIMALS)[load_dataset("animals.csv").train.targets[3]]
    assert f"train example 3 (row 5): true {name}, predicted " in output
    network, params, _ = jaxmlp.load("other")
    data = load_dataset("animals.csv")
    hot = np.eye(3)[data.train.targets]
    expected = jaxmlp.influence(
        network, [params], data.train.inputs, hot, data.train.inputs[3:4], hot[3:4],
        rates("other", (2,), 60),
    )  # fmt: skip
    np.testing.assert_allclose(table("other/influence.csv")[2], expected, rtol=1e-3, atol=1e-9)


# The way that a training went.


def test_the_epochs_kept_are_those_of_the_training_and_change_nothing(succeed):
    options = ("--dataset", "images.npz", *TINY, "--epochs", "3")
    succeed("train", *options, "--output", "plain")
    succeed("train", *options, "--output", "a", "--keep-epochs", "1")
    assert same_model("plain", "a") and not Path("plain/epochs").exists()
    assert Path("a/epochs/3.safetensors").read_bytes() == Path("a/model.safetensors").read_bytes()
    first, second = (load_file(f"a/epochs/{n}.safetensors") for n in (1, 2))
    assert any((first[name] != second[name]).any() for name in first)


def test_a_resumed_run_keeps_the_epochs_that_it_would_have_kept(succeed):
    options = ("--dataset", "images.npz", *TINY, "--epochs", "4", "--keep-epochs", "1")
    succeed("train", *options, "--output", "whole")
    succeed("train", *options, "--output", "cut", "--checkpoint-every", "1e-9")
    shutil.rmtree("cut/checkpoints/16")
    Path("cut/model.safetensors").unlink()
    Path("cut/epochs/4.safetensors").unlink()
    Path("cut/epochs/.4.safetensors.123").write_text("half")
    succeed("train", "--resume", "--output", "cut")
    assert tree("cut/epochs") == tree("whole/epochs") and same_model("cut", "whole")


def test_the_checkpoints_stand_in_for_epochs_and_are_only_read(succeed):
    options = ("--dataset", "images.npz", *TINY, "--epochs", "5", "--schedule", "one_cycle",
               "--average-decay", "0.9")  # fmt: skip
    succeed("train", *options, "--output", "epochs", "--keep-epochs", "1")
    succeed("train", *options, "--output", "three", "--checkpoint-every", "1e-9")
    shutil.copytree("three/checkpoints/20", "three/checkpoints/24.orbax-checkpoint-tmp")
    before = tree("three")  # another process may be writing that
    output = succeed("influence", "three", "--self-influence", "--output", "three.npz")
    assert ", by 3 of its checkpoints\n" in output
    assert tree("three") == before
    network, _, metadata = jaxmlp.load("epochs")
    data = load_dataset("images.npz")
    expected = jaxmlp.self_influence(
        network, kept("epochs", (3, 4, 5), network), *data.train[:2],
        rates("epochs", (3, 4, 5), 60), scaling=metadata["scaling"],
    )  # fmt: skip
    with np.load("three.npz") as file:
        np.testing.assert_allclose(file["self_influence"], expected, **CLOSE)


def test_a_damaged_checkpoint_is_passed_over_and_named(command, succeed):
    options = ("--dataset", "images.npz", *TINY, "--output", "run", "--checkpoint-every", "1e-9")
    succeed("train", *options)
    shutil.copytree("run/checkpoints/4", "run/checkpoints/damaged-4")  # set aside by a resumption
    for path in Path("run/checkpoints/8/arrays").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    before = tree("run/checkpoints")
    status, output, errors = command("influence", "run", "--self-influence")
    assert status == 0 and ", by 1 of its checkpoints\n" in output
    assert re.fullmatch(
        r"jaxmlp: checkpoint run/checkpoints/8 is damaged \([^\n]+\): it is passed over\n", errors
    )
    assert tree("run/checkpoints") == before


def test_damaged_epochs_are_passed_over_and_named(command, kept_run):
    Path("kept/epochs/4.safetensors").write_bytes(b"none")
    status, output, errors = command("influence", "kept", "--self-influence")
    assert status == 0 and ", by the parameters after 1 of its epochs\n" in output
    assert re.fullmatch(
        r"jaxmlp: kept/epochs/4.safetensors: not this network's parameters: [^\n]+: passed over\n",
        errors,
    )
    arrays = load_file("kept/epochs/2.safetensors")
    save_file({**arrays, "0.weight": np.zeros((9, 9))}, "kept/epochs/2.safetensors")
    status, output, errors = command("influence", "kept", "--self-influence", "--overwrite")
    assert status == 0 and ", by its final model alone (train --keep-epochs" in output
    assert errors.count("\n") == 2


def test_epochs_after_the_best_one_do_not_count(succeed):
    succeed(
        "train", "--dataset", "animals.csv", *TINY, "--epochs", "12", "--keep-epochs", "1",
        "--validation-fraction", "0.2", "--patience", "2", "--learning-rate", "30", "--quiet",
        "--schedule", "constant", "--output", "early",
    )  # fmt: skip
    history = runs.read_metrics("early")
    best = min(history, key=lambda record: record["validation_loss"])["epoch"]
    assert best < len(history) == len(list(Path("early/epochs").iterdir()))
    output = succeed("influence", "early", "--self-influence", "--output", "early.npz")
    assert f", by the parameters after {best} of its epochs\n" in output


def test_files_that_are_none_of_the_epochs_are_let_be(succeed, kept_run):
    for name in ("notes.txt", "0.safetensors", ".2.safetensors.77"):
        Path("kept/epochs", name).write_text("mine")
    output = succeed("influence", "kept", "--self-influence")
    assert "after 2 of its epochs" in output


def test_data_that_have_changed_since_are_named(command, trained):
    lines = Path("houses.csv").read_text().splitlines()
    Path("houses.csv").write_text("\n".join([*lines[:-1], "50.0,3,4.5"]) + "\n")
    status, _, errors = command("influence", "houses", "--self-influence")
    assert status == 0
    assert errors == (
        "jaxmlp: dataset: expected the data that houses was begun with, got others from "
        "houses.csv, which are taken\n"
    )


def test_the_checkpoints_of_a_private_run_are_read_and_the_guarantee_is_said_to_end(
    command, succeed
):
    pytest.importorskip("dp_accounting")
    options = ("--private", "--noise-multiplier", "1", "--delta", "1e-3", "--clip-norm", "1")
    train = ("train", "--dataset", "images.npz", *TINY, *options, "--output", "secret")
    assert command(*train, "--checkpoint-every", "1e-9").status == 0
    status, output, errors = command("influence", "secret", "--self-influence")
    assert status == 0 and ", by 2 of its checkpoints\n" in output
    assert errors == (
        "jaxmlp: the guarantee of a private run does not cover scores of its training examples\n"
    )


# What is refused.


def set_option(name, value, run="animals"):
    path = Path(run, "config.json")
    content = json.loads(path.read_text())
    content["training"][name] = value
    path.write_text(json.dumps(content))


# What is done to the runs, the arguments, and how the sentence begins.
REFUSED = {
    "no run": (None, "influence nowhere", "run: expected config.json in nowhere, got no such file"),
    "a run that has not ended": (
        lambda: Path("animals/model.safetensors").unlink(), "influence animals",
        "run: expected model.safetensors in animals, got no such file: it has not ended",
    ),
    "a damaged model": (
        lambda: Path("animals/model.safetensors").write_text("none"), "influence animals",
        "animals/model.safetensors: not this network's parameters",
    ),
    "a number beyond the part": (
        None, "influence animals --examples 0 12",
        "examples: expected numbers from 0 to 11 of the validation part, got 12",
    ),
    "a negative number": (
        None, "influence animals --examples -1",
        "examples: expected numbers from 0 to 11 of the validation part, got -1",
    ),
    "a run without a test part": (
        None, "influence houses",
        "part: expected train of houses (--part), got none, as there is no test or validation part",
    ),
    "a part that is not there": (
        None,
        "influence animals --part test",
        "part: expected train or validation of animals (--part), got",
    ),
    "examples for the ranking": (
        None, "influence animals --self-influence --examples 3", "examples, part: expected none",
    ),
    "none at the top": (
        None, "influence animals --top 0", "top: expected an integer of at least 1, got 0",
    ),
    "another kind of output": (
        None, "influence animals --output i.json", "output: expected a file .csv or .npz, got i.js",
    ),
    "an output that exists": (
        lambda: Path("animals/influence.csv").write_text("mine"), "influence animals",
        "output: expected a new file, got animals/influence.csv, which exists (--overwrite",
    ),
    "a picture that exists": (
        lambda: Path("i.png").write_text("mine"), "influence animals --output i.npz",
        "output: expected a new file, got i.png, which exists (--overwrite",
    ),
    "the data as the output": (
        None, "influence animals --output animals.csv --overwrite --no-pictures",
        "output: expected another file than those that are read, got animals.csv",
    ),
    "an epoch that is none": (
        lambda: (
            set_option("patience", 3),
            Path("animals/metrics.jsonl").write_text('{"epoch": -1, "validation_loss": 1}'),
        ),
        "influence animals", "animals/metrics.jsonl: expected epochs with validation_loss, got oth",
    ),
    "metrics that are no text": (
        lambda: (
            set_option("patience", 3), Path("animals/metrics.jsonl").write_bytes(b"\xff\xfe{}")
        ),
        "influence animals", "animals/metrics.jsonl: expected JSON in line 1, got",
    ),
    "an output in no folder": (
        None, "influence animals --output no/i.csv", "output: expected a file in a folder that",
    ),
    "data that are gone": (
        lambda: Path("animals.csv").unlink(), "influence animals", "animals.csv: expected a read",
    ),
    "a schedule that is none": (
        lambda: set_option("schedule", "cosin"), "influence animals", "unknown schedule 'cosin'",
    ),
    "no examples a step": (
        lambda: set_option("batch_size", 0), "influence animals", "batch_size: expected an integer",
    ),
    "metrics that are gone": (
        lambda: (set_option("patience", 3), Path("animals/metrics.jsonl").unlink()),
        "influence animals", "animals/metrics.jsonl: No such file",
    ),
    "train: no epochs to keep": (
        None, "train --dataset animals.csv --keep-epochs 0",
        "keep_epochs: expected an integer of at least 1, got 0",
    ),
    "train: other epochs to keep": (
        None, "train --output animals --resume --keep-epochs 2",
        "keep_epochs: expected None, with which animals was begun, got 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_in_one_sentence(command, trained, damage, arguments, message):
    if damage:
        damage()
    fail(command, arguments, message, trained)


def test_inputs_beyond_float32_are_refused_where_they_are_scored(command, trained):
    table = Path("animals.csv")
    header, first, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, "1e300," + first.split(",", 1)[1], *rows]))
    for more in ([], ["--self-influence"]):
        status, output, errors = command("influence", "animals", *more)
        assert (status, output) == (2, "")
        *_, last = errors.splitlines()  # before it that these are other data
        assert last.startswith("jaxmlp: inputs: expected finite numbers, got inf at [0, 0]")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_an_epoch_that_may_not_be_read_is_named(command, trained, kept_run):
    Path("kept/epochs/2.safetensors").chmod(0)
    fail(command, "influence kept", "kept/epochs/2.safetensors: Permission denied", trained)


def test_scores_that_cannot_be_written_end_with_status_1(command, trained, monkeypatch):
    def full(path, content):
        raise OSError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr(runs, "write_file", full)
    status, _, errors = command("influence", "animals")
    assert status == 1
    assert errors == ("jaxmlp: animals/influence.csv: cannot be written: No space left on device\n")
    assert not list(Path("animals").glob("*influence*"))
