"""check_gradients on anybody's function, the draws of the table, and the table itself."""

import json
from collections import defaultdict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_close

import jaxmlp
from jaxmlp import Layer, Network, check_gradients, init, verification
from jaxmlp.activations import ACTIVATIONS
from jaxmlp.losses import LOSSES
from jaxmlp.verification import accuracy, contractions, evidence, oracles, table
from jaxmlp.verification.cases import LARGEST_LOGIT
from jaxmlp.verification.comparison import NO_DIFFERENCE, Found, Row, compare, to_json
from jaxmlp.verification.evidence import make_draws
from jaxmlp.verification.trials import FLOAT32, FLOAT64, HALVES, Settings, cases_of, draws_of

KEY = jax.random.key(1)
NETWORK = Network((4, 5, 3), "tanh")
RNG = np.random.default_rng(0)
X, T = RNG.normal(size=(7, 4)), RNG.integers(3, size=7)


def plain(network, params, inputs, targets, weights=None):
    args = (network.activations, network.loss, params, inputs, targets, weights)
    return oracles.plain_loss(*args)


@pytest.mark.slow  # on the default Python alone
def test_every_draw_of_the_grid_is_off_its_kinks():
    """As they are compared; so few trials are as good as many."""
    for number, case in enumerate(cases_of("float64", full=False)):
        network, draws = case.network, draws_of("float64", number, Settings(trials=1))
        z, preactivations = draws.inputs, []
        for layer, activation in zip(draws.params, (None, *network.activations), strict=True):
            h = z if activation is None else oracles.NUMPY_ACTIVATIONS[activation](z)
            z = h @ np.swapaxes(layer.weight, 1, 2)
            z = z if layer.bias is None else z + layer.bias[:, None, :]
            preactivations.append(z)
        assert evidence.off_kinks(network, preactivations, 1e-5).all(), str(case)


# Functions of the user's.


def test_what_holds_nothing_is_said_to():
    def partly(make):
        def gradient(params, inputs, targets):
            right = jax.grad(partial(plain, NETWORK))(params, inputs, targets)
            return (right[0], jax.tree.map(make, right[1]))

        return gradient

    for make, what in ((jnp.zeros_like, "0 throughout"), (lambda a: a * jnp.nan, "NaN")):
        report = check_gradients(partly(make), network=NETWORK, trials=3, key=KEY)
        assert report.faults == (f"params[1].weight, params[1].bias is {what}",)
        whole = lambda *arguments, make=make: jax.tree.map(make, arguments[0])  # noqa: E731
        report = check_gradients(whole, network=NETWORK, trials=3, key=KEY)
        assert report.faults == (f"every array is {what}",)


def test_lists_of_numbers_are_told_from_arrays():
    def listed(params, inputs, targets):
        right = jax.grad(partial(plain, NETWORK))(params, inputs, targets)
        return jax.tree.map(lambda leaf: leaf.tolist(), right)

    report = check_gradients(listed, network=NETWORK, trials=2, key=KEY)
    assert not report.passed
    assert report.findings[0].endswith(
        "got 43 numbers: lists of Python's are taken apart, np.array makes one of them"
    )


@pytest.mark.parametrize(
    "network",
    [
        NETWORK,
        Network((4, 3)),
        Network((4, 6, 2), "gelu", "squared_error", bias=False),
        Network((3, 5, 4, 1), ("elu", "silu"), "poisson"),
        Network((3, 4, 2), "softplus", "sigmoid_binary_cross_entropy"),
    ],
    ids=lambda network: f"{network.sizes} {network.loss}",
)
def test_jax_grad_passes_and_so_do_we(network):
    assert check_gradients(jax.jit(jax.grad(partial(plain, network))), network=network, key=KEY)
    report = check_gradients(network=network, key=KEY)
    assert report.passed and report.bound == 1e-13 and report.trials == 20
    assert str(report).startswith("gradient of " + "-".join(map(str, network.sizes)) + ": right")


@pytest.mark.parametrize(
    "wrap",
    [
        list,
        lambda layers: {f"layer {n}": layer._asdict() for n, layer in enumerate(layers)},
        lambda layers: [leaf for layer in layers for leaf in layer],
        lambda layers: [np.asarray(leaf) for leaf in jax.tree.leaves(layers)],
    ],
    ids=["layers", "dictionaries", "flat", "numpy"],
)
def test_a_gradient_may_come_as_any_tree_of_arrays(wrap):
    def mine(params, inputs, targets):
        return wrap(jax.grad(partial(plain, NETWORK))(params, inputs, targets))

    assert check_gradients(mine, network=NETWORK, trials=2, key=KEY)


