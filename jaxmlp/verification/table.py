"""The rows of the table that `jaxmlp verify` prints: what "equal" means, and whether it holds."""

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import test_util

from jaxmlp import equations
from jaxmlp.gradients import (
    clipped_gradient_sum,
    input_gradients,
    loss,
    loss_and_gradient,
    per_example_gradient_norms,
    per_example_gradients,
    weighted_gradient_sum,
)
from jaxmlp.network import Layer, Network
from jaxmlp.validation import check_name
from jaxmlp.verification import accuracy, oracles
from jaxmlp.verification.cases import Case, Draws, grid, network_of, sample
from jaxmlp.verification.checks import FLOAT32, FLOAT64, FLOAT64_BOUND, ingredients
from jaxmlp.verification.comparison import NO_DIFFERENCE, Difference, Row, compare
from jaxmlp.verification.diagnosis import MISTAKES, Mistake, backward_copy, diagnose
from jaxmlp.verification.evidence import (
    Evidence,
    compiler_options,
    exactly,
    gather,
    in_dtype,
    make_draws,
    off_kinks,
    our_gradients,
    worst_of,
)

FLOAT32_BOUND = 5e-6
BFLOAT16_BOUND = 6e-2  # the worst of three seeds with 300 trials was 3.4e-2
NUMPY_BOUND = 1e-12
BFLOAT16 = np.dtype(jnp.bfloat16)


class Settings(NamedTuple):
    """What a run of the table depends on."""

    trials: int = 20
    seed: int = 0
    full: bool = False


class _Found(NamedTuple):
    """The worst difference of one case."""

    difference: Difference
    case: Any = ""
    reproduce: str = ""
    failed: bool = False
    detail: str = ""


def verify(settings: Settings) -> Iterator[Row]:
    """Yield the rows of the table, each as soon as it is known."""
    for name, what, bound, run in ROWS:
        begin = time.perf_counter()
        outcome = run(settings)
        seconds = time.perf_counter() - begin
        if isinstance(outcome, str):
            yield Row(name, what, "not run", 0, bound, NO_DIFFERENCE, note=outcome)
            continue
        worst = max(outcome, key=lambda found: found.difference.size)
        failed = any(found.failed for found in outcome)
        if bound is not None:
            failed |= not worst.difference.size <= bound
        yield Row(
            name,
            what,
            "failed" if failed else "passed",
            len(outcome),
            bound,
            worst.difference,
            str(worst.case),
            worst.reproduce,
            "; ".join(found.reproduce for found in outcome if found.failed),
            tuple(found.detail for found in outcome if found.detail),
            seconds,
        )


