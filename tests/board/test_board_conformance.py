"""A share of `bench/arm.py`: one file of each kind of recipe computes the same on an emulated core as here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import arm
import pytest
from board_desk import Desk

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


def test_every_file_gives_the_numbers_of_this_machine(rows: list[dict[str, Any]]) -> None:
    assert len(rows) == len(SHARE)
    assert [row for row in rows if not (row["runs"] and row["right"])] == []
