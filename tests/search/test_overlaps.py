"""Each architecture of a space is counted once, however many counts of its blocks give it."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merino_edge.errors import InvalidFileError
from merino_edge.search.engine import SearchRequest, search
from merino_edge.search.overlaps import count_sequences
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
    st.fixed_dictionaries({"count": some([1, 2, 3], 3), "depth": some([1, 2, 3], 2), "ffn_ratio": some([1, 2, 4], 2)}),
    min_size=1,
    max_size=3,
).filter(lambda kinds: sum(max(kind["count"]) for kind in kinds) <= 5)


@settings(max_examples=60, deadline=None)
@given(KINDS, st.booleans())
def test_a_space_has_as_many_architectures_as_differ(kinds: list[dict[str, Any]], own: bool) -> None:
    changes: dict[str, Any] = {"width": [64]}
    if own:
        changes = {"width": None, "embedding_width": 64, "head_dim": [32, 64]}
        kinds = [{**kind, "width": [64, 96] if i % 2 else [64]} for i, kind in enumerate(kinds)]
    where = space(kinds, **changes)
    if where.numbers > 30_000:
        return
    first: dict[Any, int] = {}
    for index in range(where.numbers):
        first.setdefault(where.decode(index), index)
    assert where.size == len(first)
    repeated = set(range(where.numbers)) - set(first.values())
    assert {index for index in range(where.numbers) if where.is_repeated(index)} == repeated
    assert sorted(where.sample_indices(where.size, seed=0)) == sorted(first.values())
    assert all(where.index_of(architecture) == index for architecture, index in list(first.items())[::29])


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
