"""`jaxmlp influence`: which training examples a run's predictions owe to."""

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

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
from jaxmlp.cli.privacy import steps_an_epoch
from jaxmlp.cli.problem import arrays, settings_of, weighted_training
from jaxmlp.cli.trained import Model, load_data, load_model, part_of
from jaxmlp.data import Dataset, Examples
from jaxmlp.data.splits import read, subset
from jaxmlp.evaluation import is_classifier, predictions
from jaxmlp.influence import influence as influence_of
from jaxmlp.influence import self_influence, strongest
from jaxmlp.progress import say
from jaxmlp.training import runs
from jaxmlp.training.trajectory import Trajectory, read_trajectory
from jaxmlp.validation import check_count

_DEFAULT_EXAMPLES = 3


@dataclasses.dataclass
class Influence:
    """Say which training examples helped and harmed a run's predictions, by TracIn."""

    run: tyro.conf.Positional[Path]
    """The run's folder. TracIn follows the parameters that `train --keep-epochs` kept, or else the
    checkpoints, or else the final model alone."""
    examples: tuple[int, ...] = ()
    """The numbers, from 0, of the test examples to explain; by default the three that are furthest
    from right."""
    part: Literal["train", "validation", "test"] | None = None
    """The part that they are of: by default the test part, or else the validation part."""
    self_influence: bool = False
    """Rank the training examples by their influence on themselves: wrong labels come first."""
    top: int = 5
    """How many of the most helpful and of the most harmful are printed, or of the ranking."""
    data_dir: Path | None = None
    """Where the run's data are; by default where the run found them."""
    output: Path | None = None
    """A file .csv or .npz for all scores, with a picture of the same name beside it; by default
    influence.csv or self-influence.csv in the run's folder."""
    overwrite: bool = False
    """Replace the files where they exist."""
    pictures: bool = True
    """Draw the picture."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute."""


def influence(options: Influence) -> None:
    """Print, write and draw the scores."""
    with bad_input():
        device = select_device(options.device)
        check_count("top", options.top)
        if options.self_influence and (options.examples or options.part):
            raise ValueError(
                "examples, part: expected none with --self-influence, which ranks the training "
                "examples"
            )
        model = load_model(options.run, device)
        if model.dataset is None:
            raise ValueError(
                f"run: expected one that `jaxmlp train` made, with its data, got {options.run}"
            )
        name = "self-influence.csv" if options.self_influence else "influence.csv"
        output = options.output or options.run / name
        if output.suffix.lower() not in (".csv", ".npz"):
            raise ValueError(f"output: expected a file .csv or .npz, got {output}")
        check_new_file("output", output, options.overwrite)
        picture = output.with_suffix(".png") if options.pictures else None
        if picture is not None:
            check_new_file("output", picture, options.overwrite)
        scores = _SelfInfluence if options.self_influence else _OnExamples
        with jax.default_device(device):
            data = load_data(options.run, model, None, options.data_dir)
            check_not_read("output", output, options.run, data.source)
            found = scores(options, model, data)
    if model.options.private:
        warn("the guarantee of a private run does not cover scores of its training examples")
    for warning in found.way.warnings:
        warn(warning)
    with bad_input(), failing_run(device), jax.default_device(device):
        found.compute()
    with failing_run(device):
        say(found.text())
        runs.write_file(output, found.table() if output.suffix.lower() == ".csv" else found.npz())
        drawn = picture is not None and found.draw(picture)
    say(f"\nall scores in {output}" + (f", drawn in {picture}" if drawn else ""))


