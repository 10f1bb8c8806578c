"""The table of optimisers, all of them optax's, and of schedules of the learning rate.

A transformation is a static argument of the compiled epoch, so it must be the same object for every
number, or each would compile anew: `optax.inject_hyperparams` keeps the numbers in its state.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from jaxmlp.validation import check_name


class Optimizer(NamedTuple):
    """One of optax's optimisers: its constructor, and its settings that are data.

    Where it `decays` the weights itself, apart from the gradient, it takes the weight decay and the
    mask of what decays; otherwise the decay is added to the gradient.
    """

    build: Callable[..., optax.GradientTransformation]
    settings: tuple[str, ...] = ()
    decays: bool = False

    def defaults(self) -> dict[str, float]:
        """Return the default of every setting, optax's own."""
        return {name: _default(self.build, name) for name in self.settings}


@cache  # an ensemble asks for every member
def _default(build: Callable[..., optax.GradientTransformation], name: str) -> float:
    return float(inspect.signature(build).parameters[name].default)


_ADAM = ("b1", "b2", "eps")

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer(optax.sgd),
    "momentum": Optimizer(partial(optax.sgd, momentum=0.9), ("momentum",)),
    "nesterov": Optimizer(partial(optax.sgd, momentum=0.9, nesterov=True), ("momentum",)),
    "adagrad": Optimizer(optax.adagrad, ("eps",)),
    "adam": Optimizer(optax.adam, _ADAM),
    "adamw": Optimizer(optax.adamw, _ADAM, decays=True),
    "amsgrad": Optimizer(optax.amsgrad, _ADAM),
    "lamb": Optimizer(optax.lamb, _ADAM, decays=True),
    "lion": Optimizer(optax.lion, ("b1", "b2"), decays=True),
    "nadam": Optimizer(optax.nadam, _ADAM),
    "nadamw": Optimizer(optax.nadamw, _ADAM, decays=True),
    "radam": Optimizer(optax.radam, _ADAM),
    "rmsprop": Optimizer(optax.rmsprop, ("decay", "eps")),
}
"""Name → the optimiser, with optax's defaults; momentum is 0.9.

What is not among the settings is a constant of the program: which moments there are, Nesterov's
look-ahead (its own name), whether RMSprop is centred, where Adagrad's sum begins.
"""


def default_weight_decay(name: str) -> float:
    """Return the weight decay of an optimiser where none is given: optax's own, mostly 0."""
    optimizer = OPTIMIZERS[name]
    if not optimizer.decays:
        return 0.0
    return _default(optimizer.build, "weight_decay")


@cache
def optimizer_named(
    name: str, *, decaying: bool = False, clipping: bool = False
) -> optax.GradientTransformation:
    """Return the one transformation of that name, all its numbers a part of its state.

    The gradient is clipped first, then decayed (or the optimiser decays the weights itself); biases
    never decay.

    Args:
        name: A name of `OPTIMIZERS`.
        decaying: Whether the weights decay.
        clipping: Whether the gradient of a batch is clipped by its norm.

    Returns:
        The transformation; `with_numbers` gives its state the numbers.

    Raises:
        ValueError: An unknown name, with the nearest one.
    """
    check_name("optimizer", name, OPTIMIZERS)
    optimizer = OPTIMIZERS[name]

    numbers = {"learning_rate": 0.0, **optimizer.defaults()}
    if decaying:
        numbers["weight_decay"] = 0.0
    if clipping:
        numbers["clip_norm"] = 1.0

    def build(**settings: Any) -> optax.GradientTransformation:
        parts = []
        if clipping:
            parts.append(optax.clip_by_global_norm(settings.pop("clip_norm")))
        decay = settings.pop("weight_decay", 0.0)
        if optimizer.decays:
            settings |= {"weight_decay": decay, "mask": _weights}
        elif decaying:
            parts.append(optax.add_decayed_weights(decay, mask=_weights))
        return optax.chain(*parts, optimizer.build(**settings))

    # inject_hyperparams takes the names of the numbers from the signature.
    kind = inspect.Parameter.KEYWORD_ONLY
    build.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in numbers])  # pyright: ignore[reportFunctionMemberAccess]
    return optax.inject_hyperparams(build)(**numbers)


def _weights(params: Any) -> Any:
    """Return which leaves decay: those of rank 2, and so no bias."""
    return jax.tree.map(lambda leaf: leaf.ndim == 2, params)


def with_numbers(state: Any, numbers: Mapping[str, ArrayLike]) -> Any:
    """Return the state of an `optimizer_named` transformation with other numbers ()."""
    changed = dict(state.hyperparams)
    for name, number in numbers.items():
        dtype = changed[name].dtype
        changed[name] = number.astype(dtype) if isinstance(number, Array) else jax.device_put(
            np.asarray(number, dtype)
        )  # fmt: skip
    return state._replace(hyperparams=changed)


def within_a_loop(state: Any, before: Any) -> Any:
    """Return the state of an `optimizer_named` transformation after a step as a loop carries it on.

    The numbers are those of the state before, and so is the count of steps, which nothing reads
    there: what no step changes takes no time. `after_a_loop` sets both.
    """
    return state._replace(hyperparams=before.hyperparams, count=before.count)


def after_a_loop(state: Any, steps: ArrayLike, numbers: Mapping[str, ArrayLike]) -> Any:
    """Return the state after so many steps in a loop, at least one, with the last one's numbers."""
    return with_numbers(state._replace(count=state.count + steps), numbers)


_RISE, _START, _END = 0.3, 1 / 25, 1e-4 / 25  # optax.cosine_onecycle_schedule's defaults


def _one_cycle(done: np.ndarray) -> np.ndarray:
    rise = (1 + np.cos(np.pi * (1 - np.minimum(done / _RISE, 1)))) / 2
    fall = (1 + np.cos(np.pi * np.clip((done - _RISE) / (1 - _RISE), 0, 1))) / 2
    return np.where(done < _RISE, _START + (1 - _START) * rise, _END + (1 - _END) * fall)


SCHEDULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "constant": np.ones_like,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + np.cos(np.pi * done)) / 2,
    "one_cycle": _one_cycle,
}
"""Name → the factor on the learning rate as a function of the fraction of training done.

"one_cycle" rises from 1/25 within the first 0.3 and falls to 4e-6, both along a cosine.

References:
    Loshchilov, Hutter, SGDR: stochastic gradient descent with warm restarts, 2017 (cosine).
    Smith, Topin, Super-convergence, 2018 (one cycle).
"""


def learning_rates(
    learning_rate: float, schedule: str, warmup: float, steps: np.ndarray, total: int
) -> np.ndarray:
    """Return the learning rate of each step.

    Args:
        learning_rate: The largest one.
        schedule: A name of `SCHEDULES`.
        warmup: The fraction of training in which the rate grows from near 0 to the schedule's,
            linearly: step s of W gets (s + 1)/W of it.
        steps: (n,) numbers of steps, from 0.
        total: How many steps there are in all.

    Returns:
        (n,), in float64.
    """
    return learning_rate * rate_factors(schedule, warmup, steps, total)


def rate_factors(schedule: str, warmup: float, steps: np.ndarray, total: int) -> np.ndarray:
    """Return what part of the largest learning rate each step has; see `learning_rates`."""
    factors = SCHEDULES[schedule](np.asarray(steps) / total)
    if warmup:
        factors = factors * np.minimum((np.asarray(steps) + 1) / max(warmup * total, 1), 1)
    return factors
