"""How rows are shown: on the screen, as benchmarks/REPORT.md, and as charts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.rows import RESULTS, Context, Row, latest

REPORT = Path(__file__).resolve().parent / "REPORT.md"
TITLES = {
    "gradients": "One gradient",
    "epoch": "An epoch of MNIST's shape",
    "small": "A step of small networks",
    "quantities": "Per-example quantities and curvature",
    "ensembles": "Many networks at once",
    "streaming": "Data larger than the memory",
    "time_to_accuracy": "Time to an accuracy",
    "startup": "Start-up",
    "memory": "Memory",
}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def figure(row: Row) -> str:
    """Return the figure of a row, with what is asked of it."""
    if row.median is None:
        return row.note
    text = f"{_number(row.median)} {row.unit}".strip()
    if row.bound:
        text += f" ({row.bound}{'' if row.holds else ', MISSED'})"
    return text


def show(rows: Sequence[Row]) -> None:
    """Print rows as a table."""
    if not rows:
        return
    table = Table(title=rows[0].suite, title_justify="left")
    for name in ("case", "quantity", "who", "median", "20 %", "80 %", "least", "of floor", "note"):
        table.add_column(name, justify="right" if name in ("20 %", "80 %", "least") else "left")
    for row in rows:
        share = "" if row.share is None else f"{row.share:.2f}"
        style = None if row.holds else "bold red"
        note = row.note if row.median is not None else ""
        parts = (_number(row.low), _number(row.high), _number(row.least), share, note)
        table.add_row(row.case, row.quantity, row.who, figure(row), *parts, style=style)
    Console(width=150).print(table)


def _markdown(rows: Sequence[Row], about: Context) -> list[str]:
    lines = [
        f"{about.device}; {about.precision}; jax {about.jax}; commit {about.commit}; {about.date}.",
        "",
        "| case | quantity | who | median | 20 % | 80 % | least | of the floor | |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        share = "" if row.share is None else f"{row.share:.2f}"
        note = row.note if row.median is not None else ""
        cells = (
            row.case, row.quantity, row.who, figure(row), _number(row.low), _number(row.high),
            _number(row.least), share, note,
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def write() -> Path:
    """Write REPORT.md and the charts from the last run of every case."""
    lines = [
        "# Report",
        "",
        "Written by `python -m benchmarks --report` from the rows under `results/`: of every case",
        "the last run that has it, on each device. How everything is measured is in",
        "[README.md](README.md), what the floor is too. A figure that misses what is asked of it",
        "says so.",
    ]
    for suite, title in TITLES.items():
        for number, runs in enumerate(latest(suite)):
            about = runs[-1][1]
            lines += ["", f"## {title}" if not number else f"### {about.device}, {about.precision}"]
            if suite == "epoch":
                name = "epoch.png" if not number else f"epoch-{number}.png"
                chart([row for rows, _ in runs for row in rows], RESULTS / name)
                lines += ["", f"![Ratio of every library's time to ours](results/{name})"]
            for rows, about in runs:
                lines += ["", *_markdown(rows, about)]
    REPORT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return REPORT


def chart(rows: Sequence[Row], path: Path) -> None:
    """Draw every library's time beside ours, case by case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    timed = [row for row in rows if row.quantity == "training" and row.median is not None]
    cases = list(dict.fromkeys(row.case for row in timed))
    ours: dict[str, Any] = {row.case: row.median for row in timed if row.who == "jaxmlp"}
    figure, axes = pyplot.subplots(figsize=(11, 5), layout="constrained")
    colours = pyplot.colormaps["tab20"](range(20))  # more of them than libraries
    axes.set_prop_cycle(color=colours)
    for who in dict.fromkeys(row.who for row in timed):
        points = [(cases.index(r.case), r.median / ours[r.case]) for r in timed if r.who == who]
        line: dict[str, Any] = {"linewidth": 1} if len(points) == len(cases) else {"linestyle": ""}
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=who, **line)
    axes.set_yscale("log")
    ticks = (0.8, 1, 1.5, 2, 3, 5, 10)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylabel("seconds an epoch, of jaxmlp's")
    axes.set_xticks(range(len(cases)), cases, rotation=60, ha="right", fontsize=7)
    axes.axhline(1, color="black", linewidth=0.5)
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
