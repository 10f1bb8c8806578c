"""What both estimators share: scikit-learn's fitting procedure around our compiled epochs.

The order of random draws is scikit-learn's (initial weights, validation split, one permutation an
epoch), so that with the same `random_state` both go through the same batches from the same weights.
"""

import contextlib
import numbers
import secrets
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import scipy.optimize
from sklearn.base import BaseEstimator, is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier as TheirClassifier
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from jaxmlp.activations import ACTIVATIONS
from jaxmlp.estimators.solvers import (
    Packed,
    Progress,
    Solver,
    epochs_at_once,
    padded_orders,
    reported_losses,
    run_epochs,
)
from jaxmlp.evaluation import padded_batch, predictions
from jaxmlp.gradients import logits
from jaxmlp.influence import influence, self_influence
from jaxmlp.losses import LOSSES
from jaxmlp.network import Layer, Network, Parameters
from jaxmlp.privacy import epsilon, padded_size, poisson_batches
from jaxmlp.privacy.gradient import exact_products
from jaxmlp.training.epochs import bucket
from jaxmlp.training.optimizers import OPTIMIZERS
from jaxmlp.training.steps import Privacy, Regularization

_SMALLEST_RATE = 1e-6  # "adaptive" stops below it
_OURS = {"logistic": "sigmoid"}  # scikit-learn's name → ours

CONSTRAINTS: dict[str, list] = {
    **TheirClassifier._parameter_constraints,
    "activation": [StrOptions({"logistic", *ACTIVATIONS}), "array-like"],
    "solver": [StrOptions({"lbfgs", *OPTIMIZERS}), HasMethods(["init", "update"])],
    "dropout": [Interval(numbers.Real, 0, 1, closed="left"), "array-like"],
    "label_smoothing": [Interval(numbers.Real, 0, 1, closed="left")],
    "device": [StrOptions({"auto", "cpu", "gpu"})],
    "dtype": [StrOptions({"auto", "float32", "float64"})],
    "noise_multiplier": [None, Interval(numbers.Real, 0.2, 1e6, closed="both")],
    "clip_norm": [None, Interval(numbers.Real, 0, None, closed="neither")],
    "delta": [Interval(numbers.Real, 1e-12, 1, closed="left")],
}


class OptimizerState:
    """Where a stochastic solver stands, in NumPy arrays: `partial_fit` goes on from it."""

    def __init__(self, solver: Solver, learning_rate: float, state: Any) -> None:
        self.solver, self.learning_rate, self.state, self.steps = solver, learning_rate, state, 0


