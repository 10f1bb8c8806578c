"""What importing the package does and does not do, and how its rooms import one another."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import jaxmlp

PACKAGE = Path(jaxmlp.__file__).parent
HEAVY = (
    "tensorflow", "tensorflow_datasets", "matplotlib", "sklearn", "scipy", "orbax", "tyro", "rich",
    "onnx", "dp_accounting", "grain",
)  # fmt: skip


def python(code, *options):
    """What a fresh interpreter prints on (standard output, standard error)."""
    result = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, check=True
    )
    return result.stdout, result.stderr


def test_importing_loads_no_heavy_module_prints_nothing_and_takes_no_device():
    code = f"""
import sys
import jax, optax
before, loaded = dict(jax.config.values), set(sys.modules)
import jaxmlp
new = {{name.split(".")[0] for name in set(sys.modules) - loaded}}
print(sorted(new & set({HEAVY!r})))
print([name for name, value in jax.config.values.items() if before.get(name) != value])
from jax._src import xla_bridge
print(xla_bridge.backends_are_initialized())
"""
    output, errors = python(code, "-W", "error")
    assert output.splitlines() == ["[]", "[]", "False"]
    assert errors == ""


def test_importing_takes_less_than_a_tenth_of_a_second_beside_jax_and_optax(monkeypatch):
    # Processor time, which another job on the machine lengthens less; the least disturbed of five.
    # The first writes the compiled files, as anybody's first import does. Without a search of what
    # jax has allocated for garbage, 0.04 s of the tenth, which comes in ours or in another's import
    # by chance.
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    code = """
import gc, time
gc.disable()
import jax, optax
begin = time.process_time()
import jaxmlp
print(time.process_time() - begin)
"""
    assert min(float(python(code)[0]) for _ in range(5)) < 0.06


def test_every_public_name_is_there_and_documented():
    for name in jaxmlp.__all__:
        value = getattr(jaxmlp, name)
        assert name == "__version__" or value.__doc__, name
    assert (PACKAGE / "py.typed").exists()


def test_what_is_loaded_when_it_is_asked_for_is_listed_before():
    code = """
import sys
import jaxmlp
print(set(jaxmlp.__all__) <= set(dir(jaxmlp)), "jaxmlp.verification" in sys.modules)
print(jaxmlp.check_gradients.__module__, jaxmlp.verification.__name__)
"""
    lines = python(code)[0].splitlines()
    assert lines == ["True False", "jaxmlp.verification.checks jaxmlp.verification"]


def test_the_page_of_public_names_is_what_the_docstrings_say():
    written = runpy.run_path(str(PACKAGE.parent / "scripts" / "write-api"))
    expected = "write it anew: .venv/bin/python scripts/write-api"
    assert written["PAGE"].read_text(encoding="utf-8") == written["page"](), expected


# A room imports only from rooms above it.
ROOMS = [
    "validation",
    "equations",
    "activations",
    "losses",
    "network",
    "backprop",
    "scaling",
    "batch",
    "microbatches",
    "gradients",
    "per_example",
    "gradient_statistics",
    "curvature",
    "fisher",
    "privacy",
    "evaluation",
    "uncertainty",
    "verification",
    "data",
    "reports",
    "training",
    "influence",
    "exports",
    "environment",
    "plots",
    "progress",
    "estimators",
    "cli",
    "__main__",
]


def imported_rooms(path):
    """The rooms that a file imports from, whether at its head or in a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "jaxmlp" and len(parts) > 1 and parts[1] in ROOMS:
                yield parts[1]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_above_it(room):
    files = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").exists() else []
    files += (PACKAGE / room).glob("*.py")
    assert files
    above = ROOMS[: ROOMS.index(room) + 1]
    for path in files:
        below = set(imported_rooms(path)) - set(above)
        assert not below, f"{path.name} imports {below}"


def test_the_rooms_are_all_there_are():
    found = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    found |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert found == set(ROOMS)


def test_what_judges_the_package_imports_nothing_of_it():
    assert set(imported_rooms(PACKAGE / "verification" / "oracles.py")) == set()
    assert set(imported_rooms(PACKAGE / "equations.py")) == set()
