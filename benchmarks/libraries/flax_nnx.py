"""Flax NNX: a loop over a jitted step, the graph's nodes cached as its performance guide says.

And its functional form: all steps as one scan over what `nnx.split` yields.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx  # pyright: ignore[reportMissingImports]

from benchmarks.libraries import Trainer
from benchmarks.libraries.jax_grad import orders, smoothed_loss
from benchmarks.problems import CLASSES, HIDDEN, PEAK, RATE, Problem


class MLP(nnx.Module):
    """The network."""

    def __init__(self, sizes: tuple[int, ...], rngs: Any) -> None:
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        self.layers = nnx.List([nnx.Linear(n_in, n_out, rngs=rngs) for n_in, n_out in pairs])

    def __call__(self, hidden: Any) -> Any:
        """Return the logits."""
        for layer in self.layers[:-1]:
            hidden = nnx.relu(layer(hidden))
        return self.layers[-1](hidden)


def model_of(problem: Problem) -> MLP:
    """Return the network with the initial weights."""
    model = MLP(problem.case.sizes, nnx.Rngs(0))
    for layer, weight, bias in zip(model.layers, problem.weights, problem.biases, strict=True):
        layer.kernel[...] = jax.device_put(np.ascontiguousarray(weight.T))
        layer.bias[...] = jax.device_put(bias)
    return model


def arrays_of(model: MLP) -> list[np.ndarray]:
    """Return weights (out, in) and biases, layer by layer."""
    return [
        np.asarray(array)
        for layer in model.layers
        for array in (layer.kernel[...].T, layer.bias[...])
    ]


def mean_loss(model: Any, inputs: Any, classes: Any) -> Any:
    """Return the mean cross-entropy of a batch."""
    losses = optax.softmax_cross_entropy_with_integer_labels(model(inputs), classes)
    return losses.mean()


def scan(problem: Problem, device: str) -> Trainer:
    """Return all steps as one compiled scan, bytes scaled in the step."""
    model = model_of(problem)
    optimizer = nnx.Optimizer(model, optax.sgd(RATE), wrt=nnx.Param)
    graph, state = nnx.split((model, optimizer))
    data = jax.device_put((problem.pixels, problem.classes, problem.order))

    def run(state: Any, pixels: Any, classes: Any, order: Any) -> Any:
        def step(state: Any, rows: Any) -> Any:
            model, optimizer = nnx.merge(graph, state)
            inputs = pixels[rows].astype(jnp.float32) * (1 / 255)
            loss, gradient = nnx.value_and_grad(mean_loss)(model, inputs, classes[rows])
            optimizer.update(model, gradient)
            return nnx.state((model, optimizer)), loss

        return jax.lax.scan(step, state, order)

    begin = time.perf_counter()
    compiled = jax.jit(run, donate_argnums=0).lower(state, *data).compile()
    compiling = time.perf_counter() - begin

    def steps() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(compiled(state, *data))

    return Trainer(steps, lambda: arrays_of(nnx.merge(graph, state)[0]), compiling)


def loop(problem: Problem, device: str) -> Trainer:
    """Return a Python loop over a jitted step."""
    model = model_of(problem)
    optimizer = nnx.Optimizer(model, optax.sgd(RATE), wrt=nnx.Param)
    inputs, classes, order = jax.device_put((problem.inputs, problem.classes, problem.order))

    @nnx.jit
    def step(model: Any, optimizer: Any, inputs: Any, classes: Any, order: Any, number: Any) -> Any:
        rows = order[number]
        loss, gradient = nnx.value_and_grad(mean_loss)(model, inputs[rows], classes[rows])
        optimizer.update(model, gradient)
        return loss

    cached = nnx.cached_partial(step, model, optimizer)

    def steps() -> None:
        loss = None
        for number in range(problem.case.steps):
            loss = cached(inputs, classes, order, number)
        jax.block_until_ready((loss, nnx.state(model)))

    return Trainer(steps, lambda: arrays_of(model))


def accurate(data: Any, seed: int, epochs: int, device: str) -> float:
    """Return the accuracy on the test images after a loop over a jitted step."""
    order = orders(seed, len(data["x"]), epochs)
    model = MLP((784, HIDDEN, CLASSES), nnx.Rngs(seed))
    schedule = optax.cosine_onecycle_schedule(len(order), PEAK)
    optimizer = nnx.Optimizer(model, optax.adam(schedule), wrt=nnx.Param)
    x, t, rows = jax.device_put((data["x"], data["t"], order))

    @nnx.jit
    def step(model: Any, optimizer: Any, x: Any, t: Any, order: Any, number: Any) -> None:
        inputs = x[order[number]].astype(jnp.float32) * (1 / 255)

        def mean_loss(model: Any) -> Any:
            return smoothed_loss(model(inputs), t[order[number]])

        optimizer.update(model, nnx.grad(mean_loss)(model))

    @nnx.jit
    def accuracy(model: Any, x: Any, t: Any) -> Any:
        return jnp.mean(jnp.argmax(model(x.astype(jnp.float32) * (1 / 255)), axis=1) == t)

    cached = nnx.cached_partial(step, model, optimizer)
    for number in range(len(order)):
        cached(x, t, rows, number)
    return float(accuracy(model, data["test_x"], data["test_t"]))
