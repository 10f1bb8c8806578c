"""Exported models, run by other runtimes on raw inputs, against our own predictions."""

import functools
import json
import os
import sys
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from cases import in_dtype
from files import message_of
from safetensors import safe_open
from safetensors.numpy import load_file
from test_evaluation import predictions_of

from jaxmlp import Layer, Network, init, predictions
from jaxmlp.activations import ACTIVATIONS
from jaxmlp.exports import FORMATS, export, to_onnx, to_stablehlo, to_torch
from jaxmlp.losses import LOSSES
from jaxmlp.scaling import PIXELS, Scaling
from jaxmlp.verification import oracles

N_EXAMPLES = 1000

# float32 sums of some ten terms of size 1, and activations of other runtimes: a few 1e-7 each. With
# the scaling folded into the first layer, its terms are |mean|/deviation ≤ 10 times as large.
BOUND = 1e-5


def columns(n_inputs):
    """A scaling of columns of unequal means and deviations, and raw inputs that suit it."""
    mean = np.linspace(-3, 5, n_inputs)
    deviation = np.geomspace(0.5, 50, n_inputs)
    return Scaling(mean, 1 / deviation)


CASES = {
    "sigmoid, softmax": (Network((5, 7, 4)), None),
    "relu and tanh, softmax, no bias, pixels": (
        Network((6, 8, 5, 3), ("relu", "tanh"), bias=False),
        PIXELS,
    ),
    "elu and leaky relu, binary": (
        Network((4, 6, 5, 2), ("elu", "leaky_relu"), "sigmoid_binary_cross_entropy"),
        columns(4),
    ),
    "gelu, squared error, no bias, a bias by the shift": (
        Network((3, 9, 4), "gelu", "squared_error", bias=False),
        columns(3),
    ),
    "gelu_tanh, poisson": (
        Network((5, 6, 2), "gelu_tanh", "poisson"),
        Scaling(np.float64(2), np.float64(0.5)),
    ),
    "deep": (Network((4, 6, 5, 7, 3, 2), ("softplus", "silu", "identity", "sigmoid")), columns(4)),
    "no hidden layer, one output": (
        Network((5, 1), loss="sigmoid_binary_cross_entropy"),
        Scaling(np.float64(0.5), np.arange(1.0, 6.0)),
    ),
}
CASE = pytest.mark.parametrize("name", CASES)


def test_every_activation_and_every_loss_is_in_a_case():
    networks = [network for network, _ in CASES.values()]
    assert {name for network in networks for name in network.activations} == set(ACTIVATIONS)
    assert {network.loss for network in networks} == set(LOSSES)


def drawn(network, scaling):
    """Parameters with biases that are not 0, and raw inputs (N, D) in float32."""
    rng = np.random.default_rng(len(network.sizes))
    params = init(network, jax.random.key(7))
    if network.bias:
        params = tuple(
            Layer(weight, jnp.asarray(rng.normal(size=len(bias)), jnp.float32))
            for weight, bias in params
        )
    inputs = rng.normal(size=(N_EXAMPLES, network.sizes[0]))
    if scaling is PIXELS:
        inputs = rng.integers(0, 256, inputs.shape)
    elif scaling is not None:
        inputs = inputs / scaling.factor + scaling.shift
    return params, inputs.astype(np.float32)


def difference(got, expected):
    """The largest difference, relative where the expected number is above 1."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape and got.dtype == np.float32
    return float(np.max(np.abs(got - expected) / np.maximum(1, np.abs(expected))))


def run_onnx(path, inputs):
    """What onnxruntime says, on one core: its threads would only wait for one another here."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    outputs: Any = session.run(["predictions", "logits"], {"inputs": inputs})
    return outputs


