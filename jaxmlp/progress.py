"""How a training shows its work: a bar on a terminal, a line an epoch elsewhere, or nothing."""

import os
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from jaxmlp.validation import check_name

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

MODES = ("auto", "bar", "lines", "quiet")
_MOST_LINES = 40


def say(text: str) -> None:
    """Print at once; where nobody reads any more (`| head`), work on without a word.

    Raises:
        OSError: Standard output is a file that cannot be written, on a full disk for example.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 until the process ends
        if not isinstance(error, BrokenPipeError):
            raise type(error)(f"standard output: cannot be written: {error.strerror}") from error


def shown_loss(loss: float) -> str:
    """Return a loss with four decimals, or four digits where those would say nothing."""
    return f"{loss:.4f}" if loss == 0 or 1e-3 <= abs(loss) < 1e5 else f"{loss:.4g}"


def epoch_line(record: Mapping[str, float], epochs: int) -> str:
    """Return the line of one epoch: losses, accuracies, epsilon, seconds, examples a second."""
    shown = [f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}"]
    for key in record:
        name, _, ending = key.rpartition("_")
        if ending == "loss":
            shown.append(f"{name} loss {shown_loss(record[key])}")
            if f"{name}_accuracy" in record:
                shown.append(f"accuracy {record[f'{name}_accuracy']:.4f}")
    if "epsilon" in record:
        shown.append(f"epsilon {record['epsilon']:.4g}")
    if "seconds" in record:
        shown.append(f"{record['seconds']:.2f} s")
    if "examples_per_second" in record:
        shown.append(f"{record['examples_per_second']:,.0f} examples/s")
    return "  ".join(shown)


class Progress:
    """The progress of a training, shown on standard output.

    A bar stands below the lines of finished epochs: of each, or of so many that there are at most
    about 40, the last among them. The lines stay when the bar goes.

    Args:
        mode: "bar", "lines" (one an epoch), "quiet" (nothing), or "auto": a bar on a terminal that
            can draw one, else lines.
        epochs: How many there will be, those before a run was resumed included.
        steps_per_epoch: Steps in each of them.

    Raises:
        ValueError: An unknown mode.

    Example:
        >>> with Progress("lines", epochs=2, steps_per_epoch=10) as show:
        ...     show.moved(0, 5)
        ...     show.finished_epoch({"epoch": 1, "train_loss": 0.5, "seconds": 0.25})
        epoch 1/2  train loss 0.5000  0.25 s
    """

    def __init__(self, mode: str, epochs: int, steps_per_epoch: int) -> None:
        check_name("progress", mode, MODES)
        self._mode = mode
        self._epochs = epochs
        self._steps = steps_per_epoch
        self._bar: Bar | None = None
        self._every = 1
        self._compiled = False
        self._unsaid: Mapping[str, float] | None = None

    def __enter__(self) -> Self:
        """Show the bar, if there is to be one."""
        if self._mode == "bar" or self._mode == "auto" and _can_draw(sys.stdout):
            self._bar = _bar()
            total = self._epochs * self._steps
            self._bar.add_task("starting", total=total, speed="", figure="")
            self._every = _every(self._epochs)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the bar away, and show the last epoch if its line was left out."""
        if self._bar is not None:
            if self._unsaid is not None:
                self._say(epoch_line(self._unsaid, self._epochs))
            self._bar.stop()
            self._bar = None

    def moved(self, epochs: int, steps: int) -> None:
        """Show that so many epochs are done, and so many steps of the next one."""
        self._update(epochs, steps, {})

    def finished_epoch(self, record: Mapping[str, float]) -> None:
        """Show what an epoch came to.

        Args:
            record: As `jaxmlp.fit` makes them. The first `compile_seconds` above 0 has a line.
        """
        epoch = int(record["epoch"])
        if record.get("compile_seconds") and not self._compiled:
            self._say(f"compiled in {record['compile_seconds']:.1f} s")
            self._compiled = True
        fields = {}
        if "examples_per_second" in record:
            fields["speed"] = f"{_short(record['examples_per_second'])} examples/s"
        if figure := _figure(record):
            fields["figure"] = figure
        self._update(epoch, 0, fields)
        if epoch % self._every == 0:
            self._say(epoch_line(record, self._epochs))
            self._unsaid = None
        else:
            self._unsaid = record

    def _update(self, epochs: int, steps: int, fields: Mapping[str, Any]) -> None:
        if self._bar is None:
            return
        epoch = min(epochs + (steps > 0), self._epochs)
        self._bar.update(
            self._bar.task_ids[0],
            description=f"epoch {epoch:>{len(str(self._epochs))}}/{self._epochs}",
            completed=epochs * self._steps + steps,
            **fields,
        )

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, soft_wrap=True)
        elif self._mode != "quiet":
            say(text)


def _figure(record: Mapping[str, float]) -> str:
    """Return the figure that tells most of how good the network is, with its name."""
    for name in ("validation", "test", "train"):
        for kind in ("accuracy", "loss"):
            if f"{name}_{kind}" in record:
                return f"{name} {kind} {record[f'{name}_{kind}']:.4f}"
    return ""


def _short(number: float) -> str:
    """Return a number in few characters: 9,999 or 312k or 1.2M."""
    if number >= 1e6:
        return f"{number / 1e6:.1f}M"
    return f"{number / 1e3:.0f}k" if number >= 1e4 else f"{number:,.0f}"


def _can_draw(stream: TextIO) -> bool:
    """Tell whether a stream is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def _every(epochs: int) -> int:
    """Return after how many epochs a line is shown: 1, 2, 5, 10, 20 and so on."""
    decade = 1
    while True:
        for step in (1, 2, 5):
            if epochs <= _MOST_LINES * step * decade:
                return step * decade
        decade *= 10


class _Lasting:
    """A stream that a reader may leave: what cannot be written any more is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _bar() -> "Bar":
    """Return a bar without a task. rich is imported here: what shows none does without it."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    stream: Any = _Lasting(sys.stdout)
    console = Console(file=stream, force_terminal=True, markup=False, highlight=False)
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    ]
    if console.width >= 60:
        columns.append(TextColumn("{task.fields[speed]}"))
    if console.width >= 80:
        columns.append(TextColumn("{task.fields[figure]}"))
    return Bar(
        *columns,
        console=console,
        transient=True,
        expand=True,
        refresh_per_second=8,
    )
