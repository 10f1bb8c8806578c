"""`save` and `load`: what comes back is what went in, and no file is lost."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import ANIMALS, FEATURES, animals, write_csv, write_data
from files import message_of

import jaxmlp
from jaxmlp import Layer, Network, Scaling, init, init_members, load, save
from jaxmlp.training import models

NETWORK = Network((3, 5, 4, 3), ("relu", "tanh"))
PARAMS = init(NETWORK, jax.random.key(0))
MEMBERS = init_members(NETWORK, jax.random.split(jax.random.key(1), 4))


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    "network",
    [NETWORK, Network((2, 1), loss="poisson", bias=False), Network((2, 3, 2), precision="highest")],
)
def test_what_is_saved_is_loaded(network, dtype, tmp_path):
    params = init(network, jax.random.key(2), dtype)
    save(tmp_path / "new" / "folder", network, params)
    again, read, metadata = load(tmp_path / "new" / "folder")
    assert again == network
    assert_same(read, params)
    assert metadata == {"scaling": None, "dataset": {"classes": None, "features": None}}


def test_float64_is_saved_as_float64(tmp_path):
    with jax.enable_x64(True):
        params = init(NETWORK, jax.random.key(0), jnp.float64)
        save(tmp_path, NETWORK, params)
        assert_same(load(tmp_path)[1], params)
    with pytest.raises(ValueError, match="float64"):
        load(tmp_path)


def test_the_parameters_may_be_numpy_s(tmp_path):
    save(tmp_path, NETWORK, jax.tree.map(np.asarray, PARAMS))
    assert_same(load(tmp_path)[1], PARAMS)


def test_an_ensemble_is_saved_with_its_members(tmp_path):
    widths = [[5, 4], [2, 4], [5, 1], [3, 3]]
    save(tmp_path, NETWORK, MEMBERS, metadata={"widths": widths})
    network, params, metadata = load(tmp_path)
    assert (metadata["members"], metadata["widths"]) == (4, widths)
    assert_same(params, MEMBERS)
    narrow, alone = jaxmlp.member(network, params, 1, metadata["widths"])
    assert narrow.sizes == (3, 2, 4, 3) and alone[0].weight.shape == (2, 3)


def test_an_ensemble_of_one_stays_an_ensemble(tmp_path):
    one = jax.tree.map(lambda leaf: leaf[:1], MEMBERS)
    save(tmp_path, NETWORK, one)
    assert_same(load(tmp_path)[1], one)
    assert load(tmp_path)[2]["members"] == 1


@pytest.mark.parametrize(
    "scaling", [Scaling(np.float64(0.5), 1 / 3), Scaling(np.array([1e9, 0.1, -2]), np.ones(3))]
)
def test_the_scaling_comes_back_with_all_its_digits(scaling, tmp_path):
    save(tmp_path, NETWORK, PARAMS, scaling=scaling)
    read = load(tmp_path)[2]["scaling"]
    for one, other in zip(read, scaling, strict=True):
        np.testing.assert_array_equal(one, other)


BAD = {
    "no network": ({"network": (3, 5, 3)}, TypeError, "network: expected a jaxmlp.Network, got"),
    "another shape": ({"network": Network((3, 5, 3))}, ValueError, "params: expected 2 layers"),
    "no layers": ({"params": [1, 2]}, TypeError, "params: expected a tuple of 3 jaxmlp.Layer"),
    "nothing": ({"params": ()}, ValueError, "params: expected 3 layers, got 0"),
    "members that differ": (
        {"params": (MEMBERS[0], *jax.tree.map(lambda leaf: leaf[:2], MEMBERS[1:]))},
        ValueError,
        "params: expected leaves with a leading axis for the members in common",
    ),
    "an ensemble of another network": (
        {"params": MEMBERS[:2]},
        ValueError,
        "params: expected 3 layers, got 2",
    ),
    "a scaling of others": (
        {"scaling": Scaling(np.zeros(4), 1.0)},
        ValueError,
        r"scaling.shift: expected shape \(\) or \(3,\), got \(4,\)",
    ),
    "no scaling": ({"scaling": (0, 1)}, TypeError, "scaling: expected a jaxmlp.Scaling, got tuple"),
    "too few classes": ({"classes": ["a"]}, ValueError, "classes: expected 3 names in a list or"),
    "a word": ({"classes": "abc"}, TypeError, "classes: expected 3 names in a list or None, got"),
    "a number": ({"classes": 3}, TypeError, "classes: expected 3 names in a list or None, got 3"),
    "names without an order": (
        {"classes": {"a", "b", "c"}},
        TypeError,
        "classes: expected 3 names in a list or None, got {",
    ),
    "numbers": ({"features": [1.5, 2, 3]}, ValueError, "features: expected 3 names in a list or"),
    "bools": ({"classes": [True, False, 2]}, ValueError, "classes: expected 3 names in a list or"),
    "a name twice": ({"classes": ["1", 1, 2]}, ValueError, "classes: expected 3 different names"),
    "half a letter": ({"classes": ["a", "b", "\ud800"]}, ValueError, "classes: expected names in"),
    "classes of one output": (
        {
            "network": Network((3, 1), loss="squared_error"),
            "params": init(Network((3, 1)), jax.random.key(0)),
            "classes": ["speed"],
        },
        ValueError,
        "classes: expected None for squared_error of 1 outputs, got names",
    ),
    **{
        f"{name}, which is ours": (
            {"metadata": {name: 1}},
            ValueError,
            f"metadata: expected other names than .*, got {name}$",
        )
        for name in ("format_version", "network", "scaling", "dataset", "members", "training")
    },
    "a key that is no word": (
        {"metadata": {"a": [{1: "int", "1": "word"}]}},
        ValueError,
        "metadata: expected what JSON can hold, got other: the key 1$",
    ),
    "float64 of NumPy": (
        {"params": jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), PARAMS)},
        ValueError,
        "float64",
    ),
    "an ensemble's float64 of NumPy": (
        {"params": jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), MEMBERS)},
        ValueError,
        "float64",
    ),
    "a scaling beyond 64 bits": (
        {"scaling": Scaling(np.longdouble("1e4000"), 1.0)},
        ValueError,
        "scaling.shift: expected finite numbers, got inf",
    ),
    "an array": (
        {"metadata": {"a": np.ones(2)}},
        ValueError,
        "metadata: expected what JSON can hold, got other: Object of type ndarray",
    ),
    "NaN": ({"metadata": {"a": np.nan}}, ValueError, "metadata: expected what JSON can hold"),
    "no mapping": ({"metadata": [1]}, TypeError, r"metadata: expected names → .*, got \[1\]"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_wrong_is_said_and_nothing_is_written(bad, tmp_path):
    changes, error, text = BAD[bad]
    arguments = {"network": NETWORK, "params": PARAMS} | changes
    with pytest.raises(error, match=text):
        save(tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("run", "error"),
    [("", ValueError), ("a\0b", ValueError), (5, TypeError), (b"x", TypeError), (None, TypeError)],
)
def test_what_is_no_path_is_said(run, error):
    with pytest.raises(error, match="run: expected the path of a folder, got"):
        save(run, NETWORK, PARAMS)


def test_a_path_that_the_system_refuses_is_said(tmp_path):
    with pytest.raises(OSError, match="run: cannot make the folder .*: File name too long"):
        save(tmp_path / ("x" * 300), NETWORK, PARAMS)


def test_metadata_may_be_deep_but_not_without_end():
    deep: list = []
    deep.append(deep)
    with pytest.raises(ValueError, match="metadata: expected what JSON can hold"):
        save("never", NETWORK, PARAMS, metadata={"a": deep})


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(path, content):
        if path.name == "config.json":
            raise OSError(f"{path}: cannot be written: No space left on device")
        write_file(path, content)

    write_file = models.write_file
    monkeypatch.setattr(models, "write_file", full)
    with pytest.raises(OSError, match="config.json: cannot be written"):
        save(tmp_path, NETWORK, PARAMS)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    save(tmp_path, NETWORK, PARAMS)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"shift": 1.0', f'"shift": 1{"0" * 400}'),
        lambda text: text.replace('"shift": 1.0', f'"shift": {"[" * 9999}{"]" * 9999}'),
    ],
)
def test_damaged_numbers_of_a_configuration_are_a_sentence(change, tmp_path):
    save(tmp_path, NETWORK, PARAMS, scaling=Scaling(1.0, 2.0))
    path = tmp_path / "config.json"
    text = change(path.read_text())
    assert text != path.read_text()
    path.write_text(text)
    with pytest.raises(ValueError, match="config.json: not a run's configuration: "):
        load(tmp_path)


def test_a_folder_with_files_stays_as_it_is(tmp_path):
    save(tmp_path, NETWORK, PARAMS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match="run: expected a new or empty folder, got"):
        save(tmp_path, NETWORK, PARAMS)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="run: expected a folder, got .*file"):
        save(tmp_path / "file", NETWORK, PARAMS)


@pytest.mark.parametrize("members", [3, 0, "4", True, 4.0])
def test_another_number_of_members_is_refused(members, tmp_path):
    one = jax.tree.map(lambda leaf: leaf[:1], MEMBERS)
    save(tmp_path, NETWORK, one if members is True else MEMBERS)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"members": members}))
    with pytest.raises(ValueError, match="members"):
        load(tmp_path)


# The commands, on the default Python alone.


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A network that was trained in Python and saved, beside the files of data."""
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    inputs, names = animals()
    targets = np.array([ANIMALS.index(name) for name in names])
    scaling = Scaling(inputs.mean(axis=0), 1 / inputs.std(axis=0))
    fitted = jaxmlp.fit(
        NETWORK, PARAMS, inputs, targets, key=jax.random.key(0), learning_rate=0.1, batch_size=16,
        scaling=scaling,
    )  # fmt: skip
    save("saved", NETWORK, fitted.params, scaling=scaling, classes=ANIMALS, features=FEATURES)
    save("ensemble", NETWORK, MEMBERS, scaling=scaling, classes=ANIMALS, features=FEATURES)
    lost = jax.tree.map(lambda leaf: leaf.at[2].set(np.nan), MEMBERS)
    save("lost", NETWORK, MEMBERS, features=FEATURES)
    models.save_model(Path("lost"), lost)
    return fitted.params, scaling


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    lost = jax.tree.map(lambda leaf: leaf.at[2].set(np.nan), MEMBERS)
    assert message_of(ValueError, lambda: save(tmp_path / "members", NETWORK, lost)) == (
        "params: expected finite members, got [2] that are not: leave out those that have diverged"
    )
    infinite = jax.tree.map(lambda leaf: leaf.at[0].set(np.inf), PARAMS)
    text = message_of(ValueError, lambda: save(tmp_path / "one", NETWORK, infinite))
    assert text.startswith("params[0].weight: expected finite numbers, got inf at [0, 0]")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_commands_take_what_was_saved(command, saved):
    params, scaling = saved
    assert command("predict", "saved", "animals-test.csv").status == 0  # its columns in disorder
    lines = Path("predictions.csv").read_text().splitlines()
    inputs, names = animals(30, seed=1)
    mine = np.asarray(jaxmlp.predictions(NETWORK, params, inputs, scaling=scaling))
    assert [line.split(",")[0] for line in lines[1:]] == [ANIMALS[k] for k in mine.argmax(axis=1)]
    assert np.mean(mine.argmax(axis=1) == [ANIMALS.index(name) for name in names]) > 0.9
    evaluated = command("evaluate", "saved", "--dataset", "animals-test.csv")
    assert evaluated.status == 0 and "30 examples" in evaluated.output
    assert command("export", "saved", "--format", "torch").status == 0