def test_a_right_gradient_in_float32_passes_and_a_wrong_one_does_not():
    def mine(factor, params, inputs, targets):
        gradient = jax.grad(partial(plain, NETWORK))(params, inputs, targets)
        return jax.tree.map(lambda leaf: (factor * leaf).astype(np.float32), gradient)

    assert check_gradients(partial(mine, 1), network=NETWORK, trials=3, key=KEY)
    report = check_gradients(partial(mine, 1.001), network=NETWORK, trials=3, key=KEY)
    assert report.faults == ("a factor 1.001",)


def test_what_is_given_is_used_and_not_drawn():
    params = init(NETWORK, jax.random.key(0))
    seen = []

    def mine(params, inputs, targets):
        seen.append((params, inputs, targets))
        return jax.grad(partial(plain, NETWORK))(params, inputs, targets)

    report = check_gradients(
        mine, network=NETWORK, params=params, inputs=X, targets=T, trials=9, key=KEY
    )
    assert report.passed and report.trials == 1 and len(seen) == 1
    jax.tree.map(np.testing.assert_array_equal, seen[0], (params, X, T))
    assert {leaf.dtype for leaf in jax.tree.leaves(seen[0][:2])} == {np.dtype(np.float64)}
    # What is not given is drawn, to the number of examples of what is.
    seen.clear()
    assert check_gradients(mine, network=NETWORK, inputs=X, trials=3, key=KEY)
    assert [len(targets) for _, _, targets in seen] == [7, 7, 7]
    assert not np.array_equal(seen[0][0][0].weight, seen[1][0][0].weight)


def test_the_user_s_function_may_overwrite_what_it_gets():
    def mine(params, inputs, targets):
        gradient = jax.device_get(jax.grad(partial(plain, NETWORK))(params, inputs, targets))
        params[0].weight[:] = inputs[:] = 0
        return gradient

    assert check_gradients(mine, network=NETWORK, trials=3, key=KEY)


def test_a_function_that_needs_arrays_of_jax_gets_them():
    def mine(params, inputs, targets):
        inputs = inputs.at[0, 0].set(inputs[0, 0])
        return jax.grad(partial(plain, NETWORK))(params, inputs, targets)

    assert check_gradients(mine, network=NETWORK, trials=2, key=KEY)


def test_the_same_key_makes_the_same_report():
    def mine(params, inputs, targets):
        gradient = jax.grad(partial(plain, NETWORK))(params, inputs, targets)
        return jax.tree.map(lambda leaf: leaf + 1e-3, gradient)

    one, two = (check_gradients(mine, network=NETWORK, trials=3, key=KEY) for _ in range(2))
    assert one == two and not one
    assert one != check_gradients(mine, network=NETWORK, trials=3, key=jax.random.key(2))


def constant(*leaves):
    return lambda params, inputs, targets: list(leaves)


def failing(params, inputs, targets):
    raise KeyError("weights")


@pytest.mark.parametrize(
    ("mine", "finding"),
    [
        (
            constant(np.ones((5, 4))),
            "expected 4 arrays (params[0].weight (5, 4), params[0].bias (5,), "
            "params[1].weight (3, 5), params[1].bias (3,)), got 1",
        ),
        (constant(), "expected 4 arrays"),
        (lambda params, inputs, targets: None, "expected 4 arrays"),
        (
            constant(np.ones((4, 5)), np.ones(5), np.ones((3, 5)), np.ones(3)),
            "params[0].weight: expected shape (5, 4), got (4, 5) (transposed)",
        ),
        (
            constant(np.ones((5, 4)), np.ones((5, 1)), np.ones((3, 5)), np.ones(3)),
            "params[0].bias: expected shape (5,), got (5, 1)",
        ),
        (
            constant(np.ones((5, 4)), np.ones(5), np.ones((3, 5)), np.array(["a"] * 3)),
            "params[1].bias: expected real numbers, got <U1",
        ),
        (failing, "test_verification.failing raised KeyError: 'weights'"),
    ],
)
def test_what_has_not_the_shapes_of_a_gradient_is_a_finding_and_no_crash(mine, finding):
    report = check_gradients(mine, network=NETWORK, trials=2, key=KEY)
    assert not report.passed
    assert any(text.startswith(finding) for text in report.findings), report
    assert finding in str(report)
    assert report.faults == ()  # it fails on equal widths too: no mistake is guessed


