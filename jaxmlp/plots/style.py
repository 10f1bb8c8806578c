"""How pictures look, how their numbers and names are written, and how they become files."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The colours that all eyes tell apart, of Okabe and Ito, Color Universal Design, 2008.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
PURPLE, ORANGE, SKY = "#CC79A7", "#E69F00", "#56B4E9"
GREY = "#595959"  # of notes: 7 : 1 on white
RULE = "#e6e6e6"  # of grids

WIDTH = 9.6  # inches: 1440 pixels
_STYLE = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "font.size": 10,
    "axes.titlesize": 11,
    "figure.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a class may be named "$"
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in matplotlib's own defaults and ours, and leave the caller's settings as they were."""
    from matplotlib import style

    with style.context(["default", _STYLE]):
        yield


def short(name: object, longest: int) -> str:
    """Return a name in one line; what is too much for it is taken from the middle."""
    text = " ".join(str(name).split())
    if len(text) <= longest:
        return text
    after = longest // 2 - 1  # names of one kind differ at their ends
    return f"{text[: longest - 1 - after]}…{text[-after:]}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun: "no mistake", "1 mistake", "2,000 mistakes"."""
    return f"{number:,} {noun}s" if number > 1 else f"{number or 'no'} {noun}"


def percent(part: float, whole: float) -> str:
    """Return a share in %, never rounded up to 100, or a dash where there is no whole."""
    if not whole:
        return "–"
    share = 100 * part / whole
    return f"{share:.0f}" if part == whole else f"{min(share, 99.9):.1f}"


def write(figure: "Figure | None", path: str | os.PathLike[str]) -> Path | None:
    """Write a figure so that at every moment the file is the old one or the new one, whole."""
    if figure is None:
        return None
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with styled(), warnings.catch_warnings():
            # matplotlib's own font has no Chinese, Japanese or Korean: a box stands for them.
            warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
            figure.savefig(unfinished, format="png")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
