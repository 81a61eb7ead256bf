"""Exact search by classes, against looking at every member, and where no one could."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from estimated_models import MODELS, NAMES, draw_limit
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from merino_edge.errors import InfeasibleError, UsageError
from merino_edge.search import engine, multisets
from merino_edge.search.class_sweep import sweep_classes
from merino_edge.search.classes import class_members
from merino_edge.search.engine import Measured, SearchOutcome, SearchRequest, search
from merino_edge.search.exact import sweep
from merino_edge.search.multisets import Classes
from merino_edge.search.problem import make_problem
from merino_edge.search.scores import PLAIN, ScoreOptions
from merino_edge.search.space import Space, load_space, parse_space
from merino_edge.units import Limit

FREE = load_space("free").with_embedding_skip()
BALANCED = ScoreOptions(name="balanced-parameters")


def space(*blocks: dict[str, Any], **changes: Any) -> Space:
    document = {"schema_version": 1, "name": "mine", "vocab_size": 300, "head_dim": 32, "width": [96, 64]}
    return parse_space({**document, **changes, "block": list(blocks)}, "t")


def some(values: list[Any], most: int) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=most, unique=True)


KINDS = st.fixed_dictionaries(
    {"count": some([1, 2, 3, 4], 3), "depth": some([1, 2, 3], 2), "ffn_ratio": some([1, 2, 2.01, 2.013, 4], 3)}
)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Small spaces of one width; a kind may come again after another, and kinds may overlap."""
    kinds = draw(st.lists(KINDS, min_size=1, max_size=3))
    kinds += [kinds[0]] * draw(st.integers(0, 1))
    assume(sum(max(kind["count"]) for kind in kinds) <= 9)
    where = space(
        *kinds,
        width=draw(some([64, 96, 128], 2)),  # 2.01 gives 128, 192, 257; 2.013 gives 128, 193, 257
        vocab_size=draw(some([300, 500], 2)),
        head_dim=draw(st.sampled_from([32, [32, 16]])),
        embedding_width=draw(st.sampled_from(["width", 64, [96, 64]])),
        per_layer_norms=draw(st.booleans()),
    )
    assume(where.numbers <= 20_000)
    return where


@contextmanager
def at_once(members: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "AT_ONCE", members)
        yield


def answer(request: SearchRequest) -> dict[str, Any]:
    """Return all that a search says, times aside."""
    try:
        outcome = search(request)
    except InfeasibleError as error:
        return {"message": error.message, "hint": error.hint, **error.details}
    return {field.name: getattr(outcome, field.name) for field in fields(SearchOutcome) if field.name != "seconds"}


SCORES = st.sampled_from([*(ScoreOptions(name=name) for name in PLAIN), *(ScoreOptions(beta=b) for b in (0.1, 0.9))])


@settings(max_examples=250, deadline=None)
@given(spaces(), SCORES, st.lists(st.sampled_from(NAMES), max_size=3, unique=True), st.data())
def test_classes_give_the_answer_of_all_members(
    where: Space, score: ScoreOptions, names: list[str], data: st.DataObject
) -> None:
    bare = make_problem(SearchRequest(where, score=score, **MODELS))
    chunks = [members.columns for members in sweep(bare)]
    kinds = ("at most", "at most", "range", "gap", "beyond")
    limits = {name: draw_limit(data, np.concatenate([columns[name] for columns in chunks]), kinds) for name in names}
    measured = {}
    for a in where.sample(data.draw(st.integers(0, 4)), seed=data.draw(st.integers(0, 99))):
        factor = data.draw(st.sampled_from([0.5, 0.97, 2.0]))
        values = bare.values(a)
        measured[a.digest] = Measured(a, {"tg": factor * values["latency_ms"]}, factor * values["memory_bytes"])
    request = SearchRequest(where, score=score, limits=limits, measured=measured, **MODELS)
    with at_once(10**9):
        expected = answer(request)
    with at_once(-1):
        assert answer(request) == expected


@settings(max_examples=150, deadline=None)
@given(spaces())
def test_every_architecture_is_of_one_class(where: Space) -> None:
    classes = Classes(where)
    for group in where.groups:
        index, counts, listed = classes.of(group)
        assert len(set(index.tolist())) == len(index)
        for i, count, shown in zip(index.tolist(), counts.tolist(), listed.tolist(), strict=True):
            members = [m for m in class_members(where, i) if not where.is_repeated(m)]
            assert (i in members, len(members)) == (shown, count)
            assert all(i <= m for m in members)
    assert sum(int(classes.of(group)[1].sum()) for group in where.groups) == where.size


@pytest.mark.parametrize("count", [4, 12])
def test_multisets_and_their_orders(count: int) -> None:
    counted = Counter(tuple(sorted(some)) for some in itertools.product(range(3), repeat=min(count, 8)))
    last, _ = multisets.multisets(3, min(count, 8))
    _, orders = multisets._orders(3, min(count, 8))
    rows = sorted(counted, key=lambda multiset: multiset[::-1])
    assert last.tolist() == [multiset[-1] for multiset in rows]
    assert orders.tolist() == [counted[multiset] for multiset in rows]
    without = multisets._without(3, min(count, 8))
    fewer = sorted({row[1:] for row in rows}, key=lambda multiset: multiset[::-1])
    for row, multiset in enumerate(rows):
        for option in range(3):
            left = list(multiset)
            if option in left:
                left.remove(option)
            assert without[row, option] == (fewer.index(tuple(left)) if option in multiset else -1)


