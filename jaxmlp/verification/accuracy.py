"""How many digits are right in float32, against mpmath at 50 digits: where y − t would cancel.

Judged are the loss and δ of softmax cross-entropy with class indices and of binary cross-entropy
with t in {0, 1}, and σ, σ′, tanh′ and softplus, at arguments up to ±1e4. The same quantities from
`jax.nn` and `jax.grad` are measured beside them, and not judged.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlp.activations import ACTIVATIONS
from jaxmlp.losses import LOSSES
from jaxmlp.verification import oracles
from jaxmlp.verification.comparison import Difference, compare

BOUND = 1e-5
DIGITS = 50
_CLASSES = 10
_SMALLEST = float(np.finfo(np.float32).tiny)
_SCALES = (1.0, 10.0, 100.0, 1e3, 1e4)


class Measured(NamedTuple):
    """The worst relative error of a quantity: ours, automatic differentiation's, and where ours."""

    name: str
    ours: Difference
    automatic: Difference
    argument: str


def measure(trials: int, seed: int) -> Iterator[Measured]:
    """Yield the worst error of every quantity over about `trials` random arguments."""
    import mpmath

    rng = np.random.default_rng([seed, 6])
    with mpmath.workdps(DIGITS), jax.enable_x64(False):
        z = _arguments(rng, (trials,))
        for name, (ours, automatic, exact) in _scalar_functions(mpmath).items():
            values = np.array([exact(mpmath.mpf(float(x))) for x in z], object)
            yield _measured(name, z, _mapped(ours, z), _mapped(automatic, z), values)
        yield from _binary(mpmath, z, rng)
        rows = _arguments(rng, (trials, _CLASSES))
        rows[2:3] = _BORDER  # its label is the largest logit's
        yield from _softmax(mpmath, rows, rng)


def _arguments(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 arguments of all sizes up to 1e4, the extremes among them."""
    scales = rng.choice(_SCALES, size=(shape[0], *(1,) * (len(shape) - 1)))
    values = np.clip(scales * rng.normal(size=shape), -1e4, 1e4)
    values.flat[: len(_EXTREMES)] = _EXTREMES[: values.size]
    return values.astype(np.float32)


# Each e^−87.6 is below float32's normal numbers, the sum of nine is not.
_BORDER = np.array([87.6] + [0] * (_CLASSES - 1), np.float32)
_EXTREMES = (0.0, -1e4, 1e4, 17.0, -17.0, 87.0, -87.0, 9.0, -9.0, 1e-6)


def _scalar_functions(mp: Any) -> dict[str, tuple[Callable[[Any], Any], ...]]:
    """Return name → (ours, automatic, exact) of the functions of one number."""

    def sigmoid(z: Any) -> Any:
        return 1 / (1 + mp.exp(-z))

    sigmoid_, tanh_ = ACTIVATIONS["sigmoid"], ACTIVATIONS["tanh"]
    return {
        "σ": (sigmoid_.function, jax.nn.sigmoid, sigmoid),
        "σ'": (sigmoid_.derivative, jax.grad(jax.nn.sigmoid), lambda z: sigmoid(z) * sigmoid(-z)),
        "tanh'": (tanh_.derivative, jax.grad(jnp.tanh), lambda z: mp.sech(z) ** 2),
        "softplus": (
            ACTIVATIONS["softplus"].function,
            jax.nn.softplus,
            lambda z: mp.log1p(mp.exp(z)) if z < 0 else z + mp.log1p(mp.exp(-z)),
        ),
    }


def _binary(mp: Any, z: np.ndarray, rng: np.random.Generator) -> Iterator[Measured]:
    t = rng.integers(2, size=z.shape).astype(np.float32)
    loss = LOSSES["sigmoid_binary_cross_entropy"]

    def plain(z: Any, t: Any) -> Any:
        losses = oracles.example_losses("sigmoid_binary_cross_entropy", z[None, :], t[None, :])
        return losses[0]

    sign = [mp.mpf(float(-x if label else x)) for x, label in zip(z, t, strict=True)]
    value = np.array([x + mp.log1p(mp.exp(-x)) if x > 0 else mp.log1p(mp.exp(x)) for x in sign])
    delta = np.array(
        [(-1 if label else 1) / (1 + mp.exp(-x)) for x, label in zip(sign, t, strict=True)]
    )
    rows = z[:, None], t[:, None]
    yield _measured(
        "E of binary cross-entropy", z, _mapped(loss.value, *rows), _mapped(plain, *rows), value
    )
    yield _measured(
        "δ of binary cross-entropy",
        z,
        _mapped(loss.gradient, *rows)[:, 0],
        _mapped(jax.grad(plain), *rows)[:, 0],
        delta,
    )


def _softmax(mp: Any, z: np.ndarray, rng: np.random.Generator) -> Iterator[Measured]:
    """Half of the labels are the largest logit's: the confident, right classifier."""
    right = np.argmax(z, axis=1)
    t = np.where(np.arange(len(z)) % 2 == 0, right, rng.integers(_CLASSES, size=len(z)))
    t = t.astype(np.int32)
    loss = LOSSES["softmax_cross_entropy"]

    def plain(z: Any, t: Any) -> Any:
        return oracles.example_losses("softmax_cross_entropy", z[None, :], t[None])[0]

    value, delta = [], []
    for row, label in zip(z, t, strict=True):
        exact = [mp.mpf(float(x)) for x in row]
        others = [mp.exp(x - exact[label]) for k, x in enumerate(exact) if k != label]
        value.append(mp.log1p(mp.fsum(others)))
        largest = max(exact)
        powers = [mp.exp(x - largest) for x in exact]
        total = mp.fsum(powers)
        y = [power / total for power in powers]
        y[label] = -mp.fsum(y[:label] + y[label + 1 :])
        delta.append(y)
    yield _measured(
        "E of softmax", z, _mapped(loss.value, z, t), _mapped(plain, z, t), np.array(value)
    )
    yield _measured(
        "δ of softmax",
        z,
        _mapped(loss.gradient, z, t),
        _mapped(jax.grad(plain), z, t),
        np.array(delta),
    )


def _mapped(function: Callable[..., Any], *arguments: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(function))(*arguments))


def _measured(
    name: str, z: np.ndarray, ours: np.ndarray, automatic: np.ndarray, exact: np.ndarray
) -> Measured:
    mine = _worst(name, ours, exact)
    return Measured(
        name, mine, _worst(name, automatic, exact), str(np.atleast_1d(z[mine.place[0]]).tolist())
    )


def _worst(name: str, got: np.ndarray, exact: np.ndarray) -> Difference:
    """Return the entry with the largest relative error.

    Below the smallest normal number float32 has fewer digits or none: there the error is taken
    relative to that number.
    """
    worst = compare(name, np.zeros(1), np.zeros(1))
    for place in np.ndindex(got.shape):
        value, truth = float(got[place]), exact[place]
        scale = max(abs(truth), _SMALLEST)
        size = float(abs(value - truth) / scale) if np.isfinite(value) else np.inf
        if abs(truth) < _SMALLEST and np.isfinite(value) and abs(value) <= _SMALLEST:
            size = 0.0  # flushed to 0, or as good
        if size > worst.size or worst.place == (0,) and worst.size == 0:
            worst = Difference(size, name, place, value, float(truth))
    return worst
