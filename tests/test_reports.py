"""Figures of a trained network, class by class and output by output, against sums by hand."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from files import message_of

from jaxmlp import Layer, Network, ensemble_predictions, evaluate, init_members, member
from jaxmlp.data import Examples
from jaxmlp.reports import Classification, Regression, ensemble_report, report
from jaxmlp.scaling import Scaling

# What a network of one layer without bias and with W = 1 gives as logits is its inputs: in the
# tests the inputs are the logits.


def identity(size, loss="softmax_cross_entropy"):
    return Network((size, size), loss=loss, bias=False), (Layer(jnp.eye(size), None),)


def rows(classes, size):
    return np.eye(size, dtype=np.float32)[classes]


# Six examples of three classes, predicted as (row: the class)
#
#          a  b  c     precision  recall   F1
#     a    2  1  0     2/2        2/3      4/5
#     b    0  1  1     1/2        1/2      1/2
#     c    0  0  1     1/2        1/1      2/3
TRUTH = np.array([0, 0, 0, 1, 1, 2], np.int32)
PREDICTED = [0, 0, 1, 1, 2, 2]
CONFUSION = [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
EXAMPLES = Examples(3 * rows(PREDICTED, 3), TRUTH)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        ("softmax_cross_entropy", TRUTH),
        ("softmax_cross_entropy", rows(TRUTH, 3)),
        ("sigmoid_binary_cross_entropy", TRUTH),
        ("sigmoid_binary_cross_entropy", rows(TRUTH, 3)),
        ("squared_error", TRUTH),
        ("squared_error", rows(TRUTH, 3)),
    ],
)
def test_classes_counted_by_hand(loss, targets):
    got = report(*identity(3, loss), EXAMPLES._replace(targets=targets), ("a", "b", "c"))
    assert isinstance(got, Classification)
    np.testing.assert_array_equal(got.confusion, CONFUSION)
    np.testing.assert_allclose(got.precision, [1, 1 / 2, 1 / 2])
    np.testing.assert_allclose(got.recall, [2 / 3, 1 / 2, 1])
    np.testing.assert_allclose(got.f1, [4 / 5, 1 / 2, 2 / 3])
    np.testing.assert_array_equal(got.support, [3, 2, 1])
    assert got.accuracy == pytest.approx(4 / 6)


def test_the_text_is_a_table_of_both():
    text = str(report(*identity(3), EXAMPLES, ("a", "b", "see")))
    assert text.splitlines() == [
        "                   precision  recall      F1  support",
        "a                     1.0000  0.6667  0.8000        3",
        "b                     0.5000  0.5000  0.5000        2",
        "see                   0.5000  1.0000  0.6667        1",
        "mean over classes     0.6667  0.7222  0.6556        6",
        "",
        "accuracy 0.6667",
        "",
        "row: the class, column: predicted as",
        "",
        "     a  b  see",
        "a    2  1    0",
        "b    0  1    1",
        "see  0  0    1",
    ]


def test_weights_count_as_so_many_examples_and_rows_of_weight_0_may_hold_anything():
    weights = np.array([2, 0, 0.5, 1, 3, 0], np.float32)
    inputs, targets = EXAMPLES.inputs.copy(), TRUTH.copy()
    inputs[1], targets[1], targets[5] = np.nan, -1, 99
    for loss in ("softmax_cross_entropy", "sigmoid_binary_cross_entropy"):
        got = report(*identity(3, loss), Examples(inputs, targets, weights), ("a", "b", "c"))
        assert isinstance(got, Classification)
        np.testing.assert_array_equal(got.confusion, [[2, 0.5, 0], [0, 1, 3], [0, 0, 0]])
        np.testing.assert_allclose(got.precision, [1, 1 / 1.5, 0])
        np.testing.assert_allclose(got.recall, [2 / 2.5, 1 / 4, 0])
        np.testing.assert_array_equal(got.support, [2.5, 4, 0])
        assert got.accuracy == pytest.approx(3 / 6.5)
    assert "0.50" in str(got) and "6.50" in str(got)


def test_the_smallest_weights_are_weights():
    network, params = identity(3)
    plain = report(network, params, EXAMPLES)
    tiny = report(network, params, EXAMPLES._replace(weights=np.full(6, 1e-300)))
    assert isinstance(tiny, Classification) and isinstance(plain, Classification)
    assert tiny.accuracy == pytest.approx(plain.accuracy) != 1
    np.testing.assert_allclose(tiny.recall, plain.recall)


def test_a_class_that_is_neither_there_nor_predicted_has_figures_of_0_and_its_row():
    got = report(*identity(4), Examples(rows([0, 1], 4), np.array([0, 1])))
    assert isinstance(got, Classification) and got.confusion is not None
    assert got.names == ("0", "1", "2", "3") and got.confusion.shape == (4, 4)
    np.testing.assert_array_equal(got.f1, [1, 1, 0, 0])
    mean = next(line for line in str(got).splitlines() if line.startswith("mean over classes"))
    assert mean.split()[3:6] == ["1.0000"] * 3  # of the two that are there
    wrong = str(report(*identity(4), Examples(rows([0, 2], 4), np.array([0, 1]))))
    mean = next(line for line in wrong.splitlines() if line.startswith("mean over classes"))
    assert mean.split()[3:6] == ["0.3333"] * 3  # what is predicted counts, there or not


def test_the_accuracy_is_that_of_evaluate():
    rng = np.random.default_rng(0)
    examples = Examples(rng.normal(size=(50, 3)), rng.integers(0, 3, 50), rng.uniform(size=50))
    network, params = identity(3)
    got = report(network, params, examples)
    assert isinstance(got, Classification)
    # `evaluate` sums in float32.
    assert got.accuracy == pytest.approx(evaluate(network, params, *examples).accuracy, rel=1e-5)


def test_the_largest_of_saturated_probabilities_is_seen():
    # σ(30) and σ(40) are both 1 in float32.
    network, params = identity(2, "sigmoid_binary_cross_entropy")
    got = report(network, params, Examples(np.array([[30.0, 40.0]]), np.array([1])), ("a", "b"))
    assert isinstance(got, Classification) and got.accuracy == 1


def test_one_output_of_binary_cross_entropy_decides_between_two_classes():
    network, params = identity(1, "sigmoid_binary_cross_entropy")
    inputs = np.array([[-1.0], [2.0], [3.0], [-4.0]])
    for targets in (np.array([0, 0, 1, 1]), np.array([[0.0], [0.0], [1.0], [1.0]])):
        for names in (None, ("no", "yes")):
            got = report(network, params, Examples(inputs, targets), names)
            assert isinstance(got, Classification)
            np.testing.assert_array_equal(got.confusion, [[1, 1], [1, 1]])
            assert got.names == (names or ("0", "1"))


def test_binary_cross_entropy_without_classes_is_a_decision_for_each_output():
    # Outputs: the first is right about both; the second finds one of two and is wrong once.
    inputs = np.array([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]])
    targets = np.array([[1, 1], [0, 0], [1, 1]], np.float32)
    got = report(*identity(2, "sigmoid_binary_cross_entropy"), Examples(inputs, targets))
    assert isinstance(got, Classification) and got.confusion is None
    np.testing.assert_allclose(got.precision, [1, 1 / 2])
    np.testing.assert_allclose(got.recall, [1, 1 / 2])
    np.testing.assert_array_equal(got.support, [2, 2])
    assert got.accuracy == pytest.approx(1 / 3)  # all of a row's decisions
    assert got.to_json()["confusion"] is None and "column" not in str(got)


def test_a_regression_worked_by_hand():
    # Output 0: errors 1, −1, 0, 2 on targets 1, 3, 5, 7 (mean 4, squares 9 + 1 + 1 + 9 = 20):
    # RMSE √(6/4), MAE 4/4, R² 1 − 6/20. Output 1: met exactly.
    targets = np.array([[1, 5], [3, 6], [5, 7], [7, 8]], np.float32)
    inputs = targets + np.array([[1, 0], [-1, 0], [0, 0], [2, 0]])
    network, params = identity(2, "squared_error")
    got = report(network, params, Examples(inputs, targets))
    assert isinstance(got, Regression)
    np.testing.assert_allclose(got.rmse, [np.sqrt(1.5), 0])
    np.testing.assert_allclose(got.mae, [1, 0])
    np.testing.assert_allclose(got.r2, [0.7, 1])
    assert str(got).splitlines() == [
        "output     RMSE  MAE      R²",
        "0       1.22474    1  0.7000",
        "1             0    0  1.0000",
    ]
    # Weights 1, 1, 0, 2: RMSE √((1 + 1 + 8)/4), MAE (1 + 1 + 4)/4; mean of the targets 18/4.
    got = report(network, params, Examples(inputs, targets, np.array([1, 1, 0, 2])))
    assert isinstance(got, Regression)
    deviation = 3.5**2 + 1.5**2 + 2 * 2.5**2
    np.testing.assert_allclose(
        [got.rmse[0], got.mae[0], got.r2[0]], [np.sqrt(2.5), 1.5, 1 - 10 / deviation]
    )


def test_counts_are_compared_with_the_expected_ones_and_not_with_the_logits():
    network, params = identity(1, "poisson")
    targets = np.array([[1.0], [2.0], [4.0]])
    got = report(network, params, Examples(np.log(targets), targets))
    assert isinstance(got, Regression)
    np.testing.assert_allclose(got.rmse, [0], atol=1e-6)  # e^(log t) in float32
    np.testing.assert_allclose(got.r2, [1], rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "size", "targets", "classes"),
    [
        ("softmax_cross_entropy", 3, "classes", "abc"),
        ("softmax_cross_entropy", 3, "rows", None),
        ("sigmoid_binary_cross_entropy", 3, "classes", "abc"),
        ("sigmoid_binary_cross_entropy", 3, "bits", None),
        ("sigmoid_binary_cross_entropy", 1, "bits", ("no", "yes")),
        ("squared_error", 3, "classes", "abc"),
        ("squared_error", 3, "numbers", None),
        ("poisson", 2, "counts", None),
    ],
)
@pytest.mark.parametrize("weighted", [True, False])
def test_an_ensemble_is_the_mean_of_its_members_and_each_of_them(
    loss, size, targets, classes, weighted
):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(50, 4)).astype(np.float32)
    labels = rng.integers(size, size=50)
    t = {
        "classes": labels,
        "rows": rows(labels, size),
        "bits": rng.integers(2, size=(50, size)),
        "numbers": rng.normal(size=(50, size)),
        "counts": rng.poisson(2.0, size=(50, size)),
    }[targets]
    weights = rng.integers(3, size=50).astype(np.float64) if weighted else None
    network = Network((4, 5, size), "tanh", loss)
    params = init_members(network, jax.random.split(jax.random.key(0), 5))
    examples, scaling = Examples(inputs, t, weights), Scaling(np.float64(0.1), np.float64(2))
    found = ensemble_report(network, params, examples, classes, scaling)
    for m, own in enumerate(found.members):
        alone = report(*member(network, params, m), examples, classes, scaling)
        assert own.to_json() == alone.to_json()
    mean, disagreement = map(
        np.asarray, ensemble_predictions(network, params, inputs, scaling=scaling)
    )
    own = np.ones(50) if weights is None else weights
    total = own.sum()
    assert found.disagreement == pytest.approx(float(own @ disagreement / total), rel=1e-5) != 0
    if targets in ("numbers", "counts"):
        assert isinstance(found.mean, Regression)
        mse = own @ (mean - t) ** 2 / total
        np.testing.assert_allclose(found.mean.rmse, np.sqrt(mse), rtol=1e-6)
        name, field = "RMSE", "rmse"
    else:
        assert isinstance(found.mean, Classification)
        right = np.argmax(mean, axis=1) == labels
        if targets == "bits":
            right = np.all((mean > 0.5) == t, axis=1)
        assert found.mean.accuracy == pytest.approx(float(own @ right / total), rel=1e-12)
        name = field = "accuracy"
    each = np.array([np.mean(getattr(one, field)) for one in found.members])
    spread = f"{each.mean():.4g} ± {np.std(each, ddof=1):.2g} (standard deviation)"
    assert f"a member alone   {name} {spread}, from {each.min():.4g} to" in str(found)
    assert str(found).startswith(f"{found.mean}\n\n")
    content = json.loads(json.dumps(found.to_json()))
    assert content["members"][1] == found.members[1].to_json() != found.members[0].to_json()
    assert {*content} == {*found.mean.to_json(), "members", "disagreement"}


def test_an_ensemble_of_one_has_no_spread_and_one_that_is_not_finite_is_named():
    network = Network((3, 3), bias=False)
    params = (Layer(jnp.eye(3)[None], None),)
    found = ensemble_report(network, params, EXAMPLES)
    assert "a member alone   accuracy 0.6667, from 0.6667 to 0.6667, of 1\n" in str(found)
    assert found.mean.to_json() == report(*member(network, params, 0), EXAMPLES).to_json()
    lost = (Layer(jnp.stack([jnp.eye(3), jnp.full((3, 3), jnp.inf)]), None),)
    message = message_of(ValueError, lambda: ensemble_report(network, lost, EXAMPLES))
    assert message.startswith("params: expected finite members, got [1] that are not")
    message = message_of(
        ValueError, lambda: ensemble_report(network, (Layer(jnp.eye(3), None),), EXAMPLES)
    )
    assert message == "params[0].weight: expected shape (3, 3), got (3,)"


def test_the_inputs_are_scaled_bytes_too():
    network, params = identity(2)
    scaling = Scaling(np.float64(10), np.array([1.0, -1.0]))
    for inputs in (np.array([[0, 9]], np.uint8), np.array([[0.0, 9.0]])):  # → (−10, 1)
        got = report(network, params, Examples(inputs, np.array([1])), scaling=scaling)
        assert isinstance(got, Classification) and got.accuracy == 1


def test_the_figures_are_json_also_where_one_is_not_defined():
    got = report(*identity(3), EXAMPLES, ("a", "b", "c")).to_json()
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    assert got["confusion"] == CONFUSION and got["names"] == ["a", "b", "c"]
    alone = Examples(np.ones((1, 1)), np.ones((1, 1), np.float32))
    got = report(*identity(1, "squared_error"), alone)
    assert "nan" in str(got)
    assert json.loads(json.dumps(got.to_json(), allow_nan=False))["r2"] == [None]


def test_long_names_and_many_classes_stay_readable():
    names = [f"a class with a long name, number {i}" for i in range(20)]
    text = str(report(*identity(20), Examples(rows([3], 20), np.array([3])), names))
    assert "a class with…, number 17" in text and "column: predicted as" in text
    assert "a cl…r 9  a cl… 10" in text  # no two are cut to the same
    names = ["customer_bad", "customer_good"]
    text = str(report(*identity(2), Examples(rows([0, 1], 2), np.array([0, 1])), names))
    assert "cust…bad  cust…ood" in text and "customer_bad  " in text
    names = ["a name that is longer than a heading", "another"]
    text = str(report(*identity(2), Examples(rows([0, 1], 2), np.array([0, 1])), names))
    assert "a name …  another" in text and "a name that is longer t…" in text
    text = str(report(*identity(21), Examples(rows([3], 21), np.array([3]))))
    assert "column: predicted as" not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["a"]}, "classes: expected 3 names, got 1"),
        ({"examples": EXAMPLES._replace(targets=np.full(6, 3))}, "targets: expected classes 0 to"),
        ({"examples": EXAMPLES._replace(inputs=np.ones((6, 4)))}, "inputs: expected shape (N, 3)"),
        ({"examples": EXAMPLES._replace(weights=np.ones(5))}, "sample_weight: expected shape (6,)"),
        ({"examples": EXAMPLES._replace(weights=-np.ones(6))}, "sample_weight: expected numbers ≥"),
        (
            {"examples": EXAMPLES._replace(weights=np.zeros(6))},
            "sample_weight: expected a number above 0, got none",
        ),
        ({"examples": Examples(np.ones((0, 3)), TRUTH[:0])}, "inputs: expected at least one"),
    ],
)
@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "sigmoid_binary_cross_entropy"])
def test_what_does_not_fit_is_named(loss, change, message):
    arguments = {"examples": EXAMPLES, "classes": ["a", "b", "c"]} | change
    call = functools.partial(report, *identity(3, loss), **arguments)
    assert message_of(ValueError, call).startswith(message)


def test_importing_it_does_not_import_scikit_learn():
    code = "import sys, jaxmlp.reports; print('sklearn' in sys.modules)"
    run = [sys.executable, "-c", code]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "False\n"
