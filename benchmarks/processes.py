"""Processes of workers: each is asked for one thing at a time, while the others wait.

A question is a line of JSON on a worker's standard input, an answer one on its standard output.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import THREADS, pin

ROOT = Path(__file__).resolve().parent.parent


class Unanswered(Exception):
    """A worker that did not answer, or said why it cannot."""


def environment(device: str = "cpu") -> dict[str, str]:
    """Return the environment of a worker: two threads on a CPU, and where JAX computes."""
    threads = {f"{library}_NUM_THREADS": str(THREADS) for library in ("OMP", "MKL", "OPENBLAS")}
    platform = "cpu" if device == "cpu" else "cuda"
    # Cold is to be cold, whatever cache the user has; and several processes share one GPU. Modules
    # are compiled once, as pip does when it installs them.
    without = ("COMPILATION_CACHE", "PYTHONDONTWRITEBYTECODE")
    own = {name: x for name, x in os.environ.items() if not any(part in name for part in without)}
    return own | threads | {"JAX_PLATFORMS": platform, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


class Worker:
    """One process of a library.

    Args:
        module: The module to run, which calls `serve`.
        arguments: Its arguments.
        python: The interpreter.
        device: "cpu" or "gpu".
    """

    def __init__(
        self, module: str, *arguments: str, python: str = sys.executable, device: str = "cpu"
    ) -> None:
        self.process = subprocess.Popen(
            [python, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(device),
        )

    def ask(self, question: Any = None) -> Any:
        """Return its answer.

        Raises:
            Unanswered: It ended, or answers with why it cannot.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        line = ""
        try:
            print(json.dumps(question), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            raise Unanswered(f"its process ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "wrong" in answer:
            raise Unanswered(answer["wrong"])
        return answer["answer"]

    def end(self) -> None:
        """Close its input, upon which it ends."""
        try:
            self.process.communicate(timeout=60)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self.process.kill()


def serve(begin: Callable[[], Callable[[Any], Any]]) -> None:
    """Answer questions with what `begin` returns, until the input ends.

    What is printed meanwhile goes to standard error. A library that is not installed, and any other
    error, is an answer too.
    """
    pin()
    warnings.filterwarnings("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr
    handle = None
    for line in sys.stdin:
        try:
            if handle is None:
                handle = begin()
            answer = {"answer": handle(json.loads(line))}
        except ModuleNotFoundError as error:
            answer = {"wrong": f"not installed ({error.name})"}
        except Exception as error:
            traceback.print_exc()
            line = (str(error).splitlines() or [""])[0]
            answer = {"wrong": f"{type(error).__name__}: {line[:120]}"}
        print(json.dumps(answer), file=answers, flush=True)


def versions(*packages: str) -> str:
    """Return the packages with their versions."""
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds of a call, which blocks until all is computed."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
