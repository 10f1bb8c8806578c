"""What `jaxmlp` finds where it runs: versions, devices, settings, data, and the NVIDIA driver.

Nothing here fails because something is missing: what cannot be found out is None, or says why.
"""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxmlp.data.prepared import PUBLISHED, find_prepared

_PACKAGES = (
    *("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "optax", "numpy", "scipy"),
    *("scikit-learn", "safetensors", "orbax-checkpoint", "tensorflow-datasets", "matplotlib"),
    *("tyro", "rich", "mpmath", "onnx", "dp-accounting", "grain"),
)
_PLATFORMS = ("cpu", "gpu", "tpu")
_SMI_SECONDS = 10
_WIDTH = 100
_LABEL = 15
_NO_BREAK = "\N{NO-BREAK SPACE}"  # lines are not broken at it, and it is printed as a space

# The first drivers that run CUDA 13 and CUDA 12.
_CUDA13_DRIVER, _CUDA12_DRIVER = 580, 525


def describe() -> dict[str, Any]:
    """Return what is found here, as `json` takes it. JAX is started to ask for its devices.

    Returns:
        `versions` (None for what is not installed), `package` and `system`; `jax` with its
        `devices` and settings; `data` with the folders of prepared sets; and `nvidia` with the
        driver and what to install for it.
    """
    settings: Any = jax.config
    # Before JAX starts: it may be what takes long, or takes a GPU's memory.
    nvidia = _nvidia()
    devices, error = _devices()
    if any(device["platform"] == "gpu" for device in devices):
        nvidia["install"] = None  # there is nothing left to install
    return {
        "versions": _versions(),
        "package": str(Path(__file__).parent),
        "system": platform.platform(),
        "jax": {
            "devices": devices,
            "error": error,
            "default_dtype": jnp.result_type(float).name,
            "x64": jnp.result_type(float) == jnp.float64,
            "matmul_precision": settings.jax_default_matmul_precision or "default",
            "gpu_memory": _gpu_memory(),
            "compilation_cache": _compilation_cache(),
        },
        "data": _data_folders(),
        "nvidia": nvidia,
    }


def _versions() -> dict[str, str | None]:
    from jaxmlp import __version__

    versions: dict[str, str | None] = {"jaxmlp": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _devices() -> tuple[list[dict[str, Any]], str | None]:
    """Return this process's devices of every platform, and why JAX does not start, or None."""
    try:
        default = jax.devices()[0]
    except Exception as error:  # a plugin's start may raise anything
        return [], (str(error).splitlines() or ["it has no platform to start"])[0]
    found = []
    for name in dict.fromkeys((*_PLATFORMS, default.platform)):
        with contextlib.suppress(RuntimeError):  # no such platform here
            found += jax.local_devices(backend=name)
    return [
        {
            "platform": device.platform,
            "id": device.id,
            "kind": device.device_kind,
            "default": device == default,
            **_memory(device),
        }
        for device in dict.fromkeys(found)
    ], None


def _memory(device: Any) -> dict[str, int | None]:
    stats = None
    with contextlib.suppress(Exception):  # not every platform has figures, nor says so alike
        stats = device.memory_stats()
    stats = stats or {}  # a CPU has none
    return {
        "memory_bytes": stats.get("bytes_limit"),
        "memory_in_use_bytes": stats.get("bytes_in_use"),
    }


def _gpu_memory() -> dict[str, Any]:
    """Return how JAX takes the memory of GPUs, by the variables that its GPU plugin reads."""
    allocator = os.environ.get("XLA_PYTHON_CLIENT_ALLOCATOR", "").lower() or "default"
    told = os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE")
    taken = told not in ("false", "False", "0") and allocator in ("default", "bfc")
    fraction: Any = (
        os.environ.get("XLA_CLIENT_MEM_FRACTION")
        or os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION")
        or 0.75
    )
    with contextlib.suppress(ValueError):  # what is no number is shown as it is
        fraction = float(fraction)
    return {
        "preallocated": taken,
        "preallocated_by_commands": taken and told is not None,  # see `select_device`
        "fraction": fraction,
        "allocator": allocator,
    }


def _compilation_cache() -> dict[str, Any]:
    settings: Any = jax.config
    folder = settings.jax_compilation_cache_dir
    if not folder:
        return {"folder": None, "bytes": None}
    size = None
    if os.path.isdir(folder):
        size = 0
        for path in Path(folder).rglob("*"):
            with contextlib.suppress(OSError):  # another process may clear it meanwhile
                size += path.stat().st_size if path.is_file() else 0
    return {"folder": str(folder), "bytes": size}


def _data_folders() -> list[dict[str, Any]]:
    """Return the folders where prepared sets may be, the first of them the one in use."""
    folders: list[tuple[str, Path]] = []
    for variable in ("JAXMLP_DATA_DIR", "TFDS_DATA_DIR"):
        if named := os.environ.get(variable):
            folders.append((f"${variable}", Path(named)))
    folders.append(("default", Path("~/tensorflow_datasets")))
    found = []
    for source, folder in folders:
        with contextlib.suppress(RuntimeError):  # no home
            folder = folder.expanduser()
        prepared = []
        for name in PUBLISHED:
            with contextlib.suppress(OSError):  # a folder that cannot be read
                if find_prepared(name, folder):
                    prepared.append(name)
        found.append(
            {
                "source": source,
                "folder": str(folder),
                "exists": os.path.isdir(folder),
                "prepared": prepared,
            }
        )
    return found


def _nvidia() -> dict[str, Any]:
    """Return the driver, the GPUs as nvidia-smi names them, and what to install to use them."""
    result: dict[str, Any] = {"driver": None, "gpus": [], "note": None, "install": None}
    query = ["nvidia-smi", "--query-gpu=driver_version,name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(
            query, capture_output=True, text=True, errors="replace", timeout=_SMI_SECONDS
        )
    except subprocess.TimeoutExpired:
        result["note"] = f"nvidia-smi does not answer within {_SMI_SECONDS} s"
        return result
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "is not there" if missing else f"cannot be run: {error.strerror}"
        result["note"] = f"nvidia-smi {reason}"
        return result
    lines = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    if answer.returncode != 0 or not lines:
        said = [line.strip() for line in answer.stderr.splitlines() if line.strip()]
        result["note"] = f"nvidia-smi fails: {(lines + said + ['it shows no GPU'])[0]}"
        return result
    rows = [[cell.strip() for cell in line.split(",")] for line in lines]
    result["driver"] = rows[0][0]
    result["gpus"] = [", ".join(row[1:]) for row in rows]
    major = result["driver"].split(".")[0]
    if major.isdecimal():
        if int(major) >= _CUDA13_DRIVER:
            result["install"] = 'pip install "jaxmlp[cuda13]"'
        elif int(major) >= _CUDA12_DRIVER:
            result["install"] = 'pip install "jaxmlp[cuda12]"'
        else:
            result["install"] = f"a newer driver: {_CUDA12_DRIVER} is the first for CUDA 12"
    return result


# ---------------------------------------------------------------------------------------- text


def as_text(description: dict[str, Any]) -> str:
    """Return what `describe` found as aligned lines of at most 100 columns.

    Only a word that is longer than its line, such as a path, goes beyond them.
    """
    return "\n".join(
        line for label, entries in _entries(description) for line in _lines(label, entries)
    )


def _entries(description: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield each label with its entries, one or more lines an entry."""
    versions = dict(description["versions"])
    settings = description["jax"]
    yield "jaxmlp", [f"{versions.pop('jaxmlp')} in {description['package']}"]
    yield "Python", [f"{versions.pop('python')} on {description['system']}"]
    yield "packages", [", ".join(f"{name}{_NO_BREAK}{v}" for name, v in versions.items() if v)]
    if missing := [name for name, version in versions.items() if not version]:
        yield "not installed", [", ".join(missing)]
    if settings["error"] is None:
        yield "devices", [_device_text(device) for device in settings["devices"]]
    else:
        yield "devices", [f"JAX does not start: {settings['error']}"]
    x64 = "on" if settings["x64"] else "off (JAX_ENABLE_X64=1 turns it on)"
    yield "numbers", [f"{settings['default_dtype']} by default, 64-bit mode {x64}"]
    yield "products", [f"matmul precision {settings['matmul_precision']}"]
    yield "GPU memory", [_gpu_memory_text(settings["gpu_memory"])]
    yield "compile cache", [_cache_text(settings["compilation_cache"])]
    yield "data", [_data_text(folder) for folder in description["data"]]
    nvidia = description["nvidia"]
    if nvidia["driver"] is None:
        yield "NVIDIA", [nvidia["note"]]
    else:
        yield "NVIDIA", [f"driver {nvidia['driver']}", *nvidia["gpus"]]
    if nvidia["install"]:
        yield "to use the GPU", [nvidia["install"]]


def _device_text(device: dict[str, Any]) -> str:
    parts = [f"{device['platform']}:{device['id']} {device['kind']}"]
    if device["memory_bytes"] is not None:
        parts.append(f"{_size(device['memory_bytes'])} for JAX")
    if device["memory_in_use_bytes"] is not None:
        parts.append(f"{_size(device['memory_in_use_bytes'])} in use")
    return ", ".join(parts) + (" (default)" if device["default"] else "")


def _gpu_memory_text(memory: dict[str, Any]) -> str:
    if memory["preallocated"]:
        commands = "" if memory["preallocated_by_commands"] else ", by `jaxmlp` itself as needed"
        return (
            f"{memory['fraction']} of it is taken at the start{commands} "
            "(XLA_PYTHON_CLIENT_PREALLOCATE, XLA_CLIENT_MEM_FRACTION)"
        )
    return f"taken as needed, allocator {memory['allocator']}"


def _cache_text(cache: dict[str, Any]) -> str:
    if cache["folder"] is None:
        return "none (JAX_COMPILATION_CACHE_DIR names a folder)"
    size = "not there yet" if cache["bytes"] is None else _size(cache["bytes"])
    return f"{cache['folder']}: {size}"


def _data_text(folder: dict[str, Any]) -> str:
    if not folder["exists"]:
        content = "no such folder"
    else:
        content = ", ".join(folder["prepared"]) or "no prepared set"
    return f"{folder['folder']} ({folder['source']}): {content}"


def _size(n_bytes: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.4g} {unit}"
        n_bytes /= 1024  # pyright: ignore[reportAssignmentType]
    return f"{n_bytes:.1f} GiB"


def _lines(label: str, entries: list[str]) -> list[str]:
    lines = [
        line
        for entry in entries
        for line in textwrap.wrap(
            entry,
            _WIDTH - _LABEL,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]
    labels = [label] + [""] * (len(lines) - 1)
    return [
        f"{head:<{_LABEL}}{line.replace(_NO_BREAK, ' ')}"
        for head, line in zip(labels, lines, strict=True)
    ]
