"""What a sweep tries: the settings that its options and the file of its space describe."""

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

from jaxmlp.cli.options import Common, Sweep, Train
from jaxmlp.cli.problem import fingerprint_of, prepared, where_begun
from jaxmlp.data import Dataset
from jaxmlp.data.splits import HasValidation
from jaxmlp.network import Network
from jaxmlp.training import sweep_folder
from jaxmlp.training.members import EACH
from jaxmlp.training.optimizers import OPTIMIZERS
from jaxmlp.training.sweeps import SWEPT, Choice, Setting, choice_of, grid, parsed_choice, samples
from jaxmlp.validation import check_count, check_name

_FRACTION = 0.2  # of the training examples is put aside by default


def settings_of_sweep(options: Sweep) -> list[Setting]:
    """Return the settings to try, as the options and the file of the space say.

    Raises:
        OSError: The file cannot be read.
        ValueError: What is to be tried is not clear, or there is nothing to.
    """
    check_name("optimizer", options.optimizer, OPTIMIZERS)
    of_optimizer = OPTIMIZERS[options.optimizer].settings
    space: dict[str, Choice] = {}
    if options.space is not None:
        known = (*SWEPT, *of_optimizer)
        for name, value in _read_space(options.space).items():
            check_name("number of the space", name, known)
            space[name] = choice_of(name, value)
    for name in SWEPT:
        if words := getattr(options, name):
            space[name] = parsed_choice(name, words)
    given: set[str] = set()
    for word in options.optimizer_settings:
        name, equals, value = word.partition("=")
        if name in given:
            raise ValueError(f"optimizer_settings: expected every name once, got {name!r} twice")
        given.add(name)
        if not equals or name not in of_optimizer:
            raise ValueError(
                f"optimizer_settings: expected NAME=NUMBER of {', '.join(of_optimizer) or 'none'} "
                f"for {options.optimizer}, got {word!r}"
            )
        space[name] = parsed_choice(name, value.split(","))
    if options.samples is None:
        return grid(space)
    check_count("samples", options.samples)
    if not space:
        raise ValueError("samples: expected something to draw, such as --learning-rate 0.001:0.1")
    return samples(space, options.samples, options.seed)


def begun_with(options: Sweep) -> list[Setting] | None:
    """Return the settings of a sweep that is to be gone on with, or None.

    Raises:
        OSError: Its file cannot be read.
        ValueError: It is damaged.
    """
    if not options.resume or options.output is None:
        return None
    saved = sweep_folder.read_sweep(options.output)
    if saved is None:
        return None
    known = {*SWEPT, *OPTIMIZERS[options.optimizer].settings}
    for setting in saved["settings"]:
        if set(setting) != set(saved["settings"][0]) or not set(setting) <= known:
            path = options.output / sweep_folder.SWEEP
            raise ValueError(f"{path}: not a sweep's: its settings have other numbers")
    if options.space is not None and settings_of_sweep(options) != saved["settings"]:
        raise ValueError(f"space: expected what {options.output} was begun with, got others")
    return saved["settings"]


def _read_space(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".toml":
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        else:
            raise ValueError("expected a file .toml or .json")
        if not isinstance(content, dict):
            raise ValueError("expected name = choice")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"space: {path}: {error}") from error
    return content


def train_options(options: Sweep, setting: Setting) -> Train:
    """Return the options with which `jaxmlp train` trains one setting."""
    common = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(Common)
        if field.name not in ("optimizer_settings", "seeds", "resume")
    }
    own: dict[str, Any] = {name: value for name, value in setting.items() if name in EACH}
    if "dropout" in setting and options.hidden:
        own["dropout"] = (setting["dropout"],)
    own["optimizer_settings"] = tuple(
        f"{name}={value!r}" for name, value in setting.items() if name not in SWEPT
    )
    return Train(**common, **own)


def prepared_sweep(
    options: Sweep, setting: Setting, device: Any, begun_in: str | None
) -> tuple[Sweep, Network, Dataset]:
    """Return the options with the part to put aside, the network and the data.

    Args:
        options: The options.
        setting: One of those to try.
        device: Where it is computed.
        begun_in: The folder that the options' paths go by.

    Returns:
        The three.

    Raises:
        ValueError: As for `prepared`.
        OSError: As well.
    """

    def read(folder: str | None) -> tuple[Sweep, Network, Dataset]:
        fraction = options.validation_fraction
        try:
            return read_with(_FRACTION if fraction is None else fraction, folder)
        except HasValidation:
            if fraction is not None:
                raise
            return read_with(0.0, folder)

    def read_with(fraction: float, folder: str | None) -> tuple[Sweep, Network, Dataset]:
        chosen = dataclasses.replace(options, validation_fraction=fraction)
        return chosen, *prepared(train_options(chosen, setting), device, folder)[:2]

    def fits(read: tuple[Sweep, Network, Dataset]) -> bool:
        return sweep_folder.began_with(options.output, fingerprint_of(read[2], private=False))

    return where_begun(read, begun_in, fits)
