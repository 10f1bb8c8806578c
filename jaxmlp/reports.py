"""Figures on a set of examples after training: class by class, or output by output.

scikit-learn computes them. It is imported when a report is asked for: the import takes a second.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxmlp.data.examples import Examples
from jaxmlp.evaluation import checked_examples, is_classifier, predictions
from jaxmlp.network import Network, Parameters, check_members, check_parameters
from jaxmlp.scaling import Scaling
from jaxmlp.uncertainty import ensemble_predictions
from jaxmlp.validation import as_host_array, check_classes

_SHOWN = 20  # the most classes whose confusion matrix is readable as text
_NAME = 24  # characters of a name that are shown
_HEADING = 8  # of one that heads a column


class Classification(NamedTuple):
    """How a classifier does, class by class; every figure is weighted where the examples are.

    Attributes:
        names: The K classes, or the K outputs where each is a decision of its own.
        precision: (K,) of what was predicted as this class, how much is.
        recall: (K,) of what is this class, how much was predicted as it.
        f1: (K,) 2 · precision · recall / (precision + recall). A ratio with nothing below is 0.
        support: (K,) how many examples of the class there are, or the sum of their weights.
        accuracy: How much is right; with decisions, how much has all of them right.
        confusion: (K, K) how many examples of class (row) were predicted as class (column), or the
            sum of their weights; None with decisions.
    """

    names: tuple[str, ...]
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray
    accuracy: float
    confusion: np.ndarray | None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as `json` takes them."""
        return _to_json(self)

    def __str__(self) -> str:
        columns = np.column_stack([self.precision, self.recall, self.f1])
        names = _cut(self.names, _NAME)
        rows = [(name, *row) for name, row in zip(names, columns, strict=True)]
        # A class that is neither there nor predicted has no part in the mean.
        met = np.full(len(columns), True)
        if self.confusion is not None:
            met = self.confusion.any(axis=0) | self.confusion.any(axis=1)
        rows.append(("mean over classes", *columns[met].mean(axis=0)))
        support = [*self.support, self.support.sum()]
        lines = _table(
            ("", "precision", "recall", "F1", "support"),
            [
                (name, *(f"{value:.4f}" for value in values), _count(number))
                for (name, *values), number in zip(rows, support, strict=True)
            ],
        )
        lines += ["", f"accuracy {self.accuracy:.4f}"]
        if self.confusion is not None and len(self.names) <= _SHOWN:
            lines += ["", "row: the class, column: predicted as", ""]
            lines += _table(
                ("", *_cut(self.names, _HEADING)),
                [
                    (name, *map(_count, row))
                    for name, row in zip(names, self.confusion, strict=True)
                ],
            )
        return "\n".join(lines)


class Regression(NamedTuple):
    """How a regression does, output by output; every figure is weighted where the examples are.

    Attributes:
        names: The K outputs.
        rmse: (K,) the root of the mean squared error.
        mae: (K,) the mean absolute error.
        r2: (K,) 1 − squared error / squared deviation from the mean. Of targets that are all the
            same it is 1 where they are met and 0 elsewhere; NaN for a single example.
    """

    names: tuple[str, ...]
    rmse: np.ndarray
    mae: np.ndarray
    r2: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """Return the figures as `json` takes them, NaN as None."""
        return _to_json(self)

    def __str__(self) -> str:
        rows = zip(_cut(self.names, _NAME), self.rmse, self.mae, self.r2, strict=True)
        return "\n".join(
            _table(
                ("output", "RMSE", "MAE", "R²"),
                [(name, f"{rmse:.6g}", f"{mae:.6g}", f"{r2:.4f}") for name, rmse, mae, r2 in rows],
            )
        )


def report(
    network: Network,
    params: Parameters,
    examples: Examples,
    classes: Sequence[str] | None = None,
    scaling: Scaling | None = None,
) -> Classification | Regression:
    """Return the figures of a network on examples.

    With softmax cross-entropy, or where classes are named, an example is of one class, and the
    largest output is what is predicted; so it is too with binary cross-entropy or the squared error
    on one-hot rows, where `jaxmlp.evaluate` counts only rows whose K decisions are all right. A
    single output of binary cross-entropy decides between two classes. Binary cross-entropy without
    names is K decisions, each reported on its own. All else is a regression.

    Args:
        network: The network.
        params: Its parameters.
        examples: Inputs (N, D), targets and weights as `jaxmlp.evaluate` takes them; where classes
            are named, the targets may be integer classes (N,) whatever the loss. Rows of weight 0
            do not count.
        classes: The name of each class, or None.
        scaling: What the inputs go through before the first layer, or None.

    Returns:
        A `Classification` or a `Regression`; `str` of it is a table.

    Raises:
        TypeError: As for `jaxmlp.loss`.
        ValueError: No examples of weight above 0, or shapes or values that do not fit.
    """
    check_parameters(network, params)
    question = _question(network, params, examples, classes, scaling)
    return _figures(question, _outputs(network, params, question))


