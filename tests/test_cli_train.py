"""`jaxmlp train`: from options to a run's folder, and every option does what it says."""

import importlib
import json
import os
import re
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from command import (
    ANIMALS,
    FEATURES,
    TINY,
    animals,
    ended,
    records,
    same_model,
    start,
    tree,
    write_csv,
    write_data,
    write_mnist,
)
from safetensors.numpy import load_file

import jaxmlp
from jaxmlp.data import load_dataset
from jaxmlp.training import runs


@pytest.fixture
def train(command, tmp_path):
    """Run `jaxmlp train` with a tiny network, on the data of `write_data`, and expect success."""
    write_data(tmp_path)

    def run(dataset, *options):
        result = command("train", "--dataset", dataset, *TINY, *options)
        assert (result.status, result.errors) == (0, "")
        return result.output.splitlines()

    return run


def config(run):
    return json.loads(Path(run, "config.json").read_text())


def test_train_without_arguments_learns_the_digits(command):
    status, output, errors = command("train")
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0].startswith("device     ") and "float32, matmul precision default" in lines[0]
    assert lines[1].startswith("data       digits: 1437 training and 360 test examples from ")
    assert lines[2] == "network    64-128-64-10, sigmoid, softmax_cross_entropy, 17,226 parameters"
    assert lines[3] == "training   adam, learning rate 0.005 (cosine), batches of 32, seed 0"
    assert re.fullmatch(r"compiled in \d+\.\d s", lines[4])
    assert [line.split()[1] for line in lines[5:-1]] == [f"{n}/20" for n in range(1, 21)]
    last = re.fullmatch(
        r"test accuracy (0\.\d{4}) after \d+\.\d s; saved in runs/digits-1", lines[-1]
    )
    assert last and float(last[1]) >= 0.96
    # The run's files say the same, and the model is the one that was evaluated.
    run = Path("runs/digits-1")
    assert sorted(path.name for path in run.iterdir()) == [
        "confident-mistakes.png",
        "config.json",
        "confusion-matrix.png",
        "first-layer-weights.png",
        "learning-curves.png",
        "metrics.jsonl",
        "model.safetensors",
    ]
    history = runs.read_metrics(run)
    assert [record["epoch"] for record in history] == list(range(1, 21))
    assert history[-1].keys() == {
        "epoch", "train_loss", "train_accuracy", "gradient_norm", "test_loss", "test_accuracy",
        "seconds", "examples_per_second",
    }  # fmt: skip
    assert f"{history[-1]['test_accuracy']:.4f}" == last[1]
    network, params, metadata = jaxmlp.load(run)
    assert network == jaxmlp.Network((64, 128, 64, 10))
    assert metadata["training"]["learning_rate"] == 0.005
    assert metadata["dataset"]["name"] == "digits"
    digits = load_dataset("digits")
    assert digits.test is not None
    metrics = jaxmlp.evaluate(network, params, *digits.test, scaling=digits.scaling)
    assert metrics.accuracy == pytest.approx(history[-1]["test_accuracy"])
    assert metrics.loss == pytest.approx(history[-1]["test_loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "figure"),
    [
        (("--loss", "sigmoid_binary_cross_entropy", "--hidden"), "test accuracy"),
        (("--loss", "squared_error", "--no-bias"), "test loss"),
        (("--hidden", "8", "6", "--activation", "relu", "tanh"), "test accuracy"),
    ],
    ids=lambda options: " ".join(options) if isinstance(options, tuple) else "",
)
def test_idx_files_are_learnt(command, tmp_path, options, figure):
    write_mnist(tmp_path / "mnist")
    run = Path("the run")
    status, output, errors = command(
        "train", "--dataset", "mnist", "--data-dir", "mnist", "--batch-size", 8, "--epochs", 30,
        "--hidden", 16, "--learning-rate", 0.02, "--no-pictures", "--output", run, *options,
    )  # fmt: skip
    assert (status, errors) == (0, "")
    assert "mnist: 96 training and 30 test examples from mnist" in output
    last = output.splitlines()[-1]
    assert last.startswith(figure) and last.endswith("saved in the run")
    value = float(last.split()[2])
    assert value > 0.9 if figure == "test accuracy" else value < 0.25
    network, params, _ = jaxmlp.load(run)
    assert jaxmlp.predictions(network, params, np.zeros((2, 20))).shape == (2, 10)


# What the data of a run is, as config.json and the model have it.


def test_a_table_s_strings_are_its_classes_in_alphabetical_order(train):
    train("animals.csv", "--output", "run")
    described = config("run")["dataset"]
    assert described["name"] == "animals" and described["source"] == "animals.csv"
    assert described["classes"] == list(ANIMALS)
    assert described["features"] == ["height", "weight", "tail"]
    assert config("run")["network"]["sizes"] == [3, 4, 3]


def test_the_target_may_be_any_column(train):
    train("houses.csv", "--target", "area", "--output", "run")
    described = config("run")["dataset"]
    assert described["features"] == ["rooms", "price"] and described["classes"] is None


def test_images_of_bytes_are_scaled_to_1_and_learnt(train):
    # A pixel of 255 tells the class; unscaled it would saturate everything.
    lines = train("images.npz", "--output", "run", "--epochs", 40, "--learning-rate", 0.05)
    assert lines[-1].startswith("train accuracy 1.0000 after ")
    described = config("run")
    assert described["dataset"]["image_shape"] == [4, 5]
    assert described["scaling"] == {"shift": 0.0, "factor": 1 / 255}


def test_numbers_are_a_regression(train):
    lines = train("houses.csv", "--standardize", "--output", "run", "--epochs", 60,
                  "--learning-rate", 0.05)  # fmt: skip
    assert lines[-1].startswith("train loss ")
    assert float(lines[-1].split()[2]) < 0.1  # half the variance of the price is 1.6
    assert config("run")["network"]["loss"] == "squared_error"
    assert config("run")["dataset"]["classes"] is None


def large_houses(scale=1e6):
    """houses.csv with prices in other units, and a fifth of them for testing."""
    data = load_dataset("houses.csv")
    split = np.where(np.arange(60) % 5 == 0, "test", "train")
    columns = *data.train.inputs.T, scale * data.train.targets[:, 0], split
    assert data.features is not None
    write_csv(Path("large.csv"), (*data.features, "price", "split"), *columns)
    return load_dataset("large.csv")


LARGE = ("--standardize", "--epochs", 60, "--learning-rate", 0.05)


def test_a_regression_on_standardized_targets_predicts_what_was_read(train, command):
    data: Any = large_houses()
    lines = train("large.csv", *LARGE, "--output", "as-read")
    assert any(line.startswith("targets    of standard deviation 1.") for line in lines)
    lines = train("large.csv", *LARGE, "--standardize-targets", "--seeds", 2, "--output", "run")
    assert "targets    standardized: losses are of these, the model predicts what was read" in lines
    wanted, error = data.test.targets, 0.0
    for seed in range(2):
        network, params, metadata = jaxmlp.load(f"run/seed-{seed}")
        got = jaxmlp.predictions(network, params, data.test.inputs, scaling=metadata["scaling"])
        error = float(np.sqrt(np.mean((np.asarray(got) - wanted) ** 2)))
        assert error < 0.2 * wanted.std()
        # The last loss is half the mean square in deviations of the training targets.
        last = json.loads(Path(f"run/seed-{seed}/metrics.jsonl").read_text().splitlines()[-1])
        deviation = data.train.targets.std()
        assert last["test_loss"] == pytest.approx((error / deviation) ** 2 / 2, rel=1e-3)
        assert config(f"run/seed-{seed}")["training"]["standardize_targets"] is True
    evaluated = command("evaluate", "run/seed-1")
    figures = evaluated.output.splitlines()[-1].split()
    assert figures[0] == "price" and float(figures[1]) == pytest.approx(error, rel=1e-4)
    assert command("evaluate", "as-read").status == 0


def test_influence_is_in_the_units_of_the_training(train, command):
    rows = {}
    for name, scale in (("large", 1e6), ("small", 1e-3)):
        large_houses(scale)
        options = ("--standardize-targets", "--keep-epochs", 30, "--output", name)
        train("large.csv", *LARGE, *options)
        for way in ("kept", "alone"):
            if way == "alone":
                shutil.rmtree(f"{name}/epochs")
            out = f"{name}-{way}.npz"
            done = command("influence", name, "--part", "test", "--examples", 1, "--output", out)
            assert done.status == 0, done.errors
            with np.load(out) as file:
                rows[name, way] = file["influence"]
    for way in ("kept", "alone"):
        largest = np.max(np.abs(rows["large", way]))
        np.testing.assert_allclose(
            rows["large", way], rows["small", way], rtol=0, atol=1e-3 * largest
        )


@pytest.mark.slow  # on the default Python alone
def test_inputs_in_units_of_their_own_and_numbers_that_are_classes_are_told_of(train):
    def hints(*more):
        return [line for line in train(*more) if line.startswith(("inputs", "targets"))]

    assert hints("animals.csv") == [
        "inputs     far from 0 ± 1: 2 of 3, such as height of 38.3 ± 15.9; may train better with "
        "--standardize"
    ]
    assert hints("animals.csv", "--standardize") == []
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(60, 3)), rng.integers(2, size=60).astype(float)
    for scale, count in ((1e200, 1), (1, 0), (0.01, 1)):
        write_csv(Path("set.csv"), (*FEATURES, "y"), *(scale * inputs.T), targets)
        found = hints("set.csv", *(("--dtype", "float64") if scale > 1 else ()))
        assert len(found) == count + 1
        assert found[-1] == (
            "targets    are 0 and 1 alone, as numbers: --targets classes makes classes of them"
        )
    assert found[0].startswith("inputs     far from 0 ± 1: 3 of 3, such as height of ")
    assert hints("set.csv", "--targets", "classes") == found[:1]
    assert not any("0 and 1" in line for line in hints("set.csv", "--targets", "numbers"))
    hint = "targets    20 classes of 60 examples, all integers: --targets numbers takes "
    few = np.arange(60) % 20 - 3
    for classes, more, expected in (
        (few, (), [f"{hint}them as numbers"]),
        (few, ("--targets", "classes"), []),
        ([f"of {name}" for name in few], (), []),
        (np.arange(60) % 19, (), []),
        (few.tolist() * 3, (), []),
    ):
        own = np.tile(inputs, (len(classes) // 60, 1))
        write_csv(Path("set.csv"), (*FEATURES, "y"), *own.T, classes)
        assert hints("set.csv", *more) == expected
    np.savez("set.npz", inputs=0.01 * inputs, targets=np.stack([targets] * 2, axis=1))
    (line,) = hints("set.npz")  # columns of 0 and 1 are no classes
    assert line.startswith("inputs     far from 0 ± 1: 3 of 3, such as number 0 of ")


@pytest.mark.slow  # on the default Python alone
def test_a_row_in_the_place_of_a_header_is_told_of(train):
    rng = np.random.default_rng(0)
    columns = *rng.normal(size=(2, 60)), rng.integers(2, size=60)
    for header, hint in (
        ((5, 13, 0), ["columns    named by whole numbers, '5', '13', '0': a first row that is no "
                      "header is taken for one"]),
        ((0, 1, 2), []),
        ((5, 13, "y"), []),
    ):  # fmt: skip
        write_csv(Path("set.csv"), header, *columns)
        assert [line for line in train("set.csv") if line.startswith("columns")] == hint


@pytest.mark.slow  # on the default Python alone
def test_weights_under_a_name_that_is_misspelt_are_told_of(train):
    columns = *np.random.default_rng(0).random((2, 60)), np.arange(60) % 2
    hint = "columns    {!r} is an input: weights have a column named 'sample_weight'"
    for name, hints in (("sample_weights", 1), ("Sample Weight", 1), ("weight of sample", 0)):
        write_csv(Path("set.csv"), ("a", name, "y"), *columns)
        lines = [line for line in train("set.csv") if line.startswith("columns")]
        assert lines == [hint.format(name)] * hints


@pytest.mark.slow  # on the default Python alone
def test_the_hint_looks_at_what_counts_and_at_every_output(train, command):
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(60, 3)), rng.normal(size=(60, 2))
    hint = "targets    of standard deviation "

    def hints(targets, **more):
        np.savez("set.npz", inputs=inputs, targets=targets, **more)
        return [line for line in train("set.npz") if line.startswith(hint)]

    train("houses.csv")
    weights = np.ones(60)
    weights[:5], outlier = 0, targets.copy()
    outlier[:5] = 1e30
    assert hints(targets) == hints(outlier, sample_weight=weights) == []
    assert hints(0 * targets + 7) == []  # nothing to scale
    assert hints(targets * [1, 1e-3])[0].startswith(hint + "0.00")
    assert hints(targets * [100, 1])[0].startswith(hint)
    private = ("--private", "--clip-norm", 1, "--noise-multiplier", 1, "--delta", 1e-3)
    assert not any(hint in line for line in train("set.npz", *private))


def test_the_standard_is_of_the_training_part_alone_and_is_kept_with_the_model(train):
    train("animals.csv", "--standardize", "--validation-fraction", "0.25", "--output", "run")
    data = load_dataset("animals.csv", validation_fraction=0.25)
    assert data.validation is not None
    mean, deviation = data.train.inputs.mean(axis=0), data.train.inputs.std(axis=0)
    network, params, metadata = jaxmlp.load("run")
    # The mean of 45 numbers in float64.
    np.testing.assert_allclose(metadata["scaling"].shift, mean, rtol=1e-12)
    np.testing.assert_allclose(metadata["scaling"].factor, 1 / deviation, rtol=1e-12)
    raw = data.validation.inputs
    expected = jaxmlp.predictions(network, params, (raw - mean) / deviation)
    got = jaxmlp.predictions(network, params, raw, scaling=metadata["scaling"])
    np.testing.assert_allclose(got, expected, atol=1e-6)  # of float32 inputs


def test_a_fraction_of_every_class_is_put_aside_for_validation(train):
    lines = train("animals.csv", "--validation-fraction", "0.2")
    assert "animals: 48 training and 12 validation examples from animals.csv" in lines[1]
    assert lines[-1].startswith("validation accuracy ")
    assert {"validation_loss", "validation_accuracy"} <= records("runs/animals-1")[0].keys()


def test_files_of_their_own_are_for_validation_and_testing(train):
    lines = train("animals.csv", "--validation-file", "animals-test.csv", "--test-file",
                  "animals.csv", "--output", "run")  # fmt: skip
    assert (
        "animals: 60 training, 30 validation and 60 test examples from animals.csv, target 'animal'"
        in lines[1]
    )
    network, params, _ = jaxmlp.load("run")
    inputs, names = animals(30, seed=1)
    metrics = jaxmlp.evaluate(network, params, inputs, [ANIMALS.index(name) for name in names])
    assert records("run")[-1]["validation_loss"] == pytest.approx(metrics.loss, rel=1e-6)


# How it is trained: as `jaxmlp.fit` does with the same settings.


def fitted(seed=0, sample_weight=None, **settings):
    """The parameters that `fit` yields on the animals, from the keys that the command takes."""
    inputs, names = animals()
    network = jaxmlp.Network((3, 4, 3))
    first, order = jax.random.split(jax.random.key(seed))
    return jaxmlp.fit(
        network, jaxmlp.init(network, first), inputs, [ANIMALS.index(name) for name in names],
        key=order, sample_weight=sample_weight, **{"batch_size": 16, "epochs": 2, **settings},
    ).params  # fmt: skip


def assert_saved(run, params):
    arrays = load_file(Path(run, "model.safetensors"))
    for number, layer in enumerate(params):
        np.testing.assert_array_equal(arrays[f"{number}.weight"], layer.weight)
        np.testing.assert_array_equal(arrays[f"{number}.bias"], layer.bias)


DEFAULTS = {"learning_rate": 0.005, "schedule": "cosine"}


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("", {}),
        ("--seed 7", {"seed": 7}),
        ("--optimizer-settings b1=0.5 eps=0.1", {"optimizer_settings": {"b1": 0.5, "eps": 0.1}}),
        (
            "--optimizer nadamw --schedule one_cycle --learning-rate 0.02 --warmup 0.2 "
            "--weight-decay 0.1 --clip-norm 0.05 --max-norm 0.5 --dropout 0.3 "
            "--input-dropout 0.1 --label-smoothing 0.1 --average-decay 0.8",
            {
                "optimizer": "nadamw",
                "schedule": "one_cycle",
                "learning_rate": 0.02,
                "warmup": 0.2,
                "weight_decay": 0.1,
                "clip_norm": 0.05,
                "max_norm": 0.5,
                "dropout": 0.3,
                "input_dropout": 0.1,
                "label_smoothing": 0.1,
                "average_decay": 0.8,
            },
        ),
    ],
    ids=["defaults", "seed", "numbers of the optimiser", "all settings"],
)
def test_the_command_trains_as_fit_does(train, options, settings):
    train("animals.csv", "--output", "run", *options.split())
    assert_saved("run", fitted(**{**DEFAULTS, **settings}))


