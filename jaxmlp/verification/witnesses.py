"""The rows with witnesses that share no code with ours: the paper, differences, NumPy, a hand."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import test_util

from jaxmlp import equations
from jaxmlp.gradients import loss_and_gradient
from jaxmlp.network import Layer, Network
from jaxmlp.verification import oracles
from jaxmlp.verification.cases import Draws
from jaxmlp.verification.comparison import NO_DIFFERENCE, Found, compare
from jaxmlp.verification.evidence import compiler_options, exactly, gather, make_draws
from jaxmlp.verification.trials import (
    FLOAT64,
    Settings,
    call_of,
    cases_of,
    draws_of,
    in_parallel,
)


def equations_row(settings: Settings) -> list[Found]:
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
        Found(compare(f"equation {number}", mine[trial], right[trial]), f"trial {trial}")
        for number, mine, right in zip((7, 4), ours, oracle, strict=True)
        for trial in range(settings.trials)
    ]


def differences_row(settings: Settings) -> list[Found]:
    """Compare our gradient with central differences of a loss that shares no code with it."""
    cases = cases_of("differences", settings.full)

    def judge(number: int) -> Found:
        case = cases[number]
        network = case.network
        found = Found(NO_DIFFERENCE, case)
        rng = np.random.default_rng([settings.seed, 7, number])
        draws = draws_of("differences", number, settings)
        evidence = gather(network, draws, FLOAT64)
        for trial in range(len(draws.inputs)):
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
                call = call_of("differences", number, trial, settings)
                found = Found(difference, case, call, failed or found.failed)
        return found

    return in_parallel(judge, len(cases))


def _slope_along(f: Callable[[Any], Any], params: Any, direction: Any, step: float = 1e-4) -> Any:
    ahead = jax.tree.map(lambda leaf, d: leaf + step * d, params, direction)
    back = jax.tree.map(lambda leaf, d: leaf - step * d, params, direction)
    return (f(ahead) - f(back)) / (2 * step)


def _inner(one: Any, other: Any) -> float:
    products = jax.tree.map(lambda a, b: float(np.sum(a * b)), one, other)
    return float(sum(jax.tree.leaves(products)))


def numpy_row(settings: Settings) -> list[Found]:
    """Compare our loss with a NumPy forward pass, and a worked network with its numbers."""
    cases = cases_of("numpy", settings.full)

    def judge(number: int) -> Found:
        case = cases[number]
        draws = draws_of("numpy", number, settings)
        evidence = gather(case.network, draws, FLOAT64)
        found = Found(NO_DIFFERENCE, case)
        for trial in range(len(draws.inputs)):
            network = case.network
            args: Any = (network.activations, network.loss, *draws.trial(trial))
            theirs, scale = oracles.numpy_loss(*args), oracles.numpy_loss(*args, of=abs)
            difference = compare("loss", evidence.ours[0][trial], theirs, scale)
            if difference.size > found.difference.size:
                found = Found(difference, case, call_of("numpy", number, trial, settings))
        return found

    return [*in_parallel(judge, len(cases)), *_worked_network()]


def _worked_network() -> list[Found]:
    network = Network(oracles.WORKED_SIZES, bias=False)
    with jax.enable_x64(True):
        params = tuple(Layer(jnp.asarray(w), None) for w, _ in oracles.WORKED_PARAMETERS)
        value, gradient = loss_and_gradient(
            network, params, oracles.WORKED_INPUT, oracles.WORKED_TARGET
        )
    got = {"E": value, "∂E/∂W1": gradient[0].weight, "∂E/∂W2": gradient[1].weight}
    return [
        Found(compare(name, got[name], expected), "the worked 3-2-2 network")
        for name, expected in oracles.WORKED_RESULTS.items()
    ]
