"""What an ensemble predicts, how far its members agree, and whether probabilities are right."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import rel_entr
from jax.typing import ArrayLike

from jaxmlp.batch import check_input_shape, forward_batch
from jaxmlp.evaluation import CHUNK, padded
from jaxmlp.losses import LOSSES
from jaxmlp.network import Network, Parameters, check_finite_members, check_members
from jaxmlp.scaling import Scaling, prepared_inputs
from jaxmlp.validation import as_host_array, check_classes, check_count, check_finite


class EnsemblePredictions(NamedTuple):
    """The mean (N, K) of the members' predictions, and how far they disagree, (N,)."""

    mean: Array
    disagreement: Array


def ensemble_predictions(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    *,
    scaling: Scaling | None = None,
) -> EnsemblePredictions:
    """Return the mean of M networks' predictions and their disagreement about each example.

    The disagreement of probabilities p_m with mean p is (1/M) Σ_m KL(p_m ‖ p), in nats, summed over
    the outputs with binary cross-entropy: the information that an example's label has about which
    member is right. That of numbers is their variance, the mean of it over the outputs. It is 0
    where all members predict the same, but for rounding, and NaN where the mean is not finite.

    Args:
        network: The network of every member.
        params: Their parameters, every leaf (M, …), such as those of `fit_ensemble`.
        inputs: (N, D).
        scaling: What the inputs go through before the first layer, or None.

    Returns:
        `EnsemblePredictions(mean, disagreement)`, in float32 or better.

    Raises:
        TypeError: Inputs that are no numbers.
        ValueError: Shapes that do not fit, or a member whose parameters are not finite.

    References:
        Lakshminarayanan, Pritzel, Blundell, Simple and scalable predictive uncertainty estimation
        using deep ensembles, 2017, section 2.4 and 3.6.
        Houlsby, Huszár, Ghahramani, Lengyel, Bayesian active learning for classification and
        preference learning, 2011.
    """
    check_members(network, params)
    check_finite_members(params)
    dtype = params[0].weight.dtype
    checked = as_host_array("inputs", inputs)
    check_input_shape(network, checked.shape)
    wide = np.promote_types(dtype, np.float32)
    means, disagreements = [np.zeros((0, network.sizes[-1]), wide)], [np.zeros(0, wide)]
    for start in range(0, len(checked), CHUNK):
        part, left = prepared_inputs(scaling, checked[start : start + CHUNK], dtype)
        mean, disagreement = _chunk(network, params, left, padded(part, CHUNK))
        means.append(np.asarray(mean)[: len(part)])
        disagreements.append(np.asarray(disagreement)[: len(part)])
    return EnsemblePredictions(
        *jax.device_put((np.concatenate(means), np.concatenate(disagreements)))
    )


@jax.jit
def _chunk(
    network: Network, params: Parameters, scaling: Scaling | None, inputs: Array
) -> tuple[Array, Array]:
    if scaling is not None:
        inputs = scaling.on_device(inputs, params[0].weight.dtype)

    def one(params: Parameters) -> Array:
        outputs = forward_batch(network, params, inputs).preactivations[-1]
        return jax.vmap(LOSSES[network.loss].prediction)(outputs)

    each = jax.vmap(one)(params)
    mean = jnp.mean(each, axis=0)
    if network.loss in ("softmax_cross_entropy", "sigmoid_binary_cross_entropy"):
        divergence = _entropy(each, mean)
        if network.loss == "sigmoid_binary_cross_entropy":
            divergence += _entropy(1 - each, 1 - mean)
        disagreement = jnp.maximum(jnp.mean(jnp.sum(divergence, axis=2), axis=0), 0)
    else:
        disagreement = jnp.mean(jnp.mean(jnp.square(each - mean[None]), axis=0), axis=1)
    return mean, jnp.where(jnp.isfinite(mean).all(axis=1), disagreement, jnp.nan)


def _entropy(each: Array, mean: Array) -> Array:
    """Return p_m log(p_m / p) entry by entry, 0 where the mean p of them underflows to 0."""
    return jnp.where(mean[None] > 0, rel_entr(each, mean[None]), 0)


class Calibration(NamedTuple):
    """Confidence and accuracy of predictions, bin by bin.

    `confidence` and `accuracy` (B,) are means over the examples of a bin, NaN for an empty one, of
    which there are `weight` (B,), the sum of their weights. `error` is the expected calibration
    error, Σ_b weight_b |accuracy_b − confidence_b| / Σ weight.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    weight: np.ndarray
    error: float


def calibration(
    probabilities: ArrayLike,
    classes: ArrayLike,
    *,
    bins: int = 15,
    sample_weight: ArrayLike | None = None,
) -> Calibration:
    """Return how often predictions are right, beside the probability that they say.

    Args:
        probabilities: (N, K), such as `jaxmlp.predictions` of a softmax network; the confidence in
            a prediction is the largest of its row.
        classes: (N,) the right ones, 0 … K − 1.
        bins: How many, of equal width in (0, 1].
        sample_weight: (N,), not negative, or None.

    Returns:
        A `Calibration`.

    Raises:
        TypeError: What is no array of numbers, or classes that are no integers.
        ValueError: Shapes or values that do not fit, or no examples.

    References:
        Guo, Pleiss, Sun, Weinberger, On calibration of modern neural networks, 2017, section 2.
    """
    check_count("bins", bins)
    table = as_host_array("probabilities", probabilities).astype(np.float64)
    labels = as_host_array("classes", classes)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"probabilities: expected shape (N, K), got {table.shape}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"classes: expected integers, got {labels.dtype}")
    if labels.shape != table.shape[:1]:
        raise ValueError(f"classes: expected shape ({len(table)},), got {labels.shape}")
    check_classes("classes", labels, table.shape[1])
    check_finite("probabilities", table)
    if table.min() < 0 or table.max() > 1 + 1e-6:
        raise ValueError(
            f"probabilities: expected numbers in [0, 1], got {table.min():g} to {table.max():g}"
        )
    weights = np.ones(len(table))
    if sample_weight is not None:
        weights = as_host_array("sample_weight", sample_weight).astype(np.float64)
        if weights.shape != labels.shape:
            raise ValueError(f"sample_weight: expected shape {labels.shape}, got {weights.shape}")
        check_finite("sample_weight", weights)
        if weights.min() < 0:
            raise ValueError(f"sample_weight: expected numbers ≥ 0, got {weights.min():g}")
    sure = table.max(axis=1)
    right = table.argmax(axis=1) == labels
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    count = partial(np.bincount, place, minlength=bins)
    weight = count(weights=weights)
    with np.errstate(invalid="ignore"):
        confidence = count(weights=weights * sure) / weight
        accuracy = count(weights=weights * right) / weight
    gaps = np.where(weight > 0, weight * np.abs(accuracy - confidence), 0)
    total = weight.sum()
    return Calibration(confidence, accuracy, weight, float(gaps.sum() / total) if total else 0.0)
