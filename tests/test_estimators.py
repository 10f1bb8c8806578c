"""Our estimators beside scikit-learn's: its own checks, the same losses, the same weights."""

import contextlib
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import SkipTest

import jax
import joblib
import numpy as np
import optax
import pytest
import scipy.sparse
import sklearn.neural_network as theirs
from cases import compilations
from sklearn.base import clone
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_iris,
    make_multilabel_classification,
)
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale
from sklearn.utils.estimator_checks import estimator_checks_generator

import jaxmlp
from jaxmlp import MLPClassifier, MLPRegressor
from jaxmlp.estimators import stochastic
from jaxmlp.estimators.solvers import Solver

pytestmark = [
    pytest.mark.slow,  # on the default Python alone: compiling takes most of it
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


def data(load: Callable[..., Any], scaled: bool = True) -> tuple[np.ndarray, np.ndarray]:
    X, y = load(return_X_y=True)
    return (scale(X) if scaled else X), y


DIGITS = data(load_digits, scaled=False)
DIGITS = DIGITS[0][:500] / 16, DIGITS[1][:500]
IRIS = data(load_iris, scaled=False)
CANCER = data(load_breast_cancer)
DIABETES = data(load_diabetes)
DIABETES = DIABETES[0], DIABETES[1] / 100


# scikit-learn's own judgement.


@pytest.mark.parametrize("estimator", [MLPClassifier(max_iter=100), MLPRegressor(max_iter=100)])
def test_every_check_of_scikit_learn_passes(estimator):
    done = 0
    checks: Any = estimator_checks_generator(estimator)
    for one, check in checks:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(SkipTest):  # pandas is not installed, or no such method
                check(one)
                done += 1
    assert done > 40


def test_the_tests_that_scikit_learn_ships_for_its_own_pass_with_ours(tmp_path):
    paths = [Path(__file__).parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "sklearn_plugin", "-p", "no:cacheprovider",
            "-W", "ignore", "--pyargs", "sklearn.neural_network.tests.test_mlp",
            "-c", "/dev/null", "--rootdir", str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling takes most of the time
        },
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


# The same losses.

FOLLOWED = {
    "adam": {"solver": "adam"},
    "sgd": {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 0.05},
    "momentum": {"solver": "sgd", "nesterovs_momentum": False, "learning_rate_init": 0.02},
    "nesterov": {"solver": "sgd", "learning_rate_init": 0.02},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.2},
    "logistic": {"activation": "logistic", "alpha": 0.1},
    "deep": {"hidden_layer_sizes": (20, 10), "activation": "tanh", "batch_size": 37},
    "not shuffled": {"shuffle": False, "batch_size": 64},
}


@pytest.mark.parametrize("name", FOLLOWED)
@pytest.mark.parametrize("task", ["ten classes", "two classes", "numbers"])
def test_twenty_epochs_in_float64_follow_scikit_learn_s_losses(task, name):
    settings = {"hidden_layer_sizes": (20,), "max_iter": 20, "random_state": 3} | FOLLOWED[name]
    kind = "MLPRegressor" if task == "numbers" else "MLPClassifier"
    X, y = {"ten classes": DIGITS, "two classes": CANCER, "numbers": DIABETES}[task]
    ours = globals()[kind](**settings).fit(X, y)
    other = getattr(theirs, kind)(**settings).fit(X, y)
    assert len(ours.loss_curve_) == 20
    np.testing.assert_allclose(ours.loss_curve_, other.loss_curve_, rtol=1e-8)
    for mine, coef in zip(ours.coefs_, other.coefs_, strict=True):
        np.testing.assert_allclose(mine, coef, rtol=0, atol=1e-6)
    assert ours.t_ == other.t_ and ours.out_activation_ == other.out_activation_


def test_several_outputs_and_labels_follow_too():
    made: Any = make_multilabel_classification(n_samples=150, random_state=0)
    X, Y = made
    settings = {"hidden_layer_sizes": (15,), "max_iter": 20, "random_state": 0}
    pairs = [
        (MLPClassifier(**settings), theirs.MLPClassifier(**settings), X, Y),
        (MLPRegressor(**settings), theirs.MLPRegressor(**settings), X, Y.astype(float)),
        (
            MLPRegressor(loss="poisson", **settings),
            theirs.MLPRegressor(loss="poisson", **settings),
            scale(X),
            Y.astype(float),
        ),
    ]
    for ours, other, inputs, targets in pairs:
        ours.fit(inputs, targets), other.fit(inputs, targets)
        np.testing.assert_allclose(ours.loss_curve_, other.loss_curve_, rtol=1e-8)
        np.testing.assert_allclose(ours.predict(inputs), other.predict(inputs), atol=1e-6)


