"""The commands on a page are commands: each is read by its own parser, and means what the run says."""

from __future__ import annotations

import importlib
import json
import shlex
from pathlib import Path

import click
import pytest
from stages import Ring, page_of  # type: ignore[import-not-found]

from merino_edge.flows.conditions import DEFAULT_SPACE
from merino_edge.flows.report_commands import LIMIT_FLAGS, typed
from merino_edge.units import parse_bytes, parse_count, parse_energy_mj, parse_limit, parse_ms

PARSERS = {
    "latency_ms": parse_ms,
    "memory_bytes": parse_bytes,
    "file_bytes": parse_bytes,
    "parameters": parse_count,
    "flops": parse_count,
    "energy_mj": parse_energy_mj,
}
VALUES = {
    "latency_ms": (50.0, 0.31, 0.0004, 1234.5, 3.6e6, 1 / 3),
    "memory_bytes": (130e6, 1, 1023, 48 * 2**20, 123456789),
    "file_bytes": (30e6, 7, 2**31),
    "parameters": (61e6, 50_400_000, 1, 999, 1_000_001),
    "flops": (110e9, 7516192768, 1e12),
    "energy_mj": (30.0, 0.2, 0.0015, 2500.0),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in VALUES.items() for value in values])
def test_a_limit_is_typed_so_that_it_means_the_same(name: str, value: float) -> None:
    text = typed(value, LIMIT_FLAGS[name][1])
    assert parse_limit(text, PARSERS[name]).upper == pytest.approx(value, rel=1e-12)


def parsed(line: str) -> dict[str, object]:
    """Parse one line with the command's own parser."""
    words = shlex.split(line)
    assert words[0] == "merino-edge"
    command: click.Command = importlib.import_module(f"merino_edge.cli.{words[1]}").command
    return dict(command.make_context(words[1], words[2:]).params)


@pytest.mark.timeout(300)
def test_every_command_of_a_page_can_be_typed(ring: Ring, tmp_path: Path) -> None:
    folder = ring.stage("benched", tmp_path)
    searched = json.loads((folder / "search.json").read_text())
    commands = page_of(folder).data["commands"]
    names = [shlex.split(line)[1] for line in commands]
    assert names == ["search", "train", "export", "export", "export", "deploy", "bench", "report"]
    wishes = [parsed(line) for line in commands]
    search, train, *exports, _, bench, _ = wishes
    assert search["latency"].upper == pytest.approx(searched["limits"]["latency_ms"]["upper"])  # type: ignore[attr-defined]
    assert search["memory"].upper == pytest.approx(searched["limits"]["memory_bytes"]["upper"], abs=1)  # type: ignore[attr-defined]
    assert (search["vocab"], search["context"], search["space"]) == (300, 256, "tiny")
    assert (search["run"], search["device"], bench["devices"]) == ("ring", "local", ("local",))
    assert (train["steps"], train["context_length"], train["learning_rate"]) == (40, 64, 1e-3)
    manifests = [json.loads(path.read_text()) for path in sorted(folder.glob("export/*/manifest.json"))]
    assert [e["recipe"] for e in exports] == [m["recipe"] for m in manifests]


@pytest.mark.parametrize(("space", "told"), [(DEFAULT_SPACE, ""), ("poster", "--space poster")])
def test_the_space_is_named_where_it_is_not_the_default(space: str, told: str, ring: Ring, tmp_path: Path) -> None:
    folder = ring.stage("searched", tmp_path)
    record = json.loads((folder / "search.json").read_text())
    (folder / "search.json").write_text(json.dumps({**record, "space": space}))
    command = page_of(folder).data["commands"][0]
    assert ("--space" in command, told in command) == (bool(told), True)
    assert parsed(command)["space"] == (space if told else None)


@pytest.mark.parametrize(
    ("source", "told"),
    [("Python 3.11 documentation", False), ("wikitext2", False), ("python.txt", True), ("my texts", True)],
)
def test_the_text_of_a_training_is_named_unless_nobody_named_it(
    source: str, told: bool, ring: Ring, tmp_path: Path
) -> None:
    folder = ring.stage("trained", tmp_path)
    record = json.loads((folder / "checkpoint" / "training.json").read_text())
    record["data"]["source"] = source
    (folder / "checkpoint" / "training.json").write_text(json.dumps(record))
    (train,) = (command for command in page_of(folder).data["commands"] if command.startswith("merino-edge train"))
    assert ("--data" in train) == told
