"""The Gauss–Newton matrix in parts: its diagonal, Kronecker factors, and the tangent kernel.

For these losses the Hessian in the logits, H, is the Fisher information of the model in its logits,
so that the Gauss–Newton matrix Σ_n Jᵀ H J / N is the Fisher matrix. Backward passes of vectors δ_L
with Σ_c δ_{L,c} δ_{L,c}ᵀ = H, exactly or on average, yield pairs (a, δ_c) whose contractions are

    diagonal             (Σ_c Δ_c∘Δ_c)ᵀ (A∘A) / N
    Kronecker factors    Aᵀ A / N  and  Σ_c Δ_cᵀ Δ_c / N, of A with a 1 appended to its rows

The vectors are the K rows of H's root ("exact"); the loss's gradient for a target drawn from the
model itself ("sampled"); or that for the data's target ("empirical"), which is another matrix: the
second moment of the gradient, and equal to the Fisher matrix only where the model is true.

All are of the mean Σ w_n … / Σ w_n; 0 where Σ w_n is 0. Shape letters as in `jaxmlp.gradients`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxmlp.backprop import Trace, product, propagate
from jaxmlp.batch import (
    Batch,
    check_batch,
    check_inputs,
    divided,
    forward_batch,
    like,
    sound_forward,
)
from jaxmlp.losses import LOSSES
from jaxmlp.microbatches import check_microbatch_size, cut, sum_over_microbatches
from jaxmlp.network import Layer, Network, Parameters, check_parameters
from jaxmlp.validation import check_key, check_name, prefixed

KINDS = ("exact", "sampled", "empirical")


class KroneckerFactors(NamedTuple):
    """The factors of one layer, with G ⊗ A the layer's block of the Fisher matrix approximately.

    `inputs` is A, the mean of ā āᵀ with ā = a, or (a, 1) where the layer has a bias; `deltas` is G,
    the mean of Σ_c δ_c δ_cᵀ, (n_out, n_out). The block's rows go over the weights (n_out, n_in), or
    the weights with the bias as a last column.
    """

    inputs: Array
    deltas: Array


class _Kind(NamedTuple):
    """Which vectors are passed back: a name of `KINDS`, and of how many samples."""

    name: str
    samples: int


def _output_deltas(
    network: Network, z: Array, targets: Array, kind: _Kind, key: Array | None, rows: Array
) -> Array:
    """Return vectors (C, N, K) at the output with Σ_c δ_c δ_cᵀ = H of each example, or about it.

    What is drawn for an example depends on the key and its number in `rows` (N,) alone.
    """
    loss = LOSSES[network.loss]
    if kind.name == "exact":
        return jnp.swapaxes(jax.vmap(loss.hessian_root)(z, targets), 0, 1)
    if kind.name == "empirical":
        return jax.vmap(loss.gradient)(z, targets)[None]
    assert key is not None

    def one(sample: Array) -> Array:
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, sample)))(rows)
        return jax.vmap(loss.sampled_gradient)(z, targets, keys)

    return jax.vmap(one)(jnp.arange(kind.samples)) / np.sqrt(kind.samples)


def _fold_backward(
    network: Network,
    params: Parameters,
    trace: Trace,
    outputs: Array,
    add: Callable[[Any, tuple[Array, ...]], Any],
    nothing: Any,
) -> Any:
    """Return the fold of `add` over the deltas (N, n_l) of each of the output vectors (C, N, K)."""
    back = jax.vmap(partial(propagate, network, params))

    def step(carry: Any, output: Array) -> tuple[Any, None]:
        return add(carry, back(trace, output)), None

    return jax.lax.scan(step, nothing, outputs)[0]


def _prepared(
    network: Network,
    params: Parameters,
    batch: Batch,
    kind: _Kind,
    key: Array | None,
    rows: Array,
) -> tuple[Trace, Array, Array]:
    """Return the trace of a batch, its weights (N,) and the output vectors, 0 in idle rows."""
    batch, trace, weights = sound_forward(network, params, batch)
    outputs = _output_deltas(network, trace.preactivations[-1], batch.targets, kind, key, rows)
    return trace, weights, jnp.where((weights == 0)[None, :, None], 0, outputs)


@partial(jax.jit, static_argnames=("kind", "microbatch_size"))
def _gauss_newton_diagonal(
    network: Network,
    params: Parameters,
    batch: Batch,
    kind: _Kind,
    key: Array | None,
    microbatch_size: int | None,
) -> Parameters:
    def total(piece: Batch, rows: Array) -> tuple[Any, Array]:
        trace, weights, outputs = _prepared(network, params, piece, kind, key, rows)
        squares = _fold_backward(
            network,
            params,
            trace,
            outputs,
            lambda carry, deltas: tuple(
                sums + delta**2 for sums, delta in zip(carry, deltas, strict=True)
            ),
            tuple(jnp.zeros_like(z) for z in trace.preactivations),
        )
        layers = []
        for layer, a, sums in zip(params, trace.inputs, squares, strict=True):
            sums = weights[:, None] * sums
            weight = product(network, sums.T, a.astype(sums.dtype) ** 2)
            layers.append(Layer(weight, None if layer.bias is None else jnp.sum(sums, axis=0)))
        return tuple(layers), jnp.sum(weights)

    rows = jnp.arange(len(batch.inputs))
    sums, weight = sum_over_microbatches(total, batch, microbatch_size, rows)
    return like(params, divided(sums, weight))


def gauss_newton_diagonal(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    sample_weight: ArrayLike | None = None,
    *,
    fisher: str = "exact",
    key: Array | None = None,
    samples: int = 1,
    microbatch_size: int | None = None,
) -> Parameters:
    """Return the diagonal of the Gauss–Newton matrix of the mean loss, (Σ_c Δ_c∘Δ_c)ᵀ(A∘A) / N.

    Exact, by K backward passes of vectors and one product; or, without bias and cheaper for many
    outputs, with `fisher="sampled"` by a pass for each sample.

    Args:
        network: The network.
        params: Its parameters.
        inputs: (N, D).
        targets: As for `loss`; of softmax cross-entropy only their total counts, of the others
            nothing.
        sample_weight: (N,) or None.
        fisher: "exact" or "sampled". (The "empirical" one is `gradient_second_moment`.)
        key: A typed key where targets are sampled.
        samples: How many targets are drawn for an example where they are sampled.
        microbatch_size: Rows at a time, or None for all; the result and the samples are the same.

    Returns:
        A tree like `params`, nowhere negative.

    Raises:
        TypeError: As for `loss`, or `fisher="sampled"` without a typed key.
        ValueError: As for `loss`, another `fisher`, or `samples` below 1.

    References:
        Martens, New Insights and Perspectives on the Natural Gradient Method, 2020, section 9.
        Dangel, Kunstner, Hennig, BackPACK, 2020, section 2.3 (DiagGGN and DiagGGN-MC).
    """
    batch = check_batch(network, params, inputs, targets, sample_weight)
    kind = _check_kind(fisher, key, samples, KINDS[:2])
    check_microbatch_size(microbatch_size)
    return _gauss_newton_diagonal(network, params, batch, kind, key, microbatch_size)


def _check_kind(fisher: str, key: Array | None, samples: int, kinds: tuple[str, ...]) -> _Kind:
    check_name("fisher", fisher, kinds)
    if isinstance(samples, bool) or not isinstance(samples, (int, np.integer)):
        raise TypeError(f"samples: expected an integer, got {samples!r}")
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    if fisher == "sampled":
        check_key(key)
    return _Kind(fisher, int(samples))


@partial(jax.jit, static_argnames=("kind", "microbatch_size"))
def _kfac_factors(
    network: Network,
    params: Parameters,
    batch: Batch,
    kind: _Kind,
    key: Array | None,
    microbatch_size: int | None,
) -> tuple[KroneckerFactors, ...]:
    def total(piece: Batch, rows: Array) -> tuple[Any, Any, Array]:
        trace, weights, outputs = _prepared(network, params, piece, kind, key, rows)

        def add(carry: Any, deltas: tuple[Array, ...]) -> Any:
            return tuple(
                sums + product(network, (weights[:, None] * delta).T, delta)
                for sums, delta in zip(carry, deltas, strict=True)
            )

        nothing = tuple(jnp.zeros((size, size), weights.dtype) for size in network.sizes[1:])
        deltas = _fold_backward(network, params, trace, outputs, add, nothing)
        inputs = []
        for layer, a in zip(params, trace.inputs, strict=True):
            if layer.bias is not None:
                a = jnp.concatenate([a, jnp.ones((len(a), 1), a.dtype)], axis=1)
            a = a.astype(weights.dtype)
            inputs.append(product(network, (weights[:, None] * a).T, a))
        return tuple(inputs), deltas, jnp.sum(weights)

    rows = jnp.arange(len(batch.inputs))
    inputs, deltas, weight = sum_over_microbatches(total, batch, microbatch_size, rows)
    means = divided((inputs, deltas), weight)
    return tuple(KroneckerFactors(a, g) for a, g in zip(*means, strict=True))


def kfac_factors(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    sample_weight: ArrayLike | None = None,
    *,
    fisher: str = "exact",
    key: Array | None = None,
    samples: int = 1,
    microbatch_size: int | None = None,
) -> tuple[KroneckerFactors, ...]:
    """Return the Kronecker factors of every layer's block of the Fisher matrix, undamped.

    A = Āᵀ Ā / N and G = Σ_c Δ_cᵀ Δ_c / N. Costs two products a layer beyond the passes, of which
    there are K for the exact Fisher matrix, one a sample, and one for the empirical.

    Args:
        network: The network.
        params: Its parameters.
        inputs: (N, D).
        targets: As for `loss`.
        sample_weight: (N,) or None.
        fisher: "exact", "sampled" or "empirical": see `jaxmlp.fisher`. KFAC as published samples.
        key: A typed key where targets are sampled.
        samples: How many targets are drawn for an example where they are sampled.
        microbatch_size: Rows at a time, or None for all; the result and the samples are the same.

    Returns:
        `KroneckerFactors(inputs, deltas)` for each layer, in float32 or better.

    Raises:
        TypeError: As for `gauss_newton_diagonal`.
        ValueError: As for `gauss_newton_diagonal`.

    References:
        Martens, Grosse, Optimizing Neural Networks with Kronecker-factored Approximate Curvature,
        2015. Kunstner, Balles, Hennig, Limitations of the Empirical Fisher Approximation, 2019.
    """
    batch = check_batch(network, params, inputs, targets, sample_weight)
    kind = _check_kind(fisher, key, samples, KINDS)
    check_microbatch_size(microbatch_size)
    return _kfac_factors(network, params, batch, kind, key, microbatch_size)


@partial(jax.jit, static_argnames="microbatch_size")
def _neural_tangent_kernel(
    network: Network,
    params: Parameters,
    inputs: Array,
    other_inputs: Array | None,
    microbatch_size: int | None,
) -> Array:
    n_outputs = network.sizes[-1]

    def jacobian_pairs(x: Array) -> tuple[Trace, tuple[Array, ...]]:
        """Return the trace, and δ (K, N, n_l) of each logit itself."""
        trace = forward_batch(network, params, x)
        eye = jnp.eye(n_outputs, dtype=trace.preactivations[-1].dtype)
        back = jax.vmap(partial(propagate, network, params), (0, None))
        deltas = jax.vmap(back, (None, 0))(trace, eye)
        return trace, deltas

    columns = jacobian_pairs(inputs if other_inputs is None else other_inputs)

    def block(rows: tuple[Trace, tuple[Array, ...]]) -> Array:
        total = jnp.zeros((), columns[1][-1].dtype)
        for number, layer in enumerate(params):
            a, other_a = rows[0].inputs[number], columns[0].inputs[number]
            deltas, others = rows[1][number], columns[1][number]
            k, n, width = deltas.shape
            m = others.shape[1]
            pairs = product(
                network, jnp.reshape(deltas, (k * n, width)), jnp.reshape(others, (k * m, width)).T
            )
            inner = product(network, a, other_a.T) + float(layer.bias is not None)
            total += jnp.reshape(pairs, (k, n, k, m)) * inner[None, :, None, :]
        return jnp.transpose(total, (1, 3, 0, 2))

    if microbatch_size is None or len(inputs) <= microbatch_size:
        return block(columns if other_inputs is None else jacobian_pairs(inputs))
    blocks = jax.lax.map(lambda x: block(jacobian_pairs(x)), cut(inputs, microbatch_size))
    n_pieces, size, *rest = blocks.shape
    return jnp.reshape(blocks, (n_pieces * size, *rest))[: len(inputs)]


def neural_tangent_kernel(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    other_inputs: ArrayLike | None = None,
    *,
    microbatch_size: int | None = None,
) -> Array:
    """Return the empirical neural tangent kernel J(x_n) J(x'_m)ᵀ of the logits, J = ∂z_L/∂θ.

    Σ_l (δ_k · δ'_k')(a · a' + 1), from the K pairs of every example, the 1 for layers with a bias:
    no Jacobian is built.

    Args:
        network: The network; its loss does not count.
        params: Its parameters.
        inputs: (N, D).
        other_inputs: (M, D), or None for the kernel within the first inputs.
        microbatch_size: Rows of `inputs` at a time, or None for all.

    Returns:
        (N, M, K, K).

    Raises:
        TypeError: A `microbatch_size` that is no integer.
        ValueError: Shapes that do not fit.

    References:
        Jacot, Gabriel, Hongler, Neural Tangent Kernel, 2018. Novak, Sohl-Dickstein, Schoenholz,
        Fast Finite Width Neural Tangent Kernel, 2022.
    """
    check_parameters(network, params)
    rows = check_inputs(network, inputs)
    with prefixed("other_"):
        columns = None if other_inputs is None else check_inputs(network, other_inputs)
    check_microbatch_size(microbatch_size)
    return _neural_tangent_kernel(network, params, rows, columns, microbatch_size)
