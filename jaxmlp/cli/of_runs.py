"""What `train` and `sweep` say of a run, keep of it and draw."""

import contextlib
import difflib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxmlp
from jaxmlp.cli.options import OF_THE_TRAINING, Common, Train, kept
from jaxmlp.cli.problem import fingerprint_of
from jaxmlp.data import Dataset, Examples
from jaxmlp.data.contents import listed
from jaxmlp.data.splits import read, subset
from jaxmlp.data.stored import StoredInputs
from jaxmlp.data.tables import WEIGHT
from jaxmlp.network import Network
from jaxmlp.scaling import target_scaling
from jaxmlp.training.snapshots import Record

_LEAST, _MOST = 0.05, 20.0  # standard deviations of what trains well as it is
# So many classes, of fewer than so many examples on average, are numbers perhaps.
_MANY_CLASSES, _FEW_EXAMPLES = 20, 8
_LOOKED_AT = 4096  # examples, about, for the scale of their inputs
_PICTURED = 10_000  # of training examples that are not in memory


def draw(
    folder: Path,
    history: list[Record],
    network: Network,
    params: Any,
    data: Dataset,
    private: bool = False,
) -> None:
    """Draw the pictures of a run into its folder, of the test examples or the next best."""
    from jaxmlp.plots import draw_run

    name, part = "test", data.test
    if part is None and not private:  # whose pictures show no other examples
        name, part = "training", data.train
        if data.validation is not None:
            name, part = "validation", data.validation
        else:
            part = first_of(part)
    draw_run(
        folder,
        history,
        network,
        params,
        part,
        data.classes,
        data.image_shape,
        data.scaling,
        part=name,
    )


def first_of(part: Examples) -> Examples:
    """Return the first of examples whose inputs are stored, as many as a picture tells apart."""
    if not isinstance(part.inputs, StoredInputs):
        return part
    return read(subset(part, np.arange(min(len(part.targets), _PICTURED))))


def folder_of_beginning(options: Common, begun_in: Callable[[Path], str | None]) -> str | None:
    """Return the folder by which the paths of a run or sweep go, where that is known.

    That which it was begun in if it is to go on, as `begun_in` says of its own folder; or this one.
    """
    begun = None
    if options.resume and options.output is not None:
        begun = begun_in(options.output)
    if begun is None:
        with contextlib.suppress(OSError):  # the folder is gone
            begun = str(Path.cwd())
    return begun


def about_run(options: Train, data: Dataset, begun_in: str | None) -> dict[str, Any]:
    """Return what config.json says of a run, which was `begun_in` a folder, beside its network."""
    scaling = data.target_scaling and data.target_scaling._asdict()
    return {
        "jaxmlp_version": jaxmlp.__version__,
        "dataset": {
            "name": data.name,
            "source": data.source,
            "classes": data.classes,
            "features": data.features,
            "target": data.target,
            "folder": begun_in,
            "target_scaling": scaling and {name: own.tolist() for name, own in scaling.items()},
            "image_shape": data.image_shape,
            "fingerprint": fingerprint_of(data, options.private),
        },
        "training": kept(options, OF_THE_TRAINING),
    }


def _about_names(data: Dataset) -> list[str]:
    """Return what is to be known of names that may be a row, or misspelt, if they may be."""
    for name in data.features or ():
        if difflib.get_close_matches(name.lower(), [WEIGHT], cutoff=0.8):
            return [f"columns    {name!r} is an input: weights have a column named {WEIGHT!r}"]
    names = [*(data.features or ()), data.target or ""]
    if not all(name.isdecimal() for name in names) or names == sorted(names, key=int):
        return []
    return [
        f"columns    named by whole numbers, {listed(names)}: a first row that is no header is "
        "taken for one"
    ]


