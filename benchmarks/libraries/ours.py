"""jaxmlp: the program that `fit` runs, and our gradient in the bare scan of the others."""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlp
from benchmarks.libraries import Trainer
from benchmarks.libraries.compiled import arrays, called, scanned
from benchmarks.problems import BATCH, HIDDEN, PEAK, RATE, SMOOTHING, Problem
from jaxmlp.batch import Batch, mean_gradient, pass_batch
from jaxmlp.evaluation import padded_batch
from jaxmlp.network import Layer
from jaxmlp.scaling import PIXELS
from jaxmlp.training.orders import bucket
from jaxmlp.training.regularization import Regularization
from jaxmlp.training.settings import Settings
from jaxmlp.training.snapshots import first_snapshot
from jaxmlp.training.steps import run_steps


def layers(problem: Problem) -> tuple[Layer, ...]:
    """Return the initial parameters."""
    pairs = zip(problem.weights, problem.biases, strict=True)
    return tuple(Layer(jnp.array(weight), jnp.array(bias)) for weight, bias in pairs)


def fit(problem: Problem, device: str) -> Trainer:
    """Return the compiled epoch of `jaxmlp.fit`, which sums up loss and accuracy as well."""
    case = problem.case
    network = jaxmlp.Network(case.sizes, "relu")
    settings = Settings(optimizer="sgd", learning_rate=RATE, batch_size=case.batch_size)
    snapshot = first_snapshot(network, layers(problem), settings)
    rows = bucket(case.n_examples)
    weights = np.ones(case.n_examples, np.float32)
    examples = jax.device_put(padded_batch(problem.pixels, problem.classes, weights, rows))
    order = jax.device_put(problem.order.reshape(-1))
    rates = jax.device_put(np.full(case.steps, RATE, np.float32))
    scaling = jax.device_put(jax.tree.map(np.float32, PIXELS))
    carry: Any = snapshot.state, snapshot.progress
    place = {"first": np.int32(0), "end": np.int32(case.steps), "before": np.int32(0)}

    def steps(place: Any) -> None:
        nonlocal carry
        carry = jax.block_until_ready(
            run_steps(
                network, *carry, examples, order, rates, Regularization(), scaling, None, place,
                optimizer=settings.transformation, batch_size=case.batch_size,
                dtype=np.dtype(np.float32),
            )
        )  # fmt: skip

    begin = time.perf_counter()
    steps(place | {"end": np.int32(0)})
    compiling = time.perf_counter() - begin
    return Trainer(lambda: steps(place), lambda: arrays(carry[0].params), compiling)


def scan(problem: Problem, device: str) -> Trainer:
    """Return the same scan as `jax_grad.scan`, with our gradient in the place of jax.grad's."""
    network = jaxmlp.Network(problem.case.sizes, "relu")
    optimizer = optax.sgd(RATE)
    pixels, classes, order = jax.device_put((problem.pixels, problem.classes, problem.order))

    def run(params: Any, state: Any, pixels: Any, classes: Any, order: Any) -> Any:
        def step(carry: Any, rows: Any) -> Any:
            params, state = carry
            inputs = pixels[rows].astype(jnp.float32) * (1 / 255)
            result = pass_batch(
                network, params, Batch(inputs, classes[rows], None), finite_rows=True
            )
            gradient: Any = mean_gradient(network, params, result, None)
            updates, state = optimizer.update(gradient, state, params)
            moved: Any = optax.apply_updates(params, updates)
            return (moved, state), jnp.mean(result.losses)

        return jax.lax.scan(step, (params, state), order)

    params = layers(problem)
    return scanned(run, params, optimizer.init(params), (pixels, classes, order))  # pyright: ignore[reportArgumentType]


def gradient(problem: Problem, device: str) -> Trainer:
    """Return calls of `jaxmlp.loss_and_gradient` with the first batch."""
    network = jaxmlp.Network(problem.case.sizes, "relu")
    return called(jax.jit(partial(jaxmlp.loss_and_gradient, network)), layers(problem), problem)


def accurate(data: Any, seed: int, epochs: int, device: str) -> float:
    """Return the accuracy on the test images after training with `jaxmlp.fit`."""
    network = jaxmlp.Network((784, HIDDEN, 10), "relu")
    params = jaxmlp.init(network, jax.random.key(seed))
    result = jaxmlp.fit(
        network, params, data["x"], data["t"], key=jax.random.key(seed + 1), optimizer="adam",
        learning_rate=PEAK, schedule="one_cycle", label_smoothing=SMOOTHING, batch_size=BATCH,
        epochs=epochs, scaling=PIXELS,
    )  # fmt: skip
    outputs = jaxmlp.predictions(network, result.params, data["test_x"], scaling=PIXELS)
    return float(np.mean(np.argmax(np.asarray(outputs), axis=1) == data["test_t"]))
