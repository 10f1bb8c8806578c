"""What a batch's gradient is for: contractions of the pairs (a_{l−1}, δ_l) of its examples.

One forward and one backward pass yield, for every layer, the matrices A (N, n_in), with rows
a_{l−1}, and Δ (N, n_out), with rows δ_l. Then, over the layers,

    gradient of the mean loss         Δᵀ A / N  and, for the bias,  Δᵀ 1 / N
    a weighted sum of gradients       (c ∘ Δ)ᵀ A
    gradients in the inputs           Δ_1 W_1

and those of `jaxmlp.per_example`. (The derivation on paper, equations 4 and 7, is the outer product
δ aᵀ of one example.)

Shape letters: N examples, D inputs, K outputs, n_l units of layer l. All functions take a batch
`inputs` (N, D) with `targets`: (N,) integer classes or (N, K) distributions for softmax
cross-entropy; (N, K), or (N,) where K = 1, for the other losses. `sample_weight` (N,) multiplies
each example's loss; a row of weight 0 contributes exactly 0 whatever it holds. Inputs take the
parameters' dtype. A class outside 0 … K − 1 makes that example's loss and gradient NaN.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxmlp.backprop import input_delta
from jaxmlp.batch import (
    Batch,
    Pass,
    backward_batch,
    blank,
    check_batch,
    check_inputs,
    contract,
    forward_batch,
    like,
    mean_gradient,
    mean_loss,
    over_total,
    pass_batch,
    without_garbage,
)
from jaxmlp.losses import LOSSES
from jaxmlp.network import Network, Parameters, check_parameters
from jaxmlp.validation import as_array

# The loss of a batch, with our backward pass as its derivative. The forward rule must not call
# `_loss` itself, or forward-over-reverse (jax.hessian) would ask for its missing jvp.


def _plain_loss(
    network: Network, params: Parameters, inputs: Array, targets: Array, weights: Array | None
) -> Array:
    batch, _ = without_garbage(network, Batch(inputs, targets, weights))
    logits = forward_batch(network, params, batch.inputs).preactivations[-1]
    return mean_loss(jax.vmap(LOSSES[network.loss].value)(logits, batch.targets), weights)


_loss = jax.custom_vjp(_plain_loss, nondiff_argnums=(0,))


def _loss_forward(
    network: Network, params: Parameters, inputs: Array, targets: Array, weights: Array | None
) -> tuple[Array, Any]:
    batch, garbage = without_garbage(network, Batch(inputs, targets, weights))
    trace = forward_batch(network, params, batch.inputs)
    losses = jax.vmap(LOSSES[network.loss].value)(trace.preactivations[-1], batch.targets)
    return mean_loss(losses, weights), (params, batch, garbage, trace, losses)


def _loss_backward(network: Network, residuals: Any, cotangent: Array) -> tuple[Any, ...]:
    params, batch, garbage, trace, losses = residuals
    result = backward_batch(network, params, trace, losses, batch)
    params_gradient = mean_gradient(network, params, result, batch.weights, cotangent)

    scale = over_total(cotangent, losses, batch.weights)
    inputs_gradient = targets_gradient = weights_gradient = None
    if jnp.issubdtype(batch.inputs.dtype, jnp.floating):
        inputs_gradient = _input_gradients_of(
            network, params, result.deltas, batch.inputs.dtype, scale
        )
    if jnp.issubdtype(batch.targets.dtype, jnp.floating):
        target_gradient = jax.vmap(LOSSES[network.loss].target_gradient)
        rows = target_gradient(result.trace.preactivations[-1], batch.targets)
        if batch.weights is not None:
            rows = rows * batch.weights.astype(rows.dtype)[:, None]
        targets_gradient = jnp.reshape(scale * rows, batch.targets.shape).astype(
            batch.targets.dtype
        )
    if batch.weights is not None and jnp.issubdtype(batch.weights.dtype, jnp.floating):
        # ∂(Σ w E / Σ w)/∂w_n = (E_n − mean) / Σ w
        excess = blank(garbage, losses - mean_loss(losses, batch.weights))
        weights_gradient = (scale * excess).astype(batch.weights.dtype)
    return params_gradient, inputs_gradient, targets_gradient, weights_gradient


def _input_gradients_of(
    network: Network,
    params: Parameters,
    deltas: tuple[Array, ...],
    dtype: DTypeLike,
    scale: Array,
) -> Array:
    rows = jax.vmap(partial(input_delta, network, params, 0))(deltas[0])
    return (scale * rows).astype(dtype)


_loss.defvjp(_loss_forward, _loss_backward)
_jit_loss = jax.jit(_loss)


def loss(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> Array:
    """Return the mean loss Σ w_n E_n / Σ w_n of a batch; its derivative is our backward pass.

    `jax.grad` of it, in the parameters, the inputs, float targets and the sample weights, runs the
    hand-derived backward pass, and so do `jax.vjp`, `jax.vmap` and `jax.hessian` of it. Forward
    mode, `jax.jvp` of it, raises TypeError: for a product with the Hessian take `jax.jvp` of
    `jax.grad(loss)`, or `hessian_vector_product`.

    Args:
        network: The network.
        params: Its parameters.
        inputs: (N, D).
        targets: (N,) integer classes or distributions (N, K) for softmax cross-entropy, else
            (N, K), or (N,) where K = 1: in [0, 1] for binary cross-entropy, ≥ 0 for Poisson, which
            only `fit`, `evaluate` and their kind check.
        sample_weight: (N,) or None, which means all 1.

    Returns:
        A scalar of float32 or better; 0 for an empty batch or where Σ w_n is 0.

    Raises:
        TypeError: Softmax cross-entropy with (N,) targets that are not integers.
        ValueError: Shapes that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmlp
        >>> network = jaxmlp.Network((4, 8, 3))
        >>> params = jaxmlp.init(network, jax.random.key(0))
        >>> x, t = jnp.ones((5, 4)), jnp.array([0, 1, 2, 1, 0])
        >>> gradient = jax.grad(jaxmlp.loss, argnums=1)(network, params, x, t)
        >>> gradient[0].weight.shape
        (8, 4)
    """
    return _jit_loss(network, params, *check_batch(network, params, inputs, targets, sample_weight))


def loss_and_gradient_of(
    network: Network, params: Parameters, batch: Batch
) -> tuple[tuple[Array, Parameters], Pass]:
    """Return the loss and the gradient of a checked batch, and the pass that they come from."""
    result = pass_batch(network, params, batch)
    gradient = mean_gradient(network, params, result, batch.weights)
    return (mean_loss(result.losses, batch.weights), gradient), result


@jax.jit
def _loss_and_gradient(
    network: Network, params: Parameters, batch: Batch
) -> tuple[Array, Parameters]:
    return loss_and_gradient_of(network, params, batch)[0]


def loss_and_gradient(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> tuple[Array, Parameters]:
    """Return the mean loss of a batch and its gradient Δᵀ A / N, without automatic differentiation.

    Args:
        network: The network.
        params: Its parameters.
        inputs: (N, D).
        targets: As for `loss`.
        sample_weight: (N,) or None.

    Returns:
        The loss, a scalar, and the gradient, a tree like `params`.

    Raises:
        TypeError: As for `loss`.
        ValueError: As for `loss`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmlp
        >>> network = jaxmlp.Network((2, 2), loss="squared_error", bias=False)
        >>> params = (jaxmlp.Layer(jnp.eye(2), None),)
        >>> value, gradient = jaxmlp.loss_and_gradient(network, params, [[1.0, 2.0]], [[0.0, 0.0]])
        >>> value, gradient[0].weight                          # ½(1² + 2²), δ = (1, 2), δ xᵀ
        (Array(2.5, dtype=float32), Array([[1., 2.],
               [2., 4.]], dtype=float32))

    References:
        The derivation on paper, equations 4 and 7.
    """
    batch = check_batch(network, params, inputs, targets, sample_weight)
    return _loss_and_gradient(network, params, batch)


@jax.jit
def _logits(network: Network, params: Parameters, inputs: Array) -> Array:
    return forward_batch(network, params, inputs).preactivations[-1]


def logits(network: Network, params: Parameters, inputs: ArrayLike) -> Array:
    """Return the outputs z_L (N, K) of the linear output layer, in float32 or better.

    Args:
        network: The network.
        params: Its parameters.
        inputs: (N, D).

    Returns:
        (N, K).

    Raises:
        ValueError: Shapes that do not fit.
    """
    check_parameters(network, params)
    return _logits(network, params, check_inputs(network, inputs))


@jax.jit
def _gradient_sum(network: Network, params: Parameters, batch: Batch) -> Parameters:
    result = pass_batch(network, params, batch)
    return like(params, contract(network, params, result.trace, result.deltas))


def weighted_gradient_sum(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    coefficients: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> Parameters:
    """Return Σ_n c_n ∂(w_n E_n)/∂θ, a sum and not a mean: (c ∘ Δ)ᵀ A in one backward pass.

    Args:
        network: The network.
        params: Its parameters.
        inputs: (N, D).
        targets: As for `loss`.
        coefficients: c (N,), of any sign; a row with c_n = 0 contributes exactly 0.
        sample_weight: w (N,) or None.

    Returns:
        A tree like `params`.

    Raises:
        TypeError: As for `loss`.
        ValueError: As for `loss`.
    """
    batch = check_batch(network, params, inputs, targets, sample_weight)
    wide = np.promote_types(params[0].weight.dtype, np.float32)
    scale = as_array("coefficients", coefficients).astype(wide)
    if scale.shape != batch.inputs.shape[:1]:
        raise ValueError(
            f"coefficients: expected shape {batch.inputs.shape[:1]}, got {scale.shape}"
        )
    weights = scale if batch.weights is None else scale * batch.weights.astype(wide)
    return _gradient_sum(network, params, batch._replace(weights=weights))


@jax.jit
def _input_gradients(network: Network, params: Parameters, batch: Batch) -> Array:
    deltas = pass_batch(network, params, batch).deltas
    dtype = params[0].weight.dtype
    return _input_gradients_of(network, params, deltas, dtype, jnp.ones((), deltas[0].dtype))


def input_gradients(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> Array:
    """Return ∂(w_n E_n)/∂x_n of every example: Δ_1 W_1, one product beyond the backward pass.

    Args:
        network: The network.
        params: Its parameters.
        inputs: (N, D).
        targets: As for `loss`.
        sample_weight: (N,) or None.

    Returns:
        (N, D), in the parameters' dtype, without a factor 1/N.

    Raises:
        TypeError: As for `loss`.
        ValueError: As for `loss`.

    References:
        The derivation on paper, equation 3, carried on to the input.
    """
    batch = check_batch(network, params, inputs, targets, sample_weight)
    return _input_gradients(network, params, batch)
