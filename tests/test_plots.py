"""Pictures of a run: what they show is what they were given, and where they are written."""

import subprocess
import sys
from typing import Any

import jax
import matplotlib
import matplotlib.figure
import numpy as np
import pytest
from files import message_of
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

import jaxmlp
from jaxmlp import Layer, Network, plots
from jaxmlp.data import Examples
from jaxmlp.plots import run as plots_run
from jaxmlp.scaling import Scaling

# Any: where a figure is None, the test fails that uses it.
learning_curves_figure: Any = plots.learning_curves_figure
confusion_matrix_figure: Any = plots.confusion_matrix_figure
confident_mistakes_figure: Any = plots.confident_mistakes_figure
predicted_against_true_figure: Any = plots.predicted_against_true_figure
influential_examples_figure: Any = plots.influential_examples_figure
most_self_influential_figure: Any = plots.most_self_influential_figure


def record(epoch, **figures):
    return {"epoch": epoch, **figures, "seconds": 0.1, "examples_per_second": 1e4}


HISTORY = [
    record(
        epoch,
        train_loss=2.0 / epoch**2,
        train_accuracy=1 - 0.4 / epoch**2,
        validation_loss=1.0 + (epoch - 3) ** 2 / 10,
        validation_accuracy=[0.7, 0.8, 0.85, 0.95, 0.9][epoch - 1],
        test_loss=1.5 / epoch,
        test_accuracy=1 - 0.5 / epoch,
    )
    for epoch in range(1, 6)
]


def line(axes, name):
    """The points of the curve of that name, (x, y)."""
    (found,) = [line for line in axes.lines if line.get_gid() == name]
    return found.get_xdata(), found.get_ydata()


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def shown_text(figure):
    """What a reader reads, drawn: titles, labels, ticks and cells."""
    FigureCanvasAgg(figure).draw()
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible()]


# Learning curves.


def test_the_curves_are_the_losses_and_the_error_rates_in_percent():
    figure = learning_curves_figure(HISTORY)
    losses, errors = figure.axes
    assert (losses.get_xlabel(), losses.get_ylabel()) == ("epoch", "loss")
    assert (errors.get_xlabel(), errors.get_ylabel()) == ("epoch", "error rate, %")
    for name in ("train", "validation", "test"):
        epochs, values = line(losses, name)
        np.testing.assert_array_equal(epochs, [1, 2, 3, 4, 5])
        np.testing.assert_array_equal(values, [one[f"{name}_loss"] for one in HISTORY])
        epochs, values = line(errors, name)
        expected = [100 * (1 - one[f"{name}_accuracy"]) for one in HISTORY]
        np.testing.assert_allclose(values, expected, atol=1e-4)  # drawn to one in a million


def test_the_lowest_validation_figures_are_ringed_and_named():
    losses, errors = learning_curves_figure(HISTORY).axes
    for axes, best in ((losses, (3, 1.0)), (errors, (4, 5.0))):
        (epoch,), (value,) = line(axes, "lowest")
        assert (epoch, value) == pytest.approx(best)
    assert legend(losses) == ["train 0.08", "validation 1.4, lowest 1 at epoch 3", "test 0.3"]
    assert legend(errors) == [
        "train 1.6 %",
        "validation 10 %, lowest 5 % at epoch 4",
        "test 10 %",
    ]


@pytest.mark.parametrize(
    "values, scale",
    [
        ([2.0, 0.3], "linear"),
        ([2.0, 0.1], "log"),
        ([2.0, 0.1, 0.0], "symlog"),
        ([2.0, 0.0], "linear"),
        ([0.0, 0.0], "linear"),
        ([2.0, 0.1, -0.5], "linear"),
    ],
)
def test_the_axis_is_logarithmic_where_figures_span_more_than_a_decade(values, scale):
    history = [{"epoch": epoch, "train_loss": loss} for epoch, loss in enumerate(values, 1)]
    (axes,) = learning_curves_figure(history).axes
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert low < min(values) and high > max(values)