class _Scores:
    """The training examples of a run, the way its training went, and scores of the ones by it."""

    scores: np.ndarray

    def __init__(self, options: Influence, model: Model, data: Dataset) -> None:
        self.options, self.model, self.data = options, model, data
        settings = settings_of(model.options)
        if model.options.private and settings.noise_multiplier is None:
            settings = dataclasses.replace(settings, noise_multiplier=1.0)  # whichever it was
        settings.check(model.network)
        last = None
        if settings.patience is not None:
            last = int(runs.saved_record(options.run, settings.monitor)["epoch"])
        self.train = read(weighted_training(model.options, data))  # scored all at once
        an_epoch = steps_an_epoch(model.options, len(self.train.targets))
        # In the units of the training, as what its epochs left is.
        params, scaling = model.params, model.target_scaling
        self.data = data._replace(target_scaling=scaling)
        self.way: Trajectory = read_trajectory(
            options.run,
            model.network,
            params if scaling is None else scaling.unfolded(params),
            settings,
            an_epoch,
            last,
        )

    @property
    def names(self) -> list[str]:
        """The name of each training example's target."""
        return _names(self.train.targets, self.data.classes)

    def row(self, number: int, part: str = "train") -> list[int]:
        """Return the row of an example in its file, or nothing where that is its number."""
        rows = (self.data.rows or {}).get(part)
        return [] if rows is None else [int(rows[number])]

    @property
    def rows(self) -> dict[str, np.ndarray]:
        """The rows of all training examples, where they have some, as an archive's array."""
        return {} if self.data.rows is None else {"rows": self.data.rows["train"]}

    @property
    def heads(self) -> list[str]:
        """What stands above an example's number and, where it has one, its row."""
        return ["example", *["row" for _ in self.row(0)]]

    @property
    def target(self) -> str:
        """What a target is called."""
        return "target" if self.data.classes is None else "class"

    @property
    def train_arrays(self) -> tuple[Any, ...]:
        """The training examples' inputs, targets and weights, as the loss takes them."""
        return arrays(self.train, self.model.network, self.data)


class _OnExamples(_Scores):
    """The influence of all training examples on some others, (N, M)."""

    def __init__(self, options: Influence, model: Model, data: Dataset) -> None:
        self.part, self.others = part_of(data, options.part, ("test", "validation"))
        n_others = len(self.others.targets)
        for number in options.examples:
            if not 0 <= number < n_others:
                raise ValueError(
                    f"examples: expected numbers from 0 to {n_others - 1} of the {self.part} part, "
                    f"got {number}"
                )
        super().__init__(options, model, data)
        outputs = np.asarray(
            predictions(model.network, model.params, self.others.inputs, scaling=model.scaling)
        )
        chosen = list(dict.fromkeys(options.examples)) or _furthest(self.others, data, outputs)
        self.chosen = np.array(chosen, int)
        self.others = subset(self.others, self.chosen)
        self.outputs = outputs[self.chosen]

    def compute(self) -> None:
        inputs, targets, weights = self.train_arrays
        others, truth, counts = arrays(self.others, self.model.network, self.data)
        scores = influence_of(
            self.model.network, self.way.params, inputs, targets, others, truth,
            self.way.learning_rates, weights, test_sample_weight=counts,
            scaling=self.model.scaling,
        )  # fmt: skip
        self.scores = np.asarray(scores)

    def titles(self) -> list[str]:
        """Return for each chosen example its number, its target and what is predicted."""
        targets = _names(self.others.targets, self.data.classes)
        if self.data.classes is None:
            guesses = _names(self.outputs, None)
        else:
            best = self.outputs.argmax(axis=1)
            guesses = [self.data.classes[k] for k in best]
            if is_classifier(self.model.network):
                sure = self.outputs.max(axis=1)
                guesses = [f"{g} ({100 * p:.1f} %)" for g, p in zip(guesses, sure, strict=True)]
        return [
            f"{self.part} example {n}{self._place(n)}: true {target}, predicted {guess}"
            for n, target, guess in zip(self.chosen, targets, guesses, strict=True)
        ]

    def _place(self, number: int) -> str:
        return "".join(f" (row {row})" for row in self.row(number, self.part))

    def text(self) -> str:
        names = self.names
        lines = [
            f"influence of {len(names):,} training examples on {len(self.chosen)} {self.part} "
            f"{'example' if len(self.chosen) == 1 else 'examples'} of {self.data.name}, "
            f"by {self.way.source}"
        ]
        for title, column in zip(self.titles(), self.scores.T, strict=True):
            lines += ["", title]
            kinds = zip(("helpful", "harmful"), strongest(column, self.options.top), strict=True)
            for kind, numbers in kinds:
                rows = [(n, *self.row(n), _short(names[n]), f"{column[n]:+.4g}") for n in numbers]
                heads = (f"most {kind}", *self.heads[1:], self.target, "score")
                lines += _aligned(heads, rows)
        return "\n".join(lines)

    def table(self) -> bytes:
        header = (*self.heads, self.target, *(f"influence_on_{n}" for n in self.chosen))
        numbers = range(len(self.scores))
        rows = zip(numbers, self.names, self.scores.tolist(), strict=True)
        return _csv(header, ((n, *self.row(n), name, *_digits(row)) for n, name, row in rows))

    def npz(self) -> bytes:
        return _npz(influence=self.scores, examples=self.chosen, **self.rows)

    def draw(self, path: Path) -> bool:
        from jaxmlp.plots import influential_examples

        drawn = influential_examples(
            self.scores, self.names, self.titles(), path,
            images=(self.train.inputs, self.others.inputs), image_shape=self.data.image_shape,
            of=f"{self.part} example",
        )  # fmt: skip
        return drawn is not None


