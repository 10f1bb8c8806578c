"""Gram matrix, moments and noise scale; `jaxmlp verify` compares them with vmapped jax.grad."""

import jax
import numpy as np
import pytest
from test_quantities import NETWORK, PARAMS, RNG, T, W, X, assert_close

import jaxmlp
from jaxmlp import Network, init

pytestmark = pytest.mark.slow  # on the default Python alone: compiling takes most of it


OTHER_X = RNG.normal(size=(4, 4)).astype(np.float32)
OTHER_T = np.array([1, 1, 0, 1], np.int32)


def flat(x, t, weights=None):
    gradients = jaxmlp.per_example_gradients(NETWORK, PARAMS, x, t, weights)
    return np.concatenate([leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(gradients)], axis=1)


@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_the_gram_matrix_of_two_batches_is_that_of_their_gradients(microbatch_size):
    weights = np.array([2.0, 0.0, 1.0, 0.5], np.float32)
    ours = jaxmlp.gradient_gram_matrix(
        NETWORK, PARAMS, X, T, OTHER_X, OTHER_T, W,
        other_sample_weight=weights, microbatch_size=microbatch_size,
    )  # fmt: skip
    assert ours.shape == (6, 4)
    assert_close(ours, flat(X, T, W) @ flat(OTHER_X, OTHER_T, weights).T)


def test_the_gram_matrix_of_one_batch_is_symmetric_with_squared_norms_on_its_diagonal():
    gram = np.asarray(jaxmlp.gradient_gram_matrix(NETWORK, PARAMS, X, T))
    norms = jaxmlp.per_example_gradient_norms(NETWORK, PARAMS, X, T)
    assert_close(gram, gram.T, 1e-6)
    assert_close(np.diag(gram), norms**2)
    assert np.linalg.eigvalsh(gram).min() > -1e-6


@pytest.mark.parametrize(("n", "m"), [(0, 4), (1, 4), (6, 0), (0, 0), (6, 1)])
def test_the_gram_matrix_of_few_examples_has_their_shape(n, m):
    ours = jaxmlp.gradient_gram_matrix(NETWORK, PARAMS, X[:n], T[:n], OTHER_X[:m], OTHER_T[:m])
    assert ours.shape == (n, m)


def test_the_gram_matrix_of_no_others_is_empty_in_microbatches_too():
    empty = OTHER_X[:0], OTHER_T[:0]
    ours = jaxmlp.gradient_gram_matrix(NETWORK, PARAMS, X, T, *empty, microbatch_size=4)
    assert ours.shape == (6, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"other_inputs": OTHER_X}, "other_inputs, other_targets: expected both or neither, got i"),
        ({"other_targets": OTHER_T}, "other_inputs, other_targets: expected both or neither, got"),
        ({"other_sample_weight": W}, "other_sample_weight: expected None without other_inputs"),
        (
            {"other_inputs": OTHER_X[:, :3], "other_targets": OTHER_T},
            "other_inputs: expected shape",
        ),
    ],
)
def test_half_a_second_batch_is_named(options, message):
    with pytest.raises(ValueError) as raised:
        jaxmlp.gradient_gram_matrix(NETWORK, PARAMS, X, T, **options)
    assert str(raised.value).startswith(message)


def test_the_variance_is_that_of_numpy():
    gradients = flat(X, T)
    ours = jaxmlp.gradient_variance(NETWORK, PARAMS, X, T)
    got = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(ours)])
    assert_close(got, gradients.var(axis=0))


@pytest.mark.parametrize("size", [None, 7])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_variance_keeps_its_digits_beside_a_large_mean(size, weighted):
    network = Network((4, 5, 2), "tanh", "squared_error")
    params = init(network, jax.random.key(0))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4)).astype(np.float32)
    t = (2e5 + 100 * rng.normal(size=(50, 2))).astype(np.float32)
    w = rng.integers(4, size=50).astype(np.float32) if weighted else np.ones(50, np.float32)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        each = jaxmlp.per_example_gradients(
            network, wide, x.astype(np.float64), t.astype(np.float64)
        )
    ours = jaxmlp.gradient_variance(network, params, x, t, w, microbatch_size=size)
    for got, leaf in zip(jax.tree.leaves(ours), jax.tree.leaves(each), strict=True):
        rows = np.asarray(leaf)
        mean = np.average(rows, axis=0, weights=w)
        expected = np.average(np.square(rows - mean), axis=0, weights=w)
        np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_the_variance_of_equal_examples_is_0_and_never_less():
    x, t = np.repeat(X[:1], 5, axis=0), np.repeat(T[:1], 5)
    for leaf in jax.tree.leaves(jaxmlp.gradient_variance(NETWORK, PARAMS, x, t)):
        assert (leaf >= 0).all() and leaf.max() < 1e-6


