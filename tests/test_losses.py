"""Losses from logits: values, gradients, predictions, and the digits of confident examples."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from cases import assert_close

from jaxmlp.losses import LOSSES, smooth
from jaxmlp.verification import oracles

# Closed forms in another order of operations: some ten float64 roundings of 1.1e-16.
TOLERANCE = 1e-14
# Of E and δ in float32: z_j − z_a up to 88 has the rounding error 4e-6, which e^z makes relative.
DIGITS_KEPT = 1e-5
TINY = float(np.finfo(np.float32).tiny)

SOFTMAX = LOSSES["softmax_cross_entropy"]
BINARY = LOSSES["sigmoid_binary_cross_entropy"]
N_OUTPUTS = 5
KINDS = {  # kind of target → its loss
    "softmax, classes": "softmax_cross_entropy",
    "softmax, distributions": "softmax_cross_entropy",
    "binary": "sigmoid_binary_cross_entropy",
    "squared": "squared_error",
    "poisson": "poisson",
}
FLOAT_KINDS = [kind for kind in KINDS if kind != "softmax, classes"]


def examples():
    """Kind → (z, t): twenty examples, the first with five logits of 0, the second with a tie."""
    rng = np.random.default_rng(0)
    z = 3 * rng.normal(size=(20, N_OUTPUTS))
    z[0] = 0
    z[1] = [1, 1, 0, 1, -2]
    targets = {
        "softmax, classes": rng.integers(N_OUTPUTS, size=20),
        "softmax, distributions": rng.uniform(0, 2, size=z.shape),  # of totals from 2 to 8
        "binary": rng.random(z.shape),
        "squared": rng.normal(size=z.shape),
        "poisson": rng.poisson(2.0, size=z.shape).astype(float),
    }
    return {kind: (z, t) for kind, t in targets.items()}


EXAMPLES = examples()


def plain(loss):
    """The oracle for one example."""
    return lambda z, t: oracles.example_losses(loss, z[None, :], t[None])[0]


@pytest.fixture(scope="module")
def computed():
    """Kind → name → (ours, theirs) in float64, in one program."""

    def tables(data):
        tables = {}
        for kind, (z, t) in data.items():
            ours, theirs = LOSSES[KINDS[kind]], plain(KINDS[kind])
            pairs = {
                "value": (ours.value, theirs),
                "gradient": (ours.gradient, jax.grad(theirs)),
                "differentiated value": (jax.grad(ours.value), jax.grad(theirs)),
                "Hessian of the value": (jax.hessian(ours.value), jax.hessian(theirs)),
                "Jacobian of the gradient": (jax.jacfwd(ours.gradient), jax.hessian(theirs)),
            }
            if kind in FLOAT_KINDS:
                pairs["target_gradient"] = (ours.target_gradient, jax.grad(theirs, argnums=1))
            tables[kind] = {
                name: [jax.vmap(f)(z, t) for f in functions] for name, functions in pairs.items()
            }
        return tables

    with jax.enable_x64(True):
        return jax.device_get(jax.jit(tables)(jax.tree.map(jnp.asarray, EXAMPLES)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    [
        "value",
        "gradient",
        "differentiated value",
        "Hessian of the value",
        "Jacobian of the gradient",
    ],
)
def test_our_formula_is_that_of_the_plain_loss_ties_included(computed, kind, name):
    ours, theirs = computed[kind][name]
    assert ours.dtype == np.float64
    assert_close(ours, theirs, TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_columns_is_that_of_every_column(kind, strict_promotion):
    z, t = EXAMPLES[kind]
    gradient = LOSSES[KINDS[kind]].gradient
    with jax.enable_x64(True):
        z, t = jnp.asarray(z), jnp.asarray(t)
        columns = gradient(z.T, t.T)
        assert_close(columns.T, jax.vmap(gradient)(z, t), TOLERANCE)
        assert columns.dtype == z.dtype


@pytest.mark.parametrize("kind", FLOAT_KINDS)
def test_the_gradient_in_the_target_is_that_of_jax_grad(computed, kind):
    ours, theirs = computed[kind]["target_gradient"]
    assert_close(ours, theirs, TOLERANCE)


@pytest.mark.parametrize(
    ("loss", "t", "value", "gradient"),
    [
        # z = (0, log 3): softmax (1/4, 3/4); −log ¾ = log 4 − log 3
        ("softmax_cross_entropy", 1, np.log(4) - np.log(3), [1 / 4, -1 / 4]),
        # t = (2, 4), s = 6: E = 2 log 4 + 4 (log 4 − log 3), δ = 6 (1/4, 3/4) − (2, 4)
        ("softmax_cross_entropy", [2.0, 4.0], 6 * np.log(4) - 4 * np.log(3), [-1 / 2, 1 / 2]),
        # σ(z) = (1/2, 3/4), t = (1, 0): E = log 2 + log 4, δ = (1/2 − 1, 3/4 − 0)
        ("sigmoid_binary_cross_entropy", [1.0, 0.0], 3 * np.log(2), [-1 / 2, 3 / 4]),
        # E = ½ (2² + log² 3), δ = (0 − 2, log 3 − 0)
        ("squared_error", [2.0, 0.0], 2 + np.log(3) ** 2 / 2, [-2, np.log(3)]),
        # e^z = (1, 3), t = (2, 5): E = 1 − 0 + 3 − 5 log 3, δ = (1 − 2, 3 − 5)
        ("poisson", [2.0, 5.0], 4 - 5 * np.log(3), [-1, -2]),
    ],
)
def test_worked_by_hand(loss, t, value, gradient):
    with jax.enable_x64(True):
        z, t = jnp.array([0.0, np.log(3)]), jnp.asarray(t)
        assert_close(jax.jit(LOSSES[loss].value)(z, t), value, TOLERANCE)
        assert_close(jax.jit(LOSSES[loss].gradient)(z, t), np.array(gradient), TOLERANCE)


def test_a_class_is_the_distribution_with_a_one_in_its_place():
    z = jnp.asarray(EXAMPLES["softmax, classes"][0][3], jnp.float32)
    for function in (SOFTMAX.value, SOFTMAX.gradient):
        of_targets = jax.jit(jax.vmap(function, (None, 0)))
        np.testing.assert_array_equal(
            of_targets(z, jnp.arange(N_OUTPUTS)), of_targets(z, jnp.eye(N_OUTPUTS))
        )


@pytest.mark.parametrize("kind", ["softmax, classes", "softmax, distributions"])
def test_the_gradient_of_softmax_sums_to_zero_over_the_outputs(computed, kind):
    # Σ_k (s y_k − t_k) = s − s, whatever s is.
    delta, _ = computed[kind]["gradient"]
    assert np.abs(delta.sum(axis=1)).max() <= TOLERANCE * np.abs(delta).max()


@pytest.mark.parametrize("t", [-1, -7, N_OUTPUTS, 1000, np.iinfo(np.int32).max])
def test_a_class_out_of_range_makes_loss_and_gradient_nan(t):
    z = jnp.arange(N_OUTPUTS, dtype=jnp.float32)
    assert np.isnan(SOFTMAX.value(z, jnp.int32(t)))
    assert np.isnan(SOFTMAX.gradient(z, jnp.int32(t))).all()


def test_who_looks_for_nans_finds_none_in_the_loss_of_a_class():
    with jax.debug_nans(True):
        assert SOFTMAX.value(jnp.array([1.0, 2.0, 0.5]), jnp.int32(1)) > 0


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.uint32])
def test_classes_of_any_integer_dtype_are_right_where_there_are_more_outputs_than_it_can_count(
    dtype,
):
    # 300 is 44 modulo 256, below the class; with equal logits E = log 300 for every class.
    z, t = jnp.zeros(300), jnp.asarray(100, dtype)
    value, delta = jax.jit(lambda *args: (SOFTMAX.value(*args), SOFTMAX.gradient(*args)))(z, t)
    assert_close(value, np.log(300), 1e-6)  # a float32 logarithm
    assert jnp.argmin(delta) == 100


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("softmax_cross_entropy", [1 / 8, 4 / 8, 3 / 8]),  # e^z = (1, 4, 3)
        ("sigmoid_binary_cross_entropy", [1 / 2, 4 / 5, 3 / 4]),
        ("squared_error", [0, np.log(4), np.log(3)]),
        ("poisson", [1, 4, 3]),
    ],
)
def test_the_prediction_is_what_the_logits_stand_for(loss, expected):
    with jax.enable_x64(True):
        prediction = jax.jit(LOSSES[loss].prediction)(jnp.log(jnp.array([1.0, 4.0, 3.0])))
    assert_close(prediction, np.array(expected), TOLERANCE)


@pytest.mark.parametrize("loss", ["sigmoid_binary_cross_entropy", "squared_error", "poisson"])
def test_with_one_output_the_target_may_be_a_scalar(loss):
    z = jnp.array([0.5])
    value, gradient = LOSSES[loss].value, LOSSES[loss].gradient
    assert value(z, jnp.array(1.0)) == value(z, jnp.array([1.0]))
    np.testing.assert_array_equal(gradient(z, jnp.array(1.0)), gradient(z, jnp.array([1.0])))


def test_softmax_with_one_output_has_neither_loss_nor_gradient():
    # y = 1 and E = −t log 1, whatever z is.
    for z in (-1e4, 0.0, 3.0):
        assert SOFTMAX.value(jnp.array([z]), jnp.int32(0)) == 0
        assert SOFTMAX.gradient(jnp.array([z]), jnp.int32(0)) == 0
        assert SOFTMAX.prediction(jnp.array([z])) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_dtype_of_the_logits_is_kept_also_under_strict_promotion(strict_promotion, kind, dtype):
    loss = LOSSES[KINDS[kind]]
    t = EXAMPLES[kind][1][0]
    with jax.enable_x64(True):
        z = jax.ShapeDtypeStruct((N_OUTPUTS,), dtype)
        t = jax.ShapeDtypeStruct(t.shape, dtype if t.dtype == float else jnp.int32)
        for function in (loss.value, loss.gradient, loss.target_gradient):
            assert jax.eval_shape(function, z, t).dtype == dtype
        assert jax.eval_shape(loss.prediction, z).dtype == dtype


# Rows of logits in float32: hidden ties, confident rows at all sizes up to ±1e4, and the border
# (differences of 87) where e^−d leaves the normal numbers.
LOGITS = np.concatenate(
    [
        np.zeros((1, 4)),
        [[3, 3, 3, -9], [17, 0, -4, 1], [1e4, -1e4, 0, 50], [-1e4, -1e4, -1e4, 1e4]],
        # e^−87.6 is below the normal numbers, the sum of three is not.
        [[87.6, 0, 0, 0]],
        [[87, 0, 1, 2], [9990.3, 1e4, 9950.3, 9913.1], [20, 3, 2.5, 0.1], [-1e-6, 0, 1e-6, 0]],
        *(size * np.random.default_rng(1).normal(size=(12, 4)) for size in (1, 10, 100, 2500)),
    ]
).astype(np.float32)


def worst_error(got, exact):
    """The largest relative error; where |exact| is subnormal, of the smallest normal number."""
    errors = [
        abs(mpmath.mpf(float(value)) - truth) / max(abs(truth), mpmath.mpf(TINY) / DIGITS_KEPT)
        if abs(truth) < TINY
        else abs(mpmath.mpf(float(value)) - truth) / abs(truth)
        for value, truth in zip(np.ravel(got), np.ravel(exact), strict=True)
    ]
    return float(max(errors))


@pytest.mark.parametrize("dtype", ["classes", "distributions"])
def test_confident_examples_of_softmax_keep_their_digits_in_float32(dtype):
    n, k = LOGITS.shape
    z = np.repeat(LOGITS, k, axis=0)  # every row with every class
    classes = np.tile(np.arange(k), n)
    t = classes if dtype == "classes" else np.eye(k, dtype=np.float32)[classes]
    value = jax.jit(jax.vmap(SOFTMAX.value))(jnp.asarray(z), jnp.asarray(t))
    delta = jax.jit(jax.vmap(SOFTMAX.gradient))(jnp.asarray(z), jnp.asarray(t))
    assert np.isfinite(value).all() and np.isfinite(delta).all()
    with mpmath.workdps(50):
        exact_value, exact_delta = [], []
        for row, label in zip(z, classes, strict=True):
            # E = log(1 + Σ_{j≠t} e^{z_j − z_t}), δ_j = y_j, δ_t = −Σ_{j≠t} y_j
            row = [mpmath.mpf(float(x)) for x in row]
            e = [mpmath.exp(x - row[label]) for x in row]
            rest = mpmath.fsum(e[j] for j in range(k) if j != label)
            exact_value.append(mpmath.log1p(rest))
            exact_delta += [
                -rest / (1 + rest) if j == label else e[j] / (1 + rest) for j in range(k)
            ]
        assert worst_error(value, exact_value) <= DIGITS_KEPT
        assert worst_error(delta, exact_delta) <= DIGITS_KEPT


def test_a_sum_of_many_tiny_terms_keeps_its_digits_though_each_is_flushed_to_0():
    z = jnp.zeros(100).at[0].set(90.0)  # E = 99 e^−90 = 8.1e-38, and e^−90 = 8e-40 is subnormal
    exact = 99 * np.exp(-90.0)
    assert float(jax.jit(SOFTMAX.value)(z, jnp.int32(0))) == pytest.approx(exact, rel=DIGITS_KEPT)
    delta = jax.jit(SOFTMAX.gradient)(z, jnp.int32(0))
    assert float(delta[0]) == pytest.approx(-exact, rel=DIGITS_KEPT)


@pytest.mark.parametrize("t", [jnp.float32(1), jnp.ones(1), jnp.ones(N_OUTPUTS + 1)])
def test_a_target_that_is_neither_a_class_nor_a_distribution_is_refused(t):
    for function in (SOFTMAX.value, SOFTMAX.gradient):
        with pytest.raises(ValueError, match=r"^target: expected an integer class \(\) or a dist"):
            function(jnp.zeros(N_OUTPUTS), t)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_confident_examples_of_binary_cross_entropy_keep_their_digits_in_float32(t):
    z = LOGITS.reshape(-1, 1)
    targets = jnp.full(z.shape, t)
    value = jax.jit(jax.vmap(BINARY.value))(jnp.asarray(z), targets)
    delta = jax.jit(jax.vmap(BINARY.gradient))(jnp.asarray(z), targets)
    assert np.isfinite(value).all() and np.isfinite(delta).all()
    with mpmath.workdps(50):
        # With u = z for t = 0 and −z for t = 1: E = log(1 + e^u), δ = ±1/(1 + e^−u)
        signed = [mpmath.mpf(float(x)) * (1 - 2 * int(t)) for x in z[:, 0]]
        exact_value = [mpmath.log1p(mpmath.exp(u)) for u in signed]
        exact_delta = [(1 - 2 * int(t)) / (1 + mpmath.exp(-u)) for u in signed]
        assert worst_error(value, exact_value) <= DIGITS_KEPT
        assert worst_error(delta, exact_delta) <= DIGITS_KEPT


@pytest.mark.parametrize(
    ("loss", "t", "expected"),
    [
        # α = 0.2 over 4 classes: 0.2/4 each and 0.8 for the class
        ("softmax_cross_entropy", 2, [0.05, 0.05, 0.85, 0.05]),
        ("softmax_cross_entropy", [0.5, 0.5, 0.0, 0.0], [0.45, 0.45, 0.05, 0.05]),
        # α = 0.2 over two answers: 0.1 each
        ("sigmoid_binary_cross_entropy", [0.0, 1.0, 0.5, 1.0], [0.1, 0.9, 0.5, 0.9]),
    ],
)
def test_smoothed_targets_are_mixed_with_the_uniform_distribution(loss, t, expected):
    with jax.enable_x64(True):
        smoothed = smooth(loss, jnp.zeros(4), jnp.asarray(t), jnp.asarray(0.2))
        assert_close(smoothed, np.array(expected), TOLERANCE)
        unchanged = smooth(loss, jnp.zeros(4), jnp.asarray(t), jnp.asarray(0.0))
    one_hot = np.eye(4)[t] if isinstance(t, int) else np.array(t)
    np.testing.assert_array_equal(unchanged, one_hot)


def test_a_smoothed_class_out_of_range_stays_nan():
    smoothed = smooth("softmax_cross_entropy", jnp.zeros(3), jnp.int32(3), jnp.float32(0.1))
    assert np.isnan(smoothed).all()
