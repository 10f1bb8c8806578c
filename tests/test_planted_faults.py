"""Test the tester: every fault, planted in a student's backward pass, is caught and named.

The backward pass here is a student's: written for a batch, from the equations, in NumPy or in JAX,
without a line of the package's code. Each fault is the slip of the pen that its name says.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlp import Network, check_gradients, equations
from jaxmlp.activations import ACTIVATIONS, Activation
from jaxmlp.losses import LOSSES
from jaxmlp.verification import (
    agreement,
    checks,
    contractions,
    evidence,
    oracles,
    table,
    trials,
    witnesses,
)
from jaxmlp.verification.checks import FLAT_TARGETS
from jaxmlp.verification.diagnosis import MISTAKES, backward_copy

pytestmark = pytest.mark.slow  # on the default Python alone


KEY = jax.random.key(3)
WEIGHTS = np.array([0.5, 2.0, 1.0, 0.25, 1.5])  # of N_EXAMPLES examples

# Widths that differ, so that no transpose can hide; equal ones, where no shape gives it away; and
# equal hidden ones, where some faults fit that fit nowhere else.
NETWORKS = {
    "unequal": Network((5, 4, 6, 3), "relu"),
    "equal": Network((4, 4, 4, 4), "relu"),
    "equal hidden": Network((5, 4, 4, 3), "relu"),
}


def students_gradient(xp, fault="", weights=None):
    """A gradient of softmax cross-entropy after relu layers, in NumPy or JAX, with a fault."""

    def gradient(params, inputs, targets):
        n, depth = len(inputs), len(params)
        w = xp.ones(n) if weights is None or fault == "missing sample weight" else weights
        a, z = [inputs], []
        for number, (weight, bias) in enumerate(params):
            z.append(a[-1] @ weight.T + bias[None, :])
            a.append(xp.where(z[-1] > 0, z[-1], 0.0) if number < depth - 1 else z[-1])
        y = xp.exp(z[-1] - z[-1].max(axis=1, keepdims=True))
        y = y / y.sum(axis=1, keepdims=True)
        t = xp.eye(y.shape[1])[xp.asarray(targets)]
        delta = (y - t) * w[:, None]
        if fault == "a sign":
            delta = -delta
        total = 1.0 if fault == "missing 1/N" else w.sum()
        result = []
        for l in reversed(range(depth)):
            layer_input = a[max(l - 1, 0)] if fault == "off-by-one layer" else a[l]
            bias_total = 1.0 if fault == "a sum for a mean in the bias" else total
            weight_gradient = delta.T @ layer_input / total
            if fault == "the gradient of W transposed":
                weight_gradient = weight_gradient.T
            result = [weight_gradient, delta.sum(axis=0) / bias_total, *result]
            if l > 0:
                slope = xp.where(z[l - 1] > 0, 1.0, 0.0)
                if fault == "missing f'":
                    slope = xp.ones_like(slope)
                elif fault == "relu'(0) = 1/2":
                    slope = xp.where(z[l - 1] == 0, 0.5, slope)
                elif fault == "f' of the wrong layer":
                    slope = xp.where(z[l] > 0, 1.0, 0.0)
                weight = params[l].weight
                delta = (delta @ (weight.T if fault == "W not transposed" else weight)) * slope
        factor = 1.001 if fault == "a factor 1.001" else 1.0
        return [factor * leaf for leaf in result]

    return gradient


# Fault → its name in a report.
FAULTS = {
    "a factor 1.001": "a factor 1.001",
    "missing 1/N": "missing 1/N (a sum for the mean)",
    "a sum for a mean in the bias": "a sum for a mean in the bias",
    "W not transposed": "W not transposed",
    "the gradient of W transposed": "the gradient of W transposed",
    "missing f'": "missing f'",
    "f' of the wrong layer": "f' of the wrong layer",
    "a sign": "a sign",
    "relu'(0) = 1/2": "relu'(0) = 1/2",
    "missing sample weight": "missing sample weight",
    "off-by-one layer": "off-by-one layer",
}


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_the_right_backward_of_a_student_passes(xp, network):
    report = check_gradients(students_gradient(xp), network=network, trials=5, key=KEY)
    assert report.passed and report, report
    assert report.faults == report.failures == report.findings == ()
    weighted = students_gradient(xp, weights=WEIGHTS)
    assert check_gradients(weighted, network=network, sample_weight=WEIGHTS, trials=5, key=KEY)


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_a_student_s_backward_is_caught_and_named(fault, network, xp):
    weights = WEIGHTS if fault == "missing sample weight" else None
    mine = students_gradient(xp, fault, weights)
    report = check_gradients(mine, network=network, sample_weight=weights, trials=5, key=KEY)
    assert not report.passed
    assert FAULTS[fault] in report.faults, report
    text = str(report)
    assert "WRONG" in text and FAULTS[fault] in text
    # The likeliest name comes first, and a report does not name everything.
    assert len(report.faults) <= 2, report


def test_the_list_of_known_mistakes_has_every_fault():
    known = {mistake.name for mistake in MISTAKES}
    assert set(FAULTS.values()) - known == {"a factor 1.001"}  # a factor is found by itself
    assert known - set(FAULTS.values()) == {BROADCAST, "f' in the output layer, which is linear"}


BROADCAST = "every output with every target, (N,) beside (N, 1)"
LOSSES_OF_ONE_OUTPUT = {
    "squared_error": lambda z, t: (z - t) ** 2 / 2,
    "sigmoid_binary_cross_entropy": lambda z, t: jax.nn.softplus(z) - t * z,
    "poisson": lambda z, t: jnp.exp(z) - t * z,
}


def loss_of_flat_outputs(loss):
    """A student's loss of one output: its outputs are (N,)."""

    def mean_loss(params, inputs, targets):
        (w, b), (v, c) = params
        outputs = jax.nn.sigmoid(inputs @ w.T + b[None, :]) @ v[0] + c[0]
        with jax.numpy_rank_promotion("allow"):
            return jnp.mean(LOSSES_OF_ONE_OUTPUT[loss](outputs, targets))

    return mean_loss