def read_sequential(network, path, inputs):
    """The logits (N, K) of the state dict, in float64: entries 0, 2, 4 … are the linear layers."""
    arrays = load_file(path)
    names = [f"{2 * l}.weight" for l in range(len(network.sizes) - 1)]
    layers = [(arrays.pop(n), arrays.pop(n.replace("weight", "bias"), None)) for n in names]
    assert not arrays
    return oracles.numpy_logits(network.activations, layers, inputs)


@CASE
def test_onnx_predicts_from_raw_inputs_what_we_predict(name, tmp_path):
    network, scaling = CASES[name]
    params, inputs = drawn(network, scaling)
    to_onnx(network, params, scaling, tmp_path / "model.onnx")
    got, logits = run_onnx(tmp_path / "model.onnx", inputs)
    assert difference(got, predictions(network, params, inputs, scaling=scaling)) < BOUND
    assert difference(got, predictions_of(network, logits.astype(float))) < BOUND


@CASE
def test_stablehlo_predicts_from_raw_inputs_what_we_predict(name, tmp_path):
    network, scaling = CASES[name]
    params, inputs = drawn(network, scaling)
    to_stablehlo(network, params, scaling, tmp_path / "model")
    model = jax.export.deserialize(bytearray((tmp_path / "model").read_bytes()))
    assert set(model.platforms) == {"cpu", "cuda"}
    expected = predictions(network, params, inputs, scaling=scaling)
    assert difference(model.call(inputs), expected) < BOUND
    assert difference(model.call(inputs[:3]), expected[:3]) < BOUND  # another batch, same file


@CASE
def test_the_state_dict_read_in_numpy_predicts_from_raw_inputs_what_we_predict(name, tmp_path):
    network, scaling = CASES[name]
    params, inputs = drawn(network, scaling)
    to_torch(network, params, scaling, tmp_path / "model")
    got = predictions_of(network, read_sequential(network, tmp_path / "model", inputs))
    expected = predictions(network, params, inputs, scaling=scaling)
    assert difference(got.astype(np.float32), expected) < BOUND


@CASE
def test_pytorch_run_as_the_usage_says_predicts_what_we_predict(name, tmp_path):
    pytest.importorskip("torch")
    network, scaling = CASES[name]
    params, inputs = drawn(network, scaling)
    usage = to_torch(network, params, scaling, tmp_path / "model")
    names: dict[str, Any] = {"inputs": inputs}
    exec(usage, names)
    got = names["predictions"].numpy()
    assert difference(got, predictions(network, params, inputs, scaling=scaling)) < BOUND


@pytest.mark.parametrize("format", ["onnx", "stablehlo"])
def test_the_usage_is_python_that_predicts(format, tmp_path):
    network, scaling = CASES["relu and tanh, softmax, no bias, pixels"]
    params, inputs = drawn(network, scaling)
    path, usage = export(format, network, params, scaling, tmp_path)
    assert path == tmp_path / FORMATS[format].file_name
    names: dict[str, Any] = {"inputs": inputs}
    exec(usage, names)
    expected = predictions(network, params, inputs, scaling=scaling)
    assert difference(names["predictions"], expected) < BOUND


@pytest.mark.parametrize("format", ["onnx", "stablehlo"])
def test_a_column_that_is_large_and_varies_little_keeps_its_digits(format, tmp_path):
    # The mean 1e6 + 0.02 is no float32 number: rounded to 1e6 it would move the column by 0.2
    # deviations. The inputs are float32 numbers, 0.0625 apart.
    network = Network((2, 3), bias=False)
    params = init(network, jax.random.key(0))
    scaling = Scaling(np.array([1e6 + 0.02, 0.0]), np.array([10.0, 1.0]))
    rng = np.random.default_rng(0)
    inputs = np.float32(rng.normal(size=(50, 2)) / scaling.factor + scaling.shift)
    path, _ = export(format, network, params, scaling, tmp_path)
    if format == "onnx":
        got = run_onnx(path, inputs)[0]
    else:
        got = jax.export.deserialize(bytearray(path.read_bytes())).call(inputs)
    assert difference(got, predictions(network, params, inputs, scaling=scaling)) < BOUND
    rounded = Scaling(np.float32(scaling.shift), scaling.factor)
    assert difference(got, predictions(network, params, inputs, scaling=rounded)) > 1e-2


