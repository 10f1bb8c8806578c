"""How the gradients of a batch's examples differ: inner products, moments, and the noise scale.

Further contractions of the pairs (a_{l−1}, δ_l) of one backward pass, see `jaxmlp.gradients`, whose
shape letters and batches are used here. With A (N, n_in) and Δ (N, n_out) of a layer, over the
layers,

    gradient Gram matrix      Σ_l (Δ Δᵀ) ∘ (A Aᵀ + 1), the 1 where there is a bias
    second moment             (Δ∘Δ)ᵀ (A∘A) / N  and, for the bias,  (Δ∘Δ)ᵀ 1 / N
    variance                  two such products of A and Δ less their means
    gradient noise scale      from the squared norms and the mean gradient

A moment weights its examples: Σ w_n g_n² / Σ w_n with g_n = ∂E_n/∂θ, as the mean gradient is
Σ w_n g_n / Σ w_n. The Gram matrix is of per-example gradients, those of w_n E_n.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxmlp.backprop import product
from jaxmlp.batch import (
    Batch,
    Pass,
    check_batch,
    contract,
    divided,
    like,
    pass_batch,
    safe_divide,
    total_weight,
    unweighted,
    weights_like,
    without_idle_rows,
)
from jaxmlp.microbatches import check_microbatch_size, cut, sum_over_microbatches
from jaxmlp.network import Layer, Network, Parameters
from jaxmlp.per_example import squared_norms
from jaxmlp.validation import prefixed


class NoiseScale(NamedTuple):
    """The gradient's signal and noise, scalars.

    `squared_norm` estimates ‖G‖² of the true gradient G without bias (so that it may be negative),
    `variance` estimates tr Σ, the summed variance of one example's gradient, and `noise_scale` is
    their ratio tr Σ / ‖G‖²: about the batch size beyond which a larger one pays less and less.
    """

    squared_norm: Array
    variance: Array
    noise_scale: Array


@partial(jax.jit, static_argnames="microbatch_size")
def _gradient_gram_matrix(
    network: Network,
    params: Parameters,
    batch: Batch,
    other: Batch | None,
    microbatch_size: int | None,
) -> Array:
    batch = without_idle_rows(batch)
    other = None if other is None else without_idle_rows(other)
    columns = pass_batch(network, params, batch if other is None else other)

    def block(rows: Pass) -> Array:
        return inner_products(network, params, rows, columns)

    if microbatch_size is None or len(batch.inputs) <= microbatch_size:
        return block(columns if other is None else pass_batch(network, params, batch))
    pieces = cut(batch, microbatch_size)
    blocks = jax.lax.map(lambda piece: block(pass_batch(network, params, piece)), pieces)
    n_pieces, size, n_others = blocks.shape
    return jnp.reshape(blocks, (n_pieces * size, n_others))[: len(batch.inputs)]


def inner_products(network: Network, params: Parameters, rows: Pass, columns: Pass) -> Array:
    """Return Σ_l (Δ Δ'ᵀ) ∘ (A A'ᵀ + 1), (N, M), for the passes over two batches."""
    total = jnp.zeros((), rows.losses.dtype)
    for number, layer in enumerate(params):
        a, other_a = rows.trace.inputs[number], columns.trace.inputs[number]
        inputs = product(network, a, other_a.T)
        deltas = product(network, rows.deltas[number], columns.deltas[number].T)
        total += deltas * (inputs + float(layer.bias is not None))
    return total


def gradient_gram_matrix(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    other_inputs: ArrayLike | None = None,
    other_targets: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    *,
    other_sample_weight: ArrayLike | None = None,
    microbatch_size: int | None = None,
) -> Array:
    """Return the inner products ⟨g_n, g'_m⟩ of all examples' gradients, without any gradient.

    Σ_l (Δ Δ'ᵀ) ∘ (A A'ᵀ + 1), since ⟨δ aᵀ, δ' a'ᵀ⟩ = (δ·δ')(a·a'); the 1 stands where the layer has
    a bias. Costs two N × M products a layer beyond the passes.

    Args:
        network: The network.
        params: Its parameters.
        inputs: (N, D).
        targets: As for `loss`.
        other_inputs: (M, D) of a second batch, or None for the inner products within the first.
        other_targets: The second batch's targets.
        sample_weight: w (N,) or None: g_n is ∂(w_n E_n)/∂θ.
        other_sample_weight: (M,) or None, for the second batch.
        microbatch_size: Rows of the first batch at a time, or None for all.

    Returns:
        (N, M), or (N, N) of one batch.

    Raises:
        TypeError: As for `loss`.
        ValueError: As for `loss`, or only a part of the second batch is given.

    References:
        Pruthi, Liu, Kale, Sundararajan, Estimating Training Data Influence by Tracing Gradient
        Descent, 2020: these inner products, summed over checkpoints, are TracIn.
    """
    batch = check_batch(network, params, inputs, targets, sample_weight)
    check_microbatch_size(microbatch_size)
    if (other_inputs is None) != (other_targets is None):
        raise ValueError(
            "other_inputs, other_targets: expected both or neither, got "
            f"{'targets' if other_inputs is None else 'inputs'} alone"
        )
    other = None
    if other_inputs is not None and other_targets is not None:
        with prefixed("other_"):
            other = check_batch(network, params, other_inputs, other_targets, other_sample_weight)
    elif other_sample_weight is not None:
        raise ValueError("other_sample_weight: expected None without other_inputs, got an array")
    return _gradient_gram_matrix(network, params, batch, other, microbatch_size)


def _squares(network: Network, params: Parameters, result: Pass, weights: Array | None) -> tuple:
    """Return Σ w_n g_n² of every parameter, (Δ∘Δ∘w)ᵀ(A∘A), in float32 or better."""
    layers = []
    plain = unweighted(result, weights)
    for layer, a, delta, weighted in zip(
        params, result.trace.inputs, plain, result.deltas, strict=True
    ):
        rows = delta * weighted
        # Squares of half-precision activations are taken in float32: they have twice the digits.
        weight = product(network, rows.T, a.astype(rows.dtype) ** 2)
        layers.append(Layer(weight, None if layer.bias is None else jnp.sum(rows, axis=0)))
    return tuple(layers)


@partial(jax.jit, static_argnames="microbatch_size")
def _second_moment(
    network: Network, params: Parameters, batch: Batch, microbatch_size: int | None
) -> Parameters:
    def total(piece: Batch) -> tuple:
        result = pass_batch(network, params, without_idle_rows(piece))
        squares = _squares(network, params, result, piece.weights)
        return squares, total_weight(result.losses, piece.weights)

    squares, weight = sum_over_microbatches(total, batch, microbatch_size)
    return like(params, divided(squares, weight))


def gradient_second_moment(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    sample_weight: ArrayLike | None = None,
    *,
    microbatch_size: int | None = None,
) -> Parameters:
    """Return Σ_n w_n g_n² / Σ_n w_n for every parameter, with g_n = ∂E_n/∂θ: (Δ∘Δ)ᵀ(A∘A) / N.

    The diagonal of the empirical Fisher matrix. Costs one product a layer beyond the pass, 0.4 of a
    gradient.

    Args:
        network: The network.
        params: Its parameters.
        inputs: (N, D).
        targets: As for `loss`.
        sample_weight: w (N,) or None, which means all 1: the plain mean over the examples.
        microbatch_size: Rows at a time, or None for all.

    Returns:
        A tree like `params`; 0 for an empty batch.

    Raises:
        TypeError: As for `loss`, or a `microbatch_size` that is no integer.
        ValueError: As for `loss`, or a `microbatch_size` below 1.

    References:
        Dangel, Kunstner, Hennig, BackPACK, 2020, section 2.2: the second moment of the gradient.
    """
    batch = check_batch(network, params, inputs, targets, sample_weight)
    check_microbatch_size(microbatch_size)
    return _second_moment(network, params, batch, microbatch_size)


class _Spread(NamedTuple):
    """The gradients of some examples: their weight (), and mean and variance like the layers."""

    weight: Array
    mean: tuple[Layer, ...]
    variance: tuple[Layer, ...]


def _spread(network: Network, params: Parameters, batch: Batch) -> _Spread:
    """Return the mean and the variance of the gradients of a batch, in float32 or better.

    With δ = u + d and a = v + e, where u and v are the means, δ a − u v is d a + u e, and so the
    variance of δ a

        E d² a² + 2 u E d a e + u² E e² − (E d a)²

    in which no square of a large mean is taken away from another. For a e = a² − v a two products
    are enough, of d² + 2 u d with a², and of d with a.
    """
    result = pass_batch(network, params, without_idle_rows(batch))
    weight = total_weight(result.losses, batch.weights)
    share = safe_divide(weights_like(result.losses, batch.weights), weight)[:, None]
    means, variances = [], []
    plain = unweighted(result, batch.weights)
    for layer, a, delta in zip(params, result.trace.inputs, plain, strict=True):
        a = a.astype(delta.dtype)
        u, v = (jnp.sum(share * rows, axis=0) for rows in (delta, a))
        d, e = delta - u[None, :], a - v[None, :]
        means_of_both = u[:, None] * v[None, :]
        both = product(network, (share * d).T, a)
        squares = product(network, (share * (d * d + 2 * u[None, :] * d)).T, a * a)
        spread = jnp.square(u)[:, None] * jnp.sum(share * e * e, axis=0)[None, :]
        variance = squares - 2 * means_of_both * both + spread - jnp.square(both)
        bias = layer.bias is not None
        means.append(Layer(means_of_both + both, u if bias else None))
        of_bias = jnp.sum(share * d * d, axis=0) if bias else None
        variances.append(Layer(jnp.maximum(variance, 0), of_bias))
    return _Spread(weight, tuple(means), tuple(variances))


def _spread_of_both(first: _Spread, second: _Spread) -> _Spread:
    """Return the mean and the variance of the examples of two parts."""
    weight = first.weight + second.weight
    part, rest = safe_divide(first.weight, weight), safe_divide(second.weight, weight)

    def mean(left: Array, right: Array) -> Array:
        return left + rest * (right - left)

    def variance(left: Array, right: Array, one: Array, other: Array) -> Array:
        return part * left + rest * right + part * rest * jnp.square(other - one)

    means = first.mean, second.mean
    return _Spread(
        weight,
        jax.tree.map(mean, *means),
        jax.tree.map(variance, first.variance, second.variance, *means),
    )


@partial(jax.jit, static_argnames="microbatch_size")
def _gradient_variance(
    network: Network, params: Parameters, batch: Batch, microbatch_size: int | None
) -> Parameters:
    of = partial(_spread, network, params)
    spread = sum_over_microbatches(of, batch, microbatch_size, add=_spread_of_both)
    return like(params, spread.variance)


def gradient_variance(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    sample_weight: ArrayLike | None = None,
    *,
    microbatch_size: int | None = None,
) -> Parameters:
    """Return the variance Σ_n w_n (g_n − ḡ)² / Σ_n w_n of every parameter's gradient.

    At least 0: that of the examples given, which times N/(N − 1) estimates that of their
    distribution without bias. Where the mean gradient is large beside the deviation, of the dtype's
    digits only as many are lost as the one has more than the other, for δ and a are taken less
    their means. Costs two products a layer.

    Args:
        network: The network.
        params: Its parameters.
        inputs: (N, D).
        targets: As for `loss`.
        sample_weight: w (N,) or None, which means all 1.
        microbatch_size: Rows at a time, or None for all.

    Returns:
        A tree like `params`; 0 for a batch of none or one.

    Raises:
        TypeError: As for `gradient_second_moment`.
        ValueError: As for `gradient_second_moment`.

    References:
        Dangel, Kunstner, Hennig, BackPACK, 2020, section 2.2.
    """
    batch = check_batch(network, params, inputs, targets, sample_weight)
    check_microbatch_size(microbatch_size)
    return _gradient_variance(network, params, batch, microbatch_size)


@partial(jax.jit, static_argnames="microbatch_size")
def _gradient_noise_scale(
    network: Network, params: Parameters, batch: Batch, microbatch_size: int | None
) -> NoiseScale:
    largest = jnp.ones(()) if batch.weights is None else jnp.max(batch.weights)

    def total(piece: Batch) -> tuple:
        result = pass_batch(network, params, without_idle_rows(piece))
        sums = contract(network, params, result.trace, result.deltas)
        weights = weights_like(result.losses, piece.weights)
        plain = result._replace(deltas=unweighted(result, piece.weights))
        squares = jnp.sum(weights * squared_norms(params, plain))
        # Their squares may be beyond the dtype, or all but 0.
        parts = safe_divide(weights, largest.astype(weights.dtype))
        return sums, squares, jnp.sum(weights), jnp.sum(parts), jnp.sum(parts**2)

    sums, squares, weight, part, part_squares = sum_over_microbatches(total, batch, microbatch_size)
    mean_square = squares / weight
    square_mean = sum(jnp.sum((leaf / weight) ** 2) for leaf in jax.tree.leaves(sums))
    n = part * (part / part_squares)  # N where all weights are equal
    n = jnp.where(n > 1 + 1e-6, n, jnp.nan)  # one example has no variance
    squared_norm = (n * square_mean - mean_square) / (n - 1)
    variance = n * jnp.maximum(mean_square - square_mean, 0) / (n - 1)
    return NoiseScale(squared_norm, variance, variance / squared_norm)


def gradient_noise_scale(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    sample_weight: ArrayLike | None = None,
    *,
    microbatch_size: int | None = None,
) -> NoiseScale:
    """Return the gradient's squared norm, its variance and their ratio, the simple noise scale.

    With m the mean of ‖g_n‖² and ḡ the mean gradient of the N examples, both without bias:

        ‖G‖² = (N ‖ḡ‖² − m) / (N − 1)        tr Σ = N (m − ‖ḡ‖²) / (N − 1)

    Weighted, the means are Σ w_n … / Σ w_n and N is Kish's effective number (Σ w_n)² / Σ w_n²,
    which is right where the examples are independent and the weights are given. Costs nothing
    beyond the gradient: the norms come from the same pass.

    Args:
        network: The network.
        params: Its parameters.
        inputs: (N, D), N ≥ 2.
        targets: As for `loss`.
        sample_weight: w (N,) or None, which means all 1.
        microbatch_size: Rows at a time, or None for all.

    Returns:
        `NoiseScale(squared_norm, variance, noise_scale)`; NaN where N is 1 or below to six digits,
        as where fewer than two weights are not 0.

    Raises:
        TypeError: As for `gradient_second_moment`.
        ValueError: As for `gradient_second_moment`, or fewer than two examples.

    References:
        McCandlish, Kaplan, Amodei, An Empirical Model of Large-Batch Training, 2018, appendix A.1.
    """
    batch = check_batch(network, params, inputs, targets, sample_weight)
    check_microbatch_size(microbatch_size)
    if len(batch.inputs) < 2:
        raise ValueError(f"inputs: expected two examples or more, got {len(batch.inputs)}")
    return _gradient_noise_scale(network, params, batch, microbatch_size)
