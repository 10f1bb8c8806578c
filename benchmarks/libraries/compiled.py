"""Compiled programs of JAX's, whoever's gradient they take: timed, and called by a trainer.

No library is imported here but JAX, so that none of them pays for another's import.
"""

import time
from typing import Any

import jax
import numpy as np

from benchmarks.libraries import Trainer
from benchmarks.problems import Problem


def arrays(params: Any) -> list[np.ndarray]:
    """Return parameters as a list."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def scanned(run: Any, params: Any, state: Any, data: Any) -> Trainer:
    """Return the trainer of a function of carry and data that scans the steps."""
    begin = time.perf_counter()
    compiled = jax.jit(run, donate_argnums=(0, 1)).lower(params, state, *data).compile()
    compiling = time.perf_counter() - begin
    carry = (params, state)

    def steps() -> None:
        nonlocal carry
        carry, _ = jax.block_until_ready(compiled(*carry, *data))

    return Trainer(steps, lambda: arrays(carry[0]), compiling)


def called(function: Any, params: Any, problem: Problem) -> Trainer:
    """Return the trainer of a jitted function of (params, inputs, classes), called step by step.

    It trains nothing: its `params` are the gradient.
    """
    rows = problem.order[0]
    data = jax.device_put((problem.inputs[rows], problem.classes[rows]))
    begin = time.perf_counter()
    compiled = function.lower(params, *data).compile()
    compiling = time.perf_counter() - begin

    def calls() -> None:
        for _ in range(problem.case.steps):
            jax.block_until_ready(compiled(params, *data))

    return Trainer(calls, lambda: arrays(compiled(params, *data)[1]), compiling)
