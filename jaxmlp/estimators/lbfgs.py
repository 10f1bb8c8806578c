"""The penalised loss of all examples as SciPy's solvers want it: a function of one vector."""

import jax
import numpy as np
from jax import Array

from jaxmlp.batch import Batch
from jaxmlp.estimators.epochs import penalized
from jaxmlp.evaluation import padded_batch
from jaxmlp.network import Layer, Network, Parameters


@jax.jit
def _whole(
    network: Network, params: Parameters, examples: Batch, alpha: Array
) -> tuple[Array, Parameters]:
    return penalized(network, params, examples, alpha)


class Packed:
    """The penalised loss of all examples as a function of one vector, as SciPy's solvers want it.

    The vector holds the weights (n_in, n_out) of every layer, then the biases, as scikit-learn's.
    """

    def __init__(
        self,
        network: Network,
        params: Parameters,
        examples: tuple[np.ndarray, np.ndarray, np.ndarray],
        alpha: float,
    ) -> None:
        self.network, self.like = network, params
        n_examples = len(examples[0])
        step = max(64, 1 << max(0, n_examples.bit_length() - 4))  # little padding
        rows = -(-n_examples // step) * step
        self.examples = jax.device_put(padded_batch(*examples, rows))
        self.alpha = jax.device_put(np.asarray(alpha, params[0].weight.dtype))

    def pack(self, params: Parameters) -> np.ndarray:
        """Return parameters, or a gradient, as one vector in float64."""
        layers = jax.device_get(params)
        parts = [np.asarray(layer.weight).T.ravel() for layer in layers]
        return np.concatenate([*parts, *(layer.bias for layer in layers)]).astype(np.float64)

    def unpack(self, vector: np.ndarray) -> Parameters:
        """Return the parameters of a vector."""
        layers, place = [], 0
        for layer in self.like:
            n_out, n_in = layer.weight.shape
            weight = vector[place : place + n_in * n_out].reshape(n_in, n_out).T
            place += n_in * n_out
            layers.append([weight.astype(layer.weight.dtype), None])
        for parts, layer in zip(layers, self.like, strict=True):
            assert layer.bias is not None
            parts[1] = vector[place : place + len(layer.bias)].astype(layer.bias.dtype)
            place += len(layer.bias)
        return tuple(Layer(*parts) for parts in layers)

    def __call__(self, vector: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the loss and its gradient."""
        loss, gradient = _whole(self.network, self.unpack(vector), self.examples, self.alpha)
        return float(loss), self.pack(gradient)
