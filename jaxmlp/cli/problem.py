"""The problem that options describe: a network, data and settings that fit each other."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from jaxmlp.backprop import product
from jaxmlp.cli.options import REGRESSION, Common, Train
from jaxmlp.cli.privacy import check_private, noise_for
from jaxmlp.cli.processes import is_first
from jaxmlp.data import (
    Dataset,
    Examples,
    class_weights,
    example_weights,
    load_dataset,
    standardized,
)
from jaxmlp.data.datasets import is_own
from jaxmlp.data.stored import StoredInputs
from jaxmlp.evaluation import checked_examples
from jaxmlp.losses import LOSSES
from jaxmlp.network import Network, init
from jaxmlp.scaling import target_scaling
from jaxmlp.training.runs import fingerprint
from jaxmlp.training.settings import Settings
from jaxmlp.training.streaming import checked_stored
from jaxmlp.validation import check_count, check_float_dtype, check_name, check_number

_LOSSES_OF_CLASSES = ("softmax_cross_entropy", "sigmoid_binary_cross_entropy", "squared_error")
_ROUNDED = 0.001  # of a deviation of targets, to which their mean may be rounded
_WIDE = ("float32", "float64")
_LOSSES_OF_NUMBERS = ("squared_error", "poisson")
_MOST_PARAMETERS = 2**40  # no machine holds them; where sizes overflow, XLA aborts the process


def arrays(part: Examples, network: Network, data: Dataset) -> tuple[Any, ...]:
    """Return inputs, targets and weights as the loss takes them: as one-hot rows, or scaled."""
    targets = part.targets
    if data.target_scaling is not None:
        targets = data.target_scaling.applied(targets)
    if data.classes is not None and network.loss != "softmax_cross_entropy":
        targets = np.eye(network.sizes[-1], dtype=np.float32)[targets]
    return part.inputs, targets, part.weights


def in_units(data: Dataset, params: Any) -> Any:
    """Return the parameters of a network that predicts the targets as they were read."""
    return params if data.target_scaling is None else data.target_scaling.folded(params)


def found(path: Path | None, folder: str | None) -> Path | None:
    """Return a path of a run's options from the folder that the run was begun in.

    As it was given where nothing is there, and where that is this folder.
    """
    if path is None or folder is None:
        return path
    with contextlib.suppress(OSError):  # this folder is gone
        if folder == str(Path.cwd()):
            return path
    there = Path(folder, path)
    return there if os.path.exists(there) else path  # noqa: PTH110 False where it may not be seen


Read = TypeVar("Read")


def where_begun(
    read: Callable[[str | None], Read], folder: str | None, fits: Callable[[Read], bool]
) -> Read:
    """Return what is read of a run's files: those where it was begun, or those here.

    Args:
        read: Reads them, by the folder that their paths go by, None for this one.
        folder: That in which the run was begun, or None where that is not known.
        fits: Whether what was read is what the run was begun with.

    Returns:
        The first that fits, or else the first that can be read.

    Raises:
        ValueError: That of `read` in the first folder, where neither can be read.
        OSError: As well.
    """
    with contextlib.suppress(OSError):  # this folder is gone
        if folder is None or folder == str(Path.cwd()):
            return read(None)
    results, errors = [], []
    for place in (folder, None):
        try:
            result = read(place)
        except (ValueError, OSError) as error:
            errors.append(error)
            continue
        if fits(result):
            return result
        results.append(result)
    if results:
        return results[0]
    raise errors[0]


def prepared(
    options: Train, device: Any, folder: str | None = None
) -> tuple[Network, Dataset, Settings]:
    """Return the network, the data and the settings, checked before a run begins or goes on.

    Args:
        options: The options.
        device: Where it is computed.
        folder: The one that the run was begun in, if it is to go on.

    Returns:
        The three.

    Raises:
        ValueError: An option that does not fit, or damaged data.
        TypeError: As for `Network`.
        OSError: Files that are missing or unreadable.
    """
    check_float_dtype(options.dtype)
    check_count("seeds", options.seeds)
    check_count("keep", options.keep)
    if options.keep_epochs is not None:
        check_count("keep_epochs", options.keep_epochs)
    if options.checkpoint_every is not None:
        check_number("checkpoint_every", options.checkpoint_every, 0, math.inf, above=True)
    if not 0 <= options.seed < 2**63 - options.seeds:
        raise ValueError(f"seed: expected an integer from 0 to 2^63 - 1, got {options.seed}")
    if min(options.hidden, default=1) < 1:
        raise ValueError(f"hidden: expected sizes of at least 1, got {list(options.hidden)}")
    check_private(options)
    activation = options.activation[0] if len(options.activation) == 1 else options.activation
    precision = "highest" if options.private else options.precision
    probe = Network((1, *options.hidden, 1), activation, precision=precision)
    if probe.precision is not None:  # not every device has every precision: ask before the data
        _check_precision(probe, options.dtype, device)
    settings = settings_of(options)
    source = Path(options.dataset)
    data = load_dataset(
        found(source, folder) or source if is_own(options.dataset) else options.dataset,
        found(options.data_dir, folder),
        target=options.target,
        regression=REGRESSION[options.targets],
        validation_fraction=options.validation_fraction or 0.0,
        validation_file=found(options.validation_file, folder),
        test_file=found(options.test_file, folder),
        seed=options.seed,
        stream=options.stream,
        ignore=options.ignore,
    )
    if options.standardize:
        data = standardized(data)
    known = _LOSSES_OF_NUMBERS if data.classes is None else _LOSSES_OF_CLASSES
    loss = options.loss or ("squared_error" if data.classes is None else "softmax_cross_entropy")
    if loss not in known and loss in LOSSES:
        kind = "numbers" if data.classes is None else "classes"
        raise ValueError(
            f"loss: expected {' or '.join(known)} for {kind}, got {loss} (--targets says what the "
            "targets are)"
        )
    check_name("loss", loss, known)
    if loss == "poisson" and data.train.targets.min() < 0:
        raise ValueError("loss: expected targets of at least 0 for poisson, got negative ones")
    if options.standardize_targets:
        data = _with_scaled_targets(options, data, loss)
    weighted_training(options, data)
    network = Network(
        (data.train.inputs.shape[1], *options.hidden, data.n_outputs),
        activation,
        loss,
        options.bias,
        precision,
    )
    if network.n_parameters > _MOST_PARAMETERS:
        raise ValueError(
            f"hidden: expected at most 2^40 parameters, got {network.n_parameters:,} by "
            f"{list(options.hidden)}"
        )
    if options.private:
        noise = noise_for(options, len(data.train.targets))
        settings = dataclasses.replace(settings, noise_multiplier=noise)
    settings.check(network)
    if options.patience is not None or options.monitor != Train.monitor:
        there = [name for name in ("validation", "test") if getattr(data, name) is not None]
        if options.monitor.rpartition("_")[0] not in there:
            raise ValueError(
                f"monitor: expected the loss or accuracy of a part to judge by that the data have "
                f"({' and '.join(there) or 'none'}), got {options.monitor}; --validation-fraction "
                "0.2 puts a validation part aside"
            )
    _check_values(options, network, data)
    return network, data, settings


def _with_scaled_targets(options: Train, data: Dataset, loss: str) -> Dataset:
    """Return the data with the scaling of their targets by those of the training part.

    Raises:
        ValueError: They are no numbers for a squared error, or the scaling cannot be undone.
    """
    needed = {
        "numbers to predict by the squared error": data.classes is None and loss == "squared_error",
        "biases, which take the mean up": options.bias,
        "float32 or float64, which hold numbers of any size": options.dtype in _WIDE,
    }
    for what, there in needed.items():
        if not there:
            raise ValueError(f"standardize_targets: expected {what}, got others")
    scaling = target_scaling(data.train.targets, data.train.weights)
    rounded = np.abs(scaling.mean) * np.finfo(np.float32).eps / scaling.deviation
    if rounded.max() > _ROUNDED:
        k = int(np.argmax(rounded))
        raise ValueError(
            "standardize_targets: expected targets that float32 tells apart, got a mean of "
            f"{scaling.mean[k]:g} with a deviation of {scaling.deviation[k]:g}: take an offset away"
        )
    return data._replace(target_scaling=scaling)


def _check_precision(network: Network, dtype: str, device: Any) -> None:
    """Raise ValueError where the device has no such matrix product."""
    one = jax.ShapeDtypeStruct((1, 1), np.dtype(dtype))
    try:
        with jax.default_device(device):
            jax.jit(partial(product, network)).lower(one, one).compile()
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        raise ValueError(
            f"precision: expected one that {device.device_kind} has for {dtype}, got "
            f"{network.precision}"
        ) from error


def _check_values(options: Train, network: Network, data: Dataset) -> None:
    """Raise ValueError where a number does not fit the dtype that is computed in, by its place."""
    params = jax.eval_shape(lambda: init(network, jax.random.key(0), options.dtype))
    for name, part in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        if part is not None:
            try:
                inputs, targets, weights = arrays(part, network, data)
                if isinstance(inputs, StoredInputs):
                    stored = checked_stored(network, params, inputs, targets, weights, data.scaling)
                    if is_first():  # of several processes, which read their own parts later
                        stored.check_inputs()
                else:
                    checked_examples(network, params, inputs, targets, weights, data.scaling)
            except ValueError as error:
                raise ValueError(f"{name} {error}") from error


def keys_of_seed(seed: int) -> tuple[jax.Array, jax.Array]:
    """Return the key of a seed's first parameters and that of its training."""
    return _split(np.int64(seed))


