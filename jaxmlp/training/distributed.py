"""Devices: where the arrays of a training are, when several devices share the work.

JAX's own partitioner does the rest: what every device has is summed over the devices, what each has
a part of stays where it is.
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


@dataclass(frozen=True)
class Placement:
    """Where arrays are on a mesh of devices in a row, of any number of processes.

    Every process calls `everywhere` and `in_parts` with the same arrays, and `agreed` at the same
    places.
    """

    mesh: Mesh

    @property
    def count(self) -> int:
        """How many devices there are."""
        return self.mesh.size

    @property
    def parts(self) -> NamedSharding:
        """The sharding that cuts the leading axis, a part for each device."""
        return NamedSharding(self.mesh, PartitionSpec("devices"))

    @property
    def copies(self) -> NamedSharding:
        """The sharding of which every device has a copy."""
        return NamedSharding(self.mesh, PartitionSpec())

    def everywhere(self, tree: Any) -> Any:
        """Return the tree with a copy of every array on every device."""
        return _put(tree, self.copies)

    def in_parts(self, tree: Any) -> Any:
        """Return the tree with every array's leading axis cut; it divides by the devices."""
        return _put(tree, self.parts)

    def agreed(self, number: Any) -> Any:
        """Return the first process's number, of this one's type, where several take part.

        What depends on a process's clock or memory must be the same in all, or they wait for one
        another for ever.
        """
        if self.copies.is_fully_addressable:
            return number
        return type(number)(gathered(number)[0])

    def batches(self, numbers: np.ndarray, read: Callable[[np.ndarray], Any]) -> Any:
        """Return batches of which every device has a part: each process reads those of its own.

        Args:
            numbers: (k, B) numbers of examples; B divides by the devices.
            read: Returns a tree of arrays (k, b, …) for numbers (k, b).
        """
        sharding = NamedSharding(self.mesh, PartitionSpec(None, "devices"))
        places = sharding.addressable_devices_indices_map(numbers.shape)
        parts = [jax.device_put(read(numbers[place]), device) for device, place in places.items()]

        def whole(*leaves: Any) -> Any:
            shape = (*numbers.shape, *leaves[0].shape[2:])
            return jax.make_array_from_single_device_arrays(shape, sharding, list(leaves))

        return jax.tree.map(whole, *parts)


def _put(tree: Any, sharding: NamedSharding) -> Any:
    """Return the tree in this sharding, also where other processes have devices of it."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            words = put(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.jit(lambda leaf: leaf, out_shardings=sharding)(leaf)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda place: host[place])

    return jax.tree.map(put, tree)


def placed(tree: Any, placement: Placement | None) -> Any:
    """Return the tree on the default device, or with a copy on every device of a placement."""
    return jax.device_put(tree) if placement is None else placement.everywhere(tree)


def placement_on(devices: Sequence[Any] | None) -> Placement | None:
    """Return the placement on some devices, or None for none or a single one of this process.

    Args:
        devices: Devices such as `jax.devices()`, all of one kind, or None.

    Raises:
        TypeError: Something else.
        ValueError: No device, one twice, of several kinds, or of some processes out of more.
    """
    if devices is None:
        return None
    if not isinstance(devices, Sequence) or not all(isinstance(d, jax.Device) for d in devices):
        raise TypeError(f"devices: expected some of jax.devices(), got {devices!r:.60}")
    kinds = sorted({device.platform for device in devices})
    if not devices or len(set(devices)) < len(devices) or len(kinds) > 1:
        raise ValueError(
            f"devices: expected different ones of one kind, got {len(devices)} of "
            f"{' and '.join(kinds) or 'none'}"
        )
    owners = {device.process_index for device in devices}
    if owners != {jax.process_index()} and len(owners) < jax.process_count():
        raise ValueError(
            f"devices: expected some of each of the {jax.process_count()} processes, or of this "
            f"one alone, got those of {len(owners)}"
        )
    return Placement(Mesh(np.array(devices), ("devices",)))


def on_host(tree: Any) -> Any:
    """Return the tree as NumPy arrays, also where its parts are on other processes' devices."""
    from jax.experimental import multihost_utils

    def fetch(leaf: Any) -> np.ndarray:
        leaf = own(leaf)
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)


def own(tree: Any) -> Any:
    """Return the tree with this process's copy of every array that all processes have.

    What one process computes with it alone, the others need not.
    """

    def copy(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        return leaf.addressable_data(0) if leaf.is_fully_replicated else leaf

    return jax.tree.map(copy, tree)


def gathered(number: Any) -> np.ndarray:
    """Return a number (P,) of each process; every process gives its own, at the same place."""
    from jax.experimental import multihost_utils

    kind = np.float32 if isinstance(number, float) else np.int32
    return multihost_utils.process_allgather(np.asarray(number, kind))


def shared(value: Any) -> Any:
    """Return the first process's value in every process; the others' does not count.

    Args:
        value: What can be pickled; arrays of JAX come back as NumPy's.
    """
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    content = np.zeros(0, np.uint8)
    if jax.process_index() == 0:
        content = np.frombuffer(pickle.dumps(jax.tree.map(_picklable, value)), np.uint8)
    high, low = divmod(len(content), 2**31)  # numbers are gathered in int32
    length = int(gathered(high)[0]) * 2**31 + int(gathered(low)[0])
    content = np.resize(content, length) if jax.process_index() == 0 else np.zeros(length, np.uint8)
    return pickle.loads(np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes())


def _picklable(leaf: Any) -> Any:
    return np.asarray(own(leaf)) if isinstance(leaf, jax.Array) else leaf
