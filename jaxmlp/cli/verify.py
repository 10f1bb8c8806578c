"""`jaxmlp verify`: the table of every proof."""

import dataclasses
import time
from pathlib import Path

import jax

from jaxmlp.cli.console import bad_input, check_new_file, fail, failing_run, select_device
from jaxmlp.progress import say
from jaxmlp.training.runs import write_file
from jaxmlp.verification.comparison import Row, to_json


@dataclasses.dataclass
class Verify:
    """Prove the gradients: against jax.grad, central differences, NumPy and mpmath."""

    trials: int = 20
    """Random networks drawn for each architecture."""
    seed: int = 0
    """Of the draws."""
    full: bool = False
    """Every activation × loss × depth × bias × weighting; by default the last two alternate."""
    json: Path | None = None
    """Also write the table to this file."""


def verify(options: Verify) -> None:
    """Print the table, and exit 1 where a row fails."""
    from jaxmlp.verification import table
    from jaxmlp.verification.trials import Settings

    if options.trials < 1:
        fail(f"trials: expected an integer of at least 1, got {options.trials}", 2)
    if options.seed < 0:
        fail(f"seed: expected an integer of at least 0, got {options.seed}", 2)
    json = options.json
    with bad_input():
        if json is not None:
            check_new_file("json", json, overwrite=True)
        device = select_device("auto")
    settings = Settings(options.trials, options.seed, options.full)
    begin = time.perf_counter()
    say(f"jax {jax.__version__} on {device.device_kind}, {settings}")
    rows = []
    for row in table.verify(settings, table.ROWS):
        rows.append(row)
        say(_row_text(row))
    seconds = time.perf_counter() - begin
    if json is not None:
        about = {**settings._asdict(), "jax": jax.__version__, "seconds": seconds}
        with failing_run(device):
            write_file(json, to_json(rows, about).encode())
    failed = [row.name for row in rows if row.status == "failed"]
    if failed:
        fail(f"{len(failed)} of {len(rows)} rows failed: {', '.join(failed)}", 1)
    skipped = [row.name for row in rows if row.status == "not run"]
    verdict = f"; not run: {', '.join(skipped)}" if skipped else ""
    say(f"every gradient holds: {len(rows) - len(skipped)} rows in {seconds:.0f} s{verdict}")


def _row_text(row: Row) -> str:
    """Return a row of the table as a few lines."""
    if row.status == "not run":
        return f"- {row.name:<13} {row.what}: not run, {row.note}"
    mark = "✓" if row.status == "passed" else "✗"
    measured = f"{row.cases} cases"
    if row.bound is not None:
        measured += f", worst {row.worst.size:.1e}, bound {row.bound:.0e}"
    lines = [f"{mark} {row.name:<13} {row.what}: {measured} ({row.seconds:.1f} s)"]
    if row.bound is not None:
        lines.append(f"    {row.worst}")
        lines.append(f"    in {row.where}")
        if row.reproduce:
            lines.append(f"    to repeat it: {row.reproduce}")
    lines += [f"    {detail}" for detail in row.details]
    if row.note:
        lines.append(f"    failed: {row.note}")
    return "\n".join(lines)
