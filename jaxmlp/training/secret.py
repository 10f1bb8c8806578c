"""The secret of a private run: what its batches and its noise are drawn from.

Not the seed, which config.json names: whoever knows where the noise comes from can subtract it. The
secret comes from the operating system, is kept in the run's folder, for its owner alone, while the
run can be gone on with, and is removed when it has ended.
"""

import secrets
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxmlp.training.runs import SECRET, write_file

_BYTES = 8  # all that JAX's default generator, threefry, has for a key


def secret_key(run: Path, *, begun: bool) -> Array:
    """Return the secret of a run as a typed key.

    Args:
        run: The run's folder.
        begun: Whether there is a checkpoint of steps that were drawn from it. Without one the run
            begins again, with its old secret where there is one: the same noise tells nothing new,
            where other noise would spend epsilon a second time.

    Returns:
        The key.

    Raises:
        FileNotFoundError: The secret of a run that is begun is gone.
        OSError: It is damaged, or cannot be written.
    """
    path = run / SECRET
    if not begun and not (path.is_file() and path.stat().st_size == _BYTES):
        write_file(path, secrets.token_bytes(_BYTES), mode=0o600)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path}: expected the secret that the run was begun with, got no such file"
        ) from error
    if len(content) != _BYTES:
        raise OSError(f"{path}: expected {_BYTES} bytes, got {len(content)}")
    words = jnp.asarray(np.frombuffer(content, "<u4").astype(np.uint32))
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def forget_secret(run: Path) -> None:
    """Remove the secret of a run that has ended, if there is one."""
    (run / SECRET).unlink(missing_ok=True)
