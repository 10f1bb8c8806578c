"""The parameters that a training went through, as its run's folder still has them.

They are, by order of preference, those kept after its epochs (`train --keep-epochs`), those of its
checkpoints, or the final model alone.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmlp.network import Network, Parameters, cast
from jaxmlp.training.checkpoints import FOLDER as CHECKPOINTS
from jaxmlp.training.checkpoints import Checkpoints
from jaxmlp.training.models import kept_epochs, read_parameters
from jaxmlp.training.settings import Settings
from jaxmlp.training.snapshots import first_snapshot


class Trajectory(NamedTuple):
    """Parameters of a training at some of its steps.

    Attributes:
        params: The parameters, the earliest first; at least one.
        steps: How many steps had been done at each.
        learning_rates: Of each, the mean over the epoch's worth of steps that led to it.
        source: What they are, in words.
        warnings: A line for each that is damaged, and so is not here.
    """

    params: list[Parameters]
    steps: list[int]
    learning_rates: np.ndarray
    source: str
    warnings: list[str]


def read_trajectory(
    run: Path,
    network: Network,
    final: Parameters,
    settings: Settings,
    an_epoch: int,
    last_epoch: int | None = None,
) -> Trajectory:
    """Return what a run's folder holds of the way to its model; nothing in it changes.

    Args:
        run: The run's folder.
        network: Its network.
        final: The parameters of its model.
        settings: The settings of its training.
        an_epoch: How many steps an epoch of it had.
        last_epoch: The epoch that the model is from, or None for the last; later ones do not count.

    Raises:
        MemoryError: There is too little of it.
        PermissionError: A file may not be read.
    """
    end = an_epoch * (settings.epochs if last_epoch is None else last_epoch)
    found, warnings = _epochs(run, network, an_epoch, end)
    source = "the parameters after {} of its epochs"
    if not found:
        found, more = _checkpoints(run, network, final, settings, end)
        warnings += more
        source = "{} of its checkpoints"
    if not found:
        found, source = {end: final}, "its final model alone (train --keep-epochs keeps others)"
    total = an_epoch * settings.epochs
    rates = [settings.rates(max(0, step - an_epoch), step, total).mean() for step in found]
    return Trajectory(
        list(found.values()), list(found), np.array(rates), source.format(len(found)), warnings
    )


def _epochs(
    run: Path, network: Network, an_epoch: int, end: int
) -> tuple[dict[int, Parameters], list[str]]:
    """Return step → parameters kept after it, and a warning for each file that is damaged."""
    found, warnings = {}, []
    for epoch, path in kept_epochs(run).items():
        if epoch * an_epoch > end:
            continue
        try:
            found[epoch * an_epoch] = read_parameters(path, network)
        except ValueError as error:
            warnings.append(f"{error}: passed over")
    return found, warnings


def _checkpoints(
    run: Path, network: Network, final: Parameters, settings: Settings, end: int
) -> tuple[dict[int, Parameters], list[str]]:
    """Return step → parameters of the checkpoints, and a warning for each that is damaged."""
    checkpoints = Checkpoints(run / CHECKPOINTS, read_only=True)
    snapshots, warnings = checkpoints.read_all(first_snapshot(network, final, settings))
    dtype = np.dtype(final[0].weight.dtype)
    found = {
        snapshot.total: cast(snapshot.state.params, dtype)
        for snapshot in snapshots
        if 0 < snapshot.total <= end
    }
    return found, warnings
