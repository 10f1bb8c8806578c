"""The table that `jaxmlp verify` prints: what "equal" means, row by row, and whether it holds."""

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from jaxmlp.network import Network
from jaxmlp.verification import accuracy, agreement, witnesses
from jaxmlp.verification.cases import network_of
from jaxmlp.verification.checks import FLOAT64_BOUND, Judge
from jaxmlp.verification.comparison import NO_DIFFERENCE, Found, Row
from jaxmlp.verification.contractions import contractions_row
from jaxmlp.verification.diagnosis import MISTAKES, Mistake, backward_copy
from jaxmlp.verification.evidence import gather, make_draws
from jaxmlp.verification.second_order import second_order_row
from jaxmlp.verification.trials import FLOAT64, Settings

FLOAT32_BOUND = 5e-6
BFLOAT16_BOUND = 6e-2  # the worst of four seeds with 300 trials was 4.6e-2
FLOAT16_BOUND = 7e-3  # the worst of four seeds with 300 trials was 5.3e-3
NUMPY_BOUND = 1e-12
# A gradient of one example has no sum over a batch whose absolute values would be a scale, and its
# δ may be what an earlier sum left after cancelling: 4e-14 of twelve seeds with 300 trials.
CONTRACTIONS_BOUND = 1e-12
CURVATURE_BOUND = 1e-12


def _accuracy_row(settings: Settings) -> list[Found] | str:
    if importlib.util.find_spec("mpmath") is None:
        return 'needs mpmath: pip install "jaxmlp[verify]"'
    return [
        Found(
            measured.ours,
            measured.name,
            f"argument {measured.argument}",
            detail=f"{measured.name}: ours {measured.ours.size:.1e}, "
            f"jax.nn and jax.grad {measured.automatic.size:.1e}",
        )
        for measured in accuracy.measure(settings.trials, settings.seed)
    ]


def _faults_row(settings: Settings) -> list[Found]:
    """Return what became of every mistake, planted in a copy of the backward pass as a user's own.

    Each must be seen, and named. One whose products do not fit a network's shapes has its name on
    another network, where all widths are equal; one of a single output has it where there is one.
    """
    networks = (
        network_of("relu", "softmax_cross_entropy", 2),
        Network((5, 4, 4, 3), "relu"),
        Network((5, 4, 4, 1), "relu", loss="squared_error"),
    )
    planted = [*MISTAKES, Mistake("a factor 1.001", factor=1.001)]
    named: dict[str, bool] = dict.fromkeys((mistake.name for mistake in planted), False)
    missed: list[str] = []
    for network in networks:
        rng = np.random.default_rng([settings.seed, 5])
        draws = make_draws(network, _PLANTED_TRIALS, rng, weighted=True)
        judge = Judge(network, draws, gather(network, draws, FLOAT64))
        for mistake in planted:
            outcome = judge.users(_planted(judge, mistake))
            if mistake.name in outcome.faults and len(outcome.faults) <= _NAMES:
                named[mistake.name] = True
            elif outcome.failures:
                missed.append(f"{mistake.name!r} was called {list(outcome.faults)}")
            elif not outcome.broken and not _changes_nothing(judge, mistake):
                missed.append(f"{mistake.name!r} was not seen")
    missed += [f"{name!r} was never named" for name, seen in named.items() if not seen]
    return [Found(NO_DIFFERENCE, name) for name in named] + [
        Found(NO_DIFFERENCE, reproduce=text, failed=True) for text in missed
    ]


_PLANTED_TRIALS = 4
_NAMES = 2  # as many as may explain one gradient: who names everything names nothing


def _planted(judge: Judge, mistake: Mistake) -> Callable[..., list[np.ndarray]]:
    """Return the mistaken gradient as a function that is asked for one trial after the other."""
    trials = iter(range(_PLANTED_TRIALS))
    return lambda *_: backward_copy(judge.ingredients(next(trials)), mistake)


def _changes_nothing(judge: Judge, mistake: Mistake) -> bool:
    """Tell whether the mistake leads to the right gradient, as one layer too many clamped does."""
    pairs = [
        pair
        for given in map(judge.ingredients, range(_PLANTED_TRIALS))
        for pair in zip(backward_copy(given, mistake), backward_copy(given), strict=True)
    ]
    return all(np.array_equal(one, other) for one, other in pairs)


# Its name, what it compares, its bound, and the function that yields what it found in its cases, or
# the reason why it cannot run.
RowOfTable = tuple[str, str, float | None, Callable[[Settings], list[Found] | str]]
ROWS: tuple[RowOfTable, ...] = (
    (
        "equations",
        "the paper's equations 4 and 7 against jax.grad",
        FLOAT64_BOUND,
        witnesses.equations_row,
    ),
    (
        "float64",
        "ours against jax.grad: every activation × loss × depth 0-5",
        FLOAT64_BOUND,
        agreement.float64,
    ),
    (
        "float32",
        "the same, ours in float32 with full products, jax.grad in float64",
        FLOAT32_BOUND,
        agreement.float32,
    ),
    (
        "bfloat16",
        "bfloat16 against float64 on the rounded parameters",
        BFLOAT16_BOUND,
        partial(agreement.half, "bfloat16"),
    ),
    (
        "float16",
        "float16 against float64 on the rounded parameters",
        FLOAT16_BOUND,
        partial(agreement.half, "float16"),
    ),
    (
        "contractions",
        "per-example gradients, norms, sums, inputs; jax.grad of loss",
        CONTRACTIONS_BOUND,
        contractions_row,
    ),
    (
        "curvature",
        "Hessian, Gauss–Newton and Fisher quantities against whole matrices",
        CURVATURE_BOUND,
        second_order_row,
    ),
    (
        "differences",
        "central differences, jax.test_util.check_vjp",
        1e-5,
        witnesses.differences_row,
    ),
    ("numpy", "a NumPy forward pass and a worked network", NUMPY_BOUND, witnesses.numpy_row),
    ("accuracy", "float32 against mpmath at 50 digits", accuracy.BOUND, _accuracy_row),
    ("faults", "planted mistakes, each seen and named", None, _faults_row),
)


def verify(settings: Settings, rows: Sequence[RowOfTable] = ROWS) -> Iterator[Row]:
    """Yield the rows of the table, each as soon as it is known."""
    for name, what, bound, run in rows:
        begin = time.perf_counter()
        outcome = run(settings)
        seconds = time.perf_counter() - begin
        if isinstance(outcome, str):
            yield Row(name, what, "not run", 0, bound, NO_DIFFERENCE, note=outcome)
            continue
        worst = max(outcome, key=lambda found: found.difference.size)
        failed = any(found.failed for found in outcome)
        if bound is not None:
            failed |= not worst.difference.size <= bound
        yield Row(
            name,
            what,
            "failed" if failed else "passed",
            len(outcome),
            bound,
            worst.difference,
            str(worst.case),
            worst.reproduce,
            "; ".join(found.reproduce for found in outcome if found.failed),
            tuple(found.detail for found in outcome if found.detail),
            seconds,
        )
