"""Differentially private training: clipped and noised gradients, Poisson batches, the accountant.

A step of DP-SGD takes every example into its batch independently with probability q, and moves
along

    (Σ_n g_n min(1, C/‖g_n‖) + σC·ξ) / (q N)        ξ ~ N(0, 1) in every coordinate

with g_n = ∂(w_n E_n)/∂θ, the clip norm C and the noise multiplier σ. Taking one example away
changes the sum by C at most, so what σ, q and the number of steps come to is known: (ε, δ), for two
sets of examples of which one has an example more (add or remove one). The clipped sum is
`(c ∘ Δ)ᵀ A` of one backward pass.

Three things void the guarantee without a word: dividing by the number of examples that the batch
happens to have; batches that are shuffled and cut and not drawn as here; and a key that somebody
knows, who can subtract the noise. What no DP-SGD in floating point gives is a proof down to the
last bit: sums and norms are rounded (by some 1e-6 of C in float32), and so is the noise. Neither
JAX's generator, which draws it, nor NumPy's, which draws the batches, is a cryptographic one.

References:
    Abadi et al., Deep Learning with Differential Privacy, 2016, algorithm 1.
    Mironov, On Significance of the Least Significant Bits for Differential Privacy, 2012.
"""

import dataclasses
import math
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxmlp.batch import Batch, Pass, check_batch, pass_batch
from jaxmlp.gradients import clipped_sum
from jaxmlp.network import Network, Parameters
from jaxmlp.validation import check_count, check_key, check_number, check_positive

_LEAST_NOISE = 0.2  # below it epsilon is in the hundreds, and takes minutes to compute
_MOST_NOISE = 2.0**20
_TOLERANCE = 1e-4


def gaussian_noise(key: Array, tree: Any, standard_deviation: ArrayLike) -> Any:
    """Return N(0, standard_deviation²) in every coordinate of a tree like `tree`.

    Every leaf has a key of its own and its own dtype, or float32 where that is wider. A coordinate
    is the sum of two normals: one of JAX's in float32 has 2²⁴ values and ends at 5.3 standard
    deviations, which some of many coordinates reach; two end at 7.5.

    Args:
        key: A typed key, used for nothing else.
        tree: Arrays; only their shapes and dtypes count.
        standard_deviation: A scalar.

    Returns:
        A tree like `tree`.

    References:
        Holohan, Braghin, Secure Random Sampling in Differential Privacy, 2021.
    """
    leaves, structure = jax.tree.flatten(tree)

    def draw(leaf_key: Array, leaf: Array) -> Array:
        dtype = jnp.promote_types(leaf.dtype, jnp.float32)
        first, second = jax.random.normal(leaf_key, (2, *leaf.shape), dtype)
        return jnp.asarray(standard_deviation, dtype) * math.sqrt(0.5) * (first + second)

    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, list(map(draw, keys, leaves)))


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
) -> tuple[Parameters, Array]:
    """Return the private gradient of a pass, like `params`, and the norms before clipping (N,).

    The arguments are those of `private_gradient`, as arrays (). The norms are not private.
    """
    total, norms = clipped_sum(network, params, result, clip_norm)
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


def _check_sampling(n_examples: int, rate: float) -> None:
    check_count("n_examples", n_examples)
    if rate != 1:
        check_number("sampling_rate", rate, 0, 1, above=True, rounded=False)


def poisson_batches(
    rng: np.random.Generator, n_examples: int, rate: float, steps: int, size: int
) -> np.ndarray:
    """Return the batches of some steps: every example is in each with probability `rate`.

    Independently of all else: so a batch's size is binomial, and may be 0.

    Args:
        rng: NumPy's generator, from a seed that nobody knows.
        n_examples: N.
        rate: q in (0, 1].
        steps: How many batches.
        size: How many rows each has with its padding, as from `padded_size`.

    Returns:
        (steps, size) int32: numbers of examples, in no order that matters, then −1.

    Raises:
        TypeError: A rate that is no number.
        ValueError: Numbers out of their range.
        OverflowError: A batch has more than `size` examples: leaving some out would be another
            sampling than the accountant reckons with.
    """
    _check_sampling(n_examples, rate)
    rows = np.full((steps, size), -1, np.int32)
    # A binomial number of them, and then any so many: the same as a draw for every example.
    for step, count in enumerate(rng.binomial(n_examples, rate, steps)):
        if count > size:
            raise OverflowError(
                f"size: expected at least {count}, the examples that were drawn for a batch, got "
                f"{size}"
            )
        rows[step, :count] = rng.choice(n_examples, count, replace=False, shuffle=False)
    return rows