@pytest.mark.parametrize("format", FORMATS)
def test_far_logits_and_inputs_give_finite_predictions(format, tmp_path):
    # Logits of ±3000, where e^z is infinite: softmax must subtract the largest.
    network = Network((2, 4, 2), "gelu_tanh")
    params = init(network, jax.random.key(0))
    inputs = np.float32([[1e3, -1e3], [-3e3, 2e3], [0, 0]])
    path, _ = export(format, network, params, None, tmp_path)
    if format == "onnx":
        got = run_onnx(path, inputs)[0]
    elif format == "stablehlo":
        got = jax.export.deserialize(bytearray(path.read_bytes())).call(inputs)
    else:
        z = read_sequential(network, path, inputs)
        got = predictions_of(network, z - z.max(axis=1, keepdims=True)).astype(np.float32)
    assert difference(got, predictions(network, params, inputs)) < BOUND


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_parameters_of_another_dtype_are_exported_in_float32(format, dtype, tmp_path):
    network = Network((3, 4, 2), "relu")
    inputs = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    with jax.enable_x64(dtype == "float64"):
        params = init(network, jax.random.key(0), dtype)
        path, _ = export(format, network, params, None, tmp_path)
    same = in_dtype(jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params), jnp.float32)
    if format == "onnx":
        got = run_onnx(path, inputs)[0]
    elif format == "stablehlo":
        got = jax.export.deserialize(bytearray(path.read_bytes())).call(inputs)
    else:
        assert all(array.dtype == np.float32 for array in load_file(path).values())
        got = predictions_of(network, read_sequential(network, path, inputs)).astype(np.float32)
    assert difference(got, predictions(network, same, inputs)) < BOUND


def test_a_precision_that_not_every_platform_has_becomes_the_default(tmp_path):
    network = Network((3, 2), precision="TF32_TF32_F32")
    params = init(network, jax.random.key(0))
    to_stablehlo(network, params, None, tmp_path / "model")
    model = jax.export.deserialize(bytearray((tmp_path / "model").read_bytes()))
    plain = Network((3, 2))
    inputs = np.ones((2, 3), np.float32)
    assert difference(model.call(inputs), predictions(plain, params, inputs)) < BOUND


def test_an_onnx_model_says_what_it_is_and_is_read_by_runtimes_of_2022(tmp_path):
    network = Network((3, 4, 2), "gelu")
    params = init(network, jax.random.key(0))
    to_onnx(network, params, None, tmp_path / "model.onnx", classes=("ja", "né"))
    model = onnx.load(tmp_path / "model.onnx")
    assert model.producer_name == "jaxmlp" and model.ir_version == 8
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["classes"]) == ["ja", "né"]
    assert metadata["loss"] == "softmax_cross_entropy"
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"inputs": ["batch", 3], "predictions": ["batch", 2], "logits": ["batch", 2]}


def test_a_state_dict_says_in_its_metadata_which_sequential_it_is_of(tmp_path):
    network = Network((3, 4, 2), "gelu_tanh", bias=False)
    params = init(network, jax.random.key(0))
    scaling = Scaling(np.float64(1), np.float64(2))
    usage = to_torch(network, params, scaling, tmp_path / "model", classes=("a", "b"))
    with safe_open(tmp_path / "model", "numpy") as file:
        metadata = file.metadata()
        assert set(file.keys()) == {"0.weight", "0.bias", "2.weight"}
    assert metadata["format"] == "pt" and json.loads(metadata["classes"]) == ["a", "b"]
    assert metadata["torch"] == (
        "torch.nn.Sequential(\n"
        "    torch.nn.Linear(3, 4),\n"
        '    torch.nn.GELU(approximate="tanh"),\n'
        "    torch.nn.Linear(4, 2, bias=False),\n"
        ")"
    )
    assert metadata["torch"] in usage


