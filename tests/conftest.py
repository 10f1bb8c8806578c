"""Settings and fixtures that every test shares."""

import itertools
import os
import zlib
from collections.abc import Callable, Iterator

import hypothesis
import jax
import pytest

# The library changes no setting of JAX; the tests run under the strictest ones, doctests included.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

# The first example of a property compiles: a deadline would judge the compiler.
hypothesis.settings.register_profile("jaxmlp", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("jaxmlp")


# Whether this machine's user has prepared datasets must not decide what a test sees.
os.environ["JAXMLP_DATA_DIR"] = os.path.join(os.devnull, "no-datasets")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `gpu` where JAX's default device is no GPU."""
    if item.get_closest_marker("gpu") and (backend := jax.default_backend()) != "gpu":
        pytest.skip(f"needs a GPU; JAX's default backend here is {backend!r}")


@pytest.fixture
def getkey(request: pytest.FixtureRequest) -> Callable[[], jax.Array]:
    """A function whose every call returns a fresh key; a test gets the same keys at every run."""
    root = jax.random.key(zlib.crc32(request.node.nodeid.encode()) >> 1)
    count = itertools.count()
    return lambda: jax.random.fold_in(root, next(count))


@pytest.fixture
def strict_promotion() -> Iterator[None]:
    """Operands of different dtypes raise: for tests of our mathematics (optax mixes them)."""
    with jax.numpy_dtype_promotion("strict"):
        yield
