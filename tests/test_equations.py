"""The seven equations against jax.grad and jax.jacobian, and against a network worked by hand."""

import math
import re
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from jaxmlp import equations

# A correct hand-written gradient of these small, sane networks (weights of variance 1/fan-in)
# differs from jax.grad by a few float64 roundings, 5e-16 of the largest entry; 1e-13 leaves room
# for the sums, and a factor of 1 + 1e-12 would still be seen.
TOLERANCE = 1e-13

# D, H, K: all different, so that no transpose can hide; all equal, so that no shape error can
# help; and the narrowest layers.
SIZES = [(5, 4, 3), (4, 4, 4), (2, 3, 5), (1, 2, 3), (3, 1, 2)]
SEEDS = [0, 1, 2]


class Case(NamedTuple):
    """One random network with one example of a batch of n."""

    w1: jax.Array  # (H, D)
    w2: jax.Array  # (K, H)
    x: jax.Array  # (D,)
    t: jax.Array  # (K,), of a total other than 1
    n: int


def draw(sizes, seed):
    inputs, hidden, outputs = sizes
    for_w1, for_w2, for_x, for_t = jax.random.split(jax.random.key(seed), 4)
    return Case(
        w1=jax.random.normal(for_w1, (hidden, inputs), jnp.float64) / math.sqrt(inputs),
        w2=jax.random.normal(for_w2, (outputs, hidden), jnp.float64) / math.sqrt(hidden),
        x=jax.random.normal(for_x, (inputs,), jnp.float64),
        t=jax.random.uniform(for_t, (outputs,), jnp.float64, minval=0.1, maxval=2.0),
        n=7,
    )


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=SIZES, ids=lambda sizes: "-".join(map(str, sizes)))
def sizes(request):
    return request.param


@pytest.fixture(params=SEEDS)
def case(request, sizes):
    return draw(sizes, request.param)


def assert_close(ours, expected):
    assert ours.dtype == expected.dtype == jnp.float64
    assert ours.shape == expected.shape
    error = jnp.max(jnp.abs(ours - expected)) / jnp.max(jnp.abs(expected))
    assert error <= TOLERANCE  # false for a NaN too


# The plain loss, as a function of each quantity on its way. It shares no code with equations.py.


def loss_of_y2(y2, t, n):
    return -jnp.vdot(t, jnp.log(y2)) / n


def loss_of_z2(z2, t, n):
    return -jnp.vdot(t, jax.nn.log_softmax(z2)) / n


def loss_of_y1(y1, w2, t, n):
    return loss_of_z2(w2 @ y1, t, n)


def loss_of_z1(z1, w2, t, n):
    return loss_of_y1(jax.nn.sigmoid(z1), w2, t, n)


def loss_of_weights(w1, w2, x, t, n):
    return loss_of_z1(w1 @ x, w2, t, n)


# ------------------------------------------------------------------------------ each equation


def test_the_forward_pass_is_the_plain_one(case):
    values = equations.forward(case.w1, case.w2, case.x)
    assert_close(values.z1, case.w1 @ case.x)
    assert_close(values.y1, jax.nn.sigmoid(case.w1 @ case.x))
    assert_close(values.z2, case.w2 @ jax.nn.sigmoid(case.w1 @ case.x))
    assert_close(values.y2, jax.nn.softmax(case.w2 @ jax.nn.sigmoid(case.w1 @ case.x)))


def test_equation_1_is_the_plain_loss(case):
    y2 = equations.forward(case.w1, case.w2, case.x).y2
    one_term_each = [float(t) * math.log(float(y)) for t, y in zip(case.t, y2, strict=True)]
    expected = -math.fsum(one_term_each) / case.n
    assert_close(equations.cross_entropy(y2, case.t, case.n), jnp.asarray(expected))
    assert_close(
        equations.cross_entropy(y2, case.t, case.n),
        loss_of_weights(case.w1, case.w2, case.x, case.t, case.n),
    )


