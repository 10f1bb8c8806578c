"""Where the steps of an epoch find their examples: all on the device, or block after block."""

from typing import NamedTuple, Protocol

import numpy as np
from jax import Array

from jaxmlp.batch import Batch
from jaxmlp.evaluation import padded
from jaxmlp.training.distributed import Placement, placed
from jaxmlp.training.orders import Plan


class Part(NamedTuple):
    """The steps `first` … `end` − 1 of an epoch, and on the device what they need.

    Attributes:
        epoch: The epoch's number, from 0.
        first: The first of the steps.
        end: The one after the last.
        examples: Examples to be taken by the order: all, or those of these steps. Or without one
            batches (k, B, …), of which the first is that of step `first`.
        order: The rows of the examples in the epoch's order, from step `first` on, padded with −1;
            or None.
        rates: The learning rates of the steps from `first` on, padded.
    """

    epoch: int
    first: int
    end: int
    examples: Batch
    order: Array | None
    rates: Array


class Feed(Protocol):
    """What a training asks for the examples of its steps, in their order."""

    def begin(self, epoch: int) -> None:
        """Make what an epoch needs beside its examples, before its time counts."""
        ...

    def prepare(self, epoch: int) -> None:
        """Make what `begin` would make, while the device computes the epoch before."""
        ...

    def part(self, epoch: int, step: int) -> Part:
        """Return the part of an epoch that begins with this step, or has it."""
        ...

    def first_batch(self, epoch: int) -> Part:
        """Return a part that begins with the first batch of an epoch."""
        ...

    def close(self) -> None:
        """End what was begun for the steps to come."""
        ...


class Resident:
    """All examples on the device, and an epoch's order beside them.

    Args:
        examples: They, padded with rows of weight 0.
        plan: The order of every epoch.
        longest: To how many steps order and learning rates are padded.
        placement: Where the examples are on several devices, or None.
    """

    def __init__(
        self, examples: Batch, plan: Plan, longest: int, placement: Placement | None
    ) -> None:
        self.examples, self.plan, self.longest = examples, plan, longest
        self.placement = placement
        self._current: Part | None = None
        self._next: Part | None = None

    def begin(self, epoch: int) -> None:
        """Put the epoch's order and learning rates on the device."""
        if self._current is None or self._current.epoch != epoch:
            prepared, self._next = self._next, None
            ready = prepared is not None and prepared.epoch == epoch
            self._current = prepared if ready else self._made(epoch)

    def prepare(self, epoch: int) -> None:
        """Put its order and learning rates on the device, beside those of the epoch before."""
        if self.plan.sampling is None:  # a drawn batch may overflow, which is not to come early
            self._next = self._made(epoch)

    def _made(self, epoch: int) -> Part:
        plan, length = self.plan, self.longest * self.plan.batch_size
        rows = np.full(length, -1, np.int32)
        drawn = plan.rows(epoch)
        rows[: len(drawn)] = drawn
        rates = padded(plan.rates(epoch, 0, plan.steps), self.longest)
        put = placed((rows, rates), self.placement)
        return Part(epoch, 0, plan.steps, self.examples, *put)

    def part(self, epoch: int, step: int) -> Part:
        """Return the whole epoch."""
        del step
        self.begin(epoch)
        assert self._current is not None
        return self._current

    def first_batch(self, epoch: int) -> Part:
        """Return the whole epoch."""
        return self.part(epoch, 0)

    def close(self) -> None:
        """Do nothing: nothing is under way."""
