"""The checks at the public edge: each failure is one sentence with the name, expected and got."""

import contextlib
import difflib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike


def as_array(name: str, value: Any) -> Array:
    """Return the value as a JAX array; raise TypeError unless it is one of real numbers."""
    if not isinstance(value, Array):
        value = as_host_array(name, value)
    elif jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise TypeError(f"{name}: expected real numbers, got {value.dtype}")
    return jnp.asarray(value)


def as_host_array(name: str, value: Any) -> np.ndarray:
    """Return the value as a NumPy array; raise TypeError unless it is one of real numbers."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        if isinstance(error, TypeError) and _says_why(value):
            raise TypeError(f"{name}: {error}") from error
        raise TypeError(f"{name}: expected an array of numbers, got {_kind(value)}") from error
    if array.dtype.kind == "c":
        raise TypeError(f"{name}: expected real numbers, got {array.dtype}")
    if array.dtype.kind not in "biuf" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name}: expected an array of numbers, got {_kind(value)}")
    return array


def _says_why(value: Any) -> bool:
    """Tell whether it is an array of somebody's that says itself why it is none of NumPy's."""
    return hasattr(type(value), "__array__") and not isinstance(value, (Array, np.generic))


def _kind(value: Any) -> str:
    """Return what a value that is no array of numbers is, in a word or two."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    shown = " ".join(f"{value!r:.60}".split())  # in one line, a table too
    return "None" if value is None else f"{type(value).__name__} {shown}"


@contextlib.contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """Put a prefix before the names that errors begin with: those of a second batch."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{prefix}{error}") from error


def check_name(kind: str, name: str, known: Iterable[str]) -> None:
    """Raise ValueError with the nearest known name when `name` is not among them."""
    known = list(known)
    if name in known:
        return
    near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown {kind} {name!r}: {guess}expected one of {', '.join(known)}")


def check_key(key: Any, shape: tuple[int, ...] = ()) -> None:
    """Raise unless `key` is a single typed key as `jax.random.key` makes it, or such an array.

    Raises:
        TypeError: It is no typed key.
        ValueError: It is neither a single one nor of the shape.
    """
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        got = f"{key.dtype} array" if hasattr(key, "dtype") else type(key).__name__
        raise TypeError(f"key: expected a typed key such as jax.random.key(0), got {got}")
    if key.shape not in ((), shape):
        more = f", or an array of shape {shape}" if shape else ""
        raise ValueError(f"key: expected a single key{more}, got an array of shape {key.shape}")


_DTYPES = "float32, float64, float16 or bfloat16"


def check_float_dtype(dtype: DTypeLike) -> np.dtype:
    """Return the parameters' dtype; raise ValueError where it is no float or x64 is off."""
    try:
        result = np.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"dtype: expected {_DTYPES}, got {dtype!r}") from error
    if result not in map(np.dtype, (np.float32, np.float64, np.float16, jnp.bfloat16)):
        raise ValueError(f"dtype: expected {_DTYPES}, got {result.name}")
    if result == np.float64 and jnp.result_type(float) != np.float64:
        raise ValueError(
            "dtype: float64 needs JAX's 64-bit mode, which is off: set JAX_ENABLE_X64=1, or "
            "compute inside `with jax.enable_x64(True):`"
        )
    return result


def check_finite(name: str, array: np.ndarray) -> None:
    """Raise ValueError with the first place that holds NaN or infinity."""
    if not jnp.issubdtype(array.dtype, jnp.floating):  # bfloat16 is none of NumPy's
        return
    finite = np.isfinite(array)
    if not finite.all():
        place = tuple(int(i) for i in np.argwhere(~finite)[0])
        bad = int(finite.size - finite.sum())
        raise ValueError(
            f"{name}: expected finite numbers, got {array[place]} at {list(place)}"
            f"{beyond(array[place])} ({bad} of {finite.size} are not finite)"
        )


def beyond(number: np.generic) -> str:
    """Return how large a number of this dtype may be, to be said where a larger one became ±inf."""
    if not np.isinf(number) or number.dtype.itemsize == 8:
        return ""
    return f" in {number.dtype}, whose largest is {float(jnp.finfo(number.dtype).max):.2g}"


def check_classes(name: str, labels: np.ndarray, n_classes: int) -> None:
    """Raise ValueError with the first label that is not a class in 0 … n_classes − 1."""
    if labels.size == 0:
        return
    outside = (labels < 0) | (labels >= n_classes)
    if outside.any():
        place = int(np.argmax(outside))
        raise ValueError(
            f"{name}: expected classes 0 to {n_classes - 1}, got {labels[place]} at [{place}] "
            f"({int(outside.sum())} of {labels.size} are outside)"
        )


def check_positive(name: str, value: ArrayLike) -> Array:
    """Return a scalar float array; raise ValueError where it can be seen not to be above 0."""
    if isinstance(value, Array):
        scalar = as_array(name, value).astype(float)
    else:  # on the host: JAX would compile a conversion for every dtype
        scalar = jax.device_put(as_host_array(name, value).astype(jnp.result_type(float)))
    if scalar.shape != ():
        raise ValueError(f"{name}: expected a scalar, got shape {scalar.shape}")
    if not isinstance(scalar, Tracer) and not float(scalar) > 0:
        raise ValueError(f"{name}: expected a number above 0, got {value}")
    return scalar


def check_number(
    name: str, value: Any, low: float, high: float, *, above: bool = False, rounded: bool = True
) -> None:
    """Raise unless `value` is a number in [low, high), or in (low, high) where it must be above.

    Where it is to be used `rounded` to float32, it must be there after that, too.

    Raises:
        TypeError: It is no number.
        ValueError: It is outside.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name}: expected a number, got {value!r:.60}")
    with np.errstate(over="ignore"):
        held = float(np.float32(value)) if rounded else value
    if low <= value < high and low <= held < high and not (above and low in (value, held)):
        return
    if high < math.inf:
        expected = f"in {'(' if above else '['}{low:g}, {high:g})"
    else:
        expected = f"above {low:g}" if above else f"of at least {low:g}"
        expected += " and finite" if value == math.inf else ""
    rounds = f", which float32 rounds to {held:g}" if low < value < high else ""
    raise ValueError(f"{name}: expected a number {expected}, got {value!r}{rounds}")


def check_count(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
