"""The proof of the gradients: oracles, random cases, comparison, diagnosis, and the table."""

from typing import Any


def repeat(row: str, **where: Any) -> dict[str, Any]:
    """Return one trial of the table that `jaxmlp verify` prints, see `trials.repeat`."""
    from jaxmlp.verification import trials

    return trials.repeat(row, **where)
