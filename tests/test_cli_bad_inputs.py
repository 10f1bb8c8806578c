"""Every bad input is one sentence and exit status 2, and leaves nothing new behind."""

import contextlib
import json
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from command import FEATURES, animals, tree, write_csv
from safetensors.numpy import load_file, save_file

pytestmark = pytest.mark.slow  # on the default Python alone

INPUTS, NAMES = animals()


def csv(header=(*FEATURES, "animal"), inputs=INPUTS, names=NAMES, path="bad.csv"):
    write_csv(Path(path), header, *np.asarray(inputs, object).T, names)


def text(content, path="bad.csv"):
    Path(path).write_bytes(content.encode() if isinstance(content, str) else content)


def changed(row, column, value):
    inputs = INPUTS.astype(object)
    inputs[row, column] = value
    return inputs


def npz(path="bad.npz", **arrays):
    np.savez(path, **{"inputs": INPUTS, "targets": np.arange(60) % 3, **arrays})


def without(name):
    arrays = {"inputs": INPUTS, "targets": np.arange(60) % 3}
    arrays.pop(name)
    np.savez("bad.npz", **arrays)


def truncated_npz(path="bad.npz"):
    npz(path)
    Path(path).write_bytes(Path(path).read_bytes()[:-300])


def damaged_npz(path="bad.npz"):
    npz(path)
    content = bytearray(Path(path).read_bytes())
    content[500] ^= 1
    Path(path).write_bytes(content)


def zip_of_text():
    with zipfile.ZipFile("bad.npz", "w") as archive:
        archive.writestr("inputs.npy", "no array")
        archive.writestr("targets.npy", "no array")


