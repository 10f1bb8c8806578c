"""`jaxmlp evaluate`, `predict`, `export` and `info`: what is printed and written is the model's."""

import csv
import json
import resource
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
from command import ANIMALS, FEATURES, TINY, animals, same_model, tree, write_csv
from safetensors.numpy import load_file

import jaxmlp
from jaxmlp.data import load_dataset

pytestmark = pytest.mark.slow  # on the default Python alone


@pytest.fixture
def succeed(command, trained):
    """Run the command beside what was trained, and expect success."""

    def run(*arguments):
        result = command(*arguments)
        assert (result.status, result.errors) == (0, ""), result.errors
        return result.output

    return run


def predicted(run, inputs):
    """What the library predicts with the run's model, (N, K) float32."""
    network, params, metadata = jaxmlp.load(run)
    return np.asarray(jaxmlp.predictions(network, params, inputs, scaling=metadata["scaling"]))


def accuracy(run, inputs, names):
    return np.mean(np.array(ANIMALS)[predicted(run, inputs).argmax(axis=1)] == names)


# evaluate.


def test_evaluate_reports_on_the_run_s_own_data(succeed):
    output = succeed("evaluate", "animals", "--json", "figures.json")
    assert output.startswith("12 examples of animals (validation)\n")
    record = json.loads(Path("animals/metrics.jsonl").read_text().splitlines()[-1])
    assert f"accuracy {record['validation_accuracy']:.4f}" in output
    figures = json.loads(Path("figures.json").read_text())
    assert figures["accuracy"] == pytest.approx(record["validation_accuracy"])
    assert figures["names"] == [*ANIMALS] and sum(figures["support"]) == 12
    data = load_dataset("animals.csv", validation_fraction=0.2)
    assert data.validation is not None
    guesses = predicted("animals", data.validation.inputs).argmax(axis=1)
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (data.validation.targets, guesses), 1)
    assert figures["confusion"] == confusion.tolist()


def test_evaluate_takes_another_part(succeed):
    output = succeed("evaluate", "animals", "--part", "train")
    assert output.startswith("48 examples of animals (train)\n")
    data = load_dataset("animals.csv", validation_fraction=0.2)
    names = np.array(ANIMALS)[data.train.targets]
    assert f"accuracy {accuracy('animals', data.train.inputs, names):.4f}" in output


def test_evaluate_takes_a_file_whose_columns_are_in_another_order(succeed):
    output = succeed("evaluate", "animals", "--dataset", "animals-test.csv")
    assert output.startswith("30 examples of animals-test.csv\n")
    # Columns taken for one another would be told nothing of the kinds.
    assert accuracy("animals", *animals(30, seed=1)) > 0.9
    assert f"accuracy {accuracy('animals', *animals(30, seed=1)):.4f}" in output


def test_evaluate_finds_the_targets_by_the_name_of_their_column(succeed, command):
    inputs, names = animals(30, seed=1)
    header = ("animal", "weight", "tail", "height", "batch")  # the last is none of the run's
    write_csv(Path("more.csv"), header, names, *inputs.T[[1, 2, 0]], np.arange(30.0))
    output = succeed("evaluate", "animals", "--dataset", "more.csv")
    assert f"accuracy {accuracy('animals', inputs, names):.4f}" in output
    data = load_dataset("houses.csv")
    places = np.arange(data.train.inputs.shape[1])[::-1]
    columns = [data.train.targets[:, 0], *data.train.inputs.T[places], np.zeros(60)]
    assert data.features is not None
    header = (data.target, *(data.features[place] for place in places), "more")
    write_csv(Path("rooms.csv"), header, *columns)
    output = succeed("evaluate", "houses", "--dataset", "rooms.csv")
    figures = output.split("R²\n")[1]
    assert figures == succeed("evaluate", "houses").split("R²\n")[1]
    assert figures.startswith(data.target)
    write_csv(Path("none.csv"), header[1:], *columns[1:])
    status, _, errors = command("evaluate", "houses", "--dataset", "none.csv")
    assert status == 2 and f"unknown target column {data.target!r}" in errors


