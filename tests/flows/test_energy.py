"""A limit on energy, on a device whose sensor is computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from merino_edge.device.client import TestResult
from merino_edge.errors import InfeasibleError, UsageError
from merino_edge.flows import devices
from merino_edge.flows.conditions import Conditions
from merino_edge.flows.profile import ProfileOptions, profile
from merino_edge.flows.profile_file import read_profile
from merino_edge.flows.search import search
from merino_edge.flows.verify import SearchOptions
from merino_edge.testing import FakeDevice, write_tiny_space
from merino_edge.units import Limit

CONDITIONS = Conditions(vocab_size=256, context_length=256)
WATTS = 3.0


class Metered(FakeDevice):
    """A device that draws three watts whatever it does."""

    def measure(self, *args: Any, **kwargs: Any) -> list[TestResult]:
        results = super().measure(*args, **kwargs)
        return [replace(r, energy_mj=WATTS * sorted(r.samples_ns)[len(r.samples_ns) // 2] / 1e6) for r in results]


@pytest.fixture
def space(tmp_path: Path) -> str:
    return str(write_tiny_space(tmp_path))


def make(monkeypatch: pytest.MonkeyPatch, space: str, device: FakeDevice) -> None:
    monkeypatch.setattr(devices, "open_device", lambda entry, ask=None: device)
    profile(None, ProfileOptions(seconds=60, space=space, conditions=CONDITIONS))


def options(space: str, **limits: float) -> SearchOptions:
    return SearchOptions(limits={n: Limit(v) for n, v in limits.items()}, conditions=CONDITIONS, space=space)


def test_a_limit_on_energy_is_kept_and_binds(monkeypatch: pytest.MonkeyPatch, space: str) -> None:
    make(monkeypatch, space, Metered("local"))
    free = search(options(space))
    limit = 0.95 * free["predicted"]["energy_mj"]
    found = search(options(space, energy_mj=limit))
    (constraint,) = found["constraints"]
    assert constraint["name"] == "energy_mj"
    assert constraint["binding"]
    assert found["verified"]
    assert found["measured"]["energy_mj"] <= limit
    assert found["measured"]["energy_mj"] == pytest.approx(WATTS * found["measured"]["tg_ms"], rel=0.01)


def test_the_model_of_energy_is_kept_in_the_profile(monkeypatch: pytest.MonkeyPatch, space: str) -> None:
    make(monkeypatch, space, Metered("local"))
    kept = read_profile("local")
    assert kept is not None
    (recipe,) = kept.recipes.values()
    assert recipe.energy is not None
    assert recipe.energy.accuracy["mape"] < 0.05


def test_energy_out_of_reach_names_the_least(monkeypatch: pytest.MonkeyPatch, space: str) -> None:
    make(monkeypatch, space, Metered("local"))
    with pytest.raises(InfeasibleError) as caught:
        search(options(space, energy_mj=1e-6))
    assert caught.value.details["binding"] == "energy_mj"
    assert caught.value.details["least"] > 1e-6


def test_energy_is_refused_where_no_sensor_told_it(monkeypatch: pytest.MonkeyPatch, space: str) -> None:
    make(monkeypatch, space, FakeDevice("local"))
    with pytest.raises(UsageError, match="--energy cannot be held on local"):
        search(options(space, energy_mj=30.0))
