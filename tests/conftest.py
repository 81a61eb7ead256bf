"""What all tests share: where the installed package lies, and where real text may lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import merino_edge


def pytest_report_header() -> str:
    """Say which copy of the package is under test."""
    data = os.environ.get("MERINO_EDGE_DATA") or "unset: tests on real text are skipped"
    return f"merino_edge: {Path(merino_edge.__file__).parent}\nMERINO_EDGE_DATA: {data}"


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test away from the user's devices, runs and settings."""
    home = tmp_path / "home"
    for variable, folder in (("XDG_DATA_HOME", "data"), ("XDG_CONFIG_HOME", "config"), ("XDG_CACHE_HOME", "cache")):
        monkeypatch.setenv(variable, str(home / folder))
    monkeypatch.setenv("MERINO_EDGE_RUNS", str(home / "runs"))
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Return the folder of real text, or skip and say why."""
    folder = os.environ.get("MERINO_EDGE_DATA")
    if not folder:
        pytest.skip("MERINO_EDGE_DATA is unset: no real text here")
    return Path(folder)
