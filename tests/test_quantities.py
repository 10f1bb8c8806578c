"""What every quantity contracted from the pairs keeps to: rows of weight 0, sizes, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import compilations, in_dtype

import jaxmlp
from jaxmlp import Network, init

pytestmark = pytest.mark.slow  # on the default Python alone: compiling takes most of it


NETWORK = Network((4, 3, 2), "tanh")
RNG = np.random.default_rng(3)
X = RNG.normal(size=(6, 4)).astype(np.float32)
T = np.array([0, 1, 1, 0, 1, 0], np.int32)
W = np.array([1.0, 0.0, 2.0, 0.5, 1.5, 0.0], np.float32)
IDLE = np.flatnonzero(W == 0)
PARAMS = init(NETWORK, jax.random.key(0))
VECTOR = init(NETWORK, jax.random.key(1))


def sampled(function):
    return lambda *args, **options: function(
        *args, fisher="sampled", key=jax.random.key(7), samples=3, **options
    )


def along(function):
    return lambda *args, sample_weight=None, **options: function(
        *args, VECTOR, sample_weight, **options
    )


# The means over a batch: a tree or numbers of Σ w_n … / Σ w_n.
MEANS = {
    "gradient_second_moment": jaxmlp.gradient_second_moment,
    "gradient_variance": jaxmlp.gradient_variance,
    "hessian_vector_product": along(jaxmlp.hessian_vector_product),
    "gauss_newton_vector_product": along(jaxmlp.gauss_newton_vector_product),
    "gauss_newton_diagonal": jaxmlp.gauss_newton_diagonal,
    "gauss_newton_diagonal, sampled": sampled(jaxmlp.gauss_newton_diagonal),
    "kfac_factors": jaxmlp.kfac_factors,
    "kfac_factors, sampled": sampled(jaxmlp.kfac_factors),
    "kfac_factors, empirical": lambda *args, **options: jaxmlp.kfac_factors(
        *args, fisher="empirical", **options
    ),
}
ALL = MEANS | {
    "gradient_gram_matrix": jaxmlp.gradient_gram_matrix,
    "gradient_noise_scale": jaxmlp.gradient_noise_scale,
}
EACH_MEAN = pytest.mark.parametrize("function", MEANS.values(), ids=MEANS)
EACH = pytest.mark.parametrize("function", ALL.values(), ids=ALL)


def assert_close(got, expected, rel=2e-5):
    def close(one, other):
        scale = max(np.abs(other).max(initial=0), 1e-30)
        np.testing.assert_allclose(one, other, rtol=0, atol=rel * scale)

    jax.tree.map(close, got, expected)


@EACH
@pytest.mark.parametrize("targets", ["classes", "distributions"])
def test_a_row_of_weight_0_contributes_exactly_0_whatever_it_holds(function, targets):
    t = T if targets == "classes" else np.eye(2, dtype=np.float32)[T]
    x, garbage = X.copy(), t.copy()
    x[IDLE], x[IDLE[0], 0] = np.nan, np.inf
    garbage[IDLE] = -1 if targets == "classes" else np.nan
    ours = function(NETWORK, PARAMS, x, garbage, sample_weight=W)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ours))
    expected = function(NETWORK, PARAMS, X, t, sample_weight=W)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


@EACH
def test_a_row_of_weight_0_may_have_squares_that_overflow(function):
    x = X.copy()
    x[IDLE] = 1e35
    ours = function(NETWORK, PARAMS, x, T, sample_weight=W)
    expected = function(NETWORK, PARAMS, X, T, sample_weight=W)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


@EACH
def test_a_row_of_weight_0_may_overflow_on_its_way(function):
    network = Network((4, 3, 2), "relu", "poisson")
    params = jax.tree.map(lambda leaf: 10 * leaf, init(network, jax.random.key(0)))
    x, t = X / 10, np.ones((6, 2), np.float32)
    x[IDLE] = 3e38
    assert not np.isfinite(jaxmlp.logits(network, params, x)).all()
    ours = function(network, params, x, t, sample_weight=W)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ours))


@EACH
@pytest.mark.parametrize(("size", "weights"), [(1, W), (4, None), (5, W), (100, None)])
def test_every_microbatch_size_gives_the_same(function, size, weights):
    with jax.enable_x64(True):
        params, x = in_dtype((PARAMS, X), np.dtype(np.float64))
        args = (NETWORK, params, x, T)
        whole = function(*args, sample_weight=weights)
        assert_close(function(*args, sample_weight=weights, microbatch_size=size), whole, 1e-12)


@EACH_MEAN
def test_an_empty_batch_and_one_without_weight_give_0(function):
    for ours in (
        function(NETWORK, PARAMS, X[:0], T[:0]),
        function(NETWORK, PARAMS, X, T, sample_weight=np.zeros(6, np.float32)),
    ):
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(ours))


# What is drawn for an example depends on its place in the batch, and a variance is no mean.
DRAWN = [name for name in MEANS if name.endswith("sampled")]
LINEAR = [name for name in MEANS if name not in [*DRAWN, "gradient_variance"]]


@pytest.mark.parametrize("name", LINEAR)
def test_a_mean_over_the_batch_is_that_of_batches_of_one(name):
    means = [MEANS[name](NETWORK, PARAMS, X[[n]], T[[n]]) for n in range(6)]
    share = W / W.sum()
    expected = jax.tree.map(
        lambda *leaves: sum(w * leaf for w, leaf in zip(share, leaves, strict=True)), *means
    )
    assert_close(MEANS[name](NETWORK, PARAMS, X, T, sample_weight=W), expected)


@pytest.mark.parametrize("name", [*LINEAR, "gradient_variance"])
def test_whole_weights_count_like_repeated_rows(name):
    function = MEANS[name]
    counts = np.array([1, 0, 3, 2, 1, 0])
    rows = np.repeat(np.arange(6), counts)
    ours = function(NETWORK, PARAMS, X, T, sample_weight=counts.astype(np.float32))
    assert_close(ours, function(NETWORK, PARAMS, X[rows], T[rows]))


@EACH
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_near(function, dtype):
    x, params = X.astype(dtype), jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    ours = function(NETWORK, params, x, T, sample_weight=W)
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float32), (x, params))
    expected = function(NETWORK, wide[1], wide[0], T, sample_weight=W)
    if function is jaxmlp.gradient_noise_scale:  # a ratio may be of any size
        ours, expected = ours[:2], expected[:2]
    assert_close(jax.tree.map(lambda leaf: leaf.astype(np.float32), ours), expected, 0.06)


@EACH
def test_under_a_jit_of_the_caller_s_it_is_the_same(function):
    ours = jax.jit(lambda params, x: function(NETWORK, params, x, T, sample_weight=W))(PARAMS, X)
    assert_close(ours, function(NETWORK, PARAMS, X, T, sample_weight=W))


@EACH
def test_it_lowers_for_cuda_on_any_machine(function):
    exported = jax.export.export(
        jax.jit(lambda params, x: function(NETWORK, params, x, T)), platforms=["cuda"]
    )(PARAMS, X)
    assert "dot_general" in exported.mlir_module()


@EACH
def test_a_second_call_compiles_nothing(function):
    function(NETWORK, PARAMS, X, T, sample_weight=W)
    other_x, other_w = X + 1, 2 * W
    with compilations() as compiled:
        jax.jit(lambda x: x - 3)(X)
        assert len(compiled) == 1  # the counter counts
        function(NETWORK, PARAMS, other_x, T, sample_weight=other_w)
        assert len(compiled) == 1


@EACH
@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"microbatch_size": 0}, ValueError, "microbatch_size: expected at least 1, got 0"),
        ({"microbatch_size": 2.0}, TypeError, "microbatch_size: expected an integer or None, got "),
        ({"microbatch_size": True}, TypeError, "microbatch_size: expected an integer or None, got"),
        ({"sample_weight": np.ones(5)}, ValueError, "sample_weight: expected shape (6,), got (5,)"),
    ],
)
def test_bad_arguments_are_named(function, options, kind, message):
    with pytest.raises(kind) as raised:
        function(NETWORK, PARAMS, X, T, **options)
    assert str(raised.value).startswith(message)


@EACH
def test_targets_that_do_not_fit_are_named(function):
    with pytest.raises(ValueError, match=r"^targets: expected shape \(6, 2\) or \(6,\) for 6"):
        function(NETWORK, PARAMS, X, T[:5])
    with pytest.raises(TypeError, match=r"^targets: expected \(N,\) integer classes"):
        function(NETWORK, PARAMS, X, T.astype(np.float32))
