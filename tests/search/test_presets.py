"""The shipped presets are what their own command finds."""

from __future__ import annotations

from pathlib import Path

import pytest

import merino_edge.search
from merino_edge.architecture import Architecture
from merino_edge.files import read_json
from merino_edge.search.cost import count_flops
from merino_edge.search.engine import SearchRequest, search
from merino_edge.search.scores import ScoreOptions
from merino_edge.search.space import load_space
from merino_edge.units import parse_count, parse_limit

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
def test_a_preset_is_what_the_command_written_in_it_finds(name: str) -> None:
    document = read_json(FOLDER / f"{name}.json")
    words = document["command"].split()
    flags = dict(zip(words[2::2], words[3::2], strict=True))
    outcome = search(
        SearchRequest(
            load_space(flags["--space"], int(flags["--vocab"])),
            score=ScoreOptions(name=flags["--score"]),
            limits={
                "parameters": parse_limit(flags["--parameters"], parse_count),
                "flops": parse_limit(flags["--flops"], parse_count),
            },
        )
    )
    assert outcome.winner.architecture == Architecture.from_json(document["architecture"])
    assert outcome.winner.score == document["score"]["value"]
