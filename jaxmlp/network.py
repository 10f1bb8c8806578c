"""The description of a network, its parameters and how they begin."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxmlp.activations import ACTIVATIONS
from jaxmlp.losses import LOSSES
from jaxmlp.validation import (
    as_host_array,
    check_finite,
    check_float_dtype,
    check_key,
    check_name,
)

_LARGEST_SIZE = 2**31 - 1  # XLA's own arithmetic of indices
_DRAWN_TOGETHER = 2**22  # entries, padding and all
_PRECISIONS = ("default", "high", "highest", *jax.lax.DotAlgorithmPreset.__members__)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Network:
    """A multi-layer perceptron: its sizes and functions, without its parameters.

    It is static data for JAX: it passes through anybody's `jit`, `vmap` and `grad` as it is.

    Args:
        sizes: (D, H, …, K): the inputs, the units of each hidden layer, the outputs. (D, K) is a
            network without a hidden layer.
        activation: One of `ACTIVATIONS`, or one for each of the L − 1 hidden layers. The output
            layer is linear: it yields logits.
        loss: One of `LOSSES`, of an example a sum over its K outputs: "softmax_cross_entropy"
            −Σ t log softmax(z), "sigmoid_binary_cross_entropy" Σ log(1 + e^z) − t z,
            "squared_error" ½ Σ (z − t)², "poisson" Σ e^z − t z.
        bias: Whether every layer has a bias.
        precision: Of the matrix products: None or "default", "high", "highest", or the name of a
            `jax.lax.DotAlgorithmPreset` such as "TF32_TF32_F32". Products of bfloat16 parameters
            are always summed in float32.

    Raises:
        ValueError: A size below 1, fewer than two sizes, an unknown name (with the nearest one), or
            another number of activations than of hidden layers.
        TypeError: A size that is no integer, activations that are no names, a bias that is no bool.

    Example:
        >>> Network((784, 128, 10), activation="relu").n_parameters
        101770
    """

    sizes: tuple[int, ...]
    activation: str | tuple[str, ...] = "sigmoid"
    loss: str = "softmax_cross_entropy"
    bias: bool = True
    precision: str | None = None

    def __post_init__(self) -> None:
        """Check everything, and turn sequences into tuples so that equal networks hash alike."""
        sizes: Any = tuple(self.sizes) if isinstance(self.sizes, Iterable) else self.sizes
        if not isinstance(sizes, tuple) or not all(
            isinstance(size, (int, np.integer)) and not isinstance(size, bool) for size in sizes
        ):
            raise TypeError(f"sizes: expected integers such as (784, 128, 10), got {self.sizes!r}")
        sizes = tuple(int(size) for size in sizes)
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes: expected two or more sizes of at least 1, got {sizes}")
        if max(sizes) > _LARGEST_SIZE:
            raise ValueError(f"sizes: expected sizes of at most {_LARGEST_SIZE}, got {max(sizes)}")
        object.__setattr__(self, "sizes", sizes)
        activation: Any = self.activation
        if not isinstance(activation, str):
            if not isinstance(activation, Iterable):
                raise TypeError(f"activation: expected a name or a tuple of them, got {activation}")
            activation = tuple(activation)
            if len(activation) != len(sizes) - 2:
                raise ValueError(
                    f"activation: expected one name or {len(sizes) - 2}, one for each hidden "
                    f"layer, got {len(activation)}"
                )
        for name in (activation,) if isinstance(activation, str) else activation:
            check_name("activation", name, ACTIVATIONS)
        if not isinstance(activation, str) and len(set(activation)) == 1:  # equal ones are equal
            activation = activation[0]
        object.__setattr__(self, "activation", activation)
        if not isinstance(self.bias, bool):
            raise TypeError(f"bias: expected True or False, got {self.bias!r}")
        check_name("loss", self.loss, LOSSES)
        if self.precision is not None:
            check_name("precision", self.precision, _PRECISIONS)

    @property
    def activations(self) -> tuple[str, ...]:
        """The name of each hidden layer's activation, L − 1 of them."""
        if isinstance(self.activation, str):
            return (self.activation,) * (len(self.sizes) - 2)
        return self.activation

    @property
    def n_parameters(self) -> int:
        """The number of weights and biases."""
        return sum(
            n_out * (n_in + self.bias)
            for n_in, n_out in zip(self.sizes[:-1], self.sizes[1:], strict=True)
        )


