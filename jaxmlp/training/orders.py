"""In which order the epochs of a training take its examples, and with which learning rates."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmlp.privacy import poisson_batches
from jaxmlp.training.settings import Settings

_SMALLEST_BUCKET = 2048
_LARGEST_STEP = 65536


class Plan(NamedTuple):
    """What decides the batches of every epoch, wherever the examples are.

    Attributes:
        words: The key's data.
        n_examples: N.
        batch_size: Rows a step, with the padding of Poisson batches.
        steps: Steps an epoch.
        sampling: The chance of every example to join a batch of a private training, or None.
        settings: Those of the training, for its learning rates.
        dtype: That of the learning rates.
    """

    words: Sequence[int]
    n_examples: int
    batch_size: int
    steps: int
    sampling: float | None
    settings: Settings
    dtype: np.dtype

    def rows(self, epoch: int) -> np.ndarray:
        """Return the examples' numbers in an epoch's order, batch after batch, −1 for no example.

        Args:
            epoch: The epoch's number, from 0.

        Returns:
            (steps · batch_size,) int32.

        Raises:
            OverflowError: A Poisson batch is larger than is expected once in 10¹² trainings.
        """
        if self.sampling is None:
            return epoch_order(self.words, epoch, self.n_examples, self.steps * self.batch_size)
        rng = np.random.default_rng([*self.words, epoch])
        drawn = poisson_batches(rng, self.n_examples, self.sampling, self.steps, self.batch_size)
        return np.reshape(drawn, -1)

    def rates(self, epoch: int, first: int, end: int) -> np.ndarray:
        """Return the learning rates of the steps `first` … `end` − 1 of an epoch."""
        begin, total = epoch * self.steps, self.settings.epochs * self.steps
        return self.settings.rates(begin + first, begin + end, total).astype(self.dtype)


def epoch_order(words: Sequence[int], epoch: int, n_examples: int, length: int) -> np.ndarray:
    """Return the examples' numbers in the order of an epoch, padded with −1 to `length`.

    Args:
        words: The key's data; with the epoch they decide the order.
        epoch: The epoch's number, from 0.
        n_examples: How many there are.
        length: The length of the result, at least that.
    """
    rows = np.full(length, -1, np.int32)
    rows[:n_examples] = np.random.default_rng([*words, epoch]).permutation(n_examples)
    return rows


def epoch_rates(settings: Settings, epoch: int, steps: int) -> np.ndarray:
    """Return the learning rates of the steps of an epoch, in float64."""
    first = epoch * steps
    return settings.rates(first, first + steps, settings.epochs * steps)


def bucket(n_examples: int) -> int:
    """Return the padded number of rows: a power of two up to 65,536, then a multiple of it."""
    if n_examples > _LARGEST_STEP:
        return -(-n_examples // _LARGEST_STEP) * _LARGEST_STEP
    return max(_SMALLEST_BUCKET, 1 << (n_examples - 1).bit_length())
