"""The poster's table: what it counts, what it joins, and that nothing missing is made up."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from merino_edge.flows.suite import suite_models

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from poster import table

TESTS = ("tg64@128", "pp128", "full1024")


def measured(tests: tuple[str, ...] = TESTS) -> dict[str, Any]:
    """Return what a run measures, each model as fast as its FLOPs say."""
    models = suite_models("poster")
    reference = table.facts(models["opt-350m"])["flops"]
    rows = []
    for name, architecture in models.items():
        facts = table.facts(architecture)
        one = {
            "p50_ms": facts["flops"] / 1e9,
            "ratio": reference / facts["flops"],
            "low": 1.0,
            "high": 2.0,
            "rounds": 5,
        }
        real = {"full1024": {"p50_ms": 1.0}} if not name.startswith("merino") else {"reason": "ours"}
        rows.append({"model": name, "twin": not name.startswith("merino"), **facts, "real": real})
        rows[-1]["measured"] = dict.fromkeys(tests, one)
    return {"rows": rows}


@pytest.mark.parametrize(
    ("name", "flops", "with_head"),
    [
        ("gpt2-124m", 212.60, 291.65),
        ("opt-125m", 212.60, 291.67),
        ("opt-350m", 723.7, 776.4),
        ("pythia-70m", 51.5, 104.3),
    ],
)
def test_flops_are_those_of_the_published_shapes(name: str, flops: float, with_head: float) -> None:
    found = table.facts(suite_models("poster")[name])
    assert found["flops"] / 1e9 == pytest.approx(flops, rel=1e-3)
    assert found["flops_with_head"] / 1e9 == pytest.approx(with_head, rel=1e-3)
    assert found["unique_parameters"] == found["executed_parameters"]  # nothing is shared there


def test_sharing_shows_in_executed_parameters() -> None:
    found = table.facts(suite_models("poster")["merino-64m"])
    assert found["executed_parameters"] > 1.3 * found["unique_parameters"]


def test_the_posters_own_ratio_is_to_opt_350m() -> None:
    assert table.poster("merino-64m")["ratio"] == pytest.approx(4.9, abs=0.01)
    assert table.poster("opt-350m")["ratio"] == 1


def test_trainings_are_joined_and_what_is_missing_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judged(loss: float) -> dict[str, Any]:
        return {"validation": {"loss": loss}, "wikitext2": {"perplexity": 40.0}, "ptb": {"perplexity": 50.0}}

    rows = [
        {"id": "merino-61m", "tokens": tokens, "seed": 0, "judged": judged(loss), "curve": [1, 2, 3]}
        for tokens, loss in ((80, 4.0), (20, 5.0))
    ]
    recorded = {"result": {"rows": rows, "missing": {"opt-350m": "no device time left"}}}
    (tmp_path / "poster_train.json").write_text(json.dumps(recorded))
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    joined = {row["model"]: row for row in table.join(measured())["rows"]}
    assert [t["tokens"] for t in joined["merino-61m"]["trainings"]] == [20, 80]
    assert "curve" not in joined["merino-61m"]["trainings"][0]
    assert joined["opt-350m"]["reason"] == "no device time left"
    assert joined["gpt2-124m"]["reason"] == table.NOT_RECORDED
    lines = table.markdown({"rows": list(joined.values())}).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    cells = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in lines[2:]}
    assert cells["merino-61m"][-6:] == ["-", "4.000", "40.0", "50.0", "-", "-"]
    assert cells["opt-350m (shape twin)"][-6:] == ["1", "-", "-", "-", "-", "-"]


def test_a_longer_training_stands_apart_from_those_that_are_alike() -> None:
    def training(tokens: float, loss: float, **more: Any) -> dict[str, Any]:
        return {"tokens": tokens, "seed": 0, "judged": {"validation": {"loss": loss}}, **more}

    rows = table.join(measured())["rows"]
    for row in rows:
        row["trainings"] = [training(80, 4.0)]
    asked = {"average": {"accuracy": 0.3712, "tasks": 14}}
    rows[0]["trainings"] = [training(80, 3.9), {**training(80, 5.0), "seed": 1}, training(3e8, 3.5, **asked)]
    rows[1]["trainings"].append({**training(80, 5.0, average={"accuracy": 0.4, "tasks": 13}), "seed": 1})
    first, second = (line.split("|")[-6:-1] for line in table.markdown({"rows": rows}).splitlines()[2:4])
    assert [cell.strip() for cell in first] == ["3.900", "-", "-", "3.500", "0.371 (14 tasks, 300 M tokens)"]
    assert [cell.strip() for cell in second] == ["4.000", "-", "-", "-", "0.400 (13 tasks, 0 M tokens)"]


def test_joining_twice_changes_nothing() -> None:
    once = table.join(measured())
    assert table.join(once) == once


def test_only_the_column_like_the_posters_stands_beside_it() -> None:
    rows = table.figure_rows(table.join(measured()))
    assert [("poster:" in told) for _, told in rows] == [False, False, True]
    assert "merino-64m 4.6 (poster: 4.9; FLOPs: 3.3, our head left out 4.9)" in rows[2][1]
    assert len(table.figure_rows(table.join(measured(("pp128",))))) == 1
