"""A regression's predictions against the true values."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxmlp.plots.style import BLUE, GREY, RULE, WIDTH, styled, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_OUTPUTS = 6
_MOST_POINTS = 20_000


def predicted_against_true(
    targets: np.ndarray,
    predictions: np.ndarray,
    path: str | os.PathLike[str],
    *,
    of: str = "examples",
) -> Path | None:
    """Write `predicted_against_true_figure` to a PNG file; return its path, or None."""
    return write(predicted_against_true_figure(targets, predictions, of=of), path)


@styled()
def predicted_against_true_figure(
    targets: np.ndarray, predictions: np.ndarray, *, of: str = "examples"
) -> "Figure | None":
    """Return a regression's predictions against the true values, a panel for each output.

    The panels' titles give the root of the mean squared error and R², the share of the variance
    explained.

    Args:
        targets: (N, K) or (N,).
        predictions: Of the same shape.
        of: What is predicted, in the title.

    Returns:
        The figure, with the first six outputs, or None where no pair of values is finite.

    Raises:
        ValueError: The shapes differ.
    """
    from matplotlib.figure import Figure

    true, predicted = (np.asarray(values, np.float64) for values in (targets, predictions))
    if true.shape != predicted.shape or true.ndim not in (1, 2):
        raise ValueError(
            f"predictions: expected the shape of the targets, (N, K) or (N,), got "
            f"{predicted.shape} for {true.shape}"
        )
    true, predicted = (values.reshape(len(values), -1) for values in (true, predicted))
    finite = (np.isfinite(true) & np.isfinite(predicted)).all(axis=1)
    if not finite.any():
        return None
    outputs = true.shape[1]
    panels = min(outputs, _MOST_OUTPUTS)
    across = min(panels, 3)
    down = math.ceil(panels / across)
    size = 7.2 if panels == 1 else WIDTH / across + 0.2
    figure = Figure(figsize=(WIDTH, 0.4 + size * down), layout="constrained")
    title = f"Predicted against true: {len(true):,} {of}"
    if panels < outputs:
        title += f", the first {panels} of {outputs:,} outputs"
    if not finite.all():
        title += f", {len(true) - int(finite.sum()):,} of them not finite and left out"
    figure.suptitle(title)
    for output, axes in enumerate(figure.subplots(down, across, squeeze=False).flat):
        if output < panels:
            _draw_pairs(axes, true[finite, output], predicted[finite, output])
        else:
            axes.set_axis_off()
        if panels > 1 and output < panels:
            axes.set_title(f"output {output + 1}: {axes.get_title()}")
    return figure


def _draw_pairs(axes: "Axes", true: np.ndarray, predicted: np.ndarray) -> None:
    """Draw predictions against true values, and what their difference amounts to."""
    from matplotlib.ticker import MaxNLocator

    error = float(np.sqrt(np.mean((predicted - true) ** 2)))
    variance = float(np.var(true))
    explained = f"{1 - error**2 / variance:.3f}" if variance else "–"
    axes.set_title(f"RMSE {error:.3g}, R² {explained}")
    low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    margin = 0.04 * (high - low) or 1.0
    every = math.ceil(len(true) / _MOST_POINTS)  # more would only be slow, and cover one another
    axes.axline((low, low), slope=1, color=GREY, linewidth=1, linestyle="--")
    axes.plot(
        true[::every], predicted[::every], "o", color=BLUE, markeredgewidth=0,
        markersize=4 if len(true) <= 2000 else 2, alpha=0.5,
    )  # fmt: skip
    limits = low - margin, high + margin
    axes.set(
        xlabel="true",
        ylabel="predicted",
        xlim=limits,
        ylim=limits,
        aspect="equal",
        adjustable="box",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
    axes.grid(color=RULE, linewidth=0.8)
