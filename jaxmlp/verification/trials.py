"""The networks and the draws of every row of the table, by number: any trial can be repeated."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlp.activations import ACTIVATIONS
from jaxmlp.losses import LOSSES
from jaxmlp.validation import check_name
from jaxmlp.verification.cases import Case, Draws, grid, network_of, sample
from jaxmlp.verification.evidence import gather, in_dtype, make_draws, our_gradients

FLOAT64 = np.dtype(np.float64)
FLOAT32 = np.dtype(np.float32)
HALVES = {"bfloat16": np.dtype(jnp.bfloat16), "float16": np.dtype(np.float16)}

# Row → the stream of random numbers that its draws come from; the grid's precisions share theirs.
_STREAMS = {
    "float64": 0,
    "float32": 0,
    "bfloat16": 0,
    "float16": 0,
    "differences": 2,
    "numpy": 3,
    "contractions": 4,
    "curvature": 9,
}

# How far from a kink all units keep, where a step or a rounding could cross it.
_MARGINS = {
    **dict.fromkeys(("float64", "float32"), 2e-5),
    **dict.fromkeys(("bfloat16", "float16"), 5e-2),
    "differences": 1e-3,
}


class Settings(NamedTuple):
    """What a run of the table depends on."""

    trials: int = 20
    seed: int = 0
    full: bool = False


def cases_of(row: str, full: bool) -> list[Case]:
    """Return the cases of a row; `full` matters to the grid alone."""
    if row in HALVES:
        return sample()
    if row in ("differences", "numpy"):
        return sample("highest")
    if row == "contractions":
        return [
            Case(network_of(activation, loss, depth, bias, "highest"), classes, weighted)
            for activation, loss, depth, bias, classes, weighted in _CONTRACTED
        ]
    if row == "curvature":
        return _curved(full)
    return grid(full, "highest")


def _curved(full: bool) -> list[Case]:
    """Return every activation × loss, or each activation once, with the depths 0 … 5 in turn."""
    cases = []
    for loss_number, loss in enumerate(LOSSES):
        for number, activation in enumerate(ACTIVATIONS):
            if not full and number % len(LOSSES) != loss_number:
                continue
            turn = number + 3 * loss_number
            network = network_of(activation, loss, turn % 6, turn % 4 < 2, "highest")
            cases.append(Case(network, turn % 3 != 0, turn % 4 in (0, 3)))
    return cases


_CONTRACTED = (
    ("sigmoid", "softmax_cross_entropy", 1, True, True, False),
    ("relu", "softmax_cross_entropy", 3, True, False, True),
    ("tanh", "sigmoid_binary_cross_entropy", 2, False, False, True),
    ("gelu", "squared_error", 1, True, False, True),
    ("silu", "poisson", 2, True, False, False),
    ("identity", "softmax_cross_entropy", 0, False, True, True),
)


def draws_of(row: str, number: int, settings: Settings) -> Draws:
    """Return the draws of case `number` of a row.

    Those of the grid are float32 numbers, so that its precisions compute with the same ones.
    """
    case = cases_of(row, settings.full)[number]
    stream = (
        [settings.seed, number] if _STREAMS[row] == 0 else [settings.seed, _STREAMS[row], number]
    )
    trials = settings.trials
    if row in ("differences", "numpy"):
        trials = -(-trials // len(cases_of(row, settings.full)))  # of all cases together
    draws = make_draws(
        case.network,
        trials,
        np.random.default_rng(stream),
        classes=case.classes,
        weighted=case.weighted,
        zeros=row != "differences",
        margin=_MARGINS.get(row, 0.0),
    )
    return in_dtype(in_dtype(draws, FLOAT32), FLOAT64) if _STREAMS[row] == 0 else draws


def call_of(row: str, number: int, trial: int, settings: Settings) -> str:
    """Return the call of `repeat` that yields this trial."""
    call = (
        f"jaxmlp.verification.repeat({row!r}, case={number}, trial={trial}, "
        f"trials={settings.trials}, seed={settings.seed}"
    )
    return call + (", full=True)" if settings.full else ")")


def repeat(
    row: str, *, case: int, trial: int, trials: int, seed: int, full: bool = False
) -> dict[str, Any]:
    """Return one trial of the table, as its report names it.

    Args:
        row: "float64", "float32", "bfloat16", "float16", "contractions", "curvature",
            "differences" or "numpy".
        case: The number of the architecture.
        trial: The draw.
        trials: How many draws the table was made with.
        seed: The seed that it was made with.
        full: Whether all architectures were run.

    Returns:
        The `network`, the `draw` (params, inputs, targets, weights) in float64, and `ours` and
        `oracle`, each (loss, gradient of the mean loss).

    Raises:
        ValueError: Another row, with the nearest one, or a case or trial that there is not.
    """
    check_name("row", row, _STREAMS)
    settings = Settings(trials, seed, full)
    cases = cases_of(row, full)
    if not 0 <= case < len(cases):
        raise ValueError(f"case: expected 0 to {len(cases) - 1}, got {case}")
    network = cases[case].network
    draws = draws_of(row, case, settings)
    if not 0 <= trial < len(draws.inputs):
        raise ValueError(f"trial: expected 0 to {len(draws.inputs) - 1}, got {trial}")
    evidence = gather(network, draws, HALVES.get(row, FLOAT64), FLOAT64)
    if row == "float32":
        evidence = evidence._replace(ours=our_gradients(network, draws, FLOAT32))
    return {
        "network": network,
        "draw": draws.trial(trial),
        "ours": jax.tree.map(lambda leaf: leaf[trial], evidence.ours),
        "oracle": jax.tree.map(lambda leaf: leaf[trial], evidence.oracle),
    }


def in_parallel(function: Callable[[int], Any], n_cases: int) -> list[Any]:
    """Map over cases on all cores: compiling, most of the time, runs outside Python's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, range(n_cases)))
