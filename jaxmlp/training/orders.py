"""In which order the epochs of a training take its examples, and with which learning rates."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmlp.privacy import poisson_batches
from jaxmlp.training.settings import Settings

_SMALLEST_BUCKET = 2048
_LARGEST_STEP = 65536
_CHUNKS = 128  # whose examples are mixed with one another
_WINDOW_VALUES = 2**21  # about, in these examples
_SMALLEST_WINDOW, _LARGEST_WINDOW = 256, 8192  # examples


class Plan(NamedTuple):
    """What decides the batches of every epoch, wherever the examples are.

    Attributes:
        words: The key's data.
        n_examples: N.
        n_inputs: D.
        batch_size: Rows a step, with the padding of Poisson batches.
        steps: Steps an epoch.
        sampling: The chance of every example to join a batch of a private training, or None.
        settings: Those of the training, for its learning rates.
        dtype: That of the learning rates.
    """

    words: Sequence[int]
    n_examples: int
    n_inputs: int
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
            return epoch_order(
                self.words, epoch, self.n_examples, self.steps * self.batch_size, self.window
            )
        rng = np.random.default_rng([*self.words, epoch])
        drawn = poisson_batches(rng, self.n_examples, self.sampling, self.steps, self.batch_size)
        return np.reshape(drawn, -1)

    @property
    def window(self) -> int | None:
        """How many examples are taken from the same chunks, or None where chunks are not kept.

        It depends on D alone, so that it is the same wherever the examples are.
        """
        if self.settings.shuffle == "full":
            return None
        wanted = 1 << (max(1, _WINDOW_VALUES // self.n_inputs).bit_length() - 1)
        return min(_LARGEST_WINDOW, max(_SMALLEST_WINDOW, wanted))

    def rates(self, epoch: int, first: int, end: int) -> np.ndarray:
        """Return the learning rates of the steps `first` … `end` − 1 of an epoch."""
        begin, total = epoch * self.steps, self.settings.epochs * self.steps
        return self.settings.rates(begin + first, begin + end, total).astype(self.dtype)


def epoch_order(
    words: Sequence[int], epoch: int, n_examples: int, length: int, window: int | None = None
) -> np.ndarray:
    """Return the examples' numbers in the order of an epoch, padded with −1 to `length`.

    Args:
        words: The key's data; with the epoch they decide the order.
        epoch: The epoch's number, from 0.
        n_examples: How many there are.
        length: The length of the result, at least that.
        window: None for a permutation of all examples. Or a multiple of 128: chunks of a 128th of
            it, in a row, are permuted, and then the examples of each 128 chunks.
    """
    rows = np.full(length, -1, np.int32)
    rng = np.random.default_rng([*words, epoch])
    if window is None:
        rows[:n_examples] = rng.permutation(n_examples)
        return rows
    chunk = window // _CHUNKS
    chunks = rng.permutation(-(-n_examples // chunk)).astype(np.int32)
    drawn = (chunks[:, None] * chunk + np.arange(chunk, dtype=np.int32)).reshape(-1)
    drawn = drawn[drawn < n_examples]
    for start in range(0, n_examples, window):
        rng.shuffle(drawn[start : start + window])
    rows[:n_examples] = drawn
    return rows


def bucket(n_examples: int) -> int:
    """Return the padded number of rows: a power of two up to 65,536, then a multiple of it."""
    if n_examples > _LARGEST_STEP:
        return -(-n_examples // _LARGEST_STEP) * _LARGEST_STEP
    return max(_SMALLEST_BUCKET, 1 << (n_examples - 1).bit_length())