def test_the_ticks_of_a_logarithmic_axis_are_plain_numbers_within_the_figures():
    history = [{"epoch": 1, "train_loss": 3.0}, {"epoch": 2, "train_loss": 0.04}]
    figure = learning_curves_figure(history)
    FigureCanvasAgg(figure).draw()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["0.05", "0.1", "0.2", "0.5", "1", "2"]


def test_a_missing_entry_is_passed_over_and_one_that_is_not_finite_breaks_the_curve():
    history = [
        {"epoch": 1, "train_loss": 4.0, "test_loss": 3.0},
        {"epoch": 2, "train_loss": float("nan")},
        {"epoch": 3, "train_loss": 2.0, "test_loss": None},
        {"epoch": 4, "train_loss": float("inf"), "test_loss": 2.0, "validation_loss": np.nan},
    ]
    (axes,) = learning_curves_figure(history).axes
    epochs, values = line(axes, "train")
    np.testing.assert_array_equal(epochs, [1, 2, 3, 4])
    np.testing.assert_array_equal(values, [4, np.nan, 2, np.nan])
    epochs, values = line(axes, "test")
    np.testing.assert_array_equal(epochs, [1, 4])
    np.testing.assert_array_equal(values, [3, 2])
    assert legend(axes) == ["train 2", "test 2"]


@pytest.mark.parametrize("history", [[], [{"epoch": 1, "train_loss": float("nan"), "seconds": 1}]])
def test_nothing_is_drawn_of_a_history_without_a_finite_figure(history, tmp_path):
    assert plots.learning_curves(history, tmp_path / "curves.png") is None
    assert list(tmp_path.iterdir()) == []


def test_epochs_are_whole_numbers_even_where_there_is_one():
    for n in (1, 2, 500):
        figure = learning_curves_figure([{"epoch": 1 + k, "train_loss": 1.0} for k in range(n)])
        FigureCanvasAgg(figure).draw()
        low, high = figure.axes[0].get_xlim()
        labels = [
            label.get_text()
            for label in figure.axes[0].get_xticklabels()
            if low <= label.get_position()[0] <= high
        ]
        assert labels and all(label.isdigit() for label in labels)


def test_other_names_than_the_usual_have_curves_of_their_own():
    names = [f"part{k}" for k in range(8)]
    history = [{"epoch": 1} | {f"{name}_loss": 1.0 for name in names}]
    (axes,) = learning_curves_figure(history).axes
    assert legend(axes) == [f"{name} 1" for name in names]


# The confusion matrix.

COUNTS = np.array([[90, 10, 0], [1, 1999, 0], [0, 0, 0]])