def test_nan_is_a_failure():
    def mine(params, inputs, targets):
        gradient = jax.grad(partial(plain, NETWORK))(params, inputs, targets)
        gradient = jax.tree.map(np.array, gradient)
        gradient[1].weight[0, 0] = np.nan
        return gradient

    report = check_gradients(mine, network=NETWORK, trials=2, key=KEY)
    assert not report.passed
    assert report.worst.size == np.inf and report.worst.leaf == "params[1].weight"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"key": 0}, TypeError, "key: expected a typed key"),
        ({"trials": 0}, ValueError, "trials: expected an integer of at least 1, got 0"),
        ({"trials": True}, ValueError, "trials: expected an integer of at least 1, got True"),
        ({"inputs": X[:, :3]}, ValueError, "inputs: expected shape (N, 4), got (7, 3)"),
        ({"inputs": X, "targets": T[:5]}, ValueError, "targets: expected shape (7, 3) or (7,)"),
        ({"targets": T * 1.0}, TypeError, "targets: expected (N,) integer classes"),
        ({"targets": T + 1}, ValueError, "targets: expected classes 0 to 2, got 3 at"),
        ({"inputs": X[:0]}, ValueError, "inputs, targets, sample_weight: expected at least one"),
        ({"inputs": X * np.inf}, ValueError, "inputs: expected finite numbers, got"),
        ({"sample_weight": X[:, 0] * np.inf}, ValueError, "sample_weight: expected finite numbers"),
        (
            {"sample_weight": np.zeros(5)},
            ValueError,
            "sample_weight: expected a sum above 0, got 0",
        ),
        ({"params": (Layer(jnp.ones((3, 4)), None),)}, ValueError, "params: expected 2 layers"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error) as raised:
        check_gradients(**({"network": NETWORK, "key": KEY} | change))
    assert str(raised.value).startswith(message)


def test_targets_of_one_output_need_no_axis_for_it():
    network, targets = Network((4, 2, 1), "tanh", "squared_error"), RNG.normal(size=(5, 1))
    one, other = (
        check_gradients(network=network, targets=t, key=KEY) for t in (targets, targets[:, 0])
    )
    assert one.passed and one.worst == other.worst


def test_a_distribution_may_be_of_whole_numbers():
    one_hot = np.eye(3, dtype=int)[T]
    one, other = (
        check_gradients(network=NETWORK, inputs=X, targets=t, key=KEY) for t in (T, one_hot)
    )
    assert one.passed and other.passed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"inputs": X + 1j}, "inputs: expected real numbers, got complex128"),
        (
            {"inputs": [["a"] * 4]},
            "inputs: expected an array of numbers, got list [['a', 'a', 'a', ",
        ),
        ({"targets": "abc"}, "targets: expected an array of numbers, got str 'abc'"),
        ({"sample_weight": ["x"]}, "sample_weight: expected an array of numbers, got list ['x']"),
    ],
)
def test_what_is_given_and_no_number_is_named(given, message):
    with pytest.raises(TypeError) as raised:
        check_gradients(network=NETWORK, key=KEY, **given)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("case", [0, 3, 5, 8])
def test_many_draws_at_once_are_draws_one_by_one(case, monkeypatch):
    def found():
        settings = Settings(trials=3)
        draws = draws_of("float64", case, settings)
        network = cases_of("float64", False)[case].network
        wide = evidence.gather(network, draws, FLOAT64)
        return wide, evidence.our_gradients(network, draws, FLOAT32)

    one_by_one = found()
    monkeypatch.setattr(evidence, "_FEW_DRAWS", 2)
    at_once = found()
    assert jax.tree.structure(one_by_one) == jax.tree.structure(at_once)
    for bound, ours, theirs in zip((1e-13, 1e-5), one_by_one, at_once, strict=True):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=bound, atol=bound)


@pytest.mark.parametrize("scale", [1, 100, 1000, 1e6])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "silu", "relu", "gelu_tanh"])
def test_saturated_units_are_no_fault_of_a_right_gradient(scale, activation):
    # Raw pixels, say: tanh′ = 1 − tanh² has no digits left in jax.grad, ours has.
    network = Network((4, 5, 3), activation)
    right = jax.grad(partial(plain, network))
    for mine in (None, right):
        report = check_gradients(mine, network=network, inputs=scale * X, trials=5, key=KEY)
        assert report.passed, report


