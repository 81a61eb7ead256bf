"""What the recorded trainings of shared decoders say follows from them, and they are the planned ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import shared_study
from documents import leaves


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(shared_study.RESULT.read_text(encoding="utf-8"))["result"]
    return result


def test_the_recorded_figures_follow_from_the_recorded_trainings(recorded: dict[str, Any]) -> None:
    again = json.loads(json.dumps(shared_study.judge(recorded["rows"])))
    assert again["default"] == recorded["judged"].pop("default")
    del again["default"]
    assert leaves(again) == pytest.approx(leaves(recorded["judged"]), rel=1e-6, abs=1e-6)


def test_what_was_planned_was_trained(recorded: dict[str, Any], tmp_path: Path) -> None:
    shared_study.write_plan(tmp_path)
    plan = [json.loads(line) for line in (tmp_path / "shared.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = {row["id"]: row for row in recorded["rows"]}
    missing = {job["id"] for job in plan} - set(trained)
    assert missing == set(recorded["missing"])
    for job in plan:
        if job["id"] in trained:
            row = trained[job["id"]]
            assert [row[key] for key in ("model", "seed", "learning_rate")] == [
                job[key] for key in ("model", "seed", "learning_rate")
            ]
            assert row["tokens"] == job["tokens"] // 32_768 * 32_768, "the whole schedule"
