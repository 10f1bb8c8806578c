"""What a training shows of its work: on a terminal, in a file, to a reader who leaves, in quiet."""

import io
import os
import pty
import re
import subprocess
import sys
import time
from contextlib import contextmanager, redirect_stdout
from typing import Any

import pytest
from files import message_of

from jaxmlp.progress import Progress, epoch_line, shown_loss

RECORD = {
    "epoch": 1,
    "train_loss": 0.51234,
    "train_accuracy": 0.81,
    "gradient_norm": 3.0,
    "validation_loss": 0.6,
    "validation_accuracy": 0.77,
    "test_loss": 0.55,
    "test_accuracy": 0.79,
    "seconds": 0.25,
    "examples_per_second": 312345.6,
}
LINE = (
    "epoch  1/20  train loss 0.5123  accuracy 0.8100  validation loss 0.6000  accuracy 0.7700"
    "  test loss 0.5500  accuracy 0.7900  0.25 s  312,346 examples/s"
)


class Terminal(io.StringIO):
    """A standard output that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 120 columns."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    return Terminal()


def shown(stream):
    """What was written, line by line, without colours and movements of the cursor."""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


@contextmanager
def showing(stream, mode, epochs):
    """A progress that is shown on this stream."""
    with redirect_stdout(stream), Progress(mode, epochs, 10) as show:
        yield show


def train(stream, mode, epochs, done=0):
    with showing(stream, mode, epochs) as show:
        for epoch in range(done, epochs):
            for step in range(10):
                show.moved(epoch, step)
            show.finished_epoch(RECORD | {"epoch": epoch + 1})


def numbers(lines):
    """The epochs that have a line of their own."""
    found = (re.match(r"epoch +(\d+)/\d+  train loss ", line) for line in lines)
    return [int(match[1]) for match in found if match]


# The line of an epoch.


@pytest.mark.parametrize(
    ("loss", "shown"),
    [(0.0, "0.0000"), (0.51234, "0.5123"), (0.00123, "0.0012"), (1.2345e-5, "1.234e-05"),
     (99999.0, "99999.0000"), (906485678.08, "9.065e+08"), (float("nan"), "nan")],
)  # fmt: skip
def test_a_loss_has_digits_whatever_its_size(loss, shown):
    assert shown_loss(loss) == shown


def test_the_line_of_an_epoch_has_every_loss_and_accuracy_that_is_there():
    assert epoch_line(RECORD, 20) == LINE
    regression = {"epoch": 20, "train_loss": 2.0, "test_loss": 3.0}
    assert epoch_line(regression, 20) == "epoch 20/20  train loss 2.0000  test loss 3.0000"


# Lines.


def test_where_there_is_no_terminal_every_epoch_has_a_line(capsys):
    file = io.StringIO()
    train(file, "auto", 100)
    assert numbers(file.getvalue().splitlines()) == list(range(1, 101))
    assert "\x1b" not in file.getvalue() and capsys.readouterr() == ("", "")


def test_lines_are_shown_on_a_terminal_that_cannot_draw(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    train(terminal, "auto", 60)
    assert "\x1b" not in terminal.getvalue()
    assert numbers(shown(terminal)) == list(range(1, 61))


@pytest.mark.parametrize("mode", ["lines", "bar"])
def test_compiling_has_one_line_and_that_before_its_epoch(mode, terminal):
    with showing(terminal, mode, 20) as show:
        for epoch, seconds in ((1, 0.74), (2, 0.5), (3, 0)):
            show.finished_epoch(RECORD | {"epoch": epoch, "compile_seconds": seconds})
    lines = [line for line in shown(terminal) if " left" not in line]
    assert lines[:2] == ["compiled in 0.7 s", LINE]
    assert sum("compiled" in line for line in lines) == 1


def test_nothing_is_compiled_where_nothing_was(terminal):
    with showing(terminal, "lines", 20) as show:
        show.finished_epoch(RECORD | {"compile_seconds": 0.0})
    assert terminal.getvalue() == LINE + "\n"


def test_quiet_says_nothing(capsys, terminal):
    train(terminal, "quiet", 20)
    assert terminal.getvalue() == "" and capsys.readouterr() == ("", "")


# The bar.


def test_the_bar_goes_and_the_lines_stay(terminal):
    train(terminal, "auto", 20)
    lines = shown(terminal)
    assert numbers(lines) == list(range(1, 21))
    assert LINE in lines
    # The cursor is shown again, and the bar's line is left empty.
    assert terminal.getvalue().endswith("\x1b[2K")
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")


def test_the_bar_tells_epoch_share_time_speed_and_the_last_figure(terminal):
    with showing(terminal, "bar", 20) as show:
        show.finished_epoch(RECORD)
        show.moved(1, 5)
    last = [line for line in shown(terminal) if " left" in line][-1]
    # 15 of 200 steps; 7.5 is rounded to the even 8.
    assert re.fullmatch(
        r"epoch  2/20 \S+   8% \S+ left 312k examples/s validation accuracy 0\.7700 *", last
    )


@pytest.mark.parametrize(
    "missing, figure",
    [
        (["validation"], "test accuracy 0.7900"),
        (["validation", "test"], "train accuracy 0.8100"),
        (["accuracy"], "validation loss 0.6000"),
        (["accuracy", "loss"], "examples/s"),
    ],
)
def test_the_figure_is_the_one_that_tells_most(missing, figure, terminal):
    record = {key: value for key, value in RECORD.items() if not any(m in key for m in missing)}
    with showing(terminal, "bar", 20) as show:
        show.finished_epoch(record)
    last = [line for line in shown(terminal) if " left" in line][-1]
    assert last.rstrip().endswith(figure)


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 200])
def test_the_bar_is_one_line_on_every_terminal(columns, terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    with showing(terminal, "bar", 1000) as show:
        show.finished_epoch(RECORD | {"epoch": 999, "examples_per_second": 1.2345e6})
        show.moved(999, 9)
    bars = [line for line in shown(terminal) if line.startswith("epoch") and "  train" not in line]
    assert bars and all(len(line) <= columns for line in bars)
    if columns >= 40:
        assert re.search(r"epoch 1000/1000 .*100% \S+ left", bars[-1])
        assert ("1.2M examples/s" in bars[-1]) == (columns >= 60)
        assert ("validation accuracy 0.7700" in bars[-1]) == (columns >= 80)


@pytest.mark.parametrize(
    "epochs, expected",
    [
        (40, list(range(1, 41))),
        (41, [*range(2, 41, 2), 41]),
        (1000, [*range(50, 1001, 50)]),
    ],
)
def test_of_many_epochs_some_have_lines_and_the_last_one_has(epochs, expected, terminal):
    train(terminal, "bar", epochs)
    assert numbers(shown(terminal)) == expected


def test_the_last_epoch_of_a_training_that_ends_early_has_a_line(terminal):
    with pytest.raises(KeyboardInterrupt), showing(terminal, "bar", 1000) as show:
        for epoch in range(1, 78):
            show.finished_epoch(RECORD | {"epoch": epoch})
        raise KeyboardInterrupt
    assert numbers(shown(terminal)) == [50, 77]
    assert sys.stdout is not terminal
    assert terminal.getvalue().endswith("\x1b[2K")


def test_a_resumed_training_begins_where_it_stopped_and_took_no_time_before(terminal):
    with showing(terminal, "bar", 100) as show:
        for step in (3, 4, 5, 6):
            show.moved(60, step)
            time.sleep(0.02)
    bar = [line for line in shown(terminal) if line.startswith("epoch")][-1]
    # 39.4 epochs of some 0.2 s are left, and not the instant that 603 steps in no time promise.
    match = re.match(r"epoch  61/100 \S+ +61% (\d+):(\d\d):(\d\d) left", bar)
    assert match and 3600 * int(match[1]) + 60 * int(match[2]) + int(match[3]) >= 7
    assert shown(terminal)[0].startswith("starting ")


def test_what_others_print_stands_above_the_bar(terminal):
    with showing(terminal, "bar", 20) as show:
        show.moved(0, 1)
        print("a line [of] somebody else")
    assert "a line [of] somebody else" in shown(terminal)


def test_names_are_shown_as_they_are(terminal):
    with showing(terminal, "bar", 1) as show:
        show.finished_epoch({"epoch": 1, "[b]_loss": 1.0})
    assert "epoch 1/1  [b] loss 1.0000" in shown(terminal)


@pytest.mark.parametrize("method", ["write", "flush"])
@pytest.mark.parametrize("error", [BrokenPipeError, OSError])  # OSError: a terminal that is gone
def test_a_terminal_that_goes_disturbs_nobody(method, error, terminal, monkeypatch):
    def gone(*_):
        raise error

    monkeypatch.setattr(terminal, method, gone)
    train(terminal, "bar", 3)


def test_an_unknown_mode_is_refused():
    message = message_of(ValueError, lambda: Progress("line", 1, 1))
    assert message == (
        "unknown progress 'line': did you mean 'lines'? expected one of auto, bar, lines, quiet"
    )


# A process of its own.

TRAIN = """
import sys
sys.path.insert(0, {folder!r})
from test_progress import train
train(sys.stdout, {mode!r}, 2000)
print("rich" in sys.modules, file=sys.stderr)
"""


def process(mode, **given) -> Any:
    code = TRAIN.format(folder=os.path.dirname(__file__), mode=mode)
    return subprocess.Popen([sys.executable, "-c", code], **given)


@pytest.mark.parametrize("mode", ["lines", "bar"])
def test_a_reader_who_leaves_disturbs_nobody(mode):
    worker = process(mode, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert worker.stdout.read(10)
    worker.stdout.close()
    errors = worker.stderr.read().decode()
    worker.stderr.close()
    assert worker.wait(30) == 0
    assert errors == f"{mode == 'bar'}\n"  # without a bar, rich is not even imported


def test_a_terminal_shows_the_bar():
    ours, theirs = pty.openpty()
    worker = process(
        "auto", stdout=theirs, stderr=subprocess.PIPE, env=os.environ | {"TERM": "xterm"}
    )
    os.close(theirs)
    output = b""
    try:
        while part := os.read(ours, 65536):
            output += part
    except OSError:  # Linux's way to say that the terminal has no writer any more
        pass
    finally:
        os.close(ours)
    assert worker.stderr.read() == b"True\n"
    worker.stderr.close()
    assert worker.wait(30) == 0
    stream = io.StringIO(output.decode())
    assert numbers(shown(stream)) == list(range(50, 2001, 50))
    assert any(" left" in line for line in shown(stream))
