"""The ring with TFLite files: profile, search, deploy and bench mean the format that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from merino_edge.device.registry import device_folder
from merino_edge.flows import devices
from merino_edge.flows.bench import BenchOptions, bench
from merino_edge.flows.conditions import Conditions
from merino_edge.flows.deploy import deploy
from merino_edge.flows.profile import ProfileOptions, profile
from merino_edge.flows.search import search
from merino_edge.flows.verify import SearchOptions
from merino_edge.measurement import read_measurements
from merino_edge.testing import FakeDevice, write_tiny_space
from merino_edge.units import Limit

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")


def test_the_whole_ring_measures_and_deploys_tflite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = FakeDevice("local")
    monkeypatch.setattr(devices, "open_device", lambda entry, ask=None: fake)
    conditions, space = Conditions(format="tflite", vocab_size=256, context_length=256), str(write_tiny_space(tmp_path))
    profiled = profile(None, ProfileOptions(seconds=60, space=space, conditions=conditions))
    limit = 0.5 * sum(row["tg_ms"] for row in profiled["reach"])
    found = search(SearchOptions(limits={"latency_ms": Limit(limit)}, conditions=conditions, space=space))
    assert found["verified"]
    log = read_measurements(device_folder("local") / "measurements.jsonl")
    assert {(r.key.format, r.key.runtime) for r in log} == {("tflite", "ai-edge-litert")}
    assert deploy(found["run"], None, format_name="tflite")["bundle"] == "tflite-dynamic_wi8_afp32"
    rows = bench(found["run"], BenchOptions(seconds=1, recipes=("tflite/fp32",)))["rows"]
    assert {(r["format"], r["recipe"]) for r in rows} == {("tflite", "fp32")}