@pytest.mark.parametrize(
    ("loss", "jitted"), [*((loss, False) for loss in LOSSES_OF_ONE_OUTPUT), ("poisson", True)]
)
def test_targets_that_broadcast_over_the_outputs_are_named(loss, jitted):
    network = Network((3, 4, 1), loss=loss)
    mine = jax.grad(loss_of_flat_outputs(loss))

    def all_pairs(params, inputs, targets):
        return mine(params, inputs, targets.reshape(-1, 1))

    def right(params, inputs, targets):
        return mine(params, inputs, targets[:, 0])

    for function, faults in ((mine, (FLAT_TARGETS,)), (all_pairs, (BROADCAST,)), (right, ())):
        judged = jax.jit(function) if jitted else function
        report = check_gradients(judged, network=network, trials=5, key=KEY)
        assert (report.faults, report.passed) == (faults, not faults), report


@pytest.mark.parametrize("outputs", [1, 2])
def test_only_one_output_can_meet_every_target(outputs):
    network = Network((3, 4, outputs), loss="squared_error")
    draws = evidence.make_draws(network, 1, np.random.default_rng(0))
    judge = checks.Judge(network, draws, evidence.gather(network, draws, np.dtype(np.float64)))
    given = judge.ingredients(0)
    (mistake,) = [mistake for mistake in MISTAKES if mistake.name == BROADCAST]
    pairs = zip(backward_copy(given, mistake), backward_copy(given), strict=True)
    assert all(np.array_equal(*pair) for pair in pairs) == (outputs > 1)


def test_a_function_for_targets_n_that_raises_for_n_1_is_told_so():
    def mine(params, inputs, targets):
        (w, b), (v, c) = params
        a = np.tanh(inputs @ w.T + b)
        delta = (a @ v[0] + c[0] - targets) / len(inputs)
        hidden = np.outer(delta, v[0]) * (1 - a * a)
        return [hidden.T @ inputs, hidden.sum(0), (delta @ a)[None], np.array([delta.sum()])]

    network = Network((3, 4, 1), "tanh", "squared_error")
    report = check_gradients(mine, network=network, trials=3, key=KEY)
    assert report.faults == (FLAT_TARGETS,)
    line = mine.__code__.co_firstlineno + 4
    assert report.findings[0].startswith("test_planted_faults.mine raised ValueError: ")
    assert report.findings[0].endswith(
        f" in line {line}, given inputs (5, 3) and targets (5, 1)"
    ), report


@pytest.mark.parametrize(
    ("outputs", "factor", "fault"),
    [
        (1, 2.0, "a factor 2, where the squared error is ½ Σ (z − t)²"),
        (3, 2 / 3, "a mean over the outputs, where it is ½ Σ (z − t)²"),
        (3, 1 / 3, "a mean over the outputs for a sum"),
        (1, 1 / 5, "1/N twice"),
        (3, 1 / 5, "1/N twice"),
        (3, 1.5, "a factor 1.5"),
        (1, 1 + 1e-5, "a factor 1.00001"),
    ],
)
def test_a_factor_is_named_by_what_it_may_come_from(outputs, factor, fault):
    network = Network((4, outputs), loss="squared_error")

    def mine(params, inputs, targets):
        ((w, b),) = params
        delta = factor * (inputs @ w.T + b - targets) / len(inputs)
        return [delta.T @ inputs, delta.sum(0)]

    assert check_gradients(mine, network=network, trials=3, key=KEY).faults == (fault,)


