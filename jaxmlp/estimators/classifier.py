"""`MLPClassifier`: scikit-learn's, trained with our gradient."""

import dataclasses
import numbers
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import column_or_1d
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call, type_of_target, unique_labels
from sklearn.utils.validation import validate_data

from jaxmlp.estimators.base import BaseMLP
from jaxmlp.estimators.parameters import CONSTRAINTS, dense, partially_fits, validation_set
from jaxmlp.network import Layer, Network, Parameters


class MLPClassifier(ClassifierMixin, BaseMLP):
    """A multi-layer perceptron for classes: scikit-learn's `MLPClassifier` on JAX.

    All parameters of scikit-learn's have its meaning and its defaults; docs/scikit-learn.md lists
    the differences. These are ours:

    Args:
        hidden_layer_sizes: The units of each hidden layer, or one number.
        activation: scikit-learn's "identity", "logistic", "tanh" or "relu", or one of
            `jaxmlp.activations.ACTIVATIONS`; or one for each hidden layer.
        solver: "sgd", "adam" or "lbfgs"; or one of `jaxmlp.training.optimizers.OPTIMIZERS`, which
            takes `learning_rate_init`; or any transformation of optax, which has its own.
        alpha: The L2 penalty, as scikit-learn divides it: α‖W‖²/2 over the batch's weight.
        batch_size: Examples a step, or "auto" for min(200, N).
        learning_rate: "constant", "invscaling" or "adaptive", for the solver "sgd".
        learning_rate_init: The first learning rate.
        power_t: The exponent of "invscaling".
        max_iter: The most epochs.
        shuffle: Whether the examples are permuted anew in every epoch.
        random_state: Draws the first weights, the validation split, the permutations, dropout.
        tol: What the loss, or the score, must improve by.
        verbose: Whether to print the loss of every epoch.
        warm_start: Whether `fit` goes on from the last fit's weights.
        momentum: Of "sgd".
        nesterovs_momentum: Whether it is Nesterov's.
        early_stopping: Stop by the score of a validation set, and keep the best weights.
        validation_fraction: The part of the examples in it, where `fit` is given none.
        beta_1: Of "adam".
        beta_2: Of "adam".
        epsilon: Of "adam".
        n_iter_no_change: For how many epochs there may be no improvement.
        max_fun: The most evaluations of the loss by "lbfgs".
        class_weight: class → weight, "balanced" (N / (classes · examples of the class)), or None.
        dropout: The part of each hidden layer's units dropped in a step: one rate, or one for each.
        label_smoothing: α in [0, 1): targets are mixed with the uniform distribution.
        device: "auto", "cpu" or "gpu".
        dtype: "auto" computes in the input's dtype, float64 for most; "float32" is faster.
        noise_multiplier: σ for private training (DP-SGD), or None. The loss is not recorded then,
            all `max_iter` epochs are run, batches are drawn by Poisson sampling with `batch_size`
            the expected size, and they and the noise do not depend on `random_state`.
        clip_norm: The norm that each example's gradient is clipped to, in private training.
        delta: δ of private training; `epsilon_spent_` is its ε.
        n_ensembles: How many networks, with first weights, permutations and dropout of their own,
            are trained together; their probabilities are averaged.

    Attributes:
        classes_: The class labels.
        coefs_: The weights (n_in, n_out) of each layer.
        intercepts_: The biases (n_out,).
        loss_: The last epoch's loss.
        loss_curve_: The loss of every epoch.
        validation_loss_curve_: The validation set's, without the penalty; None without one.
        n_iter_: How many epochs were run.
        estimators_: The members of an ensemble, each a fitted estimator of one network, with an
            integer `random_state` that fits it again alone. What stands above is then the first's.

    Example:
        >>> import numpy as np
        >>> from jaxmlp import MLPClassifier
        >>> X = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> exclusive_or = ["equal", "other", "other", "equal"]
        >>> model = MLPClassifier((8,), solver="lbfgs", activation="tanh", random_state=0)
        >>> model.fit(X, exclusive_or).predict(X).tolist()
        ['equal', 'other', 'other', 'equal']
    """

    _parameter_constraints = {
        **CONSTRAINTS,
        "class_weight": [StrOptions({"balanced"}), dict, None],
    }

    def __init__(
        self,
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
        class_weight: Any = None,
        dropout: Any = 0.0,
        label_smoothing: float = 0.0,
        device: str = "auto",
        dtype: str = "auto",
        noise_multiplier: float | None = None,
        clip_norm: float | None = None,
        delta: float = 1e-5,
        n_ensembles: int = 1,
    ) -> None:
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
        self.class_weight = class_weight
        self.dropout = dropout
        self.label_smoothing = label_smoothing
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
    ) -> "MLPClassifier":
        """Fit the network to examples.

        Args:
            X: (N, D), an array, a data frame or sparse.
            y: (N,) classes of any kind, or (N, K) zeros and ones for several labels each.
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
    def partial_fit(
        self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None
    ) -> "MLPClassifier":
        """Go on with one epoch over the examples given.

        Args:
            X: (N, D).
            y: Their classes.
            sample_weight: (N,) or None.
            classes: All classes there will ever be: needed at the first call.

        Returns:
            The estimator.
        """
        with self._all_or_nothing():
            if _check_partial_fit_first_call(self, classes):
                self._label_binarizer = LabelBinarizer()
                several = type_of_target(y).startswith("multilabel")
                self._label_binarizer.fit(y if several else classes)
            return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of each example (N,), or (N, K) of several labels."""
        outputs = self._outputs(X)
        labels: Any = self._label_binarizer.inverse_transform(_column(outputs))
        return labels

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of every class (N, K), in the order of `classes_`."""
        outputs = self._outputs(X)
        return np.hstack([1 - outputs, outputs]) if outputs.shape[1] == 1 else outputs

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithms of `predict_proba`."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def to_network(
        self, dtype: Any = "float32", *, per_class: bool = False
    ) -> tuple[Network, Parameters]:
        """Return the fitted network and its parameters, as the rest of jaxmlp takes them.

        Its outputs are the columns of `predict_proba`; of two classes the second alone, unless an
        output for each is asked for. So their names can be kept, as those of more can:
        `jaxmlp.save(run, *model.to_network(per_class=True), classes=model.classes_)`.

        Args:
            dtype: Of the parameters; float64 needs JAX's 64-bit mode wherever they are used.
            per_class: Whether the network of two classes is one of two outputs and the softmax: the
                first's weights and bias are 0, so that its probabilities and its loss are the same.

        Returns:
            The pair (network, params); with `n_ensembles` above 1 every leaf is (M, …).

        Raises:
            ValueError: Another dtype than float16, bfloat16, float32 and float64.
        """
        network, params = super().to_network(dtype)
        if not per_class or self.n_outputs_ > 1 or len(self.classes_) != 2 or self._several():
            return network, params
        weight, bias = (np.asarray(array) for array in params[-1])
        own: Any = (
            np.concatenate([np.zeros_like(weight), weight], axis=-2),
            np.concatenate([np.zeros_like(bias), bias], axis=-1),
        )
        sizes, loss = (*network.sizes[:-1], 2), "softmax_cross_entropy"
        return dataclasses.replace(network, sizes=sizes, loss=loss), (*params[:-1], Layer(*own))

    # What `BaseMLP` asks for.

    def _loss_name(self) -> str:
        softmax = self.out_activation_ == "softmax"
        return "softmax_cross_entropy" if softmax else "sigmoid_binary_cross_entropy"

    def _out_activation(self) -> str:
        return "softmax" if self._label_binarizer.y_type_ == "multiclass" else "logistic"

    def _encoded(self, X: Any, y: Any, *, incremental: bool, reset: bool) -> tuple[Any, np.ndarray]:
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse=["csr", "csc"],
            multi_output=True,
            dtype=self._data_dtype(),
            reset=reset,
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if not hasattr(self, "classes_") or (not self.warm_start and not incremental):
            self._label_binarizer = LabelBinarizer().fit(y)
            self.classes_ = self._label_binarizer.classes_
        else:
            self._of_its_kind(y, "y")
            classes = unique_labels(y)
            if self.warm_start and set(classes) != set(self.classes_):
                raise ValueError(
                    "warm_start can only be used where `y` has the same classes as in the previous "
                    f"call to fit. Previously got {self.classes_}, `y` has {classes}"
                )
            if len(np.setdiff1d(classes, self.classes_, assume_unique=True)):
                raise ValueError(
                    f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. "
                    f"'y' has {classes}."
                )
        return X, self._label_binarizer.transform(y).astype(bool)

    def _encoded_targets(self, y: Any, dtype: Any, name: str = "y") -> np.ndarray:
        y = self._of_its_kind(y, name)
        if not self._several():
            y = column_or_1d(y)
            unknown = np.setdiff1d(np.unique(y), self.classes_)
            if len(unknown):
                raise ValueError(
                    f"{name}: expected the classes {self.classes_}, got {unknown} as well"
                )
        return self._label_binarizer.transform(y).astype(bool)

    def _several(self) -> bool:
        """Tell whether an example may have several labels."""
        return self._label_binarizer.y_type_.startswith("multilabel")

    def _of_its_kind(self, y: Any, name: str) -> np.ndarray:
        """Return targets that are classes where the estimator has learnt classes, or labels."""
        y = dense(y)
        several = type_of_target(y, input_name=name).startswith("multilabel")
        if several != self._several():
            kinds = "one class (N,)", "zeros and ones of several labels (N, K)"
            raise ValueError(f"{name}: expected {kinds[not several]}, got {kinds[several]}")
        return y

    def _targets(self, encoded: np.ndarray) -> np.ndarray:
        if self.out_activation_ == "softmax":
            return np.argmax(encoded, axis=1).astype(np.int32)
        return encoded.astype(self.coefs_[0].dtype)

    def _with_class_weights(self, encoded: np.ndarray, sample_weight: Any) -> Any:
        if self.class_weight is None:
            return sample_weight
        if encoded.shape[1] > 1 and self._label_binarizer.y_type_ != "multiclass":
            raise ValueError(
                f"class_weight: expected None for several labels, got {self.class_weight}"
            )
        if isinstance(self.class_weight, dict):
            # As scikit-learn: a fold may lack a class that has a weight; a misspelt one is told.
            unweighted = [label for label in self.classes_ if label not in self.class_weight]
            for label, weight in self.class_weight.items():
                if unweighted and label not in self.classes_:
                    raise ValueError(f"class_weight: expected classes of y, got {label!r}")
                if not isinstance(weight, numbers.Real) or not 0 <= float(weight) < np.inf:
                    raise ValueError(f"class_weight: expected numbers ≥ 0, got {weight!r}")
        y: Any = self._label_binarizer.inverse_transform(encoded.astype(int))
        present = np.unique(y)
        weights = dict(
            zip(present, compute_class_weight(self.class_weight, classes=present, y=y), strict=True)
        ) if self.class_weight == "balanced" else self.class_weight  # fmt: skip
        each = np.array([weights.get(label, 1.0) for label in y])
        return each if sample_weight is None else each * sample_weight

    def _score_of(self, encoded: np.ndarray, outputs: np.ndarray, weights: Any) -> float:
        truth = self._label_binarizer.inverse_transform(encoded.astype(int))
        found = self._label_binarizer.inverse_transform(_column(outputs))
        return float(accuracy_score(truth, found, sample_weight=weights))

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's tags: several labels are taken."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


def _column(outputs: np.ndarray) -> np.ndarray:
    return outputs.ravel() if outputs.shape[1] == 1 else outputs
