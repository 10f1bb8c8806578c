"""`fit`: from arrays to a trained network."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import Array
from jax.typing import ArrayLike

from jaxmlp.batch import Batch
from jaxmlp.data.stored import StoredInputs
from jaxmlp.evaluation import check_some_weight, checked_examples, chunks
from jaxmlp.network import (
    Network,
    Parameters,
    check_finite_parameters,
    check_parameters,
)
from jaxmlp.scaling import Scaling
from jaxmlp.training.distributed import placement_on
from jaxmlp.training.epochs import Callback, Fit, Training
from jaxmlp.training.settings import Settings
from jaxmlp.training.snapshots import Snapshot, first_snapshot
from jaxmlp.training.streaming import checked_stored
from jaxmlp.validation import as_host_array, check_key


def fit(
    network: Network,
    params: Parameters,
    inputs: ArrayLike | StoredInputs,
    targets: ArrayLike,
    *,
    key: Array,
    sample_weight: ArrayLike | None = None,
    optimizer: str = "adam",
    optimizer_settings: Mapping[str, float] | None = None,
    learning_rate: ArrayLike = 1e-3,
    schedule: str = "constant",
    warmup: float = 0.0,
    batch_size: int = 128,
    epochs: int = 10,
    shuffle: str = "full",
    weight_decay: float | None = None,
    clip_norm: float | None = None,
    max_norm: float | None = None,
    dropout: float | Sequence[float] = (),
    input_dropout: float = 0.0,
    label_smoothing: float = 0.0,
    average_decay: float | None = None,
    patience: int | None = None,
    monitor: str = "validation_loss",
    noise_multiplier: float | None = None,
    delta: float | None = None,
    unprotected_figures: bool = False,
    scaling: Scaling | None = None,
    evaluation: Mapping[str, tuple[ArrayLike, ...]] | None = None,
    callbacks: Sequence[Callback] = (),
    watch: Callable[[Snapshot], None] | None = None,
    resume: Snapshot | None = None,
    devices: Sequence[Any] | None = None,
) -> Fit:
    """Return the network trained on examples, with our gradient and an optax optimiser.

    An epoch is one compiled program with the state donated; data in memory stay on the device,
    pixels (uint8) as bytes. Another learning rate or other number of any kind, schedule, number of
    epochs or key compiles nothing new, nor does another N up to the same power of two (above
    65,536: the same multiple of it). Switching something on that was off (dropout, smoothing,
    clipping …) does.

    Args:
        network: The network.
        params: Its initial parameters; they are copied, not donated. In float16 and bfloat16 only
            the products are computed in their dtype: what is trained is a float32 copy. For a
            regression `jaxmlp.with_mean_outputs` has them begin at the mean of the targets.
        inputs: (N, D), finite. Those of a `jaxmlp.data.StoredInputs` stay on disk and are read
            block by block ahead of the steps, which needs the extra "stream": the batches and the
            result are those of the same inputs in memory, a snapshot of the one goes on as the
            other, and what is not finite is found when it is read.
        targets: As for `jaxmlp.loss`, classes within 0 … K − 1.
        key: A typed key: it shuffles the examples anew in every epoch, and draws dropout's masks.
            In a private training it draws the batches and the noise: keep it to yourself, and take
            another for every training, for two with the same noise reveal it.
        sample_weight: (N,), not negative, or None. Each step takes the mean weighted within its
            batch: with `batch_size=1` weights above 0 change nothing.
        optimizer: A name from `jaxmlp.training.optimizers.OPTIMIZERS`.
        optimizer_settings: Its numbers by optax's names, such as {"b1": 0.8}; others keep optax's
            defaults.
        learning_rate: A scalar above 0.
        schedule: A name from `jaxmlp.training.optimizers.SCHEDULES`: "constant"; "linear" and
            "cosine", from the learning rate down to 0 over all steps; or "one_cycle", up within
            the first 0.3 of them and down to nearly 0.
        warmup: The fraction of all steps in which the rate grows linearly to the schedule's.
        batch_size: Examples a step, at least 1; the last step of an epoch takes what is left.
        epochs: How often all examples are seen, at least 1.
        shuffle: "full": every epoch takes the examples in a new order. "chunks": it takes chunks of
            consecutive examples in a new order, 2 to 64 by D, and mixes those of each 128 chunks:
            not as random, and faster to read from a disk.
        weight_decay: λ, of weights and never of biases: subtracted from the weights (times the
            learning rate) by adamw, lamb, lion and nadamw, added to the gradient as λW elsewhere.
            None is the optimiser's own default in optax: 1e-4 for adamw and nadamw, 1e-3 for lion.
        clip_norm: Scale the gradient of a batch down to this norm where it is larger, or None. In a
            private training: the gradient of every example.
        max_norm: Scale the incoming weights of a hidden unit down to this norm after each step.
        dropout: The fraction of each hidden layer's units dropped, one rate or one for each.
        input_dropout: The fraction of inputs dropped.
        label_smoothing: α in [0, 1): the targets of a cross-entropy are mixed with the uniform
            distribution, (1 − α) t + α/K.
        average_decay: d in (0, 1): evaluate and return the average of the parameters over all
            steps with weights falling by d each step back, or None for the last ones.
        patience: Stop early when `monitor` has not improved for so many epochs, and return the best
            epoch's parameters; or None.
        monitor: The figure that `patience` watches: `<name>_loss` or `<name>_accuracy` of an
            evaluation.
        noise_multiplier: σ for a private training, by DP-SGD, or None. Each step then takes every
            example with probability q = batch_size/N, clips its gradient, adds noise of standard
            deviation σ · clip_norm to the sum and divides by `batch_size`, the expected one; an
            epoch has ⌈N/batch_size⌉ steps. `jaxmlp.privacy.noise_multiplier_for` finds the σ for
            an ε. Another N compiles anew. Weights are taken as they are: they must not depend on
            other examples. N and what is in `evaluation` are not protected. Needs the extra
            "privacy".
        delta: δ in (0, 1) for a private training: ε is recorded for it.
        unprotected_figures: Record figures of the training examples in a private training, too: no
            (ε, δ) covers them.
        scaling: What the inputs go through before the first layer, here and in every evaluation.
        evaluation: Name → (inputs, targets) or (inputs, targets, sample_weight): each is evaluated
            after every epoch.
        callbacks: Called after every epoch as callback(record, snapshot).
        watch: Called as watch(snapshot) after every piece of an epoch, about twice a second.
        resume: A snapshot of the same training, to go on from; it is copied, not donated. Numbers
            may be other ones and count from here on; so may the number of epochs. (Of a private
            training they may not: two that go on differently with the same noise reveal it.)
        devices: Several devices of one kind, also of several processes that `jax.distributed` has
            joined: each takes a part of every batch, whose size is a multiple of theirs, and all
            have the data and the parameters. None for the default device.

    Returns:
        `Fit(params, optimizer_state, history, best_epoch)`. A record of the history holds `epoch`
        from 1, `train_loss` and for classifiers `train_accuracy` (means over the epoch's batches,
        before each step and with its masks), `gradient_norm` (of the epoch's first batch as
        trained, before clipping, with the parameters at the epoch's end), `<name>_loss` and
        `<name>_accuracy` of every evaluation, `seconds` of the training part,
        `examples_per_second`, and, in the first record of a call, `compile_seconds` apart. In a
        private training it holds `epsilon`, that of all steps so far, and of the figures of the
        training examples none, or those and `clipped_fraction` (of the epoch's first batch).

    Raises:
        TypeError: As for `jaxmlp.loss`, no typed key, or a setting of another type.
        ValueError: No examples, values that do not fit or are not finite, an unknown name or a
            number out of its range.
        FloatingPointError: A loss or a parameter became infinite or NaN, with the epoch.
        OSError: Inputs that are stored cannot be read any more.
        OverflowError: A Poisson batch was larger than is expected once in 10¹² trainings.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmlp
        >>> network = jaxmlp.Network((2, 8, 2), activation="tanh")
        >>> x = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> exclusive_or = jnp.array([0, 1, 1, 0])
        >>> params = jaxmlp.init(network, jax.random.key(0))
        >>> fitted = jaxmlp.fit(
        ...     network, params, x, exclusive_or, key=jax.random.key(1), batch_size=4,
        ...     learning_rate=0.05, epochs=100,
        ... )
        >>> fitted.history[-1]["train_accuracy"]
        1.0
    """
    check_parameters(network, params)
    check_key(key)
    rate = as_host_array("learning_rate", learning_rate)
    if rate.shape != ():
        raise ValueError(f"learning_rate: expected a scalar, got shape {rate.shape}")
    settings = Settings(
        optimizer=optimizer,
        optimizer_settings={} if optimizer_settings is None else optimizer_settings,
        learning_rate=rate.item(),
        schedule=schedule,
        warmup=warmup,
        batch_size=batch_size,
        epochs=epochs,
        shuffle=shuffle,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        max_norm=max_norm,
        dropout=tuple(dropout) if isinstance(dropout, Sequence) else (dropout,),
        input_dropout=input_dropout,
        label_smoothing=label_smoothing,
        average_decay=average_decay,
        patience=patience,
        monitor=monitor,
        noise_multiplier=noise_multiplier,
        delta=delta,
        unprotected_figures=unprotected_figures,
    )
    settings.check(network)
    placement = placement_on(devices)
    if isinstance(inputs, StoredInputs):
        examples = checked_stored(
            network, params, inputs, targets, sample_weight, scaling, private=settings.private
        )
        left = examples.left
    else:
        examples, left = checked_examples(network, params, inputs, targets, sample_weight, scaling)
        if settings.private and sample_weight is not None:
            # As they are: brought to the largest one, they would depend on one another.
            weights = as_host_array("sample_weight", sample_weight).astype(examples[2].dtype)
            examples = *examples[:2], weights
        if not settings.private:  # what weights of 0 there are is nobody's business then
            check_some_weight(examples[2])
    check_finite_parameters(params)
    if not isinstance(callbacks, Sequence):
        raise TypeError(f"callbacks: expected a list, got {type(callbacks).__name__}")
    others = prepared_evaluation(network, params, evaluation, scaling)
    check_monitor(patience, monitor, others)
    training = Training(network, params, settings, key, examples, left, others, placement)
    del examples  # they are on the device
    if resume is None:
        snapshot = first_snapshot(network, params, settings)
    else:
        snapshot = training.resumed(resume, params)
    return training.run(snapshot, callbacks, watch)


def prepared_evaluation(
    network: Network,
    params: Parameters,
    evaluation: Mapping[str, tuple[ArrayLike, ...]] | None,
    scaling: Scaling | None,
) -> dict[str, tuple[Scaling | None, list[Batch]]]:
    """Check the examples to evaluate on, and put them on the device.

    Returns:
        Name → what is left to be scaled, and the examples in chunks.

    Raises:
        TypeError: It holds something else, or as for `jaxmlp.loss`.
        ValueError: A name that is taken, or values that do not fit.
    """
    if not isinstance(evaluation or {}, Mapping) or "train" in (evaluation or {}):
        got = list(evaluation) if isinstance(evaluation, Mapping) else type(evaluation).__name__
        raise ValueError(
            'evaluation: expected name → (inputs, targets) with other names than "train", got '
            f"{got!s:.60}"
        )
    others = {}
    for name, arrays in (evaluation or {}).items():
        if not isinstance(arrays, Sequence) or len(arrays) not in (2, 3):
            raise TypeError(
                f"evaluation: expected (inputs, targets) or (inputs, targets, sample_weight) for "
                f"{name!r}, got {type(arrays).__name__}"
            )
        checked, left = checked_examples(network, params, *arrays, scaling=scaling)
        others[name] = left, jax.device_put(list(chunks(*checked)))
    return others


def check_monitor(patience: int | None, monitor: str, evaluation: Mapping[str, object]) -> None:
    """Raise ValueError where there is patience with a figure that is not taken."""
    if patience is not None and monitor.rpartition("_")[0] not in evaluation:
        raise ValueError(
            f"monitor: expected a figure of an evaluation ({', '.join(evaluation) or 'none'} "
            f"given), got {monitor!r}"
        )