def test_a_mean_over_outputs_is_no_squared_error_s_for_another_loss():
    network = Network((4, 2), loss="poisson")

    def mine(params, inputs, targets):
        ((w, b),) = params
        delta = 2 * (np.exp(inputs @ w.T + b) - targets) / len(inputs)
        return [delta.T @ inputs, delta.sum(0)]

    assert check_gradients(mine, network=network, trials=3, key=KEY).faults == ("a factor 2",)


def test_the_loss_before_the_gradient_is_pointed_at():
    mine = jax.value_and_grad(loss_of_flat_outputs("squared_error"))
    report = check_gradients(
        mine, network=Network((3, 4, 1), loss="squared_error"), trials=1, key=KEY
    )
    assert report.findings[0].endswith("got 5, the first a number: the loss is not asked for")


def test_two_faults_at_once_are_named_leaf_by_leaf():
    def mine(params, inputs, targets):
        right = students_gradient(np)(params, inputs, targets)
        return [-right[0], right[1], *(1.5 * leaf for leaf in right[2:])]

    report = check_gradients(mine, network=NETWORKS["unequal"], trials=3, key=KEY)
    assert report.faults == (
        "a sign (in params[0].weight)",
        "a factor 1.5 (in params[1].weight, params[1].bias, params[2].weight, params[2].bias)",
    )


def test_a_fault_that_is_on_no_list_is_caught_with_its_place_and_both_values():
    def mine(params, inputs, targets):
        leaves = students_gradient(np)(params, inputs, targets)
        leaves[2][1, 2] += 1e-6
        return leaves

    report = check_gradients(mine, network=NETWORKS["unequal"], trials=2, key=KEY)
    assert not report.passed and report.faults == ()
    (failure,) = report.failures
    assert (failure.leaf, failure.place) == ("params[1].weight", (1, 2))
    assert failure.got - failure.expected == pytest.approx(1e-6)
    assert "params[1].weight[1, 2]" in str(report)
    assert "no known mistake explains it" in str(report)


# The same for our own backward pass: the check and the rows of the table see what is wrong in it.


def wrong(activation, **parts):
    return Activation(*(activation._replace(**parts)))


def half_at_zero(z):
    return jnp.where(z == 0, jnp.full_like(z, 0.5), ACTIVATIONS["identity"].derivative(z) * (z > 0))


OUR_FAULTS = {
    "a factor in f'": lambda patch: patch.setitem(
        ACTIVATIONS,
        "relu",
        wrong(ACTIVATIONS["relu"], derivative=lambda z: jnp.where(z > 0, 1 + 1e-9, 0 * z)),
    ),
    "relu'(0) = 1/2": lambda patch: patch.setitem(
        ACTIVATIONS, "relu", wrong(ACTIVATIONS["relu"], derivative=half_at_zero)
    ),
    "the forward pass": lambda patch: patch.setitem(
        ACTIVATIONS, "relu", wrong(ACTIVATIONS["relu"], function=lambda z: jnp.maximum(z, 1e-6 * z))
    ),
    "s forgotten in s y - t": lambda patch: patch.setitem(
        LOSSES,
        "softmax_cross_entropy",
        LOSSES["softmax_cross_entropy"]._replace(gradient=lambda z, t: jax.nn.softmax(z) - t),
    ),
}


@pytest.fixture
def short_table(monkeypatch):
    """A table of two cases, relu with softmax cross-entropy, instead of hundreds."""
    few = [
        case
        for case in trials.cases_of("float64", False)
        if set(case.network.activations) == {"relu"}
        and case.network.loss == "softmax_cross_entropy"
        and not case.classes
    ][:2]
    monkeypatch.setattr(agreement, "cases_of", lambda row, full: few)
    monkeypatch.setattr(trials, "cases_of", lambda row, full: few)
    agreement._wide_and_narrow.cache_clear()
    jax.clear_caches()
    yield
    agreement._wide_and_narrow.cache_clear()
    jax.clear_caches()


def rows_of(*names):
    settings = trials.Settings(5)
    chosen = [row for row in table.ROWS if row[0] in names]
    return {row.name: row for row in table.verify(settings, chosen)}


