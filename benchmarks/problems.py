"""What every library is given: the same data, initial weights, batches and learning rate.

All of it is drawn from a seed, in every process anew. Data are random bytes from 1 to 255, none of
them zero, as inputs of 60,000 images would come; labels are random classes.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

# Low: unit by unit a ReLU may open by one rounding, and the libraries part from there on.
RATE = 1e-3
CLASSES = 10
# Of the networks that are trained to an accuracy: 784-HIDDEN-10 by Adam, PEAK of one cycle.
HIDDEN, BATCH, PEAK, SMOOTHING = 256, 256, 0.01, 0.1


class Case(NamedTuple):
    """A network (D, H, ..., K) with ReLU units, trained by plain SGD on softmax cross-entropy.

    `steps` are done in one round, of batches of `batch_size` out of `n_examples`.
    """

    sizes: tuple[int, ...]
    batch_size: int
    steps: int
    n_examples: int = 60000

    @property
    def name(self) -> str:
        """Its shape and its batch, as rows name them."""
        return f"{'-'.join(map(str, self.sizes))} B={self.batch_size}"

    @property
    def products(self) -> list[tuple[int, int, int]]:
        """The products of matrices (n, k) (k, m) that a step needs, as (n, k, m)."""
        batch, shapes = self.batch_size, []
        for number, (n_in, n_out) in enumerate(zip(self.sizes[:-1], self.sizes[1:], strict=True)):
            shapes += [(batch, n_in, n_out), (n_out, batch, n_in)]
            if number:
                shapes.append((batch, n_out, n_in))
        return shapes

    @property
    def flops(self) -> int:
        """Additions and multiplications of those products, a step."""
        return sum(2 * n * k * m for n, k, m in self.products)


class Problem(NamedTuple):
    """The arrays of a case: `weights` (out, in) and `biases` of each layer, `order` (steps, B)."""

    case: Case
    pixels: np.ndarray
    classes: np.ndarray
    weights: list[np.ndarray]
    biases: list[np.ndarray]
    order: np.ndarray

    @property
    def inputs(self) -> np.ndarray:
        """(N, D) in float32, from 1/255 to 1."""
        return self.pixels.astype(np.float32) * np.float32(1 / 255)


def gradient(
    weights: list[np.ndarray], biases: list[np.ndarray], x: np.ndarray, classes: np.ndarray
) -> list[np.ndarray]:
    """Return the gradient of the mean cross-entropy by NumPy, as every library is judged by."""
    activations = [x]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        activations.append(np.maximum(activations[-1] @ weight.T + bias, 0))
    logits = activations[-1] @ weights[-1].T + biases[-1]
    delta = np.exp(logits - logits.max(axis=1, keepdims=True))
    delta /= delta.sum(axis=1, keepdims=True)
    delta[np.arange(len(x)), classes] -= 1
    delta /= len(x)
    result: list[np.ndarray] = []
    for layer in reversed(range(len(weights))):
        result[:0] = [delta.T @ activations[layer], delta.sum(axis=0)]
        delta = (delta @ weights[layer]) * (activations[layer] > 0)
    return result


def expected(own: "Problem", table: str) -> list[np.ndarray]:
    """Return what a library is to arrive at, in float64: its first gradient, or its change.

    The change is that of weights and biases by all steps.
    """
    weights = [array.astype(np.float64) for array in own.weights]
    biases = [array.astype(np.float64) for array in own.biases]
    for rows in own.order:
        x = own.pixels[rows] * (1 / 255)
        step = gradient(weights, biases, x, own.classes[rows])
        if table == "gradient":
            return step
        for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            weight -= RATE * step[2 * number]
            bias -= RATE * step[2 * number + 1]
    before = [array for pair in zip(own.weights, own.biases, strict=True) for array in pair]
    after = [array for pair in zip(weights, biases, strict=True) for array in pair]
    return [new - old for new, old in zip(after, before, strict=True)]


def case_of(request: dict[str, Any]) -> Case:
    """Return the case that a request names."""
    own: Any = request | {"sizes": tuple(request["sizes"])}
    return Case(**own)


@functools.lru_cache(maxsize=1)
def examples(n_examples: int, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return bytes (N, D) and classes (N,): the same for all cases of a suite."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 256, (n_examples, inputs), np.uint8)
    return pixels, rng.integers(outputs, size=n_examples).astype(np.int32)


def problem(case: Case) -> Problem:
    """Return the arrays of a case."""
    pixels, classes = examples(case.n_examples, case.sizes[0], case.sizes[-1])
    rng = np.random.default_rng(1)
    weights, biases = [], []
    for n_in, n_out in zip(case.sizes[:-1], case.sizes[1:], strict=True):
        weights.append((rng.normal(size=(n_out, n_in)) * n_in**-0.5).astype(np.float32))
        biases.append((rng.normal(size=n_out) * 0.1).astype(np.float32))
    rows = case.steps * case.batch_size
    epochs = -(-rows // case.n_examples)
    order = np.tile(rng.permutation(case.n_examples), epochs)[:rows].astype(np.int32)
    order = order.reshape(case.steps, case.batch_size)
    return Problem(case, pixels, classes, weights, biases, order)
