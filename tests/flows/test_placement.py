"""A virtual machine whose host moves its processors: what was measured elsewhere does not count."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from merino_edge.flows import devices, verify
from merino_edge.flows.conditions import Conditions
from merino_edge.flows.measuring import gather, measure_in_passes, shared_key
from merino_edge.flows.placement import (
    LEAST_RECORDS,
    NEWEST_RECORDS,
    counting,
    distances_ns,
    elsewhere,
    placement,
    usual_distance_ns,
)
from merino_edge.flows.profile import ProfileOptions, profile
from merino_edge.flows.search import repeatability_lines, search
from merino_edge.flows.verify import SearchOptions
from merino_edge.measurement import Measurement
from merino_edge.progress import SILENT
from merino_edge.search.space import load_space
from merino_edge.testing import FakeDevice, tiny_architecture, write_tiny_space
from merino_edge.units import Limit

CONDITIONS = Conditions(vocab_size=256, context_length=256)
NEAR, FAR = 5.7, 18.6


class MovedDevice(FakeDevice):
    """A virtual machine that takes 1.8 times as long while its processors stand apart.

    Args:
        apart: Says of a call's number whether they do.
    """

    def __init__(self, apart: Callable[[int], bool]) -> None:
        super().__init__("local")
        self.apart, self.calls = apart, 0

    def slower(self) -> float:
        return 1.8 if self.apart(self.calls) else 1.0

    def facts(self, bandwidth: bool = False, core_distance: bool = False) -> dict[str, Any]:
        if not core_distance:
            return super().facts(bandwidth)
        return {**super().facts(bandwidth), "core_distance_ns": FAR if self.apart(self.calls) else NEAR}

    def measure(self, *given: Any, **named: Any) -> list[Any]:
        results = super().measure(*given, **named)
        where = FAR if self.apart(self.calls) else NEAR
        self.calls += 1
        wrong = self.core_distance_ns is not None and where > 1.4 * self.core_distance_ns
        return [
            replace(
                result,
                conditions={**result.conditions, "core_distances_ns": [where, where]},
                valid=not wrong,
                invalid_reason="moved apart" if wrong else None,
            )
            for result in results
        ]


def measured(device: FakeDevice, log: Path, tmp_path: Path) -> dict[str, float]:
    models = load_space(str(write_tiny_space(tmp_path)), 256).sample(6, seed=0)
    with SILENT.task("", 1.0) as task:
        records = measure_in_passes(device, device.facts(), models, CONDITIONS, 60.0, log, [], task)
    return {digest: k.ms["tg"] for digest, k in gather(records, shared_key(records[0]), CONDITIONS).items()}


@pytest.mark.parametrize(
    "apart",
    [
        lambda call: call % 6 == 2,  # both passes of one model, that agree with each other
        lambda call: call % 3 == 0,  # of two
        lambda call: call < 5,  # from the beginning
    ],
)
def test_a_model_that_was_only_measured_elsewhere_is_measured_again(
    apart: Callable[[int], bool], tmp_path: Path
) -> None:
    quiet = measured(FakeDevice("local"), tmp_path / "quiet.jsonl", tmp_path)
    found = measured(MovedDevice(apart), tmp_path / "moved.jsonl", tmp_path)
    assert found == pytest.approx(quiet, rel=1e-6)


def records(*told: Any) -> list[Measurement]:
    """Return records with these distances in their conditions."""
    device, models = FakeDevice("local"), [tiny_architecture()]
    with SILENT.task("", 1.0) as task, tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        one = measure_in_passes(device, device.facts(), models, CONDITIONS, 1.0, log, [], task)[0]
    return [replace(one, conditions={"core_distances_ns": value}) for value in told]


def test_usual_is_what_most_of_the_newest_records_tell() -> None:
    assert usual_distance_ns(records(*[[NEAR]] * (LEAST_RECORDS - 1))) is None
    assert usual_distance_ns(records(*[[NEAR]] * 3, *[[FAR]] * 2)) == NEAR
    assert usual_distance_ns(records(*[[NEAR]] * 2, *[[FAR]] * 3)) == FAR
    moved_for_good = records(*[[NEAR]] * NEWEST_RECORDS, *[[FAR]] * (NEWEST_RECORDS // 2 + 1))
    assert usual_distance_ns(moved_for_good) == FAR
    assert usual_distance_ns(records(*[[NEAR, FAR]] * 5)) is None  # moved in each
    assert usual_distance_ns(records(*[[FAR]] * 3, *[[NEAR]] * 3)) == NEAR  # as often here as there
    assert usual_distance_ns(records(*([2.0**n] for n in range(8)))) is None  # nothing but noise


def test_a_record_counts_where_all_that_was_seen_is_usual() -> None:
    every = records(*[[NEAR, NEAR + 0.3]] * 4, [NEAR, FAR, NEAR], [FAR], [], None)
    assert counting(every) == [*every[:4], *every[6:]]  # where nobody could tell, too
    invalid = [replace(r, valid=False, invalid_reason="hot") for r in every]
    assert counting(invalid) == []
    assert placement(every) == {"core_distance_ns": pytest.approx(NEAR + 0.15), "records": 8, "elsewhere": 2}


def test_new_records_are_held_against_what_is_usual() -> None:
    usual = records(*[[NEAR]] * 4)
    assert elsewhere(records([NEAR], [NEAR, NEAR]), usual) is None
    assert "farther apart (18.6 ns" in str(elsewhere(records([NEAR], [NEAR, FAR]), usual))
    assert elsewhere(records([FAR]), usual[:3]) is None  # too few to tell


def test_what_a_device_tells_that_is_no_distance_is_left_out() -> None:
    odd = [[float("nan"), -1.0, "5.7", True, None, float("inf"), 0, [NEAR], NEAR], "5.7", {"a": 1}, 5.7, True]
    assert [distances_ns(r) for r in records(*odd)] == [[NEAR], [], [], [], []]


Searched = Callable[[FakeDevice], dict[str, Any]]


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Searched:
    """Profile a device in the place of this machine and search, with a limit whose winner was not measured yet."""

    def run(device: FakeDevice) -> dict[str, Any]:
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(devices, "open_device", lambda entry, ask=None: device)
        space = str(write_tiny_space(tmp_path))
        made = profile(None, ProfileOptions(seconds=36, space=space, conditions=CONDITIONS))
        known = {digest for digest, _ in device.measured}
        low, high = (row["tg_ms_upper"] for row in made["reach"])
        for share in range(10, 91, 5):
            limits = {"latency_ms": Limit(low * (high / low) ** (share / 100))}
            options = SearchOptions(space=space, limits=limits, conditions=CONDITIONS)
            if search(replace(options, verify=False))["architecture_digest"] not in known:
                return {"profile": made, "search": search(options)}
        raise AssertionError("every winner was measured by the profile")

    return run


def test_a_search_waits_where_its_profile_stood(searched: Searched) -> None:
    device = MovedDevice(lambda call: call % 5 == 4)
    found = searched(device)
    assert found["profile"]["placement"]["core_distance_ns"] == NEAR
    assert found["profile"]["placement"]["elsewhere"] > 0
    assert found["search"]["verified"]
    assert device.core_distance_ns == NEAR
    assert found["search"]["repeatability"]["latency_ms"]["margin"] < 0.01  # 1.8 in the log, and none of it counts


def test_a_search_goes_by_what_was_measured_where_the_machine_stands_now(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    device, space = MovedDevice(lambda call: call % 2 == 1), str(write_tiny_space(tmp_path))
    monkeypatch.setattr(devices, "open_device", lambda entry, ask=None: device)
    made = profile(None, ProfileOptions(seconds=42, space=space, conditions=CONDITIONS))
    low, high = (row["tg_ms"] for row in made["reach"])
    options = SearchOptions(space=space, limits={"latency_ms": Limit(1.5 * (low * high) ** 0.5)}, conditions=CONDITIONS)
    for place, apart in ((FAR, True), (NEAR, False), (FAR, True)):
        device.apart = lambda call, apart=apart: apart  # type: ignore[misc]
        found = search(options)
        assert found["core_distance_ns"] == place
        assert found["verified"]
        assert found["measured"]["tg_ms"] <= options.limits["latency_ms"].upper
        assert found["elsewhere"]["ratio"] == pytest.approx(1 / 1.8 if apart else 1.8, rel=1e-3)
        assert any(line.startswith("the host moves this virtual machine") for line in repeatability_lines(found))


def test_a_place_that_too_little_was_measured_at_is_waited_out_instead(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    device, space = MovedDevice(lambda call: False), str(write_tiny_space(tmp_path))
    monkeypatch.setattr(devices, "open_device", lambda entry, ask=None: device)
    made = profile(None, ProfileOptions(seconds=36, space=space, conditions=CONDITIONS))
    device.apart = lambda call: True
    limit = Limit((made["reach"][0]["tg_ms"] * made["reach"][1]["tg_ms"]) ** 0.5)
    found = search(SearchOptions(space=space, limits={"latency_ms": limit}, conditions=CONDITIONS))
    assert found["core_distance_ns"] == NEAR
    assert found["elsewhere"] is None


def test_a_search_that_has_no_time_left_measures_nothing_and_promises_nothing(
    searched: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "VERIFY_MOST_S", -1.0)
    found = searched(FakeDevice("local"))["search"]
    assert found["rounds"] == []
    assert not found["verified"]
