"""The ten slips of substance in the derivation on paper.

In each test the paper's LITERAL line is evaluated and seen to be wrong, against jax.grad or
jax.jacobian of a plain loss, and the corrected one is seen to be right.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from jaxmlp import equations

# Right means: a few float64 roundings (5e-16 of the largest entry) with room for the sums.
TOLERANCE = 1e-13
# Wrong means: by a twentieth of the largest entry at least, which no rounding does.
MARGIN = 0.05


class Case(NamedTuple):
    """One random network and one example whose target has the total 1."""

    w1: jax.Array  # (H, D)
    w2: jax.Array  # (K, H)
    x: jax.Array  # (D,)
    t: jax.Array  # (K,)


def draw(sizes, one_hot, seed=0):
    inputs, hidden, outputs = sizes
    for_w1, for_w2, for_x, for_t = jax.random.split(jax.random.key(seed), 4)
    t = jax.random.uniform(for_t, (outputs,), jnp.float64, minval=0.1, maxval=1.0)
    return Case(
        w1=jax.random.normal(for_w1, (hidden, inputs), jnp.float64) / math.sqrt(inputs),
        w2=jax.random.normal(for_w2, (outputs, hidden), jnp.float64) / math.sqrt(hidden),
        x=jax.random.normal(for_x, (inputs,), jnp.float64),
        t=jnp.zeros_like(t).at[1].set(1) if one_hot else t / jnp.sum(t),
    )


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=[True, False], ids=["one-hot", "distribution"])
def one_hot(request):
    return request.param


@pytest.fixture(params=[(5, 4, 3), (4, 4, 4)], ids=["5-4-3", "4-4-4"])
def case(request, one_hot):
    return draw(request.param, one_hot)


def difference(ours, truth):
    assert ours.shape == truth.shape
    return jnp.max(jnp.abs(ours - truth)) / jnp.max(jnp.abs(truth))


def assert_right(ours, truth):
    assert difference(ours, truth) <= TOLERANCE


def assert_wrong(literal, truth):
    assert difference(literal, truth) >= MARGIN


# The plain loss of one example, N = 1. It shares no code with equations.py.


def loss_of_y2(y2, t):
    return -jnp.vdot(t, jnp.log(y2))


def loss_of_z2(z2, t):
    return -jnp.vdot(t, jax.nn.log_softmax(z2))


def loss_of_z1(z1, w2, t):
    return loss_of_z2(w2 @ jax.nn.sigmoid(z1), t)


def loss_of_weights(w1, w2, x, t):
    return loss_of_z1(w1 @ x, w2, t)


# -------------------------------------------------------------------------------- question 2


def test_slip_1_the_first_attempt_lacks_a_minus_and_the_off_diagonal_of_the_jacobian(case):
    z2, y2 = equations.forward(case.w1, case.w2, case.x)[2:]
    truth_y2 = jax.grad(loss_of_y2)(y2, case.t)
    assert_wrong(case.t / y2, truth_y2)  # printed as ∂E/∂y
    assert_right(equations.loss_gradient_y2(y2, case.t), truth_y2)

    total = jnp.sum(jnp.exp(z2))
    printed_jacobian = jnp.exp(z2) / total - jnp.exp(z2) * jnp.exp(z2) / total**2
    truth_z2 = jax.grad(loss_of_z2)(z2, case.t)
    assert_wrong(case.t / y2 * printed_jacobian, truth_z2)  # the attempt as printed
    assert_wrong(-case.t / y2 * printed_jacobian, truth_z2)  # with the minus alone
    assert_wrong(case.t / y2 @ equations.softmax_jacobian(y2), truth_z2)  # the whole matrix alone
    assert_right(-case.t / y2 @ equations.softmax_jacobian(y2), truth_z2)  # with both


def test_slip_2_question_2_drops_the_1_over_n_of_question_1(case):
    z2, y2 = equations.forward(case.w1, case.w2, case.x)[2:]
    n = 7

    def question_1(z2):
        return -(1 / n) * jnp.vdot(case.t, jax.nn.log_softmax(z2))

    truth = jax.grad(question_1)(z2)
    assert_wrong(y2 - case.t, truth)  # question 2's last line
    assert_right(equations.loss_gradient_z2(y2, case.t, n), truth)


def test_slip_3_the_entries_of_the_row_vector_have_the_wrong_sign(case):
    z2, y2 = equations.forward(case.w1, case.w2, case.x)[2:]
    jacobian = jax.jacobian(jax.nn.softmax)(z2)  # row i: y_i, column j: z_j
    truth = jax.grad(loss_of_z2)(z2, case.t)
    # entry j as printed: Σ_i (t_i / y_i) ∂y_j/∂z_i
    assert_wrong(jnp.einsum("i,ji->j", case.t / y2, jacobian), truth)
    # entry j: Σ_i (−t_i / y_i) ∂y_i/∂z_j
    assert_right(jnp.einsum("i,ij->j", -case.t / y2, jacobian), truth)


def test_slip_3_the_transpose_of_the_softmax_jacobian_is_harmless(case):
    z2, y2 = equations.forward(case.w1, case.w2, case.x)[2:]
    printed = jax.jacobian(jax.nn.softmax)(z2).T  # row i: ∂/∂z_i, column j: of y_j
    assert_right(equations.softmax_jacobian(y2), printed)
    # with the sign mended, the printed Σ_i ∂y_j/∂z_i gives the right vector
    truth = jax.grad(loss_of_z2)(z2, case.t)
    assert_right(jnp.einsum("i,ij->j", -case.t / y2, printed), truth)


def test_slip_4_the_sum_over_the_other_classes_must_be_subtracted(case):
    z2, y = equations.forward(case.w1, case.w2, case.x)[2:]
    t = case.t
    others = 1 - jnp.eye(y.shape[0])  # 1 where i ≠ j
    the_sum = jnp.einsum("ij,i,ij->j", others, t / y, -y[:, None] * y[None, :])
    last_term = t / y * (y * (1 - y))
    next_line = others @ t * y + y * t - t  # Σ_{i≠j} t_i y_j + y_j t_j − t_j

    truth = jax.grad(loss_of_z2)(z2, t)
    assert_wrong(the_sum - last_term, truth)  # as printed
    assert_wrong(the_sum - last_term, next_line)  # so the next line does not follow from it
    assert_right(-the_sum - last_term, truth)
    assert_right(-the_sum - last_term, next_line)


@pytest.mark.parametrize("total", [0.5, 3.0])
def test_slip_5_the_last_step_needs_targets_of_total_1(case, total):
    z2, y2 = equations.forward(case.w1, case.w2, case.x)[2:]
    t = total * case.t
    truth = jax.grad(loss_of_z2)(z2, t)
    assert_wrong(y2 - t, truth)  # the last line
    assert_right(y2 * jnp.sum(t) - t, truth)  # the line before it
    assert_right(equations.loss_gradient_z2(y2, t), truth)


# -------------------------------------------------------------------------------- question 4


def test_slip_6_the_second_line_of_question_4_is_a_vector_and_its_component_u_is_meant(case):
    _, y1, z2, y2 = equations.forward(case.w1, case.w2, case.x)
    truth = jax.grad(loss_of_weights, argnums=1)(*case)
    gradient_z2 = jax.grad(loss_of_z2)(z2, case.t)
    ours = equations.loss_gradient_w2(equations.loss_gradient_z2(y2, case.t), y1)
    for u, v in [(0, 0), (2, 1), (1, 3)]:
        literal = gradient_z2 * y1[v]  # ∂E/∂z · y_v, printed as ∂E/∂W_uv
        assert literal.shape == gradient_z2.shape != truth[u, v].shape == ()
        assert_right(literal[u], truth[u, v])
        assert_right(ours[u, v], truth[u, v])


# -------------------------------------------------------------------------------- question 5


def test_slip_7_two_lines_of_question_5_have_a_factor_too_many(case):
    z = equations.forward(case.w1, case.w2, case.x).z1
    truth = jax.vmap(jax.grad(jax.nn.sigmoid))(z)
    first = (-1) * (-1) * (1 + jnp.exp(-z)) * jnp.exp(-z) / (1 + jnp.exp(-z)) ** 2
    second = jnp.exp(-z) * (1 + jnp.exp(-z)) / (1 + jnp.exp(-z)) ** 2
    third = (-1) * (-1) * jnp.exp(-z) / (1 + jnp.exp(-z)) ** 2
    assert_wrong(first, truth)
    assert_wrong(second, truth)
    assert_right(first / (1 + jnp.exp(-z)), truth)
    assert_right(second / (1 + jnp.exp(-z)), truth)
    assert_right(third, truth)  # where the paper has dropped the factor
    assert_right(equations.sigmoid_jacobian(equations.sigmoid(z)), jnp.diag(truth))


def test_slip_8_the_hidden_jacobian_is_h_by_h_and_not_10_by_10(one_hot):
    case = draw((5, 12, 3), one_hot)  # H = 12
    z1, y1, _, y2 = equations.forward(case.w1, case.w2, case.x)
    gradient_y1 = equations.loss_gradient_z2(y2, case.t) @ case.w2  # (12,)
    sigma_1_to_10 = y1[:10]
    literal = jnp.diag(sigma_1_to_10 * (1 - sigma_1_to_10))
    truth = jax.jacobian(jax.nn.sigmoid)(z1)
    assert literal.shape == (10, 10)
    assert truth.shape == (12, 12)
    with pytest.raises((TypeError, ValueError)):  # equation 6 cannot be formed with it
        jnp.matmul(gradient_y1, literal)
    assert_right(equations.sigmoid_jacobian(y1), truth)
    assert_right(gradient_y1 @ truth, jax.grad(loss_of_z1)(z1, case.w2, case.t))


# -------------------------------------------------------------------------------- question 6


def test_slip_9_question_6_means_the_outputs_and_not_the_hidden_values(case):
    z1, y1, _, y2 = equations.forward(case.w1, case.w2, case.x)
    truth = jax.grad(loss_of_z1)(z1, case.w2, case.t)
    if y1.shape == y2.shape:
        literal = (y1 - case.t) @ case.w2 @ jnp.diag(y1 * (1 - y1))
        assert_wrong(literal, truth)
    else:
        with pytest.raises((TypeError, ValueError)):  # (H,) minus (K,)
            jnp.subtract(y1, case.t)
    assert_right((y2 - case.t) @ case.w2 @ jnp.diag(y1 * (1 - y1)), truth)
    gradient_y1 = equations.loss_gradient_y1(equations.loss_gradient_z2(y2, case.t), case.w2)
    assert_right(equations.loss_gradient_z1(gradient_y1, y1), truth)


# -------------------------------------------------------------------------------- question 7


def test_slip_10_the_derivative_by_the_first_weights_has_x_once_and_not_squared(case):
    z1 = equations.forward(case.w1, case.w2, case.x).z1
    gradient_z1 = jax.grad(loss_of_z1)(z1, case.w2, case.t)
    truth = jax.grad(loss_of_weights)(*case)

    def printed_factors(row):  # for one u and all v
        one_term = jnp.diag(jax.jacobian(lambda row: row * case.x)(row))  # ∂(W_uv x_v)/∂W_uv
        the_sum = jax.grad(lambda row: jnp.vdot(row, case.x))(row)  # ∂(Σ_i W_ui x_i)/∂W_uv
        return one_term * the_sum

    factors = jax.vmap(printed_factors)(case.w1)
    assert_right(factors, jnp.broadcast_to(case.x**2, case.w1.shape))
    assert_wrong(gradient_z1[:, None] * factors, truth)
    assert_right(equations.loss_gradient_w1(gradient_z1, case.x), truth)
