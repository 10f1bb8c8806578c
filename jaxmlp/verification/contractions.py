"""The row that compares what is contracted from the pairs with vmapped `jax.grad`."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxmlp.gradient_statistics import (
    gradient_gram_matrix,
    gradient_noise_scale,
    gradient_second_moment,
    gradient_variance,
)
from jaxmlp.gradients import (
    input_gradients,
    loss,
    weighted_gradient_sum,
)
from jaxmlp.network import Network
from jaxmlp.per_example import (
    clipped_gradient_sum,
    per_example_gradient_norms,
    per_example_gradients,
)
from jaxmlp.verification import oracles
from jaxmlp.verification.cases import Draws
from jaxmlp.verification.comparison import NO_DIFFERENCE, Found, compare
from jaxmlp.verification.evidence import compiled, exactly, on_each_draw
from jaxmlp.verification.trials import (
    FLOAT64,
    Settings,
    call_of,
    cases_of,
    draws_of,
    in_parallel,
)


def contractions_row(settings: Settings) -> list[Found]:
    """Compare what is contracted from the pairs with vmapped `jax.grad` of the plain loss."""
    cases = cases_of("contractions", settings.full)

    def judge(number: int) -> Found:
        case = cases[number]
        draws = draws_of("contractions", number, settings)
        rng = np.random.default_rng([settings.seed, 8, number])
        coefficients = rng.normal(size=draws.inputs.shape[:2])
        with exactly(FLOAT64):
            program_of = partial(compiled, _contracted)
            ours, oracle = on_each_draw(program_of, case.network, draws, coefficients)
        found = Found(NO_DIFFERENCE, case)
        for name, mine in ours.items():
            leaves = zip(*map(jax.tree.leaves, (mine, *oracle[name])), strict=True)
            for got, right, scale in leaves:
                for trial in range(settings.trials):
                    difference = compare(name, got[trial], right[trial], scale[trial])
                    if difference.size > found.difference.size:
                        call = call_of("contractions", number, trial, settings)
                        found = Found(difference, case, call)
        return found

    return in_parallel(judge, len(cases))


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

    def size(tree: Any) -> Any:
        return jax.tree.map(jnp.abs, tree)

    each, each_input = rows(w, unweighted)
    squares = [jnp.sum(leaf.reshape(len(w), -1) ** 2, axis=1) for leaf in jax.tree.leaves(each)]
    norms = jnp.sqrt(sum(squares))
    clip = jnp.median(norms)
    factors = jnp.minimum(1, clip / jnp.where(norms > 0, norms, 1))
    mean = jax.grad(plain, (0, 1))(params, inputs, targets, weights)
    mean_size = jax.tree.map(lambda leaf: leaf / jnp.sum(w), (total(size(each)), size(each_input)))
    rows_of = jax.vmap(lambda tree: ravel_pytree(tree)[0])
    flat = rows_of(each)
    share = w / jnp.sum(w)
    second = total(rows(share, jax.tree.map(jnp.square, unweighted[0])))
    average = total(rows(share, unweighted[0]))
    spread = total(
        rows(
            share, jax.tree.map(lambda leaf, mean: (leaf - mean[None]) ** 2, unweighted[0], average)
        )
    )
    noise = _noise_scale(rows_of(unweighted[0]), share)
    oracle = {  # the value, and the same sum of absolute values
        "per_example_gradients": (each, size(each)),
        "per_example_gradient_norms": (norms, norms),
        "weighted_gradient_sum": (
            total(rows(coefficients, each)),
            total(size(rows(coefficients, each))),
        ),
        "clipped_gradient_sum": (
            (total(rows(factors, each)), norms),
            (total(size(rows(factors, each))), norms),
        ),
        "input_gradients": (each_input, size(each_input)),
        "grad of loss": (mean, mean_size),
        "gradient_gram_matrix": (flat @ flat.T, abs(flat) @ abs(flat).T),
        "gradient_second_moment": (second, second),
        "gradient_variance": (spread, second),
        "gradient_noise_scale": noise,
    }
    ours = {
        "per_example_gradients": per_example_gradients(*args, weights),
        "per_example_gradient_norms": per_example_gradient_norms(*args, weights),
        "weighted_gradient_sum": weighted_gradient_sum(*args, coefficients, weights),
        "clipped_gradient_sum": clipped_gradient_sum(*args, clip, weights),
        "input_gradients": input_gradients(*args, weights),
        "grad of loss": jax.grad(loss, (1, 2))(*args, weights),
        "gradient_gram_matrix": gradient_gram_matrix(*args, sample_weight=weights),
        "gradient_second_moment": gradient_second_moment(*args, weights),
        "gradient_variance": gradient_variance(*args, weights),
        "gradient_noise_scale": gradient_noise_scale(*args, weights)[:2],
    }
    return ours, oracle


def _noise_scale(gradients: Any, share: Any) -> tuple[Any, Any]:
    """Return (‖G‖², tr Σ) and their scales, from the gradients (N, P) and shares that sum to 1.

    As the unbiased variance of weighted data, Σ p (g − ḡ)² / (1 − Σ p²), and the squared mean less
    that variance's part in it; not by the formulas in McCandlish et al.
    """
    mean = share @ gradients
    doubled = jnp.sum(share**2)
    variance = jnp.sum(share[:, None] * (gradients - mean[None, :]) ** 2) / (1 - doubled)
    squared = jnp.sum(mean**2)
    size = squared + jnp.sum(share[:, None] * gradients**2)
    return (squared - doubled * variance, variance), (size, size)