def test_a_run_finds_its_files_from_any_folder(succeed, command, monkeypatch):
    files = ("--dataset", "animals.csv", "--test-file", "animals-test.csv")
    succeed("train", *files, *TINY, "--output", "files")
    here = succeed("evaluate", "files")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert succeed("evaluate", "../files") == here
    assert succeed("evaluate", "../files", "--part", "train").startswith("60 examples")
    assert "is trained already" in succeed("train", "--output", "../files", "--resume")
    inputs, names = animals(20, seed=7)  # a stranger's of the same name and columns
    write_csv(Path("animals.csv"), (*FEATURES, "animal"), *inputs.T, names)
    assert succeed("evaluate", "../files") == here
    Path("../animals.csv").rename("../moved.csv")  # then what is here is all there is
    status, output, errors = command("evaluate", "../files", "--part", "train")
    assert status == 0 and output.startswith("20 examples of animals (train)")
    assert errors.startswith("jaxmlp: dataset: expected the data that ../files was begun with, got")
    config = json.loads(Path("../files/config.json").read_text())
    odd = {"folder": 3, "target": [1], "target_scaling": {"mean": [0.0], "deviation": [0.0, 1.0]}}
    for name, value in odd.items():
        changed = {**config, "dataset": {**config["dataset"], name: value}}
        Path("../files/config.json").write_text(json.dumps(changed))
        status, _, errors = command("evaluate", "../files")
        assert status == 2 and "not a run's configuration: its dataset is" in errors


def test_evaluate_takes_a_part_of_a_file_and_the_run_s_target(succeed):
    inputs, names = animals(30, seed=1)
    split = np.where(np.arange(30) < 20, "train", "test")
    header = ("animal", "height", "weight", "tail", "split")
    write_csv(Path("more.csv"), header, names, *inputs.T, split)
    succeed("train", "--dataset", "more.csv", "--target", "animal", *TINY, "--output", "more")
    output = succeed("evaluate", "more", "--dataset", "more.csv", "--part", "test")
    assert output.startswith("10 examples of more (test)\n")
    assert f"accuracy {accuracy('more', inputs[20:], names[20:]):.4f}" in output
    assert succeed("evaluate", "more") == output


def test_evaluate_of_a_regression_says_how_far_off_it_is(succeed):
    output = succeed("evaluate", "houses", "--json", "figures.json")
    assert output.startswith("60 examples of houses (train)\n")
    data = load_dataset("houses.csv")
    errors = predicted("houses", data.train.inputs) - data.train.targets
    figures = json.loads(Path("figures.json").read_text())
    # Means of 60 squares, in float32 and in float64.
    np.testing.assert_allclose(figures["rmse"], [np.sqrt(np.mean(errors**2))], rtol=1e-6)
    assert f"{figures['rmse'][0]:.6g}" in output


def test_evaluate_counts_classes_of_a_squared_error_too(succeed):
    options = ("--loss", "squared_error", "--output", "squares")
    succeed("train", "--dataset", "animals.csv", *TINY, *options)
    output = succeed("evaluate", "squares")
    assert f"accuracy {accuracy('squares', *animals()):.4f}" in output


def test_evaluate_writes_over_figures_from_before(succeed):
    Path("figures.json").write_text("old")
    succeed("evaluate", "images", "--json", "figures.json")
    assert json.loads(Path("figures.json").read_text())["names"] == ["0", "1", "2"]


# predict.


def table(path):
    """A table's header, its first column, and its other columns in float32."""
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    return header, [row[0] for row in rows], np.array([row[1:] for row in rows]).astype(np.float32)


def test_predict_takes_columns_by_name_in_any_order_beside_others(succeed):
    inputs, names = animals(30, seed=1)
    header = ("name", "tail", "animal", "weight", "height")
    write_csv(Path("new.csv"), header, ["Rex"] * 30, inputs[:, 2], names, *inputs.T[[1, 0]])
    output = succeed("predict", "animals", "new.csv")
    assert output.startswith("30 predictions in predictions.csv after ")
    header, guesses, probabilities = table("predictions.csv")
    assert header == ["prediction", *(f"probability_{name}" for name in ANIMALS)]
    expected = predicted("animals", inputs)
    np.testing.assert_array_equal(probabilities, expected)  # to the last bit of a float32
    assert guesses == np.array(ANIMALS)[expected.argmax(axis=1)].tolist()
    # The targets need not be there.
    write_csv(Path("new.csv"), ("tail", "height", "weight"), *inputs.T[[2, 0, 1]])
    succeed("predict", "animals", "new.csv", "--overwrite")
    np.testing.assert_array_equal(table("predictions.csv")[2], expected)


