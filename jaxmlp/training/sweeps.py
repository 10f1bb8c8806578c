"""Sweeps: which settings are tried, and what comes of each over its seeds."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from jaxmlp.training.members import EACH
from jaxmlp.training.snapshots import Record

SWEPT = (*EACH, "dropout", "scale")
"""What a sweep may vary beside the numbers of its optimiser: each is one of a member's own."""


_MOST = 2**20


class Range(NamedTuple):
    """Numbers from `low` to `high`, drawn evenly or, with `log`, evenly in their logarithm."""

    low: float
    high: float
    log: bool = False


Choice = Range | tuple[float, ...]
Setting = dict[str, float]


def parsed_choice(name: str, words: Sequence[str]) -> Choice:
    """Return what `0.1 0.2`, `0.1:0.2` or `0.1:0.2:log` means.

    Args:
        name: What it is called in a message.
        words: One range, or numbers.

    Raises:
        ValueError: It is neither.
    """
    if len(words) == 1 and ":" in words[0]:
        low, high, *more = words[0].split(":")
        if more not in ([], ["log"]):
            raise ValueError(f"{name}: expected LOW:HIGH or LOW:HIGH:log, got {words[0]!r}")
        return checked_choice(name, Range(_number(name, low), _number(name, high), bool(more)))
    return checked_choice(name, tuple(_number(name, word) for word in words))


def _number(name: str, word: Any) -> float:
    try:
        if isinstance(word, bool):
            raise ValueError
        return float(word)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{name}: expected numbers, or one range LOW:HIGH alone, got {word!r}"
        ) from None


def checked_choice(name: str, choice: Choice) -> Choice:
    """Return the choice; raise ValueError where there is nothing to choose from."""
    if not choice:
        raise ValueError(f"{name}: expected at least one number, got none")
    if isinstance(choice, Range):
        if not (math.isfinite(choice.low) and choice.low < choice.high < math.inf):
            raise ValueError(f"{name}: expected LOW below HIGH, got {choice.low:g}:{choice.high:g}")
        if choice.log and choice.low <= 0:
            raise ValueError(f"{name}: expected LOW above 0 for a logarithm, got {choice.low:g}")
    elif len(set(choice)) < len(choice):
        raise ValueError(f"{name}: expected different numbers, got {list(choice)}")
    return choice


def choice_of(name: str, value: Any) -> Choice:
    """Return the choice that a file of a search space describes.

    Args:
        name: What it is called in a message.
        value: A number, a list of numbers, a range as on the command line, or a table with `low`,
            `high` and perhaps `log`.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(value, Mapping):
        extra = set(value) - {"low", "high", "log"}
        log = value.get("log", False)
        if extra or not {"low", "high"} <= set(value) or not isinstance(log, bool):
            raise ValueError(f"{name}: expected low, high and perhaps log, got {dict(value)!r:.80}")
        return checked_choice(
            name, Range(_number(name, value["low"]), _number(name, value["high"]), log)
        )
    if isinstance(value, str):
        return parsed_choice(name, [value])
    values = value if isinstance(value, list) else [value]
    return checked_choice(name, tuple(_number(name, one) for one in values))


def grid(space: Mapping[str, Choice]) -> list[Setting]:
    """Return every combination of the numbers, the last one changing fastest.

    Raises:
        ValueError: There is a range among them.
    """
    for name, choice in space.items():
        if isinstance(choice, Range):
            raise ValueError(
                f"samples: expected how many to draw from the range of {name}, got none"
            )
    check_size("samples", math.prod(len(choice) for choice in space.values()))
    names = list(space)
    combinations = product(*(space[name] for name in names))
    return [dict(zip(names, values, strict=True)) for values in combinations]


def samples(space: Mapping[str, Choice], count: int, seed: int) -> list[Setting]:
    """Return settings drawn at random, each number by itself: random search.

    With more samples the first ones stay what they are. None is drawn twice.

    Args:
        space: The numbers to choose from.
        count: How many settings.
        seed: Of the draws.

    Raises:
        ValueError: There are not so many.

    References:
        Bergstra, Bengio, Random search for hyper-parameter optimization, 2012.
    """
    check_size("samples", count)
    rng = np.random.default_rng([seed, len(space)])

    def draw(choice: Choice) -> float:
        part = rng.uniform()
        if not isinstance(choice, Range):
            return choice[int(part * len(choice))]
        low, high = choice.low, choice.high
        if choice.log:
            return float(np.exp(np.log(low) + part * (np.log(high) - np.log(low))))
        return low + part * (high - low)

    if not any(isinstance(choice, Range) for choice in space.values()):
        most = math.prod(len(choice) for choice in space.values())
        if count > most:
            raise ValueError(
                f"samples: expected at most {most}, as many combinations as there are, got {count}"
            )
    drawn: dict[tuple[float, ...], Setting] = {}
    while len(drawn) < count:
        setting = {name: draw(choice) for name, choice in space.items()}
        drawn.setdefault(tuple(setting.values()), setting)
    return list(drawn.values())


def check_size(name: str, count: int) -> None:
    """Raise ValueError where there are more networks than anybody waits for, or has memory for."""
    if count > _MOST:
        raise ValueError(f"{name}: expected at most {_MOST:,} networks, got {count:,}")


class Trial(NamedTuple):
    """What came of one setting with one seed.

    `record` is that of the epoch whose parameters were kept, `epochs` how many were trained;
    `diverged` is a sentence, and the record empty, where it did.
    """

    setting: int
    seed: int
    epochs: int
    record: Record
    diverged: str | None = None


class Summary(NamedTuple):
    """A setting with the means and standard deviations of its figures over the seeds.

    Where a seed diverged there are no figures. The standard deviation of one seed is None.
    """

    setting: int
    values: Setting
    epochs: float
    means: dict[str, float]
    deviations: dict[str, float | None]
    diverged: int


def summaries(settings: Sequence[Setting], trials: Sequence[Trial]) -> list[Summary]:
    """Return a summary of every setting that has been tried, in their order."""
    result = []
    for number, values in enumerate(settings):
        own = [trial for trial in trials if trial.setting == number]
        if not own:
            continue
        diverged = sum(trial.diverged is not None for trial in own)
        means: dict[str, float] = {}
        deviations: dict[str, float | None] = {}
        if not diverged:
            for name in own[0].record:
                if name.endswith(("_loss", "_accuracy")):
                    figures = np.array([trial.record[name] for trial in own])
                    means[name] = float(figures.mean())
                    deviations[name] = float(figures.std(ddof=1)) if len(figures) > 1 else None
        epochs = float(np.mean([trial.epochs for trial in own]))
        result.append(Summary(number, values, epochs, means, deviations, diverged))
    return result


def ranked(found: Sequence[Summary], monitor: str, halving: bool) -> list[Summary]:
    """Return the summaries, the best first, the diverged last.

    Args:
        found: The summaries.
        monitor: The figure whose mean decides.
        halving: Whether who was trained longer comes first: who stopped was worse.
    """
    sign = -1 if monitor.endswith("_accuracy") else 1

    def place(summary: Summary) -> tuple[float, ...]:
        if summary.diverged:
            return math.inf, math.inf
        return (-summary.epochs if halving else 0.0), sign * summary.means[monitor]

    return sorted(found, key=place)
