"""A network in standard operators of ONNX."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxmlp.exports.parts import (
    description,
    float32_layers,
    inputs_comment,
    scaling_parts,
    write_file,
)
from jaxmlp.network import Network, Parameters, check_parameters
from jaxmlp.scaling import Scaling

# Of 2022, with all that the activations need. Later ones add Gelu and a bfloat16 that is not used
# here, and are read by fewer runtimes.
_OPSET = 17
_LIMIT = 2**31 - 2**20  # of a protobuf message, less what is no parameter


def to_onnx(
    network: Network,
    params: Parameters,
    scaling: Scaling | None,
    path: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
) -> str:
    """Write an ONNX model of standard operators, opset 17.

    Its input is `inputs`, float32 (batch, D) with any batch, its outputs `predictions`, as
    `jaxmlp.predictions` gives them, and `logits`, both float32 (batch, K).

    Args:
        network: The network.
        params: Its parameters.
        scaling: What raw inputs go through before the first layer, or None.
        path: The file.
        classes: The name of each output, kept in the model's metadata as JSON, or None.

    Returns:
        The lines of Python that read the file and predict with it.

    Raises:
        OSError: The file cannot be written.
        TypeError: Parameters of another kind.
        ValueError: Parameters or a scaling that do not fit the network or are not finite, more
            parameters than a file can hold, or onnx is not installed.
    """
    check_parameters(network, params)
    layers = float32_layers(params)
    parts = scaling_parts(network, scaling)
    if 4 * network.n_parameters > _LIMIT:
        raise ValueError(
            f"params: expected at most {_LIMIT // 4:,} numbers, as an ONNX file of 2 GiB "
            f"holds, got {network.n_parameters:,}"
        )
    try:
        import onnx
    except ImportError as error:
        raise ValueError(
            f'format: onnx needs a package that is missing ({error}): pip install "jaxmlp[export]"'
        ) from error

    from jaxmlp import __version__

    graph = _Graph()
    a = "inputs"
    if parts is not None:
        for number, shift in enumerate(parts.shifts):
            a = graph.apply("Sub", a, graph.constant(f"shift.{number}", shift))
        a = graph.apply("Mul", a, graph.constant("factor", parts.factor))
    last = len(layers) - 1
    for l, layer in enumerate(layers):
        arrays = [graph.constant(f"{l}.weight", layer.weight)]
        if layer.bias is not None:
            arrays.append(graph.constant(f"{l}.bias", layer.bias))
        z = graph.apply("Gemm", a, *arrays, output="logits" if l == last else None, transB=1)
        a = z if l == last else _ACTIVATIONS[network.activations[l]](graph, z)
    operator, attributes = _PREDICTIONS[network.loss]
    graph.apply(operator, a, output="predictions", **attributes)

    def value(name: str, size: int) -> Any:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", size])

    opsets = [onnx.helper.make_opsetid("", _OPSET)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "jaxmlp",
            [value("inputs", network.sizes[0])],
            [value("predictions", network.sizes[-1]), value("logits", network.sizes[-1])],
            graph.constants,
        ),
        opset_imports=opsets,
        ir_version=onnx.helper.find_min_ir_version_for(opsets),
        producer_name="jaxmlp",
        producer_version=__version__,
    )
    onnx.helper.set_model_props(model, description(network, classes))
    onnx.checker.check_model(model, full_check=True)
    write_file(path, model.SerializeToString())
    return (
        "import onnxruntime\n\n"
        f"session = onnxruntime.InferenceSession({os.fspath(path)!r})\n"
        f"{inputs_comment(network)}\n"
        'feed = {"inputs": inputs.astype("float32")}\n'
        'predictions, logits = session.run(["predictions", "logits"], feed)\n'
    )


class _Graph:
    """The nodes and the constants of an ONNX graph, as they are added."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, array: Any) -> str:
        """Add a constant, in float32, and return its name."""
        import onnx

        self.constants.append(onnx.numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    def apply(
        self, operator: str, *inputs: str, output: str | None = None, **attributes: Any
    ) -> str:
        """Add a node with one output and return the output's name."""
        import onnx

        output = output or f"{operator.lower()}.{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def scale(self, name: str, number: float) -> str:
        """Return the name of a value times a number."""
        constant = self.constant(f"constant.{len(self.constants)}", number)
        return self.apply("Mul", name, constant)

    def one_plus(self, name: str) -> str:
        """Return the name of 1 plus a value."""
        return self.apply("Add", name, self.constant(f"constant.{len(self.constants)}", 1))


def _silu(graph: _Graph, z: str) -> str:
    return graph.apply("Mul", z, graph.apply("Sigmoid", z))


def _gelu(graph: _Graph, z: str) -> str:
    """Add ½ z (1 + erf(z/√2))."""
    erf = graph.apply("Erf", graph.scale(z, math.sqrt(0.5)))
    return graph.scale(graph.apply("Mul", z, graph.one_plus(erf)), 0.5)


def _gelu_tanh(graph: _Graph, z: str) -> str:
    """Add z σ(v) with v = 2√(2/π) z (1 + 0.044715 z²)."""
    cubic = graph.one_plus(graph.scale(graph.apply("Mul", z, z), 0.044715))
    v = graph.scale(graph.apply("Mul", z, cubic), 2 * math.sqrt(2 / math.pi))
    return graph.apply("Mul", z, graph.apply("Sigmoid", v))


_ACTIVATIONS: dict[str, Callable[[_Graph, str], str]] = {
    "identity": lambda graph, z: z,
    "sigmoid": lambda graph, z: graph.apply("Sigmoid", z),
    "tanh": lambda graph, z: graph.apply("Tanh", z),
    "relu": lambda graph, z: graph.apply("Relu", z),
    "leaky_relu": lambda graph, z: graph.apply("LeakyRelu", z, alpha=0.01),
    "elu": lambda graph, z: graph.apply("Elu", z, alpha=1.0),
    "softplus": lambda graph, z: graph.apply("Softplus", z),
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
}

_PREDICTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "softmax_cross_entropy": ("Softmax", {"axis": 1}),
    "sigmoid_binary_cross_entropy": ("Sigmoid", {}),
    "squared_error": ("Identity", {}),
    "poisson": ("Exp", {}),
}
