"""The shipped presets are what their own command finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import merino_edge.search
from merino_edge.architecture import Architecture
from merino_edge.cli.main import main
from merino_edge.files import read_json
from merino_edge.search.cost import count_flops

FOLDER = Path(merino_edge.search.__file__).parent / "presets"
POSTER_FLOPS = {"merino-52m": 60e9, "merino-61m": 110e9, "merino-64m": 160e9}


def test_the_presets_are_those_of_the_posters_rows() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(POSTER_FLOPS)


@pytest.mark.parametrize("name", POSTER_FLOPS)
def test_a_preset_keeps_the_budget_in_its_name(name: str) -> None:
    architecture = Architecture.from_json(read_json(FOLDER / f"{name}.json")["architecture"])
    millions = float(name.removeprefix("merino-").removesuffix("m"))
    assert architecture.vocab_size == 50_257
    assert abs(architecture.unique_parameters / 1e6 / millions - 1) <= 0.03
    assert count_flops(architecture) <= POSTER_FLOPS[name]


@pytest.mark.parametrize("name", POSTER_FLOPS)
def test_a_preset_is_what_the_command_written_in_it_finds(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = read_json(FOLDER / f"{name}.json")
    with pytest.raises(SystemExit) as ended:
        main([*document["command"].split()[1:], "--device", "pi4", "--no-verify", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert not ended.value.code
    assert found["architecture"] == document["architecture"]
    assert found["score"] == document["score"]["value"]
