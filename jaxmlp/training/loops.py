"""The loop over the steps of a compiled program, in the form that is fastest on its device."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Carry = TypeVar("Carry")

_GPU_BLOCK = 32


def on_a_gpu() -> bool:
    """Tell whether what is computed now is computed on a GPU."""
    device: Any = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if device is None:
        platform = jax.default_backend()
    else:
        platform = device if isinstance(device, str) else device.platform
    return platform in ("gpu", "cuda", "rocm")


def steps_a_look() -> int:
    """Return how many steps are taken between two looks at whether the loop is to end.

    One, but on a GPU: there the host waits for the answer at every look, 9 to 13 µs, and a step of
    a small network takes 15 to 30.

    Pieces of an epoch are to begin at multiples of it, so that every step is always compiled as the
    same part of the program, wherever a piece ends.
    """
    return _GPU_BLOCK if on_a_gpu() else 1


def loop_over(
    first: ArrayLike,
    end: ArrayLike,
    prepare: Callable[[Any, int], Any],
    step: Callable[[Any, Any, Carry], Carry],
    carry: Carry,
    longest: int,
) -> Carry:
    """Return the loop from `first` to `end`, as `jax.lax.fori_loop` does.

    On a GPU in blocks of `steps_a_look`, each a loop of a length known beforehand, and then what is
    left, one by one. Elsewhere one by one, and where there is never a whole block.

    Args:
        first: The first number ().
        end: The number () after the last.
        prepare: Returns what the steps of a block share, from its first number () and how many
            they are.
        step: The body, of a number (), what its block shares, and what is carried.
        carry: What is carried into the first step.
        longest: How many numbers there are at most, whatever `first` and `end`.

    Returns:
        What the last step returns.
    """

    def alone(at: Any, carry: Carry) -> Carry:
        return step(at, prepare(at, 1), carry)

    size = steps_a_look()
    if size == 1 or size > longest:
        return jax.lax.fori_loop(first, end, alone, carry)
    start, blocks = jnp.asarray(first), jnp.maximum(jnp.subtract(end, first), 0) // size

    def block(number: Any, carry: Carry) -> Carry:
        begin = start + number * size
        shared = prepare(begin, size)
        numbers = begin + jnp.arange(size, dtype=start.dtype)
        return jax.lax.scan(lambda own, at: (step(at, shared, own), None), carry, numbers)[0]

    carry = jax.lax.fori_loop(0, blocks, block, carry)
    return jax.lax.fori_loop(start + blocks * size, end, alone, carry)