def test_a_mistake_that_changes_nothing_explains_nothing():
    def mine(params, inputs, targets):
        gradient = jax.grad(partial(plain, NETWORK))(params, inputs, targets)
        return jax.tree.map(lambda leaf: leaf * (1 + 1e-8), gradient)

    report = check_gradients(mine, network=NETWORK, trials=2, key=KEY)
    assert not report.passed
    assert report.faults == ("a factor 1",)


def test_64_bit_mode_is_as_it_was():
    check_gradients(network=NETWORK, trials=1, key=KEY)
    assert jnp.ones(1).dtype == jnp.float32


# How a difference is measured.


@pytest.mark.parametrize(
    ("got", "expected", "scale", "size"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0, 0),
        ([1.0, 2.5], [1.0, 2.0], 0, 0.25),  # 0.5 of max |expected| = 2
        ([1.0, 2.5], [1.0, 2.0], 5.0, 0.1),  # of the sum of absolute values
        ([np.nan, 2.0], [1.0, 2.0], 0, np.inf),
        ([np.nan, 2.0], [np.nan, 2.0], 0, np.inf),  # an oracle that is NaN proves nothing
        ([np.inf, 2.0], [np.inf, 2.0], 0, np.inf),
        ([1e-9, 0.0], [0.0, 0.0], 0, 1e-9),  # of nothing: the difference itself
        ([], [], 0, 0),
    ],
)
def test_a_difference_is_relative_to_the_largest_entry_or_the_sum_of_absolute_values(
    got, expected, scale, size
):
    assert compare("leaf", got, expected, scale).size == pytest.approx(size)


# The draws.


def test_the_grid_has_every_activation_loss_and_depth_and_each_pair_meets_all_four_settings():
    settings = defaultdict(set)
    depths = defaultdict(set)
    for case in cases_of("float64", False):
        network = case.network
        for activation in set(network.activations) or {"none"}:
            settings[activation, network.loss].add((network.bias, case.weighted))
            depths[activation, network.loss].add(len(network.activations))
    pairs = {(activation, loss) for activation in [*ACTIVATIONS, "none"] for loss in LOSSES}
    assert settings.keys() == pairs
    assert all(len(seen) == 4 for seen in settings.values())
    for (activation, _), seen in depths.items():
        assert seen == ({0} if activation == "none" else {1, 2, 3, 4, 5})


def test_the_full_grid_has_every_combination_once():
    combinations = [
        (case.network.activations, case.network.loss, case.network.bias, case.weighted)
        for case in cases_of("float64", True)
    ]
    # 4 losses × (10 activations × depths 1 to 5, and depth 0) × bias × weights
    assert len(combinations) == len(set(combinations)) == 4 * (10 * 5 + 1) * 2 * 2


def test_draws_are_networks_as_the_design_wants_them():
    network = Network((50, 60, 40, 3), "relu")
    draws = make_draws(network, 20, np.random.default_rng(0), weighted=True)
    weight, bias = draws.params[0]
    assert bias is not None
    # N(0, 1/fan_in) and 0.1 N(0, 1) over 59,000 and 1,180 numbers (a unit of each is at the kink)
    assert weight[:, 1:].std() * np.sqrt(50) == pytest.approx(1, rel=0.02)
    assert bias[:, 1:].std() == pytest.approx(0.1, rel=0.1)
    assert draws.inputs.std() == pytest.approx(1, rel=0.05)
    zeros = np.einsum("tnd,td->tn", draws.inputs, weight[:, 0]) + bias[:, :1]
    assert np.all(zeros == 0)  # exactly at relu's kink
    assert draws.weights is not None and np.all(draws.weights[:, 1] == 0)
    assert len(np.unique(draws.weights[0])) == 5
    large = Network((50, 60, 3), "relu", bias=False)
    many = make_draws(large, 500, np.random.default_rng(0))
    logits = [
        oracles.numpy_logits(large.activations, *many.trial(t)[:2]) for t in range(0, 500, 20)
    ]
    assert np.abs(logits).max() <= LARGEST_LOGIT * (1 + 1e-12)


