"""`jaxmlp sweep`: what it keeps, that its best is what `train` trains, stopping, and bad input."""

import csv
import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from command import (
    FEATURES,
    TINY,
    animals,
    ended,
    same_model,
    start,
    tree,
    write_csv,
    write_data,
)
from safetensors.numpy import load_file

import jaxmlp
from jaxmlp.data import load_dataset
from jaxmlp.training import sweep_folder

pytestmark = pytest.mark.slow  # on the default Python alone

FEW = ("--dataset", "animals.csv", "--standardize", *TINY)
GRID = ("--learning-rate", "0.001", "0.05", "--weight-decay", "0", "0.01")


@pytest.fixture(autouse=True)
def data(tmp_path):
    write_data(tmp_path)


def rows(folder):
    with open(folder / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_grid_leaves_a_table_and_the_best_network(command, tmp_path):
    result = command("sweep", *FEW, *GRID, "--seeds", 2, "--output", "out")
    assert (result.status, result.errors) == (0, "")
    assert "8 networks after" in result.output
    assert "saved in out/best" in result.output
    assert tree(tmp_path / "out").keys() == {
        "best", "best/config.json", "best/metrics.jsonl", "best/model.safetensors", "results.csv",
        "sweep.json", "trials.jsonl",
    }  # fmt: skip
    table = rows(tmp_path / "out")
    losses = [float(row["validation_loss"]) for row in table]
    assert losses == sorted(losses)
    assert {(row["learning_rate"], row["weight_decay"]) for row in table} == {
        ("0.001", "0.0"), ("0.001", "0.01"), ("0.05", "0.0"), ("0.05", "0.01"),
    }  # fmt: skip
    trials = sweep_folder.read_trials(tmp_path / "out")[0]
    assert [(trial.setting, trial.seed) for trial in trials] == [
        (setting, seed) for setting in range(4) for seed in range(2)
    ]
    best = int(table[0]["setting"])
    own = [trial.record["validation_loss"] for trial in trials if trial.setting == best]
    assert np.mean(own) == pytest.approx(losses[0])
    assert np.std(own, ddof=1) == pytest.approx(float(table[0]["validation_loss_sd"]))
    about = json.loads((tmp_path / "out/best/config.json").read_text())
    assert about["seed"] == int(np.argmin(own))
    assert about["training"]["learning_rate"] == float(table[0]["learning_rate"])
    refused = command("evaluate", "out")
    assert (refused.status, "whose best run is out/best" in refused.errors) == (2, True)
    evaluated = command("evaluate", "out/best", "--dataset", "animals.csv")
    assert (evaluated.status, evaluated.errors) == (0, "")


@pytest.mark.parametrize("own_order", [False, True])
def test_the_best_is_what_train_trains_with_its_settings(command, own_order):
    """The first seed; or with orders of their own, any of several seeds."""
    options = (*FEW, "--optimizer", "momentum", "--validation-fraction", 0.3, "--dropout", 0.2)
    swept = (*options, "--optimizer-settings", "momentum=0.5,0.9", "--learning-rate", "0.1")
    more = ("--own-order", "--seeds", 2) if own_order else ()
    assert command("sweep", *swept, *more, "--output", "out").status == 0
    with open("out/best/config.json") as file:
        about = json.load(file)
    trained = command(
        "train", *options, "--learning-rate", 0.1, *more[1:], "--output", "run",
        "--optimizer-settings", *about["training"]["optimizer_settings"],
    )  # fmt: skip
    assert trained.status == 0
    run = f"run/seed-{about['seed']}" if own_order else "run"
    mine, theirs = load_file("out/best/model.safetensors"), load_file(f"{run}/model.safetensors")
    for name in theirs:
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_draws_a_space_and_halving(command, tmp_path):
    (tmp_path / "space.toml").write_text(
        'learning_rate = "0.001:0.2:log"\nb1 = [0.8, 0.9]\nscale = {low = 0.5, high = 2}\n'
    )
    options = ("--space", "space.toml", "--samples", 8, "--epochs", 4, "--halving", 2)
    result = command("sweep", *FEW, *options, "--scale", 1, "--output", "out")
    assert (result.status, result.errors) == (0, ""), result.errors
    table = rows(tmp_path / "out")
    assert len(table) == 8
    assert {row["scale"] for row in table} == {"1.0"}  # what is given goes before the file
    assert {row["b1"] for row in table} == {"0.8", "0.9"}
    rates = [float(row["learning_rate"]) for row in table]
    assert 0.001 <= min(rates) < max(rates) <= 0.2
    epochs = [float(row["epochs"]) for row in table]
    assert epochs == sorted(epochs, reverse=True) == [4, 4, 2, 2, 1, 1, 1, 1]
    (tmp_path / "space.json").write_text('{"learning_rate": [0.1, 0.2]}')
    result = command("sweep", *FEW, "--space", "space.json", "--output", "other")
    assert {row["learning_rate"] for row in rows(tmp_path / "other")} == {"0.1", "0.2"}


def test_a_regression_and_a_picture(command, tmp_path):
    options = ("--dataset", "houses.csv", "--standardize", *TINY, "--pictures")
    result = command("sweep", *options, "--learning-rate", 0.01, 0.1, "--output", "out")
    assert (result.status, result.errors) == (0, "")
    assert (tmp_path / "out/response-surface.png").stat().st_size > 10_000
    assert (tmp_path / "out/best/learning-curves.png").stat().st_size > 10_000
    first = json.loads((tmp_path / "out/best/metrics.jsonl").read_text().splitlines()[0])
    # It begins at the mean of the targets: half their variance is 1.6, half their mean square 17.
    assert first["train_loss"] < 4


def test_a_sweep_from_before_an_option_goes_on(command, tmp_path):
    options = (*FEW, *GRID, "--epochs", 2, "--output", "out")
    assert command("sweep", *options).status == 0
    path = tmp_path / "out/sweep.json"
    content = json.loads(path.read_text())
    del content["options"]["standardize_targets"]
    path.write_text(json.dumps(content))
    result = command("sweep", "--output", "out", "--resume")
    assert (result.status, result.errors) == (0, "")
    other = command("sweep", "--output", "out", "--resume", "--standardize-targets")
    assert other.status == 2 and "standardize_targets: expected " in other.errors


def test_a_sweep_goes_on_from_any_folder(command, tmp_path, monkeypatch):
    options = (*FEW, *GRID, "--members-per-pass", 2, "--output", "out")
    assert command("sweep", *options).status == 0
    table = (tmp_path / "out/results.csv").read_text()
    trials = tmp_path / "out/trials.jsonl"
    trials.write_text("".join(trials.read_text().splitlines(keepends=True)[:2]))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = command("sweep", "--output", "../out", "--resume")
    assert (result.status, result.errors) == (0, "")
    assert (tmp_path / "out/results.csv").read_text() == table
    result = command("evaluate", "../out/best")
    assert (result.status, result.errors) == (0, "")


def test_the_best_of_standardized_targets_predicts_what_was_read(command, tmp_path):
    data = load_dataset("houses.csv")
    assert data.features is not None
    inputs, prices = data.train.inputs, 1e6 * data.train.targets[:, 0]
    write_csv(Path("large.csv"), (*data.features, "price"), *inputs.T, prices)
    options = ("--dataset", "large.csv", "--standardize", "--standardize-targets", *TINY)
    rates = ("--learning-rate", 0.01, 0.1, "--epochs", 60)
    result = command("sweep", *options, *rates, "--output", "out")
    assert (result.status, result.errors) == (0, "")
    assert float(rows(tmp_path / "out")[0]["validation_loss"]) < 0.1  # of 0.5
    network, params, metadata = jaxmlp.load("out/best")
    got = jaxmlp.predictions(network, params, inputs, scaling=metadata["scaling"])
    assert np.corrcoef(np.asarray(got)[:, 0], prices)[0, 1] > 0.95
    assert np.std(np.asarray(got)[:, 0] - prices) < 0.3 * prices.std()


def test_a_setting_that_diverges_is_last_and_all_are_a_failed_run(command, tmp_path):
    options = (*FEW, "--optimizer", "sgd")
    result = command("sweep", *options, "--learning-rate", 0.1, 3e38, "--output", "out")
    assert (result.status, result.errors) == (0, "")
    table = rows(tmp_path / "out")
    assert [row["diverged"] for row in table] == ["0", "1"]
    assert "diverged" in result.output
    result = command("sweep", *options, "--learning-rate", 3e38, "--output", "all")
    assert result.status == 1
    assert result.errors.startswith("jaxmlp: every setting diverged; the first one: training")
    assert result.errors.count("\n") == 1


@pytest.mark.parametrize("gone", [False, True], ids=["", "its best model gone"])
def test_what_is_stopped_between_passes_goes_on_and_ends_the_same(command, tmp_path, gone):
    options = (*FEW, *GRID, "--seeds", 2, "--members-per-pass", 2)
    assert command("sweep", *options, "--output", "whole").status == 0
    assert command("sweep", *options, "--output", "cut").status == 0
    trials = sweep_folder.read_trials(tmp_path / "cut")[0]
    # As a kill after the second of four passes leaves it, and within a setting's seeds.
    sweep_folder.write_trials(tmp_path / "cut", trials[:5])
    (tmp_path / "cut/results.csv").unlink()
    if gone:  # as a kill leaves it while another is written
        (tmp_path / "cut/best/model.safetensors").unlink()
    trained = sweep_folder.read_trials(tmp_path / "whole")[0]
    result = command("sweep", "--resume", "--output", "cut")
    assert result.status == 0
    assert ("cut/best/model.safetensors is gone: what was trained" in result.errors) == gone
    assert ("after 4 of 8 networks" in result.output) != gone
    assert same_model(tmp_path / "cut/best", tmp_path / "whole/best")
    again = sweep_folder.read_trials(tmp_path / "cut")[0]
    timeless = [
        [(t.setting, t.seed, {k: v for k, v in t.record.items() if "second" not in k}) for t in ts]
        for ts in (trained, again)
    ]
    assert timeless[0] == timeless[1]
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")


def test_what_follows_a_damaged_line_is_trained_again(command, tmp_path):
    assert command("sweep", *FEW, *GRID, "--output", "out").status == 0
    before = rows(tmp_path / "out")
    path = tmp_path / "out/trials.jsonl"
    path.write_text(path.read_text()[:-50])
    result = command("sweep", "--resume", "--output", "out")
    assert result.status == 0
    assert "trials.jsonl: line 4 is damaged: what follows is trained again" in result.errors
    after = rows(tmp_path / "out")
    for one, other in zip(before, after, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert float(one[name] or 0) == pytest.approx(float(other[name] or 0), rel=1e-5)


@pytest.mark.parametrize("halving", [(), ("--halving", 2)])
def test_seeds_of_a_setting_are_trained_together(command, tmp_path, halving):
    """So what is kept is the best setting's, and what is gone on with ends as what never ended."""
    options = (*FEW, "--seeds", 2, "--members-per-pass", 1, *halving, "--epochs", 4)
    rates = ("--learning-rate", 0.023, 0.022, 0.05)
    for seed in (24, 28):
        more = (*options, *rates, "--seed", seed)
        assert command("sweep", *more, "--output", f"out-{seed}").status == 0
        best = rows(tmp_path / f"out-{seed}")[0]
        about = json.loads((tmp_path / f"out-{seed}/best/config.json").read_text())
        assert about["training"]["learning_rate"] == float(best["learning_rate"])
    trials = sweep_folder.read_trials(tmp_path / "out-24")[0]
    assert command("sweep", *options, *rates, "--seed", 24, "--output", "cut").status == 0
    sweep_folder.write_trials(tmp_path / "cut", trials[:3])
    assert command("sweep", "--resume", "--output", "cut").status == 0
    assert rows(tmp_path / "cut") == rows(tmp_path / "out-24")


def test_a_best_that_is_gone_is_trained_again(command, tmp_path):
    assert command("sweep", *FEW, *GRID, "--output", "out").status == 0
    before = rows(tmp_path / "out")
    path = tmp_path / "out/best/model.safetensors"
    model = path.read_bytes()
    path.unlink()
    result = command("sweep", "--resume", "--output", "out")
    assert result.status == 0
    assert result.errors == (
        "jaxmlp: out/best/model.safetensors is gone: what was trained with it, and after it, is "
        "trained again\n"
    )
    assert path.read_bytes() == model
    assert rows(tmp_path / "out") == before


def test_a_best_that_is_gone_is_trained_again_from_the_first_of_its_settings(command, tmp_path):
    # Passes hold whole settings: of three members at a time, two.
    rates = ("--learning-rate", 0.01, 0.02, 0.5, 0.05)
    options = (*FEW, *rates, "--seeds", 2, "--members-per-pass", 3, "--output", "out")
    assert command("sweep", *options).status == 0
    before = rows(tmp_path / "out")
    (tmp_path / "out/best/model.safetensors").unlink()
    result = command("sweep", "--resume", "--output", "out")
    assert result.status == 0
    assert "out/best/model.safetensors is gone" in result.errors
    assert rows(tmp_path / "out") == before


def test_a_copied_sweep_finds_the_data_beside_it(command, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "animals.csv").rename(tmp_path / "one/animals.csv")
    os.chdir("one")
    options = (*FEW, *GRID, "--members-per-pass", 2, "--output", "out")
    assert command("sweep", *options).status == 0
    os.chdir("..")
    shutil.copytree("one", "two")
    (tmp_path / "one/animals.csv").write_text("a,b\n1,x\n2,y\n")
    os.chdir("two")
    Path("out/trials.jsonl").unlink()
    result = command("sweep", "--output", "out", "--resume")
    assert (result.status, result.errors) == (0, "")
    os.chdir("..")


def test_data_with_a_validation_part_of_their_own_need_no_other(command, tmp_path):
    inputs, names = animals(60)
    split = ["train"] * 40 + ["validation"] * 20
    write_csv(Path("own.csv"), (*FEATURES, "animal", "split"), *inputs.T, names, split)
    for dataset in (("own.csv",), ("animals.csv", "--validation-file", "animals-test.csv")):
        out = f"out-{dataset[0]}"
        result = command("sweep", "--dataset", *dataset, *TINY, *GRID, "--output", out)
        assert (result.status, result.errors) == (0, "")
        saved = json.loads((tmp_path / out / "sweep.json").read_text())
        assert saved["options"]["validation_fraction"] == 0
        assert command("sweep", "--output", out, "--resume").status == 0
        result = command("evaluate", f"{out}/best", "--part", "validation")
        assert (result.status, result.errors) == (0, "")
    for fraction in (0.2, 0.3):
        options = (*TINY, *GRID, "--validation-fraction", fraction)
        result = command("sweep", "--dataset", "own.csv", *options)
        assert result.status == 2
        message = "validation_fraction: expected 0 where own.csv or a file of its own has"
        assert message in result.errors


def test_the_best_of_an_earlier_pass_stays(command, tmp_path):
    options = (*FEW, "--learning-rate", 0.05, 1e-6, "--members-per-pass", 1, "--output", "out")
    assert command("sweep", *options).status == 0
    about = json.loads((tmp_path / "out/best/config.json").read_text())
    assert about["training"]["learning_rate"] == 0.05
    assert [float(row["learning_rate"]) for row in rows(tmp_path / "out")] == [0.05, 1e-6]


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_sweep_that_is_stopped_by_a_signal_says_how_to_go_on(command, tmp_path):
    options = (*FEW, *GRID, "--epochs", 150, "--members-per-pass", 1)
    process = start("sweep", *options, "--output", "out", pipesize=4096)
    assert process.stdout is not None
    while "done before" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGTERM)
    result = ended(process)
    assert result.status == 143
    assert "`jaxmlp sweep --output out --resume` goes on from there" in result.errors
    done = len(sweep_folder.read_trials(tmp_path / "out")[0])
    assert 1 <= done < 4
    result = command("sweep", "--resume", "--output", "out")
    assert result.status == 0
    assert command("sweep", *options, "--output", "whole").status == 0
    assert rows(tmp_path / "whole") == rows(tmp_path / "out")
    assert same_model(tmp_path / "whole/best", tmp_path / "out/best")


BAD = {
    "range": (["--learning-rate", "0.1:0.01"], "learning_rate: expected LOW below HIGH"),
    "no samples": (["--learning-rate", "0.01:0.1"], "samples: expected how many to draw"),
    "nothing to draw": (["--samples", "3"], "samples: expected something to draw"),
    "samples": (["--samples", "0", "--learning-rate", "0.1:1"], "samples: expected an integer"),
    "word": (["--learning-rate", "fast"], "learning_rate: expected numbers"),
    "out of range": (["--dropout", "0.5", "1.5"], "dropout: "),
    "negative": (["--learning-rate", "0.1", "-0.1"], "learning_rate: "),
    "scale": (["--scale", "0", "1"], "scale: expected a number above 0"),
    "setting": (["--optimizer-settings", "b9=1"], "optimizer_settings: expected NAME=NUMBER"),
    "seeds": (["--seeds", "0"], "seeds: expected an integer"),
    "halving": (["--halving", "1"], "halving: expected at least 2"),
    "pass": (["--members-per-pass", "0"], "members_per_pass: expected an integer"),
    "monitor": (["--monitor", "train_loss"], "monitor: "),
    "test examples": (["--test-file", "animals-test.csv", "--monitor", "test_loss"], "monitor: "),
    "no validation": (["--validation-fraction", "0"], "validation_fraction: expected some"),
    "too many samples": (["--samples", "3", "--learning-rate", "1", "2"], "samples: expected at"),
    "infinite scale": (["--scale", "1", "inf"], "scale: expected a number above 0 and finite"),
    "huge scale": (["--scale", "1e300"], "scale: expected a number above 0"),
    "twice": (["--optimizer-settings", "b1=0.8", "b1=0.9"], "expected every name once, got 'b1'"),
    "all at once": (["--samples", "100000000000", "--learning-rate", "0.1:1"], "at most 1,048,576"),
    "huge space": (["--space", "huge.json"], "samples: expected at most 1,048,576 networks"),
    "deep space": (["--space", "deep.json"], "space: deep.json: "),
    "huge number": (["--space", "number.json"], "dropout: expected numbers"),
    "list": (["--space", "list.json"], "space: list.json: expected name = choice"),
    "patience": (["--halving", "2", "--patience", "2"], "patience: expected none with --halving"),
    "no layer": (["--hidden", "--dropout", "0", "0.2"], "dropout: expected none"),
    "epochs": (["--epochs", "0"], "epochs: "),
    "optimizer": (["--optimizer", "adm"], "did you mean 'adam'"),
    "space": (["--space", "none.toml"], "none.toml: No such file"),
    "kind of space": (["--space", "animals.csv"], "expected a file .toml or .json"),
    "broken space": (["--space", "broken.toml"], "space: broken.toml: "),
    "name in a space": (["--space", "wrong.json"], "unknown number of the space 'rate'"),
    "choice in a space": (["--space", "choice.json"], "dropout: expected numbers"),
    "data": (["--dataset", "none.csv"], "none.csv"),
    "resume": (["--resume"], "resume: expected the sweep's folder"),
    "output": (["--output", "full"], "output: expected a new or empty folder"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(command, tmp_path, kind):
    options, message = BAD[kind]
    (tmp_path / "broken.toml").write_text("a = ")
    (tmp_path / "wrong.json").write_text('{"rate": 1}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "number.json").write_text('{"dropout": 1' + "0" * 400 + "}")
    names = ("learning_rate", "dropout", "weight_decay", "scale", "b1", "b2", "warmup")
    huge = {name: np.linspace(0.1, 0.9, 10).tolist() for name in names}
    (tmp_path / "huge.json").write_text(json.dumps(huge))
    (tmp_path / "choice.json").write_text('{"dropout": ["a"]}')
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    before = tree(tmp_path)
    result = command("sweep", *FEW, *options)
    assert result.status == 2
    assert result.errors.startswith("jaxmlp: ")
    assert result.errors.count("\n") == 1
    assert message in result.errors
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "sweep.json").write_text("{"), "not a sweep's"),
        (lambda f: (f / "sweep.json").write_text(
            (f / "sweep.json").read_text().replace('"epochs": 2', '"epochs": "two"')), "epochs"),
        (lambda f: (f / "trials.jsonl").write_text("\n".join(
            reversed((f / "trials.jsonl").read_text().splitlines()))), "not those of this sweep"),
        (lambda f: (f / "sweep.json").write_text(
            (f / "sweep.json").read_text().replace('"learning_rate": 0.001', '"rate": 1', 1)),
         "its settings have other numbers"),
        (lambda f: (f / "sweep.json").write_text(re.sub(
            '"members_per_pass": [0-9]+', '"members_per_pass": "two"',
            (f / "sweep.json").read_text())), "not a sweep's: members_per_pass"),
        (lambda f: (f / "trials.jsonl").write_text(
            (f / "trials.jsonl").read_text().replace("validation_loss", "loss")),
         "not those of this sweep"),
        (lambda f: (f / "sweep.json").write_text(re.sub(
            '"folder": "[^"]*"', '"folder": 3', (f / "sweep.json").read_text())),
         "not a sweep's: expected the folder that it was begun in"),
    ],
    ids=["options", "type", "order", "names", "pass", "figures", "folder"],
)  # fmt: skip
def test_a_damaged_sweep_is_not_gone_on_with(command, tmp_path, damage, message):
    assert command("sweep", *FEW, *GRID, "--output", "out").status == 0
    damage(tmp_path / "out")
    result = command("sweep", "--resume", "--output", "out")
    assert result.status == 2
    assert message in result.errors


def test_other_options_or_data_are_not_gone_on_with(command, tmp_path):
    assert command("sweep", *FEW, *GRID, "--output", "out").status == 0
    result = command("sweep", "--resume", "--output", "out", "--epochs", 3)
    assert result.status == 2
    assert "epochs: expected 2, with which out was begun, got 3" in result.errors
    (tmp_path / "space.toml").write_text("dropout = 0.5")
    result = command("sweep", "--resume", "--output", "out", "--space", "space.toml")
    assert (result.status, "space: expected what out was begun with" in result.errors) == (2, True)
    text = (tmp_path / "animals.csv").read_text().splitlines()
    (tmp_path / "animals.csv").write_text("\n".join(text[:-1]) + "\n")
    result = command("sweep", "--resume", "--output", "out")
    assert result.status == 2
    assert "dataset: expected the data that out was begun with, got others" in result.errors
