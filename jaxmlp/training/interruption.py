"""Ctrl-C and SIGTERM during a training: noted, and answered where the training can be saved."""

import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

_SAME = 1.0  # seconds, within which a second Ctrl-C is the first: `timeout` sends it twice


class Stopped(Exception):
    """A training was stopped by a signal, and is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Interruption:
    """While it is entered, SIGINT and SIGTERM are noted in `signal` instead of ending the process.

    A second Ctrl-C, a second later or more, raises KeyboardInterrupt at once: for who does not want
    to wait.

    Args:
        noted: Called with the number of the first signal, in the middle of whatever is running.
    """

    def __init__(self, noted: Callable[[int], None] | None = None) -> None:
        self.signal: int | None = None
        self._noted, self._at = noted, 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        """Take over the two signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._at = number, time.monotonic()
            if self._noted is not None:
                self._noted(number)
        elif number == signal.SIGINT and time.monotonic() - self._at > _SAME:
            raise KeyboardInterrupt
