"""What a number of private steps spends, computed by dp-accounting (the extra "privacy")."""

import math
from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import Any

from jaxmlp.privacy.sampling import check_sampling
from jaxmlp.validation import check_count, check_number

_LEAST_NOISE = 0.2  # below it epsilon is in the hundreds, and takes minutes to compute
_MOST_NOISE = 2.0**20
_LEAST_DELTA = 1e-12
_TOLERANCE = 1e-4
_INTERVAL = 1e-4  # of privacy losses that are told apart


def epsilon(noise_multiplier: float, sampling_rate: float, steps: int, delta: float) -> float:
    """Return ε of so many steps with Poisson batches, where one example is added or removed.

    Computed by dp-accounting from privacy loss distributions: an upper bound that is nearly tight.

    Args:
        noise_multiplier: σ, from 0.2 to two million.
        sampling_rate: q in (0, 1].
        steps: How many steps in all, those of resumed trainings included.
        delta: δ in [1e-12, 1), far below 1/N.

    Returns:
        ε; 0 for no step.

    Raises:
        TypeError: A number that is none.
        ValueError: Numbers out of their range, or dp-accounting is not installed.

    References:
        Koskela, Jälkö, Honkela, Computing Tight Differential Privacy Guarantees Using FFT, 2020.
        Doroshenko et al., Connect the Dots: Tighter Discrete Approximations, 2022.
    """
    check_number("noise_multiplier", noise_multiplier, _LEAST_NOISE, 2 * _MOST_NOISE, rounded=False)
    check_sampling(1, sampling_rate)
    check_delta(delta)
    if steps == 0:
        return 0.0
    check_count("steps", steps)
    one = _one_step(float(noise_multiplier), float(sampling_rate))
    return float(one.self_compose(int(steps)).get_epsilon_for_delta(float(delta)))


def check_delta(delta: float) -> None:
    """Raise unless δ is a number in [1e-12, 1): dp-accounting cuts tails off at 1e-15."""
    check_number("delta", delta, 0, 1, above=True, rounded=False)
    if delta < _LEAST_DELTA:
        raise ValueError(f"delta: expected at least {_LEAST_DELTA:g}, got {delta:g}")


@lru_cache(maxsize=4)
def _one_step(noise_multiplier: float, sampling_rate: float, interval: float = _INTERVAL) -> Any:
    """Return the privacy loss distribution of a step, as dp-accounting's PLDAccountant does."""
    return _accounting().pld.privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=sampling_rate, value_discretization_interval=interval
    )


def _accounting() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise ValueError(
            f"epsilon: dp-accounting is missing, which computes it ({error}): pip install "
            '"jaxmlp[privacy]"'
        ) from error
    return dp_accounting


def noise_multiplier_for(epsilon: float, sampling_rate: float, steps: int, delta: float) -> float:
    """Return the least noise multiplier, to one in ten thousand, that spends no more than ε.

    Args:
        epsilon: ε > 0.
        sampling_rate: q in (0, 1].
        steps: How many steps in all.
        delta: δ in [1e-12, 1).

    Returns:
        σ, whose `epsilon` is ε or just below it.

    Raises:
        TypeError: A number that is none.
        ValueError: Numbers out of their range, no σ from 0.2 to a million gives this ε, or
            dp-accounting is not installed.
    """
    check_number("epsilon", epsilon, 0, math.inf, above=True, rounded=False)
    check_count("steps", steps)
    check_sampling(1, sampling_rate)
    check_delta(delta)

    @cache
    def spent(noise: float, interval: float = _INTERVAL) -> float:
        one = _one_step(noise, float(sampling_rate), interval)
        return float(one.self_compose(int(steps)).get_epsilon_for_delta(float(delta)))

    # A tenth of the work has the root of it nearly, where that work is large.
    rough, start, factor = partial(spent, interval=10 * _INTERVAL), 1.0, 2.0
    try:
        start = _least_noise(rough, epsilon, start, factor)
        beyond = rough(start) - spent(start)  # hardly another one nearby
        start = _least_noise(rough, epsilon + beyond, start, 1.01)
        factor = 1 + _TOLERANCE / 2
    except OverflowError:
        pass
    except ValueError:
        if rough(_LEAST_NOISE) < 0.99 * epsilon:
            raise
        start, factor = _LEAST_NOISE, 1 + _TOLERANCE / 2
    try:
        return _least_noise(spent, epsilon, start, factor)
    except OverflowError:
        raise ValueError(f"epsilon: expected one that some noise gives, got {epsilon}") from None


def _least_noise(
    spent: Callable[[float], float], epsilon: float, start: float, factor: float
) -> float:
    """Return the least noise multiplier that spends no more than ε, looked for around `start`.

    Raises:
        ValueError: The smallest spends less.
        OverflowError: The largest spends more.
    """
    from scipy.optimize import brentq

    low = high = start
    while spent(high) > epsilon:
        if high == _MOST_NOISE:
            raise OverflowError
        low, high, factor = high, min(factor * high, _MOST_NOISE), factor**2
    while spent(low) <= epsilon:
        if low == _LEAST_NOISE:
            raise ValueError(
                f"epsilon: expected one that a noise multiplier of at least {_LEAST_NOISE} gives, "
                f"at most {spent(low):.4g}, got {epsilon}"
            )
        low, high, factor = max(low / factor, _LEAST_NOISE), low, factor**2
    if high - low <= _TOLERANCE * low:
        return high
    within = _TOLERANCE * low / 4
    found: Any = brentq(lambda noise: spent(noise) - epsilon, low, high, xtol=within)
    # Where ε is tiny a little more noise may spend a little more.
    nearly = (found, min(found + 2 * within, high), high)
    return next(noise for noise in nearly if spent(noise) <= epsilon)
