"""The same training written for each library, as its own documentation would have it.

A library's function takes a `Problem` and returns a `Trainer`.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.problems import Problem


class Trainer(NamedTuple):
    """A training that goes on from where it is.

    `run` does the steps of the problem's order once, and blocks; `params` returns the weights
    (out, in) and biases, layer by layer; `compile_seconds` is what came before the first step.
    """

    run: Callable[[], None]
    params: Callable[[], list[np.ndarray]]
    compile_seconds: float | None = None


# Who, as rows name it, and where it is written: a module of this package and a function in it.
LIBRARIES: dict[str, tuple[str, str]] = {
    "jaxmlp": ("ours", "fit"),
    "hand backward, scan": ("ours", "scan"),
    "jax.grad + optax, scan": ("jax_grad", "scan"),
    "jax.grad + optax, loop": ("jax_grad", "loop"),
    "Flax NNX, scan": ("flax_nnx", "scan"),
    "Flax NNX, loop": ("flax_nnx", "loop"),
    "Equinox, scan": ("equinox_", "scan"),
    "PyTorch, eager": ("pytorch", "eager"),
    "PyTorch, by hand": ("pytorch", "by_hand"),
    "PyTorch, torch.compile": ("pytorch", "compiled"),
    "PyTorch, CUDA graph": ("pytorch", "cuda_graph"),
    "scikit-learn": ("scikit_learn", "partial_fit"),
}
# The same of one gradient: `run` computes it again and again, `params` returns it.
GRADIENTS: dict[str, tuple[str, str]] = {
    "jaxmlp": ("ours", "gradient"),
    "jax.grad": ("jax_grad", "gradient"),
    "Equinox": ("equinox_", "gradient"),
    "PyTorch, eager": ("pytorch", "gradient"),
}


def trainer(who: str, problem: Problem, device: str, table: str = "training") -> Trainer:
    """Return the trainer of a library."""
    module, function = {"training": LIBRARIES, "gradient": GRADIENTS}[table][who]
    write: Any = getattr(importlib.import_module(f"benchmarks.libraries.{module}"), function)
    return write(problem, device)