@pytest.mark.parametrize(
    "row", ["float64", "float32", "bfloat16", "float16", "contractions", "curvature", "numpy"]
)
def test_a_trial_can_be_repeated(row):
    settings = {"trials": 160 if row == "numpy" else 4, "seed": 5}  # 160 are 4 in each of 40 cases
    trial = verification.repeat(row, case=2, trial=3, **settings)
    network, draw = trial["network"], trial["draw"]
    assert network == cases_of(row, False)[2].network
    expected = draws_of(row, 2, Settings(**settings)).trial(3)
    jax.tree.map(np.testing.assert_array_equal, draw, expected)
    value, gradient = trial["oracle"]
    theirs = oracles.numpy_loss(network.activations, network.loss, *draw)
    bound = 0.05 if row in HALVES else 1e-12  # there the oracle has the rounded parameters
    assert value == pytest.approx(theirs, rel=bound)
    assert_close(trial["ours"][1], gradient, 0.2 if row in HALVES else 1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": "float46"}, "unknown row 'float46': did you mean 'float64'?"),
        ({"case": 1000}, "case: expected 0 to 215, got 1000"),
        ({"trial": 3}, "trial: expected 0 to 2, got 3"),
    ],
)
def test_a_trial_that_there_is_not_is_named(change, message):
    arguments = {"row": "float64", "case": 0, "trial": 0, "trials": 3, "seed": 0} | change
    with pytest.raises(ValueError) as raised:
        verification.repeat(arguments.pop("row"), **arguments)
    assert str(raised.value).startswith(message)


# The table.


def test_the_bounds_are_those_of_the_design():
    bounds = {name: bound for name, _, bound, _ in table.ROWS}
    # Measured, then fixed.
    assert (bounds.pop("bfloat16"), bounds.pop("float16")) == pytest.approx((6e-2, 7e-3))
    assert bounds == {
        "equations": 1e-13,
        "float64": 1e-13,
        "float32": 5e-6,
        "contractions": 1e-12,
        "curvature": 1e-12,
        "differences": 1e-5,
        "numpy": 1e-12,
        "accuracy": 1e-5,
        "faults": None,
    }


def test_a_row_with_a_broken_bound_or_a_failure_fails():
    def row_of(*found, bound=1e-3):
        (row,) = table.verify(Settings(), [("name", "what", bound, lambda _: list(found))])
        return row

    good, bad = (NO_DIFFERENCE._replace(size=size) for size in (1e-4, 1e-2))
    assert row_of(Found(good)).status == "passed"
    assert row_of(Found(good), Found(bad, "the case", "how")).status == "failed"
    assert row_of(Found(good), Found(bad, "the case", "how")).where == "the case"
    assert row_of(Found(NO_DIFFERENCE._replace(size=np.nan))).status == "failed"
    assert row_of(Found(good), Found(good, reproduce="why", failed=True)).note == "why"
    assert row_of(Found(good, failed=True), bound=None).status == "failed"
    (row,) = table.verify(Settings(), [("name", "what", 1.0, lambda _: "needs something")])
    assert (row.status, row.note) == ("not run", "needs something")


def test_without_mpmath_its_row_is_not_run_and_says_what_to_install(monkeypatch):
    monkeypatch.setattr(table.importlib.util, "find_spec", lambda name: None)
    (row,) = table.verify(Settings(1), [row for row in table.ROWS if row[0] == "accuracy"])
    assert (row.status, row.note) == ("not run", 'needs mpmath: pip install "jaxmlp[verify]"')


def test_the_accuracy_row_shows_where_jax_grad_has_no_digits_and_ours_has():
    measured = {row.name: row for row in accuracy.measure(200, 0)}
    assert len(measured) == 8
    for name in ("σ'", "tanh'", "δ of softmax", "E of softmax"):
        assert measured[name].automatic.size > 0.9, name
    assert max(row.ours.size for row in measured.values()) <= accuracy.BOUND


def test_the_json_of_a_table_can_be_read_back():
    rows = [
        Row("a", "what", "passed", 2, 1e-3, compare("leaf", [1.0], [1.0])),
        Row("b", "what", "failed", 2, 1e-3, compare("leaf", [np.nan], [1.0])),
    ]
    content = json.loads(to_json(rows, {"seed": 3}), parse_constant=pytest.fail)
    assert content["passed"] is False and content["seed"] == 3
    assert [row["status"] for row in content["rows"]] == ["passed", "failed"]
    assert content["rows"][1]["worst"]["leaf"] == "leaf"


def test_the_report_s_call_is_the_one_that_repeats_the_trial():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(contractions, "cases_of", lambda *row: cases_of(*row)[:1])
        rows = [row for row in table.ROWS if row[0] == "contractions"]
        (found,) = table.verify(Settings(3), rows)
    trial = eval(found.reproduce, {"jaxmlp": jaxmlp})
    assert str(trial["network"].sizes[0]) == found.where.split("-")[0]