@pytest.mark.slow
def test_the_predictions_of_an_ensemble_are_the_mean_and_how_far_its_members_disagree(
    command, saved
):
    inputs, _ = animals(30, seed=1)
    mean, disagreement = jaxmlp.ensemble_predictions(NETWORK, MEMBERS, inputs, scaling=saved[1])
    assert float(np.min(disagreement)) > 0
    for output in ("predictions.csv", "predictions.npz"):
        done = command("predict", "ensemble", "animals-test.csv", "--output", output)
        assert (done.status, done.errors) == (0, "")
    header, *lines = Path("predictions.csv").read_text().splitlines()
    assert header.split(",") == [
        "prediction", *(f"probability_{name}" for name in ANIMALS), "disagreement",
    ]  # fmt: skip
    rows = [line.split(",") for line in lines]
    assert [row[0] for row in rows] == [ANIMALS[k] for k in np.argmax(mean, axis=1)]
    numbers = np.array([row[1:] for row in rows], np.float32)
    np.testing.assert_allclose(numbers, np.column_stack([mean, disagreement]), rtol=1e-6)
    with np.load("predictions.npz") as arrays:
        np.testing.assert_array_equal(arrays["probabilities"], numbers[:, :-1])
        np.testing.assert_array_equal(arrays["disagreement"], numbers[:, -1])


