"""Datasets standardised by their training part."""

from typing import Any

import jax
import numpy as np
import pytest
from files import message_of

import jaxmlp.data
from jaxmlp.data import Dataset, Examples, standardized
from jaxmlp.scaling import target_scaling

# Whether a dataset has a part for testing, say, a type checker cannot tell.
load_dataset: Any = jaxmlp.data.load_dataset


@pytest.mark.parametrize("name", ["wine", "digits"])
def test_the_training_part_has_mean_0_and_deviation_1_and_alone_decides(name):
    from sklearn.preprocessing import StandardScaler

    before = load_dataset(name)
    data: Any = standardized(before)
    assert data._replace(scaling=None)[:-2] == before._replace(scaling=None)[:-2]
    scaler = StandardScaler().fit(before.train.inputs)
    for part in (data.train, data.test):
        # Both in float64; a column that varies little beside its mean loses a few digits.
        np.testing.assert_allclose(
            data.scaling.on_host(part.inputs), scaler.transform(part.inputs), atol=1e-12
        )
    scaled = data.scaling.on_host(data.train.inputs)
    varies = data.train.inputs.std(axis=0) > 0
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(scaled.std(axis=0), varies, atol=1e-12)
    assert data.train.inputs.dtype == before.train.inputs.dtype
    assert data.scaling.shift.dtype == data.scaling.factor.dtype == np.float64


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_targets_are_scaled_and_the_network_is_folded_into_their_units(dtype):
    rng = np.random.default_rng(0)
    targets = rng.normal([1e5, -3, 7], [2e4, 0.01, 0], (50, 3))
    weights = rng.integers(3, size=50).astype(float)
    scaling = target_scaling(targets, weights)
    repeated = np.repeat(targets, weights.astype(int), axis=0)
    np.testing.assert_allclose(scaling.mean, repeated.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(scaling.deviation[:2], repeated.std(axis=0)[:2], rtol=1e-9)
    assert scaling.deviation[2] == 1  # a column of one value keeps its unit
    scaled = scaling.applied(targets)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, (targets - scaling.mean) / scaling.deviation, atol=1e-6)
    with jax.enable_x64(dtype == np.float64):
        network = jaxmlp.Network((4, 5, 3), "tanh", "squared_error")
        params = jaxmlp.init(network, jax.random.key(0), dtype)
        x = rng.normal(size=(9, 4))
        folded = scaling.folded(params)
        again = scaling.unfolded(folded)
        np.testing.assert_allclose(again[-1].weight, params[-1].weight, rtol=1e-6)
        # What is left of a bias beside the mean: of 1e5 / 2e4 and 3 / 0.01 deviations.
        np.testing.assert_allclose(again[-1].bias, params[-1].bias, atol=1e-4)
        assert {leaf.dtype for leaf in jax.tree.leaves(folded)} == {np.dtype(dtype)}
        expected = np.asarray(jaxmlp.predictions(network, params, x), np.float64)
        got = np.asarray(jaxmlp.predictions(network, folded, x), np.float64)
        # A few roundings of the largest number there is.
        bound = 8 * float(np.finfo(dtype).eps) * np.abs([1.5e5, 5, 10])
        difference = np.abs(got - (expected * scaling.deviation + scaling.mean))
        assert (difference <= bound).all()


def one_part(inputs, weights=None):
    examples = Examples(inputs, np.zeros(len(inputs), np.int32), weights)
    return Dataset("set", "set.npz", examples, None, None, ("a", "b"))


def test_a_constant_pixel_keeps_its_unit():
    scaling: Any = standardized(one_part(np.array([[7, 0], [7, 4]], np.uint8))).scaling
    assert scaling.shift.tolist() == [7, 2] and scaling.factor.tolist() == [1, 0.5]


def test_rows_that_weigh_nothing_do_not_count_whatever_they_hold():
    inputs = np.array([[1.0], [np.nan], [4.0]])
    scaling: Any = standardized(one_part(inputs, np.array([2, 0, 1], np.float32))).scaling
    # Mean (2·1 + 4)/3 = 2, variance (2·1 + 4)/3 = 2.
    np.testing.assert_allclose([*scaling.shift, *scaling.factor], [2, 0.5**0.5], rtol=1e-15)


def test_a_large_column_of_many_float32_rows_keeps_its_digits():
    # Sums of 300,000 float32 numbers near 1000 would be off by 1e-4 and more.
    rng = np.random.default_rng(0)
    inputs = (1000 + rng.standard_normal((300_000, 2))).astype(np.float32)
    scaling: Any = standardized(one_part(inputs)).scaling
    np.testing.assert_allclose(scaling.shift, inputs.astype(float).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(1 / scaling.factor, inputs.astype(float).std(axis=0), rtol=1e-9)


def test_columns_are_the_same_whichever_are_beside_them():
    inputs = np.random.default_rng(0).standard_normal((50, 131)).astype(np.float32)
    scaling: Any = standardized(one_part(inputs)).scaling
    assert scaling.shift.shape == scaling.factor.shape == (131,)
    np.testing.assert_allclose(scaling.shift, inputs.astype(float).mean(axis=0), atol=1e-15)


def test_a_training_part_that_weighs_nothing_is_named():
    nothing = one_part(np.ones((2, 2)), np.zeros(2, np.float32))
    assert message_of(ValueError, lambda: standardized(nothing)) == (
        "set.npz: expected a training example that weighs more than 0, got none"
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_column_that_would_be_0_for_all_is_named(stream, tmp_path):
    inputs = np.random.default_rng(0).normal(size=(50, 3))
    inputs[7, 1] = 1e300
    np.save(tmp_path / "inputs.npy", inputs)
    np.save(tmp_path / "targets.npy", np.arange(50) % 2)
    data = load_dataset(tmp_path, validation_fraction=0.1, stream=stream)
    data = data._replace(train=Examples(data.train.inputs, data.train.targets), features=None)
    assert message_of(ValueError, lambda: standardized(data)) == (
        f"{data.source}: expected numbers in column 1 whose standard deviation is one of float64, "
        "got some that are too large"
    )
    named = data._replace(features=("a", "b", "c"))
    assert "column 'b' whose" in message_of(ValueError, lambda: standardized(named))
