"""Products with the Hessian and the Gauss–Newton matrix, against whole matrices of jax.hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import in_dtype
from jax.flatten_util import ravel_pytree
from test_quantities import NETWORK, PARAMS, VECTOR, T, W, X, assert_close

import jaxmlp
from jaxmlp import Network, curvature, init
from jaxmlp.activations import ACTIVATIONS
from jaxmlp.losses import LOSSES
from jaxmlp.verification import second_order
from jaxmlp.verification.second_order import second_order_row
from jaxmlp.verification.trials import Settings, cases_of

pytestmark = pytest.mark.slow  # on the default Python alone: compiling takes most of it


# Forty architectures, every activation with every loss, six draws of each: 240 networks.


def test_every_quantity_equals_its_oracle_on_240_random_networks():
    cases = cases_of("curvature", True)
    assert {(c.network.activation, c.network.loss) for c in cases} == {
        (activation, loss) for activation in ACTIVATIONS for loss in LOSSES
    }
    assert {len(case.network.sizes) - 2 for case in cases} == set(range(6))
    assert {(case.network.bias, case.weighted) for case in cases} == {
        (bias, weighted) for bias in (True, False) for weighted in (True, False)
    }
    found = second_order_row(Settings(6, 1, full=True), np.dtype(np.float64))
    assert len(found) == 40
    assert_within(found, 1e-12)


def test_every_quantity_in_float32_is_near_its_oracle():
    found = second_order_row(Settings(24, 1, full=False), np.dtype(np.float32))
    assert len(found) == 10  # of 24 draws each
    assert_within(found, 2e-5)


def assert_within(found, bound):
    worst = max(found, key=lambda one: one.difference.size)
    assert worst.difference.size <= bound, f"{worst.difference} in {worst.case}"


# Planted faults: each fails the row.


def planted(monkeypatch, name, wrong):
    monkeypatch.setattr(second_order, name, wrong(getattr(second_order, name)))


def without_second_derivatives(monkeypatch):
    for name, activation in ACTIVATIONS.items():
        monkeypatch.setitem(
            ACTIVATIONS, name, activation._replace(second_derivative=jnp.zeros_like)
        )


def off(name):
    def plant(monkeypatch):
        right = getattr(second_order, name)
        wrong = lambda *args, **options: jax.tree.map(  # noqa: E731
            lambda leaf: (1 + 1e-11) * leaf, right(*args, **options)
        )
        monkeypatch.setattr(second_order, name, wrong)

    return plant


def empirical_for_true(monkeypatch):
    right = second_order.kfac_factors

    def wrong(*args, fisher="exact", **options):
        return right(*args, fisher="empirical", **options)

    monkeypatch.setattr(second_order, "kfac_factors", wrong)


def hessian_of_the_logits_left_out(monkeypatch):
    loss = LOSSES["softmax_cross_entropy"]._replace(hessian_product=lambda z, t, v: v)
    monkeypatch.setitem(LOSSES, "softmax_cross_entropy", loss)


FAULTS = {
    "f″ missing": without_second_derivatives,
    "empirical for the true Fisher": empirical_for_true,
    "H missing": hessian_of_the_logits_left_out,
} | {
    name: off(name)
    for name in (
        "hessian_vector_product",
        "gauss_newton_vector_product",
        "gauss_newton_diagonal",
        "gradient_second_moment",
        "neural_tangent_kernel",
        "kfac_factors",
    )
}


@pytest.fixture
def one_case(monkeypatch):
    """The row on one case with a hidden layer, softmax cross-entropy, bias and weights."""
    case = next(
        case
        for case in cases_of("curvature", True)
        if case.network.loss == "softmax_cross_entropy"
        and case.network.activation == "silu"
        and len(case.network.sizes) > 2
    )
    monkeypatch.setattr(second_order, "cases_of", lambda *_: [case])
    monkeypatch.setattr("jaxmlp.verification.trials.cases_of", lambda *_: [case])
    jax.clear_caches()
    yield monkeypatch
    jax.clear_caches()


def worst_of_the_row():
    return max(found.difference.size for found in second_order_row(Settings(2)))


def test_the_row_passes_as_it_is(one_case):
    assert worst_of_the_row() <= 1e-12


@pytest.mark.parametrize("fault", FAULTS)
def test_the_row_sees_a_fault(one_case, fault):
    FAULTS[fault](one_case)
    assert worst_of_the_row() > 1e-12


# Properties.


def test_the_hessian_product_is_jax_jvp_of_our_gradient():
    def gradient(params):
        return jaxmlp.loss_and_gradient(NETWORK, params, X, T, W)[1]

    _, expected = jax.jvp(gradient, (PARAMS,), (VECTOR,))
    ours = jaxmlp.hessian_vector_product(NETWORK, PARAMS, X, T, VECTOR, W)
    assert_close(ours, expected)


@pytest.mark.parametrize(
    "product", [jaxmlp.hessian_vector_product, jaxmlp.gauss_newton_vector_product]
)
def test_a_product_is_linear_and_symmetric(product):
    other = init(NETWORK, jax.random.key(5))

    def inner(one, two):
        return float(ravel_pytree(one)[0] @ ravel_pytree(two)[0])

    first = product(NETWORK, PARAMS, X, T, VECTOR)
    second = product(NETWORK, PARAMS, X, T, other)
    assert inner(other, first) == pytest.approx(inner(VECTOR, second), rel=1e-4)
    both = jax.tree.map(lambda a, b: 2 * a - b, VECTOR, other)
    expected = jax.tree.map(lambda a, b: 2 * a - b, first, second)
    assert_close(product(NETWORK, PARAMS, X, T, both), expected)


def test_without_curvature_of_the_network_both_products_are_equal():
    network = Network((4, 2))
    params, vector = (init(network, jax.random.key(k)) for k in (0, 1))
    args = (network, params, X, T, vector)
    assert_close(jaxmlp.hessian_vector_product(*args), jaxmlp.gauss_newton_vector_product(*args))


def test_a_confident_row_keeps_the_digits_of_its_gauss_newton_product():
    # With logits 0 and −30 the curvature is e^-30: y_0 (v_0 − y·v) would cancel to 0 in float32.
    network = Network((1, 2), bias=False)
    params = (jaxmlp.Layer(jnp.array([[0.0], [-30.0]]), None),)
    vector = (jaxmlp.Layer(jnp.array([[1.0], [0.0]]), None),)
    ours = jaxmlp.gauss_newton_vector_product(network, params, [[1.0]], [0], vector)
    assert_close(ours[0].weight, np.exp(-30) * np.array([[1.0], [-1.0]]), 1e-5)


@pytest.mark.parametrize(
    ("vector", "kind", "message"),
    [
        (VECTOR[:1], ValueError, "vector: expected 2 layers, got 1"),
        (np.ones(23), TypeError, "vector: expected a tuple of 2 jaxmlp.Layer"),
        (
            (VECTOR[0]._replace(weight=np.ones((3, 5), np.float32)), VECTOR[1]),
            ValueError,
            "vector[0].weight: expected shape (3, 4), got (3, 5)",
        ),
    ],
)
def test_a_vector_that_does_not_fit_is_named(vector, kind, message):
    for product in (jaxmlp.hessian_vector_product, jaxmlp.gauss_newton_vector_product):
        with pytest.raises(kind) as raised:
            product(NETWORK, PARAMS, X, T, vector)
        assert str(raised.value).startswith(message)


# Eigenvalues.


def dense_hessian(params, weights=None):
    flat, unravel = ravel_pytree(params)
    return jax.hessian(lambda theta: jaxmlp.loss(NETWORK, unravel(theta), X, T, weights))(flat)


@pytest.mark.parametrize("k", [1, 3, 20, 22, 23])  # 23 parameters: from 22 on, the whole matrix
def test_the_eigenpairs_are_those_of_the_whole_matrix(k):
    with jax.enable_x64(True):
        params = in_dtype(PARAMS, np.dtype(np.float64))
        matrix = np.asarray(dense_hessian(params, W))
        ours = jaxmlp.hessian_eigenvalues(
            NETWORK, params, X, T, k, W, key=jax.random.key(0), microbatch_size=4
        )
    expected = np.linalg.eigvalsh(matrix)[::-1][:k]
    np.testing.assert_allclose(ours.values, expected, rtol=0, atol=1e-12 * expected[0])
    for number, value in enumerate(ours.values):
        one = jax.tree.map(lambda leaf, at=number: leaf[at], ours.vectors)
        vector = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(one)])
        assert np.linalg.norm(vector) == pytest.approx(1)
        np.testing.assert_allclose(matrix @ vector, value * vector, atol=1e-8 * expected[0])


def test_in_float32_the_largest_eigenvalue_is_near():
    ours = jaxmlp.hessian_eigenvalues(NETWORK, PARAMS, X, T, key=jax.random.key(0))
    expected = np.linalg.eigvalsh(np.asarray(dense_hessian(PARAMS)))[-1]
    assert ours.values.shape == (1,)
    assert ours.values[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("rows", [0, 6])
def test_the_eigenvalues_of_no_weight_are_0(rows):
    ours = jaxmlp.hessian_eigenvalues(
        NETWORK, PARAMS, X[:rows], T[:rows], 3, np.zeros(rows, np.float32), key=jax.random.key(0)
    )
    assert (ours.values == 0).all()
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(ours.vectors))


def test_the_eigenvalues_of_what_is_not_finite_are_refused():
    x = X.copy()
    x[2, 1] = np.nan
    with pytest.raises(ValueError, match="^params, inputs, targets: expected finite ones"):
        jaxmlp.hessian_eigenvalues(NETWORK, PARAMS, x, T, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"k": 0}, ValueError, "k: expected 1 to 23, the number of parameters, got 0"),
        ({"k": 24}, ValueError, "k: expected 1 to 23, the number of parameters, got 24"),
        ({"k": 1.0}, ValueError, "k: expected 1 to 23, the number of parameters, got 1.0"),
        ({"key": 0}, TypeError, "key: expected a typed key"),
    ],
)
def test_bad_arguments_of_the_eigenvalues_are_named(options, kind, message):
    with pytest.raises(kind) as raised:
        jaxmlp.hessian_eigenvalues(NETWORK, PARAMS, X, T, **{"key": jax.random.key(0)} | options)
    assert str(raised.value).startswith(message)


def test_eigenvalues_want_float32_or_float64():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    with pytest.raises(ValueError, match="^params: expected float32 or float64, got bfloat16$"):
        jaxmlp.hessian_eigenvalues(NETWORK, params, X, T, key=jax.random.key(0))


def test_the_tangent_of_a_forward_pass_is_jax_jvp_of_it():
    def of(params):
        trace = jaxmlp.forward(NETWORK, params, X[0])
        return trace.inputs, trace.preactivations

    _, expected = jax.jvp(of, (PARAMS,), (VECTOR,))
    trace = jaxmlp.forward(NETWORK, PARAMS, X[0])
    assert_close(tuple(curvature.forward_tangent(NETWORK, PARAMS, trace, VECTOR)), expected)
