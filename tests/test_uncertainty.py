"""What ensembles predict, against plain NumPy; calibration, against a table worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import compilations, distance

from jaxmlp import (
    Network,
    Scaling,
    calibration,
    ensemble_predictions,
    init_members,
    member,
    predictions,
)

LOSSES = {
    "softmax_cross_entropy": 3,
    "sigmoid_binary_cross_entropy": 2,
    "squared_error": 2,
    "poisson": 1,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_mean_and_disagreement_are_those_of_the_members_predictions(loss):
    network = Network((4, 5, LOSSES[loss]), "tanh", loss)
    with jax.enable_x64(True):
        params = init_members(network, jax.random.split(jax.random.key(0), 6), jnp.float64, scale=3)
        x = np.random.default_rng(0).normal(size=(1100, 4))  # more than one chunk
        scaling = Scaling(np.float64(0.5), np.float64(2.0))
        got = ensemble_predictions(network, params, x, scaling=scaling)
        each = np.stack([
            predictions(*member(network, params, m), x, scaling=scaling) for m in range(6)
        ])  # fmt: skip
    mean = each.mean(axis=0)
    assert distance(got.mean, mean) < 1e-14

    def divergence(p, q):
        return (p * np.log(p / q)).sum(axis=2).mean(axis=0)

    if loss == "softmax_cross_entropy":
        expected = divergence(each, mean[None])
    elif loss == "sigmoid_binary_cross_entropy":
        expected = divergence(each, mean[None]) + divergence(1 - each, 1 - mean[None])
    else:
        expected = each.var(axis=0).mean(axis=1)
    assert distance(got.disagreement, expected) < 1e-13
    assert np.asarray(got.disagreement).min() > 0


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "poisson"])
def test_where_the_mean_is_not_finite_the_disagreement_is_none(loss):
    network = Network((2, 3), loss=loss)
    params = init_members(network, jax.random.split(jax.random.key(0), 3))
    params = jax.tree.map(lambda leaf: leaf.at[1].set(3e38), params)  # finite, its outputs are not
    mean, disagreement = ensemble_predictions(network, params, [[9.0, 9.0], [-1.0, -1.0]])
    assert not np.isfinite(mean[0]).any()
    assert np.isnan(disagreement[0])


def test_members_that_agree_do_not_disagree_and_certain_ones_are_finite():
    network = Network((2, 2), loss="softmax_cross_entropy")
    params = init_members(network, jax.random.split(jax.random.key(0), 2))
    same = jax.tree.map(lambda leaf: jnp.stack([leaf[0], leaf[0]]), params)
    x = np.array([[1.0, 2.0], [-3.0, 0.5]])
    assert np.asarray(ensemble_predictions(network, same, x).disagreement).max() < 1e-6
    # One is certain of class 0, the other of class 1: they are an even bet, log 2 nats apart.
    weight = jnp.array([[[1e4, 0], [0, 0]], [[0, 0], [1e4, 0]]])
    certain = (params[0]._replace(weight=weight, bias=jnp.zeros((2, 2))),)
    got = ensemble_predictions(network, certain, np.array([[1.0, 0.0]]))
    np.testing.assert_allclose(got.mean, [[0.5, 0.5]])
    np.testing.assert_allclose(got.disagreement, [np.log(2)], rtol=1e-6)


@pytest.mark.parametrize("logit", [80, 86, 87, 88, 104])
def test_a_probability_that_underflows_is_no_disagreement(logit):
    network = Network((1, 2), bias=False)
    params = init_members(network, jax.random.split(jax.random.key(0), 2))
    weight = jnp.array([[[0.0], [-logit]], [[0.0], [-2.3 * logit]]])
    got = ensemble_predictions(network, (params[0]._replace(weight=weight),), np.ones((1, 1)))
    assert 0 <= float(got.disagreement[0]) < 1e-30


def test_another_number_of_rows_compiles_nothing():
    network = Network((4, 5, 3))
    params = init_members(network, jax.random.split(jax.random.key(0), 2))
    x = np.ones((50, 4))
    assert ensemble_predictions(network, params, x).mean.shape == (50, 3)
    with compilations() as events:
        ensemble_predictions(network, params, x[:7])
        assert ensemble_predictions(network, params, x[:0]).disagreement.shape == (0,)
    assert not events


def test_calibration_by_hand():
    # Two bins, (0, ½] and (½, 1]: confidences 0.4, 0.5 | 0.6, 0.8, 1.0, of which right are
    # yes, no | no, yes, no.
    table = [[0.4, 0.3, 0.3], [0.5, 0.5, 0.0], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8], [1.0, 0, 0]]
    got = calibration(table, [0, 1, 0, 2, 1], bins=2)
    np.testing.assert_allclose(got.confidence, [0.45, 0.8])
    np.testing.assert_allclose(got.accuracy, [0.5, 1 / 3])
    np.testing.assert_array_equal(got.weight, [2, 3])
    assert got.error == pytest.approx((2 * 0.05 + 3 * (0.8 - 1 / 3)) / 5)
    doubled = calibration(table, [0, 1, 0, 2, 1], bins=2, sample_weight=[1, 1, 2, 0, 1])
    repeated = calibration(
        [table[0], table[1], table[2], table[2], table[4]], [0, 1, 0, 0, 1], bins=2
    )
    assert doubled.error == pytest.approx(repeated.error)
    empty = calibration([[1.0, 0.0]], [0], bins=3)
    assert np.isnan(empty.accuracy[:2]).all()
    assert empty.error == 0


def test_random_guesses_that_say_so_are_calibrated():
    rng = np.random.default_rng(0)
    table = rng.dirichlet(np.ones(4), size=20000)
    classes = np.array([rng.choice(4, p=row) for row in table])
    assert calibration(table, classes).error < 0.02  # 0.5 / sqrt(20000 / 15), and a little
    assert calibration(table**3 / (table**3).sum(axis=1, keepdims=True), classes).error > 0.15


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([0.5, 0.5], [0]), {}, r"probabilities: expected shape \(N, K\)"),
        ((np.zeros((0, 3)), []), {}, r"probabilities: expected shape \(N, K\)"),
        (([[0.5, 0.5]], [0, 1]), {}, r"classes: expected shape \(1,\)"),
        (([[0.5, 0.5]], [0.5]), {}, "classes: expected integers"),
        (([[0.5, 0.5]], [2]), {}, "classes: expected classes 0 to 1"),
        (([[0.5, 1.5]], [0]), {}, r"probabilities: expected numbers in \[0, 1\]"),
        (([[0.5, np.nan]], [0]), {}, "probabilities: expected finite"),
        (([["a", "b"]], [0]), {}, "probabilities: expected an array of numbers"),
        (([[0.5, 0.5]], [0]), {"bins": 0}, "bins"),
        (([[0.5, 0.5]], [0]), {"sample_weight": [1, 2]}, "sample_weight: expected shape"),
        (([[0.5, 0.5]], [0]), {"sample_weight": [-1]}, "sample_weight: expected numbers"),
    ],
)
def test_bad_input_of_calibration(arguments, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        calibration(*arguments, **options)


def test_bad_input_of_predictions():
    network = Network((4, 3))
    params = init_members(network, jax.random.split(jax.random.key(0), 2))
    with pytest.raises(ValueError, match="inputs"):
        ensemble_predictions(network, params, np.ones((3, 5)))
    with pytest.raises(ValueError, match=r"params\[0\].weight: expected shape \(3, 4\)"):
        ensemble_predictions(network, member(network, params, 0)[1], np.ones((3, 4)))
    lost = jax.tree.map(lambda leaf: leaf.at[1].set(np.nan), params)
    with pytest.raises(ValueError, match=r"params: expected finite members, got \[1\]"):
        ensemble_predictions(network, lost, np.ones((3, 4)))
