"""The process of the command `jaxmlp`; `python -m jaxmlp` is the same."""

import gc
import sys
from typing import Any

from jaxmlp.cli import main


def run() -> None:
    """Run the command in this process, which is its own."""
    # What the imports made is there to stay: to search it for garbage, and once more at the end of
    # the process, takes 0.2 s.
    gc.freeze()
    sys.unraisablehook = unraisable
    main()


def unraisable(given: Any) -> None:
    """Say what could not be raised, but for the ends of reads whose checkpoint was given up.

    Orbax closes its loop with the first array that it cannot read; TensorStore's threads then have
    a traceback for every other one that was being read, behind which our sentence would be lost.
    """
    error = given.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__unraisablehook__(given)


if __name__ == "__main__":
    run()
