"""`jaxmlp sweep`: many settings trained at once, a table of what came of them, the best kept."""

import dataclasses
import math
import shlex
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlp.cli.console import (
    bad_input,
    check_folder,
    failing_run,
    select_device,
    several_devices,
    stopping,
    use_compile_cache,
    warn,
)
from jaxmlp.cli.of_runs import about_run, draw, folder_of_beginning, heading
from jaxmlp.cli.options import MAY_CHANGE, OF_THE_SWEEP, Sweep, Train, given, kept
from jaxmlp.cli.problem import (
    arrays,
    description,
    fingerprint_of,
    in_units,
    keys_of_seed,
    weighted_training,
)
from jaxmlp.cli.processes import (
    Ended,
    bad_input_of_any,
    check_same,
    is_first,
    joined_processes,
    signal_of_any,
)
from jaxmlp.cli.space import begun_with, prepared_sweep, settings_of_sweep, train_options
from jaxmlp.cli.sweep_lines import Lines, show_best, show_table, sweep_line
from jaxmlp.data import Dataset
from jaxmlp.network import Network, with_mean_outputs
from jaxmlp.progress import say
from jaxmlp.training import models, runs, sweep_folder
from jaxmlp.training.distributed import shared
from jaxmlp.training.ensembles import EnsembleFit, Progress, fit_ensemble
from jaxmlp.training.interruption import Interruption, Stopped
from jaxmlp.training.members import EACH, init_members, member, member_settings
from jaxmlp.training.snapshots import Record
from jaxmlp.training.sweeps import (
    Setting,
    Summary,
    Trial,
    check_size,
    ranked,
    summaries,
)
from jaxmlp.validation import check_count, check_number


def sweep(options: Sweep) -> None:
    """Train every setting with every seed, print and keep what came of them, save the best."""
    with joined_processes():
        _sweep(options)


def _sweep(options: Sweep) -> None:
    begin = time.perf_counter()
    with bad_input():
        device = select_device(options.device)
    with bad_input_of_any():
        check_same(given(options, OF_THE_SWEEP))
    with bad_input_of_any():
        if options.compile_cache is not None:
            check_folder("compile_cache", options.compile_cache)
        devices = several_devices(device, options.devices)
        check_count("seeds", options.seeds)
        settings = begun_with(options) or settings_of_sweep(options)
        begun_in = folder_of_beginning(options, sweep_folder.begun_in)
        options, network, data = prepared_sweep(options, settings[0], device, begun_in)
    with bad_input_of_any():
        check_same({"dataset": description(data)})
        with jax.default_device(device):
            work = _Work(options, settings, network, data, devices, begun_in)
        if options.compile_cache is not None:
            use_compile_cache(options.compile_cache)
    work.share()
    if not is_first():
        options = work.options = dataclasses.replace(options, quiet=True)
    if not options.quiet:
        swept = settings[0]
        shown = dataclasses.replace(train_options(options, swept), seeds=options.seeds)
        say(heading(shown, network, data, device, len(devices or (device,)), swept))
        say(sweep_line(settings, options.seeds))
    try:
        with (
            Interruption(stopping if is_first() else None) as interruption,
            jax.default_device(device),
            failing_run(device),
        ):
            work.run(interruption)
    except Stopped as stopped:
        name = signal.Signals(stopped.signal).name
        done = f"after {len(work.trials)} of {work.count} networks, which are saved"
        if not work.trials:
            done = "before any network was done; with --members-per-pass fewer are lost"
        if is_first():
            warn(f"stopped by {name} {done}; `{work.again()}` goes on from there")
        raise Ended(128 + stopped.signal) from None
    if is_first():
        with failing_run(device):
            work.finish(time.perf_counter() - begin)


