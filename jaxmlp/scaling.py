"""What is done to the inputs before the first layer: (x − shift) · factor.

Pixels stay unsigned bytes wherever they are kept, and become numbers in [0, 1] only in the step
that computes with them. Columns of a table are standardised by the figures of its training part, on
the host and in float64: a column may be large and vary little.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxmlp.validation import as_host_array, check_finite


class Scaling(NamedTuple):
    """(x − shift) · factor, with `shift` and `factor` () or (D,)."""

    shift: ArrayLike
    factor: ArrayLike

    def on_device(self, inputs: Array, dtype: DTypeLike) -> Array:
        """Return the inputs (N, D) scaled, in `dtype`, or in float32 where that is wider."""
        wide = jnp.promote_types(dtype, jnp.float32)
        shift, factor = (jnp.broadcast_to(jnp.asarray(part, wide), inputs.shape) for part in self)
        return (inputs.astype(wide) - shift) * factor

    def on_host(self, inputs: np.ndarray) -> np.ndarray:
        """Return the inputs (N, D) scaled, in float64."""
        return np.subtract(inputs, self.shift, dtype=np.float64) * self.factor


PIXELS = Scaling(np.float64(0), np.float64(1 / 255))
"""Unsigned bytes to numbers in [0, 1]."""


def prepared_inputs(
    scaling: Scaling | None, inputs: np.ndarray, dtype: DTypeLike
) -> tuple[np.ndarray, Scaling | None]:
    """Return the inputs as they go to the device, and what is left to be done to them there.

    Bytes stay bytes. All else is scaled here and becomes `dtype`.

    Args:
        scaling: The scaling, or None.
        inputs: (N, D), of real numbers.
        dtype: The dtype to compute in.

    Returns:
        The inputs (N, D), and the scaling in that dtype (or wider), or None.

    Raises:
        TypeError: A scaling that is none.
        ValueError: One of another shape, or not finite.
    """
    if scaling is not None:
        check_scaling(scaling, inputs.shape[1])
    if inputs.dtype == np.uint8:
        wide = jnp.promote_types(dtype, jnp.float32)
        left = None if scaling is None else Scaling(*(np.asarray(part, wide) for part in scaling))
        return inputs, left
    if scaling is not None:
        inputs = scaling.on_host(inputs)
    with np.errstate(over="ignore"):  # what is too large for the dtype is seen to be infinite
        return inputs.astype(dtype), None


def check_scaling(scaling: Scaling, n_inputs: int) -> None:
    """Raise TypeError or ValueError unless it is a finite scaling of D inputs."""
    if not isinstance(scaling, Scaling):
        raise TypeError(f"scaling: expected a jaxmlp.Scaling, got {type(scaling).__name__}")
    for name, part in scaling._asdict().items():
        array = as_host_array(f"scaling.{name}", part)
        if array.shape not in ((), (n_inputs,)):
            raise ValueError(
                f"scaling.{name}: expected shape () or ({n_inputs},), got {array.shape}"
            )
        check_finite(f"scaling.{name}", array)


def standardization(inputs: np.ndarray, weights: np.ndarray | None = None) -> Scaling:
    """Return the scaling to mean 0 and standard deviation 1 of every column.

    A column of one value only is shifted to 0 and keeps its unit.

    Args:
        inputs: (N, D), N ≥ 1.
        weights: (N,), not negative and not all 0, or None: rows of weight 0 do not count.

    Returns:
        The scaling, in float64.

    Example:
        >>> standardization(np.array([[1.0, 5.0], [3.0, 5.0]]))
        Scaling(shift=array([2., 5.]), factor=array([1., 1.]))
    """
    if weights is not None:
        inputs, weights = inputs[weights > 0], weights[weights > 0]
    inputs = inputs.astype(np.float64)
    mean = np.average(inputs, axis=0, weights=weights)
    spread = np.sqrt(np.average(np.square(inputs - mean), axis=0, weights=weights))
    return scaling_of(mean, spread)


def scaling_of(mean: np.ndarray, spread: np.ndarray) -> Scaling:
    """Return the scaling of columns with these means (D,) and standard deviations (D,)."""
    # What is left of a constant column after its mean is taken away is rounding.
    constant = spread <= 10 * np.finfo(np.float64).eps * np.abs(mean)
    return Scaling(mean, 1 / np.where(constant, 1, spread))


class TargetScaling(NamedTuple):
    """How targets (N, K) are brought to mean 0 and standard deviation 1, column by column.

    A network that was trained on them predicts the targets as they were once it is `folded`.

    Attributes:
        mean: (K,), float64.
        deviation: (K,), float64; 1 for a column of one value.
    """

    mean: np.ndarray
    deviation: np.ndarray

    def applied(self, targets: np.ndarray) -> np.ndarray:
        """Return targets (N, K), scaled, in float32."""
        return ((targets.astype(np.float64) - self.mean) / self.deviation).astype(np.float32)

    def folded(self, params: Any) -> Any:
        """Return the parameters of a network, with biases and numbers as outputs, in other units.

        The outputs z become deviation · z + mean: the last layer is multiplied and shifted, in
        float64 and then rounded.
        """
        return _with_last(params, self.deviation, self.mean)

    def unfolded(self, params: Any) -> Any:
        """Return parameters that were `folded` as they were trained, but for rounding."""
        return _with_last(params, 1 / self.deviation, -self.mean / self.deviation)


def _with_last(params: Any, factor: np.ndarray, shift: np.ndarray) -> Any:
    *hidden, last = params
    weight = np.asarray(last.weight, np.float64) * factor[:, None]
    bias = np.asarray(last.bias, np.float64) * factor + shift
    new = jnp.asarray(weight, last.weight.dtype), jnp.asarray(bias, last.bias.dtype)
    return (*hidden, type(last)(*new))


def target_scaling(targets: np.ndarray, weights: np.ndarray | None = None) -> TargetScaling:
    """Return the scaling to mean 0 and standard deviation 1 of targets (N, K).

    Args:
        targets: (N, K), N ≥ 1.
        weights: (N,), not negative and not all 0, or None: rows of weight 0 do not count.

    Returns:
        The scaling.

    Example:
        >>> scaling = target_scaling(np.array([[10.0], [30.0]]))
        >>> scaling.applied(np.array([[40.0]]))
        array([[2.]], dtype=float32)
    """
    shift, factor = standardization(targets, weights)
    return TargetScaling(np.asarray(shift), 1 / np.asarray(factor))
