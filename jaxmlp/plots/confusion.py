"""The confusion matrix: which class is taken for which."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxmlp.plots.style import RULE, WIDTH, count, percent, short, styled, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of the mistakes: the oranges of Brewer, ColorBrewer, 2003, from pure white.
_COLOURS = ("white", "#fdae6b", "#f16913", "#a63603", "#7f2704")


def confusion_matrix(
    counts: np.ndarray,
    classes: Sequence[str],
    path: str | os.PathLike[str],
    *,
    of: str = "examples",
) -> Path | None:
    """Write `confusion_matrix_figure` to a PNG file; return its path, or None if it is None."""
    return write(confusion_matrix_figure(counts, classes, of=of), path)


@styled()
def confusion_matrix_figure(
    counts: np.ndarray, classes: Sequence[str], *, of: str = "examples"
) -> "Figure | None":
    """Return how often each class was taken for each other.

    Colour is each mistake's share of its true class, so that mistakes show beside right answers,
    which are grey. Up to 20 classes every count is written in its cell.

    Args:
        counts: (K, K) of counts: row true class, column predicted class.
        classes: The K names.
        of: What is counted, in the title.

    Returns:
        The figure, or None where there are no examples.

    Raises:
        ValueError: Counts of another shape than (K, K).
    """
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.figure import Figure

    counts = np.asarray(counts)
    n_classes = len(classes)
    if counts.shape != (n_classes, n_classes):
        raise ValueError(
            f"counts: expected shape {(n_classes, n_classes)} for {n_classes} classes, got "
            f"{counts.shape}"
        )
    total, right = int(counts.sum()), np.diagonal(counts)
    if total == 0:
        return None
    in_class = counts.sum(axis=1, keepdims=True)
    shares = 100 * counts / np.maximum(in_class, 1)
    mistakes = np.ma.masked_array(shares, np.eye(n_classes, dtype=bool))
    figure = Figure(figsize=(WIDTH, 8.4), layout="constrained")
    axes = figure.subplots()
    # The square root keeps a rare mistake visible beside a frequent one.
    image = axes.imshow(
        mistakes,
        norm=PowerNorm(0.5, vmin=0, vmax=mistakes.max() or 1),
        cmap=LinearSegmentedColormap.from_list("mistakes", _COLOURS).with_extremes(bad="#d9d9d9"),
        interpolation="nearest",
    )
    colours = image.to_rgba(mistakes)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, pad=0.02)
    bar.set_label("mistaken for another class, % of the true class")
    figure.suptitle(
        f"Confusion matrix: {count(total - int(right.sum()), 'mistake')} among {total:,} {of}"
    )
    axes.set(xlabel="predicted class", ylabel="true class")
    names = [short(name, 20) for name in classes]
    places = range(0, n_classes, math.ceil(n_classes / 60))
    size = min(10, 420 / len(places))
    upright = max(map(len, names)) * n_classes > 60
    axes.set_xticks(
        places, [names[k] for k in places], fontsize=size, rotation=90 if upright else 0
    )
    axes.set_yticks(places, [names[k] for k in places], fontsize=size)
    recalls = axes.secondary_yaxis("right")
    recalls.set_yticks(
        places, [percent(int(right[k]), int(in_class[k, 0])) for k in places], fontsize=size
    )
    recalls.set_ylabel("recall: classified right, % of the true class", labelpad=10)
    recalls.tick_params(length=0)
    recalls.spines[:].set_visible(False)
    if n_classes <= 20:
        for true, predicted in zip(*np.nonzero(counts), strict=True):
            axes.text(
                predicted,
                true,
                _in_cell(int(counts[true, predicted]), n_classes),
                ha="center",
                va="center",
                color=_readable_on(colours[true, predicted]),
                fontsize=min(11, 150 / n_classes),
            )
    if n_classes <= 50:
        borders = np.arange(n_classes + 1) - 0.5
        axes.set_xticks(borders, minor=True)
        axes.set_yticks(borders, minor=True)
        axes.grid(which="minor", color=RULE, linewidth=0.6)
        axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    return figure


def _in_cell(count: int, n_classes: int) -> str:
    """Return a count as its cell has room for it: 1,118 or 1.1k."""
    text = f"{count:,}"
    if len(text) * n_classes <= 60 or count < 1000:
        return text
    unit, letter = (10**6, "M") if count >= 10**6 else (10**3, "k")
    return f"{count / unit:.{int(count < 10 * unit)}f}{letter}"


def _readable_on(colour: np.ndarray) -> str:
    """Return black or white, whichever contrasts more with the colour (WCAG 2)."""
    channels = np.asarray(colour[:3], float)
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    return "black" if luminance > 0.179 else "white"