def _about_inputs(data: Dataset) -> list[str]:
    """Return what is to be known of inputs that are in units of their own, if they are."""
    inputs = data.train.inputs
    if data.scaling is not None or isinstance(inputs, StoredInputs):
        return []
    inputs = inputs[:: max(1, len(inputs) // _LOOKED_AT)]
    with np.errstate(all="ignore"):  # of numbers near the largest, which are far from 0 ± 1
        means = np.asarray(np.mean(inputs, axis=0, dtype=np.float64))
        deviations = np.asarray(np.std(inputs, axis=0, dtype=np.float64))
    far = np.maximum(np.abs(means), deviations) > _MOST
    if not far.any() and deviations.max() < _LEAST:
        far = deviations > 0
    if not far.any():
        return []
    first = int(np.argmax(far))
    name = f"number {first}" if data.features is None else data.features[first]
    return [
        f"inputs     far from 0 ± 1: {far.sum()} of {len(far)}, such as {name} of "
        f"{means[first]:.3g} ± {deviations[first]:.3g}; may train better with --standardize"
    ]


def _about_weights(options: Train, data: Dataset) -> list[str]:
    """Return which figures are weighted, if any are."""
    parts = {"training": data.train, "validation": data.validation, "test": data.test}
    there = [name for name, part in parts.items() if part is not None]
    own = [name for name in there if getattr(parts[name], "weights", None) is not None]
    lines = []
    if options.class_weight:
        words = " ".join(options.class_weight)
        others = "" if own else ", the others are not"
        lines.append(f"weights    {words}: the training figures are weighted{others}")
    if own:
        which = "all figures" if own == there else f"the {' and '.join(own)} figures"
        lines.append(f"weights    sample_weight: {which} are weighted")
    return lines


def _about_classes(options: Train, data: Dataset) -> list[str]:
    """Return what is to be known of classes that may be meant as numbers."""
    classes, count = data.classes or (), len(data.train.targets)
    many = len(classes) >= _MANY_CLASSES and len(classes) * _FEW_EXAMPLES > count
    integers = all(name.lstrip("-").isdecimal() for name in classes)
    if not many or not integers or options.targets != "auto":
        return []
    return [
        f"targets    {len(classes)} classes of {count} examples, all integers: --targets numbers "
        "takes them as numbers"
    ]


def _about_targets(options: Train, data: Dataset) -> list[str]:
    """Return what is to be known of the numbers that are trained on, if anything is."""
    scaling = data.target_scaling
    if scaling is not None:
        return ["targets    standardized: losses are of these, the model predicts what was read"]
    if options.private:
        return []
    if options.targets == "auto" and data.target and np.isin(data.train.targets, (0, 1)).all():
        return ["targets    are 0 and 1 alone, as numbers: --targets classes makes classes of them"]
    deviations = target_scaling(data.train.targets, data.train.weights).deviation
    far = deviations[(deviations < _LEAST) | (deviations > _MOST)]
    if not len(far):
        return []
    shown = f"{far[0]:.3g}"
    return [
        f"targets    of standard deviation {shown}: may train better with --standardize-targets"
    ]


def heading(
    options: Train,
    network: Network,
    data: Dataset,
    device: Any,
    n_devices: int,
    swept: Collection[str] = (),
) -> str:
    """Return what is about to happen: device, dtype, precision, data, network, training.

    The learning rate stands there unless it is `swept`.
    """
    sizes = "-".join(str(size) for size in network.sizes)
    activation = " ".join(options.activation) if network.activations else "no hidden layer"
    precision = network.precision or jax.config.jax_default_matmul_precision or "default"  # pyright: ignore[reportAttributeAccessIssue]
    counts = [
        f"{len(part.targets)} {name}"
        for name, part in (
            ("training", data.train), ("validation", data.validation), ("test", data.test),
        )
        if part is not None
    ]  # fmt: skip
    listed = " and ".join(filter(None, [", ".join(counts[:-1]), counts[-1]]))
    seeds = f"seed {options.seed}"
    if options.seeds > 1:
        seeds = f"seeds {options.seed} to {options.seed + options.seeds - 1}"
    times = f"{n_devices} × " if n_devices > 1 else ""
    several = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    rate = f"learning rate {options.learning_rate:g} ({options.schedule})"
    if "learning_rate" in swept:
        rate = f"{options.schedule} schedule"
    target = "" if data.target is None else f", target {data.target!r}"
    more = _about_names(data) + _about_weights(options, data)
    if not options.private:
        more += _about_inputs(data)
    more += _about_classes(options, data)
    if network.loss == "squared_error" and data.classes is None:
        more += _about_targets(options, data)
    return "\n".join(
        (
            f"device     {times}{device.device_kind} ({device.platform}), {options.dtype}, "
            f"matmul precision {precision}{several}",
            f"data       {data.name}: {listed} examples from {data.source}{target}",
            f"network    {sizes}, {activation}, {network.loss}, "
            f"{network.n_parameters:,} parameters",
            f"training   {options.optimizer}, {rate}, batches of {options.batch_size}, {seeds}",
            *more,
        )
    )
