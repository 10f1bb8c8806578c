"""Fitting by a stochastic solver: scikit-learn's procedure around our compiled epochs.

The order of random draws is scikit-learn's (initial weights, validation split, one permutation an
epoch), so that with the same `random_state` both go through the same batches from the same weights.
"""

import secrets
import warnings
from typing import Any

import jax
import numpy as np
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import validate_data

from jaxmlp.estimators.parameters import Parameterized, checked_weights, dense, weights_of
from jaxmlp.estimators.solvers import (
    Progress,
    Solver,
    epochs_at_once,
    padded_orders,
    run_epochs,
)
from jaxmlp.evaluation import padded_batch, predictions
from jaxmlp.network import Network, Parameters
from jaxmlp.privacy import epsilon, padded_size, poisson_batches
from jaxmlp.training.orders import bucket
from jaxmlp.training.steps import Privacy, Regularization

_SMALLEST_RATE = 1e-6  # "adaptive" stops below it


class OptimizerState:
    """Where a stochastic solver stands, in NumPy arrays: `partial_fit` goes on from it."""

    def __init__(self, solver: Solver, learning_rate: float, state: Any) -> None:
        self.solver, self.learning_rate, self.state, self.steps = solver, learning_rate, state, 0


class Stochastic(Parameterized):
    """The part of an estimator that goes through batches."""

    _optimizer: OptimizerState

    def _checked_validation(self, dtype: Any, X: Any, y: Any, weights: Any) -> tuple:
        X = validate_data(self, X, accept_sparse=["csr", "csc"], dtype=dtype, reset=False)
        weights = checked_weights(weights, X, "sample_weight_val")
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
        if not hasattr(self, "loss_curve_") or (
            self.early_stopping and self.validation_scores_ is None
        ):  # a warm start after another solver, or with early stopping where there was none
            self._reset_curves()
        if self.early_stopping and validation is None:
            (X, encoded, weights), validation = self._split(X, encoded, weights, rng)
        n_examples, private = len(X), self.noise_multiplier is not None
        batch_size = self._batch_size(n_examples)
        solver = Solver(self.solver, bool(self.nesterovs_momentum))
        network, params = self._network(), jax.device_put(self._params())
        if (
            not incremental
            or getattr(self, "_optimizer", None) is None
            or (self._optimizer.solver != solver)
        ):
            rate = float(self.learning_rate_init)
            self._optimizer = OptimizerState(solver, rate, solver.init(params))
        optimizer = self._optimizer
        dtype = X.dtype

        def number(value: Any) -> Any:
            return np.asarray(value, dtype)

        rates = self._dropout_rates(list(network.sizes[1:-1]))
        smoothing = getattr(self, "label_smoothing", 0)
        steps = -(-n_examples // batch_size)
        limit = 1 if incremental else self.max_iter
        sampling = batch_size / n_examples
        privacy, padding = None, batch_size
        if self.noise_multiplier is not None:
            privacy = Privacy(
                number(self.clip_norm), number(self.noise_multiplier), number(batch_size)
            )
            padding = padded_size(n_examples, sampling, limit * steps)
            self.epsilon_spent_ = epsilon(
                float(self.noise_multiplier), sampling, limit * steps, float(self.delta)
            )
        regularization = Regularization(
            label_smoothing=number(smoothing) if smoothing else None,
            dropout=(None, *(number(rate) if rate else None for rate in rates))
            if any(rates)
            else None,
            privacy=privacy,
        )
        key = None
        if private:  # known to nobody: whoever knew the noise could subtract it
            words = np.frombuffer(secrets.token_bytes(8), np.uint32)
            key = jax.random.wrap_key_data(jax.device_put(words), impl="threefry2x32")
        elif regularization.dropout is not None:
            key = jax.random.key(int(rng.randint(2**31 - 1)))
        sampler = np.random.default_rng() if private else None
        rows = bucket(n_examples)
        examples = jax.device_put(
            padded_batch(X, self._targets(encoded), weights_of(weights, X), rows)
        )
        rows = -(-rows // batch_size) * padding
        watching = self.verbose or validation is not None or self.learning_rate != "constant"
        at_once = 1 if incremental or watching else epochs_at_once(rows)
        watched = not self.early_stopping and not private
        constants = {
            "steps": np.int32(steps),
            "n_examples": number(n_examples),
            "tol": number(self.tol),
            "patience": number(self.n_iter_no_change if watched else np.inf),
            "alpha": number(self.alpha),
            "momentum": number(self.momentum),
            "beta_1": number(self.beta_1),
            "beta_2": number(self.beta_2),
            "epsilon": number(self.epsilon),
        }
        best = self.best_loss_ if self.best_loss_ is not None else np.inf
        progress = jax.device_put(
            Progress(
                params,
                optimizer.state,
                np.int32(optimizer.steps),
                number(best),
                np.int32(self._no_improvement_count),
            )
        )
        order = np.arange(n_examples)
        self.n_iter_ = 0
        stopped = False
        try:
            while self.n_iter_ < limit and not stopped:
                count = min(at_once, limit - self.n_iter_)
                orders, states = [], []
                for _ in range(count):
                    if sampler is not None:
                        drawn = poisson_batches(sampler, n_examples, sampling, steps, padding)
                        orders.append(drawn.reshape(-1))
                    else:
                        order = order[rng.permutation(n_examples)] if self.shuffle else order
                        orders.append(order)
                        states.append(rng.get_state() if count > 1 else None)
                moved, losses, ran = run_epochs(
                    network,
                    progress,
                    examples,
                    padded_orders(orders, rows, at_once),
                    constants
                    | {
                        "learning_rate": number(optimizer.learning_rate),
                        "epochs": np.int32(count),
                    },
                    regularization,
                    key,
                    solver=solver,
                    batch_size=padding,
                )
                ran = int(ran)  # where Ctrl-C is seen: what was under way does not count
                progress = moved
                if ran < count:  # as if the other permutations had not been drawn
                    rng.set_state(states[ran - 1])
                    order = orders[ran - 1]
                if not private:
                    self._record(np.asarray(losses)[:ran].tolist())
                else:
                    self.n_iter_ += ran
                self.t_ += n_examples * ran
                if watched:
                    self._no_improvement_count = int(progress.idle)
                    self.best_loss_ = float(progress.best_loss)
                if validation is not None and self._validated(network, progress.params, validation):
                    self._best = jax.device_get(progress.params)
                if self.learning_rate == "invscaling" and self.solver == "sgd":
                    decay = (self.t_ + 1) ** self.power_t
                    optimizer.learning_rate = float(self.learning_rate_init) / decay
                if self._no_improvement_count > self.n_iter_no_change:
                    stopped = self._stops(optimizer)
                    if not stopped:
                        self._no_improvement_count = 0
                        progress = progress._replace(idle=jax.device_put(np.int32(0)))
            if not stopped and not incremental and not private:
                warnings.warn(
                    f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the "
                    "optimization hasn't converged yet.",
                    ConvergenceWarning,
                    stacklevel=4,
                )
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=4)
        optimizer.state = jax.device_get(progress.optimizer_state)
        optimizer.steps = int(progress.steps)
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
