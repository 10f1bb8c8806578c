"""The record of an epoch, and what it tells: which one is better, and whether training diverged."""

from collections.abc import Mapping

import numpy as np

from jaxmlp.evaluation import Metrics
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


def is_better(monitor: str, value: float, best: float) -> bool:
    """Tell whether a monitored figure is better than the best so far, or that is NaN."""
    return bool(np.isnan(best) or (value > best if monitor.endswith("_accuracy") else value < best))


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
