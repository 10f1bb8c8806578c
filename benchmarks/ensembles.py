"""The suite `ensembles`: many networks in one program, beside the same ones in turn.

    python -m benchmarks.ensembles          the worker of scikit-learn: it is asked by the suite

Members differ in their learning rates and initial weights. First some are compared with the same
network trained alone; then all are trained at once and one after another, by `fit_ensemble` and
`fit`, in rounds, with everything compiled before: an epoch's end and its figures are part of both.
scikit-learn fits as many, one after another, in a process of its own.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.machine import pin
from benchmarks.processes import Unanswered, Worker, serve
from benchmarks.rows import Row, chosen, measured
from benchmarks.training import OURS, Show

EPOCHS = 20
# Examples, sizes, batch size, members, epochs, the bounds over our own in turn and scikit-learn.
CASES = {
    "64 of 64-32-10 on digits, B=32": (1437, (64, 32, 10), 32, 64, EPOCHS, "≥ 1.8", "≥ 20"),
    "16 of 784-64-10 on {}, B=32": (12000, (784, 64, 10), 32, 16, 1, "≥ 1.5", ""),
    "16 of 784-64-10 on {}, B=128": (12000, (784, 64, 10), 128, 16, 1, "≥ 1.5", ""),
}
QUICK = {"4 of 64-32-10, B=32": (300, (64, 32, 10), 32, 4, 2, "", "")}
GROWTH = (1, 4, 16, 64, 256, 1024, 4096)
# Of the largest change of an array, after up to 900 steps.
EQUAL = {"float32": 1e-3, "TF32": 2e-2}


def problem(
    n_examples: int, sizes: tuple[int, ...], data_dir: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return digits or MNIST scaled to [0, 1]; without MNIST's folder random pixels and labels."""
    if sizes[0] == 64:
        from sklearn.datasets import load_digits

        digits: Any = load_digits(return_X_y=True)
        x, t = digits
        return (x[:n_examples] / 16).astype(np.float32), t[:n_examples]
    if data_dir is not None:
        from jaxmlp.data import load_dataset

        train = load_dataset("mnist", data_dir).train
        return train.inputs[:n_examples] / np.float32(255), train.targets[:n_examples]
    rng = np.random.default_rng(0)
    return rng.random((n_examples, sizes[0])).astype(np.float32), rng.integers(10, size=n_examples)


def rates(count: int) -> np.ndarray:
    """Return the members' learning rates."""
    return np.geomspace(0.02, 0.5, count)


def run(
    device: str, quick: bool, data_dir: str | None, show: Show, wanted: Sequence[str] = ()
) -> list[Row]:
    """Return the times at once and in turn, and the networks a second as their number grows."""
    result, patience = [], machine.Patience(device, quick)
    for case, (n_examples, sizes, batch_size, count, epochs, bound, over) in (
        QUICK if quick else CASES
    ).items():
        case = case.format("random pixels" if data_dir is None else "MNIST")
        if not chosen(case, wanted):
            continue
        data = problem(n_examples, sizes, data_dir)
        networks = Networks(data, sizes, batch_size, count, epochs)
        wrong = networks.difference()
        times = timed(networks, 1 if quick else 3, patience)
        new = [
            Row("ensembles", case, name, OURS, "s", note=wrong, **measured(values))
            for name, values in times.items()
        ]
        together, turns = (statistics.median(values) for values in times.values())
        of = "in turn over at once"
        new.append(Row("ensembles", case, of, OURS, "×", turns / together, bound=bound))
        if over or quick:
            new += beside_scikit_learn(case, over, together, quick)
        show(new)
        result += new
    if not quick and chosen("growth", wanted):
        for row in growth(device):
            show([row])
            result.append(row)
    return result


