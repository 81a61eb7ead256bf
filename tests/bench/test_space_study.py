"""What the recorded trainings of shapes say, and that the default score is what was fitted to them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merino_edge.search import scores

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import space_study
from documents import leaves
from proxy.ordering import balanced_by

RESULT = Path(space_study.__file__).parent / "results" / "space_study.json"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))["result"]
    return result


def test_the_recorded_fit_follows_from_the_recorded_trainings(recorded: dict[str, Any]) -> None:
    again = json.loads(json.dumps(space_study.fit(recorded)))
    assert leaves(again) == pytest.approx(leaves(recorded["fit"]), rel=1e-9)  # processors add in different orders
    assert (scores.ASPECT, scores.BALANCE) == (44.0, 0.3), "left as it was"


def test_the_default_score_is_near_the_best_fit(recorded: dict[str, Any]) -> None:
    errors = {(one["aspect"], one["balance"]): one["error"] for one in recorded["fit"]["tried"]}
    assert errors[scores.ASPECT, scores.BALANCE] < 1.25 * min(errors.values())
    assert errors[128.0, 0.25] > 3 * min(errors.values())


def test_a_fit_finds_the_aspect_that_losses_were_made_with(recorded: dict[str, Any]) -> None:
    made = json.loads(json.dumps({"rows": recorded["rows"]}))
    with balanced_by(96.0):
        for row in made["rows"]:
            shape = space_study.architecture(row["shape"])
            score = scores.score_architecture(shape, scores.ScoreOptions("balanced-parameters"))
            row["validation_loss"] = 10 - 0.1 * float(np.log(score))
    best = min(space_study.fit(made)["tried"], key=lambda one: one["error"])
    assert (best["aspect"], best["balance"]) == (96.0, scores.BALANCE)
    assert best["error"] < 1e-9


def test_a_training_that_failed_first_counts_where_it_was_made_again(
    recorded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = recorded["rows"]
    lost, again = rows[0]["id"], rows[1]["id"]
    brought = [{"id": lost, "failed": "OutOfMemoryError"}, {"id": again, "failed": "OutOfMemoryError"}, *rows[1:]]
    path = tmp_path / "space.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in brought), encoding="utf-8")
    written: dict[str, Any] = {}
    monkeypatch.setattr("record.write_result", lambda name, result: written.setdefault(name, result))
    space_study.collect([path], "a GPU")
    result = written["space_study"]
    assert lost in result["missing"]
    assert lost not in recorded["missing"]
    assert next(row for row in result["rows"] if row["id"] == again)["validation_loss"] == rows[1]["validation_loss"]
