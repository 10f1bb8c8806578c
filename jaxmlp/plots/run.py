"""All the pictures of a run, in its folder."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxmlp.data.examples import Examples
from jaxmlp.evaluation import is_classifier, predictions
from jaxmlp.network import Network, Parameters
from jaxmlp.plots.confusion import confusion_matrix
from jaxmlp.plots.curves import learning_curves
from jaxmlp.plots.images import confident_mistakes, first_layer_weights
from jaxmlp.plots.regression import predicted_against_true
from jaxmlp.scaling import Scaling

PICTURES = (
    "learning-curves.png",
    "confusion-matrix.png",
    "first-layer-weights.png",
    "confident-mistakes.png",
    "predicted-against-true.png",
)
"""The files that `draw_run` writes, as far as they apply."""


def draw_run(
    folder: str | os.PathLike[str],
    history: Sequence[Mapping[str, float]],
    network: Network,
    params: Parameters,
    examples: Examples | None,
    classes: Sequence[str] | None,
    image_shape: tuple[int, int] | None = None,
    scaling: Scaling | None = None,
    *,
    part: str = "test",
) -> list[Path]:
    """Draw all the pictures of a run that apply into its folder, named as in `PICTURES`.

    A picture that stands there from before and applies no more is removed.

    Args:
        folder: The run's folder.
        history: The records of its epochs, or none.
        network: The network.
        params: Its parameters.
        examples: The examples to be judged by, or None. Rows of weight 0 do not count; other
            weights do not matter here.
        classes: The name of each class, or None for a regression. A network with a single output
            tells the second of two.
        image_shape: (rows, columns) where the inputs are images, or None.
        scaling: What the inputs go through before the first layer, or None.
        part: What the examples are called in the titles: "test examples".

    Returns:
        The files written.

    Raises:
        ValueError: Arguments that do not fit one another.
        OSError: A file cannot be written.
    """
    paths = {name: Path(folder, name) for name in PICTURES}
    written = [learning_curves(history, paths["learning-curves.png"])]
    if image_shape is not None:
        weight = np.asarray(params[0].weight, np.float64)
        written.append(first_layer_weights(weight, image_shape, paths["first-layer-weights.png"]))
    if examples is not None:
        inputs, targets = examples.inputs, examples.targets
        if examples.weights is not None:
            inputs, targets = (array[examples.weights > 0] for array in (inputs, targets))
        outputs = np.asarray(predictions(network, params, inputs, scaling=scaling))
        of = f"{part} examples"
        if classes is not None:
            if outputs.shape[1] == 1 and len(classes) == 2:
                outputs = np.hstack([1 - outputs, outputs])
            if outputs.shape[1] != len(classes):
                raise ValueError(
                    f"classes: expected a name for each of {outputs.shape[1]} outputs, got "
                    f"{len(classes)}"
                )
            predicted = np.argmax(outputs, axis=1)
            counts = np.zeros((len(classes), len(classes)), int)
            np.add.at(counts, (targets, predicted), 1)
            written.append(confusion_matrix(counts, classes, paths["confusion-matrix.png"], of=of))
            if image_shape is not None and is_classifier(network):
                true_names = [classes[int(k)] for k in targets]
                predicted_names = [classes[int(k)] for k in predicted]
                surest = outputs.max(axis=1)
                path = paths["confident-mistakes.png"]
                written.append(
                    confident_mistakes(
                        inputs, image_shape, true_names, predicted_names, surest, path, of=of
                    )
                )
        elif not is_classifier(network):
            path = paths["predicted-against-true.png"]
            targets = targets.reshape(outputs.shape)
            written.append(predicted_against_true(targets, outputs, path, of=of))
    done = [path for path in written if path is not None]
    for path in paths.values():
        if path not in done:
            path.unlink(missing_ok=True)
    return done
