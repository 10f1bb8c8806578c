"""`MLPRegressor`: scikit-learn's, trained with our gradient."""

from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import column_or_1d
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_array, validate_data

from jaxmlp.estimators.base import BaseMLP
from jaxmlp.estimators.parameters import CONSTRAINTS, partially_fits, validation_set


class MLPRegressor(RegressorMixin, BaseMLP):
    """A multi-layer perceptron for numbers: scikit-learn's `MLPRegressor` on JAX.

    All parameters of scikit-learn's have its meaning and its defaults; docs/scikit-learn.md lists
    the differences. Those of `MLPClassifier` that are not listed here are the same here.

    Args:
        loss: "squared_error", ½ (z − t)², or "poisson", half the Poisson deviance with e^z the
            prediction and targets not negative.
        hidden_layer_sizes: As for `MLPClassifier`, and so are the others.
        activation: See there.
        solver: See there.
        alpha: See there.
        batch_size: See there.
        learning_rate: See there.
        learning_rate_init: See there.
        power_t: See there.
        max_iter: See there.
        shuffle: See there.
        random_state: See there.
        tol: See there.
        verbose: See there.
        warm_start: See there.
        momentum: See there.
        nesterovs_momentum: See there.
        early_stopping: See there; the score is R².
        validation_fraction: See there.
        beta_1: See there.
        beta_2: See there.
        epsilon: See there.
        n_iter_no_change: See there.
        max_fun: See there.
        dropout: See there.
        device: See there.
        dtype: See there.
        noise_multiplier: See there.
        clip_norm: See there.
        delta: See there.
        n_ensembles: See there; their expected values are averaged.

    Example:
        >>> import numpy as np
        >>> from jaxmlp import MLPRegressor
        >>> X = np.linspace(-1, 1, 50)[:, None]
        >>> model = MLPRegressor(
        ...     hidden_layer_sizes=(20,), activation="tanh", solver="lbfgs", alpha=0, max_iter=500,
        ...     random_state=0,
        ... )
        >>> bool(model.fit(X, X[:, 0] ** 2).score(X, X[:, 0] ** 2) > 0.999)
        True
    """

    _parameter_constraints = {
        **CONSTRAINTS,
        "loss": [StrOptions({"squared_error", "poisson"})],
    }

    def __init__(
        self,
        loss: str = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        solver: Any = "adam",
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: Any = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        dropout: Any = 0.0,
        device: str = "auto",
        dtype: str = "auto",
        noise_multiplier: float | None = None,
        clip_norm: float | None = None,
        delta: float = 1e-5,
        n_ensembles: int = 1,
    ) -> None:
        self.loss = loss
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.dropout = dropout
        self.device = device
        self.dtype = dtype
        self.noise_multiplier = noise_multiplier
        self.clip_norm = clip_norm
        self.delta = delta
        self.n_ensembles = n_ensembles

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> "MLPRegressor":
        """Fit the network to examples.

        Args:
            X: (N, D), an array, a data frame or sparse.
            y: (N,) or (N, K) numbers.
            sample_weight: (N,), not negative, or None.
            X_val: (M, D) of a validation set, or None.
            y_val: Its targets.
            sample_weight_val: Its weights, or None.

        Returns:
            The estimator.
        """
        validation = validation_set(X_val, y_val, sample_weight_val)
        with self._all_or_nothing():
            return self._fit(X, y, sample_weight, validation=validation)

    @available_if(partially_fits)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> "MLPRegressor":
        """Go on with one epoch over the examples given.

        Args:
            X: (N, D).
            y: (N,) or (N, K).
            sample_weight: (N,) or None.

        Returns:
            The estimator.
        """
        with self._all_or_nothing():
            return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> np.ndarray:
        """Return the expected values (N,), or (N, K)."""
        outputs = self._outputs(X)
        return outputs.ravel() if outputs.shape[1] == 1 else outputs

    # What `BaseMLP` asks for.

    def _loss_name(self) -> str:
        return self.loss

    def _fitted_loss(self) -> str:
        return "poisson" if self.out_activation_ == "exp" else "squared_error"

    def _out_activation(self) -> str:
        return "exp" if self.loss == "poisson" else "identity"

    def _encoded(self, X: Any, y: Any, *, incremental: bool, reset: bool) -> tuple[Any, np.ndarray]:
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse=["csr", "csc"],
            multi_output=True,
            y_numeric=True,
            dtype=self._data_dtype(),
            reset=reset,
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        self._check_counts(y, "y", self.loss)
        return X, y.reshape(len(y), -1).astype(X.dtype)

    def _encoded_targets(self, y: Any, dtype: Any, name: str = "y") -> np.ndarray:
        y = np.asarray(check_array(y, ensure_2d=False, input_name=name), dtype)
        self._check_counts(y, name, self._fitted_loss())
        encoded = y.reshape(len(y), -1)
        if encoded.shape[1] != self.n_outputs_:
            raise ValueError(f"{name}: expected {self.n_outputs_} outputs, got {encoded.shape[1]}")
        return encoded

    def _check_counts(self, y: np.ndarray, name: str, loss: str) -> None:
        if loss == "poisson" and (y < 0).any():
            raise ValueError(f"{name}: expected numbers ≥ 0 for the Poisson loss, got {y.min()}")

    def _targets(self, encoded: np.ndarray) -> np.ndarray:
        return encoded

    def _score_of(self, encoded: np.ndarray, outputs: np.ndarray, weights: Any) -> float:
        return float(r2_score(encoded, outputs, sample_weight=weights))