def test_a_folded_scaling_worked_by_hand(tmp_path):
    # W = (2, 3), b = 1, x ↦ (x − (5, 7)) ∘ (10, 100): W diag f = (20, 300), and
    # b − (20·5 + 300·7) = 1 − 2200.
    params = (Layer(jnp.array([[2.0, 3.0]]), jnp.array([1.0])),)
    scaling = Scaling(np.array([5.0, 7.0]), np.array([10.0, 100.0]))
    to_torch(Network((2, 1), loss="squared_error"), params, scaling, tmp_path / "model")
    arrays = load_file(tmp_path / "model")
    np.testing.assert_array_equal(arrays["0.weight"], [[20, 300]])
    np.testing.assert_array_equal(arrays["0.bias"], [-2199])


NETWORK = Network((3, 2))
PARAMS = init(NETWORK, jax.random.key(0))


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_cannot_be_written_is_named_and_what_stands_there_stays(
    format, tmp_path, monkeypatch
):
    write = functools.partial(export, format, NETWORK, PARAMS, None)
    missing = tmp_path / "no" / "model"
    text = message_of(FileNotFoundError, lambda: write(missing))
    assert text == f"path: cannot write {missing}: No such file or directory"
    path = tmp_path / "model"
    path.write_bytes(b"older")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    text = message_of(OSError, lambda: write(path))
    assert text == f"path: cannot write {path}: No space left on device"
    assert os.listdir(tmp_path) == ["model"] and path.read_bytes() == b"older"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"params": ()}, ValueError, "params: expected 1 layers, got 0"),
        ({"params": None}, TypeError, "params: expected a tuple of 1 jaxmlp.Layer"),
        (
            {"params": (Layer(jnp.full((2, 3), jnp.nan), jnp.zeros(2)),)},
            ValueError,
            "params[0].weight: expected finite numbers, got nan at [0, 0] (6 of 6 are not finite)",
        ),
        (
            {"scaling": Scaling(np.zeros(2), np.float64(1))},
            ValueError,
            "scaling.shift: expected shape () or (3,), got (2,)",
        ),
        (
            {"scaling": Scaling(np.zeros(3), np.float64(1e39))},
            ValueError,
            "scaling.factor: expected finite numbers, got inf at []",
        ),
    ],
)
def test_what_cannot_be_exported_is_named_and_nothing_is_written(
    format, change, error, message, tmp_path
):
    arguments = {"network": NETWORK, "params": PARAMS, "scaling": None} | change
    text = message_of(error, lambda: export(format, path=tmp_path / "model", **arguments))
    assert text.startswith(message)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_another_number_of_classes_is_named(format, tmp_path):
    call = functools.partial(export, format, NETWORK, PARAMS, None, tmp_path, ["a", "b", "c"])
    text = message_of(ValueError, call)
    assert text == "classes: expected 2 names, one for each output, got 3"


def test_an_unknown_format_is_told_the_nearest(tmp_path):
    text = message_of(ValueError, lambda: export("onxx", NETWORK, PARAMS, None, tmp_path))
    assert text.startswith("unknown format 'onxx': did you mean 'onnx'?")


def test_without_onnx_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    text = message_of(ValueError, lambda: to_onnx(NETWORK, PARAMS, None, tmp_path / "model"))
    assert text.endswith('pip install "jaxmlp[export]"')
    assert not any(tmp_path.iterdir())


def test_more_parameters_than_an_onnx_file_holds_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxmlp.exports.onnx._LIMIT", 28)
    text = message_of(ValueError, lambda: to_onnx(NETWORK, PARAMS, None, tmp_path / "model"))
    assert text == "params: expected at most 7 numbers, as an ONNX file of 2 GiB holds, got 8"
