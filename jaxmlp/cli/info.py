"""`jaxmlp info`: what is installed here, and what it can do."""

import dataclasses
import json

from jaxmlp.progress import say


@dataclasses.dataclass
class Info:
    """Say which versions, devices, caches and data sets there are, and how to get a GPU to work."""

    json: bool = False
    """As JSON."""


def info(options: Info) -> None:
    """Print the description of the environment."""
    from jaxmlp import environment

    described = environment.describe()
    say(json.dumps(described, indent=2) if options.json else environment.as_text(described))