def test_the_short_table_passes_as_it_is(short_table):
    rows = rows_of("float64", "float32", "bfloat16", "float16")
    assert [row.status for row in rows.values()] == ["passed"] * 4


@pytest.mark.parametrize("fault", OUR_FAULTS)
def test_a_fault_in_our_own_pass_fails_the_table(short_table, monkeypatch, fault):
    OUR_FAULTS[fault](monkeypatch)
    row = rows_of("float64")["float64"]
    assert row.status == "failed"
    assert row.bound is not None and row.worst.size > row.bound
    assert row.worst.got != row.worst.expected
    assert row.reproduce.startswith("jaxmlp.verification.repeat('float64', case=")


# And every other row, each with a fault that it alone has to see.


@pytest.fixture
def first_cases(monkeypatch):
    """Every row on its first case alone."""
    few = {row: trials.cases_of(row, False)[:1] for row in ("contractions", "differences", "numpy")}
    for module in (contractions, trials, witnesses):
        monkeypatch.setattr(module, "cases_of", lambda row, full: few[row])
    jax.clear_caches()
    yield monkeypatch
    jax.clear_caches()


def scaled(function, factor):
    """The function with its result off by a factor."""

    def wrong(*arguments, **options):
        return jax.tree.map(lambda leaf: factor * leaf, function(*arguments, **options))

    return wrong


ROW_FAULTS = {
    "equations": (equations, "loss_gradient_w2", 1 + 1e-12),
    "numpy": (oracles, "numpy_loss", 1 + 1e-11),
    "contractions": (contractions, "input_gradients", 1 + 1e-11),
}


@pytest.mark.parametrize("name", [*ROW_FAULTS, "differences"])
def test_a_row_passes_as_it_is(first_cases, name):
    assert rows_of(name)[name].status == "passed"


@pytest.mark.parametrize("name", ROW_FAULTS)
def test_a_row_fails_where_one_side_is_wrong(first_cases, name):
    module, function, factor = ROW_FAULTS[name]
    first_cases.setattr(module, function, scaled(getattr(module, function), factor))
    assert rows_of(name)[name].status == "failed"


@pytest.mark.parametrize(
    "function",
    [
        "per_example_gradients",
        "per_example_gradient_norms",
        "weighted_gradient_sum",
        "clipped_gradient_sum",
        "gradient_gram_matrix",
        "gradient_second_moment",
        "gradient_variance",
        "gradient_noise_scale",
    ],
)
def test_the_row_contractions_sees_a_fault_in_each_of_them(first_cases, function):
    wrong = scaled(getattr(contractions, function), 1 + 1e-11)
    first_cases.setattr(contractions, function, wrong)
    assert rows_of("contractions")["contractions"].status == "failed"


def test_the_row_differences_sees_a_wrong_slope_and_hears_check_vjp(first_cases):
    def no_check(*_):
        return None

    def failing_check(*_):
        raise AssertionError

    first_cases.setattr(witnesses.test_util, "check_vjp", failing_check)
    assert rows_of("differences")["differences"].status == "failed"
    first_cases.setattr(witnesses.test_util, "check_vjp", no_check)
    assert rows_of("differences")["differences"].status == "passed"
    first_cases.setattr(witnesses, "_slope_along", scaled(witnesses._slope_along, 1 + 1e-4))
    assert rows_of("differences")["differences"].status == "failed"


def test_the_row_faults_fails_where_everything_is_named(monkeypatch):
    everything = list(dict.fromkeys(mistake.name for mistake in MISTAKES))
    monkeypatch.setattr(checks, "diagnose", lambda *_, **__: everything)
    assert rows_of("faults")["faults"].status == "failed"


def test_every_draw_of_a_row_with_a_margin_keeps_it():
    for row, margin in (("bfloat16", 5e-2), ("float16", 5e-2), ("differences", 1e-3)):
        for number, case in enumerate(trials.cases_of(row, False)):
            if not {"relu", "leaky_relu"} & set(case.network.activations):
                continue
            draws = trials.draws_of(row, number, trials.Settings(7))
            assert len(draws.inputs) == (1 if row == "differences" else 7)
            for trial in range(len(draws.inputs)):
                h = draws.inputs[trial]
                for weight, bias in draws.trial(trial).params[:-1]:
                    z = h @ weight.T + (0 if bias is None else bias)
                    assert np.all((z == 0) | (abs(z) >= margin))
                    h = np.where(
                        z > 0, z, 0.01 * z if "leaky_relu" in case.network.activations else 0
                    )
