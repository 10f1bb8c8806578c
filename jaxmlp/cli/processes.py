"""Several processes of one command, joined by `jax.distributed`: all compute, the first one writes.

They are joined where the environment says so: that of Slurm or Open MPI, or JAX_COORDINATOR_ADDRESS
with JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxmlp.cli.console import INPUT_ERRORS, bad_input, sentence_and_status, warn
from jaxmlp.training.distributed import gathered, shared

_JOIN_SECONDS = 300  # a cluster may start its processes one after another
_PATIENT_SECONDS = 10  # after which it is said what is waited for
_SILENT_SECONDS = 30  # after which a process counts as dead
_ADDRESS, _COUNT, _NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_CLUSTERS = {  # how many processes a launcher has started → what JAX wants to know beside it
    "SLURM_NTASKS": ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"),
    "OMPI_COMM_WORLD_SIZE": ("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_RANK"),
}


class Ended(SystemExit):
    """All processes end, at the same place."""


@contextlib.contextmanager
def joined_processes() -> Iterator[None]:
    """Join the other processes of this command, where there are some.

    Where one of them ends alone its connections break: the others then end as well, with a sentence
    and exit status 1.

    Raises:
        Ended: As it is raised inside.
    """
    with bad_input():
        joined = _join()
    if not joined:
        yield
        return
    try:
        yield
    except Ended:
        raise
    except BaseException as error:
        # Not by an ordinary exit: JAX waits there for the others, and they wait for this one.
        status = 1
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else 1
        elif isinstance(error, KeyboardInterrupt):
            warn("interrupted")
            status = 130
        elif _lost(error):
            reason = str(error).splitlines()[0]
            warn(
                f"process {jax.process_index()}: another of the {jax.process_count()} processes "
                f"has ended, or cannot be reached ({reason}); the command with --resume, in all of "
                "them, goes on from what is saved"
            )
        else:
            traceback.print_exc()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(status)


def _lost(error: BaseException) -> bool:
    """Tell whether an error says that another process is lost, as JAX raises it in several ways."""
    known = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
    return known and any(name in str(error) for name in ("Gloo", "NCCL", "UNAVAILABLE"))


def _join() -> bool:
    """Join the processes that the environment names; tell whether there are several.

    Returns:
        Whether this process is one of several.

    Raises:
        ValueError: It names them by half, or nobody answers.
    """
    given = {name: os.environ[name] for name in (_ADDRESS, _COUNT, _NUMBER) if name in os.environ}
    arguments = {}
    if _COUNT in given or _NUMBER in given:
        numbers = []
        for name, least in ((_COUNT, 1), (_NUMBER, 0)):
            if not given.get(name, "").isdecimal() or int(given[name]) < least:
                raise ValueError(
                    f"{name}: expected an integer of at least {least} beside the others of "
                    f"{_ADDRESS}, {_COUNT} and {_NUMBER}, got {given.get(name, 'none')}"
                )
            numbers.append(int(given[name]))
        count, number = numbers
        if number >= count:
            raise ValueError(f"{_NUMBER}: expected a number below {count}, got {number}")
        if count == 1:
            return False
        if ":" not in given.get(_ADDRESS, ""):
            raise ValueError(
                f"{_ADDRESS}: expected HOST:PORT of process 0, got {given.get(_ADDRESS, 'none')}"
            )
        arguments = {
            "coordinator_address": given[_ADDRESS],
            "num_processes": count,
            "process_id": number,
            "cluster_detection_method": "deactivate",
        }
    elif not any(_launched_by(count, others) for count, others in _CLUSTERS.items()):
        return False
    where = f" at {given[_ADDRESS]}" if arguments else ""
    said = f"waiting for the other processes{where}, for {_JOIN_SECONDS} seconds at most"
    timer = threading.Timer(_PATIENT_SECONDS, warn, [said])
    timer.daemon = True
    timer.start()
    on_termination = signal.getsignal(signal.SIGTERM)
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=_JOIN_SECONDS,
            heartbeat_timeout_seconds=_SILENT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"processes: expected to join the others{where}, got: {reason}") from error
    finally:
        timer.cancel()
    # JAX's service for preemption has put its own in this place, which would do nothing.
    signal.signal(signal.SIGTERM, on_termination)
    return True


def _launched_by(count: str, others: tuple[str, ...]) -> bool:
    """Tell whether a launcher has started several processes, and says all of them that is asked."""
    number = os.environ.get(count, "")
    return number.isdecimal() and int(number) > 1 and all(name in os.environ for name in others)


def is_first() -> bool:
    """Tell whether this process is the one that writes and prints, as a single one is."""
    return jax.process_index() == 0


@contextlib.contextmanager
def bad_input_of_any() -> Iterator[None]:
    """Exit as by `bad_input` where the input of any process does not allow what is done inside.

    Of those that fail the first one says why.

    Raises:
        Ended: In every process of several.
    """
    if jax.process_count() == 1:
        with bad_input():
            yield
        return
    sentence, status = "", 0
    try:
        yield
    except INPUT_ERRORS as error:
        sentence, status = sentence_and_status(error)
    statuses = gathered(status)
    if statuses.any():
        failed = int(np.argmax(statuses > 0))
        if failed == jax.process_index():
            warn(f"process {failed}: {sentence}" if failed else sentence)
        raise Ended(int(statuses[failed]))


def check_same(values: Mapping[str, Any]) -> None:
    """Raise ValueError where this process has another value than the first one.

    Args:
        values: Name → what can be pickled and compared; every process asks at the same place.

    Raises:
        ValueError: By the name.
    """
    for name, value in shared(dict(values)).items():
        if repr(values[name]) != repr(value):  # of which NaN is the same as another
            raise ValueError(
                f"{name}: expected {value}, as in the first process, got {values[name]}"
            )


def signal_of_any(number: int | None) -> int | None:
    """Return a signal that any process has got, or None; every process asks at the same place."""
    if jax.process_count() == 1:
        return number
    return int(gathered(number or 0).max()) or None
