"""Networks and their parameters in files: a run's model, and what a caller saves."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from safetensors import SafetensorError, safe_open
from safetensors.flax import load_file
from safetensors.flax import save as as_bytes

from jaxmlp.network import (
    Layer,
    Network,
    Parameters,
    check_finite_members,
    check_finite_parameters,
    check_members,
    check_parameters,
)
from jaxmlp.scaling import Scaling, check_scaling
from jaxmlp.training.runs import (
    CONFIG,
    EPOCH_FILE,
    EPOCHS,
    MODEL,
    config_bytes,
    new_run,
    read_config,
    write_file,
    writing,
)
from jaxmlp.validation import check_float_dtype

_OWN = ("format_version", "network", "scaling", "dataset", "members", "training")


def save(
    run: str | os.PathLike[str],
    network: Network,
    params: Parameters,
    *,
    scaling: Scaling | None = None,
    classes: Sequence[str] | None = None,
    features: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a network and its parameters, or those of an ensemble, to a folder for `load`.

    `jaxmlp predict` and `evaluate` take the folder too, of an ensemble for the mean of its members;
    `export` takes that of a single network. Of a table without names they take the columns in their
    order, and the last as the targets.

    Args:
        run: The folder, new or empty.
        network: The network.
        params: Its parameters; or those of M networks, every leaf (M, …), as `fit_ensemble` returns
            them.
        scaling: What the inputs were scaled by, or None; each part () or (D,).
        classes: The names of the K ≥ 2 classes, words, integers or booleans; None for numbers, and
            for the classes 0 … K − 1.
        features: The names of the D inputs, by which `jaxmlp predict` finds a table's columns.
        metadata: What else `load` is to return: all that JSON can hold, with words for keys.

    Raises:
        TypeError: An argument of another kind.
        ValueError: Shapes or names that do not fit the network, parameters that are not finite, or
            metadata that JSON cannot hold.
        FileExistsError: The folder holds files; none of them is touched.
        OSError: It cannot be made or written in.

    Example:
        >>> import jax, jaxmlp, tempfile
        >>> network = jaxmlp.Network((4, 8, 3))
        >>> params = jaxmlp.init_members(network, jax.random.split(jax.random.key(0), 5))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jaxmlp.save(folder, network, params, metadata={"accuracy": 0.9})
        ...     network, params, metadata = jaxmlp.load(folder)
        >>> params[0].weight.shape, metadata["members"], metadata["accuracy"]
        ((5, 8, 4), 5, 0.9)
    """
    path = _checked_path(run)
    if not isinstance(network, Network):
        raise TypeError(f"network: expected a jaxmlp.Network, got {type(network).__name__}")
    about = _checked_metadata(metadata)
    if isinstance(params, (tuple, list)) and params and np.ndim(_weight(params[0])) == 3:
        about["members"] = check_members(network, params)
        check_finite_members(params)
    else:
        check_parameters(network, params)
        check_finite_parameters(params)
    if scaling is not None:
        check_scaling(scaling, network.sizes[0])
        with np.errstate(over="ignore"):  # a longer float may be none of 64 bits
            scaling = Scaling(*(np.asarray(part, np.float64) for part in scaling))
        check_scaling(scaling, network.sizes[0])
    if classes is not None and (network.sizes[-1] == 1 or network.loss == "poisson"):
        estimator = " (of an estimator's two classes: to_network(per_class=True))"
        two = network.loss == "sigmoid_binary_cross_entropy"
        raise ValueError(
            f"classes: expected None for {network.loss} of {network.sizes[-1]} outputs, got names"
            f"{estimator * two}"
        )
    about["dataset"] = {
        "classes": _checked_names("classes", classes, network.sizes[-1]),
        "features": _checked_names("features", features, network.sizes[0]),
    }
    # All of both before the first: one alone would be no run.
    files = {MODEL: _model_bytes(params), CONFIG: config_bytes(network, scaling, about)}
    try:
        folder = new_run(path, "", "run")
    except OSError as error:
        if str(error).startswith("run: "):
            raise
        raise type(error)(
            f"run: cannot make the folder {str(path)!r:.60}: {error.strerror}"
        ) from error
    try:
        for name, content in files.items():
            write_file(folder / name, content)
    except OSError:
        for name in files:
            (folder / name).unlink(missing_ok=True)
        raise


