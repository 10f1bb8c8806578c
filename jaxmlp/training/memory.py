"""How many members of an ensemble a device has room for, planned before they are trained."""

import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

_SHARE = 0.6  # of what is free: XLA's own temporaries and the data's copies take some
_UNLIMITED = 2**60  # of a control group that has no limit

_MEMORY = Path("/proc/meminfo")
_GROUPS = Path("/proc/self/cgroup")
_FOLDER = Path("/sys/fs/cgroup")


def free_bytes(device: Any) -> int | None:
    """Return how much memory a device has left, or None where that cannot be told.

    On a CPU it is the machine's, or what the process's control groups leave.
    """
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        if "bytes_limit" not in stats:
            return None
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    found = [value for value in (_of_the_machine(), _of_the_group()) if value is not None]
    return min(found, default=None)


def free_beside(array: Array, n_devices: int) -> int | None:
    """Return the bytes that are left on all devices that an array is on, or None as above.

    Of several processes' devices those of this one count for all; a CPU's share one memory.
    """
    first = min(array.sharding.addressable_devices, key=lambda device: device.id)
    free = free_bytes(first)
    return free if free is None or first.platform == "cpu" else n_devices * free


def _of_the_machine() -> int | None:
    try:
        for line in _MEMORY.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _of_the_group() -> int | None:
    """Return what the control groups of this process, and those above them, leave."""
    found = []
    try:
        lines = _GROUPS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _FOLDER / "memory" if controllers else _FOLDER
        folder = root / path.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(root):
                found.append(_left_by(place, old=bool(controllers)))
    return min((left for left in found if left is not None), default=None)


def _left_by(folder: Path, old: bool) -> int | None:
    """Return the bytes that a control group leaves, its pages that can be had back included."""
    names = ("memory.max", "memory.current", "inactive_file")
    if old:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    try:
        most = (folder / names[0]).read_text().strip()
        used = int((folder / names[1]).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if most == "max" or int(most) >= _UNLIMITED:
        return None
    return max(int(most) - used + int(stat.get(names[2], 0)), 0)


def tree_bytes(tree: Any) -> int:
    """Return the bytes of a tree's arrays, or of their shapes."""
    return sum(
        math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
    )


def members_that_fit(count: int, bytes_each: int, free: int | None) -> int:
    """Return how many of `count` members are trained at a time: in passes of about equal size.

    Args:
        count: All members, or groups of them.
        bytes_each: What one needs.
        free: The bytes there are, or None for enough.

    Returns:
        The members of a pass.

    Raises:
        MemoryError: There is no room for one.
    """
    most = count if free is None else int(_SHARE * free / bytes_each)
    if most < 1:
        raise MemoryError(
            f"an ensemble: expected {bytes_each / 1e6:,.0f} MB for a member, got "
            f"{_SHARE * (free or 0) / 1e6:,.0f} MB of the memory that is free"
        )
    passes = -(-count // most)
    return -(-count // passes)
