"""`bench` on devices that compute their answers: any mix of models, several devices, rows as their schema says."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from merino_edge.architecture import save_architecture
from merino_edge.cli.bench_output import perplexity_columns, tables
from merino_edge.cli.main import main
from merino_edge.device.registry import DeviceEntry, Registry
from merino_edge.errors import DeviceError
from merino_edge.exporters.to_onnx import export
from merino_edge.files import write_json
from merino_edge.flows import bench_torch, devices
from merino_edge.flows.bench_rows import COLUMNS, hottest_c, was_throttled
from merino_edge.measurement import read_measurements
from merino_edge.run import RUN_FILE, Run
from merino_edge.testing import FakeDevice, tiny_architecture, tiny_architectures, write_bundle

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeDevice]:
    made = {name: FakeDevice(name) for name in ("local", "one", "two")}
    for name in ("one", "two"):
        Registry().add(DeviceEntry(name, f"pi@{name}", "pi4", None, "paramiko"))

    def open_device(entry: DeviceEntry, ask: Any = None) -> FakeDevice:
        if entry.name not in made:
            raise DeviceError(f"cannot reach {entry.name}", hint="is it on?")
        return made[entry.name]

    monkeypatch.setattr(devices, "open_device", open_device)
    return made


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    """Return one of each kind of model of ours."""
    save_architecture(tmp_path / "small.json", tiny_architectures()[0])
    save_architecture(tmp_path / "shared.json", tiny_architecture())
    bundle = write_bundle(tmp_path / "bundle", export, tiny_architecture())
    with tarfile.open(tmp_path / "bundle.tar.gz", "w:gz") as archive:
        archive.add(bundle.folder, "bundle")
    names = ("small.json", "shared.json", "bundle", "bundle.tar.gz")
    return {name: str(tmp_path / name) for name in names}


@pytest.fixture
def command(fakes: dict[str, FakeDevice], capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["bench", *words])
        said = capsys.readouterr()
        return int(str(ended.value.code)), said.out, said.err

    return run


def schema(name: str) -> dict[str, Any]:
    text = resources.files("merino_edge.cli").joinpath("schemas", f"{name}.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def test_any_mix_of_models_stands_in_one_document(command: Command, models: dict[str, str]) -> None:
    code, out, _ = command(*models.values(), "--recipe", "fp32", "-t", "pp16,tg8@32", "-t", "full16", "--json")
    document = json.loads(out)
    assert code == 0
    jsonschema.validate(document, schema("bench"))
    assert [row["model"] for row in document["rows"][::3]] == [
        "small", "shared", models["bundle"], models["bundle.tar.gz"],
    ]  # fmt: skip
    assert [(r["test"], r["tokens"], r["depth"]) for r in document["rows"][:3]] == [
        ("pp16", 16, 0), ("tg8", 8, 32), ("full16", 16, 0),
    ]  # fmt: skip
    for row in document["rows"]:
        per_sample = 1 if row["test"] == "tg8" else 16
        assert row["ms_per_token"] == pytest.approx(row["p50_ms"] / per_sample)
        assert row["tokens_per_s"] == pytest.approx(1e3 / row["ms_per_token"])
        assert row["sharing_ram"] == pytest.approx(1)
        assert (row["temperature_c"], row["throttled"]) == (41.0, False)
        assert (row["energy_mj_per_token"], bool(row["energy_reason"])) == (None, True)


def test_repeats_and_warm_up_are_those_asked_for(
    command: Command, fakes: dict[str, FakeDevice], models: dict[str, str]
) -> None:
    words = ("--recipe", "fp32", "-t", "tg8@8,pp16", "--repeats", "3", "--warmup", "2", "--json")
    _, out, _ = command(models["small.json"], *words)
    assert [row["samples"] for row in json.loads(out)["rows"]] == [24, 3]
    assert {(spec.warmup, spec.repeats) for _, spec in fakes["local"].measured} == {(2, 3)}


def test_several_devices_stand_below_each_other(command: Command, models: dict[str, str]) -> None:
    words = ("--recipe", "fp32", "-d", "one", "-d", "two", "-t", "pp16")
    code, out, _ = command(models["small.json"], *words, "--json")
    assert code == 0
    assert [row["device"] for row in json.loads(out)["rows"]] == ["one", "two"]
    _, table, _ = command(models["small.json"], *words)
    assert " device " in table


def test_a_run_keeps_what_its_own_device_showed_and_nothing_of_others(
    command: Command, models: dict[str, str], tmp_path: Path
) -> None:
    run = Run(tmp_path / "runs" / "promised")
    run.folder.mkdir(parents=True)
    shutil.copy(models["small.json"], run.architecture_file)
    write_json(run.folder / RUN_FILE, {"created_at": 0.0, "device": "one"})
    words = (str(run.folder), "--recipe", "fp32", "-t", "pp16")
    assert command(*words, "-d", "two")[0] == 0
    assert list(read_measurements(run.measurements_file)) == []
    assert command(*words, "-d", "one")[0] == 0
    assert len(list(read_measurements(run.measurements_file))) == 1


def test_a_device_that_is_gone_leaves_the_rows_of_the_others(
    command: Command, fakes: dict[str, FakeDevice], models: dict[str, str]
) -> None:
    del fakes["two"]
    words = (models["small.json"], "--recipe", "fp32", "-d", "one", "-d", "two", "-t", "pp16")
    code, out, said = command(*words, "--json")
    document = json.loads(out)
    assert (code, document["error"]["kind"]) == (6, "partial")
    assert [row["device"] for row in document["rows"]] == ["one"]
    assert "error: cannot reach two" in said
    code, out, _ = command(*words)  # people see them too
    assert (code, "pp16" in out) == (6, True)


def test_a_model_too_short_for_a_test_leaves_the_rows_of_the_others(command: Command, models: dict[str, str]) -> None:
    words = (models["small.json"], models["bundle"], "--recipe", "fp32", "-t", "pp512", "--json")
    code, out, said = command(*words)
    assert code == 6
    assert [row["model"] for row in json.loads(out)["rows"]] == ["small"]
    assert "pp512 needs 512 tokens of context" in said
    code, out, _ = command(models["bundle"], "-t", "pp512", "--json")
    assert (code, json.loads(out)["error"]["kind"]) == (2, "usage")


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_flat_rows_follow_their_schema_in_its_order(command: Command, models: dict[str, str], form: str) -> None:
    wanted = schema("bench_row")
    assert list(wanted["properties"]) == list(COLUMNS)
    _, out, _ = command(models["small.json"], models["bundle"], "-t", "tg8@8,pp16", "-o", form)
    if form == "jsonl":
        rows = [json.loads(line) for line in out.splitlines()]
        for row in rows:
            jsonschema.validate(row, wanted)
            assert list(row) == list(COLUMNS)
    else:
        rows = list(csv.DictReader(io.StringIO(out)))
        assert list(rows[0]) == list(COLUMNS)
        assert {row["valid"] for row in rows} == {"true"}
        assert {row["perplexity"] for row in rows} == {""}
    assert len(rows) == 6  # two recipes of one, one bundle, two tests each


def test_a_markdown_table_has_as_many_cells_in_every_line(command: Command, models: dict[str, str]) -> None:
    _, out, _ = command(models["small.json"], "-t", "tg8@8", "-o", "markdown")
    for part in out.strip().split("\n\n"):
        assert len({line.count("|") for line in part.splitlines()}) == 1


def test_output_json_carries_a_failure_as_json_does(command: Command) -> None:
    code, out, _ = command("nothing-of-that-name", "-o", "json")
    assert (code, json.loads(out)["error"]["exit_code"]) == (2, 2)


def row(tokenizer: str, text: str, perplexity: float | None) -> dict[str, Any]:
    return {"tokenizer": tokenizer, "text": text, "perplexity": perplexity}


def test_perplexities_of_different_tokenizers_or_texts_never_share_a_column() -> None:
    rows = [row("a", "x", 10.0), row("b", "x", 20.0), row("a", "y", 30.0), row("a", "x", 40.0), row("c", "z", None)]
    columns = perplexity_columns(rows)
    cells = [[cell(r) for r in rows] for _, cell in columns]
    assert len({title for title, _ in columns}) == 3
    assert cells == [
        ["10.00", "-", "-", "40.00", "-"],
        ["-", "20.00", "-", "-", "-"],
        ["-", "-", "30.00", "-", "-"],
    ]


def test_columns_in_which_nothing_is_known_are_left_out(command: Command, models: dict[str, str]) -> None:
    _, out, _ = command(models["small.json"], "-t", "pp16", "--json")
    times, files = tables(json.loads(out))[:2]
    assert "mJ/token" not in times[0] and "throttled" in times[0]
    assert "perplexity" not in files[0] and "RAM/unique" in files[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("-t", "pp"), "'pp' is no test"),
        (("-t", "pp16,"), "'' is no test"),
        (("-t", "tg64@-1"), "is no test"),
        (("-t", "pp016"), "is no test"),
        (("-t", "tg64", "--repeats", "100"), "at most --repeats 64"),
        (("--warmup", "0"), "--warmup"),
        (("--fail-over", "5%"), "--fail-over goes with --baseline"),
        (("--rounds", "3"), "--rounds goes with"),
        (("--compare", "a", "b", "--suite", "poster"), "two measurements"),
        (("x", "--compare", "a", "b"), "stands alone"),
        (("--compare", "a"), "--compare"),
        (("--suite", "postr"), "did you mean 'poster'"),
        (("hf:",), "hf: names no model"),
        (("https://example.org/b.tar.gz",), "is an address"),
        (("-d", "one", "-d", "tow", "small"), "did you mean 'two'"),
        (("--suite", "poster", "-d", "one", "-d", "two"), "one --device"),
        (("--text", "nowhere.txt"), "cannot read nowhere.txt"),
    ],
)
def test_a_wrong_call_gets_one_line_and_measures_nothing(
    command: Command, fakes: dict[str, FakeDevice], models: dict[str, str], words: tuple[str, ...], told: str
) -> None:
    words = tuple(models["small.json"] if word == "small" else word for word in words)
    given = words if {"x", "--compare", "--suite", "-d"} & set(words) or "://" in words[0] or "hf:" in words[0] else (
        models["small.json"], *words)  # fmt: skip
    code, out, said = command(*given)
    assert code in (1, 2) and out == ""
    assert told in said
    assert sum(line.startswith("error:") for line in said.splitlines()) == 1
    assert not any(fake.measured for fake in fakes.values())


def test_a_setting_that_a_call_has_no_use_for_is_no_mistake(
    command: Command, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERINO_EDGE_BENCH_ROUNDS", "3")
    monkeypatch.setenv("MERINO_EDGE_BENCH_FAIL_OVER", "10%")
    code, out, _ = command(models["small.json"], "--recipe", "fp32", "-t", "pp16", "--json")
    assert (code, len(json.loads(out)["rows"])) == (0, 1)


def test_hub_models_without_their_packages_are_one_clear_line(
    command: Command, monkeypatch: pytest.MonkeyPatch, models: dict[str, str]
) -> None:
    monkeypatch.setattr(bench_torch, "find_spec", lambda name: None)
    code, out, said = command("hf:gpt2", "-t", "pp16")
    assert (code, out) == (1, "")
    assert "error: hf:gpt2 needs the package 'torch', which is not installed" in said
    assert "pip install 'merino-edge[train]'" in said
    code, out, _ = command("hf:gpt2", models["small.json"], "--recipe", "fp32", "-t", "pp16", "--json")
    assert (code, len(json.loads(out)["rows"])) == (6, 1)


@pytest.mark.parametrize(
    ("looks", "told"),
    [
        ({"before": {"throttled_bits": 0}, "after": {"throttled_bits": 0x50000}}, False),
        ({"before": {"throttled_bits": 0}, "during": [{"throttled_bits": 4}], "after": {"throttled_bits": 0}}, True),
        ({"before": {"cooled_down": False}, "after": {"cooled_down": True}}, True),
        ({"before": {"throttled_bits": None}}, None),
        ({"before": 3, "during": "x"}, None),
    ],
)
def test_throttling_is_told_where_the_board_tells_it(looks: dict[str, Any], told: bool | None) -> None:
    assert was_throttled(looks) is told


def test_the_hottest_look_counts() -> None:
    assert hottest_c({"before": {"temperature_c": 40.0}, "during": [{"temperature_c": 70.5}], "after": {}}) == 70.5
    assert hottest_c({"before": {"temperature_c": None}}) is None


def test_energy_of_a_token_is_that_of_a_prompt_over_its_tokens(
    command: Command, fakes: dict[str, FakeDevice], models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = fakes["local"].measure

    def metered(*args: Any, **kwargs: Any) -> Any:
        return [replace(result, energy_mj=32.0, energy_reason=None) for result in measure(*args, **kwargs)]

    monkeypatch.setattr(fakes["local"], "measure", metered)
    _, out, _ = command(models["small.json"], "--recipe", "fp32", "-t", "pp16,tg8@8", "--json")
    assert [row["energy_mj_per_token"] for row in json.loads(out)["rows"]] == [2.0, 32.0]