def test_equation_1_is_minus_the_logarithm_of_the_true_class_for_a_one_hot_target(case):
    y2 = equations.forward(case.w1, case.w2, case.x).y2
    for true_class in range(y2.shape[0]):
        one_hot = jnp.zeros_like(y2).at[true_class].set(1)
        expected = -(1 / case.n) * jnp.log(y2[true_class])  # question 1's own line
        assert_close(equations.cross_entropy(y2, one_hot, case.n), expected)


def test_equation_2_is_the_gradient_in_z2(case):
    z2, y2 = equations.forward(case.w1, case.w2, case.x)[2:]
    expected = jax.grad(loss_of_z2)(z2, case.t, case.n)
    assert_close(equations.loss_gradient_z2(y2, case.t, case.n), expected)


def test_equation_2_is_the_product_of_its_two_factors(case):
    z2, y2 = equations.forward(case.w1, case.w2, case.x)[2:]
    factor = equations.loss_gradient_y2(y2, case.t, case.n)
    jacobian = equations.softmax_jacobian(y2)
    assert_close(factor, jax.grad(loss_of_y2)(y2, case.t, case.n))
    assert_close(jacobian, jax.jacobian(jax.nn.softmax)(z2))
    assert_close(factor @ jacobian, equations.loss_gradient_z2(y2, case.t, case.n))


def test_equation_2_is_y_minus_t_for_targets_of_total_1(case):
    y2 = equations.forward(case.w1, case.w2, case.x).y2
    t = case.t / jnp.sum(case.t)
    assert_close(equations.loss_gradient_z2(y2, t), y2 - t)  # question 2's own result, N = 1


def test_equation_3_is_the_gradient_in_y1(case):
    _, y1, _, y2 = equations.forward(case.w1, case.w2, case.x)
    gradient_z2 = equations.loss_gradient_z2(y2, case.t, case.n)
    expected = jax.grad(loss_of_y1)(y1, case.w2, case.t, case.n)
    assert_close(equations.loss_gradient_y1(gradient_z2, case.w2), expected)


def test_equation_4_is_the_gradient_in_w2(case):
    _, y1, _, y2 = equations.forward(case.w1, case.w2, case.x)
    gradient_z2 = equations.loss_gradient_z2(y2, case.t, case.n)
    expected = jax.grad(loss_of_weights, argnums=1)(*case)
    assert_close(equations.loss_gradient_w2(gradient_z2, y1), expected)


def test_equation_5_is_the_jacobian_of_the_sigmoid(case):
    z1, y1 = equations.forward(case.w1, case.w2, case.x)[:2]
    assert_close(equations.sigmoid_jacobian(y1), jax.jacobian(jax.nn.sigmoid)(z1))


def test_equation_6_is_the_gradient_in_z1(case):
    z1, y1, _, y2 = equations.forward(case.w1, case.w2, case.x)
    gradient_z2 = equations.loss_gradient_z2(y2, case.t, case.n)
    gradient_y1 = equations.loss_gradient_y1(gradient_z2, case.w2)
    expected = jax.grad(loss_of_z1)(z1, case.w2, case.t, case.n)
    assert_close(equations.loss_gradient_z1(gradient_y1, y1), expected)


def test_equation_7_is_the_gradient_in_w1(case):
    z1 = equations.forward(case.w1, case.w2, case.x).z1
    gradient_z1 = jax.grad(loss_of_z1)(z1, case.w2, case.t, case.n)
    expected = jax.grad(loss_of_weights, argnums=0)(*case)
    assert_close(equations.loss_gradient_w1(gradient_z1, case.x), expected)


def test_the_equations_in_turn_are_the_gradient_in_both_weights(case):
    ours = equations.loss_gradients(*case)
    expected = jax.grad(loss_of_weights, argnums=(0, 1))(*case)
    assert_close(ours[0], expected[0])
    assert_close(ours[1], expected[1])


