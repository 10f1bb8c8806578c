"""Influence: the training examples that helped and harmed a prediction, and those of themselves."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxmlp.influence import strongest
from jaxmlp.plots.images import as_images
from jaxmlp.plots.style import BLUE, GREY, RULE, VERMILION, WIDTH, count, short, styled, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_TESTS = 6
_MOST_TOP = 5
_MOST_RANKED = 24


def influential_examples(
    scores: np.ndarray,
    train_names: Sequence[str],
    test_names: Sequence[str],
    path: str | os.PathLike[str],
    *,
    images: tuple[np.ndarray, np.ndarray] | None = None,
    image_shape: tuple[int, int] | None = None,
    of: str = "test example",
) -> Path | None:
    """Write `influential_examples_figure` to a PNG file; return its path, or None if it is None."""
    figure = influential_examples_figure(
        scores, train_names, test_names, images=images, image_shape=image_shape, of=of
    )
    return write(figure, path)


@styled()
def influential_examples_figure(
    scores: np.ndarray,
    train_names: Sequence[str],
    test_names: Sequence[str],
    *,
    images: tuple[np.ndarray, np.ndarray] | None = None,
    image_shape: tuple[int, int] | None = None,
    of: str = "test example",
) -> "Figure | None":
    """Return the most helpful and the most harmful training examples of some test examples.

    Images are shown as such; other examples are bars of their scores.

    Args:
        scores: (N, M), as `jaxmlp.influence` returns them.
        train_names: The N names of the training examples' targets.
        test_names: M titles of the test examples.
        images: (N, D) and (M, D), the inputs before any scaling, where they are images.
        image_shape: (rows, columns), with rows · columns = D, with `images`.
        of: What one of the M examples is, in the title.

    Returns:
        The figure, of the first six test examples and five training examples of either kind for
        each, or None where there is no score.

    Raises:
        ValueError: The lengths differ, or D pixels do not make such an image.
    """
    scores = np.asarray(scores, np.float64)
    if scores.shape != (len(train_names), len(test_names)):
        raise ValueError(
            f"scores: expected shape {(len(train_names), len(test_names))} for "
            f"{len(train_names)} and {len(test_names)} names, got {scores.shape}"
        )
    if scores.size == 0:
        return None
    shown = min(scores.shape[1], _MOST_TESTS)
    picked = [strongest(scores[:, m], _MOST_TOP) for m in range(shown)]
    title = f"Influence of {count(len(scores), 'training example')} on {count(shown, of)}"
    if shown < scores.shape[1]:
        title += f", the first of {scores.shape[1]:,}"
    if images is None or image_shape is None:
        return _bars(title, scores, train_names, test_names, picked)
    train, test = (
        as_images(name, np.asarray(rows), image_shape)
        for name, rows in zip(("training images", "test images"), images, strict=True)
    )
    return _rows(title, scores, train_names, test_names, picked, train, test)


def _rows(
    title: str,
    scores: np.ndarray,
    train_names: Sequence[str],
    test_names: Sequence[str],
    picked: Sequence[tuple[np.ndarray, np.ndarray]],
    train: np.ndarray,
    test: np.ndarray,
) -> "Figure":
    """Return a row of images for each test example: itself, what helped it, what harmed it."""
    from matplotlib.figure import Figure

    between = _between(train_names, np.concatenate([n for kinds in picked for n in kinds]), 9)
    # In inches: an image, the lines above the rows, and a row with its image.
    wide = 0.75
    tall = wide * min(test.shape[1] / test.shape[2], 1.5)
    head, row = 1.0, tall + (0.7 if between == " · " else 0.82)
    height = head + row * len(picked)
    figure = Figure(figsize=(WIDTH, height))
    _text(figure, height, 0.12, title, 12)
    _text(
        figure, height, 0.4,
        "of each training example: its class, its number, its score; the score is the sum of "
        "learning rate × inner product of the gradients",
        9, GREY,
    )  # fmt: skip
    # As fractions of the width: from one image to the next, and where the two kinds begin.
    step = 0.085
    groups = ((0.135, "most helpful", BLUE), (0.145 + 5 * step, "most harmful", VERMILION))
    for left, label, colour in groups:
        _text(figure, height, 0.72, label, 10.5, colour, left + 0.004)
    for m, kinds in enumerate(picked):
        top = head + row * m
        low = (height - top - row + 0.12) / height
        size = wide / WIDTH, tall / height
        _text(figure, height, top + 0.04, short(test_names[m], 90), 9.5)
        everything = np.concatenate([train[np.concatenate(kinds)].ravel(), test[m].ravel()])
        limits = everything.min(), everything.max()
        _image(figure.add_axes((0.015, low, *size)), test[m], limits, "black")
        for kind, (left, _, colour) in zip(kinds, groups, strict=True):
            if len(kind) == 0:
                _text(figure, height, top + 0.6, "none", 9, GREY, left + 0.004)
            for place, n in enumerate(kind):
                axes = figure.add_axes((left + place * step, low, *size))
                _image(axes, train[n], limits, colour)
                note = f"{short(train_names[n], 10)}{between}{n}\n{_score(scores[n, m])}"
                axes.set_title(note, fontsize=7.5, pad=2)
    return figure


def _between(names: Sequence[str], numbers: np.ndarray, longest: int) -> str:
    """Return what stands between name and number: a dot where every pair has room in a line."""
    lengths = [len(str(names[n])) + len(str(n)) for n in numbers]
    return " · " if max(lengths, default=0) <= longest else "\n"


def _image(axes: "Axes", image: np.ndarray, limits: tuple[float, float], colour: str) -> None:
    """Draw an image in a frame."""
    axes.imshow(image, cmap="gray_r", vmin=limits[0], vmax=limits[1], interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=colour)


def _text(
    figure: "Figure", height: float, down: float, text: str, size: float, colour: str = "black",
    x: float = 0.015,
) -> None:  # fmt: skip
    """Write a line so many inches below the top."""
    figure.text(x, 1 - down / height, text, va="top", fontsize=size, color=colour)


def _bars(
    title: str,
    scores: np.ndarray,
    train_names: Sequence[str],
    test_names: Sequence[str],
    picked: Sequence[tuple[np.ndarray, np.ndarray]],
) -> "Figure":
    """Return a panel of bars for each test example."""
    from matplotlib.figure import Figure

    across = min(len(picked), 2)
    down = math.ceil(len(picked) / across)
    figure = Figure(figsize=(WIDTH, 0.8 + 2.9 * down), layout="constrained")
    figure.suptitle(title)
    figure.supxlabel(
        "number and target of each training example; blue helped, orange harmed; the score is the "
        "sum of learning rate × inner product of the gradients",
        fontsize=8, color=GREY,
    )  # fmt: skip
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for m, axes in enumerate(panels):
        if m >= len(picked):
            axes.set_axis_off()
            continue
        helpful, harmful = picked[m]
        order = np.concatenate([helpful, harmful[::-1]])
        names = [f"{n}: {short(train_names[n], 12)}" for n in order]
        _bar(axes, names, scores[order, m])
        axes.set_title(short(test_names[m], 60), fontsize=9.5)
    return figure


def _bar(axes: "Axes", names: Sequence[str], values: np.ndarray) -> None:
    """Draw horizontal bars, the first on top, blue above 0 and vermilion below."""
    places = np.arange(len(values))
    axes.barh(places, values, color=np.where(values > 0, BLUE, VERMILION), height=0.7, zorder=3)
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=4)
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("score")
    axes.grid(axis="x", color=RULE, linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.ticklabel_format(axis="x", scilimits=(-3, 4))
    axes.spines["left"].set_visible(False)


def most_self_influential(
    scores: np.ndarray,
    names: Sequence[str],
    path: str | os.PathLike[str],
    *,
    images: np.ndarray | None = None,
    image_shape: tuple[int, int] | None = None,
) -> Path | None:
    """Write `most_self_influential_figure` to a PNG file; return its path, or None."""
    figure = most_self_influential_figure(scores, names, images=images, image_shape=image_shape)
    return write(figure, path)


@styled()
def most_self_influential_figure(
    scores: np.ndarray,
    names: Sequence[str],
    *,
    images: np.ndarray | None = None,
    image_shape: tuple[int, int] | None = None,
) -> "Figure | None":
    """Return the training examples of the highest self-influence: outliers and wrong labels.

    Args:
        scores: (N,), as `jaxmlp.self_influence` returns them.
        names: The N names of the examples' targets.
        images: (N, D), the inputs before any scaling, where they are images.
        image_shape: (rows, columns), with rows · columns = D, with `images`.

    Returns:
        The figure, of up to 24 examples, the highest first, or None where there is none.

    Raises:
        ValueError: The lengths differ, or D pixels do not make such an image.
    """
    from matplotlib.figure import Figure

    scores = np.asarray(scores, np.float64)
    if scores.shape != (len(names),):
        raise ValueError(f"scores: expected shape ({len(names)},), got {scores.shape}")
    if scores.size == 0:
        return None
    order = np.argsort(-scores, kind="stable")[:_MOST_RANKED]
    which = f"the {len(order)} highest of {count(len(scores), 'training example')}"
    if len(order) == len(scores):
        which = count(len(scores), "training example")
    title = f"Self-influence: {which}"
    note = "the sum of learning rate × squared norm of the example's gradient"
    if images is None or image_shape is None:
        figure = Figure(figsize=(WIDTH, 1.1 + 0.24 * len(order)), layout="constrained")
        figure.suptitle(title)
        axes = figure.subplots()
        _bar(axes, [f"{n}: {short(names[n], 20)}" for n in order], scores[order])
        axes.set(xlabel=f"score: {note}", ylabel="training example: its number and target")
        return figure
    shown = as_images("images", np.asarray(images)[order], image_shape)
    between = _between(names, order, 12)
    across, down = 8, math.ceil(len(order) / 8)
    head = 1.05 if between == " · " else 1.2
    height = head + 1.55 * down
    figure = Figure(figsize=(WIDTH, height))
    figure.subplots_adjust(
        left=0.015, right=0.985, bottom=0.08 / height, top=1 - head / height, wspace=0.12,
        hspace=0.42 if between == " · " else 0.6,
    )  # fmt: skip
    _text(figure, height, 0.12, title, 12)
    _text(figure, height, 0.4, f"class as labelled, number, score: {note}", 9, GREY)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid[len(order) :]:
        axes.set_axis_off()
    limits = shown.min(), shown.max()
    for axes, image, n in zip(grid, shown, order, strict=False):
        _image(axes, image, limits, RULE)
        note = f"{short(names[n], 12)}{between}{n}\n{_score(float(scores[n]))}"
        axes.set_title(note, fontsize=8.5, pad=3)
    return figure


def _score(value: float) -> str:
    """Return a score in three digits, with a true minus."""
    return f"{value:#.3g}".replace("-", "−")
