"""A trained model as the commands find it: a run's network, parameters, scaling, names and data."""

from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmlp.cli.console import warn
from jaxmlp.cli.options import REGRESSION, Train, saved_options
from jaxmlp.cli.problem import fingerprint_of, found, where_begun
from jaxmlp.data import Dataset, Examples, load_dataset
from jaxmlp.data.contents import listed
from jaxmlp.data.datasets import is_own
from jaxmlp.data.splits import read
from jaxmlp.data.tables import open_table
from jaxmlp.network import Network, Parameters
from jaxmlp.scaling import Scaling, TargetScaling
from jaxmlp.training import models, runs

PARTS = ("train", "validation", "test")


class Model(NamedTuple):
    """A run's network, its parameters, and what its configuration says beside.

    What `jaxmlp.save` wrote has no `dataset`, and the default `options`. `target` is the column of
    the targets, or None, and `folder` the one in which the run was begun; the outputs were
    trained on targets scaled by `target_scaling`, if there is one. Parameters of an ensemble are
    those of so many `members`, every leaf (M, …).
    """

    network: Network
    params: Parameters
    scaling: Scaling | None
    dataset: str | None
    classes: list[str] | None
    features: list[str] | None
    options: Train
    target: str | None
    folder: str | None
    target_scaling: TargetScaling | None
    members: int | None = None


def load_model(run: Path, device: Any, ensembles: bool = False) -> Model:
    """Return a run's model, its parameters on the device.

    Args:
        run: The folder.
        device: Where its parameters are to be.
        ensembles: Whether they may be those of several networks.

    Raises:
        ValueError: A file is damaged, or holds an ensemble where one network is wanted.
        OSError: A file is missing or cannot be read.
    """
    with jax.default_device(device):
        network, params, metadata = models.load(run)
    members = metadata.get("members")
    if members is not None and not ensembles:
        raise ValueError(
            f"run: expected one network, got {run}, which holds {members}: `jaxmlp evaluate` and "
            "`predict` take their mean; `jaxmlp.load` reads them, and `jaxmlp.member` takes one"
        )
    dataset = metadata.get("dataset")
    content = dataset if isinstance(dataset, dict) else {}
    options = runs.training_options(run) if "name" in content else None
    names = {"classes": network.sizes[-1], "features": network.sizes[0]}
    if (
        not isinstance(dataset, dict)
        or not isinstance(content.get("name", ""), str)
        or not isinstance(content.get("target", ""), (str, NoneType))
        or not isinstance(content.get("folder", ""), (str, NoneType))
        or not _is_scaling(content.get("target_scaling"), network.sizes[-1])
        or not all(_are_names(content.get(key), n) for key, n in names.items())
    ):
        raise ValueError(
            f"{run / runs.CONFIG}: not a run's configuration: its dataset is {dataset!r:.60}"
        )
    classes, scaling = content.get("classes"), content.get("target_scaling")
    if classes is None and "name" not in content and network.loss == "softmax_cross_entropy":
        classes = [str(number) for number in range(network.sizes[-1])]
    options = Train() if options is None else saved_options(run, options)
    return Model(
        network=network,
        params=params,
        scaling=metadata["scaling"],
        dataset=content.get("name"),
        classes=classes,
        features=content.get("features"),
        options=options,
        target=content.get("target", options.target),
        folder=content.get("folder"),
        target_scaling=scaling and TargetScaling(**{k: np.array(v) for k, v in scaling.items()}),
        members=members,
    )


def _is_scaling(content: Any, n: int) -> bool:
    """Tell whether there is no scaling of the targets, or one of n."""
    if content is None:
        return True
    try:
        numbers = np.array([content["mean"], content["deviation"]], np.float64)
    except (TypeError, KeyError, ValueError):
        return False
    sound = numbers.shape == (2, n) and bool(np.isfinite(numbers).all())
    return sound and len(content) == 2 and bool((numbers[1] > 0).all())


def _are_names(content: Any, n: int) -> bool:
    """Tell whether there are no names, or one for each of n."""
    if content is None:
        return True
    return (
        isinstance(content, list)
        and len(content) == n
        and all(isinstance(name, str) for name in content)
    )


