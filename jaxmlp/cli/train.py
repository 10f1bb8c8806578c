"""`jaxmlp train`: from options to a run's folder, one seed or several, and back into it."""

import dataclasses
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmlp.cli.console import (
    bad_input,
    check_folder,
    fail,
    failing_run,
    select_device,
    several_devices,
    stopping,
    use_compile_cache,
    warn,
)
from jaxmlp.cli.of_runs import about_run, draw, folder_of_beginning, heading
from jaxmlp.cli.options import MAY_CHANGE, OF_THE_TRAINING, Train, given, kept
from jaxmlp.cli.privacy import privacy_line, steps_an_epoch
from jaxmlp.cli.problem import (
    arrays,
    description,
    fingerprint_of,
    in_units,
    keys_of_seed,
    prepared,
    weighted_training,
    where_begun,
)
from jaxmlp.cli.processes import (
    Ended,
    bad_input_of_any,
    check_same,
    is_first,
    joined_processes,
    signal_of_any,
)
from jaxmlp.data import Dataset
from jaxmlp.network import Network, cast, init, with_mean_outputs
from jaxmlp.progress import Progress, say, shown_loss
from jaxmlp.training import models, runs
from jaxmlp.training.checkpoints import FOLDER as CHECKPOINTS
from jaxmlp.training.checkpoints import Checkpoints
from jaxmlp.training.distributed import own, shared
from jaxmlp.training.interruption import Interruption, Stopped
from jaxmlp.training.loop import fit
from jaxmlp.training.secret import forget_secret, secret_key
from jaxmlp.training.settings import Settings
from jaxmlp.training.snapshots import Record, Snapshot, first_snapshot, own_snapshot
from jaxmlp.training.streaming import ChangedInputs, LostInputs


def train(options: Train) -> None:
    """Train the networks of all seeds, and save them."""
    with joined_processes():
        _train(options)


def _train(options: Train) -> None:
    begin = time.perf_counter()
    with bad_input():
        device = select_device(options.device)
    with bad_input_of_any():
        check_same(given(options, OF_THE_TRAINING))
    with bad_input_of_any():
        if options.compile_cache is not None:
            check_folder("compile_cache", options.compile_cache)
        devices = several_devices(device, options.devices)
        n_devices = len(devices or (device,))
        if not options.private and options.batch_size % n_devices:
            raise ValueError(
                f"batch_size: expected a multiple of the {n_devices} devices, got "
                f"{options.batch_size}"
            )
        begun_in = folder_of_beginning(options, runs.begun_in)
        network, data, settings = where_begun(
            lambda folder: prepared(options, device, folder),
            begun_in,
            lambda read: runs.began_with(options.output, fingerprint_of(read[1], options.private)),
        )
    with bad_input_of_any():
        check_same({"dataset": description(data)})
        run, about = Path(), {}
        if is_first():  # it writes, and asks whether the data are those of before
            about = about_run(options, data, begun_in)
            run = _open_run(options, about)
        if options.compile_cache is not None:
            use_compile_cache(options.compile_cache)
    run = shared(run)
    if not is_first():
        options = dataclasses.replace(options, quiet=True, pictures=False)
    if not options.quiet:
        say(heading(options, network, data, device, n_devices))
        if settings.noise_multiplier is not None:
            say(privacy_line(options, settings.noise_multiplier, len(data.train.targets)))
    if is_first() and options.delta is not None and options.delta * len(data.train.targets) >= 1:
        warn(f"delta: {options.delta:g} is not below 1/N: it allows for telling a whole example")
    seeds = range(options.seed, options.seed + options.seeds)
    results = []
    try:
        noted = stopping if is_first() else None
        with Interruption(noted) as interruption, jax.default_device(device):
            for seed in seeds:
                if len(seeds) > 1 and not options.quiet:
                    say(f"seed {seed}")
                folder = run if options.seeds == 1 else run / f"seed-{seed}"
                member = _Member(options, network, data, settings, about, seed, folder, devices)
                with failing_run(device):
                    results.append(member.run(interruption))
    except Stopped as stopped:
        if is_first():
            name = signal.Signals(stopped.signal).name
            warn(f"stopped by {name}, saved; `{_resume(run)}` goes on from there")
        raise Ended(128 + stopped.signal) from None
    if is_first():
        _finish(results, run, options, time.perf_counter() - begin)


