"""What is found out about the place, and that nothing fails where something is missing."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import jaxlib.version
import numpy as np
import pytest

import jaxmlp
from jaxmlp import environment
from jaxmlp.cli.console import select_device
from jaxmlp.environment import as_text, describe

VARIABLES = (
    *("JAXMLP_DATA_DIR", "TFDS_DATA_DIR", "XLA_PYTHON_CLIENT_ALLOCATOR"),
    *("XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"),
)


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """A machine without nvidia-smi, without prepared sets and without any of the variables."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def answer_of_nvidia_smi(tmp_path, script):
    """Put a program of this name where it is found."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def described():
    """The description, which must be JSON, and its text, which must be aligned and narrow."""
    description = describe()
    assert json.loads(json.dumps(description, allow_nan=False)) == description
    text = as_text(description)
    for line in text.splitlines():
        assert len(line) <= 100 or " " not in line[15:].strip(), line
        assert line[14] == " " and line[15] != "\t" and line == line.rstrip()
    return description, text


def test_the_versions_are_those_that_run():
    versions, text = described()[0]["versions"], described()[1]
    assert versions["jaxmlp"] == jaxmlp.__version__
    assert versions["python"] == platform.python_version()
    assert versions["jax"] == jax.__version__ and versions["jaxlib"] == jaxlib.version.__version__
    assert versions["numpy"] == np.__version__
    assert f"numpy {np.__version__}" in text


def test_a_package_that_is_not_installed_is_none_and_said(monkeypatch):
    def version(name):
        if name in ("onnx", "mpmath"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    description, text = described()
    assert description["versions"]["onnx"] is None and description["versions"]["rich"] == "1.0"
    assert "\nnot installed  mpmath, onnx\n" in text


def test_every_device_is_there_and_one_is_the_default():
    devices = described()[0]["jax"]["devices"]
    assert {(d["platform"], d["id"]) for d in devices} >= {
        (d.platform, d.id) for d in jax.local_devices()
    }
    assert [d["id"] for d in devices if d["default"]] == [jax.devices()[0].id]


class Device:
    """A GPU as JAX describes one."""

    platform = "gpu"
    id = 0
    device_kind = "NVIDIA H100 80GB HBM3"

    def memory_stats(self):
        return {"bytes_limit": 60 * 2**30, "bytes_in_use": 3 * 2**20}


class Mute(Device):
    """A device that has no figures of its memory and raises when asked."""

    def memory_stats(self):
        raise NotImplementedError


def test_a_gpu_is_shown_with_its_memory_and_there_is_nothing_to_install(monkeypatch, tmp_path):
    answer_of_nvidia_smi(tmp_path, "echo '580.95.05, NVIDIA H100 80GB HBM3, 81559 MiB'")
    gpu = Device()

    def local_devices(backend):
        if backend != "gpu":
            raise RuntimeError("no such platform")
        return [gpu, Mute()]

    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    monkeypatch.setattr(jax, "local_devices", local_devices)
    description, text = described()
    kind = "NVIDIA H100 80GB HBM3"
    assert f"gpu:0 {kind}, 60.0 GiB for JAX, 3 MiB in use (default)\n" in text
    assert description["jax"]["devices"][1]["memory_bytes"] is None
    assert description["nvidia"]["install"] is None and "to use the GPU" not in text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("no backend\nand much more"), "JAX does not start: no backend"),
        (AssertionError(), "JAX does not start: it has no platform to start"),
    ],
)
def test_where_jax_does_not_start_the_rest_is_still_told(monkeypatch, error, said):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    description, text = described()
    assert description["jax"]["devices"] == [] and said in text and "\ndata " in text


def test_the_numbers_are_those_jax_computes_with():
    assert described()[0]["jax"]["default_dtype"] == "float32"
    assert described()[0]["jax"]["matmul_precision"] == "default"
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        description, text = described()
    assert description["jax"]["default_dtype"] == "float64" and description["jax"]["x64"] is True
    assert "64-bit mode on" in text and "matmul precision highest" in text


@pytest.mark.parametrize(
    ("variables", "preallocated", "fraction", "said"),
    [
        ({}, True, 0.75, "0.75 of it is taken at the start, by `jaxmlp` itself as needed"),
        (
            {"XLA_PYTHON_CLIENT_PREALLOCATE": "true"},
            True,
            0.75,
            "0.75 of it is taken at the start (",
        ),
        ({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, False, 0.75, "taken as needed"),
        ({"XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}, False, 0.75, "allocator platform"),
        ({"XLA_CLIENT_MEM_FRACTION": ".5"}, True, 0.5, "0.5 of it"),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"}, True, 0.9, "0.9 of it"),
        ({"XLA_CLIENT_MEM_FRACTION": "half"}, True, "half", "half of it"),
    ],
)
def test_how_memory_of_a_gpu_is_taken(monkeypatch, variables, preallocated, fraction, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    description, text = described()
    memory = description["jax"]["gpu_memory"]
    assert (memory["preallocated"], memory["fraction"]) == (preallocated, fraction)
    assert said in text


def test_commands_take_the_memory_of_a_gpu_as_needed_where_nothing_else_is_said(monkeypatch):
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    monkeypatch.setenv(name, "true")
    select_device("auto")
    assert os.environ[name] == "true"
    monkeypatch.delenv(name)
    select_device("auto")
    assert os.environ[name] == "false"


def test_the_compilation_cache_is_shown_with_its_size(tmp_path):
    before = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    folder = tmp_path / "cache"
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        assert described()[0]["jax"]["compilation_cache"] == {"folder": None, "bytes": None}
        jax.config.update("jax_compilation_cache_dir", str(folder))
        assert described()[0]["jax"]["compilation_cache"]["bytes"] is None
        (folder / "deep").mkdir(parents=True)
        (folder / "one").write_bytes(bytes(1000))
        (folder / "deep" / "two").write_bytes(bytes(2072))
        description, text = described()
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert description["jax"]["compilation_cache"] == {"folder": str(folder), "bytes": 3072}
    assert f"{folder}: 3 KiB" in text.replace("\n" + 17 * " ", " ")


def prepare(folder, name):
    """A folder as tensorflow-datasets leaves it, with empty records."""
    version = Path(folder, name, "3.0.1")
    version.mkdir(parents=True)
    splits = [{"name": split, "shardLengths": ["1"]} for split in ("train", "test")]
    info = {"name": name, "fileFormat": "array_record", "splits": splits}
    (version / "dataset_info.json").write_text(json.dumps(info))
    for split in ("train", "test"):
        (version / f"{name}-{split}.array_record-00000-of-00001").touch()


def test_the_data_folders_are_listed_the_one_in_use_first(monkeypatch, tmp_path):
    prepare(tmp_path / "ours", "kmnist")
    prepare(tmp_path / "home" / "tensorflow_datasets", "mnist")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "theirs"))
    monkeypatch.setenv("JAXMLP_DATA_DIR", str(tmp_path / "ours"))
    found = described()[0]["data"]
    assert [folder["source"] for folder in found] == [
        "$JAXMLP_DATA_DIR",
        "$TFDS_DATA_DIR",
        "default",
    ]
    assert [folder["prepared"] for folder in found] == [["kmnist"], [], ["mnist"]]
    assert [folder["exists"] for folder in found] == [True, False, True]
    from jaxmlp.data.prepared import default_folder

    assert found[0]["folder"] == str(default_folder())


def test_a_data_folder_that_is_a_file_is_no_folder(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAXMLP_DATA_DIR", str(tmp_path / "file"))
    description, text = described()
    assert description["data"][0]["exists"] is False and "no such folder" in text


@pytest.mark.parametrize(
    ("driver", "install"),
    [
        ("595.10", 'pip install "jaxmlp[cuda13]"'),
        ("580.00", 'pip install "jaxmlp[cuda13]"'),
        ("579.99", 'pip install "jaxmlp[cuda12]"'),
        ("525.60", 'pip install "jaxmlp[cuda12]"'),
        ("524.99", "a newer driver: 525 is the first for CUDA 12"),
        ("[N/A]", None),
    ],
)
def test_what_to_install_follows_the_driver(tmp_path, driver, install):
    line = f"{driver}, NVIDIA A100, SXM4, 40960 MiB"
    answer_of_nvidia_smi(tmp_path, f"echo '{line}'\necho '{line}'")
    description, text = described()
    if any(device["platform"] == "gpu" for device in description["jax"]["devices"]):
        install = None
    assert description["nvidia"]["driver"] == driver
    assert description["nvidia"]["gpus"] == 2 * ["NVIDIA A100, SXM4, 40960 MiB"]
    assert description["nvidia"]["install"] == install
    assert text.endswith(install or "40960 MiB")


@pytest.mark.parametrize(
    ("script", "note"),
    [
        (
            "echo 'NVIDIA-SMI has failed: no driver'; exit 9",
            "nvidia-smi fails: NVIDIA-SMI has failed: no driver",
        ),
        ("echo 'broken' >&2; exit 1", "nvidia-smi fails: broken"),
        ("exit 0", "nvidia-smi fails: it shows no GPU"),
        ("exec /bin/sleep 60", "nvidia-smi does not answer within 0.2 s"),
    ],
)
def test_an_nvidia_smi_that_fails_is_told_in_a_line(tmp_path, monkeypatch, script, note):
    if "sleep" in script:
        monkeypatch.setattr(environment, "_SMI_SECONDS", 0.2)
    answer_of_nvidia_smi(tmp_path, script)
    description, text = described()
    assert description["nvidia"]["note"] == note and note in text
    assert description["nvidia"]["driver"] is None and description["nvidia"]["install"] is None


def test_an_nvidia_smi_that_is_not_there_or_cannot_be_run_is_told_in_a_line(tmp_path):
    assert described()[0]["nvidia"]["note"] == "nvidia-smi is not there"
    answer_of_nvidia_smi(tmp_path, "")
    (tmp_path / "bin" / "nvidia-smi").chmod(0o644)
    assert described()[0]["nvidia"]["note"] == "nvidia-smi cannot be run: Permission denied"


def test_importing_it_starts_no_device():
    code = (
        "import jaxmlp.environment; from jax._src import xla_bridge; "
        "print(xla_bridge.backends_are_initialized())"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": paths},
    )
    assert run.stdout == "False\n"