class _SelfInfluence(_Scores):
    """The influence of all training examples on themselves, (N,)."""

    def compute(self) -> None:
        inputs, targets, weights = self.train_arrays
        scores = self_influence(
            self.model.network, self.way.params, inputs, targets, self.way.learning_rates, weights,
            scaling=self.model.scaling,
        )  # fmt: skip
        self.scores = np.asarray(scores)
        self.ranking = np.argsort(-self.scores, kind="stable")

    def text(self) -> str:
        names = self.names
        rows = [
            (rank, n, *self.row(n), _short(names[n]), f"{self.scores[n]:.4g}")
            for rank, n in enumerate(self.ranking[: self.options.top], 1)
        ]
        return "\n".join(
            [
                f"self-influence of {len(names):,} training examples of {self.data.name}, "
                f"by {self.way.source}",
                "",
                *_aligned(("rank", *self.heads, self.target, "score"), rows),
            ]
        )

    def table(self) -> bytes:
        names = self.names
        header = ("rank", *self.heads, self.target, "self_influence")
        rows = (
            (rank, n, *self.row(n), names[n], *_digits([self.scores[n].item()]))
            for rank, n in enumerate(self.ranking.tolist(), 1)
        )
        return _csv(header, rows)

    def npz(self) -> bytes:
        return _npz(self_influence=self.scores, ranking=self.ranking, **self.rows)

    def draw(self, path: Path) -> bool:
        from jaxmlp.plots import most_self_influential

        drawn = most_self_influential(
            self.scores, self.names, path, images=self.train.inputs,
            image_shape=self.data.image_shape,
        )  # fmt: skip
        return drawn is not None


def _furthest(examples: Examples, data: Dataset, outputs: np.ndarray) -> list[int]:
    """Return the numbers of the few examples that are furthest from right.

    For classes those of the lowest output for the true class, first those that are classified
    wrong; for a regression those of the largest squared error. Weights of 0 do not count.
    """
    if data.classes is None:
        right = np.zeros(len(outputs))
        closeness = -np.square(outputs - examples.targets.reshape(outputs.shape)).sum(axis=1)
    else:
        right = outputs.argmax(axis=1) == examples.targets
        closeness = outputs[np.arange(len(outputs)), examples.targets]
    order = np.lexsort((closeness, right))
    if examples.weights is not None:
        order = order[examples.weights[order] > 0]
    return order[:_DEFAULT_EXAMPLES].tolist()


def _names(targets: np.ndarray, classes: Sequence[str] | None) -> list[str]:
    if classes is not None:
        return [classes[int(k)] for k in targets]
    return [" ".join(f"{value:.5g}" for value in np.atleast_1d(row)) for row in targets.tolist()]


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


def _aligned(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return lines of a table, every column to the right."""
    cells = [header, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(f"{c:>{w}}" for c, w in zip(row, widths, strict=True)) for row in cells)
    return [f"  {line}" for line in lines] if rows else [f"  {header[0]}: none"]


def _digits(values: Iterable[float]) -> list[str]:
    """Return numbers in the nine digits that tell every float32 from its neighbours."""
    return [f"{value:.9g}" for value in values]


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def _npz(**contents: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **contents)  # pyright: ignore[reportArgumentType]
    return file.getvalue()
