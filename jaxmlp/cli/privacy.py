"""What `jaxmlp train --private` needs, and what it refuses because no guarantee would cover it."""

import math

from jaxmlp.cli.options import Train
from jaxmlp.privacy import epsilon, noise_multiplier_for
from jaxmlp.privacy.accounting import check_delta
from jaxmlp.validation import check_count, check_number

_OPTIONS = ("noise_multiplier", "epsilon", "delta", "unprotected_figures")


def check_private(options: Train) -> None:
    """Raise where the options of a private training are not complete, or would leak.

    Raises:
        TypeError: A number that is none.
        ValueError: By the option's name.
    """
    if not options.private:
        for name in _OPTIONS:
            if (value := getattr(options, name)) is not None and value is not False:
                raise ValueError(f"{name}: expected none without --private")
        return
    for name in ("batch_size", "epochs"):
        check_count(name, getattr(options, name))
    for name in ("clip_norm", "delta"):
        if getattr(options, name) is None:
            raise ValueError(f"{name}: expected a number with --private, got none")
    assert options.delta is not None
    check_number("clip_norm", options.clip_norm, 0, math.inf, above=True)
    check_delta(options.delta)
    if (options.noise_multiplier is None) == (options.epsilon is None):
        got = "neither" if options.epsilon is None else "both"
        raise ValueError(
            f"noise_multiplier: expected it or --epsilon, for which it is solved, got {got}"
        )
    if options.standardize_targets:
        raise ValueError(
            "standardize_targets: expected none with --private: mean and deviation of the training "
            "targets would be told without noise"
        )
    if options.standardize:
        raise ValueError(
            "standardize: expected none with --private: means and deviations of the training "
            "examples would be told without noise"
        )
    if options.class_weight == ("balanced",):
        raise ValueError(
            "class_weight: expected CLASS=WEIGHT with --private, got balanced: every example's "
            "weight would tell how many others there are of its class"
        )
    if (
        options.patience is not None
        and options.validation_fraction
        and options.monitor.startswith("validation_")
    ):
        raise ValueError(
            "patience: expected none with --private and --validation-fraction: examples that are "
            "to be protected would decide when to stop"
        )
    if options.seeds != 1:
        raise ValueError(
            f"seeds: expected 1 with --private, got {options.seeds}: each network would spend its "
            "own epsilon"
        )
    if options.dtype not in ("float32", "float64"):
        raise ValueError(
            f"dtype: expected float32 or float64 with --private, got {options.dtype}, which rounds "
            "beyond the clip norm"
        )
    if options.precision not in (None, "highest"):
        raise ValueError(
            f"precision: expected highest with --private, got {options.precision}, which rounds "
            "beyond the clip norm"
        )


def steps_an_epoch(options: Train, n_examples: int) -> int:
    """Return ⌈N / batch size⌉."""
    return -(-n_examples // options.batch_size)


def noise_for(options: Train, n_examples: int) -> float:
    """Return the noise multiplier of a private training: the one given, or the one solved for.

    Raises:
        TypeError: A number that is none.
        ValueError: The batch size or the numbers do not suit, or dp-accounting is not installed.
    """
    if options.batch_size > n_examples:
        raise ValueError(
            f"batch_size: expected at most the {n_examples} training examples with --private, got "
            f"{options.batch_size}"
        )
    rate, delta = options.batch_size / n_examples, options.delta
    assert delta is not None
    if options.epsilon is not None:
        steps = options.epochs * steps_an_epoch(options, n_examples)
        return noise_multiplier_for(options.epsilon, rate, steps, delta)
    assert options.noise_multiplier is not None
    epsilon(options.noise_multiplier, rate, 1, delta)  # it raises where it cannot be computed
    return options.noise_multiplier


def privacy_line(options: Train, noise: float, n_examples: int) -> str:
    """Return what a private training is about to do and to spend."""
    assert options.delta is not None
    steps = options.epochs * steps_an_epoch(options, n_examples)
    spent = epsilon(noise, options.batch_size / n_examples, steps, options.delta)
    return (
        f"privacy    epsilon {spent:.4g} at delta {options.delta:g} for the training examples: "
        f"clip norm {options.clip_norm:g}, noise multiplier {noise:.4g}, {steps} Poisson batches"
    )
