"""The worker that measures how fast products of matrices can be, by one library."""

import sys
from typing import Any

from benchmarks.machine import RATES
from benchmarks.processes import Unanswered, Worker, serve


class Limits:
    """How fast this machine multiplies, by the fastest of the libraries that are there."""

    def __init__(self, device: str) -> None:
        # On a GPU cuBLAS is the limit, and XLA only where there is no PyTorch to call it.
        self.enough = len(RATES) if device == "cpu" else 1
        names = ("NumPy", "XLA", "PyTorch") if device == "cpu" else ("PyTorch, GPU", "XLA")
        self.workers = {name: Worker("benchmarks.limits", name, device=device) for name in names}
        self.known: dict[tuple[int, int, int], float] = {}
        self.fastest: dict[tuple[int, int, int], str] = {}

    def rate(self, shape: tuple[int, int, int]) -> float:
        """Return additions and multiplications a second of a product (n, k) (k, m)."""
        if shape not in self.known:
            rates = {}
            for name, worker in list(self.workers.items()):
                try:
                    rates[name] = worker.ask(shape)
                except Unanswered:
                    worker.end()
                    del self.workers[name]
                if len(rates) == self.enough:
                    break
            self.known[shape] = max(rates.values())
            self.fastest[shape] = max(rates, key=lambda name: rates[name])
        return self.known[shape]

    def peak(self, shapes: list[tuple[int, int, int]]) -> float:
        """Return the best rate at any of the shapes, those under half of the largest left out."""
        shapes = sorted(set(shapes), key=lambda shape: -shape[0] * shape[1] * shape[2])
        largest = shapes[0][0] * shapes[0][1] * shapes[0][2]
        return max(self.rate(s) for s in shapes if s[0] * s[1] * s[2] > largest / 2)

    def end(self) -> None:
        """End the workers."""
        for worker in self.workers.values():
            worker.end()


def begin() -> Any:
    """Return what answers: the rate of a shape."""
    rate = RATES[sys.argv[1]]
    return lambda shape: rate(tuple(shape))


if __name__ == "__main__":
    serve(begin)
