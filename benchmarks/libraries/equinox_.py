"""Equinox: all steps as one scan over the arrays of the model."""

from typing import Any

import equinox as eqx  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp
import optax

from benchmarks.libraries import Trainer
from benchmarks.libraries.compiled import called, scanned
from benchmarks.problems import RATE, Problem


class MLP(eqx.Module):
    """The network (`eqx.nn.MLP` has hidden layers of one width, as here, and the same cost)."""

    layers: list[eqx.nn.Linear]

    def __call__(self, hidden: Any) -> Any:
        """Return the logits of one example."""
        for layer in self.layers[:-1]:
            hidden = jax.nn.relu(layer(hidden))
        return self.layers[-1](hidden)


def network(problem: Problem) -> MLP:
    """Return the network with the initial weights."""
    layers = []
    for weight, bias in zip(problem.weights, problem.biases, strict=True):
        n_out, n_in = weight.shape
        layer = eqx.nn.Linear(n_in, n_out, key=jax.random.key(0))
        layers.append(
            eqx.tree_at(
                lambda layer: (layer.weight, layer.bias),
                layer,
                (jnp.array(weight), jnp.array(bias)),
            )
        )
    return MLP(layers)


@eqx.filter_value_and_grad
def mean_loss(model: Any, inputs: Any, classes: Any) -> Any:
    """Return the mean cross-entropy of a batch, and its gradient."""
    logits = jax.vmap(model)(inputs)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, classes))


def gradient(problem: Problem, device: str) -> Trainer:
    """Return calls of the filtered gradient with the first batch."""
    arrays_of, static = eqx.partition(network(problem), eqx.is_array)

    @jax.jit
    def of_arrays(params: Any, inputs: Any, classes: Any) -> Any:
        return mean_loss(eqx.combine(params, static), inputs, classes)

    return called(of_arrays, arrays_of, problem)


def scan(problem: Problem, device: str) -> Trainer:
    """Return all steps as one compiled scan, bytes scaled in the step."""
    arrays_of, static = eqx.partition(network(problem), eqx.is_array)
    optimizer = optax.sgd(RATE)
    data = jax.device_put((problem.pixels, problem.classes, problem.order))

    def run(params: Any, state: Any, pixels: Any, classes: Any, order: Any) -> Any:
        def step(carry: Any, rows: Any) -> Any:
            params, state = carry
            inputs = pixels[rows].astype(jnp.float32) * (1 / 255)
            loss, gradient = mean_loss(eqx.combine(params, static), inputs, classes[rows])
            updates, state = optimizer.update(gradient, state, params)
            return (eqx.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (params, state), order)

    return scanned(run, arrays_of, optimizer.init(arrays_of), data)