# What is done to the data, the options after `train`, and how the sentence begins.
TRAIN = {
    "a file of another kind": (
        lambda: text("a\tb\n1\t2\n", "a.tsv"), "--dataset a.tsv",
        "dataset: expected a file .npz or .csv or a folder of .npy files, got a.tsv",
    ),
    "an empty name": (None, "--dataset=", "dataset: expected a name, a file or a folder, got ''"),
    "a path where nothing is": (
        None, "--dataset data/iris",
        "dataset: expected a file .npz or .csv or a folder of .npy files, got data/iris, where",
    ),
    "a name that is none": (None, "--dataset animal.cvs", "unknown dataset 'animal.cvs': expected"),
    "a file that is not there": (None, "--dataset no.csv", "no.csv: expected a readable csv file"),
    "a folder for a csv": (
        lambda: Path("bad.csv").mkdir(), "--dataset bad.csv", "bad.csv: expected a readable csv",
    ),
    "a folder for an npz": (
        lambda: Path("bad.npz").mkdir(), "--dataset bad.npz", "bad.npz: expected a readable .npz",
    ),
    "an empty csv": (lambda: text(""), "--dataset bad.csv", "bad.csv: expected a header and rows"),
    "a header alone": (
        lambda: text("a,b,c\n"), "--dataset bad.csv", "bad.csv: expected rows below the header",
    ),
    "no header": (
        lambda: text("5.1,1,cat\n5.2,2,dog\n"), "--dataset bad.csv",
        "bad.csv: expected a header with the names of the columns, got the number '5.1'",
    ),
    "semicolons": (
        lambda: text("a;b\n1;2\n"), "--dataset bad.csv", "bad.csv: expected columns separated by",
    ),
    "two columns of a name": (
        lambda: text("a,a,b\n1,2,3\n"), "--dataset bad.csv",
        "bad.csv: expected a name of its own for every column, got 'a'",
    ),
    "a short row": (
        lambda: text("a,b,c\n1,2,x\n1,y\n"), "--dataset bad.csv",
        "bad.csv: expected 3 columns in row 3, got 2",
    ),
    "nan in a csv": (
        lambda: csv(inputs=changed(7, 1, "nan")), "--dataset bad.csv",
        "bad.csv: expected a number in column 'weight' of row 9, got 'nan'",
    ),
    "a gap in a csv": (
        lambda: csv(inputs=changed(7, 1, "")), "--dataset bad.csv",
        "bad.csv: expected a number in column 'weight' of row 9, got ''",
    ),
    "a word in a csv": (
        lambda: csv(inputs=changed(7, 2, "long")), "--dataset bad.csv",
        "bad.csv: expected a number in column 'tail' of row 9, got 'long'",
    ),
    "no UTF-8": (
        lambda: text(b"a,b\n1,\xff\n"), "--dataset bad.csv", "bad.csv: expected UTF-8, got the b",
    ),
    "a number beyond float32": (
        lambda: csv(inputs=changed(7, 1, 1e300)), "--dataset bad.csv",
        "train inputs: expected finite numbers, got inf at [7, 1]",
    ),
    "a number beyond float16": (
        lambda: csv(inputs=changed(7, 1, 1e6)), "--dataset bad.csv --dtype float16",
        "train inputs: expected finite numbers, got inf at [7, 1]",
    ),
    "a validation number beyond float32": (
        lambda: csv(inputs=changed(7, 1, 1e300)), "--dataset animals.csv --validation-file bad.csv",
        "validation inputs: expected finite numbers, got inf at [7, 1]",
    ),
    "a target that is no column": (
        None, "--dataset animals.csv --target anmal",
        "animals.csv: unknown target column 'anmal': did you mean 'animal'?",
    ),
    "a target for an npz": (None, "--dataset images.npz --target a", "target: expected none for"),
    "no column of inputs": (
        lambda: text("a\n1\n2\n"), "--dataset bad.csv", "bad.csv: expected at least one column of",
    ),
    "one class": (
        lambda: csv(names=["cat"] * 60), "--dataset bad.csv",
        "bad.csv: expected examples of at least two classes for training, got 'cat' only",
    ),
    "a missing target": (
        lambda: csv(names=["NA", *NAMES[1:]]), "--dataset bad.csv",
        "bad.csv: expected a target in column 'animal' of row 2, got 'NA'",
    ),
    "a column that is not there is to be ignored": (
        None, "--dataset animals.csv --ignore tial",
        "animals.csv: unknown ignored column 'tial': did you mean 'tail'?",
    ),
    "a column of a known set is to be ignored": (
        None, "--dataset iris --ignore tail", "ignore: expected none for iris, which is a known "
        "dataset, got 'tail'",
    ),
    "a column of an array is to be ignored": (
        None, "--dataset images.npz --ignore tail", "ignore: expected none for images.npz, whose",
    ),
    "names for numbers": (
        None, "--dataset animals.csv --targets numbers",
        "animals.csv: expected a number in column 'animal' of row 2, got ",
    ),
    "a class that training lacks": (
        lambda: csv(names=["emu", *NAMES[1:]]), "--dataset animals.csv --test-file bad.csv",
        "bad.csv: expected a class of the training examples ('cat', 'dog', 'owl')",
    ),
    "a column that the test file lacks": (
        lambda: csv(header=("height", "weight", "wings", "animal")),
        "--dataset animals.csv --test-file bad.csv", "bad.csv: expected a column 'tail', as in",
    ),
    "a test file of another kind": (
        None, "--dataset animals.csv --test-file images.npz", "test_file: expected a file .csv, as",
    ),
    "an unknown split": (
        lambda: csv(header=("height", "weight", "split", "animal")), "--dataset bad.csv",
        "bad.csv: expected train, validation or test in column 'split' of row 2",
    ),
    "a negative sample weight": (
        lambda: csv(("height", "weight", "sample_weight", "animal"), changed(7, 2, -1)),
        "--dataset bad.csv", "bad.csv: expected a number of at least 0 in column 'sample_weight'",
    ),
    "an empty npz": (lambda: text("", "bad.npz"), "--dataset bad.npz", "bad.npz: expected an int"),
    "a truncated npz": (truncated_npz, "--dataset bad.npz", "bad.npz: expected an intact .npz"),
    "a damaged npz": (damaged_npz, "--dataset bad.npz", "bad.npz: expected "),
    "text in an npz": (zip_of_text, "--dataset bad.npz", "bad.npz: expected inputs in NumPy's"),
    "an npz without inputs": (
        lambda: without("inputs"), "--dataset bad.npz", "bad.npz: expected the arrays 'inputs' and",
    ),
    "an npz without targets": (
        lambda: without("targets"), "--dataset bad.npz", "bad.npz: expected the arrays 'inputs' a",
    ),
    "pickled inputs": (
        lambda: npz(inputs=INPUTS.astype(object)), "--dataset bad.npz",
        "bad.npz: expected inputs of numbers or strings, got Python objects",
    ),
    "pickled targets": (
        lambda: npz(targets=NAMES.astype(object)), "--dataset bad.npz",
        "bad.npz: expected targets of numbers or strings, got Python objects",
    ),
    "inputs of four axes": (
        lambda: npz(inputs=np.zeros((60, 2, 2, 2))), "--dataset bad.npz", "bad.npz: expected input",
    ),
    "complex inputs": (
        lambda: npz(inputs=INPUTS + 1j), "--dataset bad.npz", "bad.npz: expected inputs",
    ),
    "other rows of targets": (
        lambda: npz(targets=np.arange(59) % 3), "--dataset bad.npz",
        "bad.npz: expected 60 rows in targets, as in inputs, got shape (59,)",
    ),
    "infinite inputs": (
        lambda: npz(inputs=np.where(INPUTS > 60, np.inf, INPUTS)), "--dataset bad.npz",
        "bad.npz: expected finite inputs, got inf at [",
    ),
    "poisson of negative targets": (
        lambda: csv(names=np.arange(60) - 0.5), "--dataset bad.csv --loss poisson --target animal",
        "loss: expected targets of at least 0 for poisson, got negative ones",
    ),
    "a loss of classes for numbers": (
        None, "--dataset houses.csv --loss softmax_cross_entropy",
        "loss: expected squared_error or poisson for numbers, got softmax_cross_entropy (--targets",
    ),
    "a loss of numbers for classes": (
        None, "--dataset animals.csv --loss poisson",
        "loss: expected softmax_cross_entropy or sigmoid_binary_cross_entropy or squared_error for",
    ),
    "standardized classes": (
        None, "--dataset animals.csv --standardize-targets",
        "standardize_targets: expected numbers to predict by the squared error, got others",
    ),
    "standardized counts": (
        None, "--dataset houses.csv --loss poisson --standardize-targets",
        "standardize_targets: expected numbers to predict by the squared error, got others",
    ),
    "standardized without biases": (
        None, "--dataset houses.csv --no-bias --standardize-targets",
        "standardize_targets: expected biases, which take the mean up, got others",
    ),
    "standardized and all the same to float32": (
        lambda: csv(("area", "price"), np.arange(60.0)[:, None], 1e9 + np.arange(60.0)),
        "--dataset bad.csv --targets numbers --standardize-targets",
        "standardize_targets: expected targets that float32 tells apart, got a mean of 1e+09 with",
    ),
    "standardized in halves": (
        None, "--dataset houses.csv --dtype bfloat16 --standardize-targets",
        "standardize_targets: expected float32 or float64, which hold numbers of any size, got oth",
    ),
    "a loss that is none": (
        None, "--dataset animals.csv --loss hinge", "unknown loss 'hinge': expected one of softmax",
    ),
    "weights of classes for numbers": (
        None, "--dataset houses.csv --class-weight balanced",
        "class_weight: expected none for houses, a regression",
    ),
    "a negative class weight": (
        None, "--dataset animals.csv --class-weight cat=-1",
        "class_weight: expected finite numbers ≥ 0, got -1.0 for 'cat'",
    ),
    "a class weight that is no number": (
        None, "--dataset animals.csv --class-weight cat=much",
        "class_weight: expected balanced or NAME=NUMBER, got 'cat=much'",
    ),
    "a class weight given twice": (
        None, "--dataset animals.csv --class-weight cat=1 cat=2",
        "class_weight: expected every name once, got 'cat' twice",
    ),
    "an unknown class": (
        None, "--dataset animals.csv --class-weight emu=2",
        "class_weight: unknown class 'emu': expected one of 'cat', 'dog', 'owl'",
    ),
    "no class that weighs": (
        None, "--dataset animals.csv --class-weight cat=0 dog=0 owl=0",
        "class_weight: expected an example that weighs more than 0",
    ),
    "all for validation": (
        None, "--dataset animals.csv --validation-fraction 1",
        "validation_fraction: expected a number in [0, 1), got 1.0",
    ),
    "too little for validation": (
        None, "--dataset animals.csv --validation-fraction 0.001",
        "validation_fraction: expected at least one example for training and one for validation",
    ),
    "validation twice": (
        None, "--dataset animals.csv --validation-file animals-test.csv --validation-fraction 0.1",
        "validation_fraction: expected 0 where animals.csv or a file of its own",
    ),
    "a monitor of no part": (
        None, "--dataset animals.csv --patience 2",
        "monitor: expected the loss or accuracy of a part to judge by that the data have (none), ",
    ),
    "a monitor of another part": (
        None, "--dataset animals.csv --validation-fraction 0.2 --monitor test_loss",
        "monitor: expected the loss or accuracy of a part to judge by that the data have (validati",
    ),
    "a monitor that is no figure": (
        None, "--dataset animals.csv --monitor validation", "monitor: expected the loss or the acc",
    ),
    "a monitored accuracy of a regression": (
        None, "--dataset houses.csv --validation-fraction 0.2 --patience 2 --monitor "
        "validation_accuracy", "monitor: expected a loss, as squared_error has no accuracy",
    ),
    "no patience": (None, "--patience 0", "patience: expected an integer of at least 1, got 0"),
    "no seeds": (None, "--seeds 0", "seeds: expected an integer of at least 1, got 0"),
    "no checkpoints": (None, "--keep 0", "keep: expected an integer of at least 1, got 0"),
    "checkpoints at once": (
        None, "--checkpoint-every 0", "checkpoint_every: expected a number above 0, got 0.0",
    ),
    "checkpoints at no time": (
        None, "--checkpoint-every nan", "checkpoint_every: expected a number above 0, got nan",
    ),
    "a learning rate that is none": (
        None, "--learning-rate nan", "learning_rate: expected a number above 0, got nan",
    ),
    "a fraction that is none": (
        None, "--validation-fraction nan", "validation_fraction: expected a number in [0, 1), got",
    ),
    "all units dropped": (None, "--dropout 1", "dropout: expected a number in [0, 1), got 1.0"),
    "a dropout too many": (
        None, "--dropout 0.1 0.2 0.3", "dropout: expected one rate or 2, one for each hidden layer",
    ),
    "dropout of no units": (
        None, "--hidden --dropout 0.1", "dropout: expected none for a network without a hidden",
    ),
    "all inputs dropped": (None, "--input-dropout 1", "input_dropout: expected a number in [0, 1)"),
    "an average of nothing": (
        None, "--average-decay 1", "average_decay: expected a number in (0, 1), got 1.0",
    ),
    "warmup for ever": (None, "--warmup 1", "warmup: expected a number in [0, 1), got 1.0"),
    "a negative norm": (None, "--clip-norm -1", "clip_norm: expected a number above 0, got -1.0"),
    "a negative decay": (
        None, "--weight-decay -1", "weight_decay: expected a number of at least 0, got -1.0",
    ),
    "an unknown setting": (
        None, "--optimizer-settings beta=0.9",
        "optimizer_settings: expected b1, b2, eps for adam, got 'beta'",
    ),
    "a setting that is no number": (
        None, "--optimizer-settings b1", "optimizer_settings: expected NAME=NUMBER, got 'b1'",
    ),
    "a setting below 0": (
        None, "--optimizer-settings b1=-1", "optimizer_settings: b1: expected a number in [0, 1)",
    ),
    "more units than memory": (
        None, "--hidden 2147483647 2147483647", "hidden: expected at most 2^40 parameters, got 4,6",
    ),
    "a precision that this device lacks": (
        None, "--precision F16_F16_F16", "precision: expected one that ",
    ),
    "resume of nothing": (None, "--resume", "resume: expected the run's folder (--output RUN)"),
    "resume of another folder": (
        lambda: text("", "images/notes.txt") or Path("images/config.json").unlink(),
        "--resume --output images", "output: expected a new or empty folder, got images",
    ),
    "a cache that is a file": (
        None, "--compile-cache animals.csv", "compile_cache: expected a folder, got ",
    ),
    "a cache below a file": (
        None, "--compile-cache animals.csv/cache", "compile_cache: expected a folder, got ",
    ),
    "a cache and a bad option": (
        None, "--compile-cache cache --output images", "output: expected a new or empty folder",
    ),
    "an output below a file": (
        None, "--output animals.csv/run", "output: cannot make the folder animals.csv/run: Not a",
    ),
    "an output with too long a name": (
        None, f"--output {'a' * 300}", f"{'a' * 300}: File name too long",
    ),
}  # fmt: skip