def test_classes_weigh_as_they_are_told(train):
    inputs, names = animals()
    lines = ["height,weight,tail,animal"]
    rows = [*zip(inputs.tolist(), names, strict=True)]
    rows = [row for row in rows if row[1] == "cat"] + [row for row in rows if row[1] != "cat"][:10]
    lines += [",".join(map(str, (*numbers, name))) for numbers, name in rows]
    Path("few.csv").write_text("\n".join(lines) + "\n")
    counts = {kind: sum(name == kind for _, name in rows) for kind in ANIMALS}
    balanced = [f"{kind}={len(rows) / (3 * n)!r}" for kind, n in counts.items()]
    train("few.csv", "--output", "none")
    train("few.csv", "--output", "balanced", "--class-weight", "balanced")
    train("few.csv", "--output", "named", "--class-weight", *balanced)
    train("few.csv", "--output", "one", "--class-weight", "cat=1")
    assert same_model("balanced", "named") and same_model("none", "one")
    assert not same_model("balanced", "none")


def test_a_class_weight_is_a_sample_weight(train):
    said = train("animals.csv", "--output", "run", "--class-weight", "owl=3", "dog=0")
    assert "weights    owl=3 dog=0: the training figures are weighted, the others are not" in said
    rows = Path("animals.csv").read_text().splitlines()
    weighted = [f"{rows[0]},sample_weight", *(f"{row},2" for row in rows[1:])]
    Path("weighted.csv").write_text("\n".join(weighted) + "\n")
    said = train("weighted.csv")
    assert "weights    sample_weight: all figures are weighted" in said
    said = train("weighted.csv", "--class-weight", "balanced")
    assert "weights    balanced: the training figures are weighted" in said
    assert "weights    sample_weight: all figures are weighted" in said
    said = train("animals.csv", "--test-file", "weighted.csv")
    assert "weights    sample_weight: the test figures are weighted" in said
    weights = np.array([{"cat": 1.0, "dog": 0.0, "owl": 3.0}[name] for name in animals()[1]])
    assert_saved("run", fitted(sample_weight=weights, **DEFAULTS))


