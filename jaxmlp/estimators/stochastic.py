"""Fitting by a stochastic solver: scikit-learn's procedure around our compiled epochs.

The order of random draws is scikit-learn's (initial weights, validation split, one permutation an
epoch), so that with the same `random_state` both go through the same batches from the same weights.
"""

import itertools
import warnings
from typing import Any

import jax
import numpy as np
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import validate_data

from jaxmlp.estimators.epochs import Progress, padded_orders, run_epochs
from jaxmlp.estimators.parameters import Parameterized, about, checked_weights, dense, weights_of
from jaxmlp.estimators.training import OptimizerState, Training, prepared
from jaxmlp.evaluation import padded_batch, predictions
from jaxmlp.network import Network, Parameters
from jaxmlp.training.orders import bucket

_SMALLEST_RATE = 1e-6  # "adaptive" stops below it
# Epochs of a call: of the first one, and at most, with their rows and multiplications.
_FIRST_EPOCHS, _EPOCHS, _ROWS, _MULTIPLICATIONS = 8, 64, 2**17, 2**31


class Stochastic(Parameterized):
    """The part of an estimator that goes through batches."""

    _optimizer: OptimizerState

    def _checked_validation(self, dtype: Any, X: Any, y: Any, weights: Any) -> tuple:
        with about("X_val"):
            X = validate_data(self, X, accept_sparse=["csr", "csc"], dtype=dtype, reset=False)
        weights = checked_weights(weights, X, "sample_weight_val")
        with about("y_val"):
            encoded = self._encoded_targets(y, dtype, "y_val")
        if self.early_stopping and X.shape[0] < 2:
            raise ValueError(f"X_val: expected two rows or more, got {X.shape[0]}")
        if len(encoded) != X.shape[0]:
            raise ValueError(f"y_val: expected {X.shape[0]} targets, got {len(encoded)}")
        return dense(X), encoded, weights

    def _split(
        self, X: np.ndarray, encoded: np.ndarray, weights: Any, rng: np.random.RandomState
    ) -> tuple[tuple, tuple]:
        """Return the training part and the validation part, as scikit-learn draws them."""
        if not self.validation_fraction:
            raise ValueError("validation_fraction: expected one above 0 to stop early, got 0")
        arrays = [X, encoded] if weights is None else [X, encoded, weights]
        split = train_test_split(
            *arrays,
            random_state=rng,
            test_size=self.validation_fraction,
            stratify=encoded if is_classifier(self) and self.n_outputs_ == 1 else None,
        )
        train, held_out = split[::2], split[1::2]
        if len(held_out[0]) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of "
                "your dataset."
            )
        if weights is None:
            train, held_out = [*train, None], [*held_out, None]
        return tuple(train), tuple(held_out)

    def _fit_stochastic(
        self,
        X: np.ndarray,
        encoded: np.ndarray,
        weights: Any,
        rng: np.random.RandomState,
        incremental: bool,
        validation: tuple | None,
    ) -> None:
        self._resume_curves()
        if self.early_stopping and validation is None:
            (X, encoded, weights), validation = self._split(X, encoded, weights, rng)
        training = prepared(self, len(X), X.dtype, rng, incremental)
        if weights is not None or training.sampler is not None:
            weights = weights_of(weights, X)
        examples = X, self._targets(encoded), weights
        stopped = False
        try:
            stopped = self._trained(training, examples, incremental, validation)
            if not stopped and not incremental and training.sampler is None:
                warnings.warn(self._no_convergence(), stacklevel=4)
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=4)
        self._finish(training.progress)

    def _resume_curves(self) -> None:
        """Begin the curves where there are none yet, also for a warm start.

        It may come after another solver, or with early stopping where there was none.
        """
        if not hasattr(self, "loss_curve_") or (
            self.early_stopping and self.validation_scores_ is None
        ):
            self._reset_curves()

    def _trained(
        self,
        training: Training,
        examples: tuple[np.ndarray, np.ndarray, np.ndarray | None],
        incremental: bool,
        validation: tuple | None,
    ) -> bool:
        """Run the epochs, and tell whether they were stopped before the limit."""
        optimizer = self._optimizer
        watched = not self.early_stopping and training.sampler is None
        on_device = jax.device_put(padded_batch(*examples, bucket(training.n_examples)))
        training.progress = jax.device_put(training.progress)
        rows = training.rows(training.n_examples)
        watching = self.verbose or validation is not None or self.learning_rate != "constant"
        at_once = 1 if incremental or watching else _epochs_at_once(training.network, rows)

        def draw(count: int) -> tuple[list[np.ndarray], Any]:
            position = training.position() if at_once > 1 else None
            return training.drawn(count), position

        ready = None  # what is drawn for the next epochs while the device computes
        while self.n_iter_ < training.limit:
            left = training.limit - self.n_iter_
            orders, position = ready or draw(min(_FIRST_EPOCHS, at_once, left))
            count = len(orders)
            numbers = training.numbers | {
                "learning_rate": np.asarray(optimizer.learning_rate, training.dtype),
                "steps": np.int32(training.steps),
                "epochs": np.int32(count),
            }
            moved, losses, ran = run_epochs(
                training.network,
                training.progress,
                on_device,
                padded_orders(orders, rows, at_once),
                numbers,
                training.regularization,
                training.key,
                solver=training.solver,
                batch_size=training.padding,
            )
            following = min(2 * count, at_once, left - count)
            ready = draw(following) if at_once > 1 and following else None
            ran = int(ran)  # where Ctrl-C is seen: what was under way does not count
            training.progress = moved
            if ran < count:
                training.rewind(position, ran)
            self._count(training, np.asarray(losses)[:ran].tolist())
            params = training.progress.params
            if watched:
                self._no_improvement_count = int(training.progress.idle)
                self.best_loss_ = float(training.progress.best_loss)
            if validation is not None and self._validated(training.network, params, validation):
                self._best = jax.device_get(params)
            if self.learning_rate == "invscaling" and self.solver == "sgd":
                decay = (self.t_ + 1) ** self.power_t
                optimizer.learning_rate = float(self.learning_rate_init) / decay
            if self._no_improvement_count > self.n_iter_no_change:
                if self._stops(optimizer):
                    if ready and ran == count:
                        training.rewind(ready[1])
                    return True
                self._no_improvement_count = 0
                idle = jax.device_put(np.int32(0))
                training.progress = training.progress._replace(idle=idle)
        return False

    def _count(self, training: Training, losses: list[float]) -> None:
        """Count epochs that were run, and record their losses where those are no secret."""
        if training.sampler is None:
            self._record(losses)
        else:
            self.n_iter_ += len(losses)
        self.t_ += training.n_examples * len(losses)

    def _no_convergence(self) -> ConvergenceWarning:
        return ConvergenceWarning(
            f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the "
            "optimization hasn't converged yet."
        )

    def _finish(self, progress: Progress) -> None:
        """Keep what was reached."""
        self._optimizer.state = jax.device_get(progress.optimizer_state)
        self._optimizer.steps = int(progress.steps)
        best_params = getattr(self, "_best", None) if self.early_stopping else None
        self._keep(progress.params if best_params is None else best_params)

    def _batch_size(self, n_examples: int) -> int:
        if self.batch_size == "auto":
            return min(200, n_examples)
        if self.batch_size > n_examples:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be "
                "clipped",
                stacklevel=5,
            )
        return int(min(self.batch_size, n_examples))

    def _record(self, losses: list[float]) -> None:
        for loss in losses:
            self.n_iter_ += 1
            self.loss_ = loss
            self.loss_curve_.append(loss)
            if self.verbose:
                print(f"Iteration {self.n_iter_}, loss = {loss:.8f}")

    def _validated(self, network: Network, params: Parameters, validation: tuple) -> bool:
        """Record the figures of the validation set; tell whether the score is the best so far."""
        X, encoded, weights = validation
        losses = self._losses(network, params, X, encoded)
        if self.validation_loss_curve_ is None:
            self.validation_loss_curve_ = []
        self.validation_loss_curve_.append(float(np.average(losses, weights=weights)))
        if not self.early_stopping:
            if self.verbose:
                print(f"Validation loss: {self.validation_loss_curve_[-1]:.8f}")
            return False
        outputs = np.asarray(predictions(network, params, X))
        score = np.nan
        if np.isfinite(outputs).all():
            score = float(self._score_of(encoded, outputs, weights))
        self.validation_scores_.append(score)
        if self.verbose:
            print(f"Validation score: {score:f}")
        if score < self.best_validation_score_ + self.tol:
            self._no_improvement_count += 1
        else:
            self._no_improvement_count = 0
        if score > self.best_validation_score_:
            self.best_validation_score_ = score
            return True
        return False

    def _stops(self, optimizer: OptimizerState) -> bool:
        """Tell whether to stop now; "adaptive" takes a fifth of the learning rate first."""
        what = "Validation score" if self.early_stopping else "Training loss"
        message = (
            f"{what} did not improve more than tol={self.tol:f} for {self.n_iter_no_change} "
            "consecutive epochs."
        )
        if self.learning_rate != "adaptive" or self.solver != "sgd":
            message, stops = f"{message} Stopping.", True
        elif optimizer.learning_rate <= _SMALLEST_RATE:
            message, stops = f"{message} Learning rate too small. Stopping.", True
        else:
            optimizer.learning_rate /= 5.0
            message = f"{message} Setting learning rate to {optimizer.learning_rate:f}"
            stops = False
        if self.verbose:
            print(message)
        return stops


def _epochs_at_once(network: Network, rows: int) -> int:
    """Return how many epochs of so many rows a call takes at most: for Ctrl-C not too many."""
    multiplications = rows * sum(a * b for a, b in itertools.pairwise(network.sizes))
    return max(1, min(_EPOCHS, _ROWS // rows, _MULTIPLICATIONS // multiplications))