def test_a_table_with_names_of_its_rows(succeed):
    """They are ignored in training and what reads its data again, and kept beside predictions."""
    inputs, names = animals()
    ids = [f"row {n}" for n in range(60)]
    header = ("id", *FEATURES, "animal", "seen")
    write_csv(Path("named.csv"), header, ids, *inputs.T, names, ids)
    given = ("--dataset", "named.csv", "--ignore", "id", "seen", "--standardize")
    succeed("train", *given, *TINY, "--output", "named")
    succeed("train", "--dataset", "animals.csv", "--standardize", *TINY, "--output", "plain")
    assert same_model("named", "plain")
    assert "is trained already" in succeed("train", "--output", "named", "--resume")
    report = succeed("evaluate", "plain").partition("\n")[2]
    assert succeed("evaluate", "named").partition("\n")[2] == report
    for file in ("named.csv", "animals.csv"):  # with such columns and without
        for part in ((), ("--part", "train")):
            output = succeed("evaluate", "named", "--dataset", file, *part)
            assert output.partition("\n")[2] == report
    assert "row" in succeed("influence", "named", "--part", "train")
    # What is ignored may be weights.
    write_csv(Path("weighted.csv"), (*FEATURES, "animal", "sample_weight"), *inputs.T, names,
              np.arange(60) % 2)  # fmt: skip
    given = ("--dataset", "weighted.csv", "--ignore", "sample_weight", "--standardize")
    succeed("train", *given, *TINY, "--output", "unweighted")
    for more in ((), ("--part", "train")):
        output = succeed("evaluate", "unweighted", "--dataset", "weighted.csv", *more)
        assert output.partition("\n")[2] == report and "weighted by" not in output
    Path("folder").mkdir()
    np.save("folder/inputs.npy", inputs)
    succeed("predict", "named", "folder", "--output", "folder.npz")
    succeed("predict", "named", "folder/inputs.npy", "--output", "file.npz")
    with np.load("folder.npz") as one, np.load("file.npz") as other:
        np.testing.assert_array_equal(one["probabilities"], other["probabilities"])
    succeed("predict", "named", "named.csv", "--keep", "id", "animal")
    header, first, _ = table_of_text("predictions.csv")
    assert header[:3] == ["id", "animal", "prediction"] and first == ids


def test_what_a_model_has_no_answer_to_is_named(command, trained):
    network = jaxmlp.Network((3, 4, 2), "relu")
    params = jaxmlp.init(network, jax.random.key(0))
    jaxmlp.save("plain", network, params, features=FEATURES)
    inputs, _ = animals()
    inputs[7] = 3e38
    write_csv(Path("new.csv"), FEATURES, *inputs.T)
    result = command("predict", "plain", "new.csv")
    assert (result.status, result.output) == (2, "")
    assert result.errors == (
        "jaxmlp: new.csv: expected inputs that the model has an answer to in float32, got "
        "[nan, nan] for number 7 from 0: they are too large for it\n"
    )
    # What is finite in the model's own precision, or whose mean alone is.
    one = jaxmlp.Network((3, 1), loss="squared_error")
    large = jax.tree.map(
        lambda leaf: np.full(leaf.shape, 1e30), jaxmlp.init(one, jax.random.key(0))
    )
    with jax.enable_x64(True):
        jaxmlp.save("double", one, large, features=FEATURES)
    signs = np.array([1.0, -1.0, 1.0], np.float32)
    members = jax.tree.map(
        lambda leaf: leaf.astype(np.float32) * signs.reshape(3, *[1] * leaf.ndim), large
    )
    jaxmlp.save("members", one, members, features=FEATURES)
    inputs[7], others = 1e7, np.arange(60) != 7
    inputs[others] = 0
    for run, scale in (("double", 1e10), ("members", 1)):
        write_csv(Path("new.csv"), FEATURES, *(scale * inputs.T))
        result = command("predict", run, "new.csv")
        assert result.status == 2, result
        assert "got [inf] for number 7 from 0" in result.errors or "got inf for" in result.errors
    assert not Path("predictions.csv").exists()


def table_of_text(path):
    """A table's header, its first column, and its other columns as they are."""
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    return header, [row[0] for row in rows], [row[1:] for row in rows]


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_predict_takes_arrays_and_keeps_the_order_of_more_rows_than_a_chunk(succeed, suffix):
    inputs = animals(20_000)[0].astype(np.float32)
    save = {
        "npz": lambda: np.savez("new.npz", inputs=inputs),
        "npy": lambda: np.save("new", inputs),
    }
    save[suffix]()
    succeed("predict", "animals", f"new.{suffix}", "--output", "out.npz")
    expected = predicted("animals", inputs)
    with np.load("out.npz") as out:
        assert sorted(out) == ["prediction", "probabilities"]
        np.testing.assert_array_equal(out["probabilities"], expected)
        assert out["prediction"].tolist() == np.array(ANIMALS)[expected.argmax(axis=1)].tolist()


