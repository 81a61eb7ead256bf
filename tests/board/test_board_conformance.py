"""A share of `bench/arm.py`: one file of each kind of recipe computes the same on an emulated core as here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import arm
import pytest
from board_desk import Desk

from merino_edge.device.board import cannot_run, load_board

pytestmark = pytest.mark.timeout(1200)
SHARE = (
    ("onnx", "fp32", "standard"),
    ("onnx", "dynamic_wi8_afp32", "standard"),
    ("onnx", "dynamic_wi8_afp32", "fast"),
    ("onnx", "weight_only_wi8_b64_afp32", "fast"),
    ("onnx", "weight_only_wi4_b128_afp32", "fast"),
    ("tflite", "dynamic_wi8_afp32", "standard"),
)
RUNTIMES = ("onnxruntime-1.32.0", "ai-edge-litert-2.3.0")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[arm.Case]]:
    folder = tmp_path_factory.mktemp("conformance") / "bundles"
    folder.mkdir()
    cases = arm.export_all(folder, SHARE)
    arm.run_here(folder)
    return folder, cases


@pytest.fixture(scope="session")
def rows(desk: Desk, files: tuple[Path, list[arm.Case]]) -> list[dict[str, Any]]:
    return arm.conform(desk.board, *files, RUNTIMES)


def test_every_file_that_runs_gives_the_numbers_of_this_machine(rows: list[dict[str, Any]]) -> None:
    assert len(rows) == len(SHARE)
    assert [row for row in rows if row["runs"] and not row["right"]] == []


def test_what_does_not_run_is_what_the_core_is_known_to_lack(desk: Desk, rows: list[dict[str, Any]]) -> None:
    flags = desk.board.ssh("grep -m1 Features /proc/cpuinfo").split()[2:]
    facts = {"architecture": "aarch64", "cpu": {"flags": flags}}
    for row in rows:
        known = cannot_run(row["format"], row["recipe"], facts, load_board("pi4"))
        assert row["runs"] == (known is None), row