@pytest.mark.parametrize("after", [None, 0, 1])
def test_a_stop_leaves_everything_as_scikit_learn_s_does(after, monkeypatch):
    """Also where the first call of the epochs ends with the last of them, or one after it."""
    rngs = [np.random.RandomState(0) for _ in range(2)]
    settings = {"max_iter": 500, "tol": 1e-3, "n_iter_no_change": 4, "solver": "sgd"}
    other = theirs.MLPClassifier(random_state=rngs[1], learning_rate_init=0.1, **settings)
    other.fit(*IRIS)
    if after is not None:
        monkeypatch.setattr(stochastic, "_FIRST_EPOCHS", other.n_iter_ + after)
        monkeypatch.setattr(stochastic, "_epochs_at_once", lambda *_: 2 * other.n_iter_)
    ours = MLPClassifier(random_state=rngs[0], learning_rate_init=0.1, **settings).fit(*IRIS)
    assert ours.n_iter_ == other.n_iter_ < 500
    assert rngs[0].randint(2**30) == rngs[1].randint(2**30)  # no draw more than its
    assert ours.best_loss_ == pytest.approx(other.best_loss_, rel=1e-8)


def test_early_stopping_and_adaptive_rates_are_followed():
    for settings in (
        {"early_stopping": True, "max_iter": 100},
        {"solver": "sgd", "learning_rate": "adaptive", "max_iter": 300, "learning_rate_init": 0.1},
    ):
        ours = MLPClassifier(random_state=1, **settings).fit(*DIGITS)
        other = theirs.MLPClassifier(random_state=1, **settings).fit(*DIGITS)
        assert ours.n_iter_ == other.n_iter_
        np.testing.assert_allclose(ours.loss_curve_, other.loss_curve_, rtol=1e-5)
        assert ours.validation_scores_ == other.validation_scores_
        assert (ours.predict(DIGITS[0]) == other.predict(DIGITS[0])).all()


# Weights.

EXACT = {
    "lbfgs": {"solver": "lbfgs", "max_iter": 30},
    "one unshuffled full batch": {"shuffle": False, "batch_size": 2000, "max_iter": 30},
}


@pytest.mark.filterwarnings("ignore:Got `batch_size`")
@pytest.mark.parametrize("name", EXACT)
def test_whole_weights_are_repeated_rows(name):
    settings = {"hidden_layer_sizes": (5,), "random_state": 0, "activation": "tanh"} | EXACT[name]
    counts = np.random.RandomState(0).randint(0, 4, len(IRIS[0]))
    X, y = scale(IRIS[0]), IRIS[1]
    weighted = MLPClassifier(**settings).fit(X, y, sample_weight=counts)
    repeated = MLPClassifier(**settings).fit(np.repeat(X, counts, 0), np.repeat(y, counts))
    for mine, other in zip(weighted.coefs_, repeated.coefs_, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-10 * np.abs(other).max())


@pytest.mark.parametrize("beta_2", [0.999, 0.9999, 0.999999])
def test_in_float32_adam_s_long_memory_is_theirs(beta_2):
    """1 − β₂ is that of the rounded β₂ in the moments as in the correction of their bias."""
    X, y = scale(IRIS[0]).astype(np.float32), IRIS[1]
    settings = {"batch_size": 150, "max_iter": 30, "random_state": 0, "learning_rate_init": 0.01}
    ours = MLPClassifier((6,), beta_2=beta_2, alpha=0, **settings).fit(X, y)
    other = theirs.MLPClassifier((6,), beta_2=beta_2, alpha=0, **settings).fit(X, y)
    np.testing.assert_allclose(ours.coefs_[0], other.coefs_[0], rtol=0, atol=5e-6)