def padded_size(n_examples: int, rate: float, steps: int, failure: float = 1e-12) -> int:
    """Return the least size that no Poisson batch exceeds, but with probability `failure`.

    Args:
        n_examples: N.
        rate: q in (0, 1].
        steps: How many batches there are in all.
        failure: The most that the probability of any one being larger may come to.

    Returns:
        The least m with steps · P(Binomial(N, q) > m) ≤ failure.

    Raises:
        TypeError: A number that is none.
        ValueError: Numbers out of their range.

    Example:
        >>> padded_size(60_000, 1024 / 60_000, 1180)
        1286
    """
    from scipy.stats import binom

    _check_sampling(n_examples, rate)
    check_count("steps", steps)
    check_number("failure", failure, 0, 1, above=True, rounded=False)
    low, high = 0, n_examples  # not `binom.isf`, which takes 1e-18 for 0
    while low < high:
        middle = (low + high) // 2
        if steps * binom.sf(middle, n_examples, rate) <= failure:
            high = middle
        else:
            low = middle + 1
    return max(1, low)


def epsilon(noise_multiplier: float, sampling_rate: float, steps: int, delta: float) -> float:
    """Return ε of so many steps with Poisson batches, where one example is added or removed.

    Computed by dp-accounting from privacy loss distributions: an upper bound that is nearly tight.

    Args:
        noise_multiplier: σ, at least 0.2.
        sampling_rate: q in (0, 1].
        steps: How many steps in all, those of resumed trainings included.
        delta: δ in (0, 1), far below 1/N.

    Returns:
        ε; 0 for no step.

    Raises:
        TypeError: A number that is none.
        ValueError: Numbers out of their range, or dp-accounting is not installed.

    References:
        Koskela, Jälkö, Honkela, Computing Tight Differential Privacy Guarantees Using FFT, 2020.
        Doroshenko et al., Connect the Dots: Tighter Discrete Approximations, 2022.
    """
    check_number("noise_multiplier", noise_multiplier, _LEAST_NOISE, math.inf, rounded=False)
    _check_sampling(1, sampling_rate)
    check_number("delta", delta, 0, 1, above=True, rounded=False)
    if steps == 0:
        return 0.0
    check_count("steps", steps)
    one = _one_step(float(noise_multiplier), float(sampling_rate))
    return float(one.self_compose(int(steps)).get_epsilon_for_delta(float(delta)))


@lru_cache(maxsize=4)
def _one_step(noise_multiplier: float, sampling_rate: float) -> Any:
    """Return the privacy loss distribution of a step, as dp-accounting's PLDAccountant does."""
    return _accounting().pld.privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=sampling_rate, value_discretization_interval=1e-4
    )


def _accounting() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise ValueError(
            f"epsilon: dp-accounting is missing, which computes it ({error}): pip install "
            '"jaxmlp[privacy]"'
        ) from error
    return dp_accounting


def noise_multiplier_for(epsilon: float, sampling_rate: float, steps: int, delta: float) -> float:
    """Return the least noise multiplier, to one in ten thousand, that spends no more than ε.

    Args:
        epsilon: ε > 0.
        sampling_rate: q in (0, 1].
        steps: How many steps in all.
        delta: δ in (0, 1).

    Returns:
        σ, whose `epsilon` is ε or just below it.

    Raises:
        TypeError: A number that is none.
        ValueError: Numbers out of their range, no σ from 0.2 to a million gives this ε, or
            dp-accounting is not installed.
    """
    check_number("epsilon", epsilon, 0, math.inf, above=True, rounded=False)
    check_count("steps", steps)
    spent = lru_cache(lambda noise: _epsilon(noise, sampling_rate, steps, delta))
    low, high = 0.5, 1.0
    while spent(high) > epsilon:
        low, high = high, 2 * high
        if high > _MOST_NOISE:
            raise ValueError(f"epsilon: expected one that some noise gives, got {epsilon}")
    while spent(low) <= epsilon:
        if low == _LEAST_NOISE:
            raise ValueError(
                f"epsilon: expected one that a noise multiplier of at least {_LEAST_NOISE} gives, "
                f"got {epsilon}"
            )
        low, high = max(low / 2, _LEAST_NOISE), low
    accounting = _accounting()

    def event(noise: float) -> Any:
        sampled = accounting.PoissonSampledDpEvent(sampling_rate, accounting.GaussianDpEvent(noise))
        return accounting.SelfComposedDpEvent(sampled, int(steps))

    return float(
        accounting.calibrate_dp_mechanism(
            accounting.pld.PLDAccountant,
            event,
            epsilon,
            delta,
            accounting.ExplicitBracketInterval(low, high),
            tol=_TOLERANCE * low,
        )
    )


_epsilon = epsilon  # `noise_multiplier_for` has a number of that name
