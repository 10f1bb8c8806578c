"""What is done beside the plain step: masks, smoothed targets, bounds, averages, and privacy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxmlp.batch import Batch, Pass, mean_gradient, pass_batch
from jaxmlp.evaluation import Sums, batch_sums
from jaxmlp.losses import smooth
from jaxmlp.network import Layer, Network, Parameters, cast
from jaxmlp.privacy.gradient import noised_mean
from jaxmlp.training.batches import columns_pay

_NOISE = 2**31  # folded into a step's key for its noise; the masks take the layers' numbers


class Privacy(NamedTuple):
    """The numbers () of a private step: C, σ, and the expected batch size to divide by."""

    clip_norm: Array
    noise_multiplier: Array
    expected_batch_size: Array


class Regularization(NamedTuple):
    """What is done beside the plain step, each a number () and data, or None where it is not done.

    `dropout` has a rate for the inputs and for each hidden layer. `max_norm` bounds the norm of
    the incoming weights of every hidden unit. `average_forgets` is 1 − d for the averaged
    parameters' decay d, which would round to 1 itself. `privacy` clips every example's gradient and
    adds noise to their sum. `units` has an array (n_l,) for each hidden layer, 1 for the units that
    are there and 0 for those that are not: so a network trains as a narrower one.
    """

    label_smoothing: Array | None = None
    dropout: tuple[Array | None, ...] | None = None
    max_norm: Array | None = None
    average_forgets: Array | None = None
    privacy: Privacy | None = None
    units: tuple[Array, ...] | None = None


def batch_gradient(
    network: Network,
    params: Parameters,
    batch: Batch,
    regularization: Regularization,
    key: Array | None,
    dtype: DTypeLike | None,
    columns: bool = False,
    late: bool = False,
) -> tuple[Parameters, Sums]:
    """Return our gradient of the mean loss of a batch as trained, like `params`, and its figures.

    With privacy it is the clipped and noised one of `jaxmlp.private_gradient`. The figures are
    those of the parameters before any step, with the targets as trained for the loss, and the masks
    as drawn. The examples are known to be finite, also those of weight 0. With `late`, see
    `late_gradients_pay`, no layer's gradient is ready before all deltas are, but for privacy.
    """
    result = pass_as_trained(network, params, batch, regularization, key, dtype, columns)
    one = _one_after(result.deltas[0]) if late else 1.0
    gradient = gradient_of_pass(
        network, params, result, batch.weights, regularization, key, one, columns
    )
    return gradient, batch_sums(network, result.trace.preactivations[-1], result.losses, batch)


def gradient_of_pass(
    network: Network,
    params: Parameters,
    result: Pass,
    weights: Array | None,
    regularization: Regularization,
    key: Array | None,
    factor: ArrayLike = 1.0,
    columns: bool = False,
    total: Array | None = None,
) -> Parameters:
    """Return the gradient of `batch_gradient` from the pass over its batch, like `params`.

    Without privacy it is multiplied by the factor (). `columns` and `total` are as for
    `mean_gradient`.
    """
    if regularization.privacy is None:
        return mean_gradient(network, params, result, weights, factor, columns, total)
    assert key is not None
    noise_key = jax.random.fold_in(key, _NOISE)
    return noised_mean(
        network, params, result, *regularization.privacy, noise_key, finite_rows=True
    )[0]


def _one_after(deltas: Array) -> Array:
    """Return 1 (), which is known when the deltas (N, n) are: NaN where the first of them is."""
    first = deltas[0, 0]
    return jnp.where(jnp.isnan(first), first, jnp.ones_like(first))


def as_columns(
    network: Network, regularization: Regularization, batch_size: int, dtype: np.dtype
) -> bool:
    """Return whether the examples of one network's batch, as trained, are better columns."""
    masked = regularization.dropout is not None
    return regularization.privacy is None and columns_pay(network, batch_size, dtype, masked)