@jax.jit  # one program, where they would be four
def _split(seed: jax.Array) -> tuple[jax.Array, jax.Array]:
    first, training = jax.random.split(jax.random.key(seed))
    return first, training


def settings_of(options: Train) -> Settings:
    """Return the settings of the training.

    Raises:
        ValueError: A setting of the optimiser that is no NAME=NUMBER.
    """
    chosen = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(Settings)
        if field.name != "optimizer_settings"
    }
    numbers = _pairs("optimizer_settings", options.optimizer_settings)
    return Settings(**chosen, optimizer_settings=numbers)


def weighted_training(options: Common, data: Dataset) -> Examples:
    """Return the training examples, each weighted as its class.

    Raises:
        ValueError: The weights are not for these classes, or there are none.
    """
    how = _class_weights(options.class_weight)
    if how is None:
        return data.train
    if data.classes is None:
        raise ValueError(f"class_weight: expected none for {data.name}, a regression")
    train = data.train
    of_classes = class_weights(train.targets, data.classes, how)
    return train._replace(weights=example_weights(train.targets, of_classes, train.weights))


def _class_weights(words: tuple[str, ...]) -> Any:
    """Return None, "balanced", or class → weight.

    Raises:
        ValueError: A word that is neither `balanced`, alone, nor CLASS=WEIGHT.
    """
    if words == ("balanced",) or not words:
        return words[0] if words else None
    return _pairs("class_weight", words, other="balanced or ")


