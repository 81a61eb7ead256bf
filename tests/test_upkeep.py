"""What keeps the project whole: licences, workflows, the wheel on its own, figures with their source."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_nothing_needed_at_run_time_binds_its_users_and_the_page_names_all_of_it() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools" / "licences.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("licence", "binds"),
    [
        ("GPL-3.0-or-later", True), ("AGPL-3.0", True), ("GPLv2", True),
        ("GNU General Public License v3 (GPLv3)", True),
        ("LGPL-2.1", False), ("GNU Lesser General Public License v3 (LGPLv3)", False), ("MPL-2.0 AND MIT", False),
    ],
)  # fmt: skip
def test_which_licences_bind(licence: str, binds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import licences

    assert bool(licences.BINDING.search(licence)) is binds


def workflow(path: Path) -> dict[Any, Any]:
    yaml = pytest.importorskip("yaml")
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def test_there_are_workflows_for_continuous_integration_and_releases() -> None:
    assert {path.stem for path in WORKFLOWS} >= {"ci", "release"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_what_github_takes(path: Path) -> None:
    document = workflow(path)
    assert {"name", True, "permissions", "jobs"} <= set(document)  # YAML 1.1 reads the key `on` as true
    for name, job in document["jobs"].items():
        assert "runs-on" in job, name
        assert "timeout-minutes" in job, name
        assert set(job.get("needs", "").split()) <= set(document["jobs"]), name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), step
            if "uses" in step:
                assert re.fullmatch(r"[\w.-]+/[\w./-]+@[\w./-]+", step["uses"]), step
        used = set(re.findall(r"matrix\.([\w-]+)", json.dumps(job)))
        assert used <= set(job.get("strategy", {}).get("matrix", {})), name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_targets_that_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for job in workflow(path)["jobs"].values():
        for step in job["steps"]:
            called = re.findall(r"^\s*make ((?:[a-z-]+ ?)+)", step.get("run", ""), re.MULTILINE)
            assert {target for words in called for target in words.split()} <= targets


def test_the_versions_that_are_tested_are_those_that_are_promised() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    promised = set(re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text))
    tested = workflow(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert set(tested) == promised


def test_every_figure_of_the_readme_belongs_to_a_recorded_result_and_its_script() -> None:
    done = subprocess.run([sys.executable, ROOT / "bench" / "figures.py", "--check"])
    assert done.returncode == 0, "the figures are not what is recorded: .venv/bin/python bench/figures.py"
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("<!-- figures -->")[2]
    rows = [line for line in table.partition("<!-- /figures -->")[0].splitlines() if line.startswith("| ")][2:]
    assert rows
    for row in rows:
        script = re.search(r"\]\((bench/[\w/]+\.py)\)", row)
        assert script, row
        assert (ROOT / script[1]).is_file(), row


def test_every_recorded_result_says_when_where_and_from_what_it_comes() -> None:
    for path in sorted((ROOT / "bench" / "results").glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        if "result" not in document:
            continue  # data of a study, not a record
        assert {"date", "commit", "versions", "machine", "result"} <= set(document), path.name
        assert re.fullmatch(r"[0-9a-f]{40}\+?", document["commit"]), path.name


def test_every_figure_is_regenerated_by_make_bench_or_says_where_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import figures
    import regenerate

    assert set(figures.TABLES) <= {step.name for step in regenerate.STEPS} | set(regenerate.ELSEWHERE)
    for step in regenerate.STEPS:
        assert (ROOT / step.command[0]).is_file(), step.name


def test_make_bench_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import regenerate

    monkeypatch.setattr(regenerate, "STATE", tmp_path / "done.json")
    monkeypatch.setattr(regenerate, "STEPS", tuple(regenerate.Step(name, ("-c", code)) for name, code in (
        ("one", "pass"), ("two", f"import pathlib, sys; p = pathlib.Path({str(tmp_path)!r}, 'x'); "
                                 "seen = p.exists(); p.touch(); sys.exit(not seen)"), ("three", "pass"),
    )))  # fmt: skip
    assert [regenerate.run(step) for step in regenerate.STEPS] == [True, False, True]
    left = [step for step in regenerate.STEPS if step.name not in regenerate.done()]
    assert [step.name for step in left] == ["two"]
    assert regenerate.run(left[0])
    assert set(regenerate.done()) == {"one", "two", "three"}
