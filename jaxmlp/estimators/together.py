"""Fits that are trained together: prepared, sorted by kind, trained in slots, taken over."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxmlp.estimators.parameters import weights_of
from jaxmlp.estimators.slots import Examples, Program, Workers
from jaxmlp.estimators.training import Training, prepared


@dataclass
class Fit:
    """A fit that is prepared; and, once it was trained, why it failed and what it warns of."""

    estimator: Any
    training: Training
    examples: Examples
    warned: list[Warning]
    error: Exception | None = None
    seconds: float = 0.0
    orders: list[np.ndarray] = field(default_factory=list)

    @property
    def kind(self) -> tuple:
        """What fits must have in common to go through one program; `batches`, to do so at once."""
        of, targets = self.training, self.examples.targets
        structure = jax.tree.structure(of.regularization)
        shape = targets.dtype, targets.shape[1:]
        return of.network, of.solver, of.dtype, structure, shape, self.estimator.device

    @property
    def batches(self) -> tuple[int, int | None]:
        """The steps of an epoch, and the rows of a batch, or None where it may be filled up."""
        of = self.training
        # The only batch may have rows of weight 0, unless masks are drawn, of its own shape.
        return of.steps, None if of.steps == 1 and of.key is None else of.padding

    @property
    def left(self) -> int:
        """How many epochs there may be yet."""
        return self.training.limit - self.estimator.n_iter_

    def upcoming(self, count: int) -> list[np.ndarray]:
        """Return the orders of the next epochs, by the numbers in the block of inputs."""
        missing = count - len(self.orders)
        if missing > 0:
            rows = self.examples.rows
            self.orders += [rows[order] for order in self.training.drawn(missing)]
        return self.orders[:count]

    def passed(self, losses: list[float], best_loss: float, idle: int) -> bool:
        """Note epochs that were run, and tell whether they were the last."""
        estimator = self.estimator
        self.orders = self.orders[len(losses) :]
        estimator._count(self.training, losses)
        estimator.best_loss_, estimator._no_improvement_count = best_loss, idle
        return idle > estimator.n_iter_no_change or self.left <= 0

    def finish(self) -> None:
        """Fit the estimator to what was reached."""
        estimator = self.estimator
        if estimator._no_improvement_count <= estimator.n_iter_no_change:
            self.warned.append(estimator._no_convergence())
        estimator._finish(self.training.progress)
        try:
            estimator._check_finite()
        except ValueError as error:
            self.error = error

    def taken_over(self) -> Any:
        """Return the fitted estimator, and warn as its `fit` would have warned.

        Raises:
            Exception: What its `fit` would have raised.
        """
        for warning in self.warned:
            warnings.warn(warning, stacklevel=4)
        if self.error is not None:
            raise self.error
        return self.estimator


def goes_together(estimator: Any) -> bool:
    """Tell whether an estimator of ours can be trained beside others.

    Those cannot that need the host after every epoch, that are ensembles themselves, or whose
    solver or generator of random numbers is not known to compute the same when mapped.

    Args:
        estimator: An `MLPClassifier` or `MLPRegressor`.

    Returns:
        Whether it can.
    """
    host = estimator.early_stopping or estimator.verbose or estimator.noise_multiplier is not None
    known = isinstance(estimator.solver, str) and estimator.solver != "lbfgs"
    constant = estimator.solver != "sgd" or estimator.learning_rate == "constant"
    drawn = jax.config.jax_default_prng_impl == "threefry2x32"  # pyright: ignore
    return known and constant and drawn and not host and estimator.n_ensembles == 1


def prepared_fit(
    estimator: Any, X: Any, y: Any, sample_weight: Any, block: Any = None, rows: Any = None
) -> Fit:
    """Return what is to be trained for `estimator.fit(X, y, sample_weight)`.

    Args:
        estimator: One that goes together, not fitted; it will be.
        X: (n, D).
        y: Its targets.
        sample_weight: (n,) or None.
        block: (N, D) that X is rows of, dense and in the dtype to compute with, so that many fits
            share it; or None for X itself.
        rows: (n,) which rows these are, or None for all.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimator._validate_params()
        X, encoded, weights, rng = estimator._begun(X, y, sample_weight)
        with estimator._computing(X.dtype, fitting=True):
            training = prepared(estimator, len(X), X.dtype, rng)
    warned: list[Any] = [one.message for one in caught]
    if block is None or block.dtype != X.dtype:
        block, rows = X, None
    rows = np.arange(len(X)) if rows is None else np.asarray(rows)
    examples = Examples(block, rows, estimator._targets(encoded), weights_of(weights, X))
    return Fit(estimator, training, examples, warned)


def fit_together(fits: Sequence[Fit], programs: dict[tuple, Program] | None = None) -> None:
    """Train prepared fits: those of one kind side by side, kind by kind.

    Args:
        fits: What is to be trained; its estimators will be fitted, or its errors set.
        programs: Those that were compiled before, by kind; new ones are added.

    Raises:
        MemoryError: There is no room for a fit.
    """
    programs = {} if programs is None else programs
    groups: dict[tuple, list[Fit]] = {}
    for fit in fits:
        groups.setdefault((fit.kind, fit.batches), []).append(fit)
    for (kind, batches), group in groups.items():
        begin, first = time.perf_counter(), group[0]
        with first.estimator._computing(first.training.dtype, fitting=True):
            program = programs.get(kind)
            if program is None or not program.takes(group, batches[1] is None):
                program = programs[kind] = Program.of(group)
            Workers(group, program).run()
        for fit in group:
            fit.seconds = (time.perf_counter() - begin) / len(group)
