"""Each architecture of a space is counted once, however many counts of its blocks give it."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merino_edge.architecture import Architecture, Block
from merino_edge.errors import InvalidFileError
from merino_edge.search.engine import Measured, SearchRequest, search
from merino_edge.search.overlaps import count_sequences
from merino_edge.search.problem import make_problem
from merino_edge.search.scores import ScoreOptions, score_architecture
from merino_edge.search.space import Space, parse_space
from merino_edge.units import Limit


def space(blocks: list[dict[str, Any]], **changes: Any) -> Space:
    document = {"schema_version": 1, "name": "mine", "vocab_size": 300, "head_dim": 32, "width": [64, 96]}
    merged = {**document, **changes, "block": blocks}
    return parse_space({key: value for key, value in merged.items() if value is not None}, "t")


def some(values: list[Any], most: int) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=most, unique=True)


KINDS = st.lists(
    st.fixed_dictionaries(
        {"count": some([1, 2, 3], 3), "depth": some([1, 2, 3], 2), "ffn_ratio": some([1, 2, 2.01, 2.013, 4], 3)}
    ),
    min_size=1,
    max_size=3,
).filter(lambda kinds: sum(max(kind["count"]) for kind in kinds) <= 5)


@settings(max_examples=60, deadline=None)
@given(KINDS, st.booleans())
def test_a_space_has_as_many_architectures_as_differ(kinds: list[dict[str, Any]], own: bool) -> None:
    changes: dict[str, Any] = {"width": [64, 96, 128]}  # 2.01 gives 128, 192, 257; 2.013 gives 128, 193, 257
    if own:
        changes = {"width": None, "embedding_width": 64, "head_dim": [32, 64]}
        kinds = [{**kind, "width": [64, 96] if i % 2 else [64]} for i, kind in enumerate(kinds)]
    where = space(kinds, **changes)
    if where.numbers > 30_000:
        return
    first: dict[Any, int] = {}
    for index in range(where.numbers):
        first.setdefault(network(where.decode(index)), index)
    assert where.size == len(first)
    repeated = set(range(where.numbers)) - set(first.values())
    assert {index for index in range(where.numbers) if where.is_repeated(index)} == repeated
    assert np.flatnonzero(where.are_repeated(np.arange(where.numbers))).tolist() == sorted(repeated)
    assert sorted(where.sample_indices(where.size, seed=0)) == sorted(first.values())
    for index in range(0, where.numbers, 29):
        architecture = where.decode(index)
        assert where.index_of(architecture) == first[network(architecture)]


def network(a: Architecture) -> Any:
    """Return what an architecture is, in whatever ratios it is written."""
    return a.embedding_width, a.vocab_size, a.head_dim, [block.shape for block in a.blocks].__repr__()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_sequences_are_counted_without_listing_them(rows: list[tuple[int, ...]], seed: int) -> None:
    allowed = np.random.default_rng(seed).random((4, 5)) < 0.5  # (kinds, blocks)
    patterns = Counter(tuple(np.flatnonzero(column).tolist()) for column in allowed.T)
    different = {m for m in itertools.product(range(5), repeat=3) for row in rows if allowed[list(row), list(m)].all()}
    assert count_sequences(rows, patterns) == len(different)


def test_search_sees_each_architecture_once_and_lists_as_many_as_it_should() -> None:
    first = {"count": [1, 2, 3], "depth": [1, 2], "ffn_ratio": [2]}
    second = {"count": [1, 2], "depth": 2, "ffn_ratio": [2, 4]}
    where = space([first, second])
    limits = {"parameters": Limit(200_000)}
    members = {where.decode(index) for index in range(where.numbers)}
    feasible = [a for a in members if a.unique_parameters <= 200_000]
    outcome = search(SearchRequest(where, limits=limits))
    assert where.numbers > outcome.space_size == outcome.evaluated == len(members)
    assert outcome.feasible == len(feasible)
    assert outcome.winner.score == max(score_architecture(a, ScoreOptions()) for a in feasible)
    assert len({c.architecture for c in (outcome.winner, *outcome.runners_up)}) == 11


@pytest.mark.parametrize("mode", ["exact", "dp", "evolution"])
@pytest.mark.parametrize("own", [True, False])
def test_ratios_that_round_to_one_ffn_width_are_one_architecture(mode: str, own: bool) -> None:
    block = {"count": 2, "depth": [1, 2], "ffn_ratio": [1, 1.001, 2, 2.01]}
    changes: dict[str, Any] = {"width": None, "embedding_width": 64} if own else {"width": [64, 128]}
    where = space([{**block, "width": [64, 128]} if own else block], **changes)
    # 64 rounds both pairs of ratios to one FFN width, 128 only the first
    assert where.size == ((2 * 2 + 2 * 3) ** 2 if own else (2 * 2) ** 2 + (2 * 3) ** 2)
    assert where.numbers == ((2 * 8) ** 2 if own else 2 * 8**2)
    outcome = search(SearchRequest(where, mode=mode, score=ScoreOptions(name="balanced-parameters")))
    assert outcome.evaluated <= where.size
    found = [network(c.architecture) for c in (outcome.winner, *outcome.runners_up)]
    assert len(set(found)) == len(found)
    if mode == "exact":
        assert outcome.evaluated == where.size
    again = where.decode(where.numbers - 1)  # 2.01 everywhere, at width 128
    assert where.index_of(again) == where.numbers - 1
    narrow = Architecture(tuple(Block(64, 2.01, 1) for _ in range(2)), 64, 300, 32)
    lowest = where.index_of(narrow)
    assert lowest is not None and where.decode(lowest).blocks == (Block(64, 2, 1), Block(64, 2, 1))
    assert not where.is_repeated(lowest)


def test_a_measurement_of_the_other_spelling_counts() -> None:
    where = space([{"count": 2, "depth": 1, "ffn_ratio": [1, 1.001]}], width=[64])
    other = where.decode(3)
    asked = make_problem(SearchRequest(where, measured={other.digest: Measured(other, {}, memory_bytes=5.0)}))
    assert (where.size, list(asked.measured)) == (1, [0])


def test_kinds_that_a_recipe_makes_alike_are_counted_once() -> None:
    kinds = [{"count": [1, 2], "depth": 1, "ffn_ratio": [2, 1.5]}, {"count": [1, 2], "depth": 1, "ffn_ratio": [2, 2.5]}]
    where = space(kinds).aligned(32).aligned(64)
    assert where.size == len({where.decode(index) for index in range(where.numbers)})


def test_counts_that_overlap_in_too_many_ways_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = {"count": [1, 2, 3, 4, 5, 6], "depth": [1, 2], "ffn_ratio": [1, 2]}
    kinds = [{**kind, "depth": [1, 2 + i]} for i in range(3)]
    monkeypatch.setattr("merino_edge.search.overlaps.MAX_STATES", 3)
    with pytest.raises(InvalidFileError, match="too many to count each architecture once"):
        space(kinds)
