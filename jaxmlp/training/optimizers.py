"""The table of optimisers: optax's, each built once and with its learning rate as data.

A transformation is a static argument of the compiled epoch, so it must be the same object for every
learning rate, or each would compile anew; `optax.inject_hyperparams` keeps the rate in the state.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from jaxmlp.validation import check_name

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": partial(optax.sgd, momentum=0.9),
    "nesterov": partial(optax.sgd, momentum=0.9, nesterov=True),
    "adagrad": optax.adagrad,
    "adam": optax.adam,
    "adamw": optax.adamw,
    "lamb": optax.lamb,
    "lion": optax.lion,
    "nadam": optax.nadam,
    "radam": optax.radam,
    "rmsprop": optax.rmsprop,
}
"""Name → optax's constructor, with optax's defaults; momentum is 0.9."""


@cache
def optimizer_named(name: str) -> optax.GradientTransformation:
    """Return the one transformation of that name, its learning rate a part of its state.

    Raises:
        ValueError: An unknown name, with the nearest one.
    """
    check_name("optimizer", name, OPTIMIZERS)

    def build(learning_rate: ArrayLike) -> optax.GradientTransformation:
        return OPTIMIZERS[name](learning_rate)

    return optax.inject_hyperparams(build)(learning_rate=0.0)


def with_learning_rate(state: Any, learning_rate: Array) -> Any:
    """Return the state of an `optimizer_named` transformation with another learning rate ()."""
    dtype = state.hyperparams["learning_rate"].dtype
    return state._replace(hyperparams={"learning_rate": learning_rate.astype(dtype)})


SCHEDULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "constant": np.ones_like,
    "cosine": lambda done: (1 + np.cos(np.pi * done)) / 2,
}
"""Name → the factor on the learning rate as a function of the fraction of training done."""
