"""What `fit` costs beside the bare compiled scan: figures, pieces, watching and checkpoints.

    python -m benchmarks.loop --data-dir DIR [--hidden 128] [--batch-size 128] [--epochs 60]

The scan has the same step (gather, our gradient, optax's SGD) and nothing else: no figures, no
norms, no shuffling on the host. Both train the same epochs from the same parameters, alternating;
their parameters are compared first.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlp
from jaxmlp.batch import Batch, mean_gradient, pass_batch
from jaxmlp.data import load_dataset
from jaxmlp.scaling import PIXELS
from jaxmlp.training.checkpoints import Checkpoints


def bare(network: jaxmlp.Network, rate: float) -> tuple[optax.GradientTransformation, Any]:
    """Return the optimiser and an epoch as one scan over an order (steps, B)."""
    optimizer = optax.sgd(rate)

    @jax.jit
    def epoch(params: Any, state: Any, inputs: Any, targets: Any, order: Any) -> Any:
        def step(carry: Any, rows: Any) -> Any:
            params, state = carry
            batch = Batch(PIXELS.on_device(inputs[rows], jnp.float32), targets[rows], None)
            result = pass_batch(network, params, batch, finite_rows=True)
            gradient: Any = mean_gradient(network, params, result, None)
            updates, state = optimizer.update(gradient, state, params)
            moved: Any = optax.apply_updates(params, updates)
            return (moved, state), None

        return jax.lax.scan(step, (params, state), order)[0]

    return optimizer, epoch


def main() -> None:
    """Print the seconds an epoch of both, and their ratio."""
    parser = argparse.ArgumentParser(description="Time fit against a bare compiled scan.")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    size, rate = options.batch_size, 0.1
    data = load_dataset("mnist", options.data_dir)
    n_steps = len(data.train.targets) // size  # whole batches: a scan takes no ragged one
    x, t = data.train.inputs[: n_steps * size], data.train.targets[: n_steps * size]
    network = jaxmlp.Network((784, options.hidden, 10), "relu")
    params: Any = jaxmlp.init(network, jax.random.key(0))
    key = jax.random.key(1)
    words = np.asarray(jax.random.key_data(key)).tolist()
    orders = [
        np.random.default_rng([*words, epoch]).permutation(len(x)).reshape(-1, size)
        for epoch in range(options.epochs)
    ]
    optimizer, epoch = bare(network, rate)
    on_device = jax.device_put((x, t))

    def scanned() -> tuple[float, Any]:
        begin = time.perf_counter()
        now, state = params, optimizer.init(params)
        for order in orders:
            now, state = jax.block_until_ready(epoch(now, state, *on_device, order))
        return time.perf_counter() - begin, now

    def fitted() -> tuple[float, Any]:
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = Checkpoints(Path(folder) / "checkpoints")
            begin = time.perf_counter()
            result = jaxmlp.fit(
                network, params, x, t, key=key, optimizer="sgd", learning_rate=rate,
                batch_size=size, epochs=options.epochs, scaling=PIXELS, watch=checkpoints.watch,
            )  # fmt: skip
            return time.perf_counter() - begin, result

    scanned(), fitted()
    times = {"scan": [], "fit": [], "fit, its epochs alone": []}
    for number in range(options.rounds):
        seconds, plain = scanned()
        times["scan"].append(seconds / options.epochs)
        seconds, result = fitted()
        times["fit"].append(seconds / options.epochs)
        alone = sum(record["seconds"] for record in result.history) / options.epochs
        times["fit, its epochs alone"].append(alone)
        if number == 0:
            for ours, theirs in zip(
                jax.tree.leaves(result.params), jax.tree.leaves(plain), strict=True
            ):
                difference = float(jnp.max(jnp.abs(ours - theirs)) / jnp.max(jnp.abs(theirs)))
                assert difference < 1e-3, difference  # float32, thousands of steps
    about = f"784-{options.hidden}-10, batches of {size}, {options.epochs} epochs"
    device = jax.devices()[0].device_kind
    print(f"{about}, median of {options.rounds} rounds, jax {jax.__version__}, {device}")
    for name, values in times.items():
        median, best = statistics.median(values), min(values)
        # Of the same round: a machine that is slower for a minute is so for both.
        ratio = statistics.median(a / b for a, b in zip(values, times["scan"], strict=True))
        print(f"{name:<22} {median:.4f} s an epoch ({best:.4f} at best), {ratio:.3f} of the scan's")


if __name__ == "__main__":
    main()
