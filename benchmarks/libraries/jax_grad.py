"""jax.grad of a plain loss and optax: one compiled scan, and a loop over compiled steps."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.libraries import Trainer
from benchmarks.libraries.compiled import arrays, called, scanned
from benchmarks.problems import BATCH, CLASSES, HIDDEN, PEAK, RATE, SMOOTHING, Problem


def initial(problem: Problem) -> Any:
    """Return the parameters as a list of pairs."""
    pairs = zip(problem.weights, problem.biases, strict=True)
    return [(jnp.array(weight), jnp.array(bias)) for weight, bias in pairs]


def mean_loss(params: Any, inputs: Any, classes: Any) -> Any:
    """Return the mean cross-entropy of a batch."""
    hidden = inputs
    for weight, bias in params[:-1]:
        hidden = jax.nn.relu(hidden @ weight.T + bias)
    weight, bias = params[-1]
    logits = hidden @ weight.T + bias
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, classes))


def scan(problem: Problem, device: str) -> Trainer:
    """Return all steps as one compiled scan, bytes scaled in the step."""
    optimizer = optax.sgd(RATE)
    data = jax.device_put((problem.pixels, problem.classes, problem.order))

    def run(params: Any, state: Any, pixels: Any, classes: Any, order: Any) -> Any:
        def step(carry: Any, rows: Any) -> Any:
            params, state = carry
            inputs = pixels[rows].astype(jnp.float32) * (1 / 255)
            loss, gradient = jax.value_and_grad(mean_loss)(params, inputs, classes[rows])
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (params, state), order)

    params = initial(problem)
    return scanned(run, params, optimizer.init(params), data)


def loop(problem: Problem, device: str) -> Trainer:
    """Return a Python loop over a compiled step, the data on the device."""
    optimizer = optax.sgd(RATE)
    inputs, classes, order = jax.device_put((problem.inputs, problem.classes, problem.order))

    def step(params: Any, state: Any, inputs: Any, classes: Any, order: Any, number: Any) -> Any:
        rows = order[number]
        loss, gradient = jax.value_and_grad(mean_loss)(params, inputs[rows], classes[rows])
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = initial(problem)
    state = optimizer.init(params)
    begin = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=(0, 1))
    compiled.lower(params, state, inputs, classes, order, 0).compile()
    compiling = time.perf_counter() - begin

    def steps() -> None:
        nonlocal params, state
        loss = None
        for number in range(problem.case.steps):
            params, state, loss = compiled(params, state, inputs, classes, order, number)
        jax.block_until_ready((params, loss))

    return Trainer(steps, lambda: arrays(params), compiling)


def gradient(problem: Problem, device: str) -> Trainer:
    """Return calls of jax.value_and_grad with the first batch."""
    return called(jax.jit(jax.value_and_grad(mean_loss)), initial(problem), problem)


def smoothed_loss(logits: Any, classes: Any) -> Any:
    """Return the mean cross-entropy with smoothed labels."""
    targets = optax.smooth_labels(jax.nn.one_hot(classes, CLASSES), SMOOTHING)
    return jnp.mean(optax.softmax_cross_entropy(logits, targets))


def orders(seed: int, n_examples: int, epochs: int) -> np.ndarray:
    """Return the rows of every step (steps, B) of some epochs, the ragged last batches dropped."""
    rng = np.random.default_rng(seed)
    whole = n_examples // BATCH * BATCH
    each = [rng.permutation(n_examples)[:whole].reshape(-1, BATCH) for _ in range(epochs)]
    return np.concatenate(each).astype(np.int32)


def accurate(data: Any, seed: int, epochs: int, device: str) -> float:
    """Return the accuracy on the test images after one compiled scan of all steps."""
    order = orders(seed, len(data["x"]), epochs)
    rng = np.random.default_rng(seed)
    sizes = (784, HIDDEN, CLASSES)
    params: Any = [
        (rng.normal(size=(m, n)).astype(np.float32) * np.float32((2 / n) ** 0.5), np.zeros(m, "f"))
        for n, m in zip(sizes[:-1], sizes[1:], strict=True)
    ]
    optimizer = optax.adam(optax.cosine_onecycle_schedule(len(order), PEAK))

    def logits_of(params: Any, pixels: Any) -> Any:
        (w, b), (v, c) = params
        return jax.nn.relu(pixels.astype(jnp.float32) * (1 / 255) @ w.T + b) @ v.T + c

    @jax.jit
    def train(params: Any, x: Any, t: Any, order: Any) -> Any:
        def step(carry: Any, rows: Any) -> Any:
            params, state = carry
            gradient = jax.grad(lambda p: smoothed_loss(logits_of(p, x[rows]), t[rows]))(params)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), order)[0][0]

    @jax.jit
    def accuracy(params: Any, x: Any, t: Any) -> Any:
        return jnp.mean(jnp.argmax(logits_of(params, x), axis=1) == t)

    params = train(params, data["x"], data["t"], order)
    return float(accuracy(params, data["test_x"], data["test_t"]))
