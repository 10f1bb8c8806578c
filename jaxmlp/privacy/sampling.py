"""Poisson batches, drawn on the host: every example joins each with the same probability."""

import math

import numpy as np

from jaxmlp.validation import check_count, check_number


def check_sampling(n_examples: int, rate: float) -> None:
    """Raise unless there is an example, and the rate is in (0, 1]."""
    check_count("n_examples", n_examples)
    check_number("sampling_rate", rate, 0, math.inf, above=True, rounded=False)
    if rate > 1:
        raise ValueError(f"sampling_rate: expected a number in (0, 1], got {rate!r}")


def poisson_batches(
    rng: np.random.Generator, n_examples: int, rate: float, steps: int, size: int
) -> np.ndarray:
    """Return the batches of some steps: every example is in each with probability `rate`.

    Independently of all else: so a batch's size is binomial, and may be 0.

    Args:
        rng: NumPy's generator, from a seed that nobody knows.
        n_examples: N.
        rate: q in (0, 1].
        steps: How many batches.
        size: How many rows each has with its padding, as from `padded_size`.

    Returns:
        (steps, size) int32: numbers of examples, in no order that matters, then −1.

    Raises:
        TypeError: A rate that is no number, or no generator of NumPy's.
        ValueError: Numbers out of their range.
        OverflowError: A batch has more than `size` examples: leaving some out would be another
            sampling than the accountant reckons with.
    """
    if not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"rng: expected a numpy.random.Generator, as of default_rng(), got {type(rng).__name__}"
        )
    check_sampling(n_examples, rate)
    rows = np.full((steps, size), -1, np.int32)
    # A binomial number of them, and then any so many: the same as a draw for every example.
    for step, count in enumerate(rng.binomial(n_examples, rate, steps)):
        if count > size:
            raise OverflowError(
                f"size: expected at least {count}, the examples that were drawn for a batch, got "
                f"{size}"
            )
        rows[step, :count] = rng.choice(n_examples, count, replace=False, shuffle=False)
    return rows


def padded_size(n_examples: int, rate: float, steps: int, failure: float = 1e-12) -> int:
    """Return the least size that no Poisson batch exceeds, but with probability `failure`.

    Args:
        n_examples: N.
        rate: q in (0, 1].
        steps: How many batches there are in all.
        failure: The most that the probability of any one being larger may come to.

    Returns:
        The least m with steps · P(Binomial(N, q) > m) ≤ failure.

    Raises:
        TypeError: A number that is none.
        ValueError: Numbers out of their range.

    Example:
        >>> padded_size(60_000, 1024 / 60_000, 1180)
        1286
    """
    from scipy.stats import binom

    check_sampling(n_examples, rate)
    check_count("steps", steps)
    check_number("failure", failure, 0, 1, above=True, rounded=False)
    low, high = 0, n_examples  # not `binom.isf`, which takes 1e-18 for 0
    while low < high:
        middle = (low + high) // 2
        if steps * binom.sf(middle, n_examples, rate) <= failure:
            high = middle
        else:
            low = middle + 1
    return max(1, low)
