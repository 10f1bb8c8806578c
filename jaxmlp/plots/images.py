"""Images: what the first layer's units look for, and the surest mistakes."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxmlp.plots.style import GREY, RULE, WIDTH, count, percent, short, styled, write
from jaxmlp.validation import check_finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_UNITS = 100
_MOST_MISTAKES = 24


def first_layer_weights(
    weight: np.ndarray, image_shape: tuple[int, int], path: str | os.PathLike[str]
) -> Path | None:
    """Write `first_layer_weights_figure` to a PNG file; return its path."""
    return write(first_layer_weights_figure(weight, image_shape), path)


@styled()
def first_layer_weights_figure(weight: np.ndarray, image_shape: tuple[int, int]) -> "Figure":
    """Return the first layer's units of largest norm, each as the image of its weights.

    Args:
        weight: (H, D), finite.
        image_shape: (rows, columns), with rows · columns = D.

    Returns:
        The figure, of up to 100 units, the largest norm first.

    Raises:
        ValueError: D pixels do not make such an image, or a weight is not finite.
    """
    from matplotlib.figure import Figure

    weight = np.asarray(weight, np.float64)
    check_finite("weight", weight)
    units = len(weight)
    norms = np.linalg.norm(weight, axis=1)
    largest = np.argsort(-norms, kind="stable")[:_MOST_UNITS]
    images = as_images("weight", weight[largest], image_shape)
    # A few outliers would leave the others pale.
    limit = float(np.quantile(np.abs(images), 0.995)) or 1.0
    clipped = bool((np.abs(images) > limit).any())

    mosaic = _mosaic(images)
    height = 0.5 + 8.2 * len(mosaic) / mosaic.shape[1]
    figure = Figure(figsize=(WIDTH, min(max(height, 3), 9)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(mosaic, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_axis_off()
    which = f"{len(largest)} of {units:,} units" if len(largest) < units else count(units, "unit")
    figure.suptitle(f"First layer: the weights of {which}, the largest norm first")
    bar = figure.colorbar(
        image, ax=axes, shrink=0.6, aspect=30, pad=0.02, extend="both" if clipped else "neither"
    )
    bar.set_label("weight")
    return figure


def confident_mistakes(
    inputs: np.ndarray,
    image_shape: tuple[int, int],
    true_names: Sequence[str],
    predicted_names: Sequence[str],
    probabilities: np.ndarray,
    path: str | os.PathLike[str],
    *,
    of: str = "examples",
) -> Path | None:
    """Write `confident_mistakes_figure` to a PNG file; return its path, or None if it is None."""
    figure = confident_mistakes_figure(
        inputs, image_shape, true_names, predicted_names, probabilities, of=of
    )
    return write(figure, path)


@styled()
def confident_mistakes_figure(
    inputs: np.ndarray,
    image_shape: tuple[int, int],
    true_names: Sequence[str],
    predicted_names: Sequence[str],
    probabilities: np.ndarray,
    *,
    of: str = "examples",
) -> "Figure | None":
    """Return the images classified wrong with the highest probability, the surest first.

    Args:
        inputs: (N, D), images as they are before any scaling.
        image_shape: (rows, columns), with rows · columns = D.
        true_names: The N names of the true classes.
        predicted_names: The N names of the predicted classes.
        probabilities: (N,), of the predicted class.
        of: What the inputs are, in the title.

    Returns:
        The figure, of up to 24 images, or None where there is no mistake.

    Raises:
        ValueError: D pixels do not make such an image, or the lengths differ.
    """
    from matplotlib.figure import Figure

    lengths = {len(inputs), len(true_names), len(predicted_names), len(probabilities)}
    if len(lengths) > 1:
        raise ValueError(
            f"inputs, names, probabilities: expected the same length, got {sorted(lengths)}"
        )
    wrong = np.flatnonzero(np.asarray(true_names) != np.asarray(predicted_names))
    if len(wrong) == 0:
        return None
    probabilities = np.asarray(probabilities)
    shown = wrong[np.argsort(-probabilities[wrong], kind="stable")][:_MOST_MISTAKES]
    images = as_images("inputs", np.asarray(inputs)[shown], image_shape)
    pairs = [(short(true_names[n], 12), short(predicted_names[n], 12)) for n in shown]
    apart = " " if max(len(true + predicted) for true, predicted in pairs) <= 8 else "\n"
    across, down = 6, math.ceil(len(shown) / 6)
    height = 0.8 + 1.9 * down
    figure = Figure(figsize=(WIDTH, height))
    figure.subplots_adjust(
        left=0.02,
        right=0.98,
        bottom=0.1 / height,
        top=1 - (1 if apart == " " else 1.15) / height,
        wspace=0.1,
        hspace=0.35,
    )
    what = f"the {len(shown)} surest of {len(wrong):,} mistakes"
    if len(shown) == len(wrong):
        what = "the only mistake" if len(wrong) == 1 else f"all {len(wrong)} mistakes"
    figure.text(
        0.02, 1 - 0.12 / height, f"Confident mistakes: {what} among {len(inputs):,} {of}",
        va="top", fontsize=12,
    )  # fmt: skip
    figure.text(
        0.02, 1 - 0.4 / height, "true class → predicted class, probability of the predicted class",
        va="top", fontsize=10, color=GREY,
    )  # fmt: skip
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color=RULE)
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    low, high = images.min(), images.max()
    for axes, image, (true, predicted), n in zip(
        grid[: len(shown)], images, pairs, shown, strict=True
    ):
        axes.imshow(image, cmap="gray_r", vmin=low, vmax=high, interpolation="nearest")
        sure = percent(float(probabilities[n]), 1)
        axes.set_title(f"{true} →{apart}{predicted}, {sure} %", fontsize=9.5, pad=3)
    return figure


def as_images(name: str, rows: np.ndarray, image_shape: tuple[int, int]) -> np.ndarray:
    """Return rows (N, D) as images (N, rows, columns), or raise ValueError."""
    if rows.ndim != 2 or rows.shape[1] != math.prod(image_shape):
        raise ValueError(
            f"{name}: expected rows of {math.prod(image_shape)} pixels for images of shape "
            f"{tuple(image_shape)}, got shape {rows.shape}"
        )
    return rows.reshape(-1, *image_shape)


def _mosaic(images: np.ndarray) -> np.ndarray:
    """Return images (N, rows, columns) as one, side by side, with gaps of NaN."""
    n_images, height, width = images.shape
    gap = max(1, round(0.08 * max(height, width)))
    across = min(n_images, math.ceil(math.sqrt(n_images * (height + gap) / (width + gap))))
    down = math.ceil(n_images / across)
    tiles = np.full((down * across, height + gap, width + gap), np.nan)
    tiles[:n_images, :height, :width] = images
    grid = tiles.reshape(down, across, height + gap, width + gap).swapaxes(1, 2)
    return grid.reshape(down * (height + gap), across * (width + gap))[:-gap, :-gap]
