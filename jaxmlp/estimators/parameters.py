"""The parameters of an estimator, the network that they describe, and what it computes."""

import contextlib
import dataclasses
import numbers
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.neural_network import MLPClassifier as TheirClassifier
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight

from jaxmlp.activations import ACTIVATIONS
from jaxmlp.estimators.epochs import reported_losses
from jaxmlp.evaluation import padded_batch
from jaxmlp.gradients import logits
from jaxmlp.losses import LOSSES
from jaxmlp.network import Layer, Network, Parameters
from jaxmlp.privacy.gradient import exact_products
from jaxmlp.training.optimizers import OPTIMIZERS

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
    "n_ensembles": [Interval(numbers.Integral, 1, None, closed="left")],
}


class Parameterized(BaseEstimator):
    """What an estimator was given and fitted; its subclasses encode the targets, and fit."""

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
    n_ensembles: int

    n_outputs_: int
    coefs_: list[np.ndarray]
    intercepts_: list[np.ndarray]
    loss_curve_: list[float]
    validation_loss_curve_: list[float] | None
    validation_scores_: Any
    best_validation_score_: Any
    best_loss_: float | None
    epsilon_spent_: float

    # What a subclass knows.

    def _loss_name(self) -> str:
        raise NotImplementedError

    def _out_activation(self) -> str:
        raise NotImplementedError

    def _encoded(self, X: Any, y: Any, *, incremental: bool, reset: bool) -> tuple[Any, np.ndarray]:
        """Return X validated, and the targets (N, K) as scikit-learn encodes them."""
        raise NotImplementedError

    def _encoded_targets(self, y: Any, dtype: Any, name: str = "y") -> np.ndarray:
        """Return further targets, as of a validation set, encoded (N, K)."""
        raise NotImplementedError

    def _targets(self, encoded: np.ndarray) -> np.ndarray:
        """Return encoded targets as the loss takes them."""
        raise NotImplementedError

    def _score_of(self, encoded: np.ndarray, outputs: np.ndarray, weights: Any) -> float:
        """Return the score of outputs (N, K)."""
        raise NotImplementedError

    def _reset_curves(self) -> None:
        """Begin the records of losses and scores anew."""
        raise NotImplementedError

    # The network.

    def _hidden(self) -> list[int]:
        hidden = self.hidden_layer_sizes
        hidden = list(hidden) if hasattr(hidden, "__iter__") else [hidden]
        if not all(isinstance(size, numbers.Integral) for size in hidden):
            raise ValueError(f"hidden_layer_sizes: expected whole numbers, got {hidden}")
        if any(size <= 0 for size in hidden):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {hidden}.")
        return [int(size) for size in hidden]

    def _network(self) -> Network:
        """Return the network of the fitted arrays."""
        sizes = [len(self.coefs_[0]), *(len(intercept) for intercept in self.intercepts_)]
        names = self._activations()
        chosen: Any = names[0] if isinstance(self.activation, str) else tuple(names)
        network = Network(tuple(sizes), chosen, self._loss_name())
        return exact_products(network) if self.noise_multiplier is not None else network

    def _fitted_network(self) -> Network:
        """Return the network that was fitted: with its loss, whatever the parameter is by now."""
        return dataclasses.replace(self._network(), loss=self._fitted_loss())

    def _fitted_loss(self) -> str:
        return self._loss_name()

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

    def _dropout_rates(self, hidden: list[int]) -> list[float]:
        given = self.dropout
        rates = list(given) if isinstance(given, (Sequence, np.ndarray)) else [given] * len(hidden)
        known = all(isinstance(rate, numbers.Real) and 0 <= float(rate) < 1 for rate in rates)
        if len(rates) != len(hidden) or not known:
            raise ValueError(
                f"dropout: expected one rate in [0, 1), or {len(hidden)} of them, got {given}"
            )
        return [float(rate) for rate in rates]

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


@jax.jit
def _example_losses(network: Network, params: Parameters, inputs: Any, targets: Any) -> Any:
    z = logits(network, params, inputs)
    losses = jax.vmap(LOSSES[network.loss].value)(z, targets)
    return reported_losses(network, z, losses, targets)


def partially_fits(estimator: Any) -> bool:
    """Tell whether the estimator has `partial_fit`: one network, a solver that takes batches."""
    if estimator.solver == "lbfgs":
        raise AttributeError("partial_fit is only available for stochastic solvers, not lbfgs")
    if estimator.n_ensembles != 1:
        raise AttributeError("partial_fit is only available for one network, n_ensembles=1")
    return True


def validation_set(X: Any, y: Any, weights: Any) -> tuple[Any, Any, Any] | None:
    """Return a validation set as `fit` was given it, or None.

    Raises:
        ValueError: Only a part of it was given.
    """
    if (X is None) != (y is None) or (X is None and weights is not None):
        parts = {"X_val": X, "y_val": y, "sample_weight_val": weights}
        given = ", ".join(name for name, value in parts.items() if value is not None)
        raise ValueError(f"X_val, y_val: expected both or nothing of validation, got {given}")
    return None if X is None else (X, y, weights)


@contextlib.contextmanager
def about(name: str) -> Iterator[None]:
    """Name an argument in front of what scikit-learn says of it, which has names of its own."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if name in ("X", "sample_weight") or name in str(error):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: {error}") from error


def dense(X: Any) -> np.ndarray:
    """Return an array of what may be sparse."""
    return X.toarray() if hasattr(X, "toarray") else np.asarray(X)


def checked_weights(weights: Any, X: Any, name: str = "sample_weight") -> np.ndarray | None:
    """Return the weights of the rows of X in its dtype, or None where there are none.

    Raises:
        ValueError: There is a negative one, or none above 0.
    """
    if weights is None:
        return None
    with about(name):
        weights = _check_sample_weight(weights, X, dtype=X.dtype)
    if (weights < 0).any():
        raise ValueError(f"{name}: expected numbers ≥ 0, got {weights.min()}")
    if not weights.any():
        raise ValueError(f"{name}: expected one above 0, got zeros alone")
    return weights


def weights_of(sample_weight: Any, X: np.ndarray) -> np.ndarray:
    """Return the weights (N,) in the dtype of X, 1 where there are none."""
    return np.ones(len(X), X.dtype) if sample_weight is None else sample_weight.astype(X.dtype)
