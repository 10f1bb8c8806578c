"""What a sweep prints: its progress, and the table of what was found."""

from collections.abc import Sequence

from jaxmlp.cli.options import Sweep
from jaxmlp.progress import say
from jaxmlp.training import sweep_folder
from jaxmlp.training.ensembles import Progress
from jaxmlp.training.sweeps import Setting, Summary, Trial

_SHOWN = 10  # rows of the table on the screen
_LINES = 20  # of progress, about


class Lines:
    """Lines of progress, about `_LINES` of them."""

    def __init__(self, options: Sweep, begun: int, count: int) -> None:
        self.quiet, self.epochs = options.quiet, options.epochs
        self.begun, self.count = begun, count
        self.every = max(1, count * options.epochs // _LINES)
        self.next = 0

    def moved(self, progress: Progress) -> None:
        """Print a line where a twentieth more of all epochs is done."""
        done = (self.begun + progress.finished) * self.epochs + progress.active * progress.epoch
        if self.quiet or done < self.next or not progress.active:
            return
        self.next = done + self.every
        where = f"epoch {progress.epoch}/{self.epochs} of {progress.active} networks"
        before = self.begun + progress.finished
        say(f"{where}, {before} of {self.count} done before" if before else where)


def sweep_line(settings: Sequence[Setting], seeds: int) -> str:
    """Return what is to be swept."""
    names = ", ".join(settings[0]).replace("_", " ")
    of = f" of {names}" if names else ", as given"
    each = ", each with every seed" if seeds > 1 else ""
    return f"sweep      {len(settings)} {'setting' if len(settings) == 1 else 'settings'}{of}{each}"


def show_table(found: Sequence[Summary], monitor: str) -> None:
    """Print the best settings as a table."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    names = list(found[0].values)
    figures = [monitor]
    for name in ("validation_accuracy", "test_accuracy"):
        if name in found[0].means and name not in figures:
            figures.append(name)
    table = Table()
    for name in ("setting", *names, "epochs", *figures):
        table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    for one in found[:_SHOWN]:
        cells = [str(one.setting), *(f"{one.values[name]:.3g}" for name in names)]
        cells.append(f"{one.epochs:.3g}")
        for name in figures:
            if one.diverged:
                cells.append("diverged")
                continue
            deviation = one.deviations[name]
            spread = "" if deviation is None else f" ± {deviation:.2g}"
            cells.append(f"{one.means[name]:.4g}{spread}")
        table.add_row(*cells)
    # Where the terminal is narrower, lines go on: a number that is cut says nothing.
    wide = Console(width=1000)
    least = Measurement.get(wide, wide.options, table).maximum
    Console(width=max(Console().width, least)).print(table)
    if len(found) > _SHOWN:
        say(f"{_SHOWN} of {len(found)} settings; all are in {sweep_folder.RESULTS}")


def show_best(best: Trial, setting: Setting, several_seeds: bool) -> None:
    """Print the best network's numbers and figures."""
    names = ("validation_loss", "validation_accuracy", "test_loss", "test_accuracy")
    figures = ", ".join(
        f"{name.replace('_', ' ')} {best.record[name]:.4g}" for name in names if name in best.record
    )
    named = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in setting.items())
    which = f"its best seed, {best.seed}" if several_seeds else f"seed {best.seed}"
    say(f"best       {named or 'as given'}; {which}: {figures}")
