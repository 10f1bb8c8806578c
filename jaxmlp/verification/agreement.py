"""The rows that compare our gradient with `jax.grad`: a grid of architectures, four precisions.

Each precision is compared with `jax.grad` in float64 at the same, rounded parameters: in float32
`jax.grad` is itself up to 1e-5 off where units saturate.
"""

from functools import lru_cache

from jaxmlp.verification.cases import Case, Draws
from jaxmlp.verification.comparison import NO_DIFFERENCE, Found
from jaxmlp.verification.evidence import (
    Evidence,
    gather,
    off_kinks,
    our_gradients,
    worst_of,
)
from jaxmlp.verification.trials import (
    FLOAT32,
    FLOAT64,
    HALVES,
    Settings,
    call_of,
    cases_of,
    draws_of,
    in_parallel,
)

# Nearer to a kink than this, rounding decides the side, and with it the derivative.
# The draws of half precision keep theirs from the beginning, so many would be lost.
_KINK_MARGINS = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 0.0, "float16": 0.0}


def float64(settings: Settings) -> list[Found]:
    """Compare ours in float64."""
    return [wide for wide, _ in _wide_and_narrow(settings)]


def float32(settings: Settings) -> list[Found]:
    """Compare ours in float32, products in full."""
    return [narrow for _, narrow in _wide_and_narrow(settings)]


def half(row: str, settings: Settings) -> list[Found]:
    """Compare ours in half a precision: the row "bfloat16" or "float16"."""
    cases = cases_of(row, settings.full)

    def judge(number: int) -> Found:
        case = cases[number]
        draws = draws_of(row, number, settings)
        evidence = gather(case.network, draws, HALVES[row], FLOAT64)
        return _worst(row, number, case, draws, evidence, settings)

    return in_parallel(judge, len(cases))


@lru_cache(maxsize=1)
def _wide_and_narrow(settings: Settings) -> list[tuple[Found, Found]]:
    """Return what is found in float64 and in float32, from the same draws and the same oracle."""
    cases = cases_of("float64", settings.full)

    def judge(number: int) -> tuple[Found, Found]:
        case = cases[number]
        draws = draws_of("float64", number, settings)
        evidence = gather(case.network, draws, FLOAT64)
        wide = _worst("float64", number, case, draws, evidence, settings)
        evidence = evidence._replace(ours=our_gradients(case.network, draws, FLOAT32))
        return wide, _worst("float32", number, case, draws, evidence, settings)

    return in_parallel(judge, len(cases))


def _worst(
    row: str, number: int, case: Case, draws: Draws, evidence: Evidence, settings: Settings
) -> Found:
    counted = off_kinks(case.network, evidence.preactivations, _KINK_MARGINS[row])
    if not counted.any():
        return Found(NO_DIFFERENCE, case, f"{case}: every draw is near a kink", failed=True)
    difference, trial = worst_of(case.network, evidence, draws, counted)
    return Found(difference, case, call_of(row, number, trial, settings))
