"""What the recorded trainings of shared decoders say follows from them, and they are the planned ones."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merino_edge.architecture import Architecture
from merino_edge.search import scores

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import shared_study
from documents import leaves
from proxy.ordering import balanced_by
from proxy.plan import by_blocks


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(shared_study.RESULT.read_text(encoding="utf-8"))["result"]
    return result


def test_the_recorded_figures_follow_from_the_recorded_trainings(recorded: dict[str, Any]) -> None:
    later = [row for row in recorded["rows"] if row.get("draw", 1) > 1]
    for name, rows in {"judged": recorded["rows"], "judged_later_draws": later}.items():
        again = json.loads(json.dumps(shared_study.judge(rows)))
        assert again.pop("default") == recorded[name].pop("default")
        assert leaves(again) == pytest.approx(leaves(recorded[name]), rel=1e-6, abs=1e-6)


def test_the_recorded_fit_is_that_of_the_score_shipped(
    recorded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    best = recorded["fit"]["best"]["own"]
    monkeypatch.setattr(shared_study, "TRIED", tuple((best[name],) for name in ("aspect", "balance", "reuse")))
    again = shared_study.fit(recorded["rows"])
    for one, other in (
        *((again[name], recorded["fit"][name]) for name in ("shipped", "before")),
        (again["best"]["own"], best),
    ):
        assert one.pop("depth") == other.pop("depth")
        assert leaves(one) == pytest.approx(leaves(other), rel=1e-6)
    shipped = recorded["fit"]["shipped"]
    assert best["error"] <= shipped["error"] < 1.25 * best["error"] < recorded["fit"]["before"]["error"]


def test_a_fit_finds_the_numbers_that_losses_were_made_with(
    recorded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_study, "TRIED", ((32.0, 48.0), (0.2, 0.4), (0.0, 0.4)))
    options = scores.ScoreOptions("balanced-parameters")
    for depth in ("own", "executed"):
        with balanced_by(32.0, 0.4, 0.4, executed=depth == "executed"):
            made = [
                {**row, "validation_loss": 10 - 0.1 * float(np.log(scores.score_architecture(shape, options)))}
                for row in recorded["rows"]
                for shape in [Architecture.from_json(row["model"]["architecture"])]
            ]
        found = shared_study.fit(made)["best"][depth]
        assert (found["aspect"], found["balance"], found["reuse"]) == (32.0, 0.4, 0.4)
        assert found["errors"]["first draw"] < 1e-9
        assert found["spearman"]["later draws"] == pytest.approx(1.0)


@pytest.mark.parametrize("draw", [1, 2, 3])
def test_what_was_planned_was_trained(recorded: dict[str, Any], tmp_path: Path, draw: int) -> None:
    shared_study.write_plan(tmp_path, draw)
    plan = [json.loads(line) for line in (tmp_path / "shared.jsonl").read_text(encoding="utf-8").splitlines()]
    controls = {job["id"].removesuffix(", again") for job in plan if "control" in job}
    assert not controls or controls == {one["id"] for one in recorded["controls"]}
    trained = {row["id"]: row for row in recorded["rows"] if row.get("draw", 1) == draw}
    jobs = {job["id"]: job for job in plan if "control" not in job}
    assert set(jobs) - set(trained) == {name for name in recorded["missing"] if name in jobs}
    assert set(trained) <= set(jobs), "nothing that was not planned"
    for name, row in trained.items():
        for key in ("model", "seed", "learning_rate"):
            assert row[key] == jobs[name][key]
        assert row["tokens"] == jobs[name]["tokens"] // 32_768 * 32_768, "the whole schedule"


def test_no_later_decoder_is_an_earlier_one_with_its_blocks_in_another_order() -> None:
    seen: set[str] = {by_blocks(one) for group in shared_study.choose_all(1).values() for one in group}
    for draw in (2, 3):
        names = [by_blocks(one) for group in shared_study.choose_all(draw).values() for one in group]
        assert len(set(names)) == len(names)
        assert not seen & set(names)
        seen |= set(names)


def test_the_table_holds_every_training(recorded: dict[str, Any]) -> None:
    with shared_study.RESULT.with_suffix(".csv").open(newline="", encoding="utf-8") as stream:
        table = {row["id"]: row for row in csv.DictReader(stream)}
    assert len(table) == len(recorded["rows"])
    for row in recorded["rows"]:
        line = table[row["id"]]
        one = Architecture.from_json(json.loads(line["architecture"]))
        assert one == Architecture.from_json(row["model"]["architecture"])
        assert float(line["validation_loss"]) == pytest.approx(row["validation_loss"], abs=1e-5)
        score = scores.score_architecture(one, scores.ScoreOptions("balanced-parameters"))
        assert float(line["balanced_parameters"]) == pytest.approx(score, rel=1e-5)
        assert int(line["total_parameters"]) == one.unique_parameters
