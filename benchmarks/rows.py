"""A row of results: what was measured of whom, and what is asked of it; kept as CSV."""

import csv
import datetime
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"
# Cases that are measured no more, with their suites: their rows stay where they are.
RETIRED = {
    ("ensembles", "16 of 784-64-10, B=32"),  # of random pixels, on MNIST since
    ("ensembles", "16 of 784-64-10, B=128"),
    ("streaming", "float32, 784-128-10, B=128, shuffle chunks"),  # 0.69 and 0.77 of 0.85, for time
}
OF_ALL = "geometric mean of the ratios"  # the quantity of a figure of all cases


class Row(NamedTuple):
    """A figure with the 20th and 80th percentile and the least of its rounds.

    `share` is the part of the machine's limit that it reaches. `bound` is "" or what is asked, as
    "≥ 0.97" or "≤ 1.8". A figure that there is none of has a `note` that says why.
    """

    suite: str
    case: str
    quantity: str
    who: str
    unit: str
    median: float | None = None
    low: float | None = None
    high: float | None = None
    least: float | None = None
    share: float | None = None
    bound: str = ""
    note: str = ""
    versions: str = ""

    @property
    def holds(self) -> bool:
        """Whether what is asked is there; nothing is asked of a figure that there is none of."""
        if not self.bound or self.median is None:
            return True
        sense, number = self.bound.split()
        limit = float(number)
        return self.median >= limit if sense == "≥" else self.median <= limit


class Context(NamedTuple):
    """What all rows of a run have in common."""

    date: str
    commit: str
    device: str
    precision: str
    jax: str


def context(device: str, commit: str, jax: str, precision: str = "float32") -> Context:
    """Return the context of a run that begins now."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Context(now, commit, device, precision, jax)


def chosen(case: str, wanted: Sequence[str]) -> bool:
    """Tell whether a case is one of those wanted, each named by a part of its name; or all are."""
    return not wanted or any(part in case for part in wanted)


def measured(values: Sequence[float]) -> dict[str, Any]:
    """Return the fields of a row from the figures of its rounds."""
    low, high = np.percentile(values, [20, 80])
    return {
        "median": statistics.median(values),
        "low": float(low),
        "high": float(high),
        "least": min(values),
    }


def spread(rows: Sequence[Row]) -> float | None:
    """Return by what part the 80th percentile is above the 20th in the median row."""
    parts = [row.high / row.low - 1 for row in rows if row.low and row.high]
    return statistics.median(parts) if parts else None


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(rows: Sequence[Row], about: Context, folder: Path = RESULTS) -> Path:
    """Append rows to the file of their suite, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{rows[0].suite}.csv"
    fields = [*Row._fields, *Context._fields]
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            writer.writerow(fields)
        for row in rows:
            values = (f"{v:.6g}" if isinstance(v, float) else v for v in (*row, *about))
            writer.writerow(["" if value is None else value for value in values])
    return path


def latest(suite: str, folder: Path = RESULTS) -> list[list[tuple[list[Row], Context]]]:
    """Return a suite's rows on every device in every precision, run by run: rows and context.

    Of every case, but `RETIRED` ones, those of the last run that has it. A run's figures of all its
    cases, whose "case" is their number, are kept where all its cases are.
    """
    path = folder / f"{suite}.csv"
    found: dict[tuple[str, str], dict[str, list[dict[str, str]]]] = {}
    for record in _read(path) if path.exists() else []:
        if (suite, record["case"]) in RETIRED:
            continue
        own = found.setdefault((record["device"], record["precision"]), {})
        own.setdefault(record["date"], []).append(record)
    result = []
    for runs in found.values():
        parts: list[list[dict[str, str]]] = []
        seen: set[str] = set()
        for records in reversed(runs.values()):
            cases = {record["case"] for record in records if record["quantity"] != OF_ALL}
            whole = not cases & seen
            left = [
                record
                for record in records
                if (whole if record["quantity"] == OF_ALL else record["case"] not in seen)
            ]
            if left:
                parts.insert(0, left)
            seen |= cases
        result.append([_run(records) for records in parts])
    return result


def _run(last: list[dict[str, str]]) -> tuple[list[Row], Context]:
    rows = []
    for record in last:
        numbers = {
            name: float(record[name]) if record[name] else None
            for name in ("median", "low", "high", "least", "share")
        }
        words = {name: record[name] for name in Row._fields if name not in numbers}
        rows.append(Row(**words, **numbers))  # pyright: ignore[reportArgumentType]
    words = {name: last[0][name] for name in Context._fields}
    return rows, Context(**words)
