"""A board without a fan, from the command to a real agent that believes itself on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_boards import HEAT, PI5, write

from merino_edge.flows.conditions import Conditions
from merino_edge.flows.measuring import SUSTAINED, is_sustained, what_changed
from merino_edge.flows.profile import ProfileOptions, profile
from merino_edge.flows.profile_file import read_profile
from merino_edge.flows.search import search
from merino_edge.flows.verify import SearchOptions
from merino_edge.testing import FakeDevice, tiny_architecture, write_tiny_space
from merino_edge.units import Limit

COMMAND = Path(sys.executable).with_name("merino-edge")
THROTTLED = "commands/vcgencmd_get_throttled"


def bench(home: Path, machine: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    """Type `merino-edge bench` for a model of random weights on this machine, which the agent takes for a board."""
    model = {"schema_version": 1, **tiny_architecture().to_json()}
    (home / "model.json").write_text(json.dumps(model))
    own = {f"XDG_{kind}_HOME": str(home / kind) for kind in ("DATA", "CONFIG", "CACHE")}
    own |= {"MERINO_EDGE_RUNS": str(home / "runs"), "MERINO_EDGE_MACHINE": str(machine)}
    argv = [str(COMMAND), "bench", "model.json", "--recipe", "fp32", "--time", "1s", "--json", *words]
    done = subprocess.run(argv, env={**os.environ, **own}, cwd=home, capture_output=True, text=True, timeout=110)
    return done.returncode, json.loads(done.stdout), done.stderr


@pytest.mark.slow
def test_bench_of_a_board_that_stays_hot_measures_its_steady_state_and_labels_it(tmp_path: Path) -> None:
    write(tmp_path / "board", PI5, {HEAT: "84000", THROTTLED: "throttled=0xe0008\n"})
    _, document, said = bench(tmp_path, tmp_path / "board", "--sustained")
    assert [row["test"] for row in document["rows"]] == ["tg", "pp128"]
    for row in document["rows"]:  # what else runs here may still disturb it; heat never does
        assert row["valid"] or "other programs" in row["invalid_reason"]
    assert "heating up to a steady state: 84 C, steady for" in said
    assert "too hot" not in said
    (log,) = (tmp_path / "DATA").rglob("measurements.jsonl")
    kept = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(record["key"]["power_mode"].endswith(SUSTAINED) for record in kept)


def test_bench_ends_with_5_where_nothing_that_was_measured_counts(tmp_path: Path) -> None:
    write(tmp_path / "board", PI5, {THROTTLED: "throttled=0x50005\n"})
    code, document, said = bench(tmp_path, tmp_path / "board")
    assert code == document["error"]["exit_code"] == 5
    assert "too hot" not in said  # a weak supply is not waited for
    assert "use a stronger power supply" in document["error"]["message"]
    assert all(not row["valid"] for row in document["rows"])


class HotDevice(FakeDevice):
    """A fake device that says how it was measured."""

    def measure(self, *arguments: Any, **named: Any) -> Any:
        for result in (results := super().measure(*arguments, **named)):
            result.conditions["state"] = "sustained" if self.sustained else "cold start"
        return results


def test_a_profile_of_the_hot_state_is_searched_with_measurements_of_the_hot_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = HotDevice("local")
    for module in ("profile", "verify"):
        monkeypatch.setattr(f"merino_edge.flows.{module}.opened", lambda entry, ask=None: device)
    space = str(write_tiny_space(tmp_path))
    conditions = Conditions(vocab_size=256, context_length=256)
    profile("local", ProfileOptions(5.0, space, conditions, sustained=True))
    made = read_profile("local")
    assert made is not None
    (recipe,) = made.recipes.values()
    assert is_sustained(recipe.key)
    device.sustained = False
    limits = {"latency_ms": Limit(1e6)}
    found = search(SearchOptions("local", limits, conditions, space, 256, run="hot"))
    assert device.sustained
    assert found["measured"]["tg_ms"] > 0


def test_how_hot_a_board_was_measured_is_no_change_of_the_board() -> None:
    assert what_changed({"power_mode": "ondemand"}, {"power_mode": f"ondemand{SUSTAINED}"}) is None
    assert what_changed({"power_mode": "ondemand"}, {"power_mode": f"performance{SUSTAINED}"}) is not None
