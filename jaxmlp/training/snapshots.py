"""A training under way, as it is stopped, kept and gone on with."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from jaxmlp.evaluation import Sums
from jaxmlp.network import Network, Parameters
from jaxmlp.training.distributed import own
from jaxmlp.training.optimizers import optimizer_named, with_numbers
from jaxmlp.training.settings import Settings
from jaxmlp.training.steps import TrainingState, no_sums, wide_parameters

Record = dict[str, float]


class Best(NamedTuple):
    """The parameters of the epoch whose monitored figure was the best, and that figure."""

    params: Parameters
    value: float
    epoch: int


class Snapshot(NamedTuple):
    """All that a training needs to go on as if it had never stopped.

    `epoch` counts the epochs completed, `step` the steps done of the next one and `total` all steps
    done; `progress` holds the figures of the unfinished epoch and `seconds` its time. `history` has
    the record of every epoch, and grows with the training. The order of the examples and the masks
    follow from the key and these numbers. `mechanism` is the noise multiplier, the sampling
    rate and the clip norm of all steps so far, where they are private. The arrays of `state` and
    `progress` are donated to the steps that follow: copy what must outlive them.
    """

    epoch: int
    step: int
    total: int
    state: TrainingState
    progress: Sums
    best: Best | None = None
    seconds: float = 0.0
    history: Sequence[Record] = ()
    mechanism: tuple[float, float, float] | None = None


def own_snapshot(snapshot: Snapshot) -> Snapshot:
    """Return the snapshot with this process's copies of arrays that all processes have."""
    best = snapshot.best
    return snapshot._replace(
        state=own(snapshot.state),
        progress=own(snapshot.progress),
        best=best and best._replace(params=own(best.params)),
    )


def first_snapshot(network: Network, params: Parameters, settings: Settings) -> Snapshot:
    """Return the snapshot of a training that has not begun, its arrays new.

    Args:
        network: The network.
        params: Its initial parameters.
        settings: The training's settings, checked.
    """
    dtype = np.dtype(params[0].weight.dtype)
    state = _first_of(
        params, optimizer=settings.transformation, averaging=settings.average_decay is not None
    )
    numbers = with_numbers(state.optimizer_state, settings.numbers)
    return Snapshot(0, 0, 0, state._replace(optimizer_state=numbers), no_sums(dtype))


def first_state(
    params: Parameters, *, optimizer: tuple[str, bool, bool], averaging: bool
) -> TrainingState:
    """Return the state before any step, its arrays new and the optimiser's numbers its own."""
    name, decaying, clipping = optimizer
    wide: Any = wide_parameters(params)
    first = optimizer_named(name, decaying=decaying, clipping=clipping).init(wide)
    return TrainingState(wide, first, wide_parameters(params) if averaging else None)


# Leaf by leaf it would be a dozen programs.
_first_of = jax.jit(first_state, static_argnames=("optimizer", "averaging"))


def check_resumable(
    snapshot: Snapshot,
    first: TrainingState,
    steps: int,
    mechanism: tuple[float, float, float] | None,
) -> None:
    """Raise unless a training can go on from a snapshot.

    Args:
        snapshot: The snapshot.
        first: The training's state before any step; only its shapes and dtypes count.
        steps: Steps an epoch of the training.
        mechanism: Its noise multiplier, sampling rate and clip norm, where it is private.

    Raises:
        TypeError: It is no snapshot.
        ValueError: It is of another training, or its arrays are gone.
    """
    if not isinstance(snapshot, Snapshot):
        raise TypeError(
            "resume: expected a snapshot, which `fit` gives its callbacks beside the record, got "
            f"{type(snapshot).__name__}"
        )

    def shapes(state: TrainingState) -> Any:
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)

    if shapes(snapshot.state) != shapes(first):
        raise ValueError(
            "resume: expected a snapshot of a training of this network with this optimizer and "
            "the same settings on and off, got another one's"
        )
    if snapshot.total != snapshot.epoch * steps + snapshot.step:
        raise ValueError(
            f"resume: expected a snapshot of a training with {steps} steps an epoch, got "
            f"one of {snapshot.total} steps in {snapshot.epoch} epochs and {snapshot.step} "
            "steps: the examples or the batch size are others"
        )
    if snapshot.total and snapshot.mechanism != mechanism:
        raise ValueError(
            "resume: expected a snapshot of a training with the noise multiplier, the sampling "
            f"rate and the clip norm {mechanism}, got one with {snapshot.mechanism}: "
            "epsilon would be wrong"
        )
    leaves = jax.tree.leaves((snapshot.state, snapshot.progress))
    if any(isinstance(leaf, Array) and leaf.is_deleted() for leaf in leaves):
        raise ValueError(
            "resume: expected a snapshot that holds its arrays, got one that a training has "
            "gone on from: copy what must outlive it"
        )


def copied(snapshot: Snapshot, settings: Settings) -> Snapshot:
    """Return a copy of a snapshot, with the numbers of the settings in its optimiser's state."""
    state, progress = copy_of((snapshot.state, snapshot.progress))
    numbers = with_numbers(state.optimizer_state, settings.numbers)
    return snapshot._replace(state=state._replace(optimizer_state=numbers), progress=progress)


def copy_of(tree: Any) -> Any:
    """Return a copy of arrays on the devices where they are, without a program to compile."""

    def copy(leaf: Any) -> Array:
        leaf = leaf if isinstance(leaf, Array) else np.array(leaf)
        several = isinstance(leaf, Array) and not leaf.is_fully_addressable  # processes have it
        return jax.device_put(leaf, leaf.sharding if several else None, may_alias=False)

    return jax.tree.map(copy, tree)


def largest(params: Parameters) -> float:
    """Return the largest absolute value of all parameters, NaN where there is one.

    It is looked for on the host, where nothing has to be compiled for it.
    """
    leaves = jax.tree.leaves(jax.device_get(params))
    with np.errstate(invalid="ignore"):  # of which bfloat16 warns where there is a NaN
        extremes = [(np.min(leaf), np.max(leaf)) for leaf in leaves]
    return float(np.max(np.abs(np.array(extremes, np.float64))))
