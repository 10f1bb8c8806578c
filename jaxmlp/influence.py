"""Which training examples a prediction owes to: TracIn.

A step on example z changes the loss of example z' by about −η ⟨g(z), g(z')⟩, with g = ∂E/∂θ. Summed
over parameters θ_c that a training went through, each with its learning rate η_c,

    influence of z_n on z'_m    Σ_c η_c ⟨g_n(θ_c), g'_m(θ_c)⟩
    self-influence of z_n       Σ_c η_c ‖g_n(θ_c)‖²

The inner products are contractions of the pairs (a, δ) of one backward pass a checkpoint, so that
no gradient is built: see `jaxmlp.gradient_statistics` for the first, `jaxmlp.per_example` for the
second. Shape letters: N training examples, M test examples, D inputs, C checkpoints. Examples are
taken some at a time, the last of them padded with rows of weight 0: arrays of another length
compile nothing, and need no more memory on the device.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxmlp.batch import Batch, Pass, check_batch, pass_batch
from jaxmlp.evaluation import CHUNK, checked_examples, padded_batch, scaled_batch
from jaxmlp.gradient_statistics import inner_products
from jaxmlp.microbatches import check_microbatch_size
from jaxmlp.network import Network, Parameters, check_parameters
from jaxmlp.per_example import squared_norms
from jaxmlp.scaling import Scaling
from jaxmlp.validation import as_host_array, check_finite, prefixed

_Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


@jax.jit
def _pass(network: Network, params: Parameters, scaling: Scaling | None, batch: Batch) -> Pass:
    return pass_batch(network, params, scaled_batch(scaling, batch, params[0].weight.dtype))


@jax.jit
def _block(
    network: Network, params: Parameters, scaling: Scaling | None, batch: Batch, columns: Pass
) -> Array:
    return inner_products(network, params, _pass(network, params, scaling, batch), columns)


@jax.jit
def _squares(network: Network, params: Parameters, scaling: Scaling | None, batch: Batch) -> Array:
    return squared_norms(params, _pass(network, params, scaling, batch))


def influence(
    network: Network,
    checkpoints: Sequence[Parameters],
    inputs: ArrayLike,
    targets: ArrayLike,
    test_inputs: ArrayLike,
    test_targets: ArrayLike,
    learning_rates: ArrayLike,
    sample_weight: ArrayLike | None = None,
    *,
    test_sample_weight: ArrayLike | None = None,
    scaling: Scaling | None = None,
    microbatch_size: int | None = None,
) -> Array:
    """Return TracIn's influence of every training example on every test example.

    Σ_c η_c ⟨∂(w_n E_n)/∂θ, ∂(w'_m E'_m)/∂θ⟩ at the checkpoints θ_c: by how much, to first order,
    steps of gradient descent on the training example alone have lowered the test example's loss.
    Above 0 it helped, below 0 it harmed. Of a training in batches of B, a step does 1/B of it.
    Another optimiser than plain gradient descent, and dropout, smoothing and decay, do not enter.

    Args:
        network: The network.
        checkpoints: C parameters that the training went through, C ≥ 1.
        inputs: (N, D) of the training examples, finite.
        targets: As for `jaxmlp.loss`, classes within 0 … K − 1.
        test_inputs: (M, D) of the examples to explain, finite.
        test_targets: Their targets.
        learning_rates: η (C,), not negative, or one () for all checkpoints.
        sample_weight: w (N,), not negative, or None, which means all 1.
        test_sample_weight: w' (M,), or None.
        scaling: What the inputs go through before the first layer, or None.
        microbatch_size: Examples at a time, of either kind; None for 1024.

    Returns:
        (N, M), in float32 or better.

    Raises:
        TypeError: As for `jaxmlp.loss`, or a `microbatch_size` that is no integer.
        ValueError: No checkpoint, or shapes or values that do not fit.

    Example:
        >>> import jax.numpy as jnp, jaxmlp
        >>> network = jaxmlp.Network((1, 1), loss="squared_error", bias=False)
        >>> params = (jaxmlp.Layer(jnp.ones((1, 1)), None),)    # E = ½(x − t)², ∂E/∂w = (x − t)x
        >>> jaxmlp.influence(network, [params], [[1.0], [2.0]], [0.0, 3.0], [[1.0]], [0.0], 0.1)
        Array([[ 0.1],
               [-0.2]], dtype=float32)

    References:
        Pruthi, Liu, Kale, Sundararajan, Estimating Training Data Influence by Tracing Gradient
        Descent, 2020, section 3.3: TracInCP.
    """
    size = _size(microbatch_size)
    rates = _rates(network, checkpoints, learning_rates)
    train = _examples(network, checkpoints[0], inputs, targets, sample_weight, scaling)
    with prefixed("test_"):
        test = _examples(
            network, checkpoints[0], test_inputs, test_targets, test_sample_weight, scaling
        )
    dtype = np.promote_types(checkpoints[0][0].weight.dtype, np.float32)
    total = np.zeros((len(train[0][0]), len(test[0][0])), dtype)
    for params, rate in zip(checkpoints, rates, strict=True):
        for columns, batch in _pieces(test[0], size):
            passed = _pass(network, params, test[1], batch)
            for rows, piece in _pieces(train[0], size):
                block = np.asarray(_block(network, params, train[1], piece, passed))
                place = total[rows, columns]
                place += rate.astype(dtype) * block[: place.shape[0], : place.shape[1]]
    return jax.device_put(total)


def self_influence(
    network: Network,
    checkpoints: Sequence[Parameters],
    inputs: ArrayLike,
    targets: ArrayLike,
    learning_rates: ArrayLike,
    sample_weight: ArrayLike | None = None,
    *,
    scaling: Scaling | None = None,
    microbatch_size: int | None = None,
) -> Array:
    """Return the influence of every training example on itself: Σ_c η_c ‖∂(w_n E_n)/∂θ‖².

    The diagonal of `influence` of the examples on themselves, from the norms alone: N numbers and
    no N × N of them. What is learnt only by its own steps is high: outliers and wrong labels.

    Args:
        network: The network.
        checkpoints: C parameters that the training went through, C ≥ 1.
        inputs: (N, D), finite.
        targets: As for `jaxmlp.loss`, classes within 0 … K − 1.
        learning_rates: η (C,), not negative, or one () for all checkpoints.
        sample_weight: w (N,), not negative, or None, which means all 1.
        scaling: What the inputs go through before the first layer, or None.
        microbatch_size: Examples at a time, or None for 1024.

    Returns:
        (N,), in float32 or better, not negative.

    Raises:
        TypeError: As for `influence`.
        ValueError: As for `influence`.

    References:
        Pruthi, Liu, Kale, Sundararajan, Estimating Training Data Influence by Tracing Gradient
        Descent, 2020, section 4.1: mislabelled examples by their self-influence.
    """
    size = _size(microbatch_size)
    rates = _rates(network, checkpoints, learning_rates)
    arrays, left = _examples(network, checkpoints[0], inputs, targets, sample_weight, scaling)
    total = np.zeros(len(arrays[0]), np.promote_types(checkpoints[0][0].weight.dtype, np.float32))
    for params, rate in zip(checkpoints, rates, strict=True):
        for rows, piece in _pieces(arrays, size):
            place = total[rows]
            squares = np.asarray(_squares(network, params, left, piece))
            place += rate.astype(total.dtype) * squares[: len(place)]
    return jax.device_put(total)


def strongest(scores: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the most helpful and the most harmful training examples of one test example.

    Args:
        scores: (N,), a column of `influence`.
        top: How many of either kind, at most.

    Returns:
        The numbers of the examples with the highest scores above 0, the highest first, and of those
        with the lowest scores below 0, the lowest first.

    Example:
        >>> strongest(np.array([0.5, -1.0, 0.0, 2.0]), 2)
        (array([3, 0]), array([1]))
    """
    scores = np.asarray(scores)
    order = np.argsort(-scores, kind="stable")
    helpful = order[scores[order] > 0][:top]
    order = np.argsort(scores, kind="stable")
    return helpful, order[scores[order] < 0][:top]


