"""Measuring many models: passes far apart in time see through a machine that is slowed for a while."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from merino_edge.architecture import Architecture
from merino_edge.flows.conditions import Conditions
from merino_edge.flows.measuring import (
    MOST_PASSES,
    gather,
    known_from_log,
    measure_in_passes,
    pass_medians,
    shared_key,
    uncertainties,
)
from merino_edge.measurement import percentile_ms, read_measurements
from merino_edge.progress import SILENT
from merino_edge.search.space import load_space
from merino_edge.testing import FakeDevice, write_tiny_space

CONDITIONS = Conditions(vocab_size=256, context_length=256)


class SlowedDevice(FakeDevice):
    """A device whose neighbours slow it for some of the calls."""

    def __init__(self, slow_calls: range) -> None:
        super().__init__("local")
        self.calls = 0
        self.slow_calls = slow_calls
        self.factor = 1.8
        self.drift = 0.0  # share by which every call is slower than the one before

    def slower(self) -> float:
        self.calls += 1
        return (self.factor if self.calls - 1 in self.slow_calls else 1.0) * (1.0 + self.drift) ** (self.calls - 1)


@pytest.fixture
def models(tmp_path: Path) -> list[Architecture]:
    return load_space(str(write_tiny_space(tmp_path)), 256).sample(6, seed=0)


def measure(device: FakeDevice, models: list[Architecture], log: Path, seconds: float = 60.0) -> dict[str, float]:
    """Return the tg of each model, by digest, as a profile would take it."""
    with SILENT.task("", 1.0) as task:
        records = measure_in_passes(device, device.facts(), models, CONDITIONS, seconds, log, [], task)
    known = gather(records, shared_key(records[0]), CONDITIONS)
    return {digest: k.ms["tg"] for digest, k in known.items()}


@pytest.mark.parametrize("slow", [range(6), range(4, 8), range(6, 12), range(5, 11)])
def test_a_slow_spell_of_the_machine_does_not_reach_the_fit(
    slow: range, models: list[Architecture], tmp_path: Path
) -> None:
    quiet = measure(FakeDevice("local"), models, tmp_path / "quiet.jsonl")
    disturbed = SlowedDevice(slow)
    assert measure(disturbed, models, tmp_path / "slowed.jsonl") == pytest.approx(quiet, rel=1e-6)
    assert disturbed.calls > 2 * len(models)  # models whose passes disagree are measured again


def test_models_whose_passes_agree_are_measured_twice_and_no_more(models: list[Architecture], tmp_path: Path) -> None:
    device = SlowedDevice(range(0))
    measure(device, models, tmp_path / "log.jsonl")
    assert device.calls == 2 * len(models)


def test_a_machine_that_never_rests_ends_the_measuring_all_the_same(models: list[Architecture], tmp_path: Path) -> None:
    device = SlowedDevice(range(0))
    device.drift = 0.1
    measure(device, models, tmp_path / "log.jsonl")
    assert device.calls == MOST_PASSES * len(models)


def test_what_was_measured_before_an_interruption_is_not_measured_again(
    models: list[Architecture], tmp_path: Path
) -> None:
    device, log = SlowedDevice(range(0)), tmp_path / "log.jsonl"
    with SILENT.task("", 1.0) as task:
        first = measure_in_passes(device, device.facts(), models[:3], CONDITIONS, 60.0, log, [], task)
        everything = measure_in_passes(device, device.facts(), models, CONDITIONS, 60.0, log, first, task)
    assert device.calls == 2 * len(models)
    assert all(len(pass_medians(everything, model)) == 2 for model in models)


@pytest.mark.parametrize("rare", [1.8, 0.6])
def test_a_pass_that_is_unlike_the_others_does_not_speak_for_a_model(
    rare: float, models: list[Architecture], tmp_path: Path
) -> None:
    device, log = SlowedDevice(range(6, 12)), tmp_path / "log.jsonl"
    device.factor = rare  # a neighbour may slow a machine for a while, or leave it alone for once
    measure(device, models, log)
    key = shared_key(read_measurements(log)[0])
    for k in known_from_log(log, key, CONDITIONS).values():
        first, second, _ = k.passes_ms["tg"]
        assert second == pytest.approx(rare * first, rel=1e-4)
        assert k.ms["tg"] == pytest.approx(first)


def test_the_median_of_few_or_scattered_passes_is_uncertain() -> None:
    quiet, alone = [(1.0, 2.0), (1.0, 2.0)], [(1.0, 2.0)]
    assert uncertainties([quiet, quiet, alone, []]) == [0.0, 0.0, math.inf, math.inf]
    apart = [(1.0, 2.0), (1.04, 2.0)]
    assert uncertainties([quiet, quiet, apart]) == pytest.approx([0.0, 0.0, 0.02 / 1.02 / 2**0.5])
    outvoted = [(1.0, 2.0), (1.5, 2.0), (1.0, 2.6)]
    assert uncertainties([outvoted]) == [0.0]


def test_passes_that_agree_on_a_restless_machine_do_so_by_chance() -> None:
    restless, lucky = [(1.0, 2.0), (1.2, 2.0)], [(1.0, 2.0), (1.0, 2.0)]
    usual = 0.1 / 1.1 / 2**0.5
    assert uncertainties([restless, restless, lucky]) == pytest.approx([usual] * 3)
    assert uncertainties([restless, restless, lucky * 2])[2] == pytest.approx(usual / 2**0.5)


def test_another_percentile_than_the_median_speaks_for_a_pass_where_it_is_asked_for(
    models: list[Architecture], tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    measure(FakeDevice("local"), models, log)
    records = read_measurements(log)
    key = shared_key(records[0])
    ninety = known_from_log(log, key, CONDITIONS.with_(percentile=90))
    for digest, known in known_from_log(log, key, CONDITIONS).items():
        first = next(r for r in records if r.key.architecture_digest == digest and r.key.test == "tg")
        assert known.passes_ms["tg"][0] == percentile_ms(first.samples_ns, 50)
        assert ninety[digest].passes_ms["tg"][0] == percentile_ms(first.samples_ns, 90)
        assert ninety[digest].ms["tg"] > known.ms["tg"]