class BaseMLP(BaseEstimator):
    """The fitting and the outputs of an estimator; its subclasses encode the targets."""

    _parameter_constraints = CONSTRAINTS

    hidden_layer_sizes: Any
    activation: Any
    solver: Any
    alpha: float
    batch_size: Any
    learning_rate: str
    learning_rate_init: float
    power_t: float
    max_iter: int
    shuffle: bool
    random_state: Any
    tol: float
    verbose: Any
    warm_start: bool
    momentum: float
    nesterovs_momentum: bool
    early_stopping: bool
    validation_fraction: float
    beta_1: float
    beta_2: float
    epsilon: float
    n_iter_no_change: float
    max_fun: int
    dropout: Any
    device: str
    dtype: str
    noise_multiplier: float | None
    clip_norm: float | None
    delta: float

    coefs_: list[np.ndarray]
    intercepts_: list[np.ndarray]
    loss_curve_: list[float]
    validation_loss_curve_: list[float] | None
    validation_scores_: Any
    best_validation_score_: Any
    best_loss_: float | None
    _optimizer: OptimizerState

    # What a subclass knows.

    def _loss_name(self) -> str:
        raise NotImplementedError

    def _out_activation(self) -> str:
        raise NotImplementedError

    def _encoded(self, X: Any, y: Any, *, incremental: bool, reset: bool) -> tuple[Any, np.ndarray]:
        """Return X validated, and the targets (N, K) as scikit-learn encodes them."""
        raise NotImplementedError

    def _encoded_targets(self, y: Any, dtype: Any) -> np.ndarray:
        """Return further targets, as of a validation set, encoded (N, K)."""
        raise NotImplementedError

    def _targets(self, encoded: np.ndarray) -> np.ndarray:
        """Return encoded targets as the loss takes them."""
        raise NotImplementedError

    def _score_of(self, encoded: np.ndarray, outputs: np.ndarray, weights: Any) -> float:
        """Return the score of outputs (N, K)."""
        raise NotImplementedError

    # The network.

    def _hidden(self) -> list[int]:
        hidden = self.hidden_layer_sizes
        hidden = list(hidden) if hasattr(hidden, "__iter__") else [hidden]
        if any(size <= 0 for size in hidden):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {hidden}.")
        return hidden

    def _network(self) -> Network:
        """Return the network of the fitted arrays."""
        sizes = [len(self.coefs_[0]), *(len(intercept) for intercept in self.intercepts_)]
        names = self._activations()
        chosen: Any = names[0] if isinstance(self.activation, str) else tuple(names)
        network = Network(tuple(sizes), chosen, self._loss_name())
        return exact_products(network) if self.noise_multiplier is not None else network

    def _activations(self) -> list[str]:
        given = [self.activation] if isinstance(self.activation, str) else list(self.activation)
        return [_OURS.get(name, str(name)) for name in given]

    def _params(self) -> Parameters:
        pairs = zip(self.coefs_, self.intercepts_, strict=True)
        # Contiguous copies: the steps are given them to keep.
        return tuple(Layer(np.array(coef.T, order="C"), bias.copy()) for coef, bias in pairs)  # pyright: ignore

    def _keep(self, params: Any) -> None:
        layers = jax.device_get(params)
        self.coefs_ = [np.array(layer.weight.T, order="C") for layer in layers]
        self.intercepts_ = [np.array(layer.bias) for layer in layers]

    @contextlib.contextmanager
    def _computing(self, dtype: Any, *, fitting: bool = False) -> Iterator[None]:
        """Compute in float64 or float32 and on the device chosen, inside the block alone."""
        try:
            device = jax.devices(None if self.device == "auto" else self.device)[0]
        except RuntimeError as error:
            if fitting:
                raise ValueError(
                    f"device: expected one that JAX can use, got {self.device!r}, and there is none"
                ) from error
            device = jax.devices()[0]  # fitted elsewhere
        with jax.enable_x64(np.dtype(dtype) == np.float64), jax.default_device(device):
            yield

    def _data_dtype(self) -> Any:
        return (np.float64, np.float32) if self.dtype == "auto" else np.dtype(self.dtype)

    # Fitting.

    def _fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        incremental: bool = False,
        validation: tuple[Any, Any, Any] | None = None,
    ) -> Any:
        self._validate_params()
        hidden = self._hidden()
        self._check_settings(hidden, incremental)
        first_pass = not hasattr(self, "coefs_") or (not self.warm_start and not incremental)
        X, encoded = self._encoded(X, y, incremental=incremental, reset=first_pass)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=X.dtype)
            if (sample_weight < 0).any():
                raise ValueError("sample_weight: expected numbers ≥ 0, got a negative one")
            if not sample_weight.any():
                raise ValueError("sample_weight: expected one above 0, got zeros alone")
        sample_weight = self._with_class_weights(encoded, sample_weight)
        self.n_outputs_ = encoded.shape[1]
        rng = check_random_state(self.random_state)
        dtype = X.dtype if first_pass else self.coefs_[0].dtype
        X = _dense(X).astype(dtype, copy=False)
        with self._computing(dtype, fitting=True):
            if validation is not None:
                if self.solver == "lbfgs":
                    raise ValueError("X_val: expected None with the solver lbfgs, got a set")
                validation = self._checked_validation(dtype, *validation)
            # From here on nothing is wrong with what was given: a model that is there may go.
            for name in ("epsilon_spent_", "loss_"):
                vars(self).pop(name, None)
            if first_pass:
                self._initialize([X.shape[1], *hidden, encoded.shape[1]], dtype, rng)
            if self.solver == "lbfgs":
                self._fit_lbfgs(X, encoded, sample_weight)
            else:
                self._fit_stochastic(X, encoded, sample_weight, rng, incremental, validation)
        if not all(np.isfinite(array).all() for array in (*self.coefs_, *self.intercepts_)):
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large "
                "values and need to be preprocessed."
            )
        return self

    def _check_settings(self, hidden: list[int], incremental: bool) -> None:
        """Raise ValueError where settings do not go together."""
        private = self.noise_multiplier is not None
        if self.clip_norm is None and private:
            raise ValueError("clip_norm: expected a number with a noise_multiplier, got None")
        if self.clip_norm is not None and not private:
            raise ValueError("clip_norm: expected None without a noise_multiplier, got a number")
        rates = self._dropout_rates(hidden)
        if self.solver == "lbfgs":
            smoothing = getattr(self, "label_smoothing", 0)
            for name, on in (
                ("dropout", any(rates)),
                ("label_smoothing", smoothing),
                ("noise_multiplier", private),
            ):
                if on:
                    raise ValueError(f"{name}: expected none with the solver lbfgs")
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        if incremental and isinstance(getattr(self, "class_weight", None), str):
            raise ValueError("class_weight: expected weights by class in partial_fit, got balanced")
        if private:
            refused = {
                "early_stopping": self.early_stopping,
                "warm_start": self.warm_start,
                "partial_fit": incremental,
                "class_weight": isinstance(getattr(self, "class_weight", None), str),
            }
            for name, on in refused.items():
                if on:
                    raise ValueError(f"{name}: expected none with a noise_multiplier: no ε is kept")

    def _dropout_rates(self, hidden: list[int]) -> list[float]:
        given = self.dropout
        rates = list(given) if isinstance(given, (Sequence, np.ndarray)) else [given] * len(hidden)
        if len(rates) != len(hidden) or not all(0 <= rate < 1 for rate in rates):
            raise ValueError(
                f"dropout: expected one rate in [0, 1), or {len(hidden)} of them, got {given}"
            )
        return [float(rate) for rate in rates]

    def _with_class_weights(self, encoded: np.ndarray, sample_weight: Any) -> Any:
        return sample_weight

    def _initialize(self, sizes: list[int], dtype: Any, rng: np.random.RandomState) -> None:
        """Draw the first weights, uniformly as Glorot and Bengio say, as scikit-learn does."""
        self.n_iter_ = self.t_ = 0
        self.n_layers_ = len(sizes)
        self.out_activation_ = self._out_activation()
        self.coefs_, self.intercepts_ = [], []
        factor = 2.0 if set(self._activations()) == {"sigmoid"} else 6.0
        for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True):
            bound = np.sqrt(factor / (n_in + n_out))
            self.coefs_.append(rng.uniform(-bound, bound, (n_in, n_out)).astype(dtype))
            self.intercepts_.append(rng.uniform(-bound, bound, n_out).astype(dtype))
        self._reset_curves()

    def _reset_curves(self) -> None:
        self._no_improvement_count = 0
        self._best = None
        if self.solver == "lbfgs":
            return
        self.loss_curve_ = []
        self.validation_loss_curve_ = None
        if self.early_stopping:
            self.validation_scores_, self.best_validation_score_ = [], -np.inf
            self.best_loss_ = None
        else:
            self.validation_scores_ = self.best_validation_score_ = None
            self.best_loss_ = np.inf

    def _fit_lbfgs(self, X: np.ndarray, encoded: np.ndarray, sample_weight: Any) -> None:
        params = self._params()
        examples = (X, self._targets(encoded), _weights(sample_weight, X))
        packed = Packed(self._network(), params, examples, self.alpha)
        options = {"maxfun": self.max_fun, "maxiter": self.max_iter, "gtol": self.tol}
        start = packed.pack(params)
        result: Any = scipy.optimize.minimize(
            packed, start, method="L-BFGS-B", jac=True, options=options
        )
        self.n_iter_ = min(int(result.nit), self.max_iter)
        if result.status != 0:
            warnings.warn(
                f"lbfgs failed to converge after {self.n_iter_} iteration(s) (status="
                f"{result.status}): {result.message}. Increase max_iter or max_fun, or scale the "
                "data.",
                ConvergenceWarning,
                stacklevel=5,
            )
        elif self.verbose:
            print(f"lbfgs converged after {self.n_iter_} iteration(s), loss = {result.fun:.8f}")
        self.loss_ = float(result.fun)
        self._keep(packed.unpack(result.x))

    def _checked_validation(self, dtype: Any, X: Any, y: Any, weights: Any) -> tuple:
        X = validate_data(self, X, accept_sparse=["csr", "csc"], dtype=dtype, reset=False)
        if weights is not None:
            weights = _check_sample_weight(weights, X, dtype=dtype)
        encoded = self._encoded_targets(y, dtype)
        if len(encoded) != X.shape[0]:
            raise ValueError(f"y_val: expected {X.shape[0]} targets, got {len(encoded)}")
        return _dense(X), encoded, weights

    def _split(
        self, X: np.ndarray, encoded: np.ndarray, weights: Any, rng: np.random.RandomState
    ) -> tuple[tuple, tuple]:
        """Return the training part and the validation part, as scikit-learn draws them."""
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
            padded_batch(X, self._targets(encoded), _weights(weights, X), rows)
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

    # What a fitted network yields.

    def _outputs(self, X: Any) -> np.ndarray:
        """Return the predictions (N, K): probabilities, or expected values."""
        check_is_fitted(self)
        dtype = self.coefs_[0].dtype
        X = validate_data(self, X, accept_sparse=["csr", "csc"], dtype=dtype, reset=False)
        with self._computing(dtype):
            return np.asarray(predictions(self._network(), self._params(), _dense(X)))

    def _losses(
        self, network: Network, params: Parameters, X: np.ndarray, encoded: np.ndarray
    ) -> np.ndarray:
        """Return scikit-learn's loss of each example, without the penalty."""
        targets = self._targets(encoded)
        size, losses = 1024, []
        for start in range(0, len(X), size):
            part = slice(start, start + size)
            batch = padded_batch(X[part], targets[part], np.ones(len(X[part])), size)
            found = np.asarray(_example_losses(network, params, batch.inputs, batch.targets))
            losses.append(found[: len(X[part])])
        return np.concatenate(losses)

    def per_example_loss(self, X: Any, y: Any) -> np.ndarray:
        """Return the loss of each example (N,), without the penalty on the weights.

        Args:
            X: (N, D), an array or sparse.
            y: The targets, as for `fit`.

        Returns:
            (N,).
        """
        X, encoded = self._fitted_examples(X, y)
        with self._computing(X.dtype):
            return self._losses(self._network(), self._params(), X, encoded)

    def influence(self, X: Any, y: Any, X_test: Any, y_test: Any) -> np.ndarray:
        """Return ⟨g_n, g'_m⟩ of training and test examples, g the gradient of an example's loss.

        TracIn's influence with the fitted network as the only checkpoint: above 0, a step along the
        training example lowers the test example's loss. `jaxmlp.influence` takes several.

        Args:
            X: (N, D) of the training examples.
            y: Their targets.
            X_test: (M, D).
            y_test: Their targets.

        Returns:
            (N, M).

        References:
            Pruthi, Liu, Kale, Sundararajan, Estimating Training Data Influence by Tracing Gradient
            Descent, 2020.
        """
        X, encoded = self._fitted_examples(X, y)
        X_test, encoded_test = self._fitted_examples(X_test, y_test)
        with self._computing(X.dtype):
            return np.asarray(
                influence(
                    self._network(),
                    [self._params()],
                    X,
                    self._targets(encoded),
                    X_test,
                    self._targets(encoded_test),
                    1.0,
                )
            )

    def self_influence(self, X: Any, y: Any) -> np.ndarray:
        """Return ‖g_n‖² of each example (N,): high for outliers and wrong labels.

        Args:
            X: (N, D).
            y: Their targets.

        Returns:
            (N,).
        """
        X, encoded = self._fitted_examples(X, y)
        with self._computing(X.dtype):
            targets = self._targets(encoded)
            return np.asarray(self_influence(self._network(), [self._params()], X, targets, 1.0))

    def _fitted_examples(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        check_is_fitted(self)
        dtype = self.coefs_[0].dtype
        X = validate_data(self, X, accept_sparse=["csr", "csc"], dtype=dtype, reset=False)
        encoded = self._encoded_targets(y, dtype)
        if len(encoded) != X.shape[0]:
            raise ValueError(f"y: expected {X.shape[0]} targets, got {len(encoded)}")
        return _dense(X), encoded

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's tags: sparse input is taken."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


@jax.jit
def _example_losses(network: Network, params: Parameters, inputs: Any, targets: Any) -> Any:
    z = logits(network, params, inputs)
    losses = jax.vmap(LOSSES[network.loss].value)(z, targets)
    return reported_losses(network, z, losses, targets)


def partially_fits(estimator: Any) -> bool:
    """Tell whether the estimator has `partial_fit`: its solver goes through batches."""
    if estimator.solver == "lbfgs":
        raise AttributeError("partial_fit is only available for stochastic solvers, not lbfgs")
    return True


def validation_set(X: Any, y: Any, weights: Any) -> tuple[Any, Any, Any] | None:
    """Return a validation set as `fit` was given it, or None.

    Raises:
        ValueError: Only a part of it was given.
    """
    if (X is None) != (y is None) or (X is None and weights is not None):
        raise ValueError("X_val, y_val: expected both or neither")
    return None if X is None else (X, y, weights)


def _dense(X: Any) -> np.ndarray:
    return X.toarray() if hasattr(X, "toarray") else np.asarray(X)


def _weights(sample_weight: Any, X: np.ndarray) -> np.ndarray:
    return np.ones(len(X), X.dtype) if sample_weight is None else sample_weight.astype(X.dtype)