def test_the_noise_scale_is_by_the_formulas_of_the_paper():
    gradients = flat(X, T).astype(np.float64)
    n, m = 6, np.mean(np.sum(gradients**2, axis=1))
    mean = np.sum(gradients.mean(axis=0) ** 2)
    expected = (n * mean - m) / (n - 1), n * (m - mean) / (n - 1)
    ours = jaxmlp.gradient_noise_scale(NETWORK, PARAMS, X, T)
    assert_close(ours, jaxmlp.NoiseScale(*expected, expected[1] / expected[0]), 1e-4)


@pytest.mark.parametrize("size", [None, 4])
def test_the_noise_scale_is_that_of_weights_of_any_scale(size):
    expected = jaxmlp.gradient_noise_scale(NETWORK, PARAMS, X, T, W)
    for scale in (1e-30, 1e30):
        weights = W * np.float32(scale)
        ours = jaxmlp.gradient_noise_scale(NETWORK, PARAMS, X, T, weights, microbatch_size=size)
        assert_close(ours, expected, 1e-4)


def test_the_variance_of_one_examples_gradient_is_never_below_0():
    x, t = np.repeat(X[:1], 200, axis=0), np.repeat(T[:1], 200)
    assert 0 <= jaxmlp.gradient_noise_scale(NETWORK, PARAMS, x, t).variance < 1e-5
    lone = jaxmlp.gradient_noise_scale(NETWORK, PARAMS, X[:3], T[:3], np.float32([1, 1e-7, 0]))
    assert np.isnan(lone).all()


def test_the_noise_scale_is_without_bias_whatever_the_batch_size_and_the_weights():
    # Over many batches drawn from a population, the means of both are those of the population.
    network = Network((4, 2), loss="squared_error")
    params = init(network, jax.random.key(2))
    rng = np.random.default_rng(5)
    x = rng.normal(size=(50, 4)).astype(np.float32)
    t = (x[:, :2] + 1).astype(np.float32)
    gradients = jaxmlp.per_example_gradients(network, params, x, t)
    rows = np.concatenate([np.reshape(g, (50, -1)) for g in jax.tree.leaves(gradients)], axis=1)
    squared, variance = np.sum(rows.mean(axis=0) ** 2), rows.var(axis=0).sum()
    for n, weights in ((2, None), (5, None), (5, np.array([1, 2, 3, 0, 1], np.float32))):
        batches = rng.integers(50, size=(4000, n))
        each = jax.vmap(
            lambda x, t, w=weights: jaxmlp.gradient_noise_scale(network, params, x, t, w)
        )(x[batches], t[batches])
        for got, expected in zip(each[:2], (squared, variance), strict=True):
            error = np.std(got) / np.sqrt(len(got))
            assert abs(np.mean(got) - expected) < 4 * error
            assert error < 0.05 * max(squared, variance)  # or it could not fail


def test_the_noise_scale_of_equal_gradients_is_0():
    x, t = np.repeat(X[:1], 5, axis=0), np.repeat(T[:1], 5)
    ours = jaxmlp.gradient_noise_scale(NETWORK, PARAMS, x, t)
    assert abs(ours.noise_scale) < 1e-5


@pytest.mark.parametrize("n", [0, 1])
def test_a_noise_scale_wants_two_examples(n):
    with pytest.raises(ValueError, match=f"^inputs: expected two examples or more, got {n}$"):
        jaxmlp.gradient_noise_scale(NETWORK, PARAMS, X[:n], T[:n])


def test_the_noise_scale_of_one_weight_is_nan():
    weights = np.array([0, 0.7, 0, 0, 0, 0], np.float32)
    assert np.isnan(jaxmlp.gradient_noise_scale(NETWORK, PARAMS, X, T, weights)).all()
