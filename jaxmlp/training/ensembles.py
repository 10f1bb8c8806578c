"""Ensembles: many networks trained in one program, each as if it were alone.

The functions of one network are mapped over its members by `jax.vmap`. Where all members see the
same batches, the products of the first layer are one product.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxmlp.evaluation import check_some_weight, checked_examples
from jaxmlp.network import Network, Parameters, check_finite_parameters, check_members
from jaxmlp.scaling import Scaling
from jaxmlp.training.distributed import on_host, own, placement_on
from jaxmlp.training.loop import check_monitor, prepared_evaluation
from jaxmlp.training.mapped import taken
from jaxmlp.training.members import (
    check_absent_units,
    checked_widths,
    member_settings,
)
from jaxmlp.training.passes import Members, Progress
from jaxmlp.training.snapshots import Record
from jaxmlp.validation import check_count, check_key


class EnsembleFit(NamedTuple):
    """What `fit_ensemble` returns.

    `params` has a leading axis M on every leaf. `histories` has for every member the records of its
    epochs, as those of `fit` without `gradient_norm`; the seconds are those of all members that
    were trained with it. `best_epochs` are the epochs that the parameters are from. `diverged` has
    a sentence for every member whose loss or parameters became infinite or NaN: its history ends
    before, and its parameters are NaN. `members_per_pass` were trained at a time.
    """

    params: Parameters
    histories: list[list[Record]]
    best_epochs: list[int]
    diverged: dict[int, str]
    members_per_pass: int


def fit_ensemble(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    *,
    key: Array,
    sample_weight: ArrayLike | None = None,
    optimizer: str = "adam",
    optimizer_settings: Mapping[str, ArrayLike] | None = None,
    learning_rate: ArrayLike = 1e-3,
    schedule: str = "constant",
    warmup: ArrayLike = 0.0,
    batch_size: int = 128,
    epochs: int = 10,
    weight_decay: ArrayLike | None = None,
    clip_norm: ArrayLike | None = None,
    max_norm: ArrayLike | None = None,
    dropout: ArrayLike = 0.0,
    input_dropout: ArrayLike = 0.0,
    label_smoothing: ArrayLike = 0.0,
    average_decay: ArrayLike | None = None,
    patience: int | None = None,
    halving: int | None = None,
    monitor: str = "validation_loss",
    widths: ArrayLike | None = None,
    scaling: Scaling | None = None,
    evaluation: Mapping[str, tuple[ArrayLike, ...]] | None = None,
    members_per_pass: int | None = None,
    group: int = 1,
    devices: Sequence[Any] | None = None,
    watch: Callable[[Progress], None] | None = None,
    finished: Callable[[int, EnsembleFit], None] | None = None,
) -> EnsembleFit:
    """Return M networks trained on the same examples in one program, as `fit` trains each.

    Member m gets what `fit` yields for its parameters, its numbers and its key, up to rounding.
    A number may be one for all members or (M,), one for each; other numbers compile nothing new.

    Args:
        network: The network of every member.
        params: Their initial parameters, every leaf with a leading axis M: those of
            `init_members`, or of `jax.vmap` over `init`.
        inputs: As for `fit`, as is all that is not said here.
        targets: As for `fit`.
        key: One typed key: all members see the same batches in the same order, with the same units
            dropped, which is faster. Or (M,) keys: each has its own.
        sample_weight: (N,) or None, the same for all.
        optimizer: One name for all.
        optimizer_settings: Name → a number, or (M,).
        learning_rate: A number, or (M,).
        schedule: One name for all.
        warmup: A number, or (M,).
        batch_size: Examples a step.
        epochs: How often all examples are seen.
        weight_decay: A number, (M,), or None.
        clip_norm: A number, (M,), or None.
        max_norm: A number, (M,), or None.
        dropout: A rate for all hidden layers, (M,), or (M, L − 1).
        input_dropout: A number, or (M,).
        label_smoothing: A number, or (M,).
        average_decay: A number, (M,), or None.
        patience: A member stops when its monitored figure has not improved for so many epochs; its
            best epoch's parameters are returned.
        halving: η: after 1, η, η², … epochs all but the best 1/η of the groups that are trained
            together stop, by the mean of the monitored figure: successive halving. Their last
            parameters are returned. The schedule stays that of all epochs.
        monitor: The figure that `patience` and `halving` watch.
        widths: (M, L − 1) units of every hidden layer for narrower members, or None. Their dropout
            draws the masks of the whole network.
        scaling: What the inputs go through.
        evaluation: Name → examples, for all members.
        members_per_pass: How many are trained at a time; by default as many as there is memory for.
            In whole groups, at least one.
        group: So many consecutive members belong together, such as the seeds of a setting: they are
            trained together, and go on or stop together by `halving`.
        devices: As for `fit`, but each takes a part of the members, and all have the data.
        watch: Called as watch(progress) after every epoch and about twice a second.
        finished: Called after every pass as finished(first, fitted), with the number of its first
            member and what `fit_ensemble` would return for its members alone.

    Returns:
        An `EnsembleFit`. A member that diverges does not stop the others.

    Raises:
        TypeError: As `fit`.
        ValueError: As `fit`, or a number of members that does not fit.
        MemoryError: There is no room for one member, or for a group of them.

    References:
        Lakshminarayanan, Pritzel, Blundell, Simple and scalable predictive uncertainty estimation
        using deep ensembles, 2017.
        Jamieson, Talwalkar, Non-stochastic best arm identification and hyperparameter
        optimization, 2016 (successive halving).

    Example:
        >>> import jax, jax.numpy as jnp, jaxmlp
        >>> network = jaxmlp.Network((2, 8, 2), activation="tanh")
        >>> x = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> exclusive_or = jnp.array([0, 1, 1, 0])
        >>> params = jaxmlp.init_members(network, jax.random.split(jax.random.key(0), 3))
        >>> fitted = jaxmlp.fit_ensemble(
        ...     network, params, x, exclusive_or, key=jax.random.key(1), batch_size=4,
        ...     learning_rate=[0.05, 0.02, 0.0001], epochs=100,
        ... )
        >>> [history[-1]["train_accuracy"] == 1 for history in fitted.histories]
        [True, True, False]
    """
    count = check_members(network, params)
    one: Any = jax.tree.map(lambda leaf: leaf[0], params)
    check_key(key, (count,))
    settings = member_settings(
        network,
        count,
        {
            "optimizer": optimizer,
            "optimizer_settings": optimizer_settings,
            "learning_rate": learning_rate,
            "schedule": schedule,
            "warmup": warmup,
            "batch_size": batch_size,
            "epochs": epochs,
            "weight_decay": weight_decay,
            "clip_norm": clip_norm,
            "max_norm": max_norm,
            "input_dropout": input_dropout,
            "label_smoothing": label_smoothing,
            "average_decay": average_decay,
            "patience": patience,
            "monitor": monitor,
        },
        dropout,
    )
    if halving is not None:
        check_count("halving", halving)
        if patience is not None:
            raise ValueError(f"patience: expected none beside halving, got {patience}")
        if halving < 2:
            raise ValueError(f"halving: expected a factor of at least 2, got {halving}")
    if members_per_pass is not None:
        check_count("members_per_pass", members_per_pass)
    check_count("group", group)
    if count % group:
        raise ValueError(f"group: expected a number that divides the {count} members, got {group}")
    examples, left = checked_examples(network, one, inputs, targets, sample_weight, scaling)
    check_some_weight(examples[2])
    check_finite_parameters(params)
    rows = checked_widths(network, widths, count)
    check_absent_units(params, rows)
    if rows is not None and any(one.optimizer_settings.get("eps") == 0 for one in settings):
        raise ValueError(
            "optimizer_settings: expected eps above 0 beside widths, got 0: what is masked is 0/0"
        )
    others = prepared_evaluation(network, one, evaluation, scaling)
    check_monitor(halving if patience is None else patience, monitor, others)
    members = Members(
        network, np.dtype(params[0].weight.dtype), settings,
        rows, key, examples, left, others, halving, group,
        placement_on(devices),
    )  # fmt: skip
    del examples
    size = members_per_pass or members.that_fit(one, group)
    size = min(max(group, size - size % group), count)
    size += -size % members.n_devices
    parts = []
    for start in range(0, count, size):
        # The last pass is filled up: another number of members would be another program.
        ids = np.minimum(np.arange(start, start + size), count - 1)
        which = range(start, min(start + size, count))
        trained = own(members.train(taken(params, ids), ids, len(which), watch))
        parts.append(on_host(trained))  # the device's memory is the next pass's
        if finished is not None:
            finished(start, _result(members, trained, which, size))
    whole: Any = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    return _result(members, jax.device_put(whole), range(count), size)


def _result(members: Members, params: Parameters, which: range, size: int) -> EnsembleFit:
    """Return what became of some members, with these parameters, in passes of this size."""
    return EnsembleFit(
        params,
        [members.histories[m] for m in which],
        [members.best_epochs[m] for m in which],
        {m - which.start: members.diverged[m] for m in which if m in members.diverged},
        size,
    )
