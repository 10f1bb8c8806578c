"""The row that compares second-order quantities with whole matrices of `jax.hessian`."""

from functools import partial
from typing import Any

import jax
import numpy as np

from jaxmlp.curvature import gauss_newton_vector_product, hessian_vector_product
from jaxmlp.fisher import gauss_newton_diagonal, kfac_factors, neural_tangent_kernel
from jaxmlp.gradient_statistics import gradient_second_moment
from jaxmlp.network import Network, Parameters
from jaxmlp.verification.cases import Draws, draw_params
from jaxmlp.verification.comparison import NO_DIFFERENCE, Found, compare
from jaxmlp.verification.dense import dense_quantities
from jaxmlp.verification.evidence import compiled, exactly, in_dtype, on_each_draw
from jaxmlp.verification.trials import (
    FLOAT32,
    FLOAT64,
    Settings,
    call_of,
    cases_of,
    draws_of,
    in_parallel,
)


def second_order_row(settings: Settings, dtype: np.dtype = FLOAT64) -> list[Found]:
    """Compare every quantity in this dtype with its oracle in float64, on each case's draws."""
    cases = cases_of("curvature", settings.full)

    def judge(number: int) -> Found:
        case = cases[number]
        draws = draws_of("curvature", number, settings)
        rng = np.random.default_rng([settings.seed, 9, number])
        vectors = draw_params(case.network, len(draws.inputs), rng, zeros=False)
        draws, vectors = in_dtype(in_dtype((draws, vectors), FLOAT32), FLOAT64)
        with exactly(FLOAT64):
            oracle = on_each_draw(partial(compiled, _oracle), case.network, draws, vectors)
        with exactly(dtype):
            stacked = in_dtype((draws, vectors), dtype)
            ours = on_each_draw(partial(compiled, _ours), case.network, *stacked)
        found = Found(NO_DIFFERENCE, case)
        for name, mine in ours.items():
            for got, right, scale in zip(*map(jax.tree.leaves, (mine, *oracle[name])), strict=True):
                for trial in range(len(draws.inputs)):
                    difference = compare(name, got[trial], right[trial], scale[trial])
                    if difference.size > found.difference.size:
                        call = call_of("curvature", number, trial, settings)
                        found = Found(difference, case, call)
        return found

    return in_parallel(judge, len(cases))


def _oracle(network: Network, draw: Draws, vector: Parameters) -> dict[str, Any]:
    return dense_quantities(network.activations, network.loss, *draw, vector)


def _ours(network: Network, draw: Draws, vector: Parameters) -> dict[str, Any]:
    params, inputs, targets, weights = draw
    args = (network, params, inputs, targets)
    return {
        "hessian_vector_product": hessian_vector_product(*args, vector, weights),
        "gauss_newton_vector_product": gauss_newton_vector_product(*args, vector, weights),
        "gauss_newton_diagonal": gauss_newton_diagonal(*args, weights),
        "gradient_second_moment": gradient_second_moment(*args, weights),
        "neural_tangent_kernel": neural_tangent_kernel(network, params, inputs),
        "kfac_factors exact": kfac_factors(*args, weights),
        "kfac_factors empirical": kfac_factors(*args, weights, fisher="empirical"),
    }
