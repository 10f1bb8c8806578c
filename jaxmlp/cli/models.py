"""`jaxmlp evaluate`, `predict` and `export`: what a trained model is for."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from jaxmlp.cli.console import bad_input, check_new_file, failing_run, select_device
from jaxmlp.data import Examples, load_dataset
from jaxmlp.data.assembly import Expected, is_file_name, read_examples
from jaxmlp.data.predictions import open_predictions
from jaxmlp.data.streams import open_inputs
from jaxmlp.evaluation import predictions
from jaxmlp.exports import FORMATS
from jaxmlp.exports import export as write_export
from jaxmlp.progress import say
from jaxmlp.reports import report
from jaxmlp.training import runs


@dataclasses.dataclass
class Evaluate:
    """Report how a run's model does: class by class, or output by output."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    dataset: str | None = None
    """A file .npz or .csv with examples, or a data set's name; by default the run's own."""
    data_dir: Path | None = None
    """Where the data set is, as for train; by default where the run found it."""
    part: Literal["train", "validation", "test"] | None = None
    """Of a data set: by default its test part, or else its validation part."""
    json: Path | None = None
    """Also write the figures to this file."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute."""


@dataclasses.dataclass
class Predict:
    """Predict for every row of a file of any size, in its order."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    file: tyro.conf.Positional[Path]
    """A file .csv, .npz (its array `inputs`) or .npy, in the units that were trained on."""
    output: Path = Path("predictions.csv")
    """A file .csv or .npz for the predictions and, for classes, their probabilities."""
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
        with jax.default_device(device):
            network, params, metadata = runs.load(options.run)
        examples, shown = _examples(options, network, metadata)
        classes = metadata["dataset"]["classes"]
        with failing_run(device):
            figures = report(network, params, examples, classes, metadata["scaling"])
    say(f"{len(examples.targets)} examples of {shown}\n\n{figures}")
    if options.json is not None:
        with failing_run(device):
            options.json.write_text(json.dumps(figures.to_json(), indent=2) + "\n")


def _examples(options: Evaluate, network: Any, metadata: dict[str, Any]) -> tuple[Examples, str]:
    """Return the examples to evaluate on, and what they are.

    Raises:
        ValueError: They do not fit the network, or the part is not there.
        OSError: They cannot be read.
    """
    dataset, training = metadata["dataset"], metadata["training"]
    name = options.dataset or training["dataset"]
    if options.dataset is not None and is_file_name(name) and options.part is None:
        expected = Expected(
            n_inputs=network.sizes[0],
            n_outputs=network.sizes[-1],
            classes=dataset["classes"],
            features=dataset["features"],
            target=training["target"],
        )
        return read_examples(name, expected), name
    own = options.dataset is None
    arguments: dict[str, Any] = {}
    if own:
        arguments = {
            "target": training["target"],
            "regression": training["regression"] or None,
            "validation_fraction": training["validation_fraction"],
            "validation_file": training["validation_file"],
            "test_file": training["test_file"],
            "seed": training["seed"],
        }
    data = load_dataset(
        name, options.data_dir or (training["data_dir"] if own else None), **arguments
    )
    if data.classes != (dataset["classes"] and tuple(dataset["classes"])):
        raise ValueError(
            f"dataset: expected the classes of {dataset['name']}, got those of {data.name}"
        )
    if data.train.inputs.shape[1] != network.sizes[0]:
        raise ValueError(
            f"dataset: expected {network.sizes[0]} inputs, got {data.train.inputs.shape[1]}"
        )
    chosen = options.part or next(
        part for part in ("test", "validation", "train") if getattr(data, part) is not None
    )
    part = getattr(data, chosen)
    if part is None:
        raise ValueError(f"part: expected one that {data.name} has, got {chosen}")
    return part, f"{data.name} ({chosen})"


def predict(options: Predict) -> None:
    """Write the predictions for a file."""
    begin = time.perf_counter()
    with bad_input():
        device = select_device(options.device)
        check_new_file("output", options.output, options.overwrite)
        with jax.default_device(device):
            network, params, metadata = runs.load(options.run)
        dataset, scaling = metadata["dataset"], metadata["scaling"]
        inputs = open_inputs(
            options.file, network.sizes[0], dataset["features"], metadata["training"]["target"]
        )
        rows = 0
        with (
            jax.default_device(device),
            open_predictions(
                options.output, inputs.n_rows, dataset["classes"], network.sizes[-1]
            ) as out,
        ):
            for chunk in inputs:
                out.write(np.asarray(predictions(network, params, chunk, scaling=scaling)))
                rows += len(chunk)
    seconds = time.perf_counter() - begin
    say(f"{rows:,} predictions in {options.output} after {seconds:.1f} s")


def export(options: Export) -> None:
    """Write the model in another format."""
    with bad_input():
        file = options.output or options.run / FORMATS[options.format].file_name
        check_new_file("output", file, options.overwrite)
        network, params, metadata = runs.load(options.run)
        exported = write_export(
            *(options.format, network, params, metadata["scaling"], file),
            classes=metadata["dataset"]["classes"],
        )
    say(f"{exported.path}\n\n{exported.usage}")
