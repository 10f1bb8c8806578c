"""A network as the state dict of a `torch.nn.Sequential`."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import safetensors.numpy

from jaxmlp.exports.parts import (
    checked_scaling,
    description,
    float32_layers,
    inputs_comment,
    write_file,
)
from jaxmlp.network import Layer, Network, Parameters, check_parameters
from jaxmlp.scaling import Scaling

_ACTIVATIONS = {
    "identity": "Identity()",
    "sigmoid": "Sigmoid()",
    "tanh": "Tanh()",
    "relu": "ReLU()",
    "leaky_relu": "LeakyReLU(0.01)",
    "elu": "ELU()",
    "softplus": "Softplus()",
    "silu": "SiLU()",
    "gelu": "GELU()",
    "gelu_tanh": 'GELU(approximate="tanh")',
}

_PREDICTIONS = {
    "softmax_cross_entropy": "logits.softmax(dim=1)",
    "sigmoid_binary_cross_entropy": "logits.sigmoid()",
    "squared_error": "logits",
    "poisson": "logits.exp()",
}


def to_torch(
    network: Network,
    params: Parameters,
    scaling: Scaling | None,
    path: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
) -> str:
    """Write the state dict of a `torch.nn.Sequential`, as safetensors: no PyTorch is needed here.

    The layers are `Linear, activation, Linear, …`, so the arrays are `0.weight`, `0.bias`,
    `2.weight` and so on, and the output is the logits. The scaling is folded into the first layer,
    in float64: (x − s)·f before W x + b is (W diag f) x + (b − W (f∘s)). There is a bias where the
    network has none when s is not 0. For columns that are large and vary little, float32 loses
    digits in that form: about 1e-7 · |mean|/deviation.

    Args:
        network: The network.
        params: Its parameters.
        scaling: What raw inputs go through before the first layer, or None.
        path: The file.
        classes: The name of each output, kept in the file's metadata as JSON, or None.

    Returns:
        The lines of Python that build the Sequential, load the file and predict with it. The
        Sequential is in the file's metadata too, as `torch`.

    Raises:
        OSError: The file cannot be written.
        TypeError: Parameters of another kind.
        ValueError: Parameters or a scaling that do not fit the network or are not finite.
    """
    check_parameters(network, params)
    layers = float32_layers(_folded(network, params, scaling))
    arrays = {}
    modules = []
    for l, layer in enumerate(layers):
        n_out, n_in = layer.weight.shape
        arrays[f"{2 * l}.weight"] = layer.weight
        if layer.bias is not None:
            arrays[f"{2 * l}.bias"] = layer.bias
        modules.append(f"Linear({n_in}, {n_out}{', bias=False' if layer.bias is None else ''})")
        if l < len(network.activations):
            modules.append(_ACTIVATIONS[network.activations[l]])
    lines = "".join(f"    torch.nn.{module},\n" for module in modules)
    sequential = f"torch.nn.Sequential(\n{lines})"
    metadata = {"format": "pt", "torch": sequential, **description(network, classes)}
    write_file(path, safetensors.numpy.save(arrays, metadata))
    return (
        "import torch\nfrom safetensors.torch import load_file\n\n"
        f"model = {sequential}\n"
        f"model.load_state_dict(load_file({os.fspath(path)!r}))\n"
        f"{inputs_comment(network)}\n"
        "with torch.inference_mode():\n"
        "    logits = model(torch.as_tensor(inputs))\n"
        f"    predictions = {_PREDICTIONS[network.loss]}\n"
    )


def _folded(network: Network, params: Parameters, scaling: Scaling | None) -> Any:
    """Return the parameters with the scaling done by the first layer, which is then float64."""
    if scaling is None:
        return params
    shift, factor = checked_scaling(network, scaling)
    weight = np.asarray(params[0].weight, np.float64) * factor
    bias = params[0].bias
    if shift.any():
        moved = np.sum(weight * shift, axis=1)
        bias = (0 if bias is None else np.asarray(bias, np.float64)) - moved
    return (Layer(weight, bias), *params[1:])  # pyright: ignore[reportArgumentType]
