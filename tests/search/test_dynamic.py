"""Dynamic programming over blocks: against the exact search where that is possible."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from merino_edge.errors import InfeasibleError, UsageError
from merino_edge.search.dynamic import search_blocks
from merino_edge.search.engine import Measured, SearchRequest, search
from merino_edge.search.exact import sweep
from merino_edge.search.problem import make_problem
from merino_edge.search.scores import ScoreOptions
from merino_edge.search.space import Space, load_space, parse_space
from merino_edge.units import Limit

DOCUMENT = {"schema_version": 1, "name": "tiny", "vocab_size": [300, 500], "head_dim": 32}
ALIKE = parse_space({**DOCUMENT, "width": [64, 96], "block": [{"count": 3, "depth": [1, 2], "ffn_ratio": [1, 3]}]}, "t")
MIXED = parse_space(
    {
        **DOCUMENT,
        "embedding_width": [64, 80],
        "block": [
            {"count": 2, "width": [64, 96], "depth": [1, 3], "ffn_ratio": [1, 2.5]},
            {"width": [64, 128], "depth": [1], "ffn_ratio": [2, 3]},
        ],
    },
    "t",
)
SCORES = ("balanced-parameters", "parameters", "entropy", "minus-depth")


def request(space: Space, score: str = SCORES[0], **changes: Any) -> SearchRequest:
    return SearchRequest(space, score=ScoreOptions(score), **{"mode": "dp", **changes})


@pytest.mark.parametrize("space", [ALIKE, MIXED], ids=["one width", "own widths"])
def test_a_beam_wider_than_the_space_meets_every_member_with_its_own_columns(space: Space) -> None:
    problem = make_problem(request(space))
    met = {}
    for ends in search_blocks(problem, beam=10**6):
        group = space.groups[int(ends.genes[0, 0])]
        for row, genes in enumerate(ends.genes):
            index = group.offset + group.position(genes[1:].tolist())
            met[index] = (ends.score[row], ends.representative[row], {n: c[row] for n, c in ends.columns.items()})
    assert len(met) == space.size
    for members in sweep(problem):
        for row in range(len(members.score)):
            score, representative, columns = met[int(members.numbers[row])]
            assert (score, representative) == (members.score[row], members.representative[row])
            assert columns == {n: c[row] for n, c in members.columns.items()}


@pytest.mark.parametrize("space", [ALIKE, MIXED], ids=["one width", "own widths"])
@pytest.mark.parametrize("score", ["balanced-parameters", "parameters"])
def test_first_blocks_are_ranked_as_with_the_table_that_is_still_to_come(space: Space, score: str) -> None:
    problem = make_problem(request(space, score))
    best = max(float(ends.score.max()) for ends in search_blocks(problem, beam=6))
    assert best == max(float(members.score.max()) for members in sweep(problem))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    "limits",
    [{}, {"parameters": Limit(140_000)}, {"parameters": Limit(190_000, 130_000)}],
    ids=["free", "one", "range"],
)
def test_it_finds_the_optimum_of_small_spaces(score: str, limits: dict[str, Limit]) -> None:
    for space in (ALIKE, MIXED):
        exact, found = (search(request(space, score, limits=limits, mode=mode)) for mode in ("exact", "dp"))
        assert found.mode == "dp"
        assert found.winner.score == exact.winner.score
        assert all(limit.admits(getattr(found.winner, name)) for name, limit in limits.items())


def test_it_gives_the_same_answer_twice_and_keeps_the_limits_on_the_wide_space() -> None:
    limits = {"parameters": Limit(16e6), "flops": Limit(30e9)}
    first, second = (search(request(load_space("wide"), limits=limits, mode="auto")) for _ in range(2))
    assert first.mode == "dp+evolution"
    assert first.winner == second.winner
    assert first.winner.parameters <= 16e6
    assert first.winner.flops <= 30e9
    assert [c.index for c in first.front] == [c.index for c in second.front]


def test_a_budget_that_nothing_meets_names_the_limit_and_the_nearest() -> None:
    with pytest.raises(InfeasibleError) as caught:
        search(request(load_space("wide"), limits={"parameters": Limit(10_000)}))
    assert caught.value.details["binding"] == "parameters"
    assert caught.value.details["nearest"]["values"]["parameters"] == caught.value.details["least"]
    assert "looked at" not in caught.value.message  # no member can, looked at or not


def test_what_nothing_proves_is_told_of_what_was_looked_at() -> None:
    both = {"parameters": Limit(9_999_616, 9_999_616), "flops": Limit(49_996_103_680, 49_996_103_680)}
    with pytest.raises(InfeasibleError, match="looked at by dp") as caught:  # some have the one, some the other
        search(request(load_space("wide"), limits=both))
    assert "that was found" in caught.value.message


def test_what_was_measured_counts() -> None:
    free = search(request(ALIKE, limits={"parameters": Limit(140_000)})).winner.architecture
    measured = {free.digest: Measured(free, ms={}, memory_bytes=1e12)}
    problem = make_problem(request(ALIKE, measured=measured))
    problem.columns["memory_bytes"] = problem.columns["parameters"]
    values = np.concatenate([ends.columns["memory_bytes"] for ends in search_blocks(problem, beam=10**6)])
    assert (values == 1e12).sum() == len(problem.overrides)


def test_a_score_that_is_no_sum_is_refused() -> None:
    pytest.importorskip("torch")
    with pytest.raises(UsageError, match="dynamic programming cannot use it"):
        search(request(ALIKE, "synflow"))