def _pairs(option: str, words: tuple[str, ...], other: str = "") -> dict[str, float]:
    """Return NAME=NUMBER words as a dictionary; `other` is what else may stand there.

    Raises:
        ValueError: A word of another form.
    """
    pairs = {}
    for word in words:
        name, equals, number = word.rpartition("=")
        try:
            if not equals:
                raise ValueError
            value = float(number)
        except ValueError:
            raise ValueError(f"{option}: expected {other}NAME=NUMBER, got {word!r}") from None
        if name in pairs:
            raise ValueError(f"{option}: expected every name once, got {name!r} twice")
        pairs[name] = value
    return pairs


def description(data: Dataset) -> str:
    """Return shapes and a checksum of the targets, by which other data are known cheaply."""
    parts = (data.train, data.validation, data.test)
    shapes = [part and part.inputs.shape for part in parts]
    return f"{shapes} {fingerprint(*(part and part.targets for part in parts))}"


def fingerprint_of(data: Dataset, private: bool) -> str:
    """Return a checksum of all examples, with which a run knows its data again.

    That of a private run, which is written down, knows its training examples by their shapes only.
    """
    train: tuple[Any, ...] = data.train
    if private:
        train = tuple(None if array is None else np.array(array.shape) for array in train)
    parts = (train, data.validation, data.test)
    return fingerprint(*(array for part in parts for array in part or (None,)))