def _resume(run: Path) -> str:
    """Return the command that goes on with a run."""
    return f"jaxmlp train --output {shlex.quote(str(run))} --resume"


class _Member:
    """The training of one seed, in its folder."""

    def __init__(
        self,
        options: Train,
        network: Network,
        data: Dataset,
        settings: Settings,
        about: dict[str, Any],
        seed: int,
        folder: Path,
        devices: list[Any] | None,
    ) -> None:
        self.devices = devices
        self.options, self.network, self.data, self.settings = options, network, data, settings
        self.about, self.seed, self.folder = about, seed, folder

    def run(self, interruption: Interruption) -> Record:
        """Return the record of the epoch whose parameters are saved."""
        options, network = self.options, self.network
        if shared(options.resume and (self.folder / runs.MODEL).is_file()):
            return self._trained_already()
        first_key, order_key = keys_of_seed(self.seed)
        # A CPU's memory that does not suffice is said here, and aborts the process elsewhere.
        params = jax.block_until_ready(init(network, first_key, options.dtype))
        # The mean of private targets would be told without noise.
        if self.data.classes is None and network.bias and not options.private:
            _, *targets = arrays(self.data.train, network, self.data)
            params = with_mean_outputs(network, params, *targets)
        checkpoints = Checkpoints(self.folder / CHECKPOINTS, options.keep, options.checkpoint_every)
        snapshot = shared(self._restored(checkpoints, params) if is_first() else None)
        if options.private:
            order_key = self._secret(begun=snapshot is not None)
        steps = steps_an_epoch(options, len(self.data.train.targets))
        mode = "quiet" if options.quiet else "auto"
        with Progress(mode, options.epochs, steps) as show:

            def after_epoch(record: Record, snapshot: Snapshot) -> None:
                snapshot = own_snapshot(snapshot)
                runs.append_metrics(self.folder, record)
                if options.keep_epochs and snapshot.epoch % options.keep_epochs == 0:
                    kept = cast(snapshot.state.params, options.dtype)
                    models.save_epoch(self.folder, snapshot.epoch, kept)
                show.finished_epoch(record)

            def watch(snapshot: Snapshot) -> None:
                show.moved(snapshot.epoch, snapshot.step)
                number = signal_of_any(interruption.signal)
                if is_first():
                    snapshot = own_snapshot(snapshot)
                    if number is None:
                        checkpoints.watch(snapshot)
                    else:
                        checkpoints.save(snapshot)
                if number is not None:
                    raise Stopped(number)

            train, evaluation = self._examples()
            settings = {
                field.name: getattr(self.settings, field.name)
                for field in dataclasses.fields(Settings)
            }
            try:
                fitted = fit(
                    network,
                    params,
                    *train[:2],
                    sample_weight=train[2],
                    key=order_key,
                    scaling=self.data.scaling,
                    evaluation=evaluation,
                    callbacks=[after_epoch] if is_first() else [],
                    watch=watch,
                    resume=snapshot,
                    devices=self.devices,
                    **settings,
                )
            except (ChangedInputs, LostInputs, FloatingPointError) as error:
                diverged = isinstance(error, FloatingPointError)
                if not is_first():
                    if diverged:  # the first one says the same
                        raise Ended(1) from error
                    fail(error, 1)
                place = checkpoints.save_last_good()
                run = self.folder if options.seeds == 1 else self.folder.parent
                last = f"the last good checkpoint is {place}" if place else "there is no checkpoint"
                if diverged:
                    again = "" if place else f", so delete {run} or give another --output"
                    raise FloatingPointError(f"{error}; {last}{again}") from error
                again = f"; with the data as they were `{_resume(run)}` goes on"
                raise OSError(f"{error}; {last}{again}") from error
        if is_first():
            params = in_units(self.data, own(fitted.params))
            models.save_model(self.folder, params)
            forget_secret(self.folder)
            if self.options.pictures:
                private = self.options.private
                draw(self.folder, fitted.history, self.network, params, self.data, private)
        if fitted.best_epoch != len(fitted.history) and not options.quiet:
            say(f"the best epoch was {fitted.best_epoch}, by {options.monitor}: it is saved")
        return fitted.history[fitted.best_epoch - 1]

    def _trained_already(self) -> Record:
        """Return the record of the epoch that the saved model is from."""
        if not self.options.quiet:
            say(f"{self.folder} is trained already")
        monitor = self.options.monitor if self.options.patience is not None else None
        record: Record = {}
        with bad_input_of_any():
            if is_first():
                forget_secret(self.folder)
                record = runs.saved_record(self.folder, monitor)
        return record

    def _secret(self, begun: bool) -> Any:
        """Return the secret of a private run, which the first process keeps, in every process."""
        words = None
        with bad_input_of_any():
            if is_first():
                words = jax.random.key_data(secret_key(self.folder, begun=begun))
        return jax.random.wrap_key_data(jax.numpy.asarray(shared(words)), impl="threefry2x32")

    def _restored(self, checkpoints: Checkpoints, params: Any) -> Snapshot | None:
        """Return the snapshot to go on from, or None; the folder holds what belongs to it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        snapshot = None
        if self.options.resume:
            template = first_snapshot(self.network, params, self.settings)
            snapshot, warnings = checkpoints.restore(template)
            for warning in warnings:
                warn(warning)
            if snapshot is not None and not self.options.quiet:
                step = f" and {snapshot.step} steps" if snapshot.step else ""
                say(f"resumed   after {snapshot.epoch} epochs{step}")
        about = {**self.about, "seed": self.seed}
        runs.write_config(self.folder, self.network, self.data.scaling, about)
        runs.write_metrics(self.folder, () if snapshot is None else snapshot.history)
        return snapshot

    def _examples(self) -> tuple[tuple[Any, ...], dict[str, tuple[Any, ...]]]:
        """Return the training examples, weighted by class, and those to evaluate on."""
        data = self.data
        weighted = weighted_training(self.options, data)
        train = arrays(weighted, self.network, data)
        return train, {
            name: arrays(part, self.network, data)
            for name, part in (("validation", data.validation), ("test", data.test))
            if part is not None
        }


def _open_run(options: Train, about: dict[str, Any]) -> Path:
    """Return the run's folder: a new one, or the one to go on with.

    Raises:
        ValueError: The run was made with other options or other data.
        OSError: The folder is there already, or cannot be made.
    """
    if options.resume and options.output is None:
        raise ValueError("resume: expected the run's folder (--output RUN), got none")
    name = Path(options.dataset).stem
    if options.resume and options.output is not None:
        runs.remove_leftovers(options.output)
        saved = runs.training_options(options.output)
        if saved is not None:
            expected = runs.as_json(about["training"])
            saved = runs.as_json(kept(Train(), OF_THE_TRAINING)) | saved  # from before an option
            for option, value in expected.items():
                if option not in MAY_CHANGE and saved.get(option) != value:
                    raise ValueError(
                        f"{option}: expected {saved.get(option)}, with which {options.output} was "
                        f"begun, got {value}"
                    )
            if not runs.began_with(options.output, about["dataset"]["fingerprint"]):
                raise ValueError(
                    f"dataset: expected the data that {options.output} was begun with, got others "
                    f"from {about['dataset']['source']}"
                )
            return options.output
    run = runs.new_run(options.output, name)
    if options.resume and not options.quiet:
        say(f"resume     nothing in {run} to go on with: the run is begun")
    return run


def _finish(results: list[Record], run: Path, options: Train, seconds: float) -> None:
    """Print the last line, and for several seeds write their summary."""
    names = (
        "test_accuracy", "test_loss", "validation_accuracy", "validation_loss",
        "train_accuracy", "train_loss",
    )  # fmt: skip
    if options.private:  # a record of one without test examples may hold no other figure
        names = *names, "epsilon"
    figure = next(name for name in names if name in results[0])
    values = np.array([result[figure] for result in results])
    form = shown_loss if figure.endswith("_loss") else "{:.4f}".format
    shown = form(values[0])
    if options.private and figure != "epsilon":
        shown += f", epsilon {results[0]['epsilon']:.4g} at delta {options.delta:g}"
    if len(results) > 1:
        deviation = values.std(ddof=1)
        shown = f"{form(values.mean())} ± {form(deviation)} over {len(values)} seeds"
        runs.write_summary(run, results, options.seed)
    say(f"{figure.replace('_', ' ')} {shown} after {seconds:.1f} s; saved in {run}")
