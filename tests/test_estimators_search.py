"""`SweepSearchCV` beside scikit-learn's searches of the same estimators: the same of everything."""

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import sklearn
from scipy.stats import loguniform
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris, make_multilabel_classification
from sklearn.exceptions import FitFailedWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    RandomizedSearchCV,
    StratifiedKFold,
)
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from jaxmlp import MLPClassifier, MLPRegressor, SweepSearchCV
from jaxmlp.estimators import slots
from jaxmlp.estimators import sweep as sweeps

pytestmark = [
    pytest.mark.slow,  # compiling takes most of it
    pytest.mark.usefixtures("compiled_quickly"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

X, Y = load_iris(return_X_y=True)
X = (X - X.mean(0)) / X.std(0)
NUMBERS = X[:, 0] + X[:, 1] ** 2
SMALL: dict[str, Any] = {"hidden_layer_sizes": (6,), "random_state": 0, "max_iter": 25}


def of(kind: Any = MLPClassifier, **settings: Any) -> Any:
    return kind(**{**SMALL, "learning_rate_init": 0.02, **settings})


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many fits each call trained together."""
    counts: list[int] = []
    right = sweeps.fit_together

    def counted(fits: Any, programs: Any) -> None:
        counts.append(len(fits))
        right(fits, programs)

    monkeypatch.setattr(sweeps, "fit_together", counted)
    return counts


def assert_same(ours: Any, theirs: Any) -> None:
    assert list(ours.cv_results_) == list(theirs.cv_results_)
    for name, value in theirs.cv_results_.items():
        if name.endswith("_time"):
            assert ours.cv_results_[name].shape == value.shape
        elif name == "params":
            assert ours.cv_results_[name] == value
        elif value.dtype == object:
            assert (ours.cv_results_[name] == value).all()
        else:
            np.testing.assert_allclose(
                np.ma.filled(ours.cv_results_[name]), np.ma.filled(value), rtol=1e-9, err_msg=name
            )
    for name in ("best_index_", "best_params_", "n_splits_", "multimetric_"):
        if hasattr(theirs, name):
            assert getattr(ours, name) == getattr(theirs, name)
    if hasattr(theirs, "best_estimator_"):
        mine: Any = ours.best_estimator_
        other: Any = theirs.best_estimator_
        assert type(mine) is type(other) and ours.refit_time_ > 0
        if isinstance(mine, Pipeline):
            mine, other = mine[-1], other[-1]
        assert mine.n_iter_ == other.n_iter_
        assert hasattr(mine, "loss_curve_") == hasattr(other, "loss_curve_")
        if hasattr(mine, "loss_curve_"):  # lbfgs has none
            np.testing.assert_allclose(mine.loss_curve_, other.loss_curve_, rtol=1e-10)
        np.testing.assert_allclose(mine.coefs_[0], other.coefs_[0], rtol=0, atol=1e-10)


STRATIFIED = StratifiedKFold(3, shuffle=True, random_state=1)
# name → estimator, grid, options, X, y, arguments of fit, how many fits go together
CASES: dict[str, tuple] = {
    "numbers of adam": (
        of(),
        {"alpha": [1e-4, 1.0], "learning_rate_init": [0.001, 0.05], "beta_1": [0.5, 0.9],
         "epsilon": [1e-8, 1e-3]},
        {"cv": 2}, X, Y, {}, 32,
    ),
    "stops at different epochs": (
        of(max_iter=200, n_iter_no_change=3),
        {"tol": [1e-4, 1e-2], "n_iter_no_change": [2, 6], "max_iter": [7, 200]},
        {"cv": STRATIFIED, "return_train_score": True}, X, Y, {}, 24,
    ),
    "several shapes, folds of unequal size, the whole a batch": (
        of(), {"hidden_layer_sizes": [(3,), (4, 2)]},
        {"cv": KFold(4, shuffle=True, random_state=0)}, X[:130], Y[:130], {}, 8,
    ),
    "steps that differ by fold": (
        of(batch_size=25), {"momentum": [0.5, 0.9], "solver": ["sgd"]},
        {"cv": KFold(4, shuffle=True, random_state=0)}, X[:101], Y[:101], {}, 8,
    ),
    "dropout and smoothing": (
        of(label_smoothing=0.1), {"dropout": [0.0, 0.2, 0.5]}, {"cv": 2}, X, Y, {}, 6,
    ),
    "several metrics": (
        of(), {"alpha": [1e-4, 10.0]},
        {"cv": 3, "scoring": ["accuracy", "neg_log_loss"], "refit": "neg_log_loss"}, X, Y, {}, 6,
    ),
    "weights of examples": (
        of(), {"alpha": [1e-4, 1e-1]}, {"cv": 3}, X, Y,
        {"sample_weight": np.random.RandomState(0).randint(0, 4, 150) * 1.0}, 6,
    ),
    "weights of classes": (
        of(), {"class_weight": ["balanced", None, {0: 3.0}]},
        {"cv": KFold(3, shuffle=True, random_state=0)}, X, Y, {}, 9,
    ),
    "a class that a fold has not": (of(), {"alpha": [1e-3, 1e-1]}, {"cv": KFold(3)}, X, Y, {}, 6),
    "words": (of(), {"alpha": [1e-3, 1e-1]}, {"cv": 3}, X, np.array(["a", "b", "c"])[Y], {}, 6),
    "two classes, groups": (
        of(), {"activation": ["relu", "tanh"]}, {"cv": GroupKFold(3)}, X, Y > 1,
        {"groups": np.arange(150) % 7}, 6,
    ),
    "sparse": (of(), {"alpha": [1e-3, 1e-1]}, {"cv": 3}, scipy.sparse.csr_array(X), Y, {}, 6),
    "several labels": (
        of(), {"alpha": [1e-3, 1e-1]}, {"cv": 3},
        *(make_multilabel_classification(n_samples=90, random_state=0)), {}, 6,
    ),
    "numbers": (
        of(MLPRegressor), {"alpha": [1e-4, 1.0], "loss": ["squared_error"]},
        {"cv": 3, "scoring": "neg_mean_absolute_error"}, X, NUMBERS, {}, 6,
    ),
    "several numbers": (of(MLPRegressor), {"alpha": [1e-3, 1e-1]}, {"cv": 3}, X, X[:, :2], {}, 6),
    "in turn": (
        of(max_iter=10),
        [{"solver": ["lbfgs"]}, {"early_stopping": [True]}, {"n_ensembles": [2]},
         {"solver": ["sgd"], "learning_rate": ["adaptive", "invscaling"]}, {"alpha": [0.1]}],
        {"cv": 2}, X, Y, {}, 2,
    ),
    "a pipeline": (
        make_pipeline(StandardScaler(), of()),
        {"mlpclassifier__alpha": [1e-4, 1.0], "standardscaler__with_mean": [True, False]},
        {"cv": 3}, X * 5 + 1, Y, {"mlpclassifier__sample_weight": np.arange(150) % 3}, 12,
    ),
    "a pipeline of one": (
        Pipeline([("mlp", of())]), {"mlp__alpha": [1e-4, 1.0]}, {"cv": 3}, X, Y, {}, 6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_found_is_what_scikit_learn_finds(name, together):
    estimator, grid, options, inputs, targets, arguments, count = CASES[name]
    ours = SweepSearchCV(estimator, grid, **options).fit(inputs, targets, **arguments)
    theirs = GridSearchCV(estimator, grid, **options).fit(inputs, targets, **arguments)
    assert_same(ours, theirs)
    assert together[0] == count  # or nothing was tested
    np.testing.assert_array_equal(ours.predict(inputs), theirs.predict(inputs))
    assert ours.score(inputs, targets) == pytest.approx(theirs.score(inputs, targets), rel=1e-9)


def test_folds_may_be_masks_and_count_from_the_end():
    first = np.arange(150) % 2 == 0
    folds = [(first, ~first), (np.flatnonzero(~first) - 150, np.flatnonzero(first) - 150)]
    grid = {"alpha": [1e-3, 1e-1]}
    ours = SweepSearchCV(of(), grid, cv=folds).fit(X, Y)
    assert_same(ours, GridSearchCV(of(), grid, cv=folds).fit(X, Y))
    assert ours.cv is folds


def test_ctrl_c_ends_the_search(monkeypatch):
    right, calls = slots.run_side_by_side, []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return right(*args, **options)

    monkeypatch.setattr(slots, "run_side_by_side", interrupted)
    search = SweepSearchCV(of(), {"alpha": np.logspace(-4, 0, 30)}, cv=2)
    with pytest.raises(KeyboardInterrupt):
        search.fit(X, Y)
    assert len(calls) < 20 and not hasattr(search, "cv_results_")


def test_the_data_frames_keep_their_names():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcd"))
    options: Any = {"cv": 2}
    ours = SweepSearchCV(of(), {"alpha": [1e-3, 1e-1]}, **options).fit(frame, pandas.Series(Y))
    theirs = GridSearchCV(of(), {"alpha": [1e-3, 1e-1]}, **options).fit(frame, pandas.Series(Y))
    assert_same(ours, theirs)
    assert list(ours.feature_names_in_) == list(ours.best_estimator_.feature_names_in_)


def test_settings_are_drawn_as_scikit_learn_draws_them(together):
    space = {"alpha": loguniform(1e-4, 1), "learning_rate_init": [0.01, 0.03]}
    ours = SweepSearchCV(of(), space, n_iter=4, cv=2, random_state=3).fit(X, Y)
    theirs = RandomizedSearchCV(of(), space, n_iter=4, cv=2, random_state=3).fit(X, Y)
    assert_same(ours, theirs)
    assert together[0] == 8


def test_the_single_fits_are_those_of_the_estimator_alone():
    """Through the slots, with every fit's own epochs, losses and draws."""
    kept: list[Any] = []

    def scorer(estimator: Any, inputs: Any, targets: Any) -> float:
        kept.append(estimator)
        return estimator.score(inputs, targets)

    grid = {"tol": [1e-4, 3e-3], "dropout": [0.0, 0.1], "learning_rate_init": [0.01, 0.1]}
    model = of(max_iter=120, n_iter_no_change=4)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    SweepSearchCV(model, grid, cv=folds, scoring=scorer, refit=False).fit(X, Y)
    splits = list(folds.split(X, Y))
    epochs = set()
    for number, found in enumerate(kept):
        train = splits[number % 3][0]
        alone: Any = clone(found)
        alone.fit(X[train], Y[train])
        assert found.n_iter_ == alone.n_iter_ and found.t_ == alone.t_
        assert found._no_improvement_count == alone._no_improvement_count
        assert found.best_loss_ == pytest.approx(alone.best_loss_, rel=1e-10)
        np.testing.assert_allclose(found.loss_curve_, alone.loss_curve_, rtol=1e-10)
        for mine, other in zip(found.coefs_, alone.coefs_, strict=True):
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-10)
        epochs.add(found.n_iter_)
        found.partial_fit(X, Y), alone.partial_fit(X, Y)  # the optimizer's state is there too
        np.testing.assert_allclose(found.coefs_[0], alone.coefs_[0], rtol=0, atol=1e-10)
    assert len(kept) == 24 and len(epochs) > 5


def test_float32_is_computed_in_it():
    search = SweepSearchCV(of(dtype="float32"), {"alpha": [1e-4, 1e-2]}, cv=2).fit(X, Y)
    assert search.best_estimator_.coefs_[0].dtype == np.float32
    assert search.best_score_ > 0.5


def test_what_is_kept_is_scikit_learn_s_and_can_be_pickled():
    given = {"alpha": [1e-4, 1e-2]}
    search = SweepSearchCV(of(), given, cv=2)
    with pytest.raises(NotFittedError):
        search.predict(X)
    search.fit(X, Y)
    again = pickle.loads(pickle.dumps(search))
    np.testing.assert_array_equal(again.predict_proba(X), search.predict_proba(X))
    assert search.cv == 2 and type(search.estimator) is MLPClassifier
    assert list(search.classes_) == [0, 1, 2] and search.n_features_in_ == 4
    copy: Any = clone(search)
    assert copy.get_params()["param_grid"] == given
    without = SweepSearchCV(of(), given, cv=2, refit=False).fit(X, Y)
    assert not hasattr(without, "best_estimator_") and without.best_params_ in [
        {"alpha": value} for value in given["alpha"]
    ]


# What fails.


def test_a_fit_that_diverges_has_the_error_score():
    grid = {"learning_rate_init": [0.01, 1e200]}
    model = of(solver="sgd")
    with pytest.warns(FitFailedWarning, match=r"(?s)2 fits failed out of a total of 4.*non-finite"):
        search = SweepSearchCV(model, grid, cv=2, error_score=-1.0).fit(X, Y)
    assert list(search.cv_results_["mean_test_score"] < 0) == [False, True]
    assert search.best_params_ == {"learning_rate_init": 0.01}
    with pytest.raises(ValueError, match="non-finite"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SweepSearchCV(model, grid, cv=2, error_score="raise").fit(X, Y)
    assert search.cv == 2


def test_nan_and_settings_that_do_not_go_fail_as_they_do_alone(together):
    holed = X.copy()
    holed[[3, 30]] = np.nan  # one in each fold
    with pytest.raises(ValueError, match=r"(?s)All the 4 fits failed.*contains NaN"):
        SweepSearchCV(of(), {"alpha": [1e-3, 1e-1]}, cv=2).fit(holed, Y)
    assert together == [0]
    options: Any = {"cv": 2, "error_score": 0.0}
    with pytest.warns(FitFailedWarning, match=r"(?s)2 fits failed.*activation: expected names"):
        search = SweepSearchCV(of(), {"activation": ["relu", ["nope"]]}, **options).fit(X, Y)
    assert search.cv_results_["mean_test_score"][1] == 0 and together[-1] == 2
    with pytest.warns(FitFailedWarning, match=r"(?s)2 fits failed.*'alpha' parameter"):
        SweepSearchCV(of(), {"alpha": [0.1, -1.0]}, **options).fit(X, Y)


def test_convergence_is_warned_of_as_ever():
    with pytest.warns(sklearn.exceptions.ConvergenceWarning, match=r"iterations \(3\) reached"):
        SweepSearchCV(of(max_iter=3), {"alpha": [1e-3, 1e-1]}, cv=2, refit=False).fit(X, Y)


def test_a_failure_of_the_training_itself_is_raised(monkeypatch):
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(slots, "run_side_by_side", broken)
    search = SweepSearchCV(of(), {"alpha": [1e-3, 1e-1]}, cv=2)
    with pytest.raises(RuntimeError, match="out of order"):
        search.fit(X, Y)
    assert search.cv == 2 and type(search.estimator) is MLPClassifier
    assert not hasattr(search, "cv_results_")


BAD: dict[str, tuple] = {
    "another estimator": (
        {"estimator": LogisticRegression()}, {}, TypeError,
        "estimator: expected an MLPClassifier or MLPRegressor of jaxmlp, or a Pipeline",
    ),
    "a pipeline of another": (
        {"estimator": make_pipeline(StandardScaler(), LogisticRegression())}, {}, TypeError,
        "estimator: expected an MLPClassifier or MLPRegressor of jaxmlp, or a Pipeline",
    ),
    "an unknown parameter": (
        {"param_grid": {"alhpa": [1]}}, {}, ValueError, "Invalid parameter 'alhpa' for estimator",
    ),
    "an empty list": ({"param_grid": {"alpha": []}}, {}, ValueError, "Parameter grid for param"),
    "no settings": ({"param_grid": []}, {}, ValueError, "No fits were performed"),
    "no grid": ({"param_grid": 3}, {}, ValueError, "The 'param_grid' parameter of SweepSearchCV"),
    "a distribution without n_iter": (
        {"param_grid": {"alpha": loguniform(1e-4, 1)}}, {}, TypeError, "Parameter grid for param",
    ),
    "n_iter": ({"n_iter": 0}, {}, ValueError, "The 'n_iter' parameter of SweepSearchCV must be"),
    "one fold": ({"cv": 1}, {}, ValueError, "The 'cv' parameter of SweepSearchCV must be"),
    "scoring": ({"scoring": "nope"}, {}, ValueError, "The 'scoring' parameter of SweepSearchCV"),
    "refit of several": (
        {"scoring": ["accuracy", "r2"]}, {}, ValueError, "For multi-metric scoring, the parameter",
    ),
    "lengths": ({}, {"y": Y[:5]}, ValueError, "Found input variables with inconsistent numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_searches_are_named(name):
    settings, arguments, error, message = BAD[name]
    search = SweepSearchCV(**{"estimator": of(), "param_grid": {"alpha": [0.1]}, **settings})
    with pytest.raises(error) as raised:
        search.fit(**{"X": X, "y": Y, **arguments})
    assert str(raised.value).startswith(message)


def test_metadata_routing_is_done_in_turn(together):
    with sklearn.config_context(enable_metadata_routing=True):
        model = of().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        weights = np.arange(150) % 3
        options: Any = {"cv": 2}
        found = [
            kind(model, {"alpha": [1e-3, 1.0]}, **options).fit(X, Y, sample_weight=weights)
            for kind in (SweepSearchCV, GridSearchCV)
        ]
    assert_same(*found)
    assert together == []


def test_digits_by_all_workers_and_the_refit_by_the_same_program(together):
    x, y = load_digits(return_X_y=True)
    x, y = x[:600] / 16, y[:600]
    model = MLPClassifier((16,), max_iter=30, random_state=0, n_iter_no_change=2)
    grid = {"learning_rate_init": [1e-3, 1e-2, 0.1], "alpha": [1e-4, 1.0]}
    ours = SweepSearchCV(model, grid, cv=3).fit(x, y)
    assert_same(ours, GridSearchCV(model, grid, cv=3).fit(x, y))
    assert together == [18, 1]
