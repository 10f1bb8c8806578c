"""Pictures of a run: learning curves, mistakes, weights, influence. matplotlib draws them, as PNG.

Each picture has a function that returns its `Figure`, and one that writes that figure to a file.
Figures are made without pyplot, so that no window opens and no setting of the caller's changes,
and in matplotlib's own defaults, so that none of the caller's shows. Where there is nothing to
draw, the figure is None and no file is written.
"""

from jaxmlp.plots.confusion import confusion_matrix, confusion_matrix_figure
from jaxmlp.plots.curves import learning_curves, learning_curves_figure
from jaxmlp.plots.images import (
    confident_mistakes,
    confident_mistakes_figure,
    first_layer_weights,
    first_layer_weights_figure,
)
from jaxmlp.plots.influence import (
    influential_examples,
    influential_examples_figure,
    most_self_influential,
    most_self_influential_figure,
)
from jaxmlp.plots.regression import predicted_against_true, predicted_against_true_figure
from jaxmlp.plots.run import PICTURES, draw_run
from jaxmlp.plots.surface import response_surface, response_surface_figure

__all__ = [
    "PICTURES",
    "confident_mistakes",
    "confident_mistakes_figure",
    "confusion_matrix",
    "confusion_matrix_figure",
    "draw_run",
    "first_layer_weights",
    "first_layer_weights_figure",
    "influential_examples",
    "influential_examples_figure",
    "learning_curves",
    "learning_curves_figure",
    "most_self_influential",
    "most_self_influential_figure",
    "predicted_against_true",
    "predicted_against_true_figure",
    "response_surface",
    "response_surface_figure",
]