def load_data(
    run: Path, model: Model, name: str | None = None, data_dir: Path | None = None
) -> Dataset:
    """Return the data that a run was trained on, or others that fit its model.

    Where the run's own data have changed since, a line says so.

    Args:
        run: The run's folder.
        model: Its model.
        name: A data set's name or a file, or None for the run's own.
        data_dir: Where it is, as for train, or None for where the run found it.

    Raises:
        ValueError: The data do not fit the model, or are damaged.
        OSError: They cannot be read.
    """
    if name is None and model.dataset is None:
        raise ValueError(
            f"dataset: expected a file or a known set (--dataset), as {run} was saved without one, "
            "got none"
        )
    if name is None:
        return _own_data(run, model, data_dir)
    arguments = _arguments(model, name) if is_own(name) else {}
    data = load_dataset(name, data_dir, **arguments)
    _check_same(model, data)
    return data


def _own_data(run: Path, model: Model, data_dir: Path | None) -> Dataset:
    """Return the run's own data: those where it was begun, or those here if these are others."""

    def is_its(data: Dataset) -> bool:
        return runs.began_with(run, fingerprint_of(data, model.options.private))

    def read_in(folder: str | None) -> Dataset:
        data = _data_of_run(model, data_dir, folder)
        _check_same(model, data)
        return data

    data = where_begun(read_in, model.folder, is_its)
    if not is_its(data):  # it may be meant, and is then to be known
        warn(
            f"dataset: expected the data that {run} was begun with, got others from {data.source}, "
            "which are taken"
        )
    return data


def _data_of_run(model: Model, data_dir: Path | None, folder: str | None) -> Dataset:
    """Return the data that a run's options name, from that folder or from here."""
    options = model.options
    paths = {
        name: found(getattr(options, name), folder)
        for name in ("data_dir", "validation_file", "test_file")
    }
    source: str | Path = options.dataset
    arguments: dict[str, Any] = {}
    if is_own(source):
        source = found(Path(source), folder) or source
        arguments = _arguments(model, options.dataset)
    arguments |= {"seed": options.seed, "stream": options.stream}
    return load_dataset(
        source,
        data_dir or paths["data_dir"],
        validation_file=paths["validation_file"],
        test_file=paths["test_file"],
        validation_fraction=options.validation_fraction or 0.0,
        **arguments,
    )


def _arguments(model: Model, name: str) -> dict[str, Any]:
    """Return how a file of the user's own is read, whether it is the run's or another."""
    options = model.options
    result: dict[str, Any] = {"regression": REGRESSION[options.targets]}
    if name.lower().endswith(".csv"):
        result["target"], result["ignore"] = model.target, options.ignore
        if name != options.dataset and options.ignore:  # it may have no such columns
            header = open_table(Path(name).expanduser()).header
            result["ignore"] = [column for column in options.ignore if column in header]
    return result


def part_of(data: Dataset, part: str | None, order: Sequence[str]) -> tuple[str, Examples]:
    """Return a part of a data set by its name, or the first of these that there is, in memory.

    Raises:
        ValueError: The part is not there, or none of them is.
    """
    there = [name for name in PARTS if getattr(data, name) is not None]
    wanted = order if part is None else (part,)
    for name in wanted:
        if name in there:
            return name, read(getattr(data, name))
    got = "none" if part is None else part
    raise ValueError(
        f"part: expected {' or '.join(there)} of {data.name} (--part), got {got}"
        + (f", as there is no {' or '.join(order)} part" if part is None else "")
    )


def _check_same(model: Model, data: Dataset) -> None:
    """Raise ValueError where a data set has other inputs or outputs than the model."""
    n_inputs, n_outputs = model.network.sizes[0], model.network.sizes[-1]
    if data.classes != (model.classes and tuple(model.classes)):
        expected = f"the classes {listed(model.classes)}" if model.classes else "numbers to predict"
        got = f"the classes {listed(data.classes)}" if data.classes else "numbers"
        raise ValueError(f"dataset: expected {expected}, got {data.name} with {got}")
    if data.train.inputs.shape[1] != n_inputs or data.n_outputs != n_outputs:
        raise ValueError(
            f"dataset: expected {n_inputs} inputs and {n_outputs} outputs, got "
            f"{data.train.inputs.shape[1]} and {data.n_outputs}"
        )
    features = data.features and [*data.features]
    if features and model.features and features != model.features:
        raise ValueError(
            f"dataset: expected the columns {listed(model.features)} in their order, got "
            f"{listed(features)}"
        )
