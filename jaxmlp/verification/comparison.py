"""How a difference is measured, and what is said about it."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmlp.network import Network


class Difference(NamedTuple):
    """The worst entry of a comparison: how far, of what, where, and both values.

    `size` is max|got − expected| over the larger of max|expected| and the largest entry that the
    same sums have of absolute values, where nothing can cancel.
    """

    size: float
    leaf: str
    place: tuple[int, ...]
    got: float
    expected: float

    def __str__(self) -> str:
        """Return one line."""
        where = f"{self.leaf}{list(self.place)}" if self.place else self.leaf
        return f"{self.size:.1e} at {where}: got {self.got!r}, expected {self.expected!r}"


NO_DIFFERENCE = Difference(0.0, "nothing", (), 0.0, 0.0)


def compare(leaf: str, got: Any, expected: Any, scale: Any = 0.0) -> Difference:
    """Return the worst difference of one array; NaN or infinity where none is expected counts ∞.

    Args:
        leaf: The array's name.
        got: What is judged.
        expected: The reference, of the same shape.
        scale: The same contraction of absolute values, of the same shape, or its largest entry.

    Returns:
        The difference; its `size` is 0 only where all entries are equal.
    """
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    if got.size == 0:
        return NO_DIFFERENCE
    with np.errstate(invalid="ignore"):
        distance = np.abs(got - expected)
    distance = np.where(np.isfinite(distance), distance, np.inf)
    place = np.unravel_index(int(np.argmax(distance)), distance.shape)
    largest = max(float(np.max(np.abs(expected))), float(np.max(scale)))
    worst = float(distance[place])
    size = worst if worst in (0.0, np.inf) or largest == 0 else worst / largest
    index = tuple(int(i) for i in place)
    return Difference(size, leaf, index, float(got[place]), float(expected[place]))


def leaf_names(network: Network) -> list[str]:
    """Return the parameters' names in the order of the tree's leaves."""
    names = []
    for number in range(len(network.sizes) - 1):
        names.append(f"params[{number}].weight")
        if network.bias:
            names.append(f"params[{number}].bias")
    return names


@dataclasses.dataclass(frozen=True)
class GradientReport:
    """The outcome of `check_gradients`; its text says what differs and what the mistake may be.

    Attributes:
        passed: Whether every leaf of every trial is within the bound.
        network: What was checked.
        trials: How many draws were compared.
        bound: The largest difference that passes; infinite where there was nothing to compare.
        worst: The worst difference, whether it passes or not.
        failures: The worst difference of each failing leaf.
        findings: What is wrong in other ways: shapes, exceptions.
        faults: The names of the mistakes that explain the failures, the likeliest first.
        reproduce: How to repeat the worst trial.
    """

    passed: bool
    network: Network
    trials: int
    bound: float
    worst: Difference
    failures: tuple[Difference, ...] = ()
    findings: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    reproduce: str = ""

    def __bool__(self) -> bool:
        """Return whether the check passed."""
        return self.passed

    def __str__(self) -> str:
        """Return the report as text."""
        sizes = "-".join(str(size) for size in self.network.sizes)
        verdict = "right" if self.passed else "WRONG"
        bound = f", bound {self.bound:.0e}" if np.isfinite(self.bound) else ""
        lines = [f"gradient of {sizes}: {verdict} ({self.trials} trials{bound})"]
        if self.passed:
            lines.append(f"  worst difference {self.worst}")
        lines += [f"  {finding}" for finding in self.findings]
        lines += [f"  differs by {failure}" for failure in self.failures]
        if self.faults:
            lines.append("  what would explain it: " + "; or ".join(self.faults))
        elif not self.passed and self.failures:
            lines.append("  no known mistake explains it")
        if not self.passed and self.reproduce:
            lines.append(f"  to repeat it: {self.reproduce}")
        return "\n".join(lines)


class Found(NamedTuple):
    """What a row of the table found in one of its cases, at its worst."""

    difference: Difference
    case: Any = ""
    reproduce: str = ""
    failed: bool = False
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table that `jaxmlp verify` prints.

    `cases` counts networks, quantities or mistakes; `bound` is None for a row that is counted and
    not measured; `status` is "passed", "failed" or "not run"; `details` holds a line a case where
    each is of interest.
    """

    name: str
    what: str
    status: str
    cases: int
    bound: float | None
    worst: Difference
    where: str = ""
    reproduce: str = ""
    note: str = ""
    details: tuple[str, ...] = ()
    seconds: float = 0.0


def to_json(rows: Sequence[Row], settings: dict[str, Any]) -> str:
    """Return the table as JSON, with the settings that it was made with.

    JSON has no NaN and no infinity: they are the strings "nan" and "inf".
    """

    def plain(row: Row) -> dict[str, Any]:
        result = dataclasses.asdict(row)
        result["worst"] = {
            name: value if not isinstance(value, float) or np.isfinite(value) else str(value)
            for name, value in row.worst._asdict().items()
        }
        return result

    content = {
        "passed": all(row.status != "failed" for row in rows),
        **settings,
        "rows": [plain(row) for row in rows],
    }
    return json.dumps(content, indent=2, default=str) + "\n"
