"""`doctor` finds what would fail, says what mends it, and calls nothing broken that works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from merino_edge.device.registry import DeviceEntry, Registry, local_entry
from merino_edge.errors import DeviceError
from merino_edge.flows import devices
from merino_edge.flows.conditions import Conditions
from merino_edge.flows.doctor import Finding, check_device, check_host, doctor
from merino_edge.flows.profile import ProfileOptions, profile
from merino_edge.testing import FakeDevice, write_tiny_space

KITCHEN = DeviceEntry("kitchen", "pi@kitchen", "pi4", None, "paramiko")


def facts(**changes: Any) -> dict[str, Any]:
    return {**FakeDevice().facts(), **changes}


def found(entry: DeviceEntry, what: str, **changes: Any) -> Finding:
    return next(f for f in check_device(entry, facts(**changes)) if f.what == what)


def test_nothing_of_a_sound_board_is_a_problem() -> None:
    assert [f for f in check_device(KITCHEN, facts()) if f.status == "problem"] == []


@pytest.mark.parametrize(
    ("what", "changes", "status", "words"),
    [
        ("power", {"throttled_bits": 0x50005}, "problem", "stronger power supply"),
        ("power", {"throttled_bits": 0x10000}, "note", "stronger power supply"),
        ("heat", {"throttled_bits": 0x4}, "problem", "cool"),
        ("heat", {"temperature_c": 83.0}, "note", "cool"),
        ("governor", {"governor": "ondemand"}, "note", "scaling_governor"),
        ("memory", {"memory": {"total": 1 << 29, "available": 1 << 26, "swap_used": 0}}, "problem", "stop what else"),
        (
            "memory",
            {"memory": {"total": 1 << 32, "available": 1 << 31, "swap_used": 1 << 29}},
            "note",
            "stop what else",
        ),
        ("python", {"python": {"version": "3.11.2", "bits": 32, "platform": "linux-armv7l"}}, "note", "64-bit"),
        ("board", {"board_model": "Raspberry Pi 5 Model B Rev 1.0"}, "problem", "--profile pi5"),
    ],
)
def test_what_would_fail_is_named_with_what_mends_it(
    what: str, changes: dict[str, Any], status: str, words: str
) -> None:
    finding = found(KITCHEN, what, **changes)
    assert (finding.status, words in str(finding.mend)) == (status, True)


def test_a_profile_of_what_the_device_no_longer_is_is_out_of_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "open_device", lambda entry, ask=None: FakeDevice("local"))
    assert found(local_entry(), "profile").status == "note"
    conditions = Conditions(vocab_size=256, context_length=256)
    profile(None, ProfileOptions(seconds=5, space=str(write_tiny_space(tmp_path)), conditions=conditions))
    assert found(local_entry(), "profile").status == "ok"
    stale = found(local_entry(), "profile", os_image="Fake OS 2")
    assert stale.status == "problem"
    assert "os image was Fake OS 1, kernel 1.0 and is Fake OS 2" in stale.found
    assert stale.mend == "merino-edge profile local"


def test_a_device_that_does_not_answer_is_one_problem_and_the_others_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def open_device(entry: DeviceEntry, ask: Any = None) -> FakeDevice:
        if entry.name == "kitchen":
            raise DeviceError("kitchen does not answer", hint="switch it on")
        return FakeDevice("local")

    Registry().add(KITCHEN)
    monkeypatch.setattr(devices, "open_device", open_device)
    document = doctor([])
    problem = next(f for f in document["findings"] if f["status"] == "problem")
    assert (document["problems"], document["unreachable"]) == (1, ["kitchen"])
    assert (problem["found"], problem["mend"]) == ("kitchen does not answer", "switch it on")
    assert any(f["where"] == "local" and f["what"] == "memory" for f in document["findings"])


def test_this_host_is_sound_and_its_runtime_computes_rightly() -> None:
    by_name = {f.what: f for f in check_host()}
    assert [f for f in by_name.values() if f.status == "problem"] == []
    assert "computes rightly" in by_name["onnxruntime"].found


def test_a_folder_nobody_can_write_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    monkeypatch.setenv("XDG_DATA_HOME", str(blocker))
    assert next(f for f in check_host() if f.what == "data folder").status == "problem"
