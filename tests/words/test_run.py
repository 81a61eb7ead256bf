"""A run is a folder with a plain name, found by name, by path, or by being the latest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from merino_edge.architecture import Architecture, Block
from merino_edge.bundle import MANIFEST
from merino_edge.errors import InvalidFileError, MerinoEdgeError, UsageError
from merino_edge.run import check_run_name, create_run, list_runs, open_run, runs_root

ARCHITECTURE = Architecture((Block(8, 1, 2),), embedding_width=8, vocab_size=16, head_dim=4)


def test_runs_lie_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERINO_EDGE_RUNS", str(tmp_path))
    assert runs_root() == tmp_path
    monkeypatch.delenv("MERINO_EDGE_RUNS")
    assert runs_root() == Path("runs")


def test_unnamed_runs_are_numbered(tmp_path: Path) -> None:
    assert [create_run(None, "local", tmp_path).name for _ in range(3)] == ["run-1", "run-2", "run-3"]


def test_a_run_of_that_name_is_opened_again(tmp_path: Path) -> None:
    first = create_run("a", "pi4", tmp_path)
    assert create_run("a", "local", tmp_path) == first
    assert first.info()["device"] == "pi4"


def test_the_latest_run_is_opened_without_a_name(tmp_path: Path) -> None:
    for name, age_s in (("old", 1), ("new", 3), ("middle", 2)):
        os.utime(create_run(name, "local", tmp_path).folder / "run.json", (age_s, age_s))
    assert [run.name for run in list_runs(tmp_path)] == ["old", "middle", "new"]
    assert open_run(None, tmp_path).name == "new"


def test_a_run_is_opened_by_name_or_path(tmp_path: Path) -> None:
    run = create_run("a", "local", tmp_path)
    assert open_run("a", tmp_path) == run
    assert open_run(str(run.folder), tmp_path / "elsewhere").folder == run.folder


def test_a_bundle_that_a_killed_export_had_set_aside_is_put_back(tmp_path: Path) -> None:
    run = create_run("a", "local", tmp_path)
    for name in (".onnx-fp32.old", "onnx-fp32-fast", ".onnx-fp32-fast.old", ".onnx-fp32.x1y2.tmp"):
        (run.exports / name).mkdir(parents=True)
        (run.exports / name / MANIFEST).write_text(name)
    assert [folder.name for folder in run.bundle_folders()] == ["onnx-fp32", "onnx-fp32-fast"]
    assert (run.exports / "onnx-fp32" / MANIFEST).read_text() == ".onnx-fp32.old"
    assert (run.exports / "onnx-fp32-fast" / MANIFEST).read_text() == "onnx-fp32-fast"


def test_an_unknown_run_offers_the_nearest(tmp_path: Path) -> None:
    create_run("poster", "local", tmp_path)
    with pytest.raises(UsageError, match=r"there is no run 'postr'; did you mean 'poster'\?"):
        open_run("postr", tmp_path)


def test_no_run_at_all_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no run in") as caught:
        open_run(None, tmp_path)
    assert "merino-edge search" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "a b", "-x", "a\n", "a\0", "é", "x" * 200])
def test_a_name_that_is_no_plain_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is no name for a run"):
        create_run(name, "local", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_plain_names_pass() -> None:
    for name in ("a", "run-1", "pi4.2026_11", "0"):
        assert check_run_name(name) == name


def test_files_of_a_run_read_back(tmp_path: Path) -> None:
    run = create_run("a", "local", tmp_path)
    assert run.search() is None
    run.set_architecture(ARCHITECTURE)
    run.write_search({"score": 1.5})
    assert run.architecture() == ARCHITECTURE
    assert run.search() == {"score": 1.5}


def test_only_complete_bundles_are_listed(tmp_path: Path) -> None:
    run = create_run("a", "local", tmp_path)
    for recipe, complete in (("fp32", True), ("half", False), ("dynamic_wi8_afp32", True)):
        folder = run.exports / f"onnx-{recipe}"
        folder.mkdir(parents=True)
        if complete:
            (folder / "manifest.json").touch()
    assert [p.name for p in run.bundle_folders()] == ["onnx-dynamic_wi8_afp32", "onnx-fp32"]


def test_a_run_is_relocatable(tmp_path: Path) -> None:
    run = create_run("a", "local", tmp_path)
    run.set_architecture(ARCHITECTURE)
    assert not any(str(tmp_path) in p.read_text() for p in run.folder.rglob("*.json"))
    run.folder.rename(tmp_path / "b")
    assert open_run("b", tmp_path).architecture() == ARCHITECTURE


def test_a_corrupt_run_is_refused(tmp_path: Path) -> None:
    run = create_run("a", "local", tmp_path)
    run.architecture_file.write_text('{"schema_version": 1, "blocks": [')
    with pytest.raises(InvalidFileError, match=r"architecture\.json is not valid JSON"):
        run.architecture()


def test_a_root_that_is_a_file_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(MerinoEdgeError, match="cannot write"):
        create_run("a", "local", tmp_path / "runs")
