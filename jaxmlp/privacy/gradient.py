"""The private gradient: clipped one by one, summed, noised, and divided by the expected size."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtri
from jax.typing import ArrayLike, DTypeLike

from jaxmlp.batch import Batch, Pass, check_batch, pass_batch
from jaxmlp.network import Network, Parameters
from jaxmlp.per_example import clipped_sum
from jaxmlp.validation import check_key, check_positive


def gaussian_noise(key: Array, tree: Any, standard_deviation: ArrayLike) -> Any:
    """Return N(0, standard_deviation²) in every coordinate of a tree like `tree`.

    Every leaf has a key of its own and its own dtype, or float32 where that is wider. A coordinate
    comes from 32 random bits: a sign and a tail's probability, whose quantile it is. That has some
    2²⁷ values in float32 and ends at 6.3 standard deviations; `jax.random.normal` has 2²³ there and
    ends at 5.4, which some of many coordinates reach.

    Args:
        key: A typed key, used for nothing else.
        tree: Arrays; only their shapes and dtypes count.
        standard_deviation: A scalar.

    Returns:
        A tree like `tree`.

    References:
        Salmon, Moraes, Dror, Shaw, Parallel Random Numbers: As Easy as 1, 2, 3, 2011 (Threefry).
    """
    leaves, structure = jax.tree.flatten(tree)

    def draw(leaf_key: Array, leaf: Array) -> Array:
        dtype = jnp.promote_types(leaf.dtype, jnp.float32)
        words = jnp.reshape(_words(leaf_key, leaf.size), leaf.shape)
        tail = (words & jnp.uint32(2**31 - 1)).astype(dtype) * 2.0**-32 + 2.0**-33
        sign = jnp.where(words >> 31, -1, 1).astype(dtype)
        return jnp.asarray(standard_deviation, dtype) * sign * ndtri(tail)

    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, list(map(draw, keys, leaves)))


def _words(key: Array, size: int) -> Array:
    """Return uint32 (size,), all bits random.

    Of a key of Threefry's, its blocks of two words for the counters 0, 1, …: `jax.random.bits`
    makes one word of each block's two, at twice the cost.
    """
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return jax.random.bits(key, (size,), jnp.uint32)
    from jax.extend.random import threefry_2x32  # importing it takes 40 ms

    counters = jnp.arange(size + size % 2, dtype=jnp.uint32)
    return threefry_2x32(jax.random.key_data(key), counters)[:size]


def exact_products(network: Network) -> Network:
    """Return the network with products of full precision: rounded ones might exceed the norm."""
    return dataclasses.replace(network, precision="highest")


def check_wide(dtype: DTypeLike) -> None:
    """Raise ValueError for half precision, whose rounding exceeds the clip norm by up to 2⁻⁸."""
    if np.dtype(dtype).itemsize < 4:
        raise ValueError(
            "params: expected float32 or float64 for a private gradient, whose sum half precision "
            f"would round beyond the clip norm, got {np.dtype(dtype)}"
        )


def noised_mean(
    network: Network,
    params: Parameters,
    result: Pass,
    clip_norm: Array,
    noise_multiplier: Array,
    expected_batch_size: Array,
    key: Array,
    finite_rows: bool = False,
) -> tuple[Parameters, Array]:
    """Return the private gradient of a pass, like `params`, and the norms before clipping (N,).

    The arguments are those of `private_gradient`, as arrays (), with `finite_rows` where the inputs
    are known to be finite. The norms are not private.
    """
    total, norms = clipped_sum(network, params, result, clip_norm, finite_rows)
    noise = gaussian_noise(key, total, noise_multiplier * clip_norm)
    return jax.tree.map(
        lambda leaf, drawn: (leaf + drawn) / expected_batch_size.astype(leaf.dtype), total, noise
    ), norms


@jax.jit
def _private_gradient(
    network: Network,
    params: Parameters,
    batch: Batch,
    numbers: tuple[Array, Array, Array],
    key: Array,
) -> Parameters:
    return noised_mean(network, params, pass_batch(network, params, batch), *numbers, key)[0]


def private_gradient(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    *,
    clip_norm: ArrayLike,
    noise_multiplier: ArrayLike,
    expected_batch_size: ArrayLike,
    key: Array,
    sample_weight: ArrayLike | None = None,
) -> Parameters:
    """Return the gradient of one step of DP-SGD, in one backward pass, for any optimiser.

    (Σ_n g_n min(1, C/‖g_n‖) + σC·ξ) / B, with g_n = ∂(w_n E_n)/∂θ. The products are computed in
    full precision whatever the network's is. Where the sum and the noise are wanted apart, chain
    `optax.add_noise(eta=(σC)², gamma=0, key=key)` and `optax.scale(1/B)` after
    `jaxmlp.clipped_gradient_sum` of a network with `precision="highest"`: the same but for the
    tails of `gaussian_noise`.

    Args:
        network: The network.
        params: Its parameters, float32 or float64.
        inputs: (N, D), a batch of `poisson_batches`; it may be empty, or all padding.
        targets: As for `jaxmlp.loss`.
        clip_norm: C > 0, a scalar; another value compiles nothing, nor does one of the next two.
        noise_multiplier: σ > 0, a scalar.
        expected_batch_size: B = q × the number of all examples, and never the batch's own size.
        key: A typed key that nobody knows, another one each step.
        sample_weight: w (N,) or None; 0 for padding. It must not depend on other examples.

    Returns:
        A tree like `params`.

    Raises:
        TypeError: As for `jaxmlp.loss`, or no typed key.
        ValueError: As for `jaxmlp.loss`, a number that is not above 0, or half precision.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, optax, jaxmlp
        >>> from jaxmlp.privacy import padded_size, poisson_batches, private_gradient
        >>> network = jaxmlp.Network((4, 8, 3), activation="tanh")
        >>> params = jaxmlp.init(network, jax.random.key(0))
        >>> x = np.random.default_rng(0).normal(size=(1000, 4))
        >>> t = np.argmax(x[:, :3], axis=1)
        >>> rows = poisson_batches(
        ...     np.random.default_rng(1), 1000, 0.1, 50, padded_size(1000, 0.1, 50)
        ... )                                            # a secret seed, outside of an example
        >>> key = jax.random.key(2)                      # a secret one, too
        >>> optimizer = optax.adam(0.05)
        >>> state = optimizer.init(params)
        >>> for step, batch in enumerate(rows):
        ...     gradient = private_gradient(
        ...         network, params, x[batch], t[batch], sample_weight=batch >= 0,
        ...         clip_norm=1.0, noise_multiplier=1.0, expected_batch_size=100,
        ...         key=jax.random.fold_in(key, step),
        ...     )
        ...     updates, state = optimizer.update(gradient, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> jaxmlp.evaluate(network, params, x, t).accuracy > 0.8
        True

    References:
        Abadi et al., Deep Learning with Differential Privacy, 2016, algorithm 1.
    """
    batch = check_batch(network, params, inputs, targets, sample_weight)
    check_wide(params[0].weight.dtype)
    check_key(key)
    numbers = (
        check_positive("clip_norm", clip_norm),
        check_positive("noise_multiplier", noise_multiplier),
        check_positive("expected_batch_size", expected_batch_size),
    )
    return _private_gradient(exact_products(network), params, batch, numbers, key)