class _Work:
    """A sweep under way: its members, and what is saved of them."""

    def __init__(
        self,
        options: Sweep,
        settings: list[Setting],
        network: Network,
        data: Dataset,
        devices: list[Any] | None,
        begun_in: str | None,
    ) -> None:
        self.devices, self.begun_in = devices, begun_in
        self.options, self.settings, self.network, self.data = options, settings, network, data
        self.seeds = range(options.seed, options.seed + options.seeds)
        self.count = len(settings) * len(self.seeds)
        # Setting by setting: the seeds of one are trained together.
        self.pairs = [(number, seed) for number in range(len(settings)) for seed in self.seeds]
        if options.monitor.rpartition("_")[0] != "validation":
            raise ValueError(
                "monitor: expected validation_loss or validation_accuracy: other examples must not "
                f"choose, got {options.monitor}"
            )
        if data.validation is None:
            raise ValueError(
                "validation_fraction: expected some examples to judge by, got none: 0.2 puts a "
                "fifth of the training examples aside"
            )
        check_size("seeds", self.count)
        if options.halving is not None and options.patience is not None:
            raise ValueError(f"patience: expected none with --halving, got {options.patience}")
        if options.halving is not None and options.halving < 2:
            raise ValueError(f"halving: expected at least 2, got {options.halving}")
        self.members_per_pass = options.members_per_pass
        if self.members_per_pass is not None:
            check_count("members_per_pass", self.members_per_pass)
        weighted = weighted_training(options, data)
        self.train = arrays(weighted, network, data)
        self.evaluation = {
            name: arrays(part, network, data)
            for name, part in (("validation", data.validation), ("test", data.test))
            if part is not None
        }
        self.trials: list[Trial] = []
        self._check()
        self.folder = self._open() if is_first() else Path()

    def share(self) -> None:
        """Take from the first process, which has opened the folder, what is in it."""
        opened = self.folder, self.trials, self.members_per_pass
        self.folder, self.trials, self.members_per_pass = shared(opened)

    def again(self) -> str:
        """Return the command that goes on with the sweep."""
        return f"jaxmlp sweep --output {shlex.quote(str(self.folder))} --resume"

    def _numbers(self, pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Return what `fit_ensemble` takes for these members: a name → a number for each."""
        rows = [self.settings[number] for number, _ in pairs]
        numbers: dict[str, Any] = {"learning_rate": Train.learning_rate}
        of_optimizer = {}
        for name in rows[0]:
            values = np.array([row[name] for row in rows])
            if name in EACH or name == "dropout":
                numbers[name] = values
            elif name != "scale":
                of_optimizer[name] = values
        return {**numbers, "optimizer_settings": of_optimizer}

    def _shared(self) -> dict[str, Any]:
        names = ("optimizer", "schedule", "batch_size", "epochs", "patience", "monitor")
        return {name: getattr(self.options, name) for name in names}

    def _check(self) -> None:
        """Raise where a number does not fit, before anything is written."""
        numbers = {**self._numbers(self.pairs), **self._shared()}
        dropout = numbers.pop("dropout", 0.0)
        member_settings(self.network, self.count, numbers, dropout)
        for setting in self.settings:
            check_number("scale", setting.get("scale", 1.0), 0, math.inf, above=True)

    def _open(self) -> Path:
        """Return the sweep's folder, new, or with the trials that ended before.

        Raises:
            ValueError: It is another sweep's, or damaged.
            OSError: It cannot be made, read or written.
        """
        options = self.options
        if options.resume and options.output is None:
            raise ValueError("resume: expected the sweep's folder (--output FOLDER), got none")
        self.about = runs.as_json(
            {
                "options": kept(options, OF_THE_SWEEP),
                "settings": self.settings,
                "fingerprint": fingerprint_of(self.data, private=False),
                "folder": self.begun_in,
            }
        )
        if options.resume and options.output is not None:
            runs.remove_leftovers(options.output)
            saved = sweep_folder.read_sweep(options.output)
            if saved is not None:
                begun = runs.as_json(kept(Sweep(), OF_THE_SWEEP)) | saved["options"]
                for name, value in self.about["options"].items():
                    if name not in MAY_CHANGE and begun.get(name) != value:
                        raise ValueError(
                            f"{name}: expected {begun.get(name)}, with which "
                            f"{options.output} was begun, got {value}"
                        )
                if saved["fingerprint"] != self.about["fingerprint"]:
                    raise ValueError(
                        f"dataset: expected the data that {options.output} was begun with, got "
                        f"others from {self.data.source}"
                    )
                self.members_per_pass = saved["members_per_pass"]
                trials, damage = sweep_folder.read_trials(options.output)
                if damage is not None:
                    warn(damage)
                self._take_up(trials)
                return options.output
        folder = runs.new_run(options.output, f"sweep-{Path(options.dataset).stem}")
        if options.resume and not options.quiet:
            say(f"resume     nothing in {folder} to go on with: the sweep is begun")
        self._write_about(folder)
        return folder

    def _write_about(self, folder: Path) -> None:
        sweep_folder.write_sweep(folder, {**self.about, "members_per_pass": self.members_per_pass})

    def _take_up(self, trials: list[Trial]) -> None:
        """Go on after these trials, but for those of a setting with seeds that are missing."""
        whole = len(trials) - len(trials) % len(self.seeds)
        self.trials = trials[:whole]
        monitor = self.options.monitor
        if [trial[:2] for trial in self.trials] != self.pairs[:whole] or not all(
            trial.diverged or monitor in trial.record for trial in self.trials
        ):
            raise ValueError(f"{self.options.output}: its trials are not those of this sweep")
        assert self.options.output is not None
        model = self.options.output / sweep_folder.BEST / runs.MODEL
        best = self._best() if self.trials else None
        if best is not None and not model.is_file():
            size = len(self.seeds)  # of a pass, which has whole settings
            size = max(size, (self.members_per_pass or 1) // size * size)
            place = self.pairs.index((best.setting, best.seed))
            self.trials = self.trials[: place - place % size]
            warn(f"{model} is gone: what was trained with it, and after it, is trained again")

    def run(self, interruption: Interruption) -> None:
        """Train what is left to be trained.

        Raises:
            Stopped: By a signal; what has ended is saved.
        """
        begun = len(self.trials)
        if begun and not self.options.quiet:
            say(f"resumed    after {begun} of {self.count} networks")
        pairs = self.pairs[begun:]
        if not pairs:
            return
        # As `jaxmlp train` has them: the settings of a seed begin alike.
        first_keys, order_keys = zip(*map(keys_of_seed, self.seeds), strict=True)
        which = np.array([self.seeds.index(seed) for _, seed in pairs])
        params = init_members(
            self.network,
            jnp.stack(first_keys)[which],
            self.options.dtype,
            scale=np.array([self.settings[number].get("scale", 1.0) for number, _ in pairs]),
        )
        if self.data.classes is None and self.network.bias:
            one = jax.tree.map(lambda leaf: leaf[0], params)
            last: Any = with_mean_outputs(self.network, one, *self.train[1:])[-1].bias
            bias = jnp.tile(last, (len(pairs), 1))
            params = (*params[:-1], params[-1]._replace(bias=bias))
        order = jnp.stack(order_keys)[which] if self.options.own_order else order_keys[0]
        shown = Lines(self.options, begun, self.count)

        def watch(progress: Progress) -> None:
            number = signal_of_any(interruption.signal)
            if number is not None:
                raise Stopped(number)
            shown.moved(progress)

        fit_ensemble(
            self.network,
            params,
            *self.train[:2],
            sample_weight=self.train[2],
            key=order,
            scaling=self.data.scaling,
            evaluation=self.evaluation,
            halving=self.options.halving,
            members_per_pass=self.members_per_pass,
            group=len(self.seeds),
            devices=self.devices,
            watch=watch,
            finished=lambda first, fitted: self._finished(pairs[first:], fitted),
            **self._numbers(pairs),
            **self._shared(),
        )

    def _finished(self, pairs: Sequence[tuple[int, int]], fitted: EnsembleFit) -> None:
        """Save what came of a pass: the best model first, so that a kill loses nothing."""
        if self.members_per_pass is None:
            self.members_per_pass = fitted.members_per_pass
            if is_first():
                self._write_about(self.folder)
        new = []
        for m, (number, seed) in enumerate(pairs[: len(fitted.histories)]):
            history, best = fitted.histories[m], fitted.best_epochs[m]
            sentence = fitted.diverged.get(m)
            record: Record = {} if sentence else history[best - 1]
            new.append(Trial(number, seed, len(history), record, sentence))
        self.trials += new
        if not is_first():
            return
        best = self._best()
        if best is not None:
            for m, trial in enumerate(new):
                if trial == best:
                    self._save_best(trial, fitted, m)
        sweep_folder.write_trials(self.folder, self.trials)

    def _best(self) -> Trial | None:
        """Return the best trial of the best setting, or None where all have diverged."""
        first = self.ranked()[0]
        if first.diverged:
            return None
        monitor = self.options.monitor
        best = max if monitor.endswith("_accuracy") else min
        own = [trial for trial in self.trials if trial.setting == first.setting]
        return best(own, key=lambda trial: trial.record[monitor])

    def ranked(self) -> list[Summary]:
        """Return the summaries of what has been tried, the best first."""
        found = summaries(self.settings, self.trials)
        return ranked(found, self.options.monitor, self.options.halving is not None)

    def _save_best(self, trial: Trial, fitted: EnsembleFit, m: int) -> None:
        """Save a member as a run of its own."""
        folder = self.folder / sweep_folder.BEST
        folder.mkdir(exist_ok=True)
        setting = self.settings[trial.setting]
        options = train_options(self.options, setting)
        about = {
            **about_run(options, self.data, self.begun_in),
            "seed": trial.seed,
            "sweep": {"setting": trial.setting, "values": setting},
        }
        (folder / runs.MODEL).unlink(missing_ok=True)
        runs.write_config(folder, self.network, self.data.scaling, about)
        runs.write_metrics(folder, fitted.histories[m])
        models.save_model(folder, in_units(self.data, member(self.network, fitted.params, m)[1]))

    def finish(self, seconds: float) -> None:
        """Write the table, the picture and the last lines."""
        found = self.ranked()
        sweep_folder.write_results(self.folder, found)
        options = self.options
        if not options.quiet:
            show_table(found, options.monitor)
        if options.pictures:
            from jaxmlp.plots import response_surface

            path = self.folder / sweep_folder.SURFACE
            response_surface(found, options.monitor, path, best=found[0])
        best = self._best()
        folder = self.folder / sweep_folder.BEST
        if best is not None and not (folder / runs.MODEL).is_file():
            raise FileNotFoundError(f"{folder}: expected the best network, got none: it is gone")
        if best is not None and options.pictures:
            _, params, _ = models.load(folder)
            draw(folder, runs.read_metrics(folder), self.network, params, self.data)
        if best is None:
            raise FloatingPointError(
                f"every setting diverged; the first one: {self.trials[0].diverged}"
            )
        show_best(best, self.settings[best.setting], several_seeds=len(self.seeds) > 1)
        networks = "network" if self.count == 1 else "networks"
        say(f"{self.count} {networks} after {seconds:.1f} s; the best is saved in {folder}")