class EnsembleReport(NamedTuple):
    """How an ensemble does, and each of its members alone.

    Attributes:
        mean: The figures of the mean of the members' predictions.
        members: Those of each member.
        disagreement: The mean over the examples of that of `jaxmlp.ensemble_predictions`, by their
            weights where they have some.
    """

    mean: Classification | Regression
    members: tuple[Classification | Regression, ...]
    disagreement: float

    def to_json(self) -> dict[str, Any]:
        """Return those of the mean, and the others beside, as `json` takes them."""
        of_members = [own.to_json() for own in self.members]
        return {**self.mean.to_json(), "members": of_members, "disagreement": self.disagreement}

    def __str__(self) -> str:
        name = "accuracy" if isinstance(self.mean, Classification) else "rmse"
        each = np.array([np.mean(getattr(own, name)) for own in self.members])
        spread = f" ± {each.std(ddof=1):.2g} (standard deviation)" if len(each) > 1 else ""
        name = "accuracy" if name == "accuracy" else "RMSE"
        return (
            f"{self.mean}\n\n"
            f"a member alone   {name} {each.mean():.4g}{spread}, from {each.min():.4g} to "
            f"{each.max():.4g}, of {len(each)}\n"
            f"disagreement     {self.disagreement:.4g}"
        )


def ensemble_report(
    network: Network,
    params: Parameters,
    examples: Examples,
    classes: Sequence[str] | None = None,
    scaling: Scaling | None = None,
) -> EnsembleReport:
    """Return the figures of the mean of M networks' predictions, and of each network alone.

    Args:
        network: The network of every member.
        params: Their parameters, every leaf (M, …).
        examples: As for `report`.
        classes: As for `report`.
        scaling: As for `report`.

    Returns:
        An `EnsembleReport`; `str` of it is the mean's table and two lines.

    Raises:
        TypeError: As for `report`.
        ValueError: As for `report`, or a member whose parameters are not finite.
    """
    count = check_members(network, params)
    members: list[Parameters] = [
        jax.tree.map(lambda leaf, m=m: leaf[m], params) for m in range(count)
    ]
    question = _question(network, members[0], examples, classes, scaling)
    mean, disagreement = map(
        np.asarray,
        ensemble_predictions(network, params, question.inputs, scaling=question.scaling),
    )
    if network.loss == "sigmoid_binary_cross_entropy":
        mean = mean - 0.5
    return EnsembleReport(
        _figures(question, mean.astype(np.float64)),
        tuple(_figures(question, _outputs(network, own, question)) for own in members),
        float(np.average(disagreement.astype(np.float64), weights=question.weights)),
    )


class _Question(NamedTuple):
    """What the outputs of a network are to be compared with, and how."""

    kind: Literal["classes", "decision", "decisions", "numbers"]
    inputs: np.ndarray
    scaling: Scaling | None
    truth: np.ndarray
    weights: np.ndarray | None
    names: tuple[str, ...]


def _question(
    network: Network,
    params: Parameters,
    examples: Examples,
    classes: Sequence[str] | None,
    scaling: Scaling | None,
) -> _Question:
    inputs, targets, weights = _counted(examples)
    n_outputs = network.sizes[-1]
    one_decision = network.loss == "sigmoid_binary_cross_entropy" and n_outputs == 1
    exclusive = network.loss == "softmax_cross_entropy" or one_decision or classes is not None
    n_classes = 2 if one_decision else n_outputs
    if classes is not None and len(classes) != n_classes:
        raise ValueError(f"classes: expected {n_classes} names, got {len(classes)}")
    if exclusive and network.loss != "softmax_cross_entropy" and not one_decision:
        targets = _one_hot(targets, n_classes)
    # All of these count, and however small their weights are: they are looked at, and not cast.
    signs = None if weights is None else np.where(np.isfinite(weights), np.sign(weights), weights)
    (inputs, checked, _), left = checked_examples(network, params, inputs, targets, signs, scaling)
    names = tuple(map(str, range(n_classes) if classes is None else classes))
    if not exclusive and not is_classifier(network):
        truth = targets.reshape(-1, n_outputs).astype(np.float64)
        return _Question("numbers", inputs, left, truth, weights, names)
    if not exclusive:
        return _Question("decisions", inputs, left, checked > 0.5, weights, names)
    if one_decision:
        truth = (checked.reshape(-1) > 0.5).astype(int)
        return _Question("decision", inputs, left, truth, weights, names)
    truth = checked if checked.ndim == 1 else np.argmax(checked, axis=1)
    return _Question("classes", inputs, left, truth.astype(int), weights, names)


