"""What a private step costs beside a plain one, and beside drawing its noise.

    python -m benchmarks.private_steps [--rounds 15]

Each row times three loops of 20 steps, compiled, blocked and warmed up, in turn: our plain step,
our private step (the gradient clipped, noised and applied), and the noise alone. At the first shape
the private step may take 1.25 of the plain one; elsewhere it may take the plain one and 1.1 draws
of its noise, which depends on the network and not on the batch. Exit status 1 where a bound is
missed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxmlp
from jaxmlp.batch import Batch
from jaxmlp.privacy.gradient import gaussian_noise
from jaxmlp.training.steps import Privacy, Regularization, TrainingState, training_step

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


def main() -> None:
    """Print a row for every shape; exit 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description="Time private steps against plain ones.")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    print(f"relu, milliseconds a step, jax {jax.__version__}, {jax.devices()[0].device_kind}")
    print(f"{'network':<14} {'batch':>6} {'plain':>8} {'noise':>8} {'private':>8}  of plain  draws")
    missed = []
    for sizes, n_examples in SHAPES:
        calls = loops(sizes, n_examples)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            jax.block_until_ready(call())
        for _ in range(options.rounds):
            for name, call in calls.items():
                begin = time.perf_counter()
                jax.block_until_ready(call())
                times[name].append((time.perf_counter() - begin) / STEPS)
        rounds = list(zip(*times.values(), strict=True))
        ratio = statistics.median(private / plain for plain, private, _ in rounds)
        draws = statistics.median((private - plain) / noise for plain, private, noise in rounds)
        shape = "-".join(map(str, sizes))
        plain, private, noise = (1e3 * statistics.median(values) for values in times.values())
        first = (sizes, n_examples) == SHAPES[0]
        within = ratio <= OF_PLAIN if first else draws <= DRAWS
        verdict = f"  at most {OF_PLAIN} of plain" if first else f"  at most {DRAWS} draws"
        print(
            f"{shape:<14} {n_examples:>6} {plain:8.3f} {noise:8.3f} {private:8.3f}  {ratio:8.2f} "
            f"{draws:6.2f}{verdict}{'' if within else ' MISSED'}"
        )
        if not within:
            missed.append(f"{shape}, {n_examples}")
    if missed:
        sys.exit(f"missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
