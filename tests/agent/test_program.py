"""The agent as a program: old syntax, the standard library alone, the same bytes every time."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from importlib import resources
from io import BytesIO
from pathlib import Path

import pytest

from merino_edge.device.provision import agent_program

SOURCES = sorted(p.name for p in resources.files("merino_edge.agent").iterdir() if p.name.endswith(".py"))


@pytest.mark.parametrize("name", SOURCES)
def test_agent_parses_as_python_3_8(name: str) -> None:
    source = resources.files("merino_edge.agent").joinpath(name).read_text(encoding="utf-8")
    ast.parse(source, name, feature_version=(3, 8))


def test_agent_program_is_the_same_every_time() -> None:
    first = agent_program()
    agent_program.cache_clear()
    assert agent_program() == first
    with zipfile.ZipFile(BytesIO(first[0])) as archive:
        assert archive.namelist() == sorted(archive.namelist())
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_agent_starts_without_any_package(tmp_path: Path) -> None:
    program = tmp_path / "agent.pyz"
    program.write_bytes(agent_program()[0])
    code = (
        f"import sys; sys.path.insert(0, {str(program)!r}); import merino_edge.agent.server;"
        "print([m for m in ('numpy', 'onnxruntime', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
