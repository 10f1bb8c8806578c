"""The machine that is measured: which it is, its threads, and how fast it can be at best."""

import functools
import hashlib
import os
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

THREADS = 2
_SECONDS = 0.05  # of one product, at each trial
_TRIALS = 5
# Both cores are ours while one thread, and each of two, takes at most so much longer than one did.
_ALONE = 1.3
_LOOKS = 3  # before somebody else is said to be there
_HASHED = bytes(2**22)  # 2 to 3 ms


def pin() -> None:
    """Keep this process to two cores, where that can be said: XLA makes a thread for each core.

    Not where a GPU is measured: all that feeds it may have the cores that there are.
    """
    if hasattr(os, "sched_setaffinity") and os.environ.get("JAX_PLATFORMS") != "cuda":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])


class Patience:
    """So many seconds in all that may be waited until nobody else is at our cores.

    Whoever else is there makes what is measured up to twice as slow, for seconds at a time where
    the machine is a virtual one. None where a GPU is measured, or only whether all is in order.

    Attributes:
        seconds: How much of it a suite has.
        waited: How many seconds were waited in this process, in all.
    """

    seconds = 60.0
    waited = 0.0
    _least = float("inf")  # that a look took in this process

    def __init__(self, device: str = "cpu", quick: bool = False) -> None:
        self.left = 0.0 if quick or device == "gpu" else self.seconds

    def wait(self) -> bool:
        """Wait until nobody else is there, or no longer; return whether somebody was."""
        begin, was = time.perf_counter(), False
        while self.left > 0 and self._disturbed():
            was = True
            time.sleep(0.2)
            now = time.perf_counter()
            self.spend(now - begin)
            begin = now
        return was

    def spend(self, seconds: float) -> None:
        """Count what was waited, or what a run took that was done again."""
        self.left -= seconds
        Patience.waited += seconds

    def _disturbed(self) -> bool:
        """Tell whether a piece of work takes longer than it did, alone or on both cores at once.

        Of the processes that are measured no one may be working; their threads may still look for
        work, so there are several looks.
        """
        if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < THREADS:
            return False
        for _ in range(_LOOKS):
            alone, both = _seconds_of_threads(1), _seconds_of_threads(THREADS)
            Patience._least = min(Patience._least, alone)
            if max(alone, both) < _ALONE * Patience._least:
                return False
            time.sleep(0.02)
        return True


def _seconds_of_threads(count: int) -> float:
    """Return how long threads take that each do the same at once."""
    threads = [
        threading.Thread(target=lambda: hashlib.sha256(_HASHED).digest()) for _ in range(count)
    ]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begin


def precision(device: str) -> str:
    """Return that of products: on a GPU TF32, unless JAX is told "highest"."""
    told = os.environ.get("JAX_DEFAULT_MATMUL_PRECISION")
    return "float32" if device == "cpu" or told == "highest" else "TF32"


@functools.cache
def commit() -> str:
    """Return the commit that is measured, with a + where files differ from it."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
        return result.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "jaxmlp", "*.py")
    return (git("rev-parse", "--short=10", "HEAD") or "unknown") + ("+" if changed else "")


@functools.cache
def processor() -> str:
    """Return the name of the processor, its family and model, and whether it has AVX-512.

    Virtual machines hide the name of the model, and equal names can be a factor of 2.5 apart. With
    AVX-512, family 26 of AMD multiplies 512 bits in one go, family 25 in two.
    """
    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
        facts = {name.strip(): value.strip() for name, _, value in reversed(lines)}
        number = ", ".join(
            f"{name.removeprefix('cpu ')} {facts[name]}"
            for name in ("cpu family", "model")
            if name in facts
        )
        wide = "avx512f" in facts.get("flags", "").split()
        return facts["model name"] + f" ({number})" * bool(number) + " with AVX-512" * wide
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def device_name(device: str) -> str:
    """Return the device in words."""
    if device == "cpu":
        return f"{processor()}, {THREADS} threads"
    import jax

    return jax.devices()[0].device_kind


def peak_memory() -> float:
    """Return the most memory (MB) that this process has had in use.

    By Linux's own account of it, where there is one: getrusage counts what its parent had when it
    was begun.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        kibibytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        kibibytes /= 1024 if sys.platform == "darwin" else 1
    return kibibytes / 1024


