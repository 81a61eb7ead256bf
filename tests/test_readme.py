"""The documents say what is there: every file is on the map, every command and target exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from merino_edge.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = ("search", "training", "device", "agent", "report", "flows", "cli")
ROOMS = ("merino_edge", "exporters", "device_profiles", *(f"merino_edge/{package}" for package in PACKAGES))


def section(folder: str) -> str:
    """Return the part of the map whose heading names the folder."""
    parts = [part for part in README.split("\n### ") if f"`{folder}/`" in part.partition("\n")[0]]
    assert len(parts) == 1, f"the map needs one section for {folder}/"
    return parts[0]


@pytest.mark.parametrize("folder", ROOMS)
def test_every_file_is_on_the_map_and_nothing_else(folder: str) -> None:
    there = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
    first_columns = [line.split(" | ")[0] for line in section(folder).splitlines() if line.startswith("| `")]
    named = set(re.findall(r"`(\w+\.py)`", " ".join(first_columns)))
    assert named == there


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_in_the_documents_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert {c for c in re.findall(r"merino-edge ([a-z]+)\b", text) if c not in COMMANDS} == set()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_target_in_the_documents_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^ {4}|`)make ([a-z-]+)", text, re.MULTILINE)) <= targets


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_into_the_tree_leads_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_make_help_names_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()) - {"FORCE"}  # type: ignore[index]
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {target for target in phony if not re.search(rf"^  {target} ", told, re.MULTILINE)} == set()


def test_a_change_of_the_figures_has_its_place() -> None:
    assert README.count("<!-- figures -->") == README.count("<!-- /figures -->") == 1