class Networks:
    """Networks of one shape to be trained on the same data, at once or in turn."""

    def __init__(
        self,
        data: tuple[np.ndarray, np.ndarray],
        sizes: tuple[int, ...],
        batch_size: int,
        count: int,
        epochs: int,
    ) -> None:
        import jax

        import jaxmlp

        self.network, self.count = jaxmlp.Network(sizes), count
        self.data = data
        keys = jax.random.split(jax.random.key(0), count)
        self.params = jaxmlp.init_members(self.network, keys)
        self.own = rates(count)
        self.shared: Any = {"optimizer": "sgd", "batch_size": batch_size, "epochs": epochs}

    def at_once(self, rates: np.ndarray) -> Any:
        """Return all members' parameters."""
        import jax

        import jaxmlp

        return jaxmlp.fit_ensemble(
            self.network, self.params, *self.data, key=jax.random.key(1), learning_rate=rates,
            **self.shared,
        ).params  # fmt: skip

    def alone(self, m: int, rates: np.ndarray) -> Any:
        """Return the parameters of one."""
        import jax

        import jaxmlp

        one = jax.tree.map(lambda leaf: leaf[m], self.params)
        return jaxmlp.fit(
            self.network, one, *self.data, key=jax.random.key(1), learning_rate=rates[m],
            **self.shared,
        ).params  # fmt: skip

    def in_turn(self, rates: np.ndarray) -> None:
        """Train all members one after another."""
        for m in range(self.count):
            self.alone(m, rates)

    def difference(self) -> str:
        """Return a note where some members are not what they are alone; everything is compiled."""
        import jax

        together = self.at_once(self.own)
        for m in (0, self.count // 2, self.count - 1):
            difference = changed(self.alone(m, self.own), together, self.params, m)
            if not difference <= EQUAL[machine.precision(jax.default_backend())]:
                return f"DIFFERENT from one alone by {difference:.1e}"
        return ""


def changed(alone: Any, together: Any, first: Any, m: int) -> float:
    """Return the largest difference between both, of the largest change of an array."""
    worst = 0.0
    for a, b, start in zip(*(_leaves(tree) for tree in (alone, together, first)), strict=True):
        a, b, start = np.asarray(a), np.asarray(b)[m], np.asarray(start)[m]
        worst = max(worst, float(np.max(np.abs(a - b)) / np.max(np.abs(a - start))))
    return worst


def _leaves(tree: Any) -> list[Any]:
    import jax

    return jax.tree.leaves(tree)


def timed(networks: Networks, rounds: int, patience: machine.Patience) -> dict[str, list[float]]:
    """Return the seconds of each way in every round, with other learning rates in each."""
    import jax

    ways = {"at once": networks.at_once, "in turn": networks.in_turn}
    times: dict[str, list[float]] = {name: [] for name in ways}
    rng = np.random.default_rng(0)
    for number in range(rounds):
        for name in rng.permutation(list(ways)).tolist():
            patience.wait()
            begin = time.perf_counter()
            jax.block_until_ready(ways[name](networks.own * (1 + 0.01 * number)))
            times[name].append(time.perf_counter() - begin)
    return times


def beside_scikit_learn(case: str, bound: str, ours: float, quick: bool) -> list[Row]:
    """Return the time of as many fits of scikit-learn's, and what it is of ours."""
    worker = Worker("benchmarks.ensembles")
    try:
        values = [worker.ask(quick) for _ in range(1 if quick else 2)]
    except Unanswered as error:
        return [Row("ensembles", case, "in turn", "scikit-learn", "s", note=str(error))]
    finally:
        worker.end()
    row = Row("ensembles", case, "in turn", "scikit-learn", "s", **measured(values))
    ratio = np.median(values) / ours
    of = "scikit-learn in turn over ours at once"
    return [row, Row("ensembles", case, of, "scikit-learn", "×", float(ratio), bound=bound)]


def growth(device: str) -> Iterator[Row]:
    """Yield the networks of 64-32-10 trained a second on digits, as their number grows."""
    import jax

    import jaxmlp

    network = jaxmlp.Network((64, 32, 10))
    x, t = problem(1437, network.sizes)
    epochs = 2 if device == "cpu" else EPOCHS
    for count in GROWTH:
        params = jaxmlp.init_members(network, jax.random.split(jax.random.key(0), count))
        seconds = []
        for number in range(2 if count > 1000 and device == "cpu" else 5):
            begin = time.perf_counter()
            fitted = jaxmlp.fit_ensemble(
                network, params, x, t, key=jax.random.key(1), optimizer="sgd", batch_size=32,
                epochs=epochs, learning_rate=rates(count) * (1 + 0.01 * number),
            )  # fmt: skip
            jax.block_until_ready(fitted.params)
            seconds.append(time.perf_counter() - begin)
        rate = [count / value for value in seconds[1:]]  # the first one compiles
        case = f"{count} of 64-32-10 on digits, {epochs} epochs"
        yield Row("ensembles", case, f"trained a second on a {device}", OURS, "networks",
                  **measured(rate))  # fmt: skip


def _serve_scikit_learn() -> Callable[[Any], float]:
    from sklearn.neural_network import MLPClassifier

    warnings.simplefilter("ignore")

    def fits(quick: bool) -> float:
        n_examples, sizes, batch_size, count, epochs, *_ = next(
            iter((QUICK if quick else CASES).values())
        )
        x, t = problem(n_examples, sizes)
        begin = time.perf_counter()
        for m, rate in enumerate(rates(count)):
            settings: Any = {"batch_size": batch_size}
            MLPClassifier(
                sizes[1:-1], activation="logistic", solver="sgd", alpha=0, momentum=0,
                learning_rate_init=rate, max_iter=epochs, tol=0, n_iter_no_change=epochs + 1,
                random_state=m, **settings,
            ).fit(x, t)  # fmt: skip
        return time.perf_counter() - begin

    return fits


if __name__ == "__main__":
    pin()
    serve(_serve_scikit_learn)