@pytest.mark.parametrize("settings", [{}, {"solver": "sgd", "dropout": 0.2}, {"shuffle": False}])
def test_no_weights_are_weights_of_1(settings):
    X, y = scale(IRIS[0]), IRIS[1]
    plain, weighted = (
        MLPClassifier(batch_size=37, max_iter=10, random_state=0, **settings).fit(X, y, weights)
        for weights in (None, np.ones(len(y)))
    )
    np.testing.assert_allclose(plain.loss_curve_, weighted.loss_curve_, rtol=1e-12)
    np.testing.assert_allclose(plain.coefs_[0], weighted.coefs_[0], rtol=0, atol=1e-12)


def test_class_weights_are_sample_weights():
    X, y = scale(IRIS[0])[:120], IRIS[1][:120]
    balanced = MLPClassifier(max_iter=10, random_state=0, class_weight="balanced").fit(X, y)
    each = (len(y) / (3 * np.bincount(y)))[y]
    same = MLPClassifier(max_iter=10, random_state=0).fit(X, y, sample_weight=each)
    np.testing.assert_array_equal(balanced.coefs_[0], same.coefs_[0])
    given = MLPClassifier(max_iter=10, random_state=0, class_weight={2: 3.0}).fit(X, y)
    same = MLPClassifier(max_iter=10, random_state=0).fit(X, y, np.where(y == 2, 3.0, 1.0))
    np.testing.assert_array_equal(given.coefs_[0], same.coefs_[0])


# What scikit-learn's have not got.


def test_a_class_that_a_fold_lacks_may_have_a_weight():
    X, y = DIGITS
    few = y < 3
    weights = {0: 1.0, 1: 2.0, 2: 0.5}
    one: Any = MLPClassifier((8,), random_state=0, max_iter=3, class_weight=weights)
    copied: Any = clone
    more = copied(one).set_params(class_weight=weights | {9: 4.0})
    for own in (one, more):
        own.fit(X[few], y[few])
    np.testing.assert_array_equal(one.coefs_[0], more.coefs_[0])
    misspelt = copied(one).set_params(class_weight={0: 1.0, 1: 2.0, 22: 0.5})
    with pytest.raises(ValueError, match="^class_weight: expected classes of y, got 22$"):
        misspelt.fit(X[few], y[few])


