"""The rules of the stochastic solvers: scikit-learn's "sgd" and "adam", ours, and any of optax."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxmlp.network import Parameters
from jaxmlp.training.optimizers import OPTIMIZERS, optimizer_named, with_numbers


class Solver(NamedTuple):
    """What is compiled in: "sgd", "adam", a name of `OPTIMIZERS`, or a transformation of optax.

    "sgd" and "adam" are scikit-learn's: the momentum is of steps, the learning rate included, and
    ε is added to the root of the second moment as it is, not corrected for its bias.
    """

    rule: str | optax.GradientTransformation
    nesterov: bool = True

    def transformation(self, numbers: dict[str, Any], steps: Any) -> optax.GradientTransformation:
        """Return the transformation with its numbers, for the step after so many."""
        if self.rule == "sgd":
            momentum = optax.trace(numbers["momentum"], nesterov=self.nesterov)
            return optax.chain(optax.scale(-1 * numbers["learning_rate"]), momentum)
        if self.rule == "adam":
            return adam(numbers, steps)
        return optimizer_named(self.rule) if isinstance(self.rule, str) else self.rule

    def init(self, params: Parameters) -> Any:
        """Return the optimiser's first state."""
        if not isinstance(self.rule, str):
            return self._first_of_optax(self.rule, params)
        if self.rule not in ("sgd", "adam"):
            return self.transformation({}, 0).init(params)  # pyright: ignore[reportArgumentType]
        # On the host, and not traced: as arrays of JAX they would be eight small programs.
        if self.rule == "adam":
            return Moments(_zeros(params), _zeros(params))
        return optax.ScaleState(), optax.TraceState(_zeros(params))

    def _first_of_optax(self, rule: optax.GradientTransformation, params: Parameters) -> Any:
        """Return the first state of a transformation, which is to need no more than the gradient.

        Raises:
            ValueError: It needs more, such as the loss.
        """
        try:
            state, update = rule.init(params), rule.update  # pyright: ignore[reportArgumentType]
            jax.eval_shape(update, params, state, params)
        except (TypeError, ValueError, AttributeError) as error:  # each asks in its own way
            raise ValueError(
                "solver: expected a transformation of optax that needs the gradient alone, got one "
                f"whose update cannot be called with it: {error}"
            ) from error
        return state

    def update(self, gradient: Any, state: Any, params: Any, numbers: Any, steps: Any) -> Any:
        """Return what to add to the parameters, and the state after it."""
        if self.rule in OPTIMIZERS and self.rule not in ("sgd", "adam"):
            state = with_numbers(state, {"learning_rate": numbers["learning_rate"]})
        return self.transformation(numbers, steps).update(gradient, state, params)


def _zeros(params: Parameters) -> Any:
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)


class Moments(NamedTuple):
    """The state of `adam`: running means of the gradient and of its square."""

    first: Parameters
    second: Parameters


def adam(numbers: dict[str, Any], steps: Any) -> optax.GradientTransformation:
    """Return scikit-learn's Adam: the bias of both moments is corrected in the learning rate.

    ε is then relative to the uncorrected second moment, unlike in `optax.adam`; and an element
    takes one division and one root.
    """
    beta_1, beta_2 = numbers["beta_1"], numbers["beta_2"]
    rate = numbers["learning_rate"] * jnp.sqrt(1 - beta_2 ** (steps + 1))
    rate = rate / (1 - beta_1 ** (steps + 1))

    def init(params: Any) -> Any:
        return Moments(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params

        def moment(gradient: Array, before: Array, name: str) -> Array:
            return numbers[f"1 - {name}"] * gradient + numbers[name] * before

        first = jax.tree.map(partial(moment, name="beta_1"), updates, state.first)
        squares = jax.tree.map(jnp.square, updates)
        second = jax.tree.map(partial(moment, name="beta_2"), squares, state.second)

        def change(first: Array, second: Array) -> Array:
            return -rate * first / (jnp.sqrt(second) + numbers["epsilon"])

        return jax.tree.map(change, first, second), Moments(first, second)

    return optax.GradientTransformation(init, update)