def _in_parallel(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    """Map over the cores: compiling, which takes most of the time, runs outside Python's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, items))


# The grid of architectures, in three precisions. Each is compared with jax.grad in float64 at the
# same, rounded parameters: in float32 jax.grad is itself up to 1e-5 off where units saturate.

_KINK_MARGINS = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 5e-2}


def _cases(row: str, full: bool) -> list[Case]:
    return sample() if row == "bfloat16" else grid(full, "highest")


def _draws(case: Case, number: int, settings: Settings) -> Draws:
    rng = np.random.default_rng([settings.seed, number])
    draws = make_draws(
        case.network, settings.trials, rng, classes=case.classes, weighted=case.weighted
    )
    return in_dtype(in_dtype(draws, FLOAT32), FLOAT64)


def _worst(
    row: str, number: int, case: Case, draws: Draws, evidence: Evidence, settings: Settings
) -> _Found:
    counted = off_kinks(case.network, evidence, _KINK_MARGINS[row])
    difference, trial = worst_of(case.network, evidence, draws, counted)
    call = (
        f"jaxmlp.verification.repeat({row!r}, case={number}, trial={trial}, "
        f"trials={settings.trials}, seed={settings.seed}"
    )
    return _Found(difference, case, call + (", full=True)" if settings.full else ")"))


@lru_cache(maxsize=1)
def _wide_and_narrow(settings: Settings) -> list[tuple[_Found, _Found]]:
    """Return what is found in float64 and in float32, from the same draws and the same oracle."""
    cases = _cases("float64", settings.full)

    def judge(number: int) -> tuple[_Found, _Found]:
        case = cases[number]
        draws = _draws(case, number, settings)
        evidence = gather(case.network, draws, FLOAT64)
        wide = _worst("float64", number, case, draws, evidence, settings)
        evidence = evidence._replace(ours=our_gradients(case.network, draws, FLOAT32))
        return wide, _worst("float32", number, case, draws, evidence, settings)

    return _in_parallel(judge, list(range(len(cases))))


def _float64_row(settings: Settings) -> list[_Found]:
    return [wide for wide, _ in _wide_and_narrow(settings)]


def _float32_row(settings: Settings) -> list[_Found]:
    return [narrow for _, narrow in _wide_and_narrow(settings)]


def _bfloat16_row(settings: Settings) -> list[_Found]:
    cases = _cases("bfloat16", settings.full)

    def judge(number: int) -> _Found:
        case = cases[number]
        draws = _draws(case, number, settings)
        evidence = gather(case.network, draws, BFLOAT16, FLOAT64)
        return _worst("bfloat16", number, case, draws, evidence, settings)

    return _in_parallel(judge, list(range(len(cases))))


def repeat(
    row: str, *, case: int, trial: int, trials: int, seed: int, full: bool = False
) -> dict[str, Any]:
    """Return one trial of the rows float64, float32 or bfloat16, as the report names it.

    Args:
        row: "float64", "float32" or "bfloat16".
        case: The number of the architecture.
        trial: The draw.
        trials: How many draws the table was made with.
        seed: The seed that it was made with.
        full: Whether all architectures were run.

    Returns:
        The `network`, the `draw` (params, inputs, targets, weights) in float64, and `ours` and
        `oracle`, each (loss, gradient).

    Raises:
        ValueError: Another row, with the nearest one.
    """
    check_name("row", row, _KINK_MARGINS)
    settings = Settings(trials, seed, full)
    the_case = _cases(row, full)[case]
    network = the_case.network
    draws = _draws(the_case, case, settings)
    dtype = BFLOAT16 if row == "bfloat16" else FLOAT64
    evidence = gather(network, draws, dtype, FLOAT64)
    if row == "float32":
        evidence = evidence._replace(ours=our_gradients(network, draws, FLOAT32))
    return {
        "network": network,
        "draw": draws.trial(trial),
        "ours": jax.tree.map(lambda leaf: leaf[trial], evidence.ours),
        "oracle": jax.tree.map(lambda leaf: leaf[trial], evidence.oracle),
    }


def _equations_row(settings: Settings) -> list[_Found]:
    """Compare the seven equations with `jax.grad` of the plain loss, on one network."""
    network = Network((5, 4, 3), bias=False)
    rng = np.random.default_rng([settings.seed, 1])
    draws = make_draws(network, settings.trials, rng, n_examples=1)
    one_hot = np.eye(3)[draws.targets[:, 0]]
    plain = partial(oracles.plain_loss, network.activations, network.loss)

    @jax.vmap
    def judge(params: Any, inputs: Any, t: Any) -> Any:
        ours = equations.loss_gradients(params[0].weight, params[1].weight, inputs[0], t)
        return ours, jax.tree.leaves(jax.grad(plain)(params, inputs, t[None, :], None))

    with exactly(FLOAT64):
        program = jax.jit(judge, compiler_options=compiler_options())
        ours, oracle = jax.device_get(program(draws.params, draws.inputs, one_hot))
    return [
        _Found(compare(f"equation {number}", mine[trial], right[trial]), f"trial {trial}")
        for number, mine, right in zip((7, 4), ours, oracle, strict=True)
        for trial in range(settings.trials)
    ]


def _differences_row(settings: Settings) -> list[_Found]:
    """Compare our gradient with central differences of a loss that shares no code with it."""
    cases = sample("highest")
    trials = -(-settings.trials // len(cases))

    def judge(number: int) -> _Found:
        case = cases[number]
        network = case.network
        found = _Found(NO_DIFFERENCE, case)
        rng = np.random.default_rng([settings.seed, 2, number])
        draws = make_draws(
            network, 4 * trials, rng, classes=case.classes, weighted=case.weighted, zeros=False
        )
        evidence = gather(network, draws, FLOAT64)
        for trial in np.flatnonzero(off_kinks(network, evidence, 1e-3))[:trials]:
            draw = draws.trial(trial)
            gradient = jax.tree.map(lambda leaf, at=trial: leaf[at], evidence.ours[1])
            value = evidence.ours[0][trial]

            def f(params: Any, draw: Draws = draw, network: Network = network) -> Any:
                args = (network.activations, network.loss, params, *draw[1:])
                return np.float64(oracles.numpy_loss(*args))

            def pullback(cotangent: Any, gradient: Any = gradient) -> Any:
                return (jax.tree.map(lambda leaf: cotangent * leaf, gradient),)

            direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), draw.params)
            slope = _slope_along(f, draw.params, direction)
            ours = _inner(gradient, direction)
            scale = _inner(*(jax.tree.map(np.abs, tree) for tree in (gradient, direction)))
            difference = compare("slope", ours, slope, scale)
            failed = False
            try:
                with jax.enable_x64(True):
                    test_util.check_vjp(
                        f, lambda _, v=value, back=pullback: (v, back), (draw.params,)
                    )
            except AssertionError:
                failed = True
            if failed or difference.size > found.difference.size:
                found = _Found(difference, case, f"trial {trial}", failed or found.failed)
        return found

    return _in_parallel(judge, list(range(len(cases))))


def _slope_along(f: Callable[[Any], Any], params: Any, direction: Any, step: float = 1e-4) -> Any:
    ahead = jax.tree.map(lambda leaf, d: leaf + step * d, params, direction)
    back = jax.tree.map(lambda leaf, d: leaf - step * d, params, direction)
    return (f(ahead) - f(back)) / (2 * step)


def _inner(one: Any, other: Any) -> float:
    products = jax.tree.map(lambda a, b: float(np.sum(a * b)), one, other)
    return float(sum(jax.tree.leaves(products)))


def _numpy_row(settings: Settings) -> list[_Found]:
    """Compare our loss with a NumPy forward pass, and a worked network with its numbers."""
    cases = sample("highest")
    trials = min(settings.trials, 5)

    def judge(number: int) -> _Found:
        case = cases[number]
        rng = np.random.default_rng([settings.seed, 3, number])
        draws = make_draws(case.network, trials, rng, classes=case.classes, weighted=case.weighted)
        evidence = gather(case.network, draws, FLOAT64)
        found = _Found(NO_DIFFERENCE, case)
        for trial in range(trials):
            network = case.network
            args: Any = (network.activations, network.loss, *draws.trial(trial))
            theirs, scale = oracles.numpy_loss(*args), oracles.numpy_loss_scale(*args)
            difference = compare("loss", evidence.ours[0][trial], theirs, scale)
            if difference.size > found.difference.size:
                found = _Found(difference, case, f"trial {trial}")
        return found

    return [*_in_parallel(judge, list(range(len(cases)))), *_worked_network()]


def _worked_network() -> list[_Found]:
    network = Network(oracles.WORKED_SIZES, bias=False)
    with jax.enable_x64(True):
        params = tuple(Layer(jnp.asarray(w), None) for w, _ in oracles.WORKED_PARAMETERS)
        value, gradient = loss_and_gradient(
            network, params, oracles.WORKED_INPUT, oracles.WORKED_TARGET
        )
    got = {"E": value, "∂E/∂W1": gradient[0].weight, "∂E/∂W2": gradient[1].weight}
    return [
        _Found(compare(name, got[name], expected), "the worked 3-2-2 network")
        for name, expected in oracles.WORKED_RESULTS.items()
    ]


def _accuracy_row(settings: Settings) -> list[_Found] | str:
    if importlib.util.find_spec("mpmath") is None:
        return 'needs mpmath: pip install "jaxmlp[verify]"'
    return [
        _Found(
            measured.ours,
            measured.name,
            f"argument {measured.argument}",
            detail=f"{measured.name}: ours {measured.ours.size:.1e}, "
            f"jax.nn and jax.grad {measured.automatic.size:.1e}",
        )
        for measured in accuracy.measure(settings.trials, settings.seed)
    ]


def _contractions_row(settings: Settings) -> list[_Found]:
    """Compare what is contracted from the pairs with vmapped `jax.grad` of the plain loss."""
    cases = [
        Case(network_of(activation, loss_name, depth, bias, "highest"), classes, weighted)
        for activation, loss_name, depth, bias, classes, weighted in (
            ("sigmoid", "softmax_cross_entropy", 1, True, True, False),
            ("relu", "softmax_cross_entropy", 3, True, False, True),
            ("tanh", "sigmoid_binary_cross_entropy", 2, False, False, True),
            ("gelu", "squared_error", 1, True, False, True),
            ("silu", "poisson", 2, True, False, False),
            ("identity", "softmax_cross_entropy", 0, False, True, True),
        )
    ]

    def judge(number: int) -> _Found:
        case = cases[number]
        rng = np.random.default_rng([settings.seed, 4, number])
        draws = make_draws(
            case.network, settings.trials, rng, classes=case.classes, weighted=case.weighted
        )
        coefficients = rng.normal(size=draws.inputs.shape[:2])
        with exactly(FLOAT64):
            program = jax.jit(
                jax.vmap(partial(_contracted, case.network)), compiler_options=compiler_options()
            )
            ours, oracle = jax.device_get(program(draws, coefficients))
        differences = []
        for name, mine in ours.items():
            leaves = zip(jax.tree.leaves(mine), jax.tree.leaves(oracle[name]), strict=True)
            differences += [compare(name, got, right) for got, right in leaves]
        return _Found(max(differences, key=lambda d: d.size), case)

    return _in_parallel(judge, list(range(len(cases))))


def _contracted(network: Network, draw: Draws, coefficients: Any) -> tuple[Any, Any]:
    """Return every contraction of one batch, ours and from per-example `jax.grad`, by name."""
    params, inputs, targets, weights = draw
    args = (network, params, inputs, targets)
    plain = partial(oracles.plain_loss, network.activations, network.loss)

    def one(params: Any, x: Any, t: Any) -> Any:
        return plain(params, x[None, :], t[None], None)

    unweighted = jax.vmap(jax.grad(one, (0, 1)), (None, 0, 0))(params, inputs, targets)
    w = jnp.ones(len(inputs)) if weights is None else weights

    def rows(factor: Any, tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf: leaf * jnp.reshape(factor, (-1,) + (1,) * (leaf.ndim - 1)), tree
        )

    def total(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), tree)

    each, each_input = rows(w, unweighted)
    squares = [jnp.sum(leaf.reshape(len(w), -1) ** 2, axis=1) for leaf in jax.tree.leaves(each)]
    norms = jnp.sqrt(sum(squares))
    clip = jnp.median(norms)
    factors = jnp.minimum(1, clip / jnp.where(norms > 0, norms, 1))
    oracle = {
        "per_example_gradients": each,
        "per_example_gradient_norms": norms,
        "weighted_gradient_sum": total(rows(coefficients, each)),
        "clipped_gradient_sum": (total(rows(factors, each)), norms),
        "input_gradients": each_input,
        "grad of loss": jax.grad(plain, (0, 1))(params, inputs, targets, weights),
    }
    ours = {
        "per_example_gradients": per_example_gradients(*args, weights),
        "per_example_gradient_norms": per_example_gradient_norms(*args, weights),
        "weighted_gradient_sum": weighted_gradient_sum(*args, coefficients, weights),
        "clipped_gradient_sum": clipped_gradient_sum(*args, clip, weights),
        "input_gradients": input_gradients(*args, weights),
        "grad of loss": jax.grad(loss, (1, 2))(*args, weights),
    }
    return ours, oracle


def _faults_row(settings: Settings) -> list[_Found]:
    """Plant every mistake in a copy of the backward pass; each must be seen and named."""
    found = []
    networks = {
        "equal widths": network_of("relu", "softmax_cross_entropy", 2),
        "two hidden layers": Network((5, 4, 4, 3), "relu"),
    }
    planted = [*MISTAKES, Mistake("a factor 1.001", factor=1.001)]
    named: dict[str, bool] = dict.fromkeys((mistake.name for mistake in planted), False)
    for network in networks.values():
        rng = np.random.default_rng([settings.seed, 5])
        draws = make_draws(network, 1, rng, weighted=True)
        given = ingredients(network, draws, gather(network, draws, FLOAT64), 0)
        right = backward_copy(given)
        names = [str(number) for number in range(len(right))]
        for mistake in planted:
            try:
                wrong = backward_copy(given, mistake)
            except ValueError:  # products of shapes that do not fit: seen, on this network
                continue
            fits = all(a.shape == b.shape for a, b in zip(wrong, right, strict=True))
            if not fits or all(np.array_equal(a, b) for a, b in zip(wrong, right, strict=True)):
                continue
            reasons = diagnose(given, wrong, names, 1e-7)
            named[mistake.name] |= mistake.name in reasons
            if mistake.name not in reasons:
                call = f"planted {mistake.name!r}, named {reasons}"
                found.append(_Found(NO_DIFFERENCE, mistake.name, call, failed=True))
    for name, seen in named.items():
        found.append(_Found(NO_DIFFERENCE, name, f"{name!r} was never named", failed=not seen))
    return found


RowFunction = Callable[[Settings], list[_Found] | str]
ROWS: tuple[tuple[str, str, float | None, RowFunction], ...] = (
    ("equations", "the paper's equations 4 and 7 against jax.grad", FLOAT64_BOUND, _equations_row),
    (
        "float64",
        "ours against jax.grad: every activation × loss × depth 0-5",
        FLOAT64_BOUND,
        _float64_row,
    ),
    (
        "float32",
        "the same, ours in float32 with full products, jax.grad in float64",
        FLOAT32_BOUND,
        _float32_row,
    ),
    (
        "bfloat16",
        "bfloat16 against float64 on the rounded parameters",
        BFLOAT16_BOUND,
        _bfloat16_row,
    ),
    (
        "contractions",
        "per-example gradients, norms, sums, inputs; jax.grad of loss",
        FLOAT64_BOUND,
        _contractions_row,
    ),
    ("differences", "central differences, jax.test_util.check_vjp", 1e-5, _differences_row),
    ("numpy", "a NumPy forward pass and a worked network", NUMPY_BOUND, _numpy_row),
    ("accuracy", "float32 against mpmath at 50 digits", accuracy.BOUND, _accuracy_row),
    ("faults", "planted mistakes, each seen and named", None, _faults_row),
)