class Layer(NamedTuple):
    """The parameters of one layer, or anything of their shape, such as a gradient.

    `weight` is (n_out, n_in), as W_uv on paper: u the output, v the input. `bias` is (n_out,), or
    None in a network without biases.
    """

    weight: Array
    bias: Array | None


Parameters = tuple[Layer, ...]

# He et al. 2015 keep the variance of a rectifier's preactivations with 2/fan_in; LeCun et al. 1998
# keep that of a linear or saturating unit with 1/fan_in.
_HE = {"relu", "leaky_relu", "elu", "silu", "gelu", "gelu_tanh"}


def init(network: Network, key: Array, dtype: jax.typing.DTypeLike = jnp.float32) -> Parameters:
    """Return random parameters: weights N(0, g/fan_in), biases 0.

    g = 2 where the layer's activation is one of the rectifier's family (relu, leaky_relu, elu,
    silu, gelu, gelu_tanh), g = 1 elsewhere and in the linear output layer.

    Args:
        network: The network.
        key: A typed key, `jax.random.key(seed)`.
        dtype: float32, float64 (needs JAX's 64-bit mode), float16 or bfloat16.

    Returns:
        A tuple of L `Layer`s with weight (n_out, n_in) and bias (n_out,) or None.

    Raises:
        TypeError: `key` is not a typed key.
        ValueError: `dtype` is another one, or float64 while JAX's 64-bit mode is off.

    Example:
        >>> import jax
        >>> params = init(Network((4, 3, 2)), jax.random.key(0))
        >>> [layer.weight.shape for layer in params]
        [(3, 4), (2, 3)]

    References:
        LeCun, Bottou, Orr, Müller, Efficient BackProp, 1998, section 4.6.
        He, Zhang, Ren, Sun, Delving Deep into Rectifiers, 2015, section 2.2.
    """
    check_key(key)
    return _drawn(network, key, check_float_dtype(dtype))


@partial(jax.jit, static_argnames="dtype")  # one program: layer by layer it would be a dozen
def _drawn(network: Network, key: Array, dtype: np.dtype) -> Parameters:
    layers = []
    gains = [2.0 if name in _HE else 1.0 for name in network.activations] + [1.0]
    shapes = [(n_out, n_in) for n_in, n_out in pairwise(network.sizes)]
    drawn = _normal(jax.random.split(key, len(shapes)), shapes, dtype)
    for gain, shape, normal in zip(gains, shapes, drawn, strict=True):
        weight = math.sqrt(gain / shape[1]) * normal
        layers.append(Layer(weight, jnp.zeros(shape[0], dtype) if network.bias else None))
    return tuple(layers)


def _normal(keys: Array, shapes: Sequence[tuple[int, int]], dtype: np.dtype) -> list[Array]:
    """Return an array of every shape from N(0, 1), each drawn with its own key (L,).

    Small ones are drawn at once, to the longest's length: compiling a draw is most of what `init`
    takes, and of JAX's own keys an entry depends on its place, not on how many follow it.
    """
    lengths = [math.prod(shape) for shape in shapes]
    length = max(lengths)

    def drawn(key: Array, length: int) -> Array:
        return jax.random.normal(key, (length,), dtype)

    by_place = str(jax.random.key_impl(keys)) == "threefry2x32" and (
        jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
    )
    if by_place and len(shapes) * length <= _DRAWN_TOGETHER:
        flat = list(jax.vmap(partial(drawn, length=length))(keys))
    else:
        flat = list(map(drawn, keys, lengths))
    # As they are drawn by themselves, rounded before they are scaled.
    flat = jax.lax.optimization_barrier(flat)
    return [
        jnp.reshape(array[: math.prod(shape)], shape)
        for array, shape in zip(flat, shapes, strict=True)
    ]


