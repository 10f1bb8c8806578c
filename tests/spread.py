"""A process of tests/test_distributed.py: trains on all devices and on one, prints how far apart.

python tests/spread.py [NUMBER PROCESSES PORT]
"""

import sys
from functools import partial

import jax
import numpy as np

import jaxmlp


def distance(got, expected):
    """The largest difference of any leaf, of that leaf's largest entry."""
    return max(
        float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / np.max(np.abs(np.asarray(b))))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    )


def on_host(snapshot):
    """A copy that outlives the training."""
    state, progress = jax.tree.map(np.array, (snapshot.state, snapshot.progress))
    best = snapshot.best._replace(params=jax.tree.map(np.array, snapshot.best.params))
    history = list(snapshot.history)
    return snapshot._replace(state=state, progress=progress, best=best, history=history)


def main():
    """Print lines NAME DISTANCE."""
    jax.config.update("jax_enable_x64", True)
    processes = 1
    if len(sys.argv) > 1:
        number, processes, port = map(int, sys.argv[1:])
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", processes, number)
    devices = jax.devices()
    rng = np.random.default_rng(0)
    x, t, w = rng.normal(size=(60, 4)), rng.integers(3, size=60), rng.uniform(0.5, 2, 60)
    network = jaxmlp.Network((4, 6, 5, 3), ("tanh", "relu"))
    params = jaxmlp.init(network, jax.random.key(0), np.float64)
    shared = {
        "batch_size": 16, "epochs": 3, "sample_weight": w,
        "evaluation": {"validation": (x[:20], t[:20])},
    }  # fmt: skip
    train = partial(
        jaxmlp.fit, network, params, x, t, key=jax.random.key(1), dropout=0.2, input_dropout=0.1,
        average_decay=0.9, label_smoothing=0.1, clip_norm=0.5, max_norm=2.0, weight_decay=0.01,
        schedule="cosine", patience=2, **shared,
    )  # fmt: skip
    spread = train(devices=devices)
    alone = train() if jax.process_index() == 0 else spread  # the others would say the same
    if jax.process_index() == 0:
        print("fit everything", len(devices), distance(spread.params, alone.params))
        losses = [[r["validation_loss"] for r in f.history] for f in (spread, alone)]
        print("record everything", len(devices), distance(*losses))
    if processes == 1:
        # After the first epoch on all devices, the others on two, then on one.
        snapshots = []
        train(devices=devices, callbacks=[lambda _, snapshot: snapshots.append(on_host(snapshot))])
        for name, some in (("two", devices[:2]), ("one", None)):
            resumed = train(devices=some, resume=snapshots[0])
            print("resumed", name, len(devices), distance(resumed.params, alone.params))
    if processes == 2:  # four do that as well
        return
    keys = jax.random.split(jax.random.key(0), 11)
    members = jaxmlp.init_members(network, jax.random.clone(keys), np.float64)
    orders = {"shared": jax.random.key(1)} | ({} if len(sys.argv) > 1 else {"own": keys})
    for name, key in orders.items():
        train = partial(
            jaxmlp.fit_ensemble, network, members, x, t, key=key, dropout=0.2, patience=1,
            learning_rate=np.geomspace(1e-3, 1e-1, 11), **shared,
        )  # fmt: skip
        spread = train(devices=devices)
        assert spread.members_per_pass % len(devices) == 0
        if jax.process_index() == 0:
            alone = train()
            assert spread.best_epochs == alone.best_epochs
            print("ensemble", name, len(devices), distance(spread.params, alone.params))


if __name__ == "__main__":
    main()