def test_patience_ends_the_training_and_the_best_epoch_is_kept(train):
    lines = train(
        "animals.csv", "--standardize", "--validation-fraction", "0.25", "--patience", 3,
        "--monitor", "validation_accuracy", "--epochs", 200, "--learning-rate", "0.05",
        "--output", "run",
    )  # fmt: skip
    history = records("run")
    accuracies = [record["validation_accuracy"] for record in history]
    best = int(np.argmax(accuracies))  # the first of equal ones
    assert len(history) == best + 1 + 3 < 200
    assert lines[-2] == f"the best epoch was {best + 1}, by validation_accuracy: it is saved"
    assert lines[-1].startswith(f"validation accuracy {accuracies[best]:.4f} after ")
    network, params, metadata = jaxmlp.load("run")
    data = load_dataset("animals.csv", validation_fraction=0.25)
    assert data.validation is not None
    metrics = jaxmlp.evaluate(network, params, *data.validation, scaling=metadata["scaling"])
    assert metrics.loss == pytest.approx(history[best]["validation_loss"], rel=1e-6)
    assert metrics.loss != pytest.approx(history[-1]["validation_loss"], rel=1e-3)


def test_several_seeds_are_trained_each_as_if_alone_and_summed_up(train):
    lines = train("animals.csv", "--seeds", 3, "--seed", 5, "--output", "run")
    assert lines[3].endswith("batches of 16, seeds 5 to 7")
    assert sorted(path.name for path in Path("run").iterdir()) == [
        "seed-5",
        "seed-6",
        "seed-7",
        "summary.json",
    ]
    train("animals.csv", "--seed", 6, "--output", "alone")
    assert same_model("run/seed-6", "alone")
    finals = [records(f"run/seed-{seed}")[-1] for seed in (5, 6, 7)]
    values = np.array([final["train_accuracy"] for final in finals])
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["seeds"].keys() == {"5", "6", "7"}
    assert summary["seeds"]["6"].items() >= finals[1].items()
    assert summary["mean"]["train_accuracy"] == pytest.approx(values.mean())
    assert summary["standard_deviation"]["train_accuracy"] == pytest.approx(values.std(ddof=1))
    shown = f"train accuracy {values.mean():.4f} ± {values.std(ddof=1):.4f} over 3 seeds after "
    assert lines[-1].startswith(shown)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_the_model_has_the_dtype_that_is_asked_for(train, dtype):
    lines = train("images.npz", "--dtype", dtype, "--output", "run", "--epochs", 40,
                  "--learning-rate", "0.05")  # fmt: skip
    assert f", {dtype}, matmul precision " in lines[0]
    with jax.enable_x64(dtype == "float64"):
        network, params, _ = jaxmlp.load("run")
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
    assert lines[-1].startswith("train accuracy 1.0000 after ")


