"""The folder of a sweep: its options, the trials as they end, the table, and the best run."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmlp.training.runs import FORMAT_VERSION, write_file
from jaxmlp.training.sweeps import Summary, Trial
from jaxmlp.validation import check_count

SWEEP = "sweep.json"
TRIALS = "trials.jsonl"
RESULTS = "results.csv"
BEST = "best"
SURFACE = "response-surface.png"


def write_sweep(folder: Path, content: Mapping[str, Any]) -> None:
    """Write sweep.json: the format's version, the options, the settings and the data's checksum."""
    whole = {"format_version": FORMAT_VERSION, **content}
    write_file(folder / SWEEP, (json.dumps(whole, indent=2) + "\n").encode())


def read_sweep(folder: Path) -> dict[str, Any] | None:
    """Return the content of sweep.json, or None where there is none.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged, or of another format.
    """
    path = folder / SWEEP
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise ValueError(f"expected format {FORMAT_VERSION}, got {version!r}")
        settings, size = content["settings"], content["members_per_pass"]
        if not settings or not isinstance(settings, list):
            raise ValueError("expected settings")
        content["settings"] = [{str(n): float(v) for n, v in s.items()} for s in settings]
        if not isinstance(content["options"], dict) or not isinstance(content["fingerprint"], str):
            raise ValueError("expected options and a fingerprint")
        if not isinstance(content.get("folder"), str | None):  # None or nothing: not known
            raise ValueError("expected the folder that it was begun in")
        if size is not None:
            check_count("members_per_pass", size)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: not a sweep's: {error}") from error
    return content


def begun_in(folder: Path) -> str | None:
    """Return the folder that a sweep was begun in, where that is known.

    Raises:
        OSError: sweep.json cannot be read.
        ValueError: It is damaged.
    """
    saved = read_sweep(folder)
    return None if saved is None else saved.get("folder")


def began_with(folder: Path | None, expected: str) -> bool:
    """Return whether a sweep was begun with data of this fingerprint.

    Where there is no sweep yet, it is.

    Raises:
        OSError: sweep.json cannot be read.
        ValueError: It is damaged.
    """
    saved = None if folder is None else read_sweep(folder)
    return saved is None or saved["fingerprint"] == expected


def write_trials(folder: Path, trials: Sequence[Trial]) -> None:
    """Write trials.jsonl: a line of JSON for each trial."""
    lines = [json.dumps(trial._asdict(), allow_nan=False) + "\n" for trial in trials]
    write_file(folder / TRIALS, "".join(lines).encode())


def read_trials(folder: Path) -> tuple[list[Trial], str | None]:
    """Return the trials that have ended, none where there is no file, and what is wrong with it.

    Where a line is damaged, it is named, and the trials are those before it.

    Raises:
        OSError: The file cannot be read.
    """
    path = folder / TRIALS
    if not path.is_file():
        return [], None
    trials = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        trial = _parsed(line)
        if trial is None:
            return trials, f"{path}: line {number} is damaged: what follows is trained again"
        trials.append(trial)
    return trials, None


def _parsed(line: str) -> Trial | None:
    """Return the trial of a line, or None where it is none."""
    try:
        trial = Trial(**json.loads(line))
    except (ValueError, TypeError):
        return None
    counts = (trial.setting, trial.seed, trial.epochs)
    if not all(isinstance(count, int) for count in counts) or not isinstance(trial.record, dict):
        return None
    if not all(isinstance(value, (int, float)) for value in trial.record.values()):
        return None
    return trial if trial.diverged is None or isinstance(trial.diverged, str) else None


def write_results(folder: Path, summaries: Sequence[Summary]) -> None:
    """Write results.csv: a row for each setting, with the means and deviations of its figures."""
    names = list(summaries[0].values)
    figures = list(dict.fromkeys(name for one in summaries for name in one.means))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    heads = [head for name in figures for head in (name, f"{name}_sd")]
    table.writerow(["setting", *names, "epochs", "diverged", *heads])
    for one in summaries:
        row: list[Any] = [one.setting, *(one.values[name] for name in names)]
        whole = one.epochs == int(one.epochs)
        row += [int(one.epochs) if whole else one.epochs, one.diverged]
        for name in figures:
            row += [one.means.get(name, ""), one.deviations.get(name, "")]
        table.writerow(["" if value is None else value for value in row])
    write_file(folder / RESULTS, text.getvalue().encode())