def _checked_path(run: Any) -> Path:
    path = run if isinstance(run, (str, os.PathLike)) else None
    text = None if path is None else os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"run: expected the path of a folder, got {run!r:.60}")
    if not text or "\0" in text:
        raise ValueError(f"run: expected the path of a folder, got {text!r:.60}")
    return Path(text)


def _weight(layer: Any) -> Any:
    return getattr(layer, "weight", None)


def _checked_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata: expected names → what JSON can hold, got {metadata!r:.60}")
    if own := sorted(set(metadata) & set(_OWN)):
        raise ValueError(f"metadata: expected other names than {', '.join(_OWN)}, got {own[0]}")
    try:
        _check_keys(metadata)
        text = json.dumps(dict(metadata), allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"metadata: expected what JSON can hold, got other: {error}") from None
    return json.loads(text)


def _check_keys(content: Any) -> None:
    """Raise TypeError where a key is no word: JSON would make one of it, perhaps one twice."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r:.60}")
            _check_keys(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            _check_keys(value)


def _checked_names(name: str, given: Any, count: int) -> list[str] | None:
    if given is None:
        return None
    if isinstance(given, (np.ndarray, Array)):
        given = np.asarray(given).tolist()
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
        raise TypeError(f"{name}: expected {count} names in a list or None, got {given!r:.60}")
    if all(isinstance(one, bool) for one in given):  # as the classes of an estimator are
        given = [str(one) for one in given]
    fitting = (str, int, np.integer)
    if len(given) != count or any(
        isinstance(one, bool) or not isinstance(one, fitting) for one in given
    ):
        raise ValueError(f"{name}: expected {count} names in a list or None, got {given!r:.60}")
    names = [str(one) for one in given]
    if len(set(names)) != count:
        raise ValueError(f"{name}: expected {count} different names, got {given!r:.60}")
    try:
        "".join(names).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: expected names in Unicode, got {given!r:.60}") from error
    return names


def save_model(run: Path, params: Parameters) -> None:
    """Write model.safetensors: the arrays `0.weight`, `0.bias`, `1.weight` and so on."""
    _write_parameters(run / MODEL, params)


def save_epoch(run: Path, epoch: int, params: Parameters) -> None:
    """Write the parameters after an epoch to epochs/<epoch>.safetensors, as in the model's file."""
    folder = run / EPOCHS
    with writing(folder):
        folder.mkdir(exist_ok=True)
    _write_parameters(folder / f"{epoch}.safetensors", params)


def kept_epochs(run: Path) -> dict[int, Path]:
    """Return epoch → file of the parameters kept after it, in the order of the epochs."""
    folder = run / EPOCHS
    found = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if (match := EPOCH_FILE.fullmatch(path.name)) and path.is_file():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def _write_parameters(path: Path, params: Parameters) -> None:
    write_file(path, _model_bytes(params))


def _model_bytes(params: Parameters) -> bytes:
    arrays = {}
    for number, layer in enumerate(params):
        arrays[f"{number}.weight"] = jnp.asarray(layer.weight)
        if layer.bias is not None:
            arrays[f"{number}.bias"] = jnp.asarray(layer.bias)
    return as_bytes(arrays)


