"""What a private step costs beside a plain one, and beside drawing its noise.

Each row times three loops of 20 steps, compiled, blocked and warmed up, in turn: our plain step,
our private step (the gradient clipped, noised and applied), and the noise alone. At the first shape
the private step may take 1.25 of the plain one; elsewhere it may take the plain one and 1.1 draws
of its noise, which depends on the network and not on the batch.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlp
from benchmarks.rows import Row, chosen, measured
from jaxmlp.batch import Batch
from jaxmlp.privacy.gradient import gaussian_noise
from jaxmlp.training.regularization import Privacy, Regularization
from jaxmlp.training.steps import TrainingState, training_step

STEPS = 20
SHAPES = [((784, 128, 10), 1024), ((784, 128, 10), 256), ((784, 512, 10), 256)]
OF_PLAIN, DRAWS = 1.25, 1.1


def loops(sizes: tuple[int, ...], n_examples: int) -> dict[str, Callable[[], Any]]:
    """Return calls of the three loops."""
    network = jaxmlp.Network(sizes, "relu", precision="highest")
    params: Any = jaxmlp.init(network, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (n_examples, sizes[0]))
    batch = Batch(x, jnp.arange(n_examples) % sizes[-1], jnp.ones(n_examples))
    optimizer = optax.sgd(0.1)
    state = TrainingState(params, optimizer.init(params))
    private = Regularization(
        privacy=Privacy(jnp.float32(1), jnp.float32(1), jnp.float32(n_examples))
    )

    def trained(regularization: Regularization) -> Callable[[], Any]:
        @jax.jit
        def run(state: TrainingState, key: Any) -> Any:
            def step(number: Any, state: Any) -> Any:
                own = jax.random.fold_in(key, number)
                return training_step(network, optimizer, state, batch, regularization, key=own)[0]

            return jax.lax.fori_loop(0, STEPS, step, state)

        return lambda: run(state, jax.random.key(2))

    @jax.jit
    def drawn(params: Any, key: Any) -> Any:
        def step(number: Any, total: Any) -> Any:
            noise = gaussian_noise(jax.random.fold_in(key, number), params, 1.0)
            return jax.tree.map(jnp.add, total, noise)

        return jax.lax.fori_loop(0, STEPS, step, params)

    return {
        "plain": trained(Regularization()),
        "private": trained(private),
        "noise": lambda: drawn(params, jax.random.key(2)),
    }


def rows(quick: bool, wanted: Sequence[str] = ()) -> list[Row]:
    """Return the times of the three loops, and what a private step costs beside the others."""
    result = []
    for sizes, n_examples in SHAPES[-1:] if quick else SHAPES:
        case = f"{'-'.join(map(str, sizes))} relu B={n_examples}"
        if not chosen(case, wanted):
            continue
        calls = loops(sizes, n_examples)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            jax.block_until_ready(call())
        rng = np.random.default_rng(0)
        for _ in range(1 if quick else 9):
            for name in rng.permutation(list(calls)).tolist():
                begin = time.perf_counter()
                jax.block_until_ready(calls[name]())
                times[name].append((time.perf_counter() - begin) / STEPS)
        for name, values in times.items():
            milliseconds = measured([1e3 * value for value in values])
            name = f"{name} step in a loop" if name != "noise" else "noise in a loop"
            result.append(Row("quantities", case, name, "jaxmlp", "ms", **milliseconds))
        rounds = list(zip(*times.values(), strict=True))
        ratio = statistics.median(private / plain for plain, private, _ in rounds)
        draws = statistics.median((private - plain) / noise for plain, private, noise in rounds)
        first = (sizes, n_examples) == SHAPES[0]
        result += [
            Row("quantities", case, "private step, of a plain one's time", "jaxmlp", "×", ratio,
                bound=f"≤ {OF_PLAIN}" if first else ""),
            Row("quantities", case, "private beyond plain, in draws of noise", "jaxmlp", "×", draws,
                bound="" if first else f"≤ {DRAWS}"),
        ]  # fmt: skip
    return result