def _size(microbatch_size: int | None) -> int:
    """Return how many examples are taken at a time."""
    check_microbatch_size(microbatch_size)
    return CHUNK if microbatch_size is None else int(microbatch_size)


def _rates(
    network: Network, checkpoints: Sequence[Parameters], learning_rates: ArrayLike
) -> np.ndarray:
    """Return the learning rate of each checkpoint, (C,) in float64; check both."""
    if not isinstance(checkpoints, Sequence):
        raise TypeError(
            f"checkpoints: expected a list of parameters, got {type(checkpoints).__name__}"
        )
    if not checkpoints:
        raise ValueError("checkpoints: expected at least one, got none")
    for number, params in enumerate(checkpoints):
        try:
            check_parameters(network, params)
        except (TypeError, ValueError) as error:
            raise type(error)(f"checkpoints[{number}]: {error}") from error
    rates = as_host_array("learning_rates", learning_rates).astype(np.float64)
    if rates.shape not in ((), (len(checkpoints),)):
        raise ValueError(
            f"learning_rates: expected shape () or ({len(checkpoints)},) for {len(checkpoints)} "
            f"checkpoints, got {rates.shape}"
        )
    rates = np.broadcast_to(rates, (len(checkpoints),))
    check_finite("learning_rates", rates)
    if (rates < 0).any():
        raise ValueError(f"learning_rates: expected numbers ≥ 0, got {rates.min()}")
    return rates


def _examples(
    network: Network,
    params: Parameters,
    inputs: ArrayLike,
    targets: ArrayLike,
    sample_weight: ArrayLike | None,
    scaling: Scaling | None,
) -> tuple[_Arrays, Scaling | None]:
    """Return inputs, targets and weights on the host, checked, and what is left to be scaled."""
    wide = np.promote_types(params[0].weight.dtype, np.float32)
    inputs, targets = as_host_array("inputs", inputs), as_host_array("targets", targets)
    if inputs.ndim and len(inputs) == 0:  # `checked_examples` refuses what has no mean
        weights = as_host_array("sample_weight", () if sample_weight is None else sample_weight)
        jax.eval_shape(partial(check_batch, network), params, inputs, targets, weights)
        return (inputs, targets, weights), None
    (ready, labels, _), left = checked_examples(
        network, params, inputs, targets, sample_weight, scaling
    )
    weights = np.ones(len(ready)) if sample_weight is None else np.asarray(sample_weight)
    return (ready, labels, weights.astype(wide)), left


def _pieces(arrays: _Arrays, size: int) -> Iterator[tuple[slice, Batch]]:
    """Yield the places of up to `size` examples, and these as a batch, padded with weight 0.

    The last piece is padded to a power of two, so that a few examples cost few.
    """
    n_examples = len(arrays[0])
    for start in range(0, n_examples, size):
        part = slice(start, min(start + size, n_examples))
        inputs, targets, weights = (array[part] for array in arrays)
        rows = min(size, 1 << (len(inputs) - 1).bit_length())
        yield part, padded_batch(inputs, targets, weights, rows)
