"""The heart: one forward and one backward pass for ONE example; `jax.vmap` lifts them to batches.

With f the activation and l = 1 … L the layers,

    z_l = W_l a_{l−1} + b_l        a_l = f(z_l)        a_0 = x        E = E(z_L, t)

and the chain rule, from the output back to the input, is

    δ_L = ∂E/∂z_L                                          (equation 2)
    δ_l = (W_{l+1}ᵀ δ_{l+1}) ∘ f′(z_l)                     (equations 3, 5 and 6)

The gradient of every layer is an outer product of two vectors, ∂E/∂W_l = δ_l a_{l−1}ᵀ and
∂E/∂b_l = δ_l (equations 4 and 7). So the backward pass stops at the pairs (a_{l−1}, δ_l): what is
wanted of a batch is a contraction of its pairs, see `jaxmlp.gradients`.

Preactivations, losses and deltas have at least the precision of float32: the products of bfloat16
parameters are summed in float32, and only what enters a product is rounded to bfloat16.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxmlp.activations import ACTIVATIONS
from jaxmlp.losses import LOSSES
from jaxmlp.network import Network, Parameters

Masks = Sequence[Array | None]


class Trace(NamedTuple):
    """What the forward pass of one example leaves behind.

    `inputs` holds a_0 … a_{L−1}, the input (n_{l−1},) of each layer; `preactivations` holds
    z_1 … z_L, (n_l,), of which the last are the logits.
    """

    inputs: tuple[Array, ...]
    preactivations: tuple[Array, ...]


def product(network: Network, left: Array, right: Array) -> Array:
    """Return left @ right in the network's precision, summed in float32 or better."""
    presets = jax.lax.DotAlgorithmPreset.__members__
    precision = presets.get(network.precision or "", network.precision)
    wide = np.promote_types(left.dtype, np.float32)

    def multiply(left: Array, right: Array) -> Array:
        return jax.lax.dot(left, right, precision=precision, preferred_element_type=wide)

    if left.dtype == wide:
        return multiply(left, right)
    # On a CPU XLA does not know every such product of halves. Those of float32 are the same.
    return jax.lax.platform_dependent(
        left,
        right,
        cpu=lambda left, right: multiply(left.astype(wide), right.astype(wide)),
        default=multiply,
    )


def forward(network: Network, params: Parameters, x: Array, masks: Masks | None = None) -> Trace:
    """Return the inputs and preactivations of every layer for one example.

    Args:
        network: The network.
        params: Its parameters.
        x: One example, (D,); it takes the parameters' dtype. Or several as the columns of (D, B):
            then every array of the trace has these columns.
        masks: For dropout: one scaled mask (n_l,) or None for each hidden layer, by which its
            activation is multiplied; `backward` needs the same ones.

    Returns:
        A `Trace`.

    Raises:
        ValueError: `x` is of another shape.

    References:
        The derivation on paper, its definitions z⁽¹⁾ = W⁽¹⁾x, y⁽¹⁾ = σ(z⁽¹⁾), z⁽²⁾ = W⁽²⁾y⁽¹⁾.
    """
    shape = jnp.shape(x)
    if len(shape) not in (1, 2) or shape[0] != network.sizes[0]:
        n = network.sizes[0]
        raise ValueError(
            f"x: expected one example ({n},), or several as the columns of ({n}, B), got {shape}"
        )
    inputs, preactivations = [], []
    a = x
    for l, layer in enumerate(params):
        a = a.astype(layer.weight.dtype)
        z = product(network, layer.weight, a)
        if layer.bias is not None:
            # Along the columns, where there are several.
            z = z + jnp.reshape(layer.bias, (-1,) + (1,) * (z.ndim - 1)).astype(z.dtype)
        inputs.append(a)
        preactivations.append(z)
        if l < len(network.activations):
            a = _masked(masks, l, ACTIVATIONS[network.activations[l]].function(z))
    return Trace(tuple(inputs), tuple(preactivations))


def backward(
    network: Network,
    params: Parameters,
    trace: Trace,
    target: Array,
    masks: Masks | None = None,
) -> tuple[Array, ...]:
    """Return δ_l = ∂E/∂z_l of every layer for one example.

    Args:
        network: The network.
        params: The parameters of the forward pass.
        trace: What `forward` returned.
        target: The example's target: an integer class () or a distribution (K,) for softmax
            cross-entropy, (K,), or () where K = 1, for the other losses.
        masks: Those given to `forward`.

    Returns:
        (δ_1, …, δ_L), δ_l of shape (n_l,).

    Raises:
        ValueError: A target of another shape.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmlp
        >>> network = jaxmlp.Network((3, 4, 2))
        >>> params = jaxmlp.init(network, jax.random.key(0))
        >>> trace = jaxmlp.forward(network, params, jnp.ones(3))
        >>> [delta.shape for delta in jaxmlp.backward(network, params, trace, jnp.array(1))]
        [(4,), (2,)]

    References:
        The derivation on paper, equations 2, 3, 5 and 6.
    """
    output_delta = LOSSES[network.loss].gradient(trace.preactivations[-1], jnp.asarray(target))
    return propagate(network, params, trace, output_delta, masks)


def propagate(
    network: Network,
    params: Parameters,
    trace: Trace,
    output_delta: Array,
    masks: Masks | None = None,
) -> tuple[Array, ...]:
    """Return (δ_1, …, δ_L) from any vector δ_L (K,) at the output: Jᵀδ_L, layer by layer.

    The arguments are those of `backward`, with `output_delta` in the place of the loss's gradient;
    of several examples as columns, (K, B), where `forward` was given such.
    """
    deltas = [output_delta]
    for l in reversed(range(len(network.activations))):
        f = ACTIVATIONS[network.activations[l]]
        above = _masked(masks, l, input_delta(network, params, l + 1, deltas[0]))
        deltas.insert(0, above * f.derivative(trace.preactivations[l]))
    return tuple(deltas)


def input_delta(network: Network, params: Parameters, number: int, delta: Array) -> Array:
    """Return ∂E/∂a = Wᵀδ (n_in,) for the input a of layer `number`, from its δ (n_out,).

    Both may be the columns of several examples, (n, B).
    """
    weight = params[number].weight
    delta = delta.astype(weight.dtype)
    if delta.ndim == 1:
        return product(network, delta, weight)
    # Of columns XLA multiplies by a transpose in its slowest way.
    return product(network, jax.lax.optimization_barrier(weight.T), delta)


def _masked(masks: Masks | None, number: int, values: Array) -> Array:
    mask = None if masks is None else masks[number]
    return values if mask is None else values * mask.astype(values.dtype)
