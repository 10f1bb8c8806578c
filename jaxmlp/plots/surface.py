"""The response surface of a sweep: the monitored figure against the numbers that were varied."""

import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmlp.plots.style import BLUE, GREY, RULE, VERMILION, WIDTH, count, styled, write
from jaxmlp.training.sweeps import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_NUMBERS = 3  # of which every pair has a panel
_DECADE = 8.0  # from the smallest to the largest, beyond which an axis may be logarithmic
_ALWAYS = 100.0  # or beyond which it is whatever the numbers between
_MARGIN = 1.5  # around the numbers of a logarithmic axis
_FEW = 8  # numbers that are ticks


def response_surface(
    summaries: Sequence[Summary],
    monitor: str,
    path: str | os.PathLike[str],
    best: Summary | None = None,
) -> Path | None:
    """Write `response_surface_figure` to a PNG file; return its path, or None if it is None."""
    return write(response_surface_figure(summaries, monitor, best), path)


@styled()
def response_surface_figure(
    summaries: Sequence[Summary], monitor: str, best: Summary | None = None
) -> "Figure | None":
    """Return the monitored figure of every setting against the numbers that differ between them.

    With one number it is a curve with the standard deviations over the seeds; with more, every pair
    of up to three numbers, those with the most values, has a panel where each setting is a point in
    the colour of its figure, the better above the worse. The best has a ring; those that diverged
    are crosses.

    Args:
        summaries: Those of the settings, in any order.
        monitor: The figure's name, such as validation_loss.
        best: The one that gets the ring; by default that with the best figure.

    Returns:
        The figure, or None where nothing was varied, or all diverged.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    names = [n for n in summaries[0].values if len({one.values[n] for one in summaries}) > 1]
    sign = -1 if monitor.endswith("_accuracy") else 1
    found = [one for one in summaries if not one.diverged]
    found.sort(key=lambda one: -sign * one.means[monitor])  # the best is drawn last
    if not names or not found:
        return None
    figure = Figure(figsize=(WIDTH, 4.8), layout=ConstrainedLayoutEngine(w_pad=0.12))
    lost = [one for one in summaries if one.diverged]
    of = f", of which {len(lost)} diverged" if lost else ""
    figure.suptitle(
        f"{monitor.replace('_', ' ')} of {count(len(summaries), 'setting')}{of}".capitalize()
    )
    best = best or found[-1]
    if len(names) == 1:
        _draw_curve(figure.subplots(), names[0], summaries, monitor, best)
        return figure
    names = sorted(names, key=lambda n: -len({one.values[n] for one in summaries}))
    pairs = list(combinations(names[:_MOST_NUMBERS], 2))
    values = np.array([one.means[monitor] for one in found])
    # A few settings far off would leave one colour for all others.
    low, high = np.quantile(values, (0.0, 0.9) if monitor.endswith("_loss") else (0.1, 1.0))
    if low == high:
        low, high = values.min() - 1e-9, values.max() + 1e-9
    axes = figure.subplots(1, len(pairs), squeeze=False)[0]
    points: Any = None
    for one_axes, (across, up) in zip(axes, pairs, strict=True):
        points = _draw_pair(one_axes, across, up, found, lost, values, (low, high), best)
    figure.colorbar(
        points, ax=list(axes), label=monitor.replace("_", " "), extend="both", shrink=0.9
    )
    if len(names) > _MOST_NUMBERS:
        note = f"varied too: {', '.join(names[_MOST_NUMBERS:])}"
        figure.supxlabel(note.replace("_", " "), fontsize=8, color=GREY)
    return figure


def _draw_curve(
    axes: "Axes", name: str, summaries: Sequence[Summary], monitor: str, best: Summary
) -> None:
    """Draw the figure against one number, with its deviations over the seeds."""
    ordered = sorted(summaries, key=lambda one: one.values[name])
    found = [one for one in ordered if not one.diverged]
    x = [one.values[name] for one in found]
    y = [one.means[monitor] for one in found]
    spread = [one.deviations[monitor] or 0.0 for one in found]
    axes.errorbar(
        x, y, spread if any(spread) else None, fmt="o-", color=BLUE, capsize=3, linewidth=1.4,
        markersize=4, gid="found",
    )  # fmt: skip
    _draw_ring(axes, best.values[name], best.means[monitor])
    for one in ordered:
        if one.diverged:
            axes.axvline(one.values[name], color=VERMILION, linestyle=":", linewidth=1.2)
            axes.annotate(
                "diverged", (one.values[name], 1), xycoords=("data", "axes fraction"),
                rotation=90, va="top", ha="right", color=VERMILION, fontsize=8,
            )  # fmt: skip
    axes.set(xlabel=name.replace("_", " "), ylabel=monitor.replace("_", " "))
    _set_axis(axes.xaxis, axes.set_xscale, [one.values[name] for one in ordered])
    if min(y) > 0 and max(y) >= _DECADE * min(y):
        _set_axis(axes.yaxis, axes.set_yscale, y)
    axes.grid(color=RULE, linewidth=0.8)


def _draw_pair(
    axes: "Axes",
    across: str,
    up: str,
    found: Sequence[Summary],
    lost: Sequence[Summary],
    values: np.ndarray,
    limits: tuple[float, float],
    best: Summary,
) -> Any:
    """Draw every setting as a point of two of its numbers, the best last; return the points."""
    points = axes.scatter(
        [one.values[across] for one in found],
        [one.values[up] for one in found],
        c=values,
        cmap="viridis",
        vmin=limits[0],
        vmax=limits[1],
        s=42,
        edgecolors="white",
        linewidths=0.5,
        zorder=3,
        gid="found",
    )
    if lost:
        axes.plot(
            [one.values[across] for one in lost], [one.values[up] for one in lost], "x",
            color=VERMILION, label="diverged", zorder=3, gid="lost",
        )  # fmt: skip
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, borderaxespad=0.2)
    _draw_ring(axes, best.values[across], best.values[up])
    axes.set(xlabel=across.replace("_", " "), ylabel=up.replace("_", " "))
    _set_axis(axes.xaxis, axes.set_xscale, [one.values[across] for one in (*found, *lost)])
    _set_axis(axes.yaxis, axes.set_yscale, [one.values[up] for one in (*found, *lost)])
    axes.grid(color=RULE, linewidth=0.8)
    return points


def _draw_ring(axes: "Axes", x: float, y: float) -> None:
    axes.plot(
        x, y, "o", gid="best", markersize=13, markerfacecolor="none", markeredgecolor=VERMILION,
        markeredgewidth=1.8, zorder=4,
    )  # fmt: skip


def _set_axis(axis: Any, set_scale: Any, values: Sequence[float]) -> None:
    """Make an axis logarithmic where its positive numbers span much, with 0 in a place of its own.

    Few numbers are the axis's ticks.
    """
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    array = np.unique(values)
    positive = array[array > 0]
    spans = positive.size > 1 and positive.max() >= _DECADE * positive.min()
    if spans and positive.max() < _ALWAYS * positive.min():
        # What is spread evenly has half of its numbers above the middle.
        spans = np.median(positive) < (positive.min() + positive.max()) / 3
    if spans and array.min() >= 0:
        low, high = positive.min() / _MARGIN, positive.max() * _MARGIN
        if array.min() == 0:
            set_scale("symlog", linthresh=positive.min(), linscale=0.5)
            low = -positive.min() / _MARGIN
        else:
            set_scale("log")
        axis.set_view_interval(low, high, ignore=True)
    if array.size <= _FEW:
        axis.set_ticks(array)
        axis.set_minor_locator(NullLocator())
    elif array.min() == 0:
        axis.set_ticks([tick for tick in axis.get_majorticklocs() if tick >= 0])
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_minor_formatter(NullFormatter())