def check(command, arguments, message, cwd):
    """It ends with status 2 and this sentence alone, and changes no file."""
    before = tree(cwd)
    status, output, errors = command(*arguments)
    assert (status, output) == (2, ""), errors
    assert re.fullmatch(r"jaxmlp: [^\n]+\n", errors), errors
    assert errors.startswith(f"jaxmlp: {message}")
    assert tree(cwd) == before


@pytest.mark.parametrize(("damage", "options", "message"), TRAIN.values(), ids=TRAIN)
def test_train_refuses_in_one_sentence(command, trained, damage, options, message):
    if damage:
        damage()
    check(command, ("train", *options.split()), message, trained)


def config(run, **changes):
    """The run's config.json with other content: a value, or a function of what there is."""
    path = Path(run, "config.json")
    content = json.loads(path.read_text())
    for name, change in changes.items():
        if callable(change):
            change(content[name])
        else:
            content[name] = change
    path.write_text(json.dumps(content))


def training(**changes):
    return lambda: config("animals", training=lambda options: options.update(changes))


def dataset(**changes):
    return lambda: config("animals", dataset=lambda content: content.update(changes))


def network(**changes):
    return lambda: config("animals", network=lambda content: content.update(changes))


def truncated(path, by=40):
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[:-by])


def model(**changes):
    arrays = load_file("animals/model.safetensors")
    save_file({**arrays, **changes}, "animals/model.safetensors")