def just_under_the_poster() -> SearchRequest:
    """A vocabulary of 50,257 and one width, 448, in 131.4 GFLOPs less those of the head."""
    where = load_space("free", vocab_size=50_257).with_embedding_skip()
    narrow = parse_space(
        {
            "schema_version": 1,
            "name": "narrow",
            "vocab_size": 50_257,
            "width": 448,
            "embedding_skip": where.embedding_skip,
            "block": [{"count": list(range(2, 17)), "depth": [1, 2], "ffn_ratio": [2, 4]}],
        },
        "t",
    )
    head = 2 * 1024 * 50_257 * 448
    return SearchRequest(narrow, score=BALANCED, limits={"flops": Limit(131.4e9 - head)})


def test_what_dynamic_programming_misses_is_found() -> None:
    request = just_under_the_poster()
    outcome = search(request)
    assert outcome.mode == "exact"
    assert outcome.evaluated == request.space.size == sum(4**count for count in range(2, 17))
    winner = outcome.winner.architecture
    assert Counter((block.width, block.ffn_ratio, block.depth) for block in winner.blocks) == {
        (448, 2, 1): 2,
        (448, 4, 1): 11,
    }
    assert outcome.winner.class_size == math.comb(13, 2)
    by_blocks = search(SearchRequest(request.space, score=BALANCED, limits=request.limits, mode="dp"))
    assert by_blocks.mode == "dp"
    assert by_blocks.winner.score < outcome.winner.score


@pytest.mark.alone
def test_the_free_space_is_searched_exactly_at_once() -> None:
    limits = {"latency_ms": Limit(40.0), "memory_bytes": Limit(3e8)}
    used = time.process_time()
    outcome = search(SearchRequest(FREE, score=BALANCED, limits=limits, mode="exact", **MODELS))
    assert time.process_time() - used < 0.8  # 0.08 on an idle machine
    assert (outcome.mode, outcome.evaluated) == ("exact", 74_446_099_728)
    assert 0 < outcome.feasible < outcome.evaluated
    everything = search(SearchRequest(FREE, score=BALANCED, limits={"flops": Limit(1e15)}, **MODELS))
    assert everything.feasible == everything.evaluated == FREE.size


@pytest.mark.parametrize("most", [30, 31, 40])
def test_members_are_counted_beyond_what_floats_and_machine_words_hold(most: int) -> None:
    where = space({"count": [3, most], "depth": [1, 2], "ffn_ratio": [1, 2]}, width=[64, 96])
    assert where.size == 2 * (4**3 + 4**most) > 2**53
    request = SearchRequest(where, score=ScoreOptions(name="entropy", beta=0.2), limits={"parameters": Limit(400_000)})
    problem = make_problem(request)
    assert problem.classes.are_few
    outcome = search(request)
    assert outcome.mode == "exact"
    assert outcome.evaluated == where.size
    kept = zero = 0
    for members in sweep_classes(problem):
        for row, number in enumerate(members.numbers.tolist()):
            blocks = where.decode(number).blocks
            orders = math.factorial(len(blocks)) // math.prod(map(math.factorial, Counter(blocks).values()))
            kept += orders * bool(members.columns["parameters"][row] <= 400_000)
            zero += orders * bool(members.score[row] == 0)
    assert outcome.feasible == kept > 0
    assert outcome.outside_domain == zero > 2**53
    listed = [outcome.winner, *outcome.runners_up]
    assert all(where.index_of(c.architecture) == c.index for c in listed)
    assert len({c.index for c in listed}) == 11


def test_a_measurement_stands_for_its_whole_class_however_large() -> None:
    first = search(SearchRequest(FREE, score=BALANCED, limits={"latency_ms": Limit(40.0)}, **MODELS))
    a = FREE.decode(class_members(FREE, first.runners_up[3].index)[-1])
    measured = {a.digest: Measured(a, {"tg": 41.0})}
    again = search(SearchRequest(FREE, score=BALANCED, limits={"latency_ms": Limit(40.0)}, measured=measured, **MODELS))
    assert again.feasible == first.feasible - first.runners_up[3].class_size
    assert first.runners_up[3].index not in {c.index for c in again.runners_up}


def test_widths_where_other_blocks_are_alike_are_counted_each_for_itself() -> None:
    kinds = {"count": [2, 3], "depth": 1, "ffn_ratio": [1, 2]}, {"count": [2, 3], "depth": 1, "ffn_ratio": [1, 2.01]}
    where = space(*kinds, width=[64, 128])  # 2.01 rounds to 2 at 64 alone, and 1 is in both kinds
    request = SearchRequest(where, score=BALANCED, limits={"parameters": Limit(300_000)})
    with at_once(10**9):
        expected = answer(request)
    with at_once(-1):
        assert answer(request) == expected
    assert expected["evaluated"] == where.size < where.numbers


def test_the_searches_of_one_space_count_its_classes_once() -> None:
    kind = {"count": [1, 2, 3], "depth": [1, 2], "ffn_ratio": [1, 2]}
    where = space(kind, kind)
    first = make_problem(SearchRequest(where)).classes
    assert make_problem(SearchRequest(where, score=BALANCED)).classes is first
    assert make_problem(SearchRequest(replace(where))).classes is not first


def test_counts_that_overlap_in_too_many_ways_are_not_counted_by_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = {"count": [6, 7], "depth": [1, 2], "ffn_ratio": [1, 2]}
    where = space(kind, {**kind, "depth": [1, 3]})
    assert make_problem(SearchRequest(where)).classes.are_few
    monkeypatch.setattr(multisets, "MAX_STEPS", 1_000)
    where = replace(where)  # what was counted of a space is kept
    assert not make_problem(SearchRequest(where)).classes.are_few
    assert where.numbers > 10**8
    assert search(SearchRequest(where, score=BALANCED, limits={"parameters": Limit(900_000)})).mode == "dp+evolution"
    with pytest.raises(UsageError, match="takes up to 100,000,000"):
        search(SearchRequest(where, score=BALANCED, mode="exact"))