def is_double(run: Path) -> bool:
    """Tell whether a run's parameters are in float64, as far as its model's file can be read."""
    try:
        with safe_open(run / MODEL, "np") as file:
            return any(file.get_slice(name).get_dtype() == "F64" for name in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return False


def read_parameters(path: Path, network: Network, members: int | None = None) -> Parameters:
    """Return the parameters in a file that `save_model` or `save_epoch` wrote.

    Args:
        path: The file.
        network: The network.
        members: How many networks they are of, every leaf (M, …); None for one without that axis.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, of another network, or not finite; or it holds float64 while
            JAX's 64-bit mode is off.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            if any(file.get_slice(name).get_dtype() == "F64" for name in file.keys()):
                check_float_dtype(np.float64)
        arrays = load_file(path)
        params = tuple(
            Layer(
                jnp.asarray(arrays[f"{number}.weight"]),
                jnp.asarray(arrays[f"{number}.bias"]) if network.bias else None,
            )
            for number in range(len(network.sizes) - 1)
        )
        if members is None:
            check_parameters(network, params)
        elif (found := check_members(network, params)) != members:
            raise ValueError(f"expected {members} members, got {found}")
    except KeyError as error:
        raise ValueError(f"{path}: not this network's parameters: {error} is missing") from error
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: not this network's parameters: {error}") from error
    try:
        (check_finite_parameters if members is None else check_finite_members)(params)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return params


def load(run: str | os.PathLike[str]) -> tuple[Network, Parameters, dict[str, Any]]:
    """Return the network, the parameters and the metadata of a run.

    Args:
        run: The folder that `jaxmlp train` or `save` wrote.

    Returns:
        The network; its parameters, or an ensemble's, every leaf (M, …), where the metadata have
        `members`; and the rest of config.json, such as `dataset`, `training` and what `save` was
        given, with `scaling`, the `jaxmlp.Scaling` that `evaluate` and `predictions` take, or None.

    Raises:
        FileNotFoundError: The folder or one of its files is missing.
        NotADirectoryError: It is a file.
        IsADirectoryError: One of its files is a folder.
        ValueError: A file is damaged, of a later format, or does not fit the other; or the
            parameters are not finite, or float64 while JAX's 64-bit mode is off.
    """
    folder = Path(run)
    if folder.is_file():
        raise NotADirectoryError(f"run: expected a folder, got {folder}, which is a file")
    for name in (CONFIG, MODEL):
        if (folder / name).is_dir():
            raise IsADirectoryError(
                f"run: expected {name} in {folder} to be a file, got a folder of that name"
            )
        if not (folder / name).is_file():
            seeds = sorted(path.parent.name for path in folder.glob(f"seed-*/{MODEL}"))
            more = f": it holds runs of several seeds, such as {folder / seeds[0]}" if seeds else ""
            if (folder / "best" / MODEL).is_file():
                more = f": it holds a sweep, whose best run is {folder / 'best'}"
            if name == MODEL:
                more = f": it has not ended (`jaxmlp train --output {folder} --resume` goes on)"
            raise FileNotFoundError(f"run: expected {name} in {folder}, got no such file{more}")
    config = read_config(folder / CONFIG)
    try:
        network = Network(**config.pop("network"))
        scaling = config.pop("scaling", None)
        config["scaling"] = None if scaling is None else _read_scaling(scaling, network.sizes[0])
        members = config.get("members")
        if members is not None and (type(members) is not int or members < 1):
            raise ValueError(f"expected a number of members, got {members!r:.60}")
    except KeyError as error:
        missing = f"{error} is missing"
        raise ValueError(f"{folder / CONFIG}: not a run's configuration: {missing}") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{folder / CONFIG}: not a run's configuration: {error}") from error
    return network, read_parameters(folder / MODEL, network, members), config


def _read_scaling(content: Any, n_inputs: int) -> Scaling:
    scaling = Scaling(*(np.asarray(content[name], np.float64) for name in Scaling._fields))
    for name, part in scaling._asdict().items():
        if part.shape not in ((), (n_inputs,)) or not np.isfinite(part).all():
            raise ValueError(f"expected one finite number or {n_inputs} for the scaling's {name}")
    return scaling