def cells(axes):
    """(row, column) → text, of the cells that have one."""
    return {
        (text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts
    }


def test_the_counts_stand_in_their_cells_true_classes_down_predicted_ones_across():
    figure = confusion_matrix_figure(COUNTS, ["a", "b", "c"], of="test examples")
    axes = figure.axes[0]
    assert cells(axes) == {(0, 0): "90", (0, 1): "10", (1, 0): "1", (1, 1): "1,999"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert figure.get_suptitle() == "Confusion matrix: 11 mistakes among 2,100 test examples"
    text = shown_text(figure)
    assert text.count("a") == text.count("b") == text.count("c") == 2
    # Recall: 90 of 100; 1999 of 2000, which is not 100; none of none.
    assert {"90.0", "99.9", "–"} <= set(text)


def test_colour_is_the_share_of_the_true_class_and_right_answers_are_grey():
    image = confusion_matrix_figure(COUNTS, ["a", "b", "c"]).axes[0].images[0]
    shares = image.get_array()
    np.testing.assert_array_equal(shares.mask, np.eye(3, dtype=bool))
    np.testing.assert_allclose(shares.filled(0), [[0, 10, 0], [0.05, 0, 0], [0, 0, 0]])
    colours = image.to_rgba(shares)[..., :3]
    assert np.ptp(colours[0, 0]) == 0 and 0.5 < colours[0, 0, 0] < 1
    assert (colours[0, 2] == 1).all()
    # 0.05 % beside 10 % can be seen: a distance of 1 is that from black to one pure colour.
    assert np.linalg.norm(colours[1, 0] - colours[0, 2]) > 0.05


def contrast(one, other):
    """The contrast of two colours by WCAG 2.1: from 1 to 21."""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_every_count_can_be_read_on_its_cell():
    counts = np.arange(1, 401).reshape(20, 20) ** 2
    axes = confusion_matrix_figure(counts, [str(k) for k in range(20)]).axes[0]
    colours = axes.images[0].to_rgba(axes.images[0].get_array())
    assert len(axes.texts) == 400
    for text in axes.texts:
        column, row = text.get_position()
        ink = to_rgb(text.get_color())
        # What WCAG asks of small text; the better of black and white always has it.
        assert contrast(ink, colours[row, column]) >= 4.5


@pytest.mark.parametrize(
    "count, n_classes, text",
    [
        (1118, 10, "1,118"),
        (145412, 10, "145k"),
        (999, 20, "999"),
        (1118, 20, "1.1k"),
        (12345, 20, "12k"),
        (3456789, 20, "3.5M"),
    ],
)
def test_a_count_is_abbreviated_where_its_cell_is_narrow(count, n_classes, text):
    counts = np.zeros((n_classes, n_classes), int)
    counts[0, 0] = count
    figure = confusion_matrix_figure(counts, [str(k) for k in range(n_classes)])
    assert cells(figure.axes[0]) == {(0, 0): text}


@pytest.mark.parametrize("n_classes, names", [(21, 21), (47, 47), (50, 50), (60, 60), (150, 50)])
def test_many_classes_have_names_and_no_counts(n_classes, names):
    figure = confusion_matrix_figure(
        np.eye(n_classes, dtype=int), [f"class {k}" for k in range(n_classes)]
    )
    axes = figure.axes[0]
    assert len(axes.texts) == 0
    assert len(axes.get_xticklabels()) == len(axes.get_yticklabels()) == names
    assert axes.get_yticklabels()[-1].get_text() == f"class {n_classes - n_classes // names}"
    assert figure.get_suptitle() == f"Confusion matrix: no mistake among {n_classes} examples"


def test_no_two_labels_of_the_axes_overlap():
    names = [f"a rather long name of class {k}" for k in range(47)]
    figure = confusion_matrix_figure(np.ones((47, 47), int), names)
    FigureCanvasAgg(figure).draw()
    for labels in (figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels()):
        boxes = [label.get_window_extent() for label in labels]
        for box, following in zip(boxes, boxes[1:], strict=False):
            assert not box.overlaps(following)
        assert all(figure.bbox.containsx(x) for box in boxes for x in (box.x0, box.x1))
        assert labels[12].get_text() == "a rather l… class 12"


@pytest.mark.filterwarnings("ignore:Glyph")  # up to matplotlib 3.10
def test_names_are_shown_as_they_are():
    names = ["$x^2$", "two\nlines", "日本"]
    figure = confusion_matrix_figure(np.eye(3, dtype=int), names)
    assert {"$x^2$", "two lines", "日本"} <= set(shown_text(figure))
    assert not any(label.get_parse_math() for label in figure.axes[0].get_xticklabels())


def test_a_name_that_the_font_lacks_warns_nobody(tmp_path):
    counts = np.eye(1, dtype=int)
    assert plots.confusion_matrix(counts, ["日本"], tmp_path / "matrix.png")


def test_counts_that_do_not_fit_the_names_are_refused():
    message = message_of(ValueError, lambda: confusion_matrix_figure(COUNTS, ["a", "b"]))
    assert message == "counts: expected shape (2, 2) for 2 classes, got (3, 3)"


def test_no_example_is_no_matrix():
    assert confusion_matrix_figure(np.zeros((2, 2), int), ["a", "b"]) is None


# The first layer.


def test_the_units_of_largest_norm_are_shown_the_largest_first():
    weight = np.zeros((150, 6))
    weight[:, 0] = np.arange(150) - 75.0  # norms 75, 74, 74, 73, …
    figure = plots.first_layer_weights_figure(weight, (2, 3))
    axes, bar = figure.axes
    assert figure.get_suptitle() == (
        "First layer: the weights of 100 of 150 units, the largest norm first"
    )
    mosaic = np.ma.filled(axes.images[0].get_array(), np.nan)
    # The first pixel of each image, where a gap of one pixel follows each image.
    first = mosaic[::3, ::4].ravel()
    first = first[np.isfinite(first)]
    assert len(first) == 100
    expected = weight[np.argsort(-np.abs(weight[:, 0]), kind="stable")[:100], 0]
    np.testing.assert_array_equal(first, expected)
    assert np.isnan(mosaic[2]).all() and np.isnan(mosaic[:, 3]).all()
    assert bar.get_ylabel() == "weight"


def test_white_is_no_weight_and_one_outlier_leaves_the_others_their_colour():
    weight = np.random.default_rng(0).normal(size=(100, 64))
    weight[0, 0] = 1e3
    image = plots.first_layer_weights_figure(weight, (8, 8)).axes[0].images[0]
    low, high = image.get_clim()
    assert -low == high < 5


@pytest.mark.parametrize("units, text", [(1, "1 unit"), (10, "10 units"), (100, "100 units")])
def test_all_units_are_shown_where_they_are_few(units, text):
    figure = plots.first_layer_weights_figure(np.ones((units, 4)), (2, 2))
    assert f"the weights of {text}, " in figure.get_suptitle()
    image = figure.axes[0].images[0].get_array()
    assert np.isfinite(np.ma.filled(image, np.nan)).sum() == 4 * units


def test_weights_that_make_no_image_are_refused():
    assert message_of(
        ValueError, lambda: plots.first_layer_weights_figure(np.ones((5, 4)), (2, 3))
    ) == ("weight: expected rows of 6 pixels for images of shape (2, 3), got shape (5, 4)")
    with pytest.raises(ValueError, match="weight: expected finite numbers"):
        plots.first_layer_weights_figure(np.full((5, 4), np.nan), (2, 2))


# Mistakes.


def mistakes(n, **given):
    """A figure of n examples of which the even ones are mistakes, surer and surer."""
    arguments = {
        "inputs": np.arange(n)[:, None] * np.ones((1, 6)),
        "image_shape": (2, 3),
        "true_names": ["7"] * n,
        "predicted_names": ["1" if k % 2 == 0 else "7" for k in range(n)],
        "probabilities": np.linspace(0.5, 1, n),
    }
    return confident_mistakes_figure(**arguments | given)


def test_the_surest_mistakes_come_first_each_with_its_own_image():
    figure = mistakes(101, of="test examples")
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 24
    for place, axes in enumerate(shown):
        number = 100 - 2 * place
        np.testing.assert_array_equal(axes.images[0].get_array(), np.full((2, 3), number))
        sure = "100" if number == 100 else f"{50 + number / 2:.1f}"
        assert axes.get_title() == f"7 → 1, {sure} %"
    assert [text.get_text() for text in figure.texts] == [
        "Confident mistakes: the 24 surest of 51 mistakes among 101 test examples",
        "true class → predicted class, probability of the predicted class",
    ]


def test_fewer_mistakes_are_all_shown():
    figure = mistakes(5)
    assert sum(bool(axes.images) for axes in figure.axes) == 3
    assert figure.texts[0].get_text() == "Confident mistakes: all 3 mistakes among 5 examples"
    assert "the only mistake among 2" in mistakes(2).texts[0].get_text()


def test_a_probability_is_not_rounded_up_to_certainty():
    figure = mistakes(1, probabilities=np.array([0.99999]))
    assert figure.axes[0].get_title() == "7 → 1, 99.9 %"


def test_titles_with_long_names_stand_apart():
    figure = mistakes(
        48,
        true_names=["a very long name indeed"] * 48,
        predicted_names=["yet another name of a class"] * 48,
    )
    FigureCanvasAgg(figure).draw()
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    for box, following in zip(boxes, boxes[1:], strict=False):
        assert not box.overlaps(following)
    caption = figure.texts[1].get_window_extent()
    assert not any(caption.overlaps(box) for box in boxes)


def test_no_mistake_is_no_picture(tmp_path):
    path = tmp_path / "mistakes.png"
    same = ["1", "2"]
    assert plots.confident_mistakes(np.ones((2, 4)), (2, 2), same, same, [0.9, 0.9], path) is None
    assert not path.exists()


def test_lists_of_different_lengths_are_refused():
    message = message_of(ValueError, lambda: mistakes(3, probabilities=[0.5]))
    assert message == "inputs, names, probabilities: expected the same length, got [1, 3]"


# Influence.

# Two helped the first, six harmed the second, and seven helped the third.
SCORES = np.array([[2, 0, k] if k < 2 else [0, -1, k] for k in range(8)], float)
TRAIN_NAMES = [f"kind {n % 3}" for n in range(8)]
TEST_NAMES = ["first", "second", "third"]


def test_helpful_and_harmful_images_stand_in_their_rows_with_class_number_and_score():
    images = np.arange(8 * 6).reshape(8, 6), 100 + np.arange(3 * 6).reshape(3, 6)
    figure = influential_examples_figure(
        SCORES, TRAIN_NAMES, TEST_NAMES, images=images, image_shape=(2, 3)
    )
    shown = [(axes.get_title(), axes.images[0].get_array()) for axes in figure.axes]
    # The first helped by 0 and 1; the second harmed by 2 … 6; the third helped by 7 … 3.
    titles = ["", "kind 0 · 0\n2.00", "kind 1 · 1\n2.00"]
    titles += ["", *(f"kind {n % 3} · {n}\n−1.00" for n in range(2, 7))]
    titles += ["", *(f"kind {n % 3} · {n}\n{n}.00" for n in range(7, 2, -1))]
    assert [title for title, _ in shown] == titles
    for title, image in shown:
        if title:
            n = int(title.split(" · ")[1].split("\n")[0])
            np.testing.assert_array_equal(image, images[0][n].reshape(2, 3))
    np.testing.assert_array_equal(shown[3][1], images[1][1].reshape(2, 3))
    texts = [text.get_text() for text in figure.texts]
    assert texts[0] == "Influence of 8 training examples on 3 test examples"
    assert {"most helpful", "most harmful", *TEST_NAMES} <= set(texts)
    assert texts.count("none") == 3  # none harmed the first, none helped the second …


def test_no_title_of_an_influential_image_covers_another():
    names = ["a name of a class that is long"] * 8
    scores = np.where(np.arange(8) % 2, 1, -1)[:, None] * -1.23456e-7 * np.ones((8, 6))
    figure = influential_examples_figure(
        scores, names, ["a title of an example"] * 6, images=(np.ones((8, 64)), np.ones((6, 64))),
        image_shape=(8, 8),
    )  # fmt: skip
    FigureCanvasAgg(figure).draw()
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    boxes += [text.get_window_extent() for text in figure.texts]
    boxes = [box for box in boxes if box.width > 1]
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1


def test_other_examples_are_bars_of_their_scores_the_most_helpful_on_top():
    figure = influential_examples_figure(
        SCORES - 3.5 * (np.arange(3) == 2), TRAIN_NAMES, TEST_NAMES
    )
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == TEST_NAMES
    third = panels[2]
    assert [label.get_text().split(":")[0] for label in third.get_yticklabels()] == [*"76543210"]
    widths = [bar.get_width() for bar in third.patches]
    assert widths == [3.5, 2.5, 1.5, 0.5, -0.5, -1.5, -2.5, -3.5]
    assert third.yaxis_inverted() and third.get_xlabel() == "score"


def test_the_first_six_of_many_test_examples_are_shown():
    figure = influential_examples_figure(np.ones((2, 9)), ["a", "b"], ["test"] * 9)
    assert sum(axes.get_title() == "test" for axes in figure.axes) == 6
    assert figure.get_suptitle().endswith(" on 6 test examples, the first of 9")


@pytest.mark.parametrize("image_shape", [None, (2, 2)])
def test_the_highest_self_influence_comes_first(image_shape):
    scores = np.arange(30.0)
    images = np.arange(120).reshape(30, 4)
    figure = most_self_influential_figure(
        scores, [f"c{n}" for n in range(30)], images=images, image_shape=image_shape
    )
    if image_shape is None:
        (axes,) = figure.axes
        assert [bar.get_width() for bar in axes.patches] == [*range(29, 5, -1)]
        assert axes.get_yticklabels()[0].get_text() == "29: c29"
        assert "squared norm" in axes.get_xlabel()
        title = figure.get_suptitle()
    else:
        assert figure.axes[0].get_title() == "c29 · 29\n29.0"
        np.testing.assert_array_equal(figure.axes[23].images[0].get_array(), [[24, 25], [26, 27]])
        title = figure.texts[0].get_text()
    assert title == "Self-influence: the 24 highest of 30 training examples"


def test_no_scores_are_no_picture_and_other_numbers_of_them_are_refused(tmp_path):
    path = tmp_path / "i.png"
    assert plots.influential_examples(np.zeros((3, 0)), ["a"] * 3, [], path) is None
    assert plots.most_self_influential(np.zeros(0), [], path) is None
    assert not path.exists()
    message = message_of(
        ValueError, lambda: influential_examples_figure(np.ones((3, 2)), ["a"], [])
    )
    assert message == "scores: expected shape (1, 0) for 1 and 0 names, got (3, 2)"
    message = message_of(ValueError, lambda: most_self_influential_figure(np.ones(2), ["a"]))
    assert message == "scores: expected shape (1,), got (2,)"
    pair = np.ones((1, 4)), np.ones((1, 5))
    with pytest.raises(ValueError, match=r"^test images: expected rows of 4 pixels"):
        influential_examples_figure(np.ones((1, 1)), ["a"], ["b"], images=pair, image_shape=(2, 2))


# Regression.


def test_pairs_are_drawn_with_their_error_and_the_variance_explained():
    true = np.array([1.0, 2.0, 3.0, 4.0])
    predicted = np.array([1.5, 2.0, 3.0, 3.5])
    figure = predicted_against_true_figure(true, predicted, of="test examples")
    (axes,) = figure.axes
    # The errors' squares sum to 0.5, the mean is 1/8; the variance is 5/4: R² = 1 − 0.1.
    assert axes.get_title() == "RMSE 0.354, R² 0.900"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("true", "predicted")
    points = axes.lines[-1]
    np.testing.assert_array_equal(points.get_xydata(), np.stack([true, predicted], axis=1))
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_xlim()[0] < 1 and axes.get_xlim()[1] > 4
    assert figure.get_suptitle() == "Predicted against true: 4 test examples"


def test_each_output_has_a_panel_up_to_six():
    true = np.random.default_rng(0).normal(size=(10, 8))
    for outputs in (2, 4, 8):
        figure = predicted_against_true_figure(true[:, :outputs], 0 * true[:, :outputs])
        titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
        assert [title.split(":")[0] for title in titles] == [
            f"output {k + 1}" for k in range(min(outputs, 6))
        ]
    assert figure.get_suptitle().endswith("the first 6 of 8 outputs")


def test_constant_targets_have_no_variance_to_explain_and_rows_that_are_not_finite_are_counted():
    predicted = np.array([[1.0], [np.inf], [1.0]])
    figure = predicted_against_true_figure(np.ones((3, 1)), predicted)
    assert figure.axes[0].get_title() == "RMSE 0, R² –"
    assert figure.get_suptitle().endswith("3 examples, 1 of them not finite and left out")
    assert predicted_against_true_figure([1.0], [np.nan]) is None


def test_a_million_pairs_are_thinned_and_their_error_is_that_of_all():
    true = np.zeros(1_000_001)
    true[1] = 1001.0  # not among those drawn
    figure = predicted_against_true_figure(true, 0 * true)
    assert len(figure.axes[0].lines[-1].get_xdata()) <= 20_000
    assert figure.axes[0].get_title().startswith("RMSE 1, ")


def test_predictions_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"predictions: expected the shape of the targets"):
        predicted_against_true_figure(np.ones((3, 1)), np.ones(3))


# A run's folder.

NETWORK = Network((6, 3))
PARAMS = (Layer(np.eye(3, 6, dtype=np.float32) * 9, np.zeros(3, np.float32)),)
NAMES = ["a", "b", "c"]
# Class 0, 1, 2 and, in the last two rows, mistakes: 2 taken for 0 and 1 for 0.
INPUTS = np.eye(6, dtype=np.uint8)[[0, 1, 2, 0, 0]] * 2
TARGETS = np.array([0, 1, 2, 2, 1], np.int32)


def draw(folder, **given):
    arguments = {
        "history": HISTORY,
        "network": NETWORK,
        "params": PARAMS,
        "examples": Examples(INPUTS, TARGETS),
        "classes": NAMES,
        "image_shape": (2, 3),
        "scaling": Scaling(0.0, 0.5),
    }
    return plots.draw_run(folder, **arguments | given)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_run_of_images_has_four_pictures_of_a_readable_size(tmp_path):
    paths = draw(tmp_path)
    names = [name for name in plots.PICTURES if name != "predicted-against-true.png"]
    assert sorted(path.name for path in paths) == sorted(names) == files(tmp_path)
    for path in paths:
        assert path.parent == tmp_path
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.size[0] == 1440 and 300 < image.size[1] < 1600
            assert len(image.convert("L").getcolors()) > 20  # something is drawn


def seen(monkeypatch, name):
    """What `draw_run` hands to one of the pictures, as a list that fills."""
    calls = []
    monkeypatch.setattr(plots_run, name, lambda *given, **named: calls.append((given, named)))
    return calls


def test_a_run_counts_its_own_predictions_on_scaled_inputs(tmp_path, monkeypatch):
    matrix, wrong = seen(monkeypatch, "confusion_matrix"), seen(monkeypatch, "confident_mistakes")
    draw(tmp_path, part="validation")
    (counts, classes, _), named = matrix[0]
    np.testing.assert_array_equal(counts, [[1, 0, 0], [1, 1, 0], [1, 0, 1]])
    assert classes == NAMES and named == {"of": "validation examples"}
    (inputs, shape, true, predicted, sure, _), _ = wrong[0]
    np.testing.assert_array_equal(inputs, INPUTS)
    assert (shape, true, predicted) == ((2, 3), list("abccb"), list("abcaa"))
    # Logits 9, 0, 0 where the scaled input is 1.
    np.testing.assert_allclose(sure, np.exp(9) / (np.exp(9) + 2), rtol=1e-5)


def test_rows_of_weight_0_do_not_count(tmp_path, monkeypatch):
    matrix = seen(monkeypatch, "confusion_matrix")
    draw(tmp_path, examples=Examples(INPUTS, TARGETS, np.array([1, 2, 1, 0, 0], np.float32)))
    np.testing.assert_array_equal(matrix[0][0][0], np.eye(3))


def test_pictures_that_apply_no_more_are_removed(tmp_path):
    draw(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    right = Examples(INPUTS[:3], TARGETS[:3])
    draw(tmp_path, examples=right, image_shape=None, history=[])
    assert files(tmp_path) == ["config.json", "confusion-matrix.png"]
    assert draw(tmp_path, examples=None, image_shape=None, history=[]) == []
    assert files(tmp_path) == ["config.json"]


@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
def test_a_regression_has_its_predictions_against_the_true_values(loss, tmp_path, monkeypatch):
    pairs = seen(monkeypatch, "predicted_against_true")
    network = Network((2, 1), loss=loss)
    params = (Layer(np.array([[1.0, 2.0]], np.float32), np.array([0.5], np.float32)),)
    examples = Examples(np.eye(2, dtype=np.float32), np.array([3.0, 4.0], np.float32))
    draw(
        tmp_path, network=network, params=params, examples=examples, classes=None,
        image_shape=None, scaling=None,
    )  # fmt: skip
    (targets, predictions, _), _ = pairs[0]
    np.testing.assert_array_equal(targets, [[3], [4]])
    z = np.array([[1.5], [2.5]])
    expected = np.exp(z) if loss == "poisson" else z
    np.testing.assert_allclose(predictions, expected, rtol=1e-6)


def test_a_single_output_tells_the_second_of_two_classes(tmp_path, monkeypatch):
    matrix, wrong = seen(monkeypatch, "confusion_matrix"), seen(monkeypatch, "confident_mistakes")
    network = Network((2, 1), loss="sigmoid_binary_cross_entropy")
    params = (Layer(np.array([[2.0, -2.0]], np.float32), np.zeros(1, np.float32)),)
    inputs = np.eye(2, dtype=np.float32)[[0, 0, 1]]
    examples = Examples(inputs, np.array([1, 1, 1], np.int32))
    draw(
        tmp_path, network=network, params=params, examples=examples, classes=["no", "yes"],
        image_shape=(1, 2), scaling=None,
    )  # fmt: skip
    np.testing.assert_array_equal(matrix[0][0][0], [[0, 0], [1, 2]])
    np.testing.assert_allclose(wrong[0][0][4], 1 / (1 + np.exp(-2)), rtol=1e-6)


def test_a_squared_error_tells_classes_but_no_probabilities(tmp_path):
    draw(tmp_path, network=Network((6, 3), loss="squared_error"))
    assert files(tmp_path) == [
        "confusion-matrix.png", "first-layer-weights.png", "learning-curves.png"
    ]  # fmt: skip


def test_names_that_do_not_fit_the_outputs_are_refused(tmp_path):
    message = message_of(ValueError, lambda: draw(tmp_path, classes=["a"]))
    assert message == "classes: expected a name for each of 3 outputs, got 1"


def test_a_run_of_bfloat16_is_drawn(tmp_path):
    params = jaxmlp.init(NETWORK, jax.random.key(0), "bfloat16")
    assert tmp_path / "first-layer-weights.png" in draw(
        tmp_path, params=params, examples=None, history=[]
    )


# Files and settings.


def test_a_picture_that_cannot_be_written_leaves_the_old_one_and_nothing_beside_it(
    tmp_path, monkeypatch
):
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")

    def full(self, name, **_):
        name.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", full)
    with pytest.raises(OSError, match="No space left"):
        plots.learning_curves(HISTORY, path)
    assert files(tmp_path) == ["curves.png"] and path.read_bytes() == b"old"


def test_the_settings_of_the_caller_neither_show_nor_change(tmp_path):
    plain, styled = tmp_path / "plain.png", tmp_path / "styled.png"
    plots.learning_curves(HISTORY, plain)
    odd = {"figure.facecolor": "red", "font.size": 30, "savefig.dpi": 20, "savefig.bbox": "tight"}
    with matplotlib.rc_context(odd):
        before = dict(matplotlib.rcParams)
        plots.learning_curves(HISTORY, styled)
        assert dict(matplotlib.rcParams) == before
    assert plain.read_bytes() == styled.read_bytes()


def test_drawing_imports_no_pyplot_and_needs_no_display(tmp_path):
    code = f"""
import sys
import jaxmlp.plots
assert "matplotlib" not in sys.modules
jaxmlp.plots.learning_curves([{{"epoch": 1, "train_loss": 1.0}}], {str(tmp_path / "a.png")!r})
assert "matplotlib.pyplot" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
    assert files(tmp_path) == ["a.png"]
