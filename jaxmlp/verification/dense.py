"""Second-order quantities by whole matrices of automatic differentiation, without our own code.

Every Jacobian and Hessian is built by `jax.jacobian` and `jax.hessian` of the plain functions in
`jaxmlp.verification.oracles`: right by construction, and possible for small networks only.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxmlp.verification import oracles


def dense_quantities(
    activations: Sequence[str],
    loss: str,
    params: Any,
    inputs: Any,
    targets: Any,
    weights: Any,
    vector: Any,
) -> dict[str, tuple[Any, Any]]:
    """Return each quantity by name, with the same sums of absolute values as its scale.

    Args:
        activations: Their names, one for each hidden layer.
        loss: Its name.
        params: A tuple of (weight, bias) layers.
        inputs: (N, D).
        targets: (N,) or (N, K).
        weights: (N,) or None.
        vector: A tree like `params`.

    Returns:
        Name → (value, scale), trees of the same shapes.
    """
    flat, unravel = ravel_pytree(params)
    v, _ = ravel_pytree(vector)
    share = jnp.ones(len(inputs)) if weights is None else weights
    share = share / jnp.sum(share)

    def outputs(theta: Any) -> Any:
        return oracles.plain_logits(activations, unravel(theta), inputs)

    def batch_loss(theta: Any) -> Any:
        return oracles.plain_loss(activations, loss, unravel(theta), inputs, targets, weights)

    def one_loss(z: Any, t: Any) -> Any:
        return oracles.example_losses(loss, z[None], t[None])[0]

    hessian = jax.hessian(batch_loss)(flat)
    jacobian = jax.jacobian(outputs)(flat)  # (N, K, P)
    z = outputs(flat)
    curve = jax.vmap(jax.hessian(one_loss))(z, targets)  # (N, K, K)
    slope = jax.vmap(jax.grad(one_loss))(z, targets)  # (N, K)
    # The Gauss–Newton matrix, and the same with every factor's absolute value.
    matrix = jnp.einsum("n,nip,nij,njq->pq", share, jacobian, curve, jacobian)
    sizes = jnp.einsum("n,nip,nij,njq->pq", share, *map(jnp.abs, (jacobian, curve, jacobian)))
    second = jnp.einsum("n,np->p", share, jnp.einsum("nk,nkp->np", slope, jacobian) ** 2)
    kernel = jnp.einsum("nkp,mlp->nmkl", jacobian, jacobian)
    kernel_size = jnp.einsum("nkp,mlp->nmkl", abs(jacobian), abs(jacobian))
    exact = _factors(activations, params, inputs, share, curve)
    empirical = _factors(activations, params, inputs, share, slope[:, :, None] * slope[:, None, :])
    return {
        "hessian_vector_product": (unravel(hessian @ v), unravel(abs(hessian) @ abs(v))),
        "gauss_newton_vector_product": (unravel(matrix @ v), unravel(sizes @ abs(v))),
        "gauss_newton_diagonal": (unravel(jnp.diag(matrix)), unravel(jnp.diag(sizes))),
        "gradient_second_moment": (unravel(second), unravel(second)),
        "neural_tangent_kernel": (kernel, kernel_size),
        "kfac_factors exact": exact,
        "kfac_factors empirical": empirical,
    }


def _factors(
    activations: Sequence[str], params: Any, inputs: Any, share: Any, curve: Any
) -> tuple[Any, Any]:
    """Return (A, G) of every layer, and their scales, from the curvature (N, K, K) in z_L."""
    values, scales = [], []
    for number, (_, bias) in enumerate(params):
        # a_{l−1} is what the layers before it yield, each with its activation.
        a = inputs
        if number > 0:
            a = oracles.plain_logits(activations[:number], params[:number], inputs)
        if bias is not None:
            a = jnp.concatenate([a, jnp.ones((len(inputs), 1))], axis=1)
        d = _logits_from(activations, params, inputs, number)  # ∂z_L/∂z_l, (N, K, n_l)
        values.append(
            (
                jnp.einsum("n,ni,nj->ij", share, a, a),
                jnp.einsum("n,nki,nkm,nmj->ij", share, d, curve, d),
            )
        )
        scales.append(
            (
                jnp.einsum("n,ni,nj->ij", share, abs(a), abs(a)),
                jnp.einsum("n,nki,nkm,nmj->ij", share, *map(abs, (d, curve, d))),
            )
        )
    return tuple(values), tuple(scales)


def _logits_from(activations: Sequence[str], params: Any, inputs: Any, number: int) -> Any:
    """Return ∂z_L/∂z_l, (N, K, n_l): the derivative in a bias of each example's own."""

    def one(x: Any, shift: Any) -> Any:
        weight, bias = params[number]
        moved = (weight, shift if bias is None else bias + shift)
        layers = (*params[:number], moved, *params[number + 1 :])
        return oracles.plain_logits(activations, layers, x[None])[0]

    nothing = jnp.zeros((len(inputs), len(params[number][0])))
    return jax.vmap(jax.jacobian(one, argnums=1))(inputs, nothing)
