"""A trained model as the commands find it: a run's network, parameters, scaling, names and data."""

from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import jax

from jaxmlp.cli.console import warn
from jaxmlp.cli.options import REGRESSION, Train, saved_options
from jaxmlp.cli.problem import fingerprint_of
from jaxmlp.data import Dataset, Examples, load_dataset
from jaxmlp.data.contents import listed
from jaxmlp.data.datasets import is_own
from jaxmlp.data.splits import read
from jaxmlp.network import Network, Parameters
from jaxmlp.scaling import Scaling
from jaxmlp.training import models, runs

PARTS = ("train", "validation", "test")


class Model(NamedTuple):
    """A run's network, its parameters, and what its configuration says beside.

    What `jaxmlp.save` wrote has no `dataset`, and the default `options`. `target` is the column of
    the targets, or None, and `folder` the one in which the run was begun. Parameters of an ensemble
    are those of so many `members`, every leaf (M, …).
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
        or not isinstance(content.get("folder", ""), str)
        or not all(_are_names(content.get(key), n) for key, n in names.items())
    ):
        raise ValueError(
            f"{run / runs.CONFIG}: not a run's configuration: its dataset is {dataset!r:.60}"
        )
    classes = content.get("classes")
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
        members=members,
    )


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
    options = model.options
    arguments: dict[str, Any] = {}
    if name is None or is_own(name):
        table = (options.dataset if name is None else name).lower().endswith(".csv")
        arguments = {
            "target": model.target if table else None,
            "regression": REGRESSION[options.targets],
        }
    source: str | Path = options.dataset if name is None else name
    if name is None:
        data_dir = data_dir or _found(options.data_dir, model.folder)
        for argument in ("validation_fraction", "seed", "stream"):
            arguments[argument] = getattr(options, argument)
        for argument in ("validation_file", "test_file"):
            arguments[argument] = _found(getattr(options, argument), model.folder)
        if is_own(source):
            source = _found(Path(source), model.folder) or source
    data = load_dataset(source, data_dir, **arguments)
    _check_same(model, data)
    if name is None:
        try:
            runs.check_fingerprint(run, fingerprint_of(data, options.private))
        except ValueError as error:  # it may be meant, and is then to be known
            warn(error)
    return data


def _found(path: Path | None, folder: str | None) -> Path | None:
    """Return a path of a run's options, which may be relative to where the run was begun."""
    if path is None or folder is None or path.expanduser().exists():
        return path
    there = Path(folder, path)
    return there if there.exists() else path


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
