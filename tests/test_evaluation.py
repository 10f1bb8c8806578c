"""Figures of merit and predictions over arrays of any size, against direct computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Case, assert_close, compilations, draw, in_dtype

from jaxmlp import (
    Layer,
    Network,
    evaluate,
    fit,
    fit_ensemble,
    init,
    init_members,
    loss,
    predictions,
)
from jaxmlp.evaluation import CHUNK, Metrics, aligned_zeros
from jaxmlp.verification import oracles

# Sums of some thousand float32 numbers of one sign: √3000 roundings of 6e-8 at worst, and those of
# the logits.
FLOAT32 = 1e-5

CASES = {
    "classes": Case("classes", Network((4, 5, 3), "relu"), classes=True, weighted=True),
    "distributions": Case("distributions", Network((4, 5, 3), "tanh")),
    "binary": Case("binary", Network((4, 2), loss="sigmoid_binary_cross_entropy"), weighted=True),
    "regression": Case("regression", Network((4, 3, 1), "tanh", "squared_error"), weighted=True),
    "counts": Case("counts", Network((4, 3, 2), "tanh", "poisson")),
}
SIZES = [1, CHUNK - 1, CHUNK, CHUNK + 1, 3000]
KIND = pytest.mark.parametrize("kind", CASES)


def drawn(kind, n_examples):
    """A network and float32 arrays of that size; the targets of binary problems are 0 or 1."""
    network = CASES[kind].network
    params, x, t, w = draw(CASES[kind], n_examples=n_examples)
    if network.loss == "sigmoid_binary_cross_entropy":
        t = (t > 0.5).astype(float)
    return network, in_dtype(params, jnp.float32), x, t, w


def logits_of(network, params, x):
    return oracles.numpy_logits(network.activations, params, x)


def predictions_of(network, z):
    """The prediction of the logits z (N, K), in NumPy float64."""
    if network.loss == "softmax_cross_entropy":
        return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    if network.loss == "sigmoid_binary_cross_entropy":
        return 1 / (1 + np.exp(-z))
    return np.exp(z) if network.loss == "poisson" else z


@KIND
@pytest.mark.parametrize("n_examples", SIZES)
def test_evaluate_is_the_loss_and_the_accuracy_computed_directly(kind, n_examples):
    network, params, x, t, w = drawn(kind, n_examples)
    metrics = evaluate(network, params, x, t, w)
    expected = oracles.numpy_loss(network.activations, network.loss, params, x, t, w)
    assert metrics.loss == pytest.approx(expected, rel=FLOAT32)
    z = logits_of(network, params, x)
    if kind == "classes":
        right = np.argmax(z, axis=1) == t
    elif kind == "distributions":
        right = np.argmax(z, axis=1) == np.argmax(t, axis=1)
    elif kind == "binary":
        right = ((z > 0) == (t > 0.5)).all(axis=1)  # both decisions
    else:
        assert metrics.accuracy is None
        return
    assert metrics.accuracy == pytest.approx(np.average(right, weights=w), rel=FLOAT32)


@KIND
@pytest.mark.parametrize("n_examples", [0, *SIZES])
def test_predictions_are_those_computed_directly(kind, n_examples):
    network, params, x, *_ = drawn(kind, n_examples)
    result = predictions(network, params, x)
    assert isinstance(result, jax.Array) and result.dtype == jnp.float32
    z = logits_of(network, params, x).reshape(-1, network.sizes[-1])
    assert_close(result, predictions_of(network, z), FLOAT32)


def test_an_example_worked_by_hand():
    # z = x. Row 1: softmax (1/4, 3/4), class 1: −log ¾, right. Row 2: (3/4, 1/4), class 1: −log ¼,
    # wrong. Weights 3 and 1: loss (3 log(4/3) + log 4)/4, accuracy 3/4.
    network = Network((2, 2), bias=False)
    params = (Layer(jnp.eye(2), None),)
    x = np.log([[1.0, 3.0], [3.0, 1.0]])
    metrics = evaluate(network, params, x, [1, 1], [3, 1])
    assert metrics == pytest.approx(((3 * np.log(4 / 3) + np.log(4)) / 4, 0.75), rel=1e-6)


def test_of_equal_outputs_the_first_is_the_prediction():
    network = Network((3, 3), bias=False)
    params = (Layer(jnp.eye(3), None),)
    x = np.array([[1, 1, 0], [1, 1, 0], [0, 2, 2], [0, 2, 2], [0, 0, 0], [0, 0, 0]], np.float32)
    t = np.array([0, 1, 1, 2, 0, 2])
    np.testing.assert_array_equal(np.argmax(x, axis=1) == t, [1, 0, 1, 0, 1, 0])
    for row, target in zip(x, t, strict=True):
        right = np.argmax(row) == target
        assert evaluate(network, params, row[None], target[None]).accuracy == right


def test_other_sizes_compile_nothing():
    network, params, x, t, w = drawn("classes", 3000)
    assert w is not None
    evaluate(network, params, x, t, w)
    predictions(network, params, x)
    with compilations() as compiled:
        jax.jit(lambda x: 5 * x + len(t))(1.0)
        assert len(compiled) == 1  # the counter counts
        for n_examples in (3, 700, 1500, 2222, 2999):  # sizes that no other test has compiled for
            part = slice(0, n_examples)
            evaluate(network, params, x[part], t[part], w[part])
            evaluate(network, params, x[part], t[part])
            predictions(network, params, x[part])
        assert len(compiled) == 1


def test_rows_of_weight_0_may_hold_anything():
    network, params, x, t, w = drawn("classes", 1500)
    clean = evaluate(network, params, x, t, w)
    idle = np.flatnonzero(w == 0)
    assert len(idle) > 0
    x[idle], t[idle] = np.nan, -1
    kept = x.copy(), t.copy()
    assert evaluate(network, params, x, t, w) == clean
    np.testing.assert_array_equal(x, kept[0])  # the caller's arrays are as they were
    np.testing.assert_array_equal(t, kept[1])


def test_weights_that_are_all_0_give_0():
    network, params, x, t, _ = drawn("classes", 5)
    assert evaluate(network, params, x, t, np.zeros(5)) == Metrics(0.0, 0.0)


@pytest.mark.parametrize("kind", ["regression", "counts"])
def test_in_bfloat16_evaluate_agrees_with_loss_also_where_targets_need_more_digits(kind):
    # 257 is no bfloat16 number; the loss is computed in float32 from the targets given.
    network, params, x, t, _ = drawn(kind, 8)
    params, t = in_dtype(params, jnp.bfloat16), np.full_like(t, 257.0)
    expected = float(loss(network, params, x, t))
    assert evaluate(network, params, x, t).loss == pytest.approx(expected, rel=FLOAT32)


def test_predictions_inside_the_user_s_own_jit_are_the_same():
    network, params, x, *_ = drawn("classes", 7)
    inside = jax.jit(predictions)(network, params, x.astype(np.float32))
    assert_close(inside, predictions(network, params, x), FLOAT32)
    each = jax.vmap(lambda row: predictions(network, params, row[None, :])[0])(jnp.asarray(x))
    assert_close(each, inside, FLOAT32)


def test_float64_parameters_are_evaluated_in_float64():
    case = CASES["classes"]
    with jax.enable_x64(True):
        params, x, t, w = draw(case, n_examples=CHUNK + 1)
        params = in_dtype(params, jnp.float64)
        metrics = evaluate(case.network, params, x, t, w)
        probabilities = predictions(case.network, params, x)
        assert probabilities.dtype == jnp.float64
        probabilities = np.asarray(probabilities)
    network = case.network
    expected = oracles.numpy_loss(network.activations, network.loss, params, x, t, w)
    # A sum of a thousand float64 numbers.
    assert metrics.loss == pytest.approx(expected, rel=1e-13)
    assert_close(probabilities, predictions_of(network, logits_of(network, params, x)), 1e-13)


GOOD = {"inputs": np.ones((3, 4)), "targets": [0, 1, 2], "sample_weight": [1.0, 2.0, 0.5]}
NAN = np.ones((3, 4))
NAN[1, 2] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"inputs": np.zeros((0, 4)), "targets": np.zeros(0, int), "sample_weight": None},
            "inputs: expected at least one example, got none",
        ),
        (
            {"inputs": NAN},
            "inputs: expected finite numbers, got nan at [1, 2] (1 of 12 are not finite)",
        ),
        ({"inputs": jnp.asarray(NAN, jnp.bfloat16)}, "inputs: expected finite numbers, got nan at"),
        ({"inputs": np.full((3, 4), np.inf)}, "inputs: expected finite numbers, got inf at [0, 0]"),
        ({"targets": [0, 3, 2]}, "targets: expected classes 0 to 2, got 3 at [1] (1 of 3 are out"),
        ({"targets": [-1, 1, 2]}, "targets: expected classes 0 to 2, got -1 at [0]"),
        ({"targets": [0, 1, 2**32]}, "targets: expected classes 0 to 2, got 4294967296 at [2]"),
        (
            {"targets": np.full((3, 3), np.inf)},
            "targets: expected finite numbers, got inf at [0, 0] in float32, whose largest "
            "is 3.4e+38 (9 of 9 are not finite)",
        ),
        ({"sample_weight": [1, -1, 1]}, "sample_weight: expected numbers ≥ 0, got -1.0 at [1]"),
        (
            {"sample_weight": [1, 1, np.nan]},
            "sample_weight: expected finite numbers, got nan at [2]",
        ),
        ({"sample_weight": [1, 1]}, "sample_weight: expected shape (3,), got (2,)"),
        ({"targets": [0, 1]}, "targets: expected shape (3, 3) or (3,) for 3 examples, got (2,)"),
        ({"inputs": np.ones((3, 5))}, "inputs: expected shape (N, 4), got (3, 5)"),
    ],
)
def test_bad_values_are_named(change, message):
    network = Network((4, 3))
    params = init(network, jax.random.key(0))
    with pytest.raises(ValueError) as raised:
        evaluate(network, params, **(GOOD | change))
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        (
            "sigmoid_binary_cross_entropy",
            [0, 1, 2],
            "numbers from 0 to 1 for sigmoid_binary_cross_",
        ),
        ("sigmoid_binary_cross_entropy", [[0], [-1], [1]], "numbers from 0 to 1 for sigmoid_binar"),
        ("sigmoid_binary_cross_entropy", [0.5, 1.001, 0], "numbers from 0 to 1 for sigmoid_binary"),
        ("poisson", [[0], [-1], [2]], "numbers ≥ 0 for poisson, got -1 at [1, 0]"),
        (
            "softmax_cross_entropy",
            [[1, 0], [-0.5, 1], [1, 0]],
            "numbers ≥ 0 for softmax_cross_entropy, got -0.5 at [1, 0]",
        ),
    ],
)
def test_targets_for_which_a_loss_has_no_least_value_are_named(loss, targets, message):
    inputs, targets = np.ones((3, 4)), np.array(targets, np.float32)
    sizes = (4, targets.size // 3)
    network = Network(sizes, loss=loss)
    params = init(network, jax.random.key(0))
    members = init_members(network, jax.random.split(jax.random.key(0), 2))
    key = jax.random.key(1)
    for train in (
        lambda weights=None: evaluate(network, params, inputs, targets, weights),
        lambda weights=None: fit(
            network, params, inputs, targets, sample_weight=weights, key=key, epochs=1
        ),
        lambda weights=None: fit_ensemble(
            network, members, inputs, targets, sample_weight=weights, key=key, epochs=1
        ),
    ):
        with pytest.raises(ValueError) as raised:
            train()
        assert str(raised.value).startswith(f"targets: expected {message}")
        good = np.all((targets >= 0) & (targets <= 1), axis=tuple(range(1, targets.ndim)))
        train(good.astype(float))  # what has no weight may be anything
    assert 0 < good.sum() < 3
    squared = Network(sizes, loss="squared_error")
    assert np.isfinite(evaluate(squared, params, inputs, targets).loss)


@pytest.mark.parametrize("loss", ["sigmoid_binary_cross_entropy", "softmax_cross_entropy"])
def test_a_rounding_beyond_1_is_no_fault(loss):
    network = Network((4, 2), loss=loss)
    targets = np.array([[1 + 1e-7, 0], [-1e-7, 1]])
    params = init(network, jax.random.key(0))
    assert np.isfinite(evaluate(network, params, np.ones((2, 4)), targets).loss)


def test_what_is_traced_is_told_where_to_go():
    network = Network((4, 3))
    params = init(network, jax.random.key(0))
    x, t = np.ones((3, 4)), np.array([0, 1, 2])
    for call in (
        lambda: jax.jit(lambda params: evaluate(network, params, x, t).loss)(params),
        lambda: jax.vmap(lambda x: evaluate(network, params, x, t).loss)(x[None]),
        lambda: jax.grad(
            lambda params: fit(network, params, x, t, key=jax.random.key(1)).params[0].weight[0, 0]
        )(params),
    ):
        with pytest.raises(TypeError, match=r"JAX is tracing: .* take jaxmlp.loss and loss_and_"):
            call()


def test_targets_that_are_floats_for_classes_raise_type_error():
    network = Network((4, 3))
    params = init(network, jax.random.key(0))
    with pytest.raises(TypeError, match=r"^targets: expected \(N,\) integer classes"):
        evaluate(network, params, np.ones((3, 4)), [0.0, 1.0, 2.0])


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ((), ValueError, "params: expected 1 layers, got 0"),
        (None, TypeError, "params: expected a tuple of 1 jaxmlp.Layer"),
        ({"w": np.ones((3, 4))}, TypeError, "params: expected a tuple of 1 jaxmlp.Layer"),
    ],
)
def test_parameters_that_do_not_fit_are_named(params, error, message):
    for call in (
        lambda: evaluate(Network((4, 3)), params, **GOOD),
        lambda: predictions(Network((4, 3)), params, GOOD["inputs"]),
    ):
        with pytest.raises(error) as raised:
            call()
        assert str(raised.value).startswith(message)


def test_predictions_of_inputs_that_do_not_fit_raise():
    network = Network((4, 3))
    with pytest.raises(ValueError, match=r"^inputs: expected shape \(N, 4\), got \(3, 5\)$"):
        predictions(network, init(network, jax.random.key(0)), np.ones((3, 5)))


@pytest.mark.parametrize("rows", [3, 2**17])
def test_aligned_zeros_are_zeros_that_begin_at_a_multiple_of_64_bytes(rows):
    zeros = aligned_zeros((rows, 3), "float32")
    assert zeros.shape == (rows, 3) and zeros.dtype == np.float32 and not zeros.any()
    assert zeros.ctypes.data % 64 == 0
    zeros[-1] = 1  # they are one's own


@pytest.mark.parametrize("rows", [2**40, 2**62])
def test_no_room_for_aligned_zeros_is_said_as_such(rows):
    with pytest.raises(MemoryError, match=r"^no room for an array \(.*, 64\) of float32$"):
        aligned_zeros((rows, 64), "float32")