def pass_as_trained(
    network: Network,
    params: Parameters,
    batch: Batch,
    regularization: Regularization,
    key: Array | None,
    dtype: DTypeLike | None,
    columns: bool = False,
) -> Pass:
    """Return the pass over a batch with smoothed targets and with masks, where there are any.

    Its examples go through the layers as rows or as `columns`, see `columns_pay`.
    """
    computed = params if dtype is None else cast(params, dtype)
    trained = batch
    if regularization.label_smoothing is not None:
        wide = np.promote_types(computed[0].weight.dtype, np.float32)
        blank = jnp.zeros((len(batch.inputs), network.sizes[-1]), wide)
        mixed = jax.vmap(smooth, (None, 0, 0, None))(
            network.loss, blank, batch.targets, regularization.label_smoothing
        )
        trained = batch._replace(targets=mixed)
    masks: list[Array | None] = [None] * len(network.activations)
    if regularization.dropout is not None:
        assert key is not None
        drawn = draw_masks(network, regularization.dropout, key, len(batch.inputs))
        first, masks = drawn[0], drawn[1:]
        if first is not None:
            trained = trained._replace(inputs=trained.inputs * first)
    if regularization.units is not None:
        shape = len(batch.inputs), 1
        masks = [
            jnp.tile(there, shape) if mask is None else mask * there[None, :]
            for mask, there in zip(masks, regularization.units, strict=True)
        ]
    return pass_batch(network, computed, trained, finite_rows=True, masks=masks, columns=columns)


def draw_masks(
    network: Network, rates: tuple[Array | None, ...], key: Array, n_examples: int
) -> list[Array | None]:
    """Return a scaled mask (N, n) for the inputs and for each hidden layer; None for a rate None.

    An entry is 0 with the layer's rate p, to 16 bits, and else 1/(1 − p): the mean is 1.

    References:
        Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, Dropout, 2014 (with the scale at
        training time instead of at test time).
    """
    masks: list[Array | None] = []
    for number, (rate, size) in enumerate(zip(rates, network.sizes[:-1], strict=True)):
        if rate is None:
            masks.append(None)
            continue
        # Two entries from each word of 32 bits: drawing them is most of what dropout costs.
        words = jax.random.bits(
            jax.random.fold_in(key, number), (n_examples, (size + 1) // 2), jnp.uint32
        )
        bits = jax.lax.bitcast_convert_type(words, jnp.uint16)
        bits = jnp.reshape(bits, (n_examples, -1))[:, :size]
        dropped = jnp.round(rate * 65536)
        scale = 65536 / (65536 - dropped)
        masks.append(jnp.where(bits < dropped.astype(jnp.uint16), jnp.zeros_like(scale), scale))
    return masks


def bounded(params: Parameters, max_norm: Array) -> Parameters:
    """Return the parameters with ‖W_u‖ ≤ max_norm for every unit u of every hidden layer.

    References:
        Srebro, Shraibman, Rank, trace-norm and max-norm, 2005; Srivastava et al. 2014, section 5.1.
    """

    def rows(layer: Layer) -> Layer:
        norms = jnp.sqrt(jnp.sum(jnp.square(layer.weight), axis=1, keepdims=True))
        return layer._replace(
            weight=layer.weight * jnp.minimum(1, max_norm / jnp.maximum(norms, max_norm / 2))
        )

    return (*(rows(layer) for layer in params[:-1]), params[-1])


def averaged(average: Parameters, params: Parameters, forgets: Array, count: Array) -> Parameters:
    """Return the exponential average of all parameters so far, Σ d^(t−i) p_i / Σ d^(t−i).

    With `forgets` = 1 − d, however small: the mean of all of them where d is as good as 1.

    Divided by its sum of weights at every step, it owes nothing to where it began.
    """
    steps = count.astype(forgets.dtype) + 1
    share = forgets / -jnp.expm1(steps * jnp.log1p(-forgets))
    return jax.tree.map(
        lambda old, new: old + share.astype(old.dtype) * (new - old), average, params
    )