@pytest.mark.parametrize("n_ensembles", [1, 3])
@pytest.mark.parametrize("task", ["ten classes", "two classes", "numbers"])
def test_the_network_of_a_fitted_estimator_is_one_of_jaxmlp_s(task, n_ensembles, tmp_path):
    X, y = {"ten classes": DIGITS, "two classes": CANCER, "numbers": DIABETES}[task]
    kind: Any = MLPRegressor if task == "numbers" else MLPClassifier
    options = {"activation": "logistic", "max_iter": 3, "n_ensembles": n_ensembles}
    model = kind(hidden_layer_sizes=(8, 4), **options).fit(X, y)
    network, params = model.to_network()
    jaxmlp.save(tmp_path / "model", network, params)
    again, read, metadata = jaxmlp.load(tmp_path / "model")
    assert metadata.get("members", 1) == n_ensembles
    predict: Any = jaxmlp.predictions
    if n_ensembles > 1:
        predict = lambda *own: jaxmlp.ensemble_predictions(*own).mean  # noqa: E731

    outputs = np.asarray(predict(again, read, X))
    expected = model.predict(X)[:, None] if task == "numbers" else model.predict_proba(X)
    if task == "two classes":
        expected = expected[:, 1:]
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, expected, rtol=2e-5, atol=1e-5)
    with jax.enable_x64(True):
        wide = np.asarray(predict(*model.to_network("float64"), X))
        np.testing.assert_allclose(wide, expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(NotFittedError):
        kind().to_network()
    for dtype in ("int32", None, "nope", np.int64):
        with pytest.raises(ValueError, match="^dtype: expected one of float32, float64, float16, "):
            model.to_network(dtype)
    assert model.to_network(np.float32)[1][0].weight.dtype == np.float32


def test_a_validation_set_of_one_s_own():
    X, y = DIGITS
    model: Any = MLPClassifier(max_iter=15, random_state=0)
    model.fit(X[:400], y[:400], X_val=X[400:], y_val=y[400:])
    assert len(model.validation_loss_curve_) == 15 and model.validation_scores_ is None
    assert model.validation_loss_curve_[-1] < model.validation_loss_curve_[0]
    last = model.per_example_loss(X[400:], y[400:]).mean()
    assert model.validation_loss_curve_[-1] == pytest.approx(last, rel=1e-12)
    stopped = MLPClassifier(max_iter=200, random_state=0, early_stopping=True)
    stopped.fit(X[:400], y[:400], X_val=X[400:], y_val=y[400:])
    assert stopped.best_validation_score_ == stopped.score(X[400:], y[400:])


@pytest.mark.parametrize("n_ensembles", [1, 2])
def test_two_classes_keep_their_names_in_a_network_of_two_outputs(n_ensembles, tmp_path):
    X, y = CANCER[0], CANCER[1] == 0
    model = MLPClassifier((8,), max_iter=3, n_ensembles=n_ensembles, random_state=0).fit(X, y)
    network, params = model.to_network("float64", per_class=True)
    one, of_one = model.to_network()
    assert (one.sizes[-1], network.sizes[-1]) == (1, 2)
    named = model.to_network(per_class=True)
    jaxmlp.save(tmp_path / "model", *named, classes=model.classes_)
    *_, metadata = jaxmlp.load(tmp_path / "model")
    assert metadata["dataset"]["classes"] == ["False", "True"]
    with pytest.raises(ValueError, match=r"two classes: to_network\(per_class=True\)\)$"):
        jaxmlp.save(tmp_path / "none", one, of_one, classes=model.classes_)
    with jax.enable_x64(True):
        if n_ensembles > 1:
            found = jaxmlp.ensemble_predictions(network, params, X).mean
        else:
            found = jaxmlp.predictions(network, params, X)
            loss = jaxmlp.loss(network, params, X, y.astype(int))
            assert loss == pytest.approx(model.per_example_loss(X, y).mean(), rel=1e-12)
    np.testing.assert_allclose(found, model.predict_proba(X), rtol=1e-12, atol=1e-12)


def test_other_targets_have_an_output_for_each_class_already():
    for y in (IRIS[1], IRIS[0] > 3, IRIS[0][:, 0] * 0):
        model = MLPClassifier((4,), max_iter=2).fit(IRIS[0], y)
        assert model.to_network(per_class=True)[0] == model.to_network()[0]


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_a_solver_s_first_state_is_its_transformation_s(rule):
    layer = jaxmlp.Layer(np.ones((3, 2), np.float32), np.ones(3, np.float32))
    numbers = {"learning_rate": 0.1, "momentum": 0.9, "beta_1": 0.9, "beta_2": 0.99, "epsilon": 1.0}
    solver, params = Solver(rule), (layer,)
    ours, expected = solver.init(params), solver.transformation(numbers, 0).init(params)
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_squares_of_large_weights_overflow_without_a_warning():
    X, y = IRIS[0].astype(np.float32), IRIS[1]
    model = MLPClassifier((4,), max_iter=1, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)
    model.coefs_ = [coefs * np.float32(1e25) for coefs in model.coefs_]
    with warnings.catch_warnings(), contextlib.suppress(ValueError):  # it may diverge
        warnings.simplefilter("error", RuntimeWarning)
        model.partial_fit(X, y)


@pytest.mark.parametrize("solver", ["adamw", "lion", optax.adabelief(1e-2)])
def test_other_solvers_learn(solver):
    settings: Any = {"learning_rate_init": 0.01, "max_iter": 30, "random_state": 0}
    model = MLPClassifier(solver=solver, **settings)
    assert model.fit(*DIGITS).score(*DIGITS) > 0.95
    assert not np.array_equal(model.coefs_[0], MLPClassifier(**settings).fit(*DIGITS).coefs_[0])
    model.set_params(solver="sgd").partial_fit(*DIGITS)  # another state of another solver


def test_dropout_and_other_activations_learn():
    for settings in ({"dropout": 0.3}, {"activation": "gelu"}, {"label_smoothing": 0.1}):
        model = MLPClassifier(max_iter=40, random_state=0, learning_rate_init=0.005, **settings)
        assert model.fit(*DIGITS).score(*DIGITS) > 0.95
        plain = MLPClassifier(max_iter=40, random_state=0, learning_rate_init=0.005).fit(*DIGITS)
        assert not np.array_equal(model.coefs_[0], plain.coefs_[0])
        again: Any = clone(model)
        again.fit(*DIGITS)
        np.testing.assert_array_equal(model.coefs_[0], again.coefs_[0])


def test_losses_and_influences_of_examples():
    model = MLPClassifier((10,), max_iter=30, random_state=0).fit(*IRIS)
    losses = model.per_example_loss(*IRIS)
    proba = model.predict_proba(IRIS[0])
    np.testing.assert_allclose(losses, -np.log(proba[np.arange(150), IRIS[1]]), rtol=1e-9)
    scores = model.influence(*IRIS, IRIS[0][:5], IRIS[1][:5])
    assert scores.shape == (150, 5)
    np.testing.assert_allclose(np.diag(scores[:5]), model.self_influence(*IRIS)[:5], rtol=1e-9)


def test_influence_is_of_the_loss_that_is_said_also_of_several_outputs():
    X, y = DIABETES[0][:30], DIABETES[0][:30, :2]
    model = MLPRegressor("squared_error", (3,), "tanh", max_iter=5, random_state=0).fit(X, y)
    squared = np.zeros(30)
    for array in (*model.coefs_, *model.intercepts_):
        for place in np.ndindex(array.shape):
            losses = []
            for step in (1e-5, -1e-5):
                array[place] += step
                losses.append(model.per_example_loss(X, y))
                array[place] -= step
            squared += ((losses[0] - losses[1]) / 2e-5) ** 2
    np.testing.assert_allclose(model.self_influence(X, y), squared, rtol=1e-6)
    np.testing.assert_allclose(np.diag(model.influence(X, y, X, y)), squared, rtol=1e-6)


def test_private_training_says_what_it_spends_and_records_no_loss():
    pytest.importorskip("dp_accounting")
    model = MLPClassifier(
        noise_multiplier=0.8, clip_norm=1.0, delta=1e-4, max_iter=20, batch_size=100,
        learning_rate_init=0.02, random_state=0,
    )  # fmt: skip
    model.fit(*DIGITS)
    assert 1 < model.epsilon_spent_ < 30
    assert model.loss_curve_ == [] and not hasattr(model, "loss_")
    assert model.score(*DIGITS) > 0.5
    again: Any = clone(model)
    assert not np.array_equal(model.coefs_[0], again.fit(*DIGITS).coefs_[0])


# What is kept.


def test_a_fitted_model_is_numpy_arrays_and_goes_through_pickle_and_joblib(tmp_path):
    model = MLPClassifier(max_iter=5, random_state=0).fit(*DIGITS)
    leaves = jax.tree.leaves([value for value in vars(model).values()])
    assert not any(isinstance(leaf, jax.Array) for leaf in leaves)
    assert not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model._optimizer.state))
    copy = pickle.loads(pickle.dumps(model))
    joblib.dump(model, tmp_path / "model.joblib")
    for other in (copy, joblib.load(tmp_path / "model.joblib")):
        found = other.predict_proba(DIGITS[0])
        np.testing.assert_array_equal(found, model.predict_proba(DIGITS[0]))
        other.partial_fit(*DIGITS)


