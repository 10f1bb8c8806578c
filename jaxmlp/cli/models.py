"""`jaxmlp evaluate`, `predict` and `export`: what a trained model is for."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from jaxmlp.cli.console import (
    bad_input,
    check_new_file,
    check_not_read,
    failing_run,
    select_device,
    warn,
)
from jaxmlp.cli.trained import Model, load_data, load_model, part_of
from jaxmlp.data import Examples
from jaxmlp.data.archives import check_inputs_finite
from jaxmlp.data.assembly import Expected, read_examples
from jaxmlp.data.datasets import is_own
from jaxmlp.data.predictions import open_predictions
from jaxmlp.data.streams import open_inputs
from jaxmlp.evaluation import predictions
from jaxmlp.exports import FORMATS
from jaxmlp.exports import export as write_export
from jaxmlp.progress import say
from jaxmlp.reports import EnsembleReport, Regression, ensemble_report, report
from jaxmlp.scaling import Scaling, prepared_inputs
from jaxmlp.training import runs
from jaxmlp.uncertainty import ensemble_predictions


@dataclasses.dataclass
class Evaluate:
    """Report how a run's model does: class by class, or output by output.

    Of an ensemble that `jaxmlp.save` wrote it is how the mean of its members does, how its members
    do alone, and how far they disagree.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    dataset: str | None = None
    """A file .npz or .csv with examples, or a data set's name; by default the run's own."""
    data_dir: Path | None = None
    """Where the data set is, as for train; by default where the run found it."""
    part: Literal["train", "validation", "test"] | None = None
    """Of a data set: by default its test part, or else its validation part."""
    json: Path | None = None
    """Also write the figures to this file, in the place of what it holds."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute."""


@dataclasses.dataclass
class Predict:
    """Predict for every row of a file of any size, in its order.

    Of an ensemble that `jaxmlp.save` wrote it is the mean of what its members predict, and how far
    they disagree.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    file: tyro.conf.Positional[Path]
    """A file .csv, .npz (its array `inputs`) or .npy, or a folder with inputs.npy, in the units of
    the training."""
    output: Path = Path("predictions.csv")
    """A file .csv or .npz for the predictions and, for classes, their probabilities; of an
    ensemble with the members' disagreement."""
    keep: tuple[str, ...] = ()
    """Columns of a .csv file that go into the output's, such as names of the rows: as they are, but
    for spaces around them. Of a model without names for its inputs they are none of these."""
    overwrite: bool = False
    """Replace the output where it exists."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute."""


@dataclasses.dataclass
class Export:
    """Write a run's model for another runtime."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    format: Annotated[Literal["onnx", "stablehlo", "torch"], tyro.conf.arg(name="format")] = "onnx"
    """onnx (needs `pip install "jaxmlp[export]"`), stablehlo, or torch: the state dict of an
    nn.Sequential in safetensors."""
    output: Path | None = None
    """The file; by default model.onnx and so on in the run's folder."""
    overwrite: bool = False
    """Replace the file where it exists."""


def evaluate(options: Evaluate) -> None:
    """Print the report on the examples asked for."""
    with bad_input():
        device = select_device(options.device)
        if options.json is not None:
            check_new_file("json", options.json, overwrite=True)
            check_not_read("json", options.json, options.run)
        model = load_model(options.run, device, ensembles=True)
        examples, shown = _examples(options, model)
        of = report if model.members is None else ensemble_report
        with failing_run(device):
            figures = of(model.network, model.params, examples, model.classes, model.scaling)
        figures = _named(figures, model.target)
    weighted = "" if examples.weights is None else ", weighted by sample_weight"
    say(f"{len(examples.targets)} examples of {shown}{weighted}\n\n{figures}")
    if options.json is not None:
        with failing_run(device):
            runs.write_file(options.json, (json.dumps(figures.to_json(), indent=2) + "\n").encode())


def _named(figures: Any, target: str | None) -> Any:
    """Return the figures with the name of the column that the one output of a regression is for."""
    if isinstance(figures, EnsembleReport):
        return figures._replace(
            mean=_named(figures.mean, target),
            members=tuple(_named(own, target) for own in figures.members),
        )
    if target is None or not isinstance(figures, Regression) or len(figures.names) != 1:
        return figures
    return figures._replace(names=(target,))