def seeds():
    Path("several/seed-0").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(f"animals/{name}", f"several/seed-0/{name}")


# Whatever is wrong with a run, these say so alike.
RUN = {
    "no such run": (lambda: shutil.rmtree("animals"), "run: expected config.json in animals, got"),
    "a file for a run": (
        lambda: shutil.rmtree("animals") or text("", "animals"), "run: expected a folder, got anim",
    ),
    "no model": (
        lambda: Path("animals/model.safetensors").unlink(), "run: expected model.safetensors in",
    ),
    "a folder for a model": (
        lambda: shutil.rmtree("animals") or Path("animals/model.safetensors").mkdir(parents=True)
        or text("", "animals/config.json"),
        "run: expected model.safetensors in animals to be a file, got a folder of that name",
    ),
    "several seeds": (
        lambda: seeds() or shutil.rmtree("animals") or Path("several").rename("animals"),
        "run: expected config.json in animals, got no such file: it holds runs of several seeds, "
        "such as animals/seed-",
    ),
    "no JSON": (
        lambda: truncated("animals/config.json"), "animals/config.json: not a run's configuration:",
    ),
    "JSON of another kind": (
        lambda: text("[1, 2]", "animals/config.json"), "animals/config.json: not a run's configur",
    ),
    "a later format": (
        lambda: config("animals", format_version=2),
        "animals/config.json: not a run's configuration: expected format 1, got 2",
    ),
    "no network": (
        lambda: config("animals", network=None), "animals/config.json: not a run's configuration:",
    ),
    "sizes that are words": (network(sizes="many"), "animals/config.json: not a run's configura"),
    "an unknown activation": (
        network(activation="swish"),
        "animals/config.json: not a run's configuration: unknown activation 'swish'",
    ),
    "a scaling of other columns": (
        lambda: config("animals", scaling={"shift": [0.0, 1.0], "factor": 1.0}),
        "animals/config.json: not a run's configuration: expected one finite number or 3 for the",
    ),
    "a scaling without a factor": (
        lambda: config("animals", scaling={"shift": 0.0}), "animals/config.json: not a run's conf",
    ),
    "no data set": (
        lambda: config("animals", dataset=None), "animals/config.json: not a run's configuration:",
    ),
    "a class too few": (
        dataset(classes=["cat", "dog"]), "animals/config.json: not a run's configuration: its dat",
    ),
    "features that are numbers": (
        dataset(features=[1, 2, 3]), "animals/config.json: not a run's configuration: its dataset",
    ),
    "options that are a list": (
        lambda: config("animals", training=[]), "animals/config.json: not a run's configuration:",
    ),
    "an option of another type": (
        training(target=3), "animals/config.json: not a run's configuration: training.target is 3",
    ),
    "a truncated model": (
        lambda: truncated("animals/model.safetensors"),
        "animals/model.safetensors: not this network's parameters:",
    ),
    "an empty model": (
        lambda: text("", "animals/model.safetensors"), "animals/model.safetensors: not this netw",
    ),
    "a model of other shapes": (
        lambda: model(**{"0.weight": np.zeros((4, 2), np.float32)}),
        "animals/model.safetensors: not this network's parameters: params[0].weight: expected sh",
    ),
    "a model of integers": (
        lambda: model(**{"0.weight": np.zeros((4, 3), np.int32)}),
        "animals/model.safetensors: not this network's parameters: params: expected one float dt",
    ),
    "a model of NaN": (
        lambda: model(**{"0.bias": np.full(4, np.nan, np.float32)}),
        "animals/model.safetensors: params[0].bias: expected finite numbers, got nan at [0]",
    ),
    "a format alone": (
        lambda: text('{"format_version": 1}', "animals/config.json"),
        "animals/config.json: not a run's configuration: 'network' is missing",
    ),
    "a layer too few": (
        network(sizes=[3, 4, 4, 3]), "animals/model.safetensors: not this network's parameters:",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), RUN.values(), ids=RUN)