# --------------------------------------------------------------------- what follows from them


def test_the_sum_over_n_examples_is_the_gradient_of_the_mean_loss(sizes):
    w1, w2 = draw(sizes, 10)[:2]
    batch = [draw(sizes, seed) for seed in (11, 12, 13)]

    def mean_loss(w1, w2):
        losses = [loss_of_weights(w1, w2, example.x, example.t, 1) for example in batch]
        return jnp.mean(jnp.stack(losses))

    ours = [equations.loss_gradients(w1, w2, example.x, example.t, n=3) for example in batch]
    expected = jax.grad(mean_loss, argnums=(0, 1))(w1, w2)
    assert_close(ours[0][0] + ours[1][0] + ours[2][0], expected[0])
    assert_close(ours[0][1] + ours[1][1] + ours[2][1], expected[1])


def test_the_equations_repeat_for_another_hidden_layer_and_biases():
    keys = jax.random.split(jax.random.key(3), 5)
    widths = (5, 4, 6, 3)
    shapes = zip(widths[1:], widths[:-1], strict=True)
    weights = [jax.random.normal(keys[i], s, jnp.float64) / 2 for i, s in enumerate(shapes)]
    biases = [jnp.array([0.1, -0.2, 0.3, 0.4]), jnp.linspace(-0.3, 0.2, 6), jnp.arange(3.0) / 10]
    x = jax.random.normal(keys[3], (5,), jnp.float64)
    t = jax.random.uniform(keys[4], (3,), jnp.float64)

    def loss(weights, biases):
        first = jax.nn.sigmoid(weights[0] @ x + biases[0])
        second = jax.nn.sigmoid(weights[1] @ first + biases[1])
        return loss_of_z2(weights[2] @ second + biases[2], t, 1)

    a1 = equations.sigmoid(weights[0] @ x + biases[0])
    a2 = equations.sigmoid(weights[1] @ a1 + biases[1])
    delta3 = equations.loss_gradient_z2(equations.softmax(weights[2] @ a2 + biases[2]), t)
    delta2 = equations.loss_gradient_z1(equations.loss_gradient_y1(delta3, weights[2]), a2)
    delta1 = equations.loss_gradient_z1(equations.loss_gradient_y1(delta2, weights[1]), a1)

    for_weights, for_biases = jax.grad(loss, argnums=(0, 1))(weights, biases)
    for layer, (delta, a) in enumerate([(delta1, x), (delta2, a1), (delta3, a2)]):
        assert_close(equations.loss_gradient_w1(delta, a), for_weights[layer])
        assert_close(delta, for_biases[layer])


# ------------------------------------------------------------- where the paper's forms cancel


def test_y_minus_t_is_zero_for_a_confident_true_class_and_the_other_form_is_not():
    z2 = jnp.array([20.0, 0.0, 1.0], jnp.float32)
    t = jnp.array([1.0, 0.0, 0.0], jnp.float32)
    y2 = equations.softmax(z2)
    # y_0 = 1 / (1 + e^−20 + e^−19), and δ_0 = y_0 − 1 = −(e^−20 + e^−19) y_0 = −7.66e-9
    rest = math.exp(-20) + math.exp(-19)
    truth = -rest / (1 + rest)
    assert equations.loss_gradient_z2(y2, t)[0] == 0  # y_0 rounds to 1

    others = y2[1] + y2[2]
    without_cancelling = y2[0] * (jnp.sum(t) - t[0]) - t[0] * others
    assert without_cancelling.dtype == jnp.float32
    # about ten float32 roundings of 6e-8 each, and exp of the size 1e8
    assert abs(float(without_cancelling) / truth - 1) < 1e-6


def test_the_two_forms_of_the_output_gradient_are_equal(case):
    y = equations.forward(case.w1, case.w2, case.x).y2
    t, s = case.t, jnp.sum(case.t)
    others = (1 - jnp.eye(y.shape[0])) @ y
    assert_close(y * (s - t) - t * others, equations.loss_gradient_z2(y, t))


