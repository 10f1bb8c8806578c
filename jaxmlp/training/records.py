"""The record of an epoch, and what it tells: which one is better, and whether training diverged."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmlp.evaluation import Metrics, Sums, is_classifier
from jaxmlp.network import Network
from jaxmlp.training.snapshots import Record


def record_of(
    epoch: int, figures: Mapping[str, Metrics], of_gradient: Mapping[str, float] | None = None
) -> Record:
    """Return the record of an epoch: its number, and the figures of every part by their names."""
    record: Record = {"epoch": epoch}
    for name, metrics in figures.items():
        record[f"{name}_loss"] = metrics.loss
        if metrics.accuracy is not None:
            record[f"{name}_accuracy"] = metrics.accuracy
        if name == "train":
            record |= of_gradient or {}
    return record


def columns_of(network: Network, sums: Mapping[str, Sums]) -> dict[str, np.ndarray]:
    """Return the figures of many records at once, by their names in each.

    Args:
        network: The network that all of them are of.
        sums: Of every part the sums, each (M,).

    Returns:
        (M,) each, in float64: what `record_of` has of the means of those sums.
    """
    columns = {}
    for name, part in sums.items():
        loss, right, weight = (np.asarray(value, np.float64) for value in part)
        total = np.where(weight == 0, 1.0, weight)
        with np.errstate(invalid="ignore"):
            columns[f"{name}_loss"] = loss / total
            if is_classifier(network):
                columns[f"{name}_accuracy"] = right / total
    return columns


def is_better(monitor: str, value: Any, best: Any) -> Any:
    """Tell, also of many (M,), whether a monitored figure is better than the best so far, or NaN.

    A larger accuracy is better, and a smaller loss.

    Returns:
        One, or (M,).
    """
    before = np.greater if monitor.endswith("_accuracy") else np.less
    return np.isnan(best) | before(value, best)


def check_convergence(figures: Mapping[str, Metrics], size: float, epoch: str, rate: float) -> None:
    """Raise where an epoch ended with a loss or a parameter that is not finite.

    The training loss is that before each step: what the last step did shows in the others.

    Args:
        figures: Those of the epoch.
        size: The largest absolute parameter.
        epoch: What to call the epoch.
        rate: The learning rate.

    Raises:
        FloatingPointError: With the name of the figure and the epoch.
    """
    losses = {f"the {name} loss": metrics.loss for name, metrics in figures.items()}
    for name, value in (losses | {"a parameter": size}).items():
        if not np.isfinite(value):
            raise FloatingPointError(
                f"training diverged: {name} became {value} in {epoch}; a learning rate below "
                f"{rate:g} may help"
            )
