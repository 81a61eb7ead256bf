"""What `train` says after its first steps: how long, how much, and whether the search was told otherwise."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from merino_edge.architecture import Architecture, Block
from merino_edge.flows import train as flow
from merino_edge.flows.subject import Subject
from merino_edge.run import create_run


class Heard:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, done: float, text: str | None = None) -> None:
        pass


@pytest.fixture
def reporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MERINO_EDGE_RUNS", str(tmp_path))
    architecture = Architecture((Block(64, 2, 1),), 64, 300)
    subject = Subject("x", architecture, run=create_run("x", "local"))

    def make(told_tokens: int) -> tuple[flow._Reporter, Heard]:
        monkeypatch.setattr(flow, "run_conditions", lambda _: SimpleNamespace(train_tokens=told_tokens))
        heard = Heard()
        return flow._Reporter(heard, heard, subject), heard  # type: ignore[arg-type]

    return make


def facts(step: int, steady: bool = True) -> dict[str, Any]:
    return {
        "stage": "training", "step": step, "steps": 1000, "tokens": step * 256, "loss": 5.0, "tokens_per_s": 12_345.0,
        "seconds_left": 77.0, "mfu": None, "memory_bytes": 3 << 20, "steady": steady,
    }  # fmt: skip


def test_speed_time_memory_and_disk_are_told_once(reporter: Any) -> None:
    report, heard = reporter(256_000)
    for step, steady in ((1, False), (19, True), (20, False), (21, True), (30, True)):
        report(facts(step, steady))
        assert len(heard.notes) == (step > 20)
    for part in ("12,345 tokens/s", "77 s left", "memory", "disk", "free"):
        assert part in heard.notes[0]


def test_budget_far_from_what_the_search_was_told_is_pointed_out(reporter: Any) -> None:
    report, heard = reporter(10_000_000)
    report(facts(20))
    assert "the search was told 10,000,000 training tokens, this training has 256,000" in heard.notes[-1]