def test_y_times_one_minus_y_is_zero_beyond_17_and_the_product_of_two_sigmoids_is_not():
    z = jnp.array([17.0, 20.0, 40.0], jnp.float32)
    y = equations.sigmoid(z)
    assert jnp.all(jnp.diag(equations.sigmoid_jacobian(y)) == 0)  # e^−z < 2^−24: y rounds to 1

    without_cancelling = equations.sigmoid(z) * equations.sigmoid(-z)
    assert without_cancelling.dtype == jnp.float32
    for ours, at in zip(without_cancelling, (17.0, 20.0, 40.0), strict=True):
        # σ′ = e^−z / (1 + e^−z)²; a few float32 roundings of 6e-8
        truth = math.exp(-at) / (1 + math.exp(-at)) ** 2
        assert abs(float(ours) / truth - 1) < 1e-6


# ------------------------------------------------------------- a 3-2-2 network worked by hand

W1 = [[0.1, -0.2, 0.3], [0.4, 0.5, -0.6]]
W2 = [[0.7, -0.8], [-0.9, 1.0]]
X = [1.0, 2.0, -1.0]
T = [0.0, 1.0]

WORKED = {
    # z1_1 = 0.1·1 − 0.2·2 + 0.3·(−1) = 0.1 − 0.4 − 0.3 = −0.6
    # z1_2 = 0.4·1 + 0.5·2 − 0.6·(−1) = 0.4 + 1.0 + 0.6 = 2.0
    "z1": [-0.600000, 2.000000],
    # y1_1 = 1 / (1 + e^0.6) = 1 / 2.822119;  y1_2 = 1 / (1 + e^−2) = 1 / 1.135335
    "y1": [0.354344, 0.880797],
    # z2_1 =  0.7·0.354344 − 0.8·0.880797 =  0.248041 − 0.704638 = −0.456597
    # z2_2 = −0.9·0.354344 + 1.0·0.880797 = −0.318909 + 0.880797 =  0.561888
    "z2": [-0.456597, 0.561888],
    # e^−0.456597 = 0.633436 and e^0.561888 = 1.753980, together 2.387416
    # y2_1 = 0.633436 / 2.387416;  y2_2 = 1.753980 / 2.387416
    "y2": [0.265323, 0.734677],
    # equation 1: E = −(0·log 0.265323 + 1·log 0.734677) = 0.308324
    "E": [0.308324],
    # first factor of equation 2: −0 / 0.265323 = 0;  −1 / 0.734677 = −1.361142
    "dE_dy2": [0.000000, -1.361142],
    # second factor of equation 2: 0.265323·(1 − 0.265323) = 0.265323·0.734677 = 0.194927,
    # off the diagonal −0.265323·0.734677 = −0.194927; with two classes 1 − y_1 = y_2
    "dy2_dz2": [[0.194927, -0.194927], [-0.194927, 0.194927]],
    # equation 2: y2 − t = (0.265323 − 0, 0.734677 − 1); the product of the two factors agrees:
    # (−1.361142)·(−0.194927) = 0.265323 and (−1.361142)·0.194927 = −0.265323
    "dE_dz2": [0.265323, -0.265323],
    # equation 3: 0.265323·0.7 − 0.265323·(−0.9) = 0.265323·1.6 = 0.424516 (of 0.265322642)
    #             0.265323·(−0.8) − 0.265323·1.0 = −0.265323·1.8 = −0.477581
    "dE_dy1": [0.424516, -0.477581],
    # equation 4: 0.265323·0.354344 = 0.094015;  0.265323·0.880797 = 0.233695; second row negated
    "dE_dW2": [[0.094015, 0.233695], [-0.094015, -0.233695]],
    # equation 5: 0.354344·0.645656 = 0.228784;  0.880797·0.119203 = 0.104994
    "dy1_dz1": [[0.228784, 0.000000], [0.000000, 0.104994]],
    # equation 6: 0.424516·0.228784 = 0.097123;  −0.477581·0.104994 = −0.050143
    "dE_dz1": [0.097123, -0.050143],
    # equation 7: 0.097123·(1, 2, −1) and −0.050143·(1, 2, −1)
    "dE_dW1": [[0.097123, 0.194245, -0.097123], [-0.050143, -0.100286, 0.050143]],
}


