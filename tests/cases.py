"""The networks, draws and measures that the tests of several rooms share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlp import Network
from jaxmlp.verification import cases

N_EXAMPLES = 9  # no layer of the cases has this width

# A correct backward differs from jax.grad by a few float64 roundings (5e-16 of a leaf's largest
# entry); 1e-13 leaves room for the sums, and DESIGN.md names it.
FLOAT64_BOUND = 1e-13


class Case(NamedTuple):
    """A network to test, with the kind of its targets and with sample weights or none."""

    name: str
    network: Network
    classes: bool = False
    weighted: bool = False


# Every activation, every loss, depths 0 to 4; the widths of a network differ, so that no transpose
# can hide, except in "equal widths", where no shape error can help.
CASES = [
    Case("paper", Network((7, 5, 3), bias=False), classes=True),
    Case("no hidden layer", Network((5, 3)), classes=True, weighted=True),
    Case("distributions", Network((4, 6, 5, 3), ("tanh", "relu")), weighted=True),
    Case(
        "binary",
        Network((5, 7, 4, 2), ("elu", "leaky_relu"), "sigmoid_binary_cross_entropy"),
        weighted=True,
    ),
    Case("gelu", Network((3, 6, 4), "gelu", "squared_error", bias=False), weighted=True),
    Case("poisson", Network((6, 4, 2), "gelu_tanh", "poisson")),
    Case("one output", Network((4, 3, 1), "identity", "squared_error"), weighted=True),
    Case(
        "deep", Network((4, 6, 5, 7, 3, 2), ("softplus", "silu", "tanh", "sigmoid")), classes=True
    ),
    Case("equal widths", Network((4, 4, 4, 4), "relu"), classes=True, weighted=True),
]


class Draw(NamedTuple):
    """Random parameters and one batch, NumPy float64; `weights` (N,) or None."""

    params: Any
    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None


def draw(case: Case, seed: int = 0, n_examples: int = N_EXAMPLES) -> Draw:
    """Return weights N(0, 1/fan_in), inputs N(0, 1) and targets that suit the loss.

    Units with a kink have some preactivations of exactly 0; sample weights are unequal, the second
    is 0; distributions do not sum to 1; with one output the targets are (N,).
    """
    rng = np.random.default_rng([seed, len(case.network.sizes)])
    stacked = cases.draw_params(case.network, 1, rng)
    params = jax.tree.map(lambda leaf: leaf[0], stacked)
    inputs = cases.draw_inputs(case.network, (n_examples,), rng)
    targets = cases.draw_targets(case.network, (n_examples,), case.classes, rng)
    if case.network.sizes[-1] == 1:
        targets = targets[:, 0]
    weights = cases.draw_weights((n_examples,), rng) if case.weighted else None
    return Draw(params, inputs, targets, weights)


def in_dtype(tree: Any, dtype: Any) -> Any:
    """Return the tree of arrays with every float in the dtype; integers stay as they are."""

    def convert(leaf: Any) -> jax.Array:
        array = jnp.asarray(leaf)
        return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array

    return jax.tree.map(convert, tree)


def distance(got: Any, expected: Any, scale: Any = 0.0) -> float:
    """Return max|got − expected| over max(max|expected|, max(scale)); infinite where one is NaN.

    `scale` holds the same sums with the absolute values of their terms, where terms may cancel.
    """
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape, f"shape {got.shape}, expected {expected.shape}"
    if got.size == 0:
        return 0.0
    worst = np.max(np.abs(got - expected))
    if worst == 0:
        return 0.0
    largest = max(np.max(np.abs(expected)), np.max(scale))
    return float(worst / largest) if np.isfinite(worst) and largest > 0 else float("inf")


def assert_close(got: Any, expected: Any, bound: float, scale: Any = None) -> None:
    """Fail unless the trees agree within the bound, by `distance`; every failing leaf is listed."""
    scales = jax.tree.map(lambda _: 0.0, expected) if scale is None else scale
    failures = []
    leaves = zip(
        jax.tree_util.tree_leaves_with_path(got),
        jax.tree.leaves(expected),
        jax.tree.leaves(scales),
        strict=True,
    )
    for (path, ours), theirs, size in leaves:
        measured = distance(ours, theirs, size)
        if not measured <= bound:
            name = jax.tree_util.keystr(path)
            failures.append(f"{name}: {measured:.1e} > {bound:.0e}\n{ours}\nexpected\n{theirs}")
    assert not failures, "\n".join(failures)


def all_zero(tree: Any) -> bool:
    """Tell whether every entry of every leaf is exactly 0."""
    return all(bool(np.all(np.asarray(leaf) == 0)) for leaf in jax.tree.leaves(tree))


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Yield a list that grows by one entry for every program that XLA compiles."""
    events: list[str] = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if "backend_compile" in event:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
