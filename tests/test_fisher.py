"""Gauss–Newton diagonal, Kronecker factors and tangent kernel; sampled ones against exact ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_quantities import NETWORK, PARAMS, T, W, X, assert_close

import jaxmlp
from jaxmlp import Network, init
from jaxmlp.losses import LOSSES

pytestmark = pytest.mark.slow  # on the default Python alone: compiling takes most of it


EACH_LOSS = pytest.mark.parametrize("loss", LOSSES)


@EACH_LOSS
def test_the_root_of_a_loss_s_hessian_is_one(loss):
    rng = np.random.default_rng(0)
    z = 3 * rng.normal(size=4).astype(np.float32)
    t = rng.random(4).astype(np.float32)
    expected = np.asarray(jax.jit(jax.hessian(LOSSES[loss].value))(z, t))
    root = np.asarray(jax.jit(LOSSES[loss].hessian_root)(z, t))
    assert_close(root.T @ root, expected)
    assert_close(jax.jit(LOSSES[loss].hessian_product)(z, t, t), expected @ t)


def test_the_root_of_a_confident_row_keeps_its_digits():
    # y = (1 − ε, ε) with ε = e^-30: H = ε (1, −1)(1, −1)ᵀ, where 1 − y_0 would be 0.
    root = LOSSES["softmax_cross_entropy"].hessian_root(jnp.array([0.0, -30.0]), jnp.array(0))
    ours = np.asarray(root, np.float64).T @ np.asarray(root, np.float64)
    assert_close(ours, np.exp(-30) * np.array([[1, -1], [-1, 1]]), 1e-5)


@EACH_LOSS
def test_sampled_gradients_have_the_hessian_as_their_second_moment(loss):
    z = jnp.array([0.3, -0.8, 1.1])
    t = jnp.array([0.5, 0.25, 1.25]) if loss == "softmax_cross_entropy" else jnp.ones(3)
    keys = jax.random.split(jax.random.key(0), 40_000)
    draw = jax.jit(jax.vmap(LOSSES[loss].sampled_gradient, (None, None, 0)))
    drawn = np.asarray(draw(z, t, keys))
    expected = np.asarray(jax.jit(jax.hessian(LOSSES[loss].value))(z, t))
    outer = drawn[:, :, None] * drawn[:, None, :]
    error = outer.std(axis=0) / np.sqrt(len(keys))
    assert (np.abs(outer.mean(axis=0) - expected) < 4.5 * error + 1e-6).all()
    assert error.max() < 0.05 * np.abs(expected).max()  # or it could not fail
    mean_error = drawn.std(axis=0) / np.sqrt(len(keys))
    assert (np.abs(drawn.mean(axis=0)) < 4.5 * mean_error).all()


def test_what_is_sampled_comes_near_to_the_exact():
    args = (NETWORK, PARAMS, X, T, W)
    options = {"fisher": "sampled", "key": jax.random.key(3), "samples": 1000}
    assert_close(
        jaxmlp.gauss_newton_diagonal(*args, **options), jaxmlp.gauss_newton_diagonal(*args), 0.15
    )
    for got, expected in zip(
        jaxmlp.kfac_factors(*args, **options), jaxmlp.kfac_factors(*args), strict=True
    ):
        assert_close(got, expected, 0.15)


def test_one_sample_is_the_second_moment_of_the_gradient_at_the_drawn_labels():
    key = jax.random.key(11)
    keys = [jax.random.fold_in(jax.random.fold_in(key, 0), n) for n in range(6)]
    logits = jaxmlp.logits(NETWORK, PARAMS, X)
    drawn = np.array([jax.random.categorical(k, z) for k, z in zip(keys, logits, strict=True)])
    assert not np.array_equal(drawn, T)
    ours = jaxmlp.gauss_newton_diagonal(NETWORK, PARAMS, X, T, W, fisher="sampled", key=key)
    assert_close(ours, jaxmlp.gradient_second_moment(NETWORK, PARAMS, X, drawn, W))


def test_another_key_draws_others_and_the_same_key_the_same():
    def diagonal(seed):
        return jaxmlp.gauss_newton_diagonal(
            NETWORK, PARAMS, X, T, fisher="sampled", key=jax.random.key(seed)
        )

    jax.tree.map(np.testing.assert_array_equal, diagonal(0), diagonal(0))
    assert any((a != b).any() for a, b in zip(diagonal(0)[0], diagonal(1)[0], strict=True))


def test_without_a_hidden_layer_the_factors_of_one_example_are_the_whole_matrix():
    # One example, one layer: G ⊗ A is exact, and its diagonal is the Gauss–Newton diagonal.
    network = Network((4, 3))
    params = init(network, jax.random.key(0))
    (factors,) = jaxmlp.kfac_factors(network, params, X[:1], T[:1])
    (diagonal,) = jaxmlp.gauss_newton_diagonal(network, params, X[:1], T[:1])
    expected = np.column_stack(diagonal).ravel()
    assert_close(np.diag(np.kron(factors.deltas, factors.inputs)), expected)


def test_the_kernel_gives_the_change_of_the_logits_under_a_step_of_gradient_descent():
    # dz(x')/dη = −Σ_n K(x', x_n) ∂E_n/∂z: the definition of the kernel, to first order.
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(np.float64), PARAMS)
        kernel = jaxmlp.neural_tangent_kernel(NETWORK, params, X[:2], X)
        _, gradient = jaxmlp.loss_and_gradient(NETWORK, params, X, T)
        back = jax.tree.map(jnp.negative, gradient)
        _, change = jax.jvp(lambda p: jaxmlp.logits(NETWORK, p, X[:2]), (params,), (back,))
        y = jaxmlp.predictions(NETWORK, params, X)
        slopes = (y - np.eye(2)[T]) / 6
        assert_close(-np.einsum("nmij,mj->ni", kernel, slopes), change, 1e-12)


@pytest.mark.parametrize(("size", "other"), [(1, X[:3]), (4, None), (50, None)])
def test_the_kernel_is_the_same_for_every_microbatch_size(size, other):
    whole = jaxmlp.neural_tangent_kernel(NETWORK, PARAMS, X, other)
    ours = jaxmlp.neural_tangent_kernel(NETWORK, PARAMS, X, other, microbatch_size=size)
    assert whole.shape == (6, 6 if other is None else 3, 2, 2)
    assert_close(ours, whole, 1e-6)


@pytest.mark.parametrize(("n", "m", "size"), [(0, 3, None), (3, 0, None), (3, 0, 2), (1, 1, None)])
def test_the_kernel_of_few_examples_has_their_shape(n, m, size):
    ours = jaxmlp.neural_tangent_kernel(NETWORK, PARAMS, X[:n], X[:m], microbatch_size=size)
    assert ours.shape == (n, m, 2, 2)


@pytest.mark.parametrize(
    ("function", "options", "kind", "message"),
    [
        (
            "kfac_factors",
            {"fisher": "exat"},
            ValueError,
            "unknown fisher 'exat': did you mean 'exa",
        ),
        (
            "gauss_newton_diagonal",
            {"fisher": "empirical"},
            ValueError,
            "unknown fisher 'empirical'",
        ),
        ("kfac_factors", {"fisher": "sampled"}, TypeError, "key: expected a typed key"),
        ("kfac_factors", {"samples": 0}, ValueError, "samples: expected at least 1, got 0"),
        ("kfac_factors", {"samples": 1.5}, TypeError, "samples: expected an integer, got 1.5"),
    ],
)
def test_bad_kinds_are_named(function, options, kind, message):
    with pytest.raises(kind) as raised:
        getattr(jaxmlp, function)(NETWORK, PARAMS, X, T, **options)
    assert str(raised.value).startswith(message)