def test_predict_takes_images_of_bytes(succeed):
    succeed("predict", "images", "images.npz", "--output", "out.npz")
    with np.load("images.npz") as data, np.load("out.npz") as out:
        expected = predicted("images", data["inputs"].reshape(60, 20))
        np.testing.assert_array_equal(out["probabilities"], expected)
        assert set(out["prediction"]) <= {"0", "1", "2"}


@pytest.mark.parametrize("suffix", ["csv", "npz"])
def test_predict_of_a_regression_is_a_number_a_row(succeed, suffix):
    succeed("predict", "houses", "houses.csv", "--output", f"out.{suffix}")
    expected = predicted("houses", load_dataset("houses.csv").train.inputs)
    if suffix == "csv":
        header, column, _ = table("out.csv")
        assert header == ["prediction"]
        np.testing.assert_array_equal(np.array(column).astype(np.float32), expected[:, 0])
    else:
        with np.load("out.npz") as out:
            assert list(out) == ["prediction"]
            np.testing.assert_array_equal(out["prediction"], expected[:, 0])


def test_the_memory_of_predict_does_not_grow_with_the_rows(succeed):
    # NumPy tells tracemalloc of its arrays. The first call compiles; by the second every buffer
    # has its full size.
    peaks = []
    for n in (1000, 100_000, 300_000):
        np.savez("new.npz", inputs=np.ones((n, 3), np.float32))
        tracemalloc.start()
        try:
            succeed("predict", "animals", "new.npz", "--output", "out.npz", "--overwrite")
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    # 200,000 more rows are 2.4 MB of inputs, and as much of probabilities and of names.
    assert peaks[2] < peaks[1] + 500_000


def test_a_disk_that_becomes_full_while_predicting_leaves_what_was_there(command, trained):
    Path("out.csv").write_text("from before\n")
    before = tree(trained)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        status, output, errors = command(
            "predict", "animals", "animals.csv", "--output", "out.csv", "--overwrite"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (status, output) == (1, "")
    assert errors == "jaxmlp: out.csv: expected to write the predictions, got: File too large\n"
    assert tree(trained) == before


# export.


def test_export_writes_onnx_unless_told_otherwise(succeed):
    onnx = pytest.importorskip("onnx")
    output = succeed("export", "animals")
    assert output.startswith("animals/model.onnx\n\n") and "import" in output
    model = onnx.load("animals/model.onnx")
    onnx.checker.check_model(model, full_check=True)
    from onnx.reference import ReferenceEvaluator

    inputs = animals()[0].astype(np.float32)
    got, _ = ReferenceEvaluator(model).run(None, {"inputs": inputs})
    np.testing.assert_allclose(got, predicted("animals", inputs), atol=1e-6)
    assert {entry.key: entry.value for entry in model.metadata_props}["classes"] == json.dumps(
        list(ANIMALS)
    )


def test_export_writes_stablehlo(succeed):
    output = succeed("export", "animals", "--format", "stablehlo", "--output", "a.stablehlo")
    assert output.startswith("a.stablehlo\n\n") and "import jax" in output
    exported = jax.export.deserialize(bytearray(Path("a.stablehlo").read_bytes()))
    inputs = animals()[0].astype(np.float32)
    np.testing.assert_allclose(exported.call(inputs), predicted("animals", inputs), atol=1e-6)


def test_export_writes_a_state_dict_for_torch(succeed):
    succeed("export", "images", "--format", "torch")
    written = load_file("images/model.torch.safetensors")
    ours = load_file("images/model.safetensors")
    weights = [name for name in written if name.endswith("weight")]
    assert len(weights) == 2
    np.testing.assert_array_equal(written[max(weights)], ours["1.weight"])


def test_export_overwrites_where_it_is_told_to(succeed):
    Path("animals/model.torch.safetensors").write_text("old")
    succeed("export", "animals", "--format", "torch", "--overwrite")
    assert load_file("animals/model.torch.safetensors")


# info.


def test_info_is_text_or_json(succeed):
    described = json.loads(succeed("info", "--json"))
    assert described["versions"]["jaxmlp"] == jaxmlp.__version__
    assert described["versions"]["jax"] == jax.__version__
    assert [device["platform"] for device in described["jax"]["devices"]]
    text = succeed("info")
    assert jaxmlp.__version__ in text and jax.__version__ in text