@pytest.mark.parametrize("arguments", ["evaluate animals", "predict animals animals-test.csv",
                                       "export animals --format torch"])  # fmt: skip
def test_a_run_that_is_none_is_refused_in_one_sentence(
    command, trained, damage, message, arguments
):
    damage()
    check(command, arguments.split(), message, trained)


def rows(name, *changes):
    """The test table with other content in some places."""
    lines = Path("animals-test.csv").read_text()
    for before, after in changes:
        lines = lines.replace(before, after, 1)
    text(lines, name)


# What is done to the data, the arguments, and how the sentence begins.
MODELS = {
    "evaluate: a file that is not there": (
        None, "evaluate animals --dataset no.csv", "no.csv: expected a readable csv file",
    ),
    "evaluate: the run's own file is gone": (
        lambda: Path("animals.csv").unlink(), "evaluate animals", "animals.csv: expected a read",
    ),
    "evaluate: the run's own file has other columns": (
        lambda: csv(header=("weight", "height", "tail", "animal"), path="animals.csv"),
        "evaluate animals",
        "dataset: expected the columns 'height', 'weight', 'tail' in their order, got 'weight'",
    ),
    "evaluate: the run's own file has other classes": (
        lambda: csv(names=[*NAMES[:-1], "emu"], path="animals.csv"),
        "evaluate animals", "dataset: expected the classes 'cat', 'dog', 'owl', got animals with",
    ),
    "evaluate: a class that the model does not know": (
        lambda: rows("bad.csv", ("cat", "emu")), "evaluate animals --dataset bad.csv",
        "bad.csv: expected a class of the training examples ('cat', 'dog', 'owl') in column",
    ),
    "evaluate: a column is missing": (
        lambda: rows("bad.csv", ("tail", "wings")), "evaluate animals --dataset bad.csv",
        "bad.csv: expected a column 'tail' as trained, got ",
    ),
    "evaluate: no column of the targets' name": (
        lambda: csv((*FEATURES, "beast"), INPUTS, NAMES), "evaluate animals --dataset bad.csv",
        "bad.csv: unknown target column 'animal': did you mean 'tail'? expected one of 'height', '",
    ),
    "evaluate: other inputs": (
        None, "evaluate animals --dataset images.npz", "images.npz: expected 3 inputs, got 20",
    ),
    "evaluate: another data set": (
        None,
        "evaluate animals --dataset iris",
        "dataset: expected the classes 'cat', 'dog', 'owl', got iris with the classes 'setosa', ",
    ),
    "evaluate: a regression's data": (
        None, "evaluate animals --dataset houses.csv --part train",
        "houses.csv: unknown target column 'animal': expected one of 'area', 'rooms', 'price'",
    ),
    "evaluate: a part that is not there": (
        None, "evaluate animals --part test",
        "part: expected train or validation of animals (--part), got test",
    ),
    "evaluate: a folder for JSON": (
        None, "evaluate animals --json images", "json: expected a file, got images, which is a fol",
    ),
    "evaluate: JSON in no folder": (
        None, "evaluate animals --json no/figures.json", "json: expected a file in a folder that",
    ),
    "evaluate: the model for JSON": (
        None, "evaluate animals --json ./animals/model.safetensors",
        "json: expected another file than those that are read, got animals/model.safetensors",
    ),
    "evaluate: the data for JSON": (
        None, "evaluate animals --json animals.csv", "json: expected another file than those that",
    ),
    "evaluate: the file for JSON": (
        None, "evaluate animals --dataset animals-test.csv --json animals-test.csv",
        "json: expected another file than those that are read, got animals-test.csv",
    ),
    "predict: a link to itself": (
        lambda: Path("bad.csv").symlink_to("bad.csv"), "predict animals bad.csv",
        "bad.csv: expected a readable csv file, got: Too many levels of symbolic links",
    ),
    "predict: the file as the output": (
        None, "predict animals animals-test.csv --output animals-test.csv --overwrite",
        "output: expected another file than those that are read, got animals-test.csv",
    ),
    "predict: a link to nowhere as the output": (
        lambda: Path("bad.csv").symlink_to("nowhere"),
        "predict animals animals-test.csv --output bad.csv",
        "output: expected a new file, got bad.csv, which exists (--overwrite replaces it)",
    ),
    "export: the model as the output": (
        None, "export animals --format torch --output animals/model.safetensors --overwrite",
        "output: expected another file than those that are read, got animals/model.safetensors",
    ),
    "evaluate: a folder of data for a file": (
        None, "evaluate animals --data-dir images", "data_dir: expected none for animals.csv, whi",
    ),
    "predict: a file that is not there": (
        None, "predict animals no.csv", "no.csv: expected a readable csv file, got: No such file",
    ),
    "predict: a folder": (
        lambda: Path("bad.npy").mkdir(), "predict animals bad.npy", "bad.npy: expected a readable",
    ),
    "predict: another kind of file": (
        lambda: text("", "bad.txt"), "predict animals bad.txt", "bad.txt: expected a file .npz, .n",
    ),
    "predict: a column is missing": (
        lambda: rows("bad.csv", ("tail", "tails")), "predict animals bad.csv",
        "bad.csv: expected a column 'tail' as trained, got 'tails'",
    ),
    "predict: an empty file": (
        lambda: text(""), "predict animals bad.csv", "bad.csv: expected a header and rows, got an",
    ),
    "predict: a word after many rows": (
        lambda: csv(inputs=[*np.tile(INPUTS, (150, 1)), [1, 2, "x"]], names=["cat"] * 9001),
        "predict animals bad.csv", "bad.csv: expected a number in column 'tail' of row 9002, got",
    ),
    "predict: a number beyond float32": (
        lambda: csv(inputs=changed(7, 1, 1e300)), "predict animals bad.csv",
        "bad.csv: expected finite inputs, got inf at [7, 1]",
    ),
    "predict: an array of other inputs": (
        lambda: np.save("bad.npy", np.zeros((5, 4))), "predict animals bad.npy",
        "bad.npy: expected 3 inputs for each row, got 4",
    ),
    "predict: no array": (
        lambda: text("no array", "bad.npy"), "predict animals bad.npy", "bad.npy: expected the fi",
    ),
    "predict: a pickle": (
        lambda: np.save("bad.npy", INPUTS.astype(object)), "predict animals bad.npy",
        "bad.npy: expected the file of numbers or strings, got Python objects",
    ),
    "predict: NaN": (
        lambda: np.save("bad.npy", np.where(INPUTS > 60, np.nan, INPUTS)),
        "predict animals bad.npy", "bad.npy: expected finite inputs, got nan at [",
    ),
    "predict: no array inputs": (
        lambda: np.savez("bad.npz", X=INPUTS), "predict animals bad.npz",
        "bad.npz: expected an array 'inputs', got 'X'",
    ),
    "predict: a truncated npz": (truncated_npz, "predict animals bad.npz", "bad.npz: expected an"),
    "predict: a damaged npz": (damaged_npz, "predict animals bad.npz", "bad.npz: expected an int"),
    "predict: a folder without inputs": (
        lambda: Path("empty").mkdir(), "predict animals empty", "empty: expected inputs.npy in it,",
    ),
    "predict: a column that is not there is to be kept": (
        None, "predict animals animals.csv --keep id", "animals.csv: unknown kept column 'id'",
    ),
    "predict: a column of an array is to be kept": (
        lambda: np.save("bad.npy", INPUTS), "predict animals bad.npy --keep tail",
        "keep: expected none for bad.npy, whose columns have no names, got 'tail'",
    ),
    "predict: a column is to be kept in an archive": (
        None, "predict animals animals.csv --keep tail --output out.npz",
        "keep: expected none for out.npz, which is no table, got 'tail'",
    ),
    "predict: an output that exists": (
        lambda: text("precious", "predictions.csv"), "predict animals animals-test.csv",
        "output: expected a new file, got predictions.csv, which exists (--overwrite replaces it)",
    ),
    "predict: a folder for the output": (
        None, "predict animals animals-test.csv --output images --overwrite",
        "output: expected a file, got images, which is a folder",
    ),
    "predict: an output in no folder": (
        None, "predict animals animals-test.csv --output no/p.csv", "output: expected a file in a",
    ),
    "predict: an output below a file": (
        None, "predict animals animals-test.csv --output animals.csv/p.csv", "output: expected a f",
    ),
    "predict: another kind of output": (
        None, "predict animals animals-test.csv --output p.json",
        "p.json: expected a file .csv or .npz for the predictions",
    ),
    "export: an output that exists": (
        lambda: text("precious", "animals/model.onnx"), "export animals",
        "output: expected a new file, got animals/model.onnx, which exists",
    ),
    "export: a folder for the output": (
        None, "export animals --output images --overwrite", "output: expected a file, got images",
    ),
    "export: an output in no folder": (
        None, "export animals --output no/model.onnx", "output: expected a file in a folder that",
    ),
    "data list: a folder that is none": (
        None, "data list --data-dir animals.csv", "data_dir: expected a folder, got animals.csv",
    ),
    "data prepare: a folder that is none": (
        None, "data prepare mnist --from animals.csv", "source: expected a folder, got animals.csv",
    ),
    "data prepare: a folder without the files": (
        None, "data prepare mnist --from images", "source: expected train-images-idx3-ubyte",
    ),
    "data prepare: a target that is a file": (
        None, "data prepare mnist --from images --data-dir animals.csv", "",
    ),
    "data prepare: from nowhere": (
        None, "data prepare mnist", "from: expected a folder with the files of mnist (--from DIR),",
    ),
    "data prepare: from both": (
        None, "data prepare mnist --from . --download", "from: expected a folder with the files of",
    ),
    "data prepare: an unknown set": (
        None, "data prepare mnits --from .", "unknown dataset 'mnits': did you mean 'mnist'?",
    ),
    "data prepare: one that ships": (
        None, "data prepare digits --from .", "unknown dataset 'digits': expected one of mnist,",
    ),
    "verify: no trials": (
        None, "verify --trials 0", "trials: expected an integer of at least 1, got 0",
    ),
    "verify: a negative seed": (
        None, "verify --seed -1", "seed: expected an integer of at least 0, got -1",
    ),
    "verify: a folder for JSON": (
        None, "verify --json images", "json: expected a file, got images, which is a folder",
    ),
    "verify: JSON in no folder": (
        None, "verify --json no/table.json", "json: expected a file in a folder that exists, got",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "arguments", "message"), MODELS.values(), ids=MODELS)
