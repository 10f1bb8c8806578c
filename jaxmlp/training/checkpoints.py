"""Checkpoints of a training under way: Orbax writes them, whole or not at all.

A checkpoint holds a `Snapshot`: every array that a step changes, and the counts and records beside
them. Its arrays are checked by their hash when they are read, so that a damaged one is passed over
for the one before it.
"""

import hashlib
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmlp.training.snapshots import Best, Snapshot, copy_of, largest

FOLDER = "checkpoints"
_SHARE = 0.02  # of the running time, at most
_FIRST_SECONDS = 8.0  # loading Orbax takes 0.35 s, which a shorter training is spared
_LEAST_SECONDS = 2.0
_BYTES_PER_SECOND = 2e8  # a first guess at the speed of saving; measured 2.5e8 to 4.5e8
_REMEMBER_SECONDS = 1.0


class Checkpoints:
    """The checkpoints of a run, of which the newest are kept.

    Args:
        folder: Where they are, or will be: nothing is written before the first `save`.
        keep: How many are kept, at least 1.
        every: The seconds from one to the next, or None for as many as keep the cost below a
            fiftieth of the running time.
        read_only: Change nothing in the folder, not even what a killed process left there.
    """

    def __init__(
        self, folder: Path, keep: int = 3, every: float | None = None, read_only: bool = False
    ) -> None:
        self.folder = Path(folder)
        self.read_only = read_only
        self.keep = keep
        self.every = every
        self._manager: Any = None
        self._saved: int | None = None
        self._good: Snapshot | None = None
        self._remembered = 0.0
        self._begin, self._least = time.perf_counter(), _FIRST_SECONDS
        self._next: float | None = None

    def watch(self, snapshot: Snapshot) -> None:
        """Save the snapshot if it is time. One that is not finite is never saved."""
        now = time.perf_counter()
        if self._next is None:
            size = sum(leaf.nbytes for leaf in _arrays(snapshot).values())
            self._next = self._begin + (
                self.every or self._least + size / _BYTES_PER_SECOND / _SHARE
            )
        if now >= self._next:
            if self._is_good(snapshot):
                self.save(snapshot)
        elif now >= self._remembered + _REMEMBER_SECONDS and self._is_good(snapshot):
            # What follows takes the arrays: should it diverge, this is the last good state.
            state, progress = copy_of((snapshot.state, snapshot.progress))
            self._good = snapshot._replace(state=state, progress=progress)
            self._remembered = time.perf_counter()

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint of the snapshot, unless the last one is of the same step.

        Raises:
            OSError: It cannot be written: what was there before is as it was.
            FileExistsError: As an OSError, too: the folder holds a checkpoint of a later step.
        """
        if self._saved == snapshot.total:
            return
        import orbax.checkpoint as ocp

        begin = time.perf_counter()
        best = snapshot.best
        arrays = {name: np.asarray(leaf) for name, leaf in _arrays(snapshot).items()}
        about = {
            "epoch": snapshot.epoch,
            "step": snapshot.step,
            "seconds": snapshot.seconds,
            "best": best and {
                "value": best.value,
                "epoch": best.epoch,
                "dtype": str(best.params[0].weight.dtype),
            },
            "history": snapshot.history[: snapshot.epoch],
            "mechanism": snapshot.mechanism,
            "sha256": _digest(arrays),
        }  # fmt: skip
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _check_room(self.folder, sum(array.nbytes for array in arrays.values()))
            manager = self._open()
            saved = manager.save(
                snapshot.total,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(arrays),  # pyright: ignore[reportCallIssue]
                    about=ocp.args.JsonSave(about),  # pyright: ignore[reportCallIssue]
                ),
            )
            manager.wait_until_finished()
            if not saved:
                raise FileExistsError(f"it holds one of step {manager.latest_step()} already")
        except Exception as error:  # Orbax, TensorStore and the system each raise their own
            self._manager = None
            raise OSError(
                f"checkpoints: cannot write in {self.folder}: {_reason(error)}; earlier files are "
                "as they were"
            ) from error
        self._saved, self._good = snapshot.total, None
        now = time.perf_counter()
        self._next = now + (self.every or max(_LEAST_SECONDS, (now - begin) / _SHARE))

    def save_last_good(self) -> Path | None:
        """Save the last good snapshot where it is newer than what is saved.

        Returns:
            The newest checkpoint, or None where there is none.

        Raises:
            OSError: It cannot be written.
        """
        if self._good is not None:
            self.save(self._good)
        return None if self._saved is None else self.folder / str(self._saved)

    def restore(self, template: Snapshot) -> tuple[Snapshot | None, list[str]]:
        """Return the newest snapshot that is whole, and a warning for each that is not.

        A damaged checkpoint is renamed, so that it is out of the way of the next one.

        Args:
            template: A snapshot of the same training, such as the first: it gives the arrays'
                names, shapes and dtypes.

        Returns:
            The snapshot, with arrays on the default device, or None where there is none; and the
            warnings.

        Raises:
            MemoryError: There is too little of it.
            PermissionError: A checkpoint may not be read.
        """
        warnings = []
        for number in reversed(self._numbers()):
            try:
                snapshot = self._read(number, template)
            except (MemoryError, PermissionError):
                raise  # that is no fault of the checkpoint
            except Exception as error:  # as many kinds as there are ways to be damaged
                aside = _free(self.folder / f"damaged-{number}")
                warnings.append(
                    f"checkpoint {self.folder / str(number)} is damaged ({_reason(error)}): it is "
                    f"set aside as {aside.name}"
                )
                (self.folder / str(number)).rename(aside)
                self._manager = None
                continue
            self._saved = number
            self._begin, self._least = time.perf_counter(), _LEAST_SECONDS  # Orbax is loaded
            return _on_device(snapshot), warnings
        return None, warnings

    def read_all(self, template: Snapshot) -> tuple[list[Snapshot], list[str]]:
        """Return all snapshots that are whole, the oldest first, and a warning for each other one.

        What is damaged stays where it is.

        Args:
            template: As for `restore`.

        Raises:
            MemoryError: There is too little of it.
            PermissionError: A checkpoint may not be read.
        """
        snapshots, warnings = [], []
        for number in self._numbers():
            try:
                snapshots.append(_on_device(self._read(number, template)))
            except (MemoryError, PermissionError):
                raise
            except Exception as error:
                warnings.append(
                    f"checkpoint {self.folder / str(number)} is damaged ({_reason(error)}): it is "
                    "passed over"
                )
        return snapshots, warnings

    def _numbers(self) -> list[int]:
        """Return the steps that there are checkpoints of, in their order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    def _read(self, number: int, template: Snapshot) -> Snapshot:
        import orbax.checkpoint as ocp

        manager = self._open()
        about = manager.restore(
            number,
            args=ocp.args.Composite(about=ocp.args.JsonRestore()),  # pyright: ignore[reportCallIssue]
        ).about
        best = None
        if about["best"] is not None:
            dtype = np.dtype(about["best"]["dtype"])
            shapes = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), template.state.params
            )
            best = Best(shapes, about["best"]["value"], about["best"]["epoch"])
        wanted = template._replace(best=best)
        places = _arrays(wanted)
        targets = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in places.items()}
        read = manager.restore(
            number,
            args=ocp.args.Composite(arrays=ocp.args.StandardRestore(targets)),  # pyright: ignore[reportCallIssue]
        ).arrays
        if _digest(read) != about["sha256"]:
            raise ValueError("its arrays are not those that were written")
        leaves = [read[name] for name in places]
        tree = (wanted.state, wanted.progress, best and best.params)
        state, progress, params = jax.tree.unflatten(jax.tree.structure(tree), leaves)
        return Snapshot(
            epoch=about["epoch"],
            step=about["step"],
            total=number,
            state=state,
            progress=progress,
            best=best and best._replace(params=params),
            seconds=about["seconds"],
            history=about["history"],
            mechanism=about.get("mechanism") and tuple(about["mechanism"]),
        )

    def _open(self) -> Any:
        if self._manager is None:
            import orbax.checkpoint as ocp

            # Otherwise it writes lines of its own among ours.
            logging.getLogger("absl").setLevel(logging.CRITICAL)
            shared: dict[str, Any] = {"enable_async_checkpointing": False}
            if jax.process_count() > 1:  # of which only this one writes: Orbax waits for no other
                number = jax.process_index()
                shared["multiprocessing_options"] = ocp.options.MultiprocessingOptions(
                    primary_host=number, active_processes={number}, barrier_sync_key_prefix="own"
                )
            if self.read_only:
                options = ocp.CheckpointManagerOptions(read_only=True, create=False, **shared)
            else:
                options = ocp.CheckpointManagerOptions(
                    max_to_keep=self.keep,
                    create=False,  # `save` has made it
                    cleanup_tmp_directories=True,  # what a kill in the middle of a save left
                    **shared,
                )
            self._manager = ocp.CheckpointManager(
                self.folder.absolute(),
                options=options,
                item_names=("arrays", "about"),
            )
        return self._manager

    def _is_good(self, snapshot: Snapshot) -> bool:
        return bool(np.isfinite(largest(snapshot.state.params)))


def _on_device(snapshot: Snapshot) -> Snapshot:
    state, progress, best = jax.device_put(
        (snapshot.state, snapshot.progress, snapshot.best and snapshot.best.params)
    )
    best = snapshot.best and snapshot.best._replace(params=best)
    return snapshot._replace(state=state, progress=progress, best=best)


def _arrays(snapshot: Snapshot) -> dict[str, Any]:
    """Return the arrays of a snapshot by their places in it."""
    best = snapshot.best and snapshot.best.params
    paths = jax.tree_util.tree_leaves_with_path((snapshot.state, snapshot.progress, best))
    return {jax.tree_util.keystr(path): leaf for path, leaf in paths}


def _digest(arrays: dict[str, Any]) -> str:
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype} {array.shape}".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _check_room(folder: Path, n_bytes: int) -> None:
    """Raise OSError where a disk has no room for so many bytes.

    Orbax writes in threads of its own: where one of them fails, others go on, and say so in many
    lines. So it is asked before.
    """
    if hasattr(os, "posix_fallocate") and n_bytes:  # Linux has it
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, n_bytes)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return f"{lines[0]:.150}" if lines else type(error).__name__


def _free(path: Path) -> Path:
    """Return the path, or the first of path-2, path-3 … that is not taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
