"""`n_ensembles`: every member is the estimator alone, and what they predict is averaged."""

import contextlib
import pickle
import warnings
from typing import Any
from unittest import SkipTest

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris, make_multilabel_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import estimator_checks_generator

from jaxmlp import MLPClassifier, MLPRegressor
from jaxmlp.estimators import ensembles

pytestmark = [
    pytest.mark.slow,  # compiling takes most of it
    pytest.mark.usefixtures("compiled_quickly"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

X, Y = load_iris(return_X_y=True)
X = (X - X.mean(0)) / X.std(0)
LABELS: Any = make_multilabel_classification(n_samples=90, random_state=0)
WEIGHTS = np.random.RandomState(0).randint(0, 4, 150) * 1.0


def of(kind: Any = MLPClassifier, **settings: Any) -> Any:
    given = {"hidden_layer_sizes": (6,), "random_state": 0, "max_iter": 25, "n_ensembles": 3}
    return kind(**{**given, "learning_rate_init": 0.02, **settings})


# name → estimator, X, y, arguments of fit, whether its members are trained together
CASES: dict[str, tuple] = {
    "adam": (of(), X, Y, {}, True),
    "stops at different epochs": (
        of(max_iter=300, tol=1e-2, n_iter_no_change=2, learning_rate_init=0.05), X, Y, {}, True,
    ),
    "momentum, batches": (of(solver="sgd", batch_size=32), X, Y, {}, True),
    "another solver": (of(solver="adamw"), X, Y, {}, True),
    "not shuffled": (of(shuffle=False, batch_size=64), X, Y, {}, True),
    "dropout and smoothing": (of(dropout=0.3, label_smoothing=0.1), X, Y, {}, True),
    "weights": (of(class_weight="balanced"), X, Y, {"sample_weight": WEIGHTS}, True),
    "two classes in words": (of(activation="tanh"), X, np.array(["a", "b"])[Y // 2], {}, True),
    "several labels": (of(), *LABELS, {}, True),
    "numbers": (of(MLPRegressor), X, X[:, 0] ** 2, {}, True),
    "counts of two kinds": (of(MLPRegressor, loss="poisson"), X, np.stack([Y, 2 - Y], 1), {}, True),
    "a validation set": (of(max_iter=5), X, Y, {"X_val": X[::3], "y_val": Y[::3]}, False),
    "early stopping": (of(early_stopping=True), X, Y, {}, False),
    "adaptive": (of(solver="sgd", learning_rate="adaptive"), X, Y, {}, False),
    "lbfgs": (of(solver="lbfgs"), X, Y, {}, False),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_member_is_the_estimator_alone(name, monkeypatch):
    estimator, inputs, targets, arguments, together = CASES[name]
    calls: list[int] = []
    right = ensembles.fit_together
    monkeypatch.setattr(
        ensembles, "fit_together", lambda fits: (calls.append(len(fits)), right(fits))
    )
    found: Any = clone(estimator)
    found.fit(inputs, targets, **arguments)
    assert calls == ([3] if together else [])
    assert len(found.estimators_) == 3 and found.n_features_in_ == inputs.shape[1]
    outputs = []
    for member in found.estimators_:
        assert isinstance(member.random_state, int) and member.n_ensembles == 1
        alone: Any = clone(found)
        alone.set_params(n_ensembles=1, random_state=member.random_state)
        alone.fit(inputs, targets, **arguments)
        assert member.n_iter_ == alone.n_iter_ and member.loss_ == pytest.approx(alone.loss_)
        for mine, other in zip(
            member.coefs_ + member.intercepts_, alone.coefs_ + alone.intercepts_, strict=True
        ):
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-12)
        if hasattr(alone, "loss_curve_"):
            np.testing.assert_allclose(member.loss_curve_, alone.loss_curve_, rtol=1e-12)
        outputs.append(getattr(alone, "predict_proba", alone.predict)(inputs))
    own = getattr(found, "predict_proba", found.predict)(inputs)
    np.testing.assert_allclose(own, np.mean(outputs, axis=0), rtol=1e-10)
    if isinstance(found, MLPClassifier) and targets.ndim == 1:
        np.testing.assert_array_equal(found.predict(inputs), found.classes_[own.argmax(1)])
        right_ones = found.predict(inputs) == targets
        weight = arguments.get("sample_weight")
        expected = np.average(right_ones, weights=weight)
        assert found.score(inputs, targets, sample_weight=weight) == pytest.approx(expected)
    first, second = found.estimators_[:2]
    assert not np.array_equal(first.coefs_[0], second.coefs_[0])
    np.testing.assert_array_equal(found.coefs_[0], first.coefs_[0])
    assert found.n_iter_ == first.n_iter_


def test_the_members_stop_by_themselves():
    estimator = CASES["stops at different epochs"][0]
    model: Any = clone(estimator)
    epochs = [one.n_iter_ for one in model.fit(X, Y).estimators_]
    assert len(set(epochs)) > 1 and max(epochs) < 300


def test_a_random_state_draws_the_members():
    states = [[one.random_state for one in of(max_iter=1).fit(X, Y).estimators_] for _ in range(2)]
    assert states[0] == states[1] and len(set(states[0])) == 3
    rng = np.random.RandomState(5)
    two = [of(max_iter=1, random_state=rng).fit(X, Y) for _ in range(2)]
    assert two[0].estimators_[0].random_state != two[1].estimators_[0].random_state


def test_it_is_pickled_cloned_and_fitted_again():
    model = of().fit(X, Y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    copy: Any = clone(model)
    assert copy.n_ensembles == 3 and not hasattr(copy, "estimators_")
    model.set_params(n_ensembles=1).fit(X, Y)
    assert not hasattr(model, "estimators_") and model.per_example_loss(X, Y).shape == (150,)
    single = of(n_ensembles=1).fit(X, Y)
    np.testing.assert_array_equal(model.coefs_[0], single.coefs_[0])
    single.set_params(n_ensembles=2).fit(X, Y)
    assert len(single.estimators_) == 2


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_every_check_of_scikit_learn_passes_for_an_ensemble(kind):
    done = 0
    checks: Any = estimator_checks_generator(kind(max_iter=60, n_ensembles=2))
    for one, check in checks:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(SkipTest):
                check(one)
                done += 1
    assert done > 40


# What is refused.

REFUSED: dict[str, tuple] = {
    "none": ({"n_ensembles": 0}, "The 'n_ensembles' parameter of MLPClassifier must be an int"),
    "a fraction": ({"n_ensembles": 1.5}, "The 'n_ensembles' parameter of MLPClassifier must be"),
    "a warm start": (
        {"warm_start": True}, "warm_start: expected none with n_ensembles above 1, got True",
    ),
    "privacy": (
        {"noise_multiplier": 1.0, "clip_norm": 1.0},
        "noise_multiplier: expected none with n_ensembles above 1, got 1.0",
    ),
    "what a member refuses": ({"dropout": [0.1, 0.2]}, "dropout: expected one rate in [0, 1), or"),
    "a member that diverges": (
        {"solver": "sgd", "learning_rate_init": 1e200}, "Solver produced non-finite parameter",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_an_ensemble_cannot_do_is_named_and_changes_nothing(name):
    settings, message = REFUSED[name]
    model = of(max_iter=2).fit(X, Y)
    before = model.predict_proba(X)
    with pytest.raises(ValueError) as raised, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.set_params(**settings).fit(X, Y)
    assert str(raised.value).startswith(message)
    np.testing.assert_array_equal(model.predict_proba(X), before)


def test_what_is_of_one_network_is_asked_of_a_member():
    model = of(max_iter=2).fit(X, Y)
    assert not hasattr(model, "partial_fit") and hasattr(model.estimators_[0], "partial_fit")
    for ask in (
        lambda one: one.per_example_loss(X, Y),
        lambda one: one.self_influence(X, Y),
        lambda one: one.influence(X, Y, X[:2], Y[:2]),
    ):
        with pytest.raises(ValueError, match=r"^n_ensembles: expected 1 .* got 3: ask one of est"):
            ask(model)
        assert len(ask(model.estimators_[1])) == 150


def test_convergence_is_warned_of_once_and_others_too():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        of(max_iter=2, batch_size=1000).fit(X, Y)
    kinds = [one.category for one in caught]
    assert kinds.count(ConvergenceWarning) == 1 and kinds.count(UserWarning) == 1
