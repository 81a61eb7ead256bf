"""What parts of a model take on a device is told by models that differ in one part alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from stages import Ring, page_of  # type: ignore[import-not-found]

from merino_edge.architecture import Architecture, Block
from merino_edge.errors import MeasurementError
from merino_edge.flows import devices
from merino_edge.flows.measuring import Known
from merino_edge.flows.part_times import shares_of_parts, variants
from merino_edge.flows.report import ReportOptions, report
from merino_edge.testing import FakeDevice

pytestmark = pytest.mark.timeout(300)
MODEL = Architecture((Block(64, 2, 3), Block(128, 1, 1)), 64, 301)


def known(ms: dict[str, float]) -> dict[str, Known]:
    """Say what was measured of the model and its variants."""
    models = {"own": MODEL, **{part: model for part, (model, _) in variants(MODEL).items()}}
    return {models[n].digest: Known(models[n], {"tg": (value, 2 * value)}, None, None) for n, value in ms.items()}


def test_variants_have_half_of_one_part() -> None:
    (head, by_head), (ffn, by_ffn) = (variants(MODEL)[part] for part in ("head", "ffn"))
    assert (head.vocab_size, head.blocks) == (150, MODEL.blocks)
    assert by_head == pytest.approx(301 / 151)
    assert [b.ffn_width for b in ffn.blocks] == [64, 64]
    assert replace(ffn, blocks=MODEL.blocks) == MODEL
    assert by_ffn == 2.0


def test_a_network_that_has_no_half_is_left_out() -> None:
    odd = Architecture((Block(2, 1.5, 1),), 2, 64, head_dim=2)
    assert set(variants(odd)) == {"head"}


def test_twice_the_difference_is_the_part_and_the_rest_is_left() -> None:
    factor = variants(MODEL)["head"][1]
    shares = shares_of_parts(known({"own": 10.0, "head": 10.0 - 2.0 / factor, "ffn": 8.0}), MODEL, "tg")
    assert shares == pytest.approx({"ffn": 0.4, "head": 0.2, "other": 0.4})


@pytest.mark.parametrize(
    "ms",
    [
        {"own": 10.0},
        {"own": 10.0, "head": 9.0},
        {"head": 9.0, "ffn": 8.0},
        {"own": 10.0, "head": 10.1, "ffn": 8.0},  # noise
        {"own": 10.0, "head": 6.0, "ffn": 6.0},  # more than there is
    ],
)
def test_no_share_is_told_that_was_not_measured_or_cannot_be(ms: dict[str, float]) -> None:
    assert shares_of_parts(known(ms), MODEL, "tg") is None


def test_a_run_whose_parts_were_measured_shows_them(
    ring: Ring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ring.stage("searched", tmp_path)
    before = page_of(folder).data
    assert all(part["kind"] == "whole" for b in before["latency"] for part in b["bars"][1]["parts"])
    device = FakeDevice("local")
    monkeypatch.setattr(devices, "open_device", lambda entry, ask=None: device)
    report(str(folder), ReportOptions(measure_parts=True))
    after = page_of(folder).data
    for breakdown in after["latency"]:
        parts = {part["kind"]: part["value"] for part in breakdown["bars"][1]["parts"]}
        assert set(parts) == {"ffn", "head", "other"}
        assert all(value > 0 for value in parts.values())
        predicted = {part["kind"]: part["value"] for part in breakdown["bars"][0]["parts"]}
        assert sum(parts.values()) == pytest.approx(sum(predicted.values()), rel=0.05)
    assert after["commands"][-1].endswith("--measure-parts")
    assert "difference" in after["latency"][0]["note"]
    points = {p["architecture"] for p in after["landscape"]["points"]}
    assert points == {p["architecture"] for p in before["landscape"]["points"]}


def test_parts_that_noise_hides_are_not_asked_for_as_if_they_had_never_been_measured(
    ring: Ring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ring.stage("searched", tmp_path)
    assert "To measure parts too" in page_of(folder).data["latency"][0]["note"]
    device = FakeDevice("local")
    monkeypatch.setattr(devices, "open_device", lambda entry, ask=None: device)
    monkeypatch.setattr("merino_edge.flows.report_breakdowns.shares_of_parts", lambda *_: None)  # as noise has it
    report(str(folder), ReportOptions(measure_parts=True))
    note = page_of(folder).data["latency"][0]["note"]
    assert "differing by less than that spread; again, when the device does nothing else: merino-edge report" in note


def test_another_machine_under_the_same_name_is_refused(
    ring: Ring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ring.stage("searched", tmp_path)
    device = FakeDevice("local", facts={"os_image": "Another OS"})
    monkeypatch.setattr(devices, "open_device", lambda entry, ask=None: device)
    with pytest.raises(MeasurementError, match="os image was Fake OS"):
        report(str(folder), ReportOptions(measure_parts=True))
    assert not (folder / "report.html").exists()