# What is printed and drawn.


def test_quiet_prints_the_last_line_only(train):
    lines = train("animals.csv", "--quiet", "--validation-fraction", "0.25", "--patience", 1,
                  "--monitor", "validation_accuracy", "--epochs", 50)  # fmt: skip
    assert len(lines) == 1
    assert lines[0].startswith("validation accuracy ") and "saved in runs/animals-1" in lines[0]


def test_pictures_are_drawn_where_they_are_wanted(train):
    train("houses.csv", "--output", "run", "--pictures")
    pictures = {path.name for path in Path("run").glob("*.png")}
    assert pictures == {"learning-curves.png", "predicted-against-true.png"}
    train("houses.csv", "--output", "without")  # by TINY's --no-pictures
    assert not [*Path("without").glob("*.png")]


def test_a_compile_cache_spares_the_next_process_all_compiling(tmp_path):
    write_data(tmp_path)
    # The precision is asked for by a program that is compiled before the run begins.
    options = ("--precision", "highest", "--compile-cache", "a/cache")
    another = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "another")}
    programs = []
    for _ in range(2):
        process = start("train", "--dataset", "animals.csv", *TINY, *options, cwd=tmp_path,
                        env=another)  # fmt: skip
        result = ended(process)
        assert (result.status, result.errors) == (0, "")
        # Whatever is compiled is written there, however small.
        programs.append({path.name for path in (tmp_path / "a/cache").glob("*-cache")})
    assert programs[0] == programs[1] != set()


