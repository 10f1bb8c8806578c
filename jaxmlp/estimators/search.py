"""`SweepSearchCV`: a search by cross-validation whose fits are trained together."""

import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
from sklearn import get_config
from sklearn.base import is_classifier
from sklearn.metrics import check_scoring
from sklearn.model_selection import GridSearchCV, ParameterGrid, ParameterSampler, check_cv
from sklearn.pipeline import Pipeline
from sklearn.utils import indexable
from sklearn.utils._param_validation import Interval

from jaxmlp.estimators.base import BaseMLP
from jaxmlp.estimators.sweep import Sweep


class SweepSearchCV(GridSearchCV):
    """scikit-learn's `GridSearchCV` or `RandomizedSearchCV`, with the fits trained together.

    All fits of one shape, settings × folds, go through one compiled program, a few side by side on
    every core. What is found is what `GridSearchCV` finds with the same estimator, folds and
    integer `random_state`, and so are the methods and the fitted attributes. docs/scikit-learn.md
    says which fits are trained one after another in the ordinary way.

    Args:
        estimator: An `MLPClassifier` or `MLPRegressor`, or a `Pipeline` that ends with one.
        param_grid: name → list of values, or a list of such: all combinations are tried. With
            `n_iter` the values may be distributions, as for `RandomizedSearchCV`.
        n_iter: How many settings to draw, or None for all.
        scoring: As for `GridSearchCV`, and so are the others.
        refit: See there.
        cv: See there.
        verbose: See there.
        random_state: Draws the settings where there is `n_iter`.
        error_score: The score of a fit that failed, or "raise".
        return_train_score: See there.

    Attributes:
        cv_results_: As of `GridSearchCV`; `mean_fit_time` has a fit's share of the time of all
            that it was trained with.
        best_estimator_: The best, fitted to all examples.
        best_score_: Its mean score.
        best_params_: Its setting.
        best_index_: Its place in `cv_results_`.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from jaxmlp import MLPClassifier, SweepSearchCV
        >>> model = MLPClassifier((10,), max_iter=1000, learning_rate_init=0.01, random_state=0)
        >>> search = SweepSearchCV(model, {"alpha": [1e-4, 1e-2], "activation": ["relu", "tanh"]})
        >>> bool(search.fit(*load_iris(return_X_y=True)).best_score_ > 0.95)
        True
    """

    n_jobs = None  # scikit-learn's part of the work is done in this process
    pre_dispatch = 1

    _parameter_constraints = {
        **GridSearchCV._parameter_constraints,
        "param_grid": [dict, list],
        "n_iter": [Interval(numbers.Integral, 1, None, closed="left"), None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator: Any,
        param_grid: Any,
        *,
        n_iter: int | None = None,
        scoring: Any = None,
        refit: Any = True,
        cv: Any = None,
        verbose: int = 0,
        random_state: Any = None,
        error_score: Any = np.nan,
        return_train_score: bool = False,
    ) -> None:
        self.estimator = estimator
        self.param_grid = param_grid
        self.n_iter = n_iter
        self.scoring = scoring
        self.refit = refit
        self.cv = cv
        self.verbose = verbose
        self.random_state = random_state
        self.error_score = error_score
        self.return_train_score = return_train_score

    def fit(self, X: Any, y: Any = None, **params: Any) -> "SweepSearchCV":
        """Try all settings on all folds, and fit the best to all examples.

        Args:
            X: (N, D), an array, a data frame or sparse.
            y: Their targets.
            params: `sample_weight` (N,) for the estimator and the scores, `groups` for the folds.

        Returns:
            The search.

        Raises:
            TypeError: The estimator is not one of ours.
        """
        self._validate_params()
        check_ours(self.estimator)
        if get_config()["enable_metadata_routing"] or y is None:
            return super().fit(X, y, **params)  # in turn
        X, y = indexable(X, y)
        given: Any = self.estimator, self.cv
        folds: Any = check_cv(given[1], y, classifier=is_classifier(self.estimator))
        splits = list(folds.split(X, y, params.get("groups")))
        self._sweep = Sweep(self.estimator, splits, X, y, params)
        try:
            self.estimator, self.cv = self._sweep.stand_in(), splits
            super().fit(X, y, **params)
            for name in ("mean", "std"):
                of_folds = getattr(np, name)(self._sweep.seconds, axis=1)
                self.cv_results_[f"{name}_fit_time"] += of_folds
        finally:
            self.estimator, self.cv = given
            del self._sweep
        if self.scoring is None:  # it holds an estimator
            self.scorer_ = check_scoring(self.estimator)
        return self

    def _run_search(self, evaluate_candidates: Any) -> None:  # pyright: ignore
        """Train what goes together, then have scikit-learn go through all settings."""
        candidates: Iterable[dict[str, Any]]
        if self.n_iter is None:
            candidates = ParameterGrid(self.param_grid)
        else:
            candidates = ParameterSampler(
                self.param_grid, self.n_iter, random_state=self.random_state
            )
        settings = list(candidates)
        sweep: Sweep | None = getattr(self, "_sweep", None)
        if sweep is not None:
            sweep.train(settings)
        evaluate_candidates(settings)


def check_ours(estimator: Any) -> None:
    """Raise TypeError unless it is an estimator of ours, or a pipeline that ends with one."""
    last = estimator
    if isinstance(estimator, Pipeline) and estimator.steps:
        last = estimator.steps[-1][1]
    if not isinstance(last, BaseMLP):
        raise TypeError(
            "estimator: expected an MLPClassifier or MLPRegressor of jaxmlp, or a Pipeline that "
            f"ends with one, got {type(last).__name__}"
        )
