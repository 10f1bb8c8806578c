"""The fits of a search, settings × folds: what of them goes together is trained ahead of the rest.

scikit-learn's search then goes through them as ever, one by one, with stand-ins for the estimator:
their `fit` takes over what was trained, or where that is nothing fits in the ordinary way.
"""

from collections.abc import Sequence
from functools import wraps
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing, check_array
from sklearn.utils.validation import _check_method_params, _num_samples

from jaxmlp.estimators.classifier import MLPClassifier
from jaxmlp.estimators.parameters import dense
from jaxmlp.estimators.regressor import MLPRegressor
from jaxmlp.estimators.slots import Program
from jaxmlp.estimators.together import Fit, fit_together, goes_together, prepared_fit

_FITS = MLPClassifier.fit, MLPRegressor.fit


class Sweep:
    """The fits of a search in scikit-learn's order, setting by setting, and then the refit."""

    def __init__(
        self, estimator: Any, splits: Sequence[Any], X: Any, y: Any, params: dict[str, Any]
    ) -> None:
        self.estimator, self.splits, self.X, self.y = estimator, splits, X, y
        self.params = {name: value for name, value in params.items() if name != "groups"}
        weight = "sample_weight"
        if isinstance(estimator, Pipeline):
            weight = f"{estimator.steps[-1][0]}__{weight}"
        self.weight = weight
        self.fits = []
        self.seconds = np.zeros((0, len(splits)))
        self.programs: dict[tuple, Program] = {}
        self.asked = 0

    def train(self, candidates: Sequence[dict[str, Any]]) -> None:
        """Train the fits that go together.

        Args:
            candidates: The settings.

        Raises:
            ValueError: A setting of no parameter.
            MemoryError: There is no room for a fit.
        """
        n_splits = len(self.splits)
        self.fits: list[tuple[Any, Fit] | None] = [None] * (len(candidates) * n_splits)
        self.asked = 0
        estimators = [self._with(candidate) for candidate in candidates]
        blocks = Blocks(self.X)
        every = np.arange(_num_samples(self.X))
        for split, (rows, _) in enumerate(self.splits):
            rows = every[rows]  # numbers also of a mask, and counted from 0
            X, y = _safe_indexing(self.X, rows), _safe_indexing(self.y, rows)
            params: Any = _check_method_params(self.X, self.params, indices=rows)
            transformed: dict[tuple, Any] = {}
            for number, estimator in enumerate(estimators):
                fresh = clone(estimator)
                own = candidates[number]
                try:
                    done = self._prepared(fresh, X, y, params, blocks, rows, transformed, own)
                except Exception:  # noqa: BLE001 whatever it is, the ordinary fit will raise it
                    done = None
                self.fits[number * n_splits + split] = done
        fit_together([done[1] for done in self.fits if done is not None], self.programs)
        shares = [0.0 if done is None else done[1].seconds for done in self.fits]
        self.seconds = np.reshape(shares, (len(candidates), n_splits))

    def _with(self, candidate: dict[str, Any]) -> Any:
        estimator: Any = clone(self.estimator)
        values: Any = clone(candidate, safe=False)
        return estimator.set_params(**values)

    def _prepared(
        self,
        estimator: Any,
        X: Any,
        y: Any,
        params: dict[str, Any],
        blocks: "Blocks | None" = None,
        rows: Any = None,
        transformed: dict[tuple, Any] | None = None,
        candidate: dict[str, Any] | None = None,
    ) -> tuple[Any, Fit] | None:
        """Return the estimator, all but its last step fitted, and the prepared fit of that.

        Or None where it does not go together with others.
        """
        given = {name for name, value in params.items() if value is not None}
        if not given <= {self.weight}:
            return None
        last = estimator
        if isinstance(estimator, Pipeline):
            last = estimator.steps[-1][1]
            if estimator.memory is not None or getattr(estimator, "transform_input", None):
                return None
        if type(last).fit not in _FITS or not goes_together(last):
            return None
        block = None
        if last is not estimator and len(estimator.steps) > 1:
            rows, transformed = None, {} if transformed is None else transformed
            prefix = f"{estimator.steps[-1][0]}__"
            earlier = {k: v for k, v in (candidate or {}).items() if not k.startswith(prefix)}
            key = (tuple((k, id(v)) for k, v in sorted(earlier.items())), last.dtype)
            if key not in transformed:
                head = estimator[:-1]
                inputs = head.fit_transform(X, y)
                transformed[key] = head.steps, checked_inputs(last, inputs), inputs
            steps, block, X = transformed[key]
            estimator.steps[:-1] = steps
        elif blocks is not None:
            block = blocks.of(last)
        return estimator, prepared_fit(last, X, y, params.get(self.weight), block, rows)

    def fitted(self, estimator: Any, X: Any, y: Any, params: dict[str, Any]) -> Any:
        """Fit an estimator, in scikit-learn's order of calls, by what was trained ahead.

        Args:
            estimator: One with the setting whose turn it is; after all of them the best's.
            X: The examples of a fold, or all.
            y: Their targets.
            params: What `fit` is given beside them.

        Returns:
            The estimator.

        Raises:
            Exception: As `fit` of the estimator.
        """
        done, refit = None, self.asked >= len(self.fits)
        if refit:
            done = self._refitted(clone(estimator), X, y, params)
        else:
            done, self.fits[self.asked] = self.fits[self.asked], None
        self.asked += 1
        if done is None:
            return estimator.fit(X, y, **params)
        whole, fit = done
        fit.taken_over()
        vars(estimator).update(vars(whole))
        return estimator

    def _refitted(self, estimator: Any, X: Any, y: Any, params: Any) -> tuple[Any, Fit] | None:
        """Return a fit to all examples by a program that is compiled, or None without one."""
        try:
            done = self._prepared(estimator, X, y, params)
        except Exception:  # noqa: BLE001 whatever it is, the ordinary fit will raise it
            return None
        if done is None:
            return None
        fit = done[1]
        program = self.programs.get(fit.kind)
        if program is None or not program.takes([fit], fit.batches[1] is None):
            return None
        fit_together([fit], self.programs)
        return done

    def stand_in(self) -> Any:
        """Return an estimator that is the search's but for `fit`, and that but for its class."""
        kind: Any = type(self.estimator)
        sweep = self

        @wraps(kind.fit)
        def fit(self: Any, X: Any, y: Any = None, **params: Any) -> Any:
            self.__class__ = kind
            return sweep.fitted(self, X, y, params)

        result: Any = clone(self.estimator)
        result.__class__ = type(kind.__name__, (kind,), {"fit": fit, "__module__": kind.__module__})
        return result


class Blocks:
    """The inputs of all folds, dense and checked, once for each dtype that is computed in."""

    def __init__(self, X: Any) -> None:
        self.X = X
        self.checked: dict[str, np.ndarray] = {}

    def of(self, estimator: Any) -> np.ndarray:
        """Return the inputs (N, D) for an estimator.

        Raises:
            ValueError: Some are no finite numbers.
        """
        if estimator.dtype not in self.checked:
            self.checked[estimator.dtype] = checked_inputs(estimator, self.X)
        return self.checked[estimator.dtype]


def checked_inputs(estimator: Any, X: Any) -> np.ndarray:
    """Return inputs (N, D) as an estimator computes with them."""
    kinds: Any = ["csr", "csc"]
    return dense(check_array(X, accept_sparse=kinds, dtype=estimator._data_dtype()))
