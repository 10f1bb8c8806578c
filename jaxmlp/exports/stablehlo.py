"""A network as the prediction function that JAX reads without jaxmlp."""

import dataclasses
import os
from collections.abc import Sequence

import jax
import jax.export
import jax.numpy as jnp
from jax import Array

from jaxmlp.evaluation import predictions
from jaxmlp.exports.parts import float32_layers, inputs_comment, scaling_parts, write_file
from jaxmlp.network import Network, Parameters, check_parameters
from jaxmlp.scaling import Scaling


def to_stablehlo(
    network: Network,
    params: Parameters,
    scaling: Scaling | None,
    path: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
) -> str:
    """Write the prediction function as `jax.export` serialises it, for CPU and CUDA.

    It maps raw inputs, float32 (batch, D) with any batch, to predictions, float32 (batch, K), and
    holds its parameters. JAX alone reads and runs it. The matrix products have the network's
    precision; where that is the name of an algorithm, which not every platform has, they have the
    platform's default.

    Args:
        network: The network.
        params: Its parameters.
        scaling: What raw inputs go through before the first layer, or None.
        path: The file.
        classes: Not used: the format has no place for them.

    Returns:
        The lines of Python that read the file and predict with it.

    Raises:
        OSError: The file cannot be written.
        TypeError: Parameters of another kind.
        ValueError: Parameters or a scaling that do not fit the network or are not finite.
    """
    check_parameters(network, params)
    layers = float32_layers(params)
    parts = scaling_parts(network, scaling)
    if network.precision not in (None, "default", "high", "highest"):
        network = dataclasses.replace(network, precision=None)

    def predict(inputs: Array) -> Array:
        if parts is not None:
            for shift in parts.shifts:
                inputs = inputs - shift
            inputs = inputs * parts.factor
        return predictions(network, layers, inputs)

    (batch,) = jax.export.symbolic_shape("batch")
    inputs = jax.ShapeDtypeStruct((batch, network.sizes[0]), jnp.float32)
    exported = jax.export.export(jax.jit(predict), platforms=("cpu", "cuda"))(inputs)
    write_file(path, bytes(exported.serialize()))
    return (
        "import jax.export\n\n"
        f'with open({os.fspath(path)!r}, "rb") as file:\n'
        "    model = jax.export.deserialize(bytearray(file.read()))\n"
        f"{inputs_comment(network)}\n"
        "predictions = model.call(inputs)\n"
    )