def peak_device_memory(module: str) -> float:
    """Return the most memory (MB) of the GPU that arrays of this process have had."""
    if module == "pytorch":
        import torch  # pyright: ignore[reportMissingImports]

        return torch.cuda.max_memory_allocated() / 1e6
    import jax

    return (jax.devices()[0].memory_stats() or {})["peak_bytes_in_use"] / 1e6


def _rate(multiply: Callable[[], Any], flops: int) -> float:
    """Return additions and multiplications a second: the best of some trials."""
    multiply()
    best = 0.0
    for _ in range(_TRIALS):
        count, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < _SECONDS:
            multiply()
            count += 1
        best = max(best, count * flops / (time.perf_counter() - begin))
    return best


def numpy_rate(shape: tuple[int, int, int]) -> float:
    """Return the rate of a product (n, k) (k, m) in float32 by NumPy."""
    n, k, m = shape
    rng = np.random.default_rng(0)
    a, b = (rng.random(s, np.float32) for s in ((n, k), (k, m)))
    out = np.empty((n, m), np.float32)
    return _rate(lambda: np.matmul(a, b, out=out), 2 * n * k * m)


def xla_rate(shape: tuple[int, int, int]) -> float:
    """Return the same by XLA, in the best of both orientations, several products in one program."""
    import jax
    import jax.numpy as jnp

    n, k, m = shape
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.random(s, np.float32)) for s in ((n, k), (k, m)))
    repeats = max(1, int(2e9 / (2 * n * k * m)))

    def chain(product: Callable[[Any, Any], Any], a: Any, b: Any) -> Callable[[], Any]:
        @jax.jit
        def run(a: Any, b: Any, repeats: Any) -> Any:
            def step(_: Any, carry: Any) -> Any:
                a, total = carry
                total = product(a, b)
                # The next product waits for this one: one entry of an operand is from its result.
                return a.at[0, 0].set(total[0, 0] * 1e-30), total

            return jax.lax.fori_loop(0, repeats, step, (a, jnp.zeros((n, m))))

        return lambda: jax.block_until_ready(run(a, b, repeats))

    flops = 2 * n * k * m * repeats
    plain = chain(lambda a, b: a @ b, a, b)
    turned = chain(lambda a, b: a.T @ b, jnp.asarray(np.asarray(a).T.copy()), b)
    return max(_rate(plain, flops), _rate(turned, flops))


def torch_rate(shape: tuple[int, int, int], device: str = "cpu") -> float:
    """Return the same by PyTorch."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(THREADS)
    n, k, m = shape
    a, b = torch.rand(n, k, device=device), torch.rand(k, m, device=device)
    out = torch.empty(n, m, device=device)
    # A GPU is given many before it is waited for.
    repeats = 1 if device == "cpu" else max(1, min(1000, int(1e11 / (2 * n * k * m))))

    def multiply() -> None:
        for _ in range(repeats):
            torch.mm(a, b, out=out)
        if device != "cpu":
            torch.cuda.synchronize()

    return _rate(multiply, 2 * n * k * m * repeats)


def torch_rate_gpu(shape: tuple[int, int, int]) -> float:
    """Return the rate on a GPU, in the precision that is measured."""
    from benchmarks.libraries import pytorch

    return torch_rate(shape, pytorch.place("gpu"))


RATES: dict[str, Callable[[tuple[int, int, int]], float]] = {
    "NumPy": numpy_rate,
    "XLA": xla_rate,
    "PyTorch": torch_rate,
    "PyTorch, GPU": torch_rate_gpu,
}


def copy_bandwidth() -> float:
    """Return bytes read and written a second by a copy of 256 MB."""
    source = np.ones(2**25)
    target = np.empty_like(source)
    np.copyto(target, source)
    times = []
    for _ in range(_TRIALS):
        begin = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - begin)
    return 2 * source.nbytes / statistics.median(times)
