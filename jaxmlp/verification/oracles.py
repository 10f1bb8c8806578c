"""What the gradients are judged by: slow, obviously right, and without a line of our own code.

Three kinds of oracle live here, and none imports anything from this package: plain losses in JAX,
for `jax.grad` to differentiate; a forward pass in NumPy float64, in other formulas than JAX's; and
a network of three inputs, two hidden units and two outputs worked by hand. Functions for `mpmath`
give the exact values of what must keep its digits in float32.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "identity": lambda z: z,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


def example_losses(loss: str, z: Any, t: Any) -> Any:
    """Return the plain loss (N,) of each example from logits z (N, K) and targets, in JAX."""
    if loss == "softmax_cross_entropy":
        t = jax.nn.one_hot(t, z.shape[1], dtype=z.dtype) if t.ndim == 1 else t
        return -jnp.sum(t * jax.nn.log_softmax(z), axis=1)
    t = jnp.reshape(t, z.shape)
    if loss == "sigmoid_binary_cross_entropy":
        return jnp.sum(-t * jax.nn.log_sigmoid(z) - (1 - t) * jax.nn.log_sigmoid(-z), axis=1)
    if loss == "squared_error":
        return jnp.sum((z - t) ** 2, axis=1) / 2
    return jnp.sum(jnp.exp(z) - t * z, axis=1)


def plain_logits(activations: Sequence[str], params: Any, inputs: Any) -> Any:
    """Return the logits (N, K) of a batch in JAX, written as anybody would write it."""
    h = inputs
    for number, (weight, bias) in enumerate(params):
        z = h @ weight.T
        if bias is not None:
            z = z + bias[None, :]
        h = ACTIVATIONS[activations[number]](z) if number < len(activations) else z
    return h


def plain_loss(
    activations: Sequence[str], loss: str, params: Any, inputs: Any, targets: Any, weights: Any
) -> Any:
    """Return the weighted mean loss of a batch in JAX; `jax.grad` of it is the oracle."""
    losses = example_losses(loss, plain_logits(activations, params, inputs), targets)
    if weights is None:
        return jnp.mean(losses)
    return jnp.sum(weights * losses) / jnp.sum(weights)


_erf = np.vectorize(math.erf, otypes=[float])

NUMPY_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda z: z,
    "sigmoid": lambda z: 1 / (1 + np.exp(-np.clip(z, -700, 700))),
    "tanh": lambda z: 2 / (1 + np.exp(-2 * np.clip(z, -300, 300))) - 1,
    "relu": lambda z: (z + np.abs(z)) / 2,
    "leaky_relu": lambda z: 0.505 * z + 0.495 * np.abs(z),
    "elu": lambda z: np.where(z > 0, z, np.exp(np.minimum(z, 0)) - 1),
    "softplus": lambda z: np.logaddexp(0, z),
    "silu": lambda z: z / (1 + np.exp(-np.clip(z, -700, 700))),
    "gelu": lambda z: z * (1 + _erf(z / math.sqrt(2))) / 2,
    "gelu_tanh": lambda z: z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2,
}


def numpy_logits(activations: Sequence[str], params: Any, inputs: np.ndarray) -> np.ndarray:
    """Return the logits (N, K) in NumPy float64, one example and one layer at a time."""
    rows = []
    for x in np.asarray(inputs, np.float64):
        h = x
        for number, (weight, bias) in enumerate(params):
            z = np.array([np.dot(row, h) for row in np.asarray(weight, np.float64)])
            if bias is not None:
                z = z + np.asarray(bias, np.float64)
            h = NUMPY_ACTIVATIONS[activations[number]](z) if number < len(activations) else z
        rows.append(h)
    return np.array(rows)


def numpy_loss(
    activations: Sequence[str],
    loss: str,
    params: Any,
    inputs: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray | None,
    of: Callable[[float], float] = float,
) -> float:
    """Return the weighted mean loss of a batch in NumPy float64, summed exactly by `math.fsum`.

    With `of=abs` it is the mean of the losses' sizes, by which rounding in their sum is measured.
    """
    z = numpy_logits(activations, params, inputs)
    weights = np.ones(len(z)) if weights is None else weights
    losses = [of(_numpy_example_loss(loss, *row)) for row in zip(z, targets, strict=True)]
    return math.fsum(w * e for w, e in zip(weights, losses, strict=True)) / math.fsum(weights)


def _numpy_example_loss(loss: str, z: np.ndarray, t: np.ndarray) -> float:
    if loss == "softmax_cross_entropy":
        y = np.exp(z) / np.sum(np.exp(z))
        if np.ndim(t) == 0:
            return -math.log(y[t])
        return -math.fsum(t * np.log(y))
    t = np.reshape(t, z.shape)
    if loss == "sigmoid_binary_cross_entropy":
        y = 1 / (1 + np.exp(-z))
        return -math.fsum(t * np.log(y) + (1 - t) * np.log1p(-y))
    if loss == "squared_error":
        return math.fsum((z - t) ** 2) / 2
    return math.fsum(np.exp(z) - t * z)


# A 3-2-2 network worked by hand, without biases: sigmoid, softmax cross-entropy, class 1.
#
#     W1 = ( 0.1 -0.2  0.3 )    W2 = (  0.7 -0.8 )    x = (1, 2, -1)    t = (0, 1)
#          ( 0.4  0.5 -0.6 )         ( -0.9  1.0 )
#
# z1 = W1 x = (0.1 - 0.4 - 0.3, 0.4 + 1.0 + 0.6) = (-0.6, 2.0)
# y1 = σ(z1) = (1/(1 + e^0.6), 1/(1 + e^-2)) = (0.3543436937742045, 0.8807970779778825)
# z2 = W2 y1 = (0.7·0.354… - 0.8·0.880…, -0.9·0.354… + 0.880…)
#            = (-0.4565970767403628, 0.5618877535810984)
# y2 = softmax(z2): z2_1 - z2_0 = 1.0184848303214612, y2_0 = 1/(1 + e^1.018…) = 0.2653226…
# E  = -log y2_1 = log(1 + e^-1.018…)
# equation 2   δ2 = y2 - t = (y2_0, -y2_0)
# equation 3   W2ᵀ δ2 = y2_0 (0.7 + 0.9, -0.8 - 1.0) = y2_0 (1.6, -1.8)
# equation 4   ∂E/∂W2 = δ2 y1ᵀ
# equation 5   σ′(z1) = y1 (1 - y1) = (0.2287842404566573, 0.1049935854035065)
# equation 6   δ1 = y2_0 (1.6·0.2287842404566573, -1.8·0.1049935854035065)
#                 = y2_0 (0.3660547847306517, -0.1889884537263117)
# equation 7   ∂E/∂W1 = δ1 xᵀ = (δ1, 2 δ1, -δ1)
WORKED_SIZES = (3, 2, 2)
WORKED_PARAMETERS = (
    (np.array([[0.1, -0.2, 0.3], [0.4, 0.5, -0.6]]), None),
    (np.array([[0.7, -0.8], [-0.9, 1.0]]), None),
)
WORKED_INPUT = np.array([[1.0, 2.0, -1.0]])
WORKED_TARGET = np.array([1])
_Y0 = 0.26532264227568937  # y2_0 = 1/(1 + e^1.0184848303214612)
_D1 = np.array([_Y0 * 0.3660547847306517, _Y0 * -0.1889884537263117])
_Y1 = np.array([0.3543436937742045, 0.8807970779778825])
WORKED_RESULTS = {
    "E": 0.3083238452270035,  # log(1 + e^-1.0184848303214612)
    "∂E/∂W1": np.array([_D1[0] * WORKED_INPUT[0], _D1[1] * WORKED_INPUT[0]]),
    "∂E/∂W2": np.array([_Y0 * _Y1, -_Y0 * _Y1]),
}