def test_nothing_is_compiled_for_another_fold_rate_or_size():
    X, y = DIGITS
    MLPClassifier((7,), max_iter=3, random_state=0).fit(X[:400], y[:400]).predict(X[:100])
    with compilations() as compiled:
        other = MLPClassifier((7,), max_iter=4, random_state=1, learning_rate_init=0.01, alpha=0.1)
        other.fit(X[90:], y[90:])
        other.predict(X[:33])
        other.score(X[:400], y[:400])
        assert compiled == []


def test_a_grid_search_and_a_pipeline():
    search = GridSearchCV(
        make_pipeline(
            StandardScaler(),
            MLPClassifier(max_iter=20, random_state=0, learning_rate_init=0.01),
        ),
        {"mlpclassifier__alpha": [1e-4, 1e-1]},
        cv=3,
        n_jobs=2,
    )
    assert search.fit(*IRIS).best_score_ > 0.9


def test_float64_is_not_noticed_outside():
    before = jax.numpy.zeros(1).dtype
    model = MLPClassifier(max_iter=2).fit(*IRIS)
    assert model.coefs_[0].dtype == np.float64
    assert jax.numpy.zeros(1).dtype == before == np.float32
    fast = MLPClassifier(max_iter=2, dtype="float32").fit(*IRIS)
    assert fast.coefs_[0].dtype == fast.predict_proba(IRIS[0]).dtype == np.float32


