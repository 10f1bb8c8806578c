"""Random networks with random data: what the gradients are compared on.

Weights are N(0, 1/fan_in), biases 0.1·N(0, 1), inputs N(0, 1), the logits at most 10, sample
weights unequal and one of them 0. Where the activation has a kink, one unit of each hidden layer
has weights and bias 0, so that its preactivation is exactly 0. All draws are NumPy float64.
"""

from typing import Any, NamedTuple

import numpy as np

from jaxmlp.activations import ACTIVATIONS
from jaxmlp.losses import LOSSES
from jaxmlp.network import Layer, Network, Parameters

N_EXAMPLES = 5
KINKED = ("relu", "leaky_relu", "elu")
LARGEST_LOGIT = 10.0
LARGEST_LOG_RATE = 5.0  # of the Poisson loss: e^z multiplies the rounding of z by |z|
_UNEQUAL = (5, 3, 6, 2, 7, 4, 3)
_EQUAL = (4,) * 7


class Case(NamedTuple):
    """An architecture to verify: a network, whether targets are class indices, weights or none."""

    network: Network
    classes: bool
    weighted: bool
    n_examples: int = N_EXAMPLES

    def __str__(self) -> str:
        """Return the case as a short line."""
        sizes = "-".join(str(size) for size in self.network.sizes)
        extras = [self.network.loss, "bias" if self.network.bias else "no bias"]
        extras.append("sample weights" if self.weighted else "no sample weights")
        activation = " ".join(dict.fromkeys(self.network.activations)) or "no hidden layer"
        return ", ".join([sizes, activation, *extras])


class Draws(NamedTuple):
    """Draws of one case, stacked: every array has a leading axis of trials.

    `params` is the network's tree, `inputs` (T, N, D), `targets` (T, N) or (T, N, K), `weights`
    (T, N) or None.
    """

    params: Parameters
    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None

    def trial(self, number: int) -> "Draws":
        """Return one draw, without the leading axis."""
        params = tuple(
            Layer(weight[number], None if bias is None else bias[number])
            for weight, bias in self.params
        )
        weights = None if self.weights is None else self.weights[number]
        return Draws(params, self.inputs[number], self.targets[number], weights)


def network_of(
    activation: str, loss: str, depth: int, bias: bool = True, precision: str | None = None
) -> Network:
    """Return a small network with `depth` hidden layers, widths equal for even depths only."""
    widths = (_UNEQUAL if depth % 2 else _EQUAL)[: depth + 2]
    return Network(widths, activation, loss, bias, precision)


def grid(full: bool, precision: str | None = None) -> list[Case]:
    """Return the cases of every activation × loss × depth 0 … 5.

    With and without bias and sample weights: all four of each when `full`; else they alternate, so
    that each pair of activation and loss, and each loss without a hidden layer, meets all four.
    """
    four = [(bias, weighted) for bias in (True, False) for weighted in (True, False)]
    cases = []
    for loss_number, loss in enumerate(LOSSES):
        for activation_number, activation in enumerate(ACTIVATIONS):
            for depth in range(6):
                if depth == 0 and activation_number > 0:
                    continue  # no hidden layer: the activation is not used
                turn = (depth + activation_number + loss_number) % 4
                for bias, weighted in four if full or depth == 0 else [four[turn]]:
                    network = network_of(activation, loss, depth, bias, precision)
                    cases.append(Case(network, (depth + bias) % 2 == 0, weighted))
    return cases


def sample(precision: str | None = None) -> list[Case]:
    """Return one case of every activation × loss, the depths 1 … 3, bias and weights in turn."""
    cases = []
    for loss_number, loss in enumerate(LOSSES):
        for number, activation in enumerate(ACTIVATIONS):
            turn = number + loss_number
            network = network_of(activation, loss, 1 + turn % 3, turn % 4 < 2, precision)
            cases.append(Case(network, turn % 2 == 0, (turn // 2) % 2 == 0))
    return cases


def draw_params(
    network: Network, trials: int, rng: np.random.Generator, zeros: bool = True
) -> Parameters:
    """Return random parameters with a leading axis of trials.

    With `zeros`, the first unit of each hidden layer with a kinked activation is exactly at it.
    """
    layers = []
    for n_in, n_out in zip(network.sizes[:-1], network.sizes[1:], strict=True):
        weight: Any = rng.normal(size=(trials, n_out, n_in)) / np.sqrt(n_in)
        bias: Any = 0.1 * rng.normal(size=(trials, n_out)) if network.bias else None
        layers.append(Layer(weight, bias))
    for number, activation in enumerate(network.activations):
        if zeros and activation in KINKED and network.sizes[number + 1] > 1:
            layers[number].weight[:, 0] = 0
            if network.bias:
                layers[number].bias[:, 0] = 0
    return tuple(layers)


def draw_inputs(network: Network, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return inputs N(0, 1) of shape (…, D)."""
    return rng.normal(size=(*shape, network.sizes[0]))


def draw_targets(
    network: Network, shape: tuple[int, ...], classes: bool, rng: np.random.Generator
) -> np.ndarray:
    """Return targets that suit the loss: (…) classes or (…, K); distributions do not sum to 1."""
    shape_k = (*shape, network.sizes[-1])
    if network.loss == "softmax_cross_entropy":
        return rng.integers(network.sizes[-1], size=shape) if classes else rng.random(shape_k)
    if network.loss == "sigmoid_binary_cross_entropy":
        return rng.random(shape_k)
    if network.loss == "poisson":
        return rng.poisson(2.0, size=shape_k).astype(np.float64)
    return rng.normal(size=shape_k)


def draw_weights(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return unequal sample weights, of which the second of each batch is 0."""
    weights = rng.uniform(0.2, 2.0, size=shape)
    if shape[-1] > 2:
        weights[..., 1] = 0
    return weights


def tamed(network: Network, params: Parameters, logits: np.ndarray) -> Parameters:
    """Return the parameters with the output layer scaled so that no logit is too large.

    Args:
        network: The network.
        params: Parameters with a leading axis of trials.
        logits: What they yield, (T, N, K).

    Returns:
        The tree, its last layer scaled where that was needed.
    """
    largest = np.abs(logits).max(axis=(1, 2))
    bound = LARGEST_LOG_RATE if network.loss == "poisson" else LARGEST_LOGIT
    factor = np.minimum(1, bound / np.maximum(largest, 1e-300))
    weight, bias = params[-1]
    weight = weight * factor[:, None, None]
    return (*params[:-1], Layer(weight, None if bias is None else bias * factor[:, None]))