def _outputs(network: Network, params: Parameters, question: _Question) -> np.ndarray:
    """Return what a network predicts (N, K); for decisions and classes the logits."""
    if question.kind != "numbers":
        # What the squared error predicts are the logits: two probabilities of 1 would be equal.
        network = dataclasses.replace(network, loss="squared_error")
    outputs = predictions(network, params, question.inputs, scaling=question.scaling)
    return np.asarray(outputs, np.float64)


def _figures(question: _Question, outputs: np.ndarray) -> Classification | Regression:
    """Return the figures of outputs (N, K): numbers, or what is above 0 or the largest for yes."""
    truth, weights, names = question.truth, question.weights, question.names
    if question.kind == "numbers":
        return _regression(truth, outputs, weights)
    if question.kind == "decisions":
        return _decisions(truth, outputs > 0, weights, names)
    if question.kind == "decision":
        return _classification(truth, (outputs[:, 0] > 0).astype(int), weights, names)
    return _classification(truth, np.argmax(outputs, axis=1), weights, names)


def _counted(examples: Examples) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return inputs, targets and weights (float64) without the rows of weight 0."""
    inputs, targets = (
        as_host_array(name, getattr(examples, name)) for name in ("inputs", "targets")
    )
    if examples.weights is None:
        return inputs, targets, None
    weights = as_host_array("sample_weight", examples.weights).astype(np.float64)
    if weights.shape != (len(inputs),) or len(targets) != len(inputs):
        return inputs, targets, weights  # `checked_examples` says what is wrong
    counted = weights != 0
    if not counted.any():
        raise ValueError("sample_weight: expected a number above 0, got none")
    return inputs[counted], targets[counted], weights[counted]


def _one_hot(targets: np.ndarray, n_classes: int) -> np.ndarray:
    """Return integer classes (N,) as rows (N, K); what is none is returned as it is."""
    if targets.ndim != 1 or targets.dtype.kind not in "iu":
        return targets
    check_classes("targets", targets, n_classes)
    return np.eye(n_classes, dtype=np.float32)[targets]


def _sklearn_metrics() -> Any:
    import sklearn.metrics

    return sklearn.metrics


def _classification(
    truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None, names: tuple[str, ...]
) -> Classification:
    metrics = _sklearn_metrics()
    options: Any = {"sample_weight": weights, "labels": np.arange(len(names))}
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        truth, predicted, zero_division=0.0, **options
    )
    accuracy = metrics.accuracy_score(truth, predicted, sample_weight=weights)
    confusion = metrics.confusion_matrix(truth, predicted, **options)
    return Classification(names, precision, recall, f1, support, float(accuracy), confusion)


def _decisions(
    truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None, names: tuple[str, ...]
) -> Classification:
    metrics = _sklearn_metrics()
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        truth, predicted, sample_weight=weights, zero_division=0.0
    )
    accuracy = metrics.accuracy_score(truth, predicted, sample_weight=weights)
    return Classification(names, precision, recall, f1, support, float(accuracy), None)


def _regression(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None) -> Regression:
    metrics = _sklearn_metrics()
    options: Any = {"sample_weight": weights, "multioutput": "raw_values"}
    n_outputs = truth.shape[1]
    return Regression(
        tuple(map(str, range(n_outputs))),
        np.asarray(metrics.root_mean_squared_error(truth, predicted, **options)),
        np.asarray(metrics.mean_absolute_error(truth, predicted, **options)),
        # Of one example R² is not defined, and scikit-learn warns.
        np.full(n_outputs, np.nan)
        if len(truth) < 2
        else np.asarray(metrics.r2_score(truth, predicted, **options)),
    )


def _to_json(report: Classification | Regression) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return [plain(part) for part in value.tolist()]
        if isinstance(value, (list, tuple)):
            return [plain(part) for part in value]
        return None if value != value else value  # NaN is no JSON

    return {name: plain(value) for name, value in report._asdict().items()}


def _count(number: float) -> str:
    """Return a number of examples, or a sum of weights, which may be no integer."""
    return f"{number:.0f}" if number == round(number) else f"{number:.2f}"


def _cut(names: Sequence[str], length: int) -> list[str]:
    """Return names cut to a length: to their beginnings, or to beginnings and ends.

    Whole, where two of them would be the same in either way.
    """
    head = length // 2
    ways = (
        lambda name: name[: length - 1] + "…",
        lambda name: name[:head] + "…" + name[head + 1 - length :],
    )
    for way in ways:
        cut = [name if len(name) <= length else way(name) for name in names]
        if len(set(cut)) == len(set(names)):
            return cut
    return list(names)


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines in aligned columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    lines = []
    for first, *others in (heading, *rows):
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip())
    return lines
