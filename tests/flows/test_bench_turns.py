"""Models measured in turn: `--compare` and `--suite` on a device that computes its answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from merino_edge.architecture import Architecture, save_architecture
from merino_edge.cli.bench_output import tables
from merino_edge.cli.main import main
from merino_edge.errors import MeasurementError
from merino_edge.flows import suite
from merino_edge.flows.bench import BenchOptions
from merino_edge.testing import FakeDevice, tiny_architecture, tiny_architectures

pytestmark = pytest.mark.alone

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

Command = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def command(fake: FakeDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    save_architecture(tmp_path / "small.json", tiny_architectures()[0])
    save_architecture(tmp_path / "large.json", tiny_architecture())

    def run(first: str, second: str, *words: str) -> tuple[int, dict[str, Any], str]:
        sides = [str(tmp_path / f"{name}.json") for name in (first, second)]
        with pytest.raises(SystemExit) as ended:
            main(["bench", "--compare", *sides, *words, "--json"])
        said = capsys.readouterr()
        return int(str(ended.value.code)), json.loads(said.out), said.err

    return run


def check(document: dict[str, Any]) -> None:
    text = resources.files("merino_edge.cli").joinpath("schemas", "bench.json").read_text(encoding="utf-8")
    jsonschema.validate(document, json.loads(text))


def test_a_model_against_itself_is_noise(command: Command) -> None:
    code, document, _ = command("large", "large", "-t", "tg8@8,pp16")
    assert code == 0
    check({"schema_version": 1, **document})
    assert [line["verdict"] for line in document["comparison"]] == ["noise", "noise"]
    assert [(line["first"], line["second"]) for line in document["comparison"]] == [
        ("large (first)", "large (second)")
    ] * 2


def test_the_faster_one_is_named_whichever_comes_first(command: Command) -> None:
    _, there, _ = command("large", "small", "-t", "tg8@8")
    _, back, _ = command("small", "large", "-t", "tg8@8")
    (a,), (b,) = there["comparison"], back["comparison"]
    assert (a["verdict"], b["verdict"]) == ("second", "first")
    assert a["ratio"] == pytest.approx(1 / b["ratio"])
    assert a["ratio"] == pytest.approx(a["first_p50_ms"] / a["second_p50_ms"])
    assert a["low"] <= a["ratio"] <= a["high"]
    for line in (a, b):
        assert "small is faster: " + f"{a['ratio']:.3f}x" in line["words"]


def test_turns_alternate_their_order(command: Command, fake: FakeDevice) -> None:
    command("small", "large", "-t", "pp16", "--rounds", "4")
    small, large = tiny_architectures()[0].digest, tiny_architecture().digest
    order = [small, large, large, small] * 2
    assert [digest for digest, _ in fake.measured] == order
    assert fake.holding


def test_two_recipes_give_each_side_one(command: Command) -> None:
    _, document, _ = command("large", "large", "--recipe", "fp32", "--recipe", "dynamic_wi8_afp32", "-t", "tg8@8")
    assert [row["recipe"] for row in document["rows"]] == ["fp32", "dynamic_wi8_afp32"]
    code, document, _ = command("large", "large", *("--recipe", "fp32") * 3)
    assert code == 2


def test_too_few_rounds_show_nothing_for_certain(command: Command) -> None:
    _, document, _ = command("large", "small", "-t", "tg8@8", "--rounds", "2")
    assert document["comparison"][0]["verdict"] == "noise"
    assert "--rounds 10" in document["comparison"][0]["words"]


def test_a_drift_that_both_feel_does_not_count(
    command: Command, fake: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, turns = fake.measure, []

    def drifting(*args: Any, **kwargs: Any) -> Any:
        turns.append(args)
        slow = 1 + (len(turns) - 1) // 2  # every round slower than the one before
        return [replace(r, samples_ns=tuple(slow * s for s in r.samples_ns)) for r in measure(*args, **kwargs)]

    monkeypatch.setattr(fake, "measure", drifting)
    _, document, _ = command("large", "small", "-t", "tg8@8")
    (line,) = document["comparison"]
    assert line["high"] - line["low"] < 1e-3 * line["ratio"]
    assert line["verdict"] == "second"


def test_disturbed_rounds_are_set_aside_for_both(
    command: Command, fake: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, turns = fake.measure, []

    def disturbed(*args: Any, **kwargs: Any) -> Any:
        turns.append(args)
        bad = len(turns) in (3, 8)  # the second and the fourth round
        return [
            replace(r, valid=not bad, invalid_reason="other programs" if bad else None)
            for r in measure(*args, **kwargs)
        ]

    monkeypatch.setattr(fake, "measure", disturbed)
    code, document, _ = command("large", "small", "-t", "tg8@8")
    assert code == 0
    assert (document["comparison"][0]["rounds"], document["comparison"][0]["set_aside"]) == (8, 2)
    assert document["rows"][0]["samples"] == 8 * 8


def test_a_round_that_only_one_of_them_lost_counts_for_neither(
    command: Command, fake: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = fake.measure

    def large_is_disturbed(bundle: Any, *args: Any, **kwargs: Any) -> Any:
        bad = bundle.manifest.architecture.digest == tiny_architecture().digest
        reason = "other programs" if bad else None
        return [replace(r, valid=not bad, invalid_reason=reason) for r in measure(bundle, *args, **kwargs)]

    monkeypatch.setattr(fake, "measure", large_is_disturbed)
    code, document, _ = command("large", "small", "-t", "tg8@8")
    assert code == 5
    assert [row["invalid_reason"] for row in document["rows"]] == [
        "other programs", "no round in which nobody was disturbed",
    ]  # fmt: skip
    assert document["comparison"][0]["words"] == "every round was disturbed"


def test_a_device_that_is_disturbed_throughout_ends_with_five(command: Command, fake: FakeDevice) -> None:
    fake.invalid_reason = "throttled"
    code, document, said = command("large", "small", "-t", "tg8@8")
    assert code == 5
    assert "tg8@8: 0 of 10 rounds are valid: throttled" in said
    check(document)


def tiny_suite() -> dict[str, Architecture]:
    models = tiny_architectures()
    return {"opt-350m": models[2], "merino-52m": models[0], "gpt2-124m": models[2]}


def test_a_suite_is_told_as_ratio_to_its_reference(fake: FakeDevice) -> None:
    options = BenchOptions(tests=("tg8@8,pp16",), seconds=1)
    document = suite.run_suite("poster", options, 5, models=tiny_suite())
    check({"schema_version": 1, **document})
    ratios = {(line["model"], line["test"]): line for line in document["ratios"]}
    assert ratios["opt-350m", "tg8@8"]["ratio"] == 1
    assert ratios["gpt2-124m", "pp16"]["ratio"] == 1  # the same architecture here
    times = {(row["model"], row["test"]): row["p50_ms"] for row in document["rows"]}
    faster = times["opt-350m (shape twin)", "tg8"] / times["merino-52m", "tg8"]
    assert faster > 1
    assert ratios["merino-52m", "tg8@8"]["ratio"] == pytest.approx(faster)
    assert {line["model"]: line["twin"] for line in document["ratios"]} == {
        "opt-350m": True, "merino-52m": False, "gpt2-124m": True,
    }  # fmt: skip
    first, _ = tables(document)
    assert first[0] == ["model", "test", "p50 ms", "as fast as opt-350m", "95 %"]
    assert not fake._objects  # nothing stays on the device


def test_a_disturbed_suite_keeps_what_it_measured(fake: FakeDevice) -> None:
    fake.invalid_reason = "throttled"
    with pytest.raises(MeasurementError) as caught:
        suite.run_suite("poster", BenchOptions(tests=("tg8@8",), seconds=1), 5, models=tiny_suite())
    assert len(caught.value.details["partial"]["rows"]) == 3


def test_models_take_turns_on_this_very_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_architecture(tmp_path / "small.json", tiny_architectures()[0])
    save_architecture(tmp_path / "large.json", tiny_architecture())
    sides = [str(tmp_path / "small.json"), str(tmp_path / "large.json")]
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--compare", *sides, "-t", "tg8@8,full16", "--rounds", "2", "--repeats", "2", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert ended.value.code in (0, 5)  # a busy machine disturbs it, and says so
    check(document)
    assert [(row["model"], row["test"]) for row in document["rows"]] == [
        ("small", "tg8"), ("small", "full16"), ("large", "tg8"), ("large", "full16"),
    ]  # fmt: skip
    for line in document["comparison"]:
        assert line["rounds"] + line["set_aside"] == 2
        assert line["verdict"] in ("noise", None)  # two rounds show nothing for certain


def test_a_suite_on_this_very_machine_leaves_nothing_on_it(tmp_path: Path) -> None:
    try:
        options = BenchOptions(tests=("tg4@4",), repeats=1, recipes=("fp32",))
        document = suite.run_suite("poster", options, 2, models=tiny_suite())
    except MeasurementError as error:
        document = error.details["partial"]
    assert [row["recipe"] for row in document["rows"]] == ["fp32"] * 3
    assert all(row["peak_memory_bytes"] > row["model_memory_bytes"] > 0 for row in document["rows"])
    objects = list((tmp_path / "home").rglob("objects"))
    assert objects
    assert [path for folder in objects for path in folder.iterdir()] == []


def test_the_suite_is_the_posters_table() -> None:
    from poster.rows import BASELINES

    models = suite.suite_models("poster")
    assert len(models) == 9
    assert {name: shape for name, (_, shape) in BASELINES.items()} == {n: models[n] for n in suite.BASELINES}
    unique = {name: round(a.unique_parameters / 1e6) for name, a in models.items()}
    assert unique == {
        "pythia-70m": 45, "pythia-162m": 124, "cerebras-111m": 109, "gpt2-124m": 124, "opt-125m": 124,
        "opt-350m": 329, "merino-52m": 53, "merino-61m": 60, "merino-64m": 63,
    }  # fmt: skip
