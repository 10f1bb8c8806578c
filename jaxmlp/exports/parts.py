"""What the formats share: arrays in float32, the scaling in parts, and a file written whole."""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmlp.network import Layer, Network, Parameters
from jaxmlp.scaling import Scaling
from jaxmlp.validation import check_finite


class ScalingParts(NamedTuple):
    """A scaling in float32 arrays, () or (1, D): subtract each shift, then multiply by the factor.

    A large shift takes two: float32 keeps 7 digits of it, and the difference may need the others.
    """

    shifts: tuple[np.ndarray, ...]
    factor: np.ndarray


def checked_scaling(network: Network, scaling: Scaling) -> tuple[np.ndarray, np.ndarray]:
    """Return shift and factor in float64, () or (1, D), finite also as float32."""
    arrays = []
    for name, part in zip(scaling._fields, scaling, strict=True):
        array = np.asarray(part, np.float64)
        if array.shape not in ((), (network.sizes[0],)):
            raise ValueError(
                f"scaling.{name}: expected shape () or ({network.sizes[0]},), got {array.shape}"
            )
        _float32(f"scaling.{name}", array)
        arrays.append(array[None, :] if array.ndim else array)
    return arrays[0], arrays[1]


def scaling_parts(network: Network, scaling: Scaling | None) -> ScalingParts | None:
    """Return what subtracts and multiplies raw inputs in float32, or None for no scaling."""
    if scaling is None:
        return None
    shift, factor = checked_scaling(network, scaling)
    high = shift.astype(np.float32)
    low = (shift - high).astype(np.float32)
    return ScalingParts(
        tuple(part for part in (high, low) if part.any()), factor.astype(np.float32)
    )


def float32_layers(params: Parameters) -> tuple[Layer, ...]:
    """Return the parameters as float32 arrays on the host, finite ones."""
    return tuple(
        Layer(
            _float32(f"params[{l}].weight", layer.weight),
            None if layer.bias is None else _float32(f"params[{l}].bias", layer.bias),
        )
        for l, layer in enumerate(params)
    )


def _float32(name: str, array: Any) -> Any:
    """Return an array in float32, C order; raise ValueError where it is not finite then."""
    with np.errstate(over="ignore"):  # what is too large is seen to be infinite
        result = np.asarray(array).astype(np.float32, order="C")
    check_finite(name, result)
    return result


def description(network: Network, classes: Sequence[str] | None) -> dict[str, str]:
    """Return what a file says of itself: the loss, and the classes as JSON."""
    metadata = {"loss": network.loss}
    if classes is not None:
        if len(classes) != network.sizes[-1]:
            raise ValueError(
                f"classes: expected {network.sizes[-1]} names, one for each output, got "
                f"{len(classes)}"
            )
        metadata["classes"] = json.dumps(list(classes), ensure_ascii=False)
    return metadata


def inputs_comment(network: Network) -> str:
    """Return the line of a usage that says what its `inputs` are."""
    return f"# inputs: raw, float32 (any number, {network.sizes[0]})"


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that at every moment it is the old one or the new one, whole."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise type(error)(f"path: cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
