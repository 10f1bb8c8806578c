"""Settings and fixtures that every test shares."""

import collections
import gc
import itertools
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import jax
import pytest
from command import TINY, Result, write_data

# The library changes no setting of JAX; the tests run under the strictest ones, doctests included.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", os.environ.get("JAX_DEBUG_KEY_REUSE") != "false")

# What is compiled is kept, and looking through it for garbage takes a twentieth of the time.
gc.set_threshold(100_000, 20, 20)

# The first example of a property compiles: a deadline would judge the compiler.
hypothesis.settings.register_profile("jaxmlp", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("jaxmlp")


# Whether this machine's user has prepared datasets must not decide what a test sees.
os.environ["JAXMLP_DATA_DIR"] = os.path.join(os.devnull, "no-datasets")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `gpu` where JAX's default device is no GPU."""
    if item.get_closest_marker("gpu") and (backend := jax.default_backend()) != "gpu":
        pytest.skip(f"needs a GPU; JAX's default backend here is {backend!r}")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take an option for a Python on which all is tested once more."""
    parser.addoption("--few-cases", action="store_true", help="the first of a test's cases alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put files with slow tests first, then those with many, so that no long one is begun last.

    The order within a file stays. Where several processes take the tests from each other, all slow
    files are in the part that one of them begins with, and the others help it.
    """
    if config.getoption("--few-cases"):
        cases: dict[str, list[pytest.Item]] = {}
        for item in items:
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
        kept = {own[0] for own in cases.values()}
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    tests = collections.Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in slow, -tests[item.path], item.path))


@pytest.fixture
def getkey(request: pytest.FixtureRequest) -> Callable[[], jax.Array]:
    """A function whose every call returns a fresh key; a test gets the same keys at every run."""
    root = jax.random.key(zlib.crc32(request.node.nodeid.encode()) >> 1)
    count = itertools.count()
    return lambda: jax.random.fold_in(root, next(count))


@pytest.fixture
def compiled_quickly() -> Iterator[None]:
    """Programs are compiled in less time, and take longer to run."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def keys_used_once() -> Iterator[None]:
    """A key that is used twice raises, whatever the environment says."""
    with jax.debug_key_reuse(True):
        yield


@pytest.fixture
def strict_promotion() -> Iterator[None]:
    """Operands of different dtypes raise: for tests of our mathematics (optax mixes them)."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Result]:
    """Run the command in this process, in an empty folder."""
    from jaxmlp import cli  # loads what the other tests do without

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        status: object = 0
        capsys.readouterr()
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = error.code or 0
        assert isinstance(status, int)
        return Result(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data of `write_data` and a run on each: animals, images, houses."""
    from jaxmlp import cli

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        write_data(folder)
        options = {
            "animals": (
                *("animals.csv", "--standardize", "--validation-fraction", "0.2"),
                *("--epochs", "40", "--learning-rate", "0.05"),
            ),
            "images": ("images.npz",),
            "houses": ("houses.csv", "--standardize"),
        }
        for run, (file, *others) in options.items():
            cli.main(["train", "--dataset", file, "--output", run, *TINY, *others])
    return folder


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path) -> Path:
    """The working directory of `command`, with a copy of what was trained once."""
    shutil.copytree(trained_once, tmp_path, dirs_exist_ok=True)
    for config in tmp_path.glob("*/config.json"):  # as if it had been trained here
        config.write_text(config.read_text().replace(str(trained_once), str(tmp_path)))
    return tmp_path