def computed(name):
    w1, w2, x, t = jnp.array(W1), jnp.array(W2), jnp.array(X), jnp.array(T)
    z1, y1, z2, y2 = equations.forward(w1, w2, x)
    gradient_z2 = equations.loss_gradient_z2(y2, t)
    gradient_y1 = equations.loss_gradient_y1(gradient_z2, w2)
    gradient_z1 = equations.loss_gradient_z1(gradient_y1, y1)
    return {
        "z1": z1,
        "y1": y1,
        "z2": z2,
        "y2": y2,
        "E": equations.cross_entropy(y2, t)[None],
        "dE_dy2": equations.loss_gradient_y2(y2, t),
        "dy2_dz2": equations.softmax_jacobian(y2),
        "dE_dz2": gradient_z2,
        "dE_dy1": gradient_y1,
        "dE_dW2": equations.loss_gradient_w2(gradient_z2, y1),
        "dy1_dz1": equations.sigmoid_jacobian(y1),
        "dE_dz1": gradient_z1,
        "dE_dW1": equations.loss_gradient_w1(gradient_z1, x),
    }[name]


@pytest.mark.parametrize("name", WORKED)
def test_the_network_worked_by_hand_has_these_numbers(name):
    ours, expected = computed(name), jnp.array(WORKED[name])
    assert ours.shape == expected.shape
    # six decimals are given: half a unit in the last one, and a rounding of the half itself
    assert jnp.max(jnp.abs(ours - expected)) <= 0.5e-6 * (1 + 1e-6)


# ----------------------------------------------------------- docs/derivation.md tells the truth

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def derivation():
    return (ROOT / "docs" / "derivation.md").read_text(encoding="utf-8")


def test_the_derivation_prints_the_numbers_of_the_network_worked_by_hand(derivation):
    # a row: | equation | `name` | how | `numbers` |, a matrix with its rows parted by semicolons
    rows = re.findall(r"^\|[^|]*\| `(\w+)` \|[^|]*\| `([-0-9. ;]+)` \|$", derivation, re.MULTILINE)
    printed = {
        name: [[float(number) for number in row.split()] for row in numbers.split(";")]
        for name, numbers in rows
    }
    assert printed == {
        name: (numbers if isinstance(numbers[0], list) else [numbers])
        for name, numbers in WORKED.items()
    }


def test_the_derivation_quotes_the_code_as_it_stands(derivation):
    code = (ROOT / "jaxmlp" / "equations.py").read_text(encoding="utf-8")
    lines_of_code = {line.strip() for line in code.splitlines()}
    fences = re.findall(r"^```python\n(.*?)^```$", derivation, re.MULTILINE | re.DOTALL)
    quoted = [line.strip() for fence in fences for line in fence.splitlines() if line.strip()]
    assert len(fences) >= 7  # one an equation
    assert [line for line in quoted if line not in lines_of_code] == []


def test_every_test_that_the_derivation_names_is_there_and_every_slip_has_one(derivation):
    named = set(re.findall(r"`(test_\w+\.py::test_\w+)`", derivation))
    present = {
        f"{name}::{function}"
        for name in ("test_equations.py", "test_slips.py")
        for function in re.findall(
            r"^def (test_\w+)", (ROOT / "tests" / name).read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    slips = {name for name in present if name.startswith("test_slips.py::test_slip_")}
    equation_tests = {name for name in present if "::test_equation_" in name}
    assert named - present == set()
    assert (slips | equation_tests) - named == set()
