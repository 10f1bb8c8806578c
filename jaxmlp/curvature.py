"""Products with the Hessian and the Gauss–Newton matrix, and the Hessian's largest eigenvalues.

Pearlmutter's R-operator is the derivative of everything along a direction V of the parameters,
R{θ} = V with layers (V_l, c_l). With z_l = W_l a_{l−1} + b_l and a_l = f(z_l), R{a_0} = 0,

    R{z_l} = V_l a_{l−1} + c_l + W_l R{a_{l−1}}                  R{a_l} = f′(z_l) ∘ R{z_l}
    R{δ_L} = H R{z_L}                                            with H = ∂²E/∂z_L²
    R{δ_l} = f″(z_l) ∘ R{z_l} ∘ W_{l+1}ᵀ δ_{l+1}
             + f′(z_l) ∘ (V_{l+1}ᵀ δ_{l+1} + W_{l+1}ᵀ R{δ_{l+1}})
    R{∂E/∂W_l} = R{δ_l} a_{l−1}ᵀ + δ_l R{a_{l−1}}ᵀ               R{∂E/∂b_l} = R{δ_l}

and the last line is the Hessian times V. With J = ∂z_L/∂θ the Gauss–Newton matrix is Jᵀ H J: R{z_L}
forward, H, and an ordinary backward pass. It is what the Hessian is without the network's own
curvature f″; for these losses it is the Fisher matrix, too, see `jaxmlp.fisher`.

All of it is of the mean loss Σ w_n E_n / Σ w_n; 0 where Σ w_n is 0. Shape letters as there.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from jaxmlp.activations import ACTIVATIONS
from jaxmlp.backprop import Trace, input_delta, product, propagate
from jaxmlp.batch import (
    Batch,
    check_batch,
    contract,
    divided,
    like,
    pass_batch,
    sound_forward,
    total_weight,
    weights_like,
    without_idle_rows,
)
from jaxmlp.losses import LOSSES
from jaxmlp.microbatches import check_microbatch_size, sum_over_microbatches
from jaxmlp.network import Layer, Network, Parameters, check_parameters
from jaxmlp.validation import check_key


class Tangent(NamedTuple):
    """R{·} of a `Trace` of one example: R{a_0} … R{a_{L−1}}, (n_{l−1},), and R{z_1} … R{z_L}."""

    inputs: tuple[Array, ...]
    preactivations: tuple[Array, ...]


def forward_tangent(
    network: Network, params: Parameters, trace: Trace, vector: Parameters
) -> Tangent:
    """Return R{a} and R{z} of every layer for one example, along a direction of the parameters.

    Args:
        network: The network.
        params: Its parameters.
        trace: What `forward` returned.
        vector: The direction, a tree like `params`.

    Returns:
        A `Tangent`.

    References:
        Pearlmutter, Fast Exact Multiplication by the Hessian, 1994, section 3.
    """
    inputs, preactivations = [], []
    ra = jnp.zeros_like(trace.inputs[0])
    for l, (layer, v) in enumerate(zip(params, vector, strict=True)):
        # Vᵀ from the right: of a sum of W a and V a over a batch, XLA would transpose both terms.
        rz = product(network, trace.inputs[l], v.weight.T)
        if l > 0:  # R{a_0} is 0
            rz = rz + product(network, ra, layer.weight.T)
        if v.bias is not None:
            rz = rz + v.bias.astype(rz.dtype)
        inputs.append(ra)
        preactivations.append(rz)
        if l < len(network.activations):
            f = ACTIVATIONS[network.activations[l]]
            ra = (f.derivative(trace.preactivations[l]) * rz).astype(layer.weight.dtype)
    return Tangent(tuple(inputs), tuple(preactivations))


def backward_tangent(
    network: Network,
    params: Parameters,
    trace: Trace,
    deltas: tuple[Array, ...],
    vector: Parameters,
    tangent: Tangent,
    output_tangent: Array,
) -> tuple[Array, ...]:
    """Return R{δ_1} … R{δ_L} of one example, from R{δ_L}.

    Args:
        network: The network.
        params: Its parameters.
        trace: What `forward` returned.
        deltas: What `backward` returned.
        vector: The direction, a tree like `params`.
        tangent: What `forward_tangent` returned.
        output_tangent: R{δ_L} = H R{z_L}, (K,).

    Returns:
        (R{δ_1}, …, R{δ_L}), each of shape (n_l,).

    References:
        Pearlmutter, Fast Exact Multiplication by the Hessian, 1994, section 3.
    """
    results = [output_tangent]
    for l in reversed(range(len(network.activations))):
        f, z = ACTIVATIONS[network.activations[l]], trace.preactivations[l]
        above = input_delta(network, params, l + 1, deltas[l + 1])
        r_above = input_delta(network, vector, l + 1, deltas[l + 1])
        r_above = r_above + input_delta(network, params, l + 1, results[0])
        bend = f.second_derivative(z) * tangent.preactivations[l] * above
        results.insert(0, bend + f.derivative(z) * r_above)
    return tuple(results)


def _mean(network: Network, params: Parameters, sums: tuple[Any, Array]) -> Parameters:
    return like(params, divided(*sums))


@partial(jax.jit, static_argnames="microbatch_size")
def _hessian_vector_product(
    network: Network,
    params: Parameters,
    batch: Batch,
    vector: Parameters,
    microbatch_size: int | None,
) -> Parameters:
    def total(piece: Batch) -> tuple[Any, Array]:
        piece = without_idle_rows(piece)
        result = pass_batch(network, params, piece)
        weights = weights_like(result.losses, piece.weights)

        def one(trace: Trace, deltas: tuple[Array, ...], t: Array, w: Array) -> Any:
            tangent = forward_tangent(network, params, trace, vector)
            curve = LOSSES[network.loss].hessian_product
            output = w * curve(trace.preactivations[-1], t, tangent.preactivations[-1])
            r_deltas = backward_tangent(
                network, params, trace, deltas, vector, tangent, jnp.where(w == 0, 0, output)
            )
            return tangent.inputs, r_deltas

        r_inputs, r_deltas = jax.vmap(one)(result.trace, result.deltas, piece.targets, weights)
        sums = []
        for l, layer in enumerate(params):
            a, r_delta = result.trace.inputs[l], r_deltas[l]
            weight = product(network, r_delta.astype(a.dtype).T, a)
            if l > 0:  # R{a_0} is 0
                delta = result.deltas[l].astype(a.dtype)
                weight = weight + product(network, delta.T, r_inputs[l])
            bias = None if layer.bias is None else jnp.sum(r_delta, axis=0)
            sums.append(Layer(weight, bias))
        return tuple(sums), total_weight(result.losses, piece.weights)

    return _mean(network, params, sum_over_microbatches(total, batch, microbatch_size))


def hessian_vector_product(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    vector: Parameters,
    sample_weight: ArrayLike | None = None,
    *,
    microbatch_size: int | None = None,
) -> Parameters:
    """Return the Hessian of the mean loss times a vector, R{∂E/∂θ}, by the R-operator.

    (R{Δ}ᵀ A + Δᵀ R{A}) / N over the layers, the formulas of `jaxmlp.curvature`. Costs about one
    gradient beyond the gradient, as `jax.jvp` of `jax.grad` does. At a kink f″ is 0.

    Args:
        network: The network.
        params: Its parameters.
        inputs: (N, D).
        targets: As for `loss`.
        vector: A tree like `params`.
        sample_weight: (N,) or None.
        microbatch_size: Rows at a time, or None for all.

    Returns:
        A tree like `params`.

    Raises:
        TypeError: As for `loss`, or a `vector` that is no tree of layers.
        ValueError: As for `loss`, or a `vector` of other shapes.

    References:
        Pearlmutter, Fast Exact Multiplication by the Hessian, Neural Computation 6, 1994.
    """
    batch = check_batch(network, params, inputs, targets, sample_weight)
    vector = _check_vector(network, params, vector)
    check_microbatch_size(microbatch_size)
    return _hessian_vector_product(network, params, batch, vector, microbatch_size)


def _check_vector(network: Network, params: Parameters, vector: Any) -> Parameters:
    try:
        check_parameters(network, vector)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("params", "vector")) from None
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, params[0].weight.dtype), tuple(vector))


@partial(jax.jit, static_argnames="microbatch_size")
def _gauss_newton_vector_product(
    network: Network,
    params: Parameters,
    batch: Batch,
    vector: Parameters,
    microbatch_size: int | None,
) -> Parameters:
    def total(piece: Batch) -> tuple[Any, Array]:
        piece, traces, weights = sound_forward(network, params, piece)

        def one(trace: Trace, t: Array, w: Array) -> tuple[Array, ...]:
            tangent = forward_tangent(network, params, trace, vector)
            curve = LOSSES[network.loss].hessian_product
            output = w * curve(trace.preactivations[-1], t, tangent.preactivations[-1])
            return propagate(network, params, trace, jnp.where(w == 0, 0, output))

        deltas = jax.vmap(one)(traces, piece.targets, weights)
        return contract(network, params, traces, deltas), jnp.sum(weights)

    return _mean(network, params, sum_over_microbatches(total, batch, microbatch_size))


def gauss_newton_vector_product(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    vector: Parameters,
    sample_weight: ArrayLike | None = None,
    *,
    microbatch_size: int | None = None,
) -> Parameters:
    """Return the Gauss–Newton matrix of the mean loss times a vector: Jᵀ H J v.

    J v = R{z_L} by a forward pass, H by the loss, Jᵀ by a backward pass. Costs about 0.6 of a
    gradient beyond the gradient. For these losses it is the Fisher matrix times the vector.

    Args:
        network: The network.
        params: Its parameters.
        inputs: (N, D).
        targets: As for `loss`; of softmax cross-entropy only their total counts, of the others
            nothing.
        vector: A tree like `params`.
        sample_weight: (N,) or None.
        microbatch_size: Rows at a time, or None for all.

    Returns:
        A tree like `params`.

    Raises:
        TypeError: As for `hessian_vector_product`.
        ValueError: As for `hessian_vector_product`.

    References:
        Schraudolph, Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent, 2002.
        Martens, New Insights and Perspectives on the Natural Gradient Method, 2020, section 9.
    """
    batch = check_batch(network, params, inputs, targets, sample_weight)
    vector = _check_vector(network, params, vector)
    check_microbatch_size(microbatch_size)
    return _gauss_newton_vector_product(network, params, batch, vector, microbatch_size)


class Eigenpairs(NamedTuple):
    """Eigenvalues (k,), the largest first, and unit eigenvectors: a tree like `params` with (k, …).

    All are NumPy arrays.
    """

    values: np.ndarray
    vectors: Parameters


def hessian_eigenvalues(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    k: int = 1,
    sample_weight: ArrayLike | None = None,
    *,
    key: Array,
    microbatch_size: int | None = None,
) -> Eigenpairs:
    """Return the k algebraically largest eigenvalues of the Hessian of the mean loss.

    Lanczos iterations of SciPy (ARPACK) over `hessian_vector_product`: tens to hundreds of products
    and no matrix; where k is nearly the number of parameters P, the matrix of P products.

    Args:
        network: The network.
        params: Its parameters, in float32 or float64.
        inputs: (N, D).
        targets: As for `loss`.
        k: How many, 1 to P.
        sample_weight: (N,) or None.
        key: A typed key: it draws the vector that Lanczos begins with.
        microbatch_size: Rows at a time, or None for all.

    Returns:
        `Eigenpairs(values, vectors)`.

    Raises:
        TypeError: As for `loss`, or no typed key.
        ValueError: As for `loss`, a `k` out of its range, parameters in half precision, or numbers
            that are not finite.
        scipy.sparse.linalg.ArpackNoConvergence: The iterations do not converge.

    References:
        Lehoucq, Sorensen, Yang, ARPACK Users' Guide, 1998. Sagun, Bottou, LeCun, Eigenvalues of
        the Hessian in Deep Learning, 2016.
    """
    batch = check_batch(network, params, inputs, targets, sample_weight)
    check_microbatch_size(microbatch_size)
    check_key(key)
    n_parameters, dtype = network.n_parameters, np.dtype(params[0].weight.dtype)
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= n_parameters:
        raise ValueError(f"k: expected 1 to {n_parameters}, the number of parameters, got {k!r}")
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"params: expected float32 or float64, got {dtype.name}")
    _, unravel = ravel_pytree(params)

    def times(vector: np.ndarray) -> np.ndarray:
        tree = unravel(jax.device_put(np.asarray(vector, dtype).reshape(-1)))
        result = _hessian_vector_product(network, params, batch, tree, microbatch_size)
        return np.asarray(ravel_pytree(result)[0])

    start = np.asarray(jax.random.normal(key, (n_parameters,), dtype))
    first = times(start)
    if not np.isfinite(first).all():
        raise ValueError(
            "params, inputs, targets: expected finite ones with a finite Hessian, got a product "
            "with it that is not"
        )
    if not first.any():  # of no example, or of no weight: any vectors do
        values, vectors = np.zeros(k, dtype), np.eye(n_parameters, k, dtype=dtype)
    elif k > n_parameters - 2:  # ARPACK wants fewer
        matrix = np.stack([times(row) for row in np.eye(n_parameters, dtype=dtype)])
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        values, vectors = values[-k:], vectors[:, -k:]
    else:
        from scipy.sparse.linalg import LinearOperator, eigsh

        operator: Any = LinearOperator((n_parameters, n_parameters), matvec=times, dtype=dtype)  # pyright: ignore[reportCallIssue]
        values, vectors = eigsh(operator, k=k, which="LA", v0=start)
    order = np.argsort(values)[::-1]
    stacked = [
        jax.tree.map(np.asarray, unravel(jax.device_put(vectors[:, number]))) for number in order
    ]
    return Eigenpairs(values[order], jax.tree.map(lambda *leaves: np.stack(leaves), *stacked))