def _examples(options: Evaluate, model: Model) -> tuple[Examples, str]:
    """Return the examples to evaluate on, and what they are.

    Raises:
        ValueError: They do not fit the network, or the part is not there.
        OSError: They cannot be read.
    """
    name = options.dataset
    if name is not None and is_own(name) and options.part is None:
        expected = Expected(
            n_inputs=model.network.sizes[0],
            n_outputs=model.network.sizes[-1],
            classes=model.classes,
            features=model.features,
            target=model.target,
            ignore=model.options.ignore,
        )
        if options.json is not None:
            check_not_read("json", options.json, options.run, name)
        return read_examples(name, expected), name
    data = load_data(options.run, model, name, options.data_dir)
    if options.json is not None:
        check_not_read("json", options.json, options.run, data.source)
    part, examples = part_of(data, options.part, ("test", "validation", "train"))
    if name is None and part == "train" and model.options.private:
        warn("the guarantee of a private run does not cover figures of its training examples")
    return examples, f"{data.name} ({part})"


def predict(options: Predict) -> None:
    """Write the predictions for a file."""
    begin = time.perf_counter()
    with bad_input():
        device = select_device(options.device)
        check_new_file("output", options.output, options.overwrite)
        check_not_read("output", options.output, options.run, options.file)
        model = load_model(options.run, device, ensembles=True)
        network = model.network
        inputs = open_inputs(
            options.file, network.sizes[0], model.features, model.target, options.keep
        )
        if model.features is None and options.file.suffix.lower() == ".csv":
            warn(
                f"{options.run} keeps no names of its inputs: the columns are taken in their order"
            )
        rows = 0
        with (
            failing_run(device),
            open_predictions(
                options.output,
                inputs.n_rows,
                model.classes,
                network.sizes[-1],
                disagreeing=model.members is not None,
                kept=options.keep,
            ) as out,
            bad_input(),
        ):
            for chunk, kept in inputs.with_kept():
                ready, left = _prepared(options.file, model, chunk, rows)
                with failing_run(device), jax.default_device(device):
                    found = _predicted(model, ready, left)
                _check_predictions(options.file, found, rows)
                with failing_run(device):
                    out.write(*found, kept=kept)
                rows += len(chunk)
    seconds = time.perf_counter() - begin
    say(f"{rows:,} predictions in {options.output} after {seconds:.1f} s")


def _predicted(model: Model, inputs: np.ndarray, scaling: Scaling | None) -> tuple[Any, ...]:
    """Return the predictions (n, K), and for an ensemble the disagreement (n,)."""
    if model.members is None:
        return (predictions(model.network, model.params, inputs, scaling=scaling),)
    return ensemble_predictions(model.network, model.params, inputs, scaling=scaling)


def _check_predictions(file: Path, found: tuple[Any, ...], start: int) -> None:
    """Check that what is found of rows `start` … of the file is finite as it is written.

    It is predictions (n, K), and of an ensemble the disagreement (n,).

    Raises:
        ValueError: It is not.
    """
    for part in found:
        with np.errstate(over="ignore"):
            values = np.asarray(part).astype(np.float32)
        finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if not finite.all():
            row = int(np.argmin(finite))
            raise ValueError(
                f"{file}: expected inputs that the model has an answer to in float32, got "
                f"{values[row].tolist()} for number {start + row} from 0: they are too large for it"
            )


def _prepared(
    file: Path, model: Model, chunk: np.ndarray, start: int
) -> tuple[np.ndarray, Scaling | None]:
    """Return the inputs (n, D) as they go to the device, and what is left of the scaling.

    Raises:
        ValueError: One of them, rows `start` … of the file, is too large for the model's dtype.
    """
    dtype = model.params[0].weight.dtype
    ready, left = prepared_inputs(model.scaling, chunk, dtype)
    if ready.dtype != np.uint8:  # bfloat16 is no float of NumPy's
        wide = np.promote_types(dtype, np.float32)
        check_inputs_finite(file, ready.astype(wide, copy=False), start)
    return ready, left


def export(options: Export) -> None:
    """Write the model in another format."""
    with bad_input():
        model = load_model(options.run, select_device("auto"))
        file = options.output or options.run / FORMATS[options.format].file_name
        check_new_file("output", file, options.overwrite)
        check_not_read("output", file, options.run)
        exported = write_export(
            options.format, model.network, model.params, model.scaling, file, model.classes
        )
    say(f"{exported.path}\n\n{exported.usage}")
