"""What every command shares: lines that reach the user, exit statuses, and the choice of device."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import jax

from jaxmlp.training.runs import OWN_FILES, check_writable
from jaxmlp.validation import check_count

STOPPING = "jaxmlp: stopping where it can be saved; Ctrl-C again ends it at once, unsaved\n"
INPUT_ERRORS = (ValueError, TypeError, OSError, MemoryError, jax.errors.JaxRuntimeError)
"""What is raised where an input does not allow what is asked for."""


def warn(message: object) -> None:
    """Print a line to standard error, if anybody reads it, and go on."""
    with contextlib.suppress(OSError):
        print(f"jaxmlp: {message}", file=sys.stderr, flush=True)


def stopping(number: int) -> None:
    """Say at once that Ctrl-C is heard: from its handler, so past all buffers."""
    if number == signal.SIGINT:
        with contextlib.suppress(OSError):
            os.write(2, STOPPING.encode())


def fail(message: object, status: int) -> NoReturn:
    """Print a sentence to standard error, and exit with this status."""
    warn(message)
    sys.exit(status)


@contextlib.contextmanager
def bad_input() -> Iterator[None]:
    """Exit 2 with one sentence where the input does not allow what is done inside.

    What does not fit into memory, the device's or the host's, is no fault of the input: exit 1.
    """
    try:
        yield
    except INPUT_ERRORS as error:
        fail(*sentence_and_status(error))


def sentence_and_status(error: Exception) -> tuple[str, int]:
    """Return what `bad_input` says of one of `INPUT_ERRORS`, and the exit status."""
    if isinstance(error, MemoryError):
        return f"out of memory: {error}", 1
    return _sentence(error), 1 if isinstance(error, jax.errors.JaxRuntimeError) else 2


@contextlib.contextmanager
def failing_run(device: Any) -> Iterator[None]:
    """Exit 1 with one sentence where what is done inside fails, though its input was right.

    Raises:
        JaxRuntimeError: In one of several processes, which may have lost another.
    """
    try:
        yield
    except (FloatingPointError, OverflowError, OSError) as error:
        fail(_sentence(error), 1)
    except MemoryError as error:
        fail(f"out of memory: {error}", 1)
    except jax.errors.JaxRuntimeError as error:  # out of memory, most likely
        if jax.process_count() > 1 and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        fail(f"{device.device_kind}: {_sentence(error)}", 1)


def _sentence(error: Exception) -> str:
    """Return the first line of what an error says, a file's name in front where it has one."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def double_precision(wanted: bool) -> Iterator[None]:
    """Have JAX's 64-bit mode inside, in this thread and in all others, if it is wanted."""
    if not wanted:
        yield
        return
    with ThreadPoolExecutor(1) as other:  # which has nothing for itself
        before = other.submit(lambda: jax.numpy.result_type(float).itemsize == 8).result()
    jax.config.update("jax_enable_x64", True)
    try:
        with jax.enable_x64(True):  # whatever this thread has for itself
            yield
    finally:
        jax.config.update("jax_enable_x64", before)


def select_device(choice: str) -> Any:
    """Return the device to compute on.

    Of a GPU's memory what is needed is taken, when it is needed, where the environment does not say
    otherwise: three quarters at the start, as JAX would by itself, take two seconds, and leave
    other processes without.

    Args:
        choice: "auto" for JAX's own choice, "cpu" or "gpu".

    Raises:
        ValueError: A GPU is asked for and there is none, or JAX cannot start at all.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if choice == "cpu":  # do not start, nor take the memory of, any other
        jax.config.update("jax_platforms", "cpu")
    try:
        return jax.local_devices(backend="gpu" if choice == "gpu" else None)[0]
    except (RuntimeError, AssertionError) as error:
        if choice == "gpu":
            raise ValueError(
                "device: expected a GPU that JAX can use, got none; is the CUDA extra installed "
                '(pip install "jaxmlp[cuda13]")? `jaxmlp info` says what is there'
            ) from error
        reason = str(error).splitlines() or ["it has no platform to start"]
        raise ValueError(f"device: JAX cannot start here: {reason[0]}") from error


def several_devices(device: Any, number: int | None) -> list[Any] | None:
    """Return so many devices of the kind of this one, or None for it alone.

    Args:
        device: One of them.
        number: How many. None is one, or all of several processes.

    Raises:
        ValueError: There are not so many, or they are not all of several processes.
    """
    if number is not None:
        check_count("devices", number)
    processes = jax.process_count()
    if processes > 1:
        there = jax.devices(device.platform)
        if number not in (None, len(there)):
            raise ValueError(
                f"devices: expected none, or all {len(there)} of the {processes} processes, got "
                f"{number}"
            )
        return there
    if number is None or number == 1:
        return None
    there = jax.local_devices(backend=device.platform)
    if number > len(there):
        raise ValueError(
            f"devices: expected at most {len(there)}, which is what there is of "
            f"{device.device_kind} here, got {number}"
            + (f" (JAX_NUM_CPU_DEVICES={number} makes as many)" * (device.platform == "cpu"))
        )
    return there[:number]


def check_folder(name: str, folder: Path) -> None:
    """Raise OSError where a folder is not there and cannot be made, or cannot be written in.

    Raises:
        NotADirectoryError: There is a file, or one in the place of a folder above.
        OSError: The folder, or the one that it would be made in, cannot be written in.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{name}: expected a folder, got {there}, which is a file")
    check_writable(name, there)


def use_compile_cache(folder: Path) -> None:
    """Keep compiled programs of any size in a folder, for the next process.

    Raises:
        OSError: The folder cannot be made.
    """
    from jax.experimental.compilation_cache import compilation_cache

    folder.mkdir(parents=True, exist_ok=True)
    compilation_cache.reset_cache()  # JAX stays with the folder that it began with
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def check_new_file(name: str, path: Path, overwrite: bool) -> None:
    """Raise OSError where a file cannot be written there, or must not be.

    Raises:
        FileExistsError: There is one, and it is not to be overwritten.
        IsADirectoryError: There is a folder.
        NotADirectoryError: The folder it would be in is a file.
        FileNotFoundError: The folder it would be in is missing.
        OSError: The folder cannot be written in.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{name}: expected a file, got {path}, which is a folder")
    if not path.parent.exists():
        raise FileNotFoundError(f"{name}: expected a file in a folder that exists, got {path}")
    if not path.parent.is_dir():
        raise NotADirectoryError(f"{name}: expected a file in a folder, got {path}")
    if os.path.lexists(path) and not overwrite:  # or a link to nowhere would be lost
        raise FileExistsError(
            f"{name}: expected a new file, got {path}, which exists (--overwrite replaces it)"
        )
    check_writable(name, path.parent)


def check_not_read(name: str, path: Path, run: Path, *others: Path | str) -> None:
    """Raise ValueError where a file that is to be written is a run's own, or one of the others."""
    for other in (*(run / own for own in OWN_FILES), *others):
        if os.path.realpath(path) == os.path.realpath(other):
            raise ValueError(f"{name}: expected another file than those that are read, got {path}")
