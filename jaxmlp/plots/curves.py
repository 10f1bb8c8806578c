"""Learning curves: losses and error rates against the epoch."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxmlp.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RULE,
    SKY,
    VERMILION,
    WIDTH,
    styled,
    write,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CURVES = {
    "train": (BLUE, "o", "-"),
    "validation": (VERMILION, "s", "--"),
    "test": (GREEN, "^", "-."),
}
_OTHER_CURVES = ((PURPLE, "v", ":"), (ORANGE, "D", ":"), (SKY, "P", ":"))


def learning_curves(
    history: Sequence[Mapping[str, float]], path: str | os.PathLike[str]
) -> Path | None:
    """Write `learning_curves_figure` to a PNG file; return its path, or None if it is None."""
    return write(learning_curves_figure(history), path)


@styled()
def learning_curves_figure(history: Sequence[Mapping[str, float]]) -> "Figure | None":
    """Return the losses, and for a classifier the error rates, against the epoch.

    A panel's axis is logarithmic where its figures span more than a decade. The lowest validation
    figure of a panel is marked.

    Args:
        history: The records of `jaxmlp.fit`, or of metrics.jsonl: `epoch`, and `<name>_loss` and
            `<name>_accuracy` of "train", "validation", "test" or anything else. Records that lack
            an entry are passed over; an entry that is not finite breaks its curve.

    Returns:
        The figure, or None where no record holds a finite loss or accuracy.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = []
    for ending, label, unit in (("_loss", "loss", ""), ("_accuracy", "error rate, %", " %")):
        curves = _curves(history, ending)
        if curves:
            panels.append((label, unit, curves))
    if not panels:
        return None
    figure = Figure(figsize=(WIDTH, 4.8), layout=ConstrainedLayoutEngine(w_pad=0.12))
    figure.suptitle("Learning curves")
    if any("train" in curves and len(curves) > 1 for *_, curves in panels):
        note = (
            "train: the mean over an epoch's batches, each before its step; others: after the epoch"
        )
        figure.supxlabel(note, fontsize=8, color=GREY)
    for axes, (label, unit, curves) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        _draw_curves(axes, curves, unit)
        axes.set(xlabel="epoch", ylabel=label)
    return figure


def _curves(
    history: Sequence[Mapping[str, float]], ending: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return name → (epochs, figures): losses, or error rates in %, with NaN for what breaks it."""
    keys = dict.fromkeys(key for record in history for key in record if key.endswith(ending))
    names = sorted((key.removesuffix(ending) for key in keys), key=_place)
    curves = {}
    for name in names:
        points = [
            (record.get("epoch", number), record[name + ending])
            for number, record in enumerate(history, 1)
            if record.get(name + ending) is not None
        ]
        epochs, values = np.array(points, float).reshape(-1, 2).T
        values = np.where(np.isfinite(values), values, np.nan)
        if ending == "_accuracy":
            # To one in a million: an accuracy of 1 may be a quotient of rounded sums.
            values = np.round(100 * (1 - values), 4) + 0.0
        if np.isfinite(values).any():
            curves[name] = epochs, values
    return curves


def _place(name: str) -> int:
    """Return where a curve stands among the others."""
    return list(_CURVES).index(name) if name in _CURVES else len(_CURVES)


def _draw_curves(
    axes: "Axes", curves: Mapping[str, tuple[np.ndarray, np.ndarray]], unit: str
) -> None:
    """Draw the curves of one panel, with their last figures in the legend above it."""
    from matplotlib.ticker import MaxNLocator

    others = iter(_OTHER_CURVES * len(curves))
    longest = max(len(epochs) for epochs, _ in curves.values())
    for name, (epochs, values) in curves.items():
        colour, marker, line = _CURVES.get(name) or next(others)
        label = f"{name} {values[np.isfinite(values)][-1]:.3g}{unit}"
        if name == "validation":
            best = int(np.nanargmin(values))
            label += f", lowest {values[best]:.3g}{unit} at epoch {epochs[best]:g}"
            axes.plot(
                epochs[best], values[best], "o", gid="lowest", markersize=12, markeredgewidth=1.5,
                markerfacecolor="none", markeredgecolor=colour, zorder=4,
            )  # fmt: skip
        axes.plot(
            epochs, values, line, gid=name, label=label, color=colour, linewidth=1.6, zorder=3,
            marker=marker if longest <= 40 else "", markersize=4,
        )  # fmt: skip
    _set_scale(axes, np.concatenate([values for _, values in curves.values()]))
    if axes.dataLim.width == 0:
        axes.set_xlim(axes.dataLim.x0 - 0.5, axes.dataLim.x0 + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=(1, 2, 5, 10), integer=True, min_n_ticks=1))
    axes.grid(color=RULE, linewidth=0.8)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), frameon=False, borderaxespad=0.2, handlelength=3
    )


def _set_scale(axes: "Axes", values: np.ndarray) -> None:
    """Make the y axis logarithmic where the figures span more than a decade; 0 has its place."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    values = values[np.isfinite(values)]
    positive = values[values > 0]
    if values.min() < 0 or positive.size == 0 or positive.max() <= 10 * positive.min():
        axes.ticklabel_format(axis="y", useOffset=False)
        return
    smallest, largest = positive.min(), positive.max()
    if (values == 0).any():
        # Linear up to the smallest figure, where 0 has a tick of its own.
        axes.set_yscale("symlog", linthresh=smallest, linscale=0.5)
        axes.set_ylim(bottom=-0.1 * smallest)
    else:
        axes.set_yscale("log")
    steps = (1, 2, 5) if largest < 300 * smallest else (1,)
    ticks = LogLocator(subs=steps).tick_values(smallest, largest)
    ticks = [tick for tick in ticks if smallest / 1.3 <= tick <= 1.3 * largest]
    if (values == 0).any():
        ticks = [0, *ticks]
    axes.set_yticks(ticks, [f"{tick:.12g}" for tick in ticks])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