def test_a_failed_fit_leaves_the_model_as_it_was():
    model = MLPClassifier(max_iter=5, random_state=0).fit(*DIGITS)
    before = model.predict_proba(DIGITS[0])
    with pytest.raises(ValueError, match=r"^y_val: expected the classes"):
        model.fit(*DIGITS, X_val=DIGITS[0], y_val=DIGITS[1] + 50)
    with pytest.raises(ValueError, match=r"^device"):
        model.set_params(device="gpu").fit(*DIGITS)
    model.set_params(device="auto")
    others = np.array(["a", "b", "c"])[DIGITS[1] % 3]
    for settings, arguments in (
        ({}, {"sample_weight": -np.ones(500)}),
        ({"class_weight": {"a": -1}}, {}),
        ({"activation": ["relu", "relu"]}, {}),
        ({"activation": ["nope"]}, {}),
        ({"early_stopping": True, "validation_fraction": 0.002}, {}),
        ({"learning_rate_init": 1e200, "solver": "sgd"}, {}),
    ):
        with pytest.raises(ValueError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.set_params(**settings).fit(DIGITS[0][:, :50], others, **arguments)
        model.set_params(**MLPClassifier(max_iter=5, random_state=0).get_params())
        np.testing.assert_array_equal(model.predict_proba(DIGITS[0]), before)
        assert len(model.coefs_[0]) == 64 and list(model.classes_) == list(range(10))
    numbers = MLPRegressor(max_iter=5).fit(*DIABETES)
    with pytest.raises(ValueError, match=r"^y: expected 1 outputs, got 2"):
        numbers.partial_fit(DIABETES[0], DIABETES[0][:, :2])
    assert numbers.n_outputs_ == 1 and numbers.loss_ > 0


def test_a_first_fit_that_fails_leaves_nothing():
    model = MLPClassifier(early_stopping=True, max_iter=3)
    with pytest.raises(ValueError, match=r"test_size = 1"):
        model.fit(DIGITS[0][:5], DIGITS[1][:5] % 2)
    with pytest.raises(NotFittedError):
        model.predict(DIGITS[0])
    model = MLPClassifier(max_iter=3)
    with pytest.raises(ValueError):
        model.partial_fit(DIGITS[0], DIGITS[1], -np.ones(500), classes=range(10))
    model.partial_fit(DIGITS[0], DIGITS[1] % 2, classes=range(2))


def test_a_warm_start_after_another_solver():
    model = MLPClassifier(solver="lbfgs", max_iter=5, warm_start=True).fit(*IRIS)
    model.set_params(solver="adam").fit(*IRIS)
    assert len(model.loss_curve_) == 5
    model.set_params(early_stopping=True).fit(*IRIS)
    assert len(model.validation_scores_) == 5


def test_ctrl_c_keeps_the_epochs_that_were_done(monkeypatch):
    right, calls = stochastic.run_epochs, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return right(*args, **options)

    monkeypatch.setattr(stochastic, "run_epochs", interrupted)
    model = MLPClassifier(max_iter=50, random_state=0)
    with pytest.warns(UserWarning, match=r"^Training interrupted by user"):
        model.fit(*DIGITS)
    assert model.n_iter_ == len(model.loss_curve_) > 0 and model.t_ == 500 * model.n_iter_
    assert model.score(*DIGITS) > 0.5


def test_a_warm_start_keeps_the_best_weights_of_all_its_fits():
    model = MLPClassifier(
        max_iter=30, random_state=0, warm_start=True, early_stopping=True, learning_rate_init=0.01
    ).fit(*DIGITS)
    best, kept = model.best_validation_score_, model.coefs_[0]
    model.set_params(max_iter=1, learning_rate_init=10.0).fit(*DIGITS)
    assert model.best_validation_score_ == best
    np.testing.assert_array_equal(model.coefs_[0], kept)


def test_what_a_private_fit_spent_is_not_said_of_the_next_one():
    pytest.importorskip("dp_accounting")
    model = MLPClassifier(noise_multiplier=1.0, clip_norm=1.0, max_iter=2, random_state=0)
    assert model.fit(*DIGITS).epsilon_spent_ > 0
    model.set_params(noise_multiplier=None, clip_norm=None).fit(*DIGITS)
    assert not hasattr(model, "epsilon_spent_")


def test_a_model_goes_on_in_the_dtype_that_it_was_begun_in():
    model = MLPClassifier(max_iter=2, dtype="auto").fit(DIGITS[0].astype(np.float32), DIGITS[1])
    model.partial_fit(*DIGITS)
    assert model.coefs_[0].dtype == model.predict_proba(DIGITS[0]).dtype == np.float32


def test_sparse_input_is_the_dense_one():
    X, y = DIGITS
    dense = MLPClassifier(max_iter=5, random_state=0).fit(X, y)
    sparse = MLPClassifier(max_iter=5, random_state=0).fit(scipy.sparse.csr_matrix(X), y)
    np.testing.assert_array_equal(dense.coefs_[0], sparse.coefs_[0])


# Bad input.

BAD = {
    "a device that is not there": ({"device": "gpu"}, "device: expected one that JAX can use, got"),
    "dropout": ({"dropout": [0.1, 0.2]}, "dropout: expected one rate in [0, 1), or 1 of them, got"),
    "dropout of lbfgs": (
        {"dropout": 0.1, "solver": "lbfgs"},
        "dropout: expected none with the solver lbfgs",
    ),
    "smoothing of lbfgs": (
        {"label_smoothing": 0.1, "solver": "lbfgs"},
        "label_smoothing: expected none with the solver lbfgs",
    ),
    "clip norm": ({"clip_norm": 1.0}, "clip_norm: expected None without a noise_multiplier, got 1"),
    "noise alone": ({"noise_multiplier": 1.0}, "clip_norm: expected a number with a noise_multip"),
    "noise and a split": (
        {"noise_multiplier": 1.0, "clip_norm": 1.0, "early_stopping": True},
        "early_stopping: expected none with a noise_multiplier",
    ),
    "a class that is none": ({"class_weight": {7: 1}}, "class_weight: expected classes of y, got"),
    "more than the gradient": (
        {"solver": optax.polyak_sgd()},
        "solver: expected a transformation of optax that needs the",
    ),
    "more than that, said otherwise": (
        {"solver": optax.contrib.differentially_private_aggregate(1.0, 1.0, 0)},
        "solver: expected a transformation of optax that needs the gradient alone",
    ),
    "an unknown activation": ({"activation": ["nope"]}, "activation: expected names of"),
    "two activations": ({"activation": ["relu", "tanh"]}, "activation: expected one name, or 1"),
    "a fraction of a unit": ({"hidden_layer_sizes": (4.5,)}, "hidden_layer_sizes: expected whole"),
    "dropout in words": ({"dropout": ["a"]}, "dropout: expected one rate in [0, 1), or 1 of them"),
    "nothing held out": (
        {"early_stopping": True, "validation_fraction": 0.0},
        "validation_fraction: expected one above 0",
    ),
    "a negative weight": ({"class_weight": {1: -1}}, "class_weight: expected numbers ≥ 0, got -1"),
    "an unknown solver": ({"solver": "newton"}, "The 'solver' parameter of MLPClassifier must be"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_named(name):
    settings, message = BAD[name]
    with pytest.raises(ValueError) as raised:
        MLPClassifier(**settings).fit(*IRIS)
    assert str(raised.value).startswith(message)


def test_verbose_says_the_loss_of_a_validation_set_and_which_member_it_is(capsys):
    X, y = IRIS
    model = MLPClassifier((4,), max_iter=2, verbose=True, n_ensembles=2, random_state=0)
    with pytest.warns(ConvergenceWarning):
        model.fit(X, y, X_val=X, y_val=y)
    lines = []
    for number, member in enumerate(model.estimators_, 1):
        lines.append(f"Member {number} of 2")
        pairs = zip(member.loss_curve_, member.validation_loss_curve_, strict=True)
        for epoch, (loss, validation_loss) in enumerate(pairs, 1):
            lines.append(f"Iteration {epoch}, loss = {loss:.8f}")
            lines.append(f"Validation loss: {validation_loss:.8f}")
    assert capsys.readouterr().out.splitlines() == lines and len(lines) == 10


def test_bad_validation_sets_and_weights_are_named():
    X, y = IRIS
    for arguments, message in (
        ({"X_val": X}, "X_val, y_val: expected both or nothing of validation, got X_val"),
        (
            {"sample_weight_val": y},
            "X_val, y_val: expected both or nothing of validation, got sample_weight_val",
        ),
        ({"X_val": X, "y_val": y[:5]}, "y_val: expected 150 targets, got 5"),
        ({"X_val": X, "y_val": y + 5}, "y_val: expected the classes"),
        ({"X_val": X, "y_val": y, "sample_weight_val": -np.ones(150)}, "sample_weight_val: exp"),
        ({"X_val": X, "y_val": X > 1}, "y_val: expected one class (N,), got zeros and ones"),
        ({"X_val": X, "y_val": 3}, "y_val: y should be a 1d array"),
        ({"X_val": X * np.nan, "y_val": y}, "X_val: Input X contains NaN."),
        ({"X_val": X[:, 1:], "y_val": y}, "X_val: X has 3 features, but MLPClassifier"),
        ({"X_val": X, "y_val": y, "sample_weight_val": np.zeros(150)}, "sample_weight_val: Sam"),
        ({"X_val": X, "y_val": y, "sample_weight_val": np.ones(4)}, "sample_weight_val: sample_"),
        ({"sample_weight": -np.ones(150)}, "sample_weight: expected numbers ≥ 0, got -1.0"),
        ({"sample_weight": np.zeros(150)}, "Sample weights must contain at least one non-zero"),
    ):
        with pytest.raises(ValueError) as raised:
            MLPClassifier(max_iter=2).fit(X, y, **arguments)
        assert str(raised.value).startswith(message)


def test_targets_of_another_kind_are_named():
    several = MLPClassifier((4,), max_iter=3).fit(IRIS[0], IRIS[0] > 3)
    with pytest.raises(ValueError, match=r"^y: expected zeros and ones of several labels"):
        several.per_example_loss(*IRIS)
    sparse = scipy.sparse.csr_matrix(IRIS[0] > 3)
    assert several.per_example_loss(IRIS[0], sparse).shape == (150,)
    counts = MLPRegressor("poisson", (4,), max_iter=3).fit(IRIS[0], IRIS[1])
    with pytest.raises(ValueError, match=r"^y: expected numbers ≥ 0 for the Poisson loss, got -2"):
        counts.per_example_loss(IRIS[0], -IRIS[1])
    with pytest.raises(ValueError, match=r"^class_weight: expected a weight above 0"):
        MLPClassifier(class_weight={0: 0, 1: 0, 2: 0}).fit(*IRIS)
    with pytest.raises(ValueError, match=r"^y_test: expected 5 targets, got 3"):
        several.influence(IRIS[0], IRIS[0] > 3, IRIS[0][:5], IRIS[0][:3] > 3)
    with pytest.raises(ValueError, match=r"^X_test: X has 3 features"):
        several.influence(IRIS[0], IRIS[0] > 3, IRIS[0][:, 1:], IRIS[0] > 3)
    with pytest.raises(ValueError, match=r"^X has 3 features"):
        several.influence(IRIS[0][:, 1:], IRIS[0] > 3, IRIS[0], IRIS[0] > 3)


def test_a_regressor_predicts_by_the_loss_that_it_was_fitted_with():
    """As in scikit-learn, until it is fitted again."""
    X, y = IRIS
    model = MLPRegressor(max_iter=3, random_state=0).fit(X, y)
    fitted, losses = model.predict(X), model.per_example_loss(X, y)
    model.set_params(loss="poisson")
    np.testing.assert_array_equal(model.predict(X), fitted)
    np.testing.assert_array_equal(model.per_example_loss(X, y), losses)
    assert model.to_network()[0].loss == "squared_error"
    assert model.per_example_loss(X, -y).shape == (150,)
    model.partial_fit(X, y)
    with pytest.raises(ValueError, match="^y: expected numbers ≥ 0 for the Poisson loss, got -2"):
        model.set_params(loss="squared_error").per_example_loss(X, -y)
    assert model.out_activation_ == "exp" and (model.predict(X) > 0).all()


def test_convergence_is_warned_of():
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\) reached"):
        MLPClassifier(max_iter=2).fit(*IRIS)
