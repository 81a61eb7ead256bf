"""What the study says of a training budget, against the study's own table."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from merino_edge.architecture import Architecture, Block
from merino_edge.search import regime
from merino_edge.search.engine import SearchRequest, search
from merino_edge.search.scores import ScoreOptions
from merino_edge.search.space import load_space, space_names

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

from proxy import judge, table  # noqa: E402

ROWS = table.read_table(BENCH / "results" / "proxy_study.csv")
FIRST = [
    row
    for row in ROWS
    if row["seed"] == 0 and row["lr_factor"] == 1
    if row["init"] == judge.study_init(ROWS) and row["group"] in judge.ONE_WIDTH
]
MODEL = Architecture((Block(384, 2, 2),) * 3, 384, 4096)


def test_the_shipped_numbers_are_those_that_the_table_gives() -> None:
    fitted = judge.expected_loss(FIRST)
    assert {name: fitted[name] for name in regime.LOSS} == pytest.approx(regime.LOSS, abs=2e-6)
    assert fitted["interval_90pct_nats"] == regime.LOSS_INTERVAL
    assert tuple(fitted["tokens"]) == regime.STUDIED_TOKENS
    assert tuple(fitted["decoder_parameters"]) == regime.STUDIED_DECODER_PARAMETERS
    assert tuple(fitted["depth"]) == regime.STUDIED_DEPTH


def test_nine_of_ten_models_of_the_study_lie_in_their_interval() -> None:
    import json

    inside = []
    for row in FIRST:
        expected = regime.expected_loss(Architecture.from_json(json.loads(row["architecture"])), row["tokens"])
        assert expected is not None
        inside.append(expected.low <= row["valid_loss"] <= expected.high)
    assert 0.88 <= sum(inside) / len(inside) <= 0.96


@pytest.mark.parametrize(
    ("architecture", "tokens"),
    [
        (MODEL, 2_000_000),
        (MODEL, 300_000_000),
        (replace(MODEL, vocab_size=16_384), 8_000_000),
        (replace(MODEL, blocks=(Block(384, 2, 1), Block(512, 2, 3))), 8_000_000),
        (Architecture((Block(128, 1, 5),), 128, 4096), 8_000_000),
        (Architecture((Block(384, 2, 13),), 384, 4096), 8_000_000),
    ],
)
def test_no_loss_is_expected_where_the_study_did_not_look(architecture: Architecture, tokens: int) -> None:
    assert regime.expected_loss(MODEL, 8_000_000) is not None
    assert regime.expected_loss(architecture, tokens) is None


@pytest.mark.parametrize("name", space_names())
def test_the_studys_beta_stays_in_the_domain_of_every_shipped_space(name: str) -> None:
    space = load_space(name)
    options = ScoreOptions(beta=regime.study_beta(space))
    assert search(SearchRequest(space, score=options, evaluations=2000)).outside_domain == 0


def test_members_outside_the_domain_are_counted() -> None:
    share = judge.domain()["share_outside"]["0.6"]
    outcome = search(SearchRequest(load_space("poster"), score=ScoreOptions(beta=0.6)))
    assert outcome.outside_domain is not None
    assert outcome.outside_domain / outcome.space_size == pytest.approx(share, abs=1e-3)
    assert search(SearchRequest(load_space("poster"), score=ScoreOptions("flops"))).outside_domain is None
