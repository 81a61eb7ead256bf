"""A run's page at every stage: what it says is what the run's files say, and nothing of them can break out of it."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from stages import RECIPES, STAGES, Page, Ring, page_of  # type: ignore[import-not-found]

from merino_edge.architecture import Architecture, Block
from merino_edge.errors import InvalidFileError, UsageError
from merino_edge.flows.report import ReportOptions, report
from merino_edge.measurement import read_measurements
from merino_edge.run import create_run
from merino_edge.units import format_ms

pytestmark = pytest.mark.timeout(300)
MISSING_AT = {
    "searched": {"training", "quality"},
    "trained": {"quality"},
    "exported": set(),
    "benched": set(),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_at_any_stage_has_a_page_that_names_the_commands_for_the_rest(
    ring: Ring, stage: str, tmp_path: Path
) -> None:
    folder = ring.stage(stage, tmp_path)
    document = report(str(folder), ReportOptions())
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert set(document["missing"]) == MISSING_AT[stage]
    for command in document["missing"].values():
        assert f"next: {command}" in page.shown
    sections = {a["id"] for tag, a in page.tags if tag == "section"}
    assert sections == {
        "limits",
        "scores",
        "found",
        "latency",
        "memory",
        "training",
        "quality",
        "conditions",
        "commands",
    }


def test_an_architecture_that_was_given_has_a_page_too(tmp_path: Path) -> None:
    run = create_run("given", "local", tmp_path)
    run.set_architecture(Architecture((Block(64, 2, 3), Block(128, 1, 1)), 64, 300))
    document = report(str(run.folder), ReportOptions())
    assert document["verdict"]["state"] == "open"
    assert len(document["missing"]) == 7
    assert "1 layer, 3 times" in page_of(run.folder).shown


def test_the_page_says_what_the_search_says(ring: Ring, tmp_path: Path) -> None:
    folder = ring.stage("searched", tmp_path)
    searched, page = json.loads((folder / "search.json").read_text()), page_of(folder)
    data = page.data
    by_name = {p["name"]: p for p in data["promises"]}
    assert set(by_name) == set(searched["limits"])
    for name, limit in searched["limits"].items():
        assert by_name[name]["upper"] == limit["upper"]
    assert by_name["latency_ms"]["measured"] == pytest.approx(searched["measured"]["tg_ms"])
    assert by_name["memory_bytes"]["measured"] == searched["measured"]["peak_memory_bytes"]
    assert data["verdict"]["state"] == ("kept" if searched["verified"] else "broken")
    winner = [p for p in data["landscape"]["points"] if p["kind"] == "winner"]
    assert [p["score"] for p in winner] == [searched["score"]]
    front = [p for p in data["landscape"]["points"] if p["kind"] == "front"]
    described = Architecture.from_json(searched["architecture"]).describe()
    rows = [line for line in (folder / "pareto.csv").read_text().splitlines()[1:] if described not in line]
    assert len(front) == len(rows)
    assert data["shape"]["unique_parameters"] == searched["parameters"]
    assert f"{searched['space_size']:,} architectures" in page.shown
    assert f"measured {format_ms(searched['measured']['tg_ms'])}" in page.shown


def test_predicted_parts_add_up_to_what_the_search_predicts(ring: Ring, tmp_path: Path) -> None:
    folder = ring.stage("searched", tmp_path)
    predicted = json.loads((folder / "search.json").read_text())["predicted"]
    data = page_of(folder).data
    totals = {b["key"]: sum(part["value"] for part in b["bars"][0]["parts"]) for b in data["latency"]}
    assert totals["latency-tg"] == pytest.approx(predicted["tg_ms"], rel=1e-6)
    assert totals["latency-pp128"] == pytest.approx(predicted["pp128_ms"], rel=1e-6)
    memory = sum(part["value"] for part in data["memory"]["bars"][0]["parts"])
    assert memory == pytest.approx(predicted["memory_bytes"], abs=4)


def test_memory_measured_at_the_context_of_the_training_is_shown_with_it(ring: Ring, tmp_path: Path) -> None:
    folder = ring.stage("benched", tmp_path)
    lines = [json.loads(line) for line in (folder / "measurements.jsonl").read_text().splitlines()]
    assert {line["context_length"] for line in lines} == {64, 256}  # of the training, and of the search
    (folder / "measurements.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines if line["context_length"] == 64)
    )
    searched = json.loads((folder / "search.json").read_text())
    searched["measured"] = None
    (folder / "search.json").write_text(json.dumps(searched))
    page = page_of(folder)
    predicted, measured = (sum(p["value"] for p in bar["parts"]) for bar in page.data["memory"]["bars"])
    cache = Architecture.from_json(searched["architecture"]).kv_cache_bytes
    assert cache(64) == next(p["value"] for p in page.data["memory"]["bars"][1]["parts"] if p["kind"] == "cache")
    assert predicted < searched["predicted"]["memory_bytes"]
    assert measured in {line["peak_memory_bytes"] for line in lines if line["context_length"] == 64}
    assert "Both bars are at 64 tokens, the context of the training; the search asked for 256" in page.shown
    assert "merino-edge train ring --context 256" in page.shown
    assert "not measured" not in page.data["memory"]["note"].lower()


def test_measured_memory_adds_up_to_the_peak(ring: Ring, tmp_path: Path) -> None:
    folder = ring.stage("searched", tmp_path)
    searched, data = json.loads((folder / "search.json").read_text()), page_of(folder).data
    assert [bar["label"] for bar in data["memory"]["bars"]] == ["predicted", "measured"]
    measured = sum(part["value"] for part in data["memory"]["bars"][1]["parts"])
    assert measured == pytest.approx(searched["measured"]["peak_memory_bytes"])


def test_the_curve_and_the_held_out_loss_are_those_of_the_training(ring: Ring, tmp_path: Path) -> None:
    folder = ring.stage("trained", tmp_path)
    training = json.loads((folder / "checkpoint" / "training.json").read_text())
    shown = page_of(folder).data["training"]
    assert shown["points"] == [[p["tokens"], p["loss"]] for p in training["curve"]]
    assert shown["held_out"] == training["result"]["validation_loss"]


def test_an_unfinished_training_shows_how_far_it_came(ring: Ring, tmp_path: Path) -> None:
    folder = ring.stage("searched", tmp_path)
    save = folder / ".checkpoint.training" / "checkpoint-20"
    save.mkdir(parents=True)
    log = [{"step": 10, "loss": 5.5, "tokens": 640}, {"step": 20, "loss": 5.25, "tokens": 1280}]
    (save / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    assert "training" in report(str(folder), ReportOptions())["missing"]  # the save is not complete
    (save / "complete.json").write_text("{}")
    shown = page_of(folder).data["training"]
    assert shown["points"] == [[640, 5.5], [1280, 5.25]]
    assert not shown["finished"]


def test_quality_is_that_of_the_manifests(ring: Ring, tmp_path: Path) -> None:
    folder = ring.stage("exported", tmp_path)
    manifests = [json.loads(path.read_text()) for path in sorted(folder.glob("export/*/manifest.json"))]
    shown = page_of(folder).data["quality"]["exports"]
    assert len(shown) == len(RECIPES)
    assert [e["file_bytes"] for e in shown] == [m["file_bytes"] for m in manifests]
    assert [e["perplexity"] for e in shown] == [m["quality"]["perplexity"] for m in manifests]
    assert {e["bits"] for e in shown} == {32, 8, 4}
    assert all(0 < e["bits_per_byte"] < 10 for e in shown)


def test_conditions_are_those_of_the_newest_record(ring: Ring, tmp_path: Path) -> None:
    folder = ring.stage("benched", tmp_path)
    digest = Architecture.from_json(json.loads((folder / "search.json").read_text())["architecture"]).digest
    records = [r for r in read_measurements(folder / "measurements.jsonl") if r.key.architecture_digest == digest]
    shown = dict(page_of(folder).data["conditions"])
    key = records[-1].key
    assert key.runtime_version in shown["runtime"]
    assert f"{key.threads} threads" in shown["runtime"]
    assert key.os_image in shown["device"]


def test_nothing_measured_is_not_called_kept(ring: Ring, tmp_path: Path) -> None:
    document = report(str(ring.stage("unverified", tmp_path)), ReportOptions())
    if all(p["measured"] is not None for p in document["promises"]):  # the winner was one of the profile's models
        assert document["verdict"]["state"] == "kept"
    else:
        assert document["verdict"]["state"] == "predicted"


def test_an_estimate_is_called_one(ring: Ring, tmp_path: Path) -> None:
    folder = ring.stage("unverified", tmp_path)
    searched = json.loads((folder / "search.json").read_text())
    searched |= {"estimate": True, "measured": None}
    (folder / "search.json").write_text(json.dumps(searched))
    (folder / "measurements.jsonl").unlink()
    document = report(str(folder), ReportOptions())
    assert document["verdict"]["state"] == "estimated"
    assert "Estimate only" in document["verdict"]["headline"]


def test_a_limit_that_was_measured_and_not_kept_is_told(ring: Ring, tmp_path: Path) -> None:
    folder = ring.stage("searched", tmp_path)
    searched = json.loads((folder / "search.json").read_text())
    searched["limits"]["latency_ms"]["upper"] = 0.9 * searched["measured"]["tg_ms"]
    (folder / "search.json").write_text(json.dumps(searched))
    document = report(str(folder), ReportOptions())
    assert document["verdict"]["state"] == "broken"
    assert [p["state"] for p in document["promises"] if p["name"] == "latency_ms"] == ["broken"]


@pytest.mark.parametrize("stage", [*STAGES, "unlimited"])
def test_the_page_fetches_nothing(ring: Ring, stage: str, tmp_path: Path) -> None:
    page = page_of(ring.stage(stage, tmp_path))
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    style = re.search(r"<style>(.*?)</style>", page.text, re.DOTALL)[1]  # type: ignore[index]
    assert not re.search(r"url\(|@import|https?:|//", style)
    assert "http://" not in page.text.replace("http-equiv", "") and "https://" not in page.text


def test_the_policy_names_the_one_style_and_the_one_script(ring: Ring, tmp_path: Path) -> None:
    page = page_of(ring.stage("searched", tmp_path))
    policy = page.having(http_equiv="Content-Security-Policy")[0]["content"] or ""
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("style", "script"):
        inline = re.findall(rf"<{tag}>(.*?)</{tag}>", page.text, re.DOTALL)
        digests = [f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in inline]
        assert re.findall(rf"{tag}-src ([^;]+)", policy) == [" ".join(digests)]
    assert not [a for _, a in page.tags if any(name == "style" or name.startswith("on") for name in a)]


EVIL = "<img src=x onerror=alert(1)>&\"'</script><script>alert(2)</script>"


def test_a_run_may_be_called_anything(ring: Ring, tmp_path: Path) -> None:
    plain = page_of(ring.stage("benched", tmp_path))
    name = EVIL.replace("/", "\u2215")
    folder = (tmp_path / "ring").rename(tmp_path / name)
    searched = json.loads((folder / "search.json").read_text())
    searched["space"] = EVIL
    (folder / "search.json").write_text(json.dumps(searched))
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**info, "device": EVIL}))
    training = json.loads((folder / "checkpoint" / "training.json").read_text())
    training["data"]["source"] = EVIL
    (folder / "checkpoint" / "training.json").write_text(json.dumps(training))
    rows = (folder / "pareto.csv").read_text().splitlines()
    rows[-1] = re.sub(r'"[^"]*"$', '"' + EVIL.replace('"', '""') + '"', rows[-1])
    (folder / "pareto.csv").write_text("\n".join(rows) + "\n")
    page = page_of(folder)
    assert "img" not in {tag for tag, _ in page.tags}
    assert [tag for tag, _ in page.tags if tag == "script"] == [tag for tag, _ in plain.tags if tag == "script"]
    assert page.data["run"] == name and page.data["device"] == EVIL
    assert EVIL in page.shown


@pytest.mark.parametrize("stage", STAGES)
def test_every_chart_has_words_and_a_table(ring: Ring, stage: str, tmp_path: Path) -> None:
    page = page_of(ring.stage(stage, tmp_path))
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    charts = [a for tag, a in page.tags if tag == "svg"]
    assert charts and len(charts) % 2 == 0
    for chart in charts:
        assert chart["role"] == "group"
        assert chart["aria-labelledby"] in ids and chart["aria-describedby"] in ids
    figures = sum(tag == "figure" for tag, _ in page.tags)
    assert sum(tag == "table" for tag, _ in page.tags) == figures == len(charts) // 2
    assert all(a.get("aria-label") for tag, a in page.tags if tag == "table")
    assert all(a.get("aria-labelledby") in ids for tag, a in page.tags if tag == "section")
    headings = [tag for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == "h1" and headings.count("h1") == 1


def test_limits_are_lines_and_marks_tell_the_architecture(ring: Ring, tmp_path: Path) -> None:
    page = page_of(ring.stage("searched", tmp_path))
    assert [a for _, a in page.tags if a.get("class") == "limit"]
    found = json.loads((tmp_path / "ring" / "search.json").read_text())["architecture"]
    assert all(Architecture.from_json(found).describe() in tip for tip in page.tips("winner"))
    assert page.tips("front")


def test_the_same_run_gives_the_same_page(ring: Ring, tmp_path: Path) -> None:
    folder = ring.stage("benched", tmp_path)
    assert page_of(folder).text == page_of(folder).text


def test_a_page_is_light(ring: Ring, tmp_path: Path) -> None:
    assert len(page_of(ring.stage("benched", tmp_path)).text.encode()) < 500_000


DAMAGE: dict[str, Any] = {
    "search.json": "{",
    "pareto.csv": "score,tg_ms\nx,y\n",
    "measurements.jsonl": '{"schema_version": 1}\n',
    "run.json": "{}",
    "architecture.json": '{"schema_version": 1, "blocks": 3}',
    "checkpoint/training.json": '{"schema_version": 1}',
    "checkpoint/validation.json": "[]",
    "export/onnx-fp32/manifest.json": "{}",
}


@pytest.mark.parametrize("file", DAMAGE)
def test_a_damaged_file_is_named_and_nothing_is_written(ring: Ring, file: str, tmp_path: Path) -> None:
    folder = ring.stage("benched", tmp_path)
    (folder / "report.html").write_text("before")
    path = next(iter(folder.glob(file.replace("onnx-fp32", "onnx-fp32*"))))
    path.write_text(DAMAGE[file])
    with pytest.raises(InvalidFileError, match=path.name.replace(".", r"\.")) as caught:
        report(str(folder), ReportOptions(svg=tmp_path / "svg"))
    assert caught.value.hint and "\n" not in caught.value.message
    assert (folder / "report.html").read_text() == "before"
    assert not (tmp_path / "svg").exists()


KEYS = ("score", "limits", "conditions", "predicted", "sensitivity", "rounds", "score_options", "seconds", "estimate")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [None, "words", [1], -1.5])
def test_a_wrong_value_in_a_search_is_an_error_that_names_it(
    ring: Ring, key: str, value: object, tmp_path: Path
) -> None:
    folder = ring.stage("unverified", tmp_path)
    searched = json.loads((folder / "search.json").read_text())
    if key == "score" and value == -1.5:
        pytest.skip("a score may be negative")
    (folder / "search.json").write_text(json.dumps({**searched, key: value}))
    (folder / "measurements.jsonl").unlink(missing_ok=True)
    with pytest.raises(InvalidFileError, match=r"search\.json"):
        report(str(folder), ReportOptions())


def test_a_search_of_another_architecture_is_refused(ring: Ring, tmp_path: Path) -> None:
    folder = ring.stage("searched", tmp_path)
    document = json.loads((folder / "architecture.json").read_text())
    document["blocks"][0]["depth"] += 5
    (folder / "architecture.json").write_text(json.dumps(document))
    with pytest.raises(InvalidFileError, match="another architecture"):
        report(str(folder), ReportOptions())


def test_a_folder_that_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no run: it has no run\.json"):
        report(str(tmp_path), ReportOptions())
    with pytest.raises(UsageError, match="there is no run 'nowhere'"):
        report("nowhere", ReportOptions())
