"""A trained network as a file for other runtimes: ONNX, StableHLO, or a PyTorch state dict.

What is exported takes raw inputs, as they were before any scaling, in float32: the scaling becomes
part of the model. It computes in float32 whatever the parameters' dtype: float64 is rounded, and
bfloat16 is widened, so that its activations are no longer rounded from layer to layer.
"""

from jaxmlp.exports.formats import FORMATS, Exported, export
from jaxmlp.exports.onnx import to_onnx
from jaxmlp.exports.stablehlo import to_stablehlo
from jaxmlp.exports.torch import to_torch

__all__ = ["FORMATS", "Exported", "export", "to_onnx", "to_stablehlo", "to_torch"]
