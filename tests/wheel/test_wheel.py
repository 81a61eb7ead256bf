"""The package as users get it: sdist and wheel are built, and the wheel does its work in an environment without torch.

Downloads the base dependencies, so it has a target of its own: `make test-wheel`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

from merino_edge.testing import TINY_SPACE_TOML

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.environ.get("WHEEL_TEST") != "1", reason="builds and installs the wheel: make test-wheel"),
]

ROOT = Path(__file__).resolve().parents[2]
DATA = (
    "py.typed",
    "cli/schemas/search.json",
    "device/wheels.json",
    "device_profiles/pi4.toml",
    "search/spaces/poster.toml",
)


def run(*command: str | Path, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": "", **more}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from it."""
    folder = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def environment(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a fresh environment; return its folder of programs."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / "bin"
    (wheel,) = dist.glob("*.whl")
    command = [programs / "pip", "install", "--quiet", "--no-input", "-c", ROOT / "constraints.txt", wheel]
    done = run(*command, folder=folder)
    assert done.returncode == 0, done.stderr
    return programs


def test_wheel_and_sdist_hold_what_is_needed_and_no_tests(dist: Path) -> None:
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in DATA if f"merino_edge/{name}" not in names] == []
    assert [name for name in names if name.startswith(("tests/", "bench/", "docs/"))] == []
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "exporters/to_onnx.py", "device_profiles/pi4.toml"} <= inside


def test_the_base_install_is_consistent_and_has_no_torch(environment: Path, tmp_path: Path) -> None:
    done = run(environment / "pip", "check", folder=tmp_path)
    assert done.returncode == 0, done.stdout
    assert run(environment / "python", "-c", "import torch", folder=tmp_path).returncode == 1
    for module in ("merino_edge", "merino_edge.exporters.to_onnx", "merino_edge.device.ssh", "merino_edge.search"):
        done = run(environment / "python", "-c", f"import {module}", folder=tmp_path)
        assert done.returncode == 0, done.stderr


def test_profile_search_and_bench_run_without_torch(environment: Path, tmp_path: Path) -> None:
    own = {"XDG_DATA_HOME": "data", "XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache", "MERINO_EDGE_RUNS": "runs"}
    own = {name: str(tmp_path / part) for name, part in own.items()}
    (tmp_path / "tiny.toml").write_text(TINY_SPACE_TOML)

    def command(*words: str) -> dict[str, Any]:
        done = run(environment / "merino-edge", *words, "--json", folder=tmp_path, **own)
        assert done.returncode in (0, 5), f"{words}: {done.stdout}{done.stderr}"  # 5: a busy machine disturbed it
        return dict(json.loads(done.stdout))

    profile = command("profile", "--space", "tiny.toml", "--vocab", "300", "--time", "10s")
    assert profile.get("device") == "local" or profile["error"]["kind"] == "measurement"
    search = command("search", "--space", "tiny.toml", "--vocab", "300", "--parameters", "1M", "--run", "tiny")
    assert search["evaluated"] == 32
    bench = command("bench", "tiny", "--recipe", "fp32", "--time", "1s", "--tokens", "0")
    assert bench.get("rows") or bench["error"]["kind"] == "measurement"


def test_what_needs_torch_says_how_to_get_it(environment: Path, tmp_path: Path) -> None:
    own = {"XDG_DATA_HOME": str(tmp_path / "data"), "MERINO_EDGE_RUNS": str(tmp_path / "runs")}
    (tmp_path / "tiny.toml").write_text(TINY_SPACE_TOML)
    search = ("search", "--space", "tiny.toml", "--parameters", "1M", "--no-verify", "--run", "tiny")
    assert run(environment / "merino-edge", *search, folder=tmp_path, **own).returncode == 0
    done = run(environment / "merino-edge", "train", "tiny", folder=tmp_path, **own)
    assert done.returncode not in (0, None)
    assert "[train]" in done.stderr
    assert "Traceback" not in done.stderr
