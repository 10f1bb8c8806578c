"""The process of the command `jaxmlp`; `python -m jaxmlp` is the same."""

import gc

from jaxmlp.cli import main


def run() -> None:
    """Run the command in this process, which is its own."""
    # What the imports made is there to stay: to search it for garbage, and once more at the end of
    # the process, takes 0.2 s.
    gc.freeze()
    main()


if __name__ == "__main__":
    run()
