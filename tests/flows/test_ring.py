"""The ring on a device that computes its answers: profile, search, export, deploy, bench, search again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from merino_edge.device.registry import device_folder
from merino_edge.errors import InfeasibleError, MeasurementError, UsageError
from merino_edge.flows import devices
from merino_edge.flows.bench import BenchOptions, bench
from merino_edge.flows.conditions import Conditions
from merino_edge.flows.deploy import deploy, rollback
from merino_edge.flows.export import ExportWish, export
from merino_edge.flows.generate import Sampling, generate
from merino_edge.flows.profile import ProfileOptions, gpu_note, profile
from merino_edge.flows.search import search
from merino_edge.flows.verify import SearchOptions
from merino_edge.progress import Silent
from merino_edge.run import open_run
from merino_edge.search.cost import unique_bytes
from merino_edge.testing import FakeDevice, write_tiny_space
from merino_edge.units import Limit

CONDITIONS = Conditions(vocab_size=256, context_length=256)


@pytest.fixture
def space(tmp_path: Path) -> str:
    return str(write_tiny_space(tmp_path))


@pytest.fixture
def profiled(fake: FakeDevice, space: str) -> dict[str, Any]:
    return profile(None, ProfileOptions(seconds=60, space=space, conditions=CONDITIONS))


@pytest.fixture
def options(space: str) -> Callable[..., SearchOptions]:
    def make(run: str | None = None, **limits: float) -> SearchOptions:
        return SearchOptions(
            limits={name: Limit(value) for name, value in limits.items()}, conditions=CONDITIONS, space=space, run=run
        )

    return make


def test_a_profile_predicts_models_it_has_not_seen(profiled: dict[str, Any]) -> None:
    assert not profiled["estimate"]
    assert profiled["models"] >= 6
    assert profiled["latency_model"]["mape"] < 0.05


def test_the_winner_keeps_its_limit_by_the_devices_clock(
    fake: FakeDevice, profiled: dict[str, Any], options: Callable[..., SearchOptions]
) -> None:
    limit = 0.5 * sum(row["tg_ms"] for row in profiled["reach"])
    found = search(options(latency_ms=limit))
    assert found["verified"]
    assert found["measured"]["tg_ms"] <= limit
    assert json.loads((open_run(found["run"]).search_file).read_text())["architecture"] == found["architecture"]
    assert open_run(found["run"]).pareto_file.read_text().count("\n") == found["front_size"] + 1


def test_the_second_search_measures_nothing_twice_and_says_how_far_the_first_was_off(
    fake: FakeDevice, profiled: dict[str, Any], options: Callable[..., SearchOptions]
) -> None:
    small, large = (row["tg_ms"] for row in profiled["reach"])
    for percent in range(5, 100, 5):  # until the winner is none of the profiled models
        limit = small + percent / 100 * (large - small)
        first = search(options("first", latency_ms=limit))
        if first["predicted_blind"]:
            break
    before = len(fake.measured)
    second = search(options("second", latency_ms=limit))
    assert len(fake.measured) == before
    assert second["architecture"] == first["architecture"]
    checks = {(c["run"], c["test"]): c for c in second["prediction_checks"]}
    assert checks["first", "tg"]["measured_ms"] == pytest.approx(first["measured"]["tg_ms"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"os_image": "Fake OS 2, kernel 2.0"}, "os image was Fake OS 1, kernel 1.0 and is Fake OS 2, kernel 2.0"),
        ({"power_mode": "powersave"}, "power mode was performance and is powersave"),
    ],
)
def test_a_device_that_changed_since_its_profile_is_not_searched_for(
    change: dict[str, str],
    words: str,
    fake: FakeDevice,
    profiled: dict[str, Any],
    options: Callable[..., SearchOptions],
) -> None:
    fake._facts = change
    before = len(fake.measured)
    with pytest.raises(MeasurementError, match=words) as caught:
        search(options(latency_ms=sum(row["tg_ms"] for row in profiled["reach"])))
    assert len(fake.measured) == before
    assert "merino-edge profile local" in str(caught.value.hint)


def test_a_new_runtime_is_noticed_by_the_first_measurement(
    fake: FakeDevice,
    profiled: dict[str, Any],
    options: Callable[..., SearchOptions],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measure = fake.measure

    def newer(*args: Any, **kwargs: Any) -> Any:
        return [dataclasses.replace(result, runtime_version="9.0") for result in measure(*args, **kwargs)]

    monkeypatch.setattr(fake, "measure", newer)
    small, large = (row["tg_ms"] for row in profiled["reach"])
    with pytest.raises(MeasurementError, match=r"runtime version was 0\.0\.0 and is 9\.0"):
        for percent in range(5, 100, 5):  # until the winner is none of the profiled models
            search(options(latency_ms=small + percent / 100 * (large - small)))


def test_bench_says_when_the_device_is_no_longer_what_it_was_profiled_as(
    fake: FakeDevice, profiled: dict[str, Any], options: Callable[..., SearchOptions]
) -> None:
    class Notes(Silent):
        heard: ClassVar[list[str]] = []

        def note(self, text: str) -> None:
            self.heard.append(text)

    found = search(options(parameters=100_000))
    fake._facts = {"power_mode": "powersave"}
    bench(found["run"], BenchOptions(recipes=("dynamic_wi8_afp32",), seconds=1, tokens=0), progress=Notes())
    assert any("power mode was performance and is powersave" in text for text in Notes.heard)


def test_a_search_with_no_limit_of_the_device_contacts_none(
    fake: FakeDevice, options: Callable[..., SearchOptions]
) -> None:
    found = search(options(parameters=100_000))
    assert found["measured"] is None
    assert not fake.measured
    assert found["parameters"] <= 100_000


def test_limits_nothing_meets_end_with_the_binding_one(
    profiled: dict[str, Any], options: Callable[..., SearchOptions]
) -> None:
    with pytest.raises(InfeasibleError) as caught:
        search(options(latency_ms=1e-6))
    assert caught.value.details["binding"] == "latency_ms"
    assert caught.value.details["nearest"] is not None


def test_disturbed_measurements_are_kept_but_make_no_profile(
    monkeypatch: pytest.MonkeyPatch, fake: FakeDevice, space: str
) -> None:
    fake.invalid_reason = "throttled"
    with pytest.raises(MeasurementError, match="throttled"):
        profile(None, ProfileOptions(seconds=60, space=space, conditions=CONDITIONS))
    assert (device_folder("local") / "measurements.jsonl").exists()
    assert not (device_folder("local") / "profile.json").exists()


def test_an_interrupted_profile_goes_on_where_it_was(fake: FakeDevice, space: str) -> None:
    measure = fake.measure

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if len(fake.measured) >= 8:
            raise KeyboardInterrupt
        return measure(*args, **kwargs)

    fake.measure = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        profile(None, ProfileOptions(seconds=60, space=space, conditions=CONDITIONS))
    fake.measure = measure  # type: ignore[method-assign]
    again = profile(None, ProfileOptions(seconds=60, space=space, conditions=CONDITIONS))
    digests = [digest for digest, spec in fake.measured if spec.test == "tg"]
    assert sorted(digests.count(d) for d in set(digests)) == [2] * again["models"]  # two passes, nothing more


def test_an_export_weighs_what_the_search_said(fake: FakeDevice, options: Callable[..., SearchOptions]) -> None:
    found = search(options(parameters=100_000))
    for recipe in ("fp32", "dynamic_wi8_afp32"):
        document = export(found["run"], ExportWish("onnx", recipe))
        architecture = open_run(found["run"]).architecture()
        assert document["unique_bytes"] == unique_bytes(architecture, recipe)
        assert document["trained"] is False


def test_deploy_exports_what_is_missing_and_sends_nothing_twice(
    fake: FakeDevice, options: Callable[..., SearchOptions]
) -> None:
    found = search(options(parameters=100_000))
    first = deploy(found["run"], None)
    again = deploy(found["run"], None)
    assert 0 < first["bytes_sent"] <= first["bytes_total"]
    assert again["bytes_sent"] == 0
    assert again["previous"] == first["release"]
    assert rollback(None, None)["release"] == first["release"]


def test_generate_refuses_random_weights_and_an_empty_device(
    fake: FakeDevice, options: Callable[..., SearchOptions]
) -> None:
    with pytest.raises(UsageError, match="nothing is deployed"):
        generate("hello", None, Sampling(), print)
    deploy(search(options(parameters=100_000))["run"], None)
    with pytest.raises(UsageError, match="random"):
        generate("hello", None, Sampling(), print)


def test_a_deployment_that_could_not_speak_alone_is_refused_before_anything_is_sent(
    fake: FakeDevice, options: Callable[..., SearchOptions]
) -> None:
    found = search(options(parameters=100_000))
    with pytest.raises(UsageError, match="without a tokenizer") as caught:
        deploy(found["run"], None, standalone=True)
    assert caught.value.hint == "merino-edge train"
    assert fake.releases() == []


def test_bench_gives_both_recipes_side_by_side(fake: FakeDevice, options: Callable[..., SearchOptions]) -> None:
    found = search(options(parameters=100_000))
    rows = bench(found["run"], BenchOptions(seconds=1))["rows"]
    assert {(r["recipe"], r["test"]) for r in rows} == {
        (recipe, test) for recipe in ("fp32", "dynamic_wi8_afp32") for test in ("tg", "pp128")
    }
    for row in rows:
        assert row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["unique_bytes"] <= row["file_bytes"]


def test_a_search_at_another_depth_than_profiled_names_the_command(profiled: dict[str, Any], space: str) -> None:
    asked = SearchOptions(conditions=CONDITIONS.with_(depth=64), space=space, limits={"latency_ms": Limit(5)})
    with pytest.raises(UsageError) as caught:
        search(asked)
    assert "--depth 64" in str(caught.value.hint)


def test_what_only_an_estimate_calls_impossible_is_to_be_measured(
    fake: FakeDevice, options: Callable[..., SearchOptions]
) -> None:
    with pytest.raises(InfeasibleError) as caught:
        search(options(latency_ms=1e-3))
    assert "merino-edge profile local" in str(caught.value.hint)


def test_jetson_whose_runtimes_have_no_gpu_is_told_so_plainly() -> None:
    jetson = {"l4t": "32.7.1", "jetpack": "4"}
    processor, gpu = ({"providers": p} for p in (["CPUExecutionProvider"], ["CUDAExecutionProvider"]))
    note = gpu_note("nano", jetson, [processor])
    assert note is not None
    assert "JetPack 4 (L4T 32.7.1)" in note
    assert "the processor alone" in note
    assert gpu_note("nano", jetson, [processor, gpu]) is None
    assert gpu_note("pi", None, [processor]) is None


def test_emulated_device_is_called_so_and_its_runtimes_are_kept(monkeypatch: pytest.MonkeyPatch, space: str) -> None:
    device = FakeDevice("local", facts={"emulated": "QEMU's virt machine"})
    monkeypatch.setattr(devices, "open_device", lambda entry, ask=None: device)
    notes: list[str] = []

    class Noting(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    found = profile(None, ProfileOptions(seconds=60, space=space, conditions=CONDITIONS), progress=Noting())
    assert any("no board's" in note for note in notes)
    assert found["facts"]["runtimes"] == device.facts()["runtimes"]