# What goes wrong though the input is right: one sentence, exit status 1.


# Linear: with a rate above what is stable the weights grow by a factor with every step.
LINEAR = (
    *("train", "--dataset", "houses.csv", "--hidden", "--standardize", "--optimizer", "sgd"),
    *("--schedule", "constant", "--no-pictures", "--output", "run"),
)


def test_a_run_that_diverges_names_the_epoch_and_that_there_is_no_checkpoint(train, command):
    options = ("--learning-rate", "1e20", "--epochs", 3, "--batch-size", 16)
    status, _, errors = command(*LINEAR, *options)
    assert status == 1
    assert re.fullmatch(
        r"jaxmlp: training diverged: the train loss became \S+ in epoch 1 of 3; a learning rate "
        r"below 1e\+20 may help; there is no checkpoint, so delete run or give another --output\n",
        errors,
    )
    assert not Path("run/model.safetensors").exists()


def test_a_run_that_diverges_late_names_its_last_good_checkpoint(train, command):
    options = ("--learning-rate", 8, "--epochs", 100, "--batch-size", 16)
    status, _, errors = command(*LINEAR, *options, "--checkpoint-every", "1e-9")
    assert status == 1
    found = re.fullmatch(
        r"jaxmlp: training diverged: .* became \S+ in epoch (\d+) of 100; a learning rate below 8 "
        r"may help; the last good checkpoint is run/checkpoints/(\d+)\n",
        errors,
    )
    assert found
    epoch, step = int(found[1]), int(found[2])
    assert 2 <= epoch and step == 4 * (epoch - 1)  # four steps an epoch, and that of the one before
    assert Path("run/checkpoints", found[2]).is_dir()
    assert len(records("run")) == epoch - 1