def with_mean_outputs(
    network: Network,
    params: Parameters,
    targets: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> Parameters:
    """Return parameters whose output biases predict the mean of the targets.

    A regression then begins at what a constant would predict, however large its targets are, as
    `jaxmlp train` does; `fit` takes the parameters as they are.

    Args:
        network: A network with the squared error or the Poisson loss, and biases.
        params: Its parameters.
        targets: (N, K), or (N,) where K = 1; for the Poisson loss not negative.
        sample_weight: (N,), not negative and of a sum above 0, or None; what has weight 0 may be
            anything.

    Returns:
        The parameters, with the mean (or its logarithm where it is above 0) as the last bias.

    Raises:
        TypeError: Parameters or a network of another kind.
        ValueError: Another loss, no biases, or shapes or numbers that do not fit.

    Example:
        >>> import jax, jaxmlp
        >>> network = jaxmlp.Network((2, 4, 1), loss="squared_error")
        >>> params = jaxmlp.init(network, jax.random.key(0))
        >>> jaxmlp.with_mean_outputs(network, params, [100.0, 200.0, 300.0])[-1].bias
        Array([200.], dtype=float32)
    """
    check_parameters(network, params)
    if network.loss not in ("squared_error", "poisson") or not network.bias:
        raise ValueError(
            "network: expected the loss squared_error or poisson, and biases, got "
            f"{network.loss} and bias={network.bias}"
        )
    n_outputs = network.sizes[-1]
    numbers = as_host_array("targets", targets).astype(np.float64)
    if numbers.ndim == 1 and n_outputs == 1:
        numbers = numbers[:, None]
    if numbers.ndim != 2 or numbers.shape[1] != n_outputs or not len(numbers):
        raise ValueError(f"targets: expected shape (N, {n_outputs}), got {numbers.shape}")
    weights = np.ones(len(numbers))
    if sample_weight is not None:
        weights = as_host_array("sample_weight", sample_weight).astype(np.float64)
        if weights.shape != numbers.shape[:1] or not weights.min() >= 0 or not weights.sum() > 0:
            raise ValueError(
                f"sample_weight: expected ({len(numbers)},) numbers ≥ 0 of a sum above 0, got "
                f"shape {weights.shape} of the sum {weights.sum():g}"
            )
    counted = numbers[weights > 0]
    check_finite("targets", counted)
    if network.loss == "poisson" and counted.min() < 0:
        raise ValueError(f"targets: expected numbers ≥ 0 for poisson, got {counted.min():g}")
    mean = np.average(counted, axis=0, weights=weights[weights > 0])
    if network.loss == "poisson":
        mean = np.log(np.where(mean > 0, mean, 1))
    with np.errstate(over="ignore"):
        mean = mean.astype(params[-1].weight.dtype)
    check_finite("the mean of targets", mean)
    last = params[-1]
    return (*params[:-1], last._replace(bias=jnp.asarray(mean)))


def cast(params: Parameters, dtype: jax.typing.DTypeLike) -> Parameters:
    """Return the parameters in another dtype."""
    return jax.tree.map(lambda leaf: leaf if leaf.dtype == dtype else leaf.astype(dtype), params)


def check_parameters(network: Network, params: Parameters) -> None:
    """Raise unless `params` has the network's layers, shapes and one float dtype.

    Raises:
        TypeError: `params` is not a sequence of layers of arrays.
        ValueError: Another number of layers, another shape, a missing or unexpected bias, more
            than one dtype, or one that `init` does not make.
    """
    if not isinstance(network, Network):
        raise TypeError(f"network: expected a jaxmlp.Network, got {type(network).__name__}")
    n_layers = len(network.sizes) - 1
    if not isinstance(params, (tuple, list)) or not all(
        hasattr(layer, "weight") and hasattr(layer, "bias") for layer in params
    ):
        raise TypeError(
            f"params: expected a tuple of {n_layers} jaxmlp.Layer(weight, bias), as jaxmlp.init "
            f"returns, got {_kinds(params)}"
        )
    if len(params) != n_layers:
        raise ValueError(f"params: expected {n_layers} layers, got {len(params)}")
    dtypes = set()
    for number, (layer, n_in, n_out) in enumerate(
        zip(params, network.sizes[:-1], network.sizes[1:], strict=True)
    ):
        if (layer.bias is not None) != network.bias:
            expected = "an array" if network.bias else "None"
            raise ValueError(
                f"params[{number}].bias: expected {expected} since the network has "
                f"bias={network.bias}, got {'None' if layer.bias is None else 'an array'}"
            )
        leaves: list[tuple[str, Any, tuple[int, ...]]] = [("weight", layer.weight, (n_out, n_in))]
        if network.bias:
            leaves.append(("bias", layer.bias, (n_out,)))
        for name, leaf, shape in leaves:
            if not hasattr(leaf, "shape"):
                raise TypeError(
                    f"params[{number}].{name}: expected an array, got {type(leaf).__name__}"
                )
            if jnp.shape(leaf) != shape:
                many = ", of an ensemble's: see jaxmlp.member" * (jnp.shape(leaf)[1:] == shape)
                raise ValueError(
                    f"params[{number}].{name}: expected shape {shape}, got {jnp.shape(leaf)}{many}"
                )
            dtypes.add(np.dtype(leaf.dtype))
    if len(dtypes) != 1 or not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        names = ", ".join(sorted(str(dtype) for dtype in dtypes))
        raise ValueError(f"params: expected one float dtype in all layers, got {names}")
    check_float_dtype(*dtypes)


def _kinds(params: Any) -> str:
    """Return the type of what is no tuple of layers, with that of its first entry."""
    kind = type(params).__name__
    return f"{kind} of {type(params[0]).__name__}" if isinstance(params, (tuple, list)) else kind


def check_members(network: Network, params: Parameters) -> int:
    """Return the number of members M of parameters whose leaves are (M, …).

    Raises:
        TypeError: As `check_parameters`.
        ValueError: As `check_parameters`; or the leaves have no leading axis in common.
    """
    leaves = jax.tree.leaves(params)
    shapes = {np.shape(leaf)[:1] for leaf in leaves}
    if len(shapes) != 1 or shapes == {()}:
        raise ValueError(
            "params: expected leaves with a leading axis for the members in common, got shapes "
            f"{[np.shape(leaf) for leaf in leaves]!r:.100}"
        )
    count = shapes.pop()[0]
    if count == 0:
        raise ValueError("params: expected at least one member, got none")
    # Their own dtypes: JAX would see float32 in the place of NumPy's float64.
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf)[1:], _dtype(leaf)), params)
    check_parameters(network, one)
    return count


def check_finite_parameters(params: Parameters) -> None:
    """Raise ValueError with the first parameter that is NaN or infinite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        check_finite(f"params{jax.tree_util.keystr(path)}", np.asarray(leaf))


def check_finite_members(params: Parameters) -> None:
    """Raise ValueError with the members, along the leading axis, that are not finite throughout."""
    for leaf in jax.tree.leaves(params):
        finite = np.isfinite(np.asarray(leaf)).reshape(len(leaf), -1).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"params: expected finite members, got {np.flatnonzero(~finite).tolist()!r:.60} "
                "that are not: leave out those that have diverged"
            )


def _dtype(leaf: Any) -> np.dtype:
    return np.dtype(getattr(leaf, "dtype", None) or np.asarray(leaf).dtype)