def test_the_other_commands_refuse_in_one_sentence(command, trained, damage, arguments, message):
    if damage:
        damage()
    check(command, arguments.split(), message, trained)


# What is done to the run of animals, the options beside --resume, and how the sentence begins.
RESUME = {
    "another network": (None, "--hidden 5", "hidden: expected [4], with which animals was begun,"),
    "another seed": (None, "--seed 1", "seed: expected 0, with which animals was begun, got 1"),
    "more epochs": (None, "--epochs 3", "epochs: expected 40, with which animals was begun, got 3"),
    "another switch": (
        None, "--no-standardize", "standardize: expected True, with which animals was begun, got F",
    ),
    "another file": (
        None, "--dataset houses.csv", "dataset: expected animals.csv, with which animals was begun",
    ),
    "more seeds": (None, "--seeds 2", "seeds: expected 1, with which animals was begun, got 2"),
    "other data": (
        lambda: csv(inputs=changed(7, 1, 1.5), path="animals.csv"), "",
        "dataset: expected the data that animals was begun with, got others",
    ),
    "other data for validation": (
        lambda: config("animals", training=lambda o: o.update(validation_fraction=0.3)), "",
        "dataset: expected the data that animals was begun with, got others",
    ),
    "data that is gone": (
        lambda: Path("animals.csv").unlink(), "", "animals.csv: expected a readable csv file",
    ),
    "no JSON": (
        lambda: truncated("animals/config.json"), "", "animals/config.json: not a run's config",
    ),
    "a later format": (
        lambda: config("animals", format_version=2), "",
        "animals/config.json: not a run's configuration: expected format 1, got 2",
    ),
    "an option of another type": (
        training(epochs="ten"), "",
        "animals/config.json: not a run's configuration: training.epochs is 'ten'",
    ),
    "a number for a switch": (
        training(standardize=1), "", "animals/config.json: not a run's configuration: training.st",
    ),
    "a switch for a number": (
        training(epochs=True), "", "animals/config.json: not a run's configuration: training.epo",
    ),
    "a word among numbers": (
        training(hidden=[4, "x"]), "", "animals/config.json: not a run's configuration: training.h",
    ),
    "a dtype that there is not": (
        training(dtype="int8"), "", "animals/config.json: not a run's configuration: training.dty",
    ),
    "no data set": (
        lambda: config("animals", dataset=3), "", "dataset: expected the data that animals was be",
    ),
    "metrics that are gone": (
        lambda: Path("animals/metrics.jsonl").unlink(), "", "animals/metrics.jsonl: No such file",
    ),
    "metrics that are damaged": (
        lambda: truncated("animals/metrics.jsonl"), "", "animals/metrics.jsonl: expected JSON in l",
    ),
    "metrics of nothing": (
        lambda: text("", "animals/metrics.jsonl"), "", "animals/metrics.jsonl: expected epochs wi",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "options", "message"), RESUME.values(), ids=RESUME)
