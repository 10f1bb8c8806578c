"""What both estimators share: how they are fitted, and what they yield and explain."""

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import scipy.optimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from jaxmlp.activations import ACTIVATIONS
from jaxmlp.estimators.ensembles import fitted_members
from jaxmlp.estimators.lbfgs import Packed
from jaxmlp.estimators.parameters import about, checked_weights, dense, weights_of
from jaxmlp.estimators.stochastic import Stochastic
from jaxmlp.estimators.training import OptimizerState
from jaxmlp.evaluation import predictions
from jaxmlp.influence import influence, self_influence
from jaxmlp.network import Network, Parameters

_FLOATS = ("float32", "float64", "float16", "bfloat16")


class BaseMLP(Stochastic):
    """The fitting and the outputs of an estimator; its subclasses encode the targets."""

    estimators_: list[Any]

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Leave the estimator as it was where what is done inside fails."""
        before = {
            name: copy.copy(value) if isinstance(value, (list, OptimizerState)) else value
            for name, value in vars(self).items()
        }
        try:
            yield
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

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
        if self.n_ensembles > 1:
            return self._fit_members(X, y, sample_weight, validation)
        vars(self).pop("estimators_", None)
        X, encoded, sample_weight, rng = self._begun(X, y, sample_weight, incremental)
        with self._computing(X.dtype, fitting=True):
            if validation is not None:
                if self.solver == "lbfgs":
                    raise ValueError("X_val: expected None with the solver lbfgs, got a set")
                validation = self._checked_validation(X.dtype, *validation)
            if self.solver == "lbfgs":
                self._fit_lbfgs(X, encoded, sample_weight)
            else:
                self._fit_stochastic(X, encoded, sample_weight, rng, incremental, validation)
        self._check_finite()
        return self

    def _fit_members(self, X: Any, y: Any, sample_weight: Any, validation: Any) -> Any:
        """Fit an ensemble; it has the fitted attributes of its first member."""
        members = fitted_members(self, X, y, sample_weight, validation)
        parameters = self.get_params(deep=False)
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)  # what an earlier fit left; scikit-learn has some of its own beside
        own = {k: value for k, value in vars(members[0]).items() if k not in parameters}
        vars(self).update(own)
        self.estimators_ = members
        return self

    def _begun(
        self, X: Any, y: Any, sample_weight: Any, incremental: bool = False
    ) -> tuple[np.ndarray, np.ndarray, Any, np.random.RandomState]:
        """Check everything, draw the first weights where it is a first fit, and make all dense.

        Returns:
            X, the targets (N, K) encoded, the weights or None, and what draws further.

        Raises:
            ValueError: What does not fit.
        """
        hidden = self._hidden()
        self._check_settings(hidden, incremental)
        first_pass = not hasattr(self, "coefs_") or (not self.warm_start and not incremental)
        X, encoded = self._encoded(X, y, incremental=incremental, reset=first_pass)
        if not first_pass and encoded.shape[1] != self.n_outputs_:
            raise ValueError(f"y: expected {self.n_outputs_} outputs, got {encoded.shape[1]}")
        sample_weight = checked_weights(sample_weight, X)
        sample_weight = self._with_class_weights(encoded, sample_weight)
        if sample_weight is not None and not sample_weight.any():
            raise ValueError("class_weight: expected a weight above 0 for one example, got none")
        self.n_outputs_ = encoded.shape[1]
        rng = check_random_state(self.random_state)
        dtype = X.dtype if first_pass else self.coefs_[0].dtype
        X = dense(X).astype(dtype, copy=False)
        for name in ("epsilon_spent_", "loss_"):
            vars(self).pop(name, None)
        if first_pass:
            self._initialize([X.shape[1], *hidden, encoded.shape[1]], dtype, rng)
        self.out_activation_ = self._out_activation()
        return X, encoded, sample_weight, rng

    def _check_finite(self) -> None:
        if not all(np.isfinite(array).all() for array in (*self.coefs_, *self.intercepts_)):
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large "
                "values and need to be preprocessed."
            )

    def _check_settings(self, hidden: list[int], incremental: bool) -> None:
        """Raise ValueError where settings do not go together."""
        private = self.noise_multiplier is not None
        if self.clip_norm is None and private:
            raise ValueError("clip_norm: expected a number with a noise_multiplier, got None")
        if self.clip_norm is not None and not private:
            raise ValueError(
                f"clip_norm: expected None without a noise_multiplier, got {self.clip_norm}"
            )
        for name in self._activations():
            if name not in ACTIVATIONS:
                raise ValueError(
                    f"activation: expected names of {', '.join(ACTIVATIONS)}, got {name!r}"
                )
        if not isinstance(self.activation, str) and len(self.activation) != len(hidden):
            raise ValueError(
                f"activation: expected one name, or {len(hidden)} of them, got {self.activation}"
            )
        rates = self._dropout_rates(hidden)
        if self.solver == "lbfgs":
            smoothing = getattr(self, "label_smoothing", 0)
            for name, on, got in (
                ("dropout", any(rates), self.dropout),
                ("label_smoothing", smoothing, smoothing),
                ("noise_multiplier", private, self.noise_multiplier),
            ):
                if on:
                    raise ValueError(f"{name}: expected none with the solver lbfgs, got {got}")
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        if incremental and isinstance(getattr(self, "class_weight", None), str):
            raise ValueError("class_weight: expected weights by class in partial_fit, got balanced")
        if private:
            refused = {
                "early_stopping": self.early_stopping,
                "warm_start": self.warm_start,
                "partial_fit": incremental,
                "balanced class_weight": isinstance(getattr(self, "class_weight", None), str),
            }
            for name, on in refused.items():
                if on:
                    raise ValueError(f"{name}: expected none with a noise_multiplier: no ε is kept")

    def _with_class_weights(self, encoded: np.ndarray, sample_weight: Any) -> Any:
        return sample_weight

    def _initialize(self, sizes: list[int], dtype: Any, rng: np.random.RandomState) -> None:
        """Draw the first weights, uniformly as Glorot and Bengio say, as scikit-learn does."""
        self.n_iter_ = self.t_ = 0
        self.n_layers_ = len(sizes)
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
        examples = (X, self._targets(encoded), weights_of(sample_weight, X))
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

    # What a fitted network yields.

    def _outputs(self, X: Any) -> np.ndarray:
        """Return the predictions (N, K): probabilities, or expected values."""
        check_is_fitted(self)
        dtype = self.coefs_[0].dtype
        X = validate_data(self, X, accept_sparse=["csr", "csc"], dtype=dtype, reset=False)
        X, members = dense(X), getattr(self, "estimators_", [self])
        with self._computing(dtype):
            outputs = [predictions(one._fitted_network(), one._params(), X) for one in members]
            return np.asarray(outputs[0]) if len(members) == 1 else np.mean(outputs, axis=0)

    def to_network(self, dtype: Any = "float32") -> tuple[Network, Parameters]:
        """Return the fitted network and its parameters, as the rest of jaxmlp takes them.

        So `jaxmlp.save` writes it, `jaxmlp.exports.export` makes ONNX or a state dict of it, and
        `jaxmlp.loss` has its gradients.

        Args:
            dtype: Of the parameters; float64 needs JAX's 64-bit mode wherever they are used.

        Returns:
            The pair (network, params); with `n_ensembles` above 1 every leaf is (M, …).

        Raises:
            ValueError: Another dtype than float16, bfloat16, float32 and float64.
        """
        check_is_fitted(self)
        if str(getattr(dtype, "__name__", dtype)) not in _FLOATS:  # np.float32 has a name
            raise ValueError(f"dtype: expected one of {', '.join(_FLOATS)}, got {dtype!r}")
        members = [one._params() for one in getattr(self, "estimators_", [self])]
        params = jax.tree.map(lambda *leaves: np.stack(leaves).astype(dtype), *members)
        if len(members) == 1:
            params = jax.tree.map(lambda leaf: leaf[0], params)
        return self._fitted_network(), params

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
            return self._losses(self._fitted_network(), self._params(), X, encoded)

    def influence(self, X: Any, y: Any, X_test: Any, y_test: Any) -> np.ndarray:
        """Return ⟨g_n, g'_m⟩ of training and test examples, g the gradient of `per_example_loss`.

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
        X_test, encoded_test = self._fitted_examples(X_test, y_test, ("X_test", "y_test"))
        with self._computing(X.dtype):
            return np.asarray(
                influence(
                    self._fitted_network(),
                    [self._params()],
                    X,
                    self._targets(encoded),
                    X_test,
                    self._targets(encoded_test),
                    self._learning_rate_of_one(),
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
            rate = self._learning_rate_of_one()
            return np.asarray(
                self_influence(self._fitted_network(), [self._params()], X, targets, rate)
            )

    def _learning_rate_of_one(self) -> float:
        """Return what makes our gradients, twice, those of the losses as scikit-learn has them."""
        return self.n_outputs_**-2.0 if self._fitted_loss() == "squared_error" else 1.0

    def _fitted_examples(
        self, X: Any, y: Any, names: tuple[str, str] = ("X", "y")
    ) -> tuple[np.ndarray, np.ndarray]:
        check_is_fitted(self)
        if hasattr(self, "estimators_"):
            raise ValueError(
                f"n_ensembles: expected 1 for the losses and gradients of a network, got "
                f"{len(self.estimators_)}: ask one of estimators_"
            )
        dtype = self.coefs_[0].dtype
        with about(names[0]):
            X = validate_data(self, X, accept_sparse=["csr", "csc"], dtype=dtype, reset=False)
        encoded = self._encoded_targets(y, dtype, names[1])
        if len(encoded) != X.shape[0]:
            raise ValueError(f"{names[1]}: expected {X.shape[0]} targets, got {len(encoded)}")
        return dense(X), encoded

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's tags: sparse input is taken."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