@pytest.mark.slow
def test_an_ensemble_is_evaluated_as_the_mean_of_its_members(command, saved):
    options = ("--dataset", "animals-test.csv", "--json", "figures.json")
    status, output, errors = command("evaluate", "ensemble", *options)
    assert (status, errors) == (0, "")
    inputs, names = animals(30, seed=1)
    mean, disagreement = jaxmlp.ensemble_predictions(NETWORK, MEMBERS, inputs, scaling=saved[1])
    right = np.mean([ANIMALS[k] == name for k, name in zip(np.argmax(mean, 1), names, strict=True)])
    assert f"accuracy {right:.4f}\n" in output and "30 examples" in output
    figures = json.loads(Path("figures.json").read_text())
    assert figures["accuracy"] == pytest.approx(right)
    assert len(figures["members"]) == 4 and figures["names"] == list(ANIMALS)
    assert figures["disagreement"] == pytest.approx(float(np.mean(disagreement)), rel=1e-5)


@pytest.mark.slow
def test_the_bytes_of_an_ensemble_s_inputs_are_scaled_and_its_numbers_have_their_variance(
    command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    network = Network((4, 5, 2), "tanh", "squared_error")
    members = init_members(network, jax.random.split(jax.random.key(2), 3))
    scaling = Scaling(np.float64(100), np.float64(1 / 50))
    save("numbers", network, members, scaling=scaling)
    pixels = np.random.default_rng(0).integers(256, size=(9000, 4), dtype=np.uint8)  # two chunks
    np.save("pixels.npy", pixels)
    mean, variance = jaxmlp.ensemble_predictions(network, members, pixels, scaling=scaling)
    assert command("predict", "numbers", "pixels.npy", "--output", "out.npz").status == 0
    with np.load("out.npz") as arrays:
        assert sorted(arrays) == ["disagreement", "prediction"]
        np.testing.assert_allclose(arrays["prediction"], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(arrays["disagreement"], variance, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_columns_without_names_are_taken_in_their_order_and_that_is_said(command, saved):
    params, scaling = saved
    save("unnamed", NETWORK, params, scaling=scaling, classes=np.arange(3))
    write_csv(Path("three.csv"), FEATURES, *animals(5)[0].T)
    status, _, errors = command("predict", "unnamed", "three.csv")
    assert status == 0
    assert "unnamed keeps no names of its inputs: the columns are taken in their order" in errors
    assert "names" not in command("predict", "saved", "three.csv", "--overwrite").errors
    assert load("unnamed")[2]["dataset"]["classes"] == ["0", "1", "2"]


@pytest.mark.slow
def test_a_classifier_without_names_has_its_numbers(command, saved):
    params, scaling = saved
    save("plain", NETWORK, params, scaling=scaling)
    inputs, names = animals(30, seed=1)
    labels = np.array([ANIMALS.index(name) for name in names])
    np.savez("labels.npz", inputs=inputs, targets=labels)
    evaluated = command("evaluate", "plain", "--dataset", "labels.npz")
    assert (evaluated.status, evaluated.errors) == (0, "")
    right = np.mean(
        np.argmax(jaxmlp.predictions(NETWORK, params, inputs, scaling=scaling), axis=1) == labels
    )
    assert f"accuracy {right:.4f}" in evaluated.output
    status, _, errors = command("evaluate", "plain", "--dataset", "iris")
    assert status == 2 and "dataset: expected the classes '0', '1', '2', got iris with" in errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("evaluate saved", "dataset: expected a file or a known set (--dataset), as saved"),
        ("evaluate saved --dataset houses.csv", "houses.csv"),
        ("train --output saved --resume", "run: expected one that `jaxmlp train` made, got saved"),
        ("influence saved", "run: expected one that `jaxmlp train` made, with its data, got saved"),
        ("evaluate ensemble", "dataset: expected a file or a known set (--dataset), as ensemble"),
        ("evaluate lost --dataset animals.csv", "lost/model.safetensors: params: expected finite"),
        ("influence ensemble", "run: expected one network, got ensemble, which holds 4"),
        (
            "predict lost animals.csv",
            "lost/model.safetensors: params: expected finite members",
        ),
        ("export ensemble", "run: expected one network, got ensemble, which holds 4"),
    ],
)
def test_what_the_commands_cannot_do_with_it_is_said(arguments, text, command, saved):
    status, output, errors = command(*arguments.split())
    assert (status, output) == (2, "")
    assert errors.startswith("jaxmlp: ") and text in errors and "Traceback" not in errors


def test_layers_of_another_class_are_saved_too(tmp_path):
    class Other(Layer):
        pass

    save(tmp_path, NETWORK, [Other(*layer) for layer in PARAMS])
    assert_same(load(tmp_path)[1], PARAMS)