def test_what_is_not_the_run_s_is_not_resumed(command, trained, damage, options, message):
    if damage:
        damage()
    arguments = ("train", "--quiet", "--resume", "--output", "animals", *options.split())
    check(command, arguments, message, trained)


def test_onnx_that_is_not_installed_is_named(command, trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    message = "format: onnx needs a package that is missing (import of onnx halted; None in sys.mod"
    check(command, ("export", "animals"), message, trained)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is a GPU here")
@pytest.mark.parametrize(
    "arguments", ["train", "evaluate animals", "predict animals animals-test.csv"]
)
def test_a_gpu_that_is_not_there_is_named(command, trained, arguments):
    message = "device: expected a GPU that JAX can use, got none; is the CUDA extra installed (pip"
    check(command, (*arguments.split(), "--device", "gpu"), message, trained)


@contextlib.contextmanager
def ordinary_user():
    """What is done inside is done by a user for whom permissions hold."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --dataset animals.csv --output locked", "output: cannot write in locked: Permiss"),
        (
            "train --dataset animals.csv --output locked/a",
            "output: cannot make the folder locked/a",
        ),
        ("train --dataset animals.csv --compile-cache locked", "compile_cache: cannot write in "),
        (
            "evaluate animals --json locked/a.json",
            "json: cannot write in locked: Permission denied",
        ),
        ("predict animals animals.csv --output locked/a.csv", "output: cannot write in locked: Pe"),
        ("export animals --output locked/a.onnx", "output: cannot write in locked: Permission den"),
        ("verify --json locked/a.json", "json: cannot write in locked: Permission denied"),
        ("train --dataset secret.csv", "secret.csv: expected a readable csv file, got: Permission"),
    ],
)
def test_what_the_user_may_not_touch_is_named(command, trained, arguments, message):
    Path("locked").mkdir(mode=0o555)
    text("a,b\n1,2\n", "secret.csv")
    trained.chmod(0o755)  # pytest's own is for its user alone
    before = tree(trained)
    Path("secret.csv").chmod(0)
    with ordinary_user():
        status, output, errors = command(*arguments.split())
    Path("secret.csv").chmod(0o600)
    assert (status, output) == (2, ""), errors
    assert errors.startswith(f"jaxmlp: {message}") and errors.count("\n") == 1
    assert tree(trained) == before