def test_a_last_step_that_leads_to_nan_is_a_failure_and_no_model(train, command):
    # One step an epoch: the training loss is that before it, and fine.
    options = ("--learning-rate", "1e38", "--epochs", 1, "--batch-size", 60)
    status, _, errors = command(*LINEAR, *options, "--test-file", "houses.csv")
    assert status == 1
    assert errors.startswith("jaxmlp: training diverged: the test loss became ")
    assert not Path("run/model.safetensors").exists()
    assert Path("run/metrics.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 256 GB\nmore"), "RESOURCE_EXHAUSTED: 256"),
        (MemoryError("Unable to allocate 256 GB"), "out of memory: Unable to allocate 256 GB"),
    ],
    ids=["device", "host"],
)
@pytest.mark.parametrize(
    ("room", "place"), [("jaxmlp.cli.problem", "load_dataset"), ("jaxmlp.cli.train", "fit")]
)
def test_memory_that_runs_out_is_one_sentence(command, monkeypatch, error, message, room, place):
    def no_memory(*_, **__):
        raise error

    monkeypatch.setattr(importlib.import_module(room), place, no_memory)
    status, _, errors = command("train")
    assert status == 1
    assert errors.startswith("jaxmlp: ") and message in errors and errors.count("\n") == 1


@contextmanager
def files_of_at_most(n_bytes):
    """Writing more into any file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("n_bytes", "file", "left"),
    [
        (1000, "config.json", set()),
        (4000, "metrics.jsonl", {"config.json", "metrics.jsonl"}),
        (20_000, "model.safetensors", {"config.json", "metrics.jsonl"}),
    ],
)
def test_a_disk_that_is_full_is_one_sentence_and_nothing_is_half_written(
    train, command, n_bytes, file, left
):
    arguments = ("train", "--dataset", "animals.csv", *TINY, "--epochs", 40, "--hidden", 999)
    with files_of_at_most(n_bytes):
        status, _, errors = command(*arguments, "--output", "run")
    assert (status, errors) == (1, f"jaxmlp: run/{file}: cannot be written: File too large\n")
    assert set(tree("run")) == left
    if left:
        config("run")
        assert 0 < len(runs.read_metrics("run")) <= 40  # whole lines


def test_a_disk_that_is_full_at_a_checkpoint_is_one_sentence(train, command):
    with files_of_at_most(3000):
        status, _, errors = command(
            "train", "--dataset", "animals.csv", *TINY, "--hidden", 999, "--output", "run",
            "--checkpoint-every", "1e-9",
        )  # fmt: skip
    assert status == 1
    assert errors == (
        "jaxmlp: checkpoints: cannot write in run/checkpoints: File too large; earlier files are "
        "as they were\n"
    )
    assert len(runs.read_metrics("run")) == 1


def test_the_same_options_do_not_overwrite_a_run(train, command):
    train("animals.csv", "--output", "run")
    before = tree("run")
    status, output, errors = command("train", "--dataset", "animals.csv", "--output", "run")
    assert (status, output) == (2, "")
    message = "output: expected a new or empty folder, got run, which already holds files"
    assert errors == f"jaxmlp: {message}\n"
    assert tree("run") == before


def test_runs_are_numbered(train):
    for number in (1, 2):
        assert train("animals.csv", "--quiet")[0].endswith(f"saved in runs/animals-{number}")
