"""Limits that clash, told without listing members, against looking at every member of small spaces."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from estimated_models import MODELS, NAMES
from hypothesis import given, settings
from hypothesis import strategies as st

from merino_edge.errors import InfeasibleError
from merino_edge.search.engine import Measured, SearchRequest, search
from merino_edge.search.exact import survey_space, sweep
from merino_edge.search.layers import families_of, sides_of
from merino_edge.search.nearest import clash
from merino_edge.search.problem import Problem, make_problem
from merino_edge.search.shortfall import Shortfall
from merino_edge.search.space import Space, load_space, parse_space
from merino_edge.search.survey import excess
from merino_edge.units import Limit

WIDE = load_space("wide")


def space(*blocks: dict[str, Any], **changes: Any) -> Space:
    document = {
        "schema_version": 1,
        "name": "mine",
        "vocab_size": [900, 300],
        "head_dim": 32,
        "embedding_width": [96, 32],
    }
    return parse_space({**document, **changes, "block": list(blocks)}, "t")


SPACES = [
    space({"count": 3, "width": [96, 64, 160], "depth": [2, 1], "ffn_ratio": [1, 3]}),
    space(
        {"width": [96, 64, 160], "depth": [2, 1, 4], "ffn_ratio": [3, 1]},
        {"count": 2, "width": [192, 32, 128], "depth": [1, 3], "ffn_ratio": [2]},
        head_dim=[16, 32],
    ),
    space({"width": [96, 64], "depth": [5, 1, 2], "ffn_ratio": [1, 0.5, 4]}, vocab_size=500),
    space({"count": [1, 3], "width": [96, 32, 64], "depth": [4, 1], "ffn_ratio": [1, 2]}, embedding_width=64),
    space({"count": 2, "width": [64, 96], "depth": [1, 2], "ffn_ratio": [1, 2, 1.01, 3, 2.01]}, embedding_width=64),
]


def problem(where: Space, limits: dict[str, Limit], **changes: Any) -> Problem:
    return make_problem(SearchRequest(where, limits=limits, **MODELS, **changes))


EVERY: list[dict[str, Any]] = []
NUMBERS: list[Any] = []
for _space in SPACES:
    _members = list(sweep(problem(_space, {})))
    EVERY.append({name: np.concatenate([m.columns[name] for m in _members]).astype(float) for name in NAMES})
    NUMBERS.append(np.concatenate([m.numbers for m in _members]))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3), st.lists(st.floats(0, 1), min_size=10, max_size=10))
def test_the_least_of_a_weighted_sum_is_that_of_all_members(number: int, drawn: list[float]) -> None:
    limits = {name: Limit(float(np.median(EVERY[number][name])), 1.0) for name in NAMES}
    asked = problem(SPACES[number], limits)
    sides = sides_of(asked)
    rows = np.array([side.scale * EVERY[number][side.name] for side in sides])
    weights = np.array(drawn) / (1.0 + np.abs(rows).max(1))
    least, path = min((f.least(weights) for f in families_of(asked, sides, 8)), key=lambda found: found[0])
    assert least == pytest.approx(float((weights @ rows).min()), rel=1e-9, abs=1e-12)
    member = asked.values(SPACES[number].decode(path.index))
    assert path.rows == pytest.approx(np.array([side.scale * member[side.name] for side in sides]))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 4), st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True), st.data())
def test_what_is_told_of_a_clash_is_true_of_all_members(number: int, names: list[str], data: st.DataObject) -> None:
    limits = {}
    for name in names:
        values = np.unique(EVERY[number][name])
        low, high = sorted(data.draw(st.lists(st.integers(0, len(values) - 1), min_size=2, max_size=2)))
        shape = data.draw(st.sampled_from(["at most", "at least", "range", "beyond", "gap"]))
        upper = 1e15 if shape == "at least" else values[high] if shape == "range" else values[low]
        lower = None if shape in ("at most", "beyond") else float(values[low])
        limits[name] = Limit(float(upper) * (0.9 if shape == "beyond" and low == 0 else 1.0), lower)
        if shape == "gap" and low + 1 < len(values):
            limits[name] = Limit(*(float(values[low] + part * (values[low + 1] - values[low])) for part in (0.9, 0.2)))
    measured = {}
    for index in data.draw(st.lists(st.integers(0, SPACES[number].size - 1), max_size=3)):
        a, factor = SPACES[number].decode(int(NUMBERS[number][index])), data.draw(st.sampled_from([0.5, 0.95, 2.0]))
        ms, peak = (factor * float(EVERY[number][name][index]) for name in ("latency_ms", "memory_bytes"))
        measured[a.digest] = Measured(a, {"tg": ms}, peak)
    asked = problem(SPACES[number], limits, measured=measured)
    found = clash(asked)
    survey, _, expected = survey_space(asked)
    if found is None:
        return  # it may be that something keeps them, or that it cannot be told
    if isinstance(found, int):
        kept = asked.values(SPACES[number].decode(found))
        assert survey.feasible and all(limit.admits(kept[name]) for name, limit in limits.items())
        return
    assert expected is not None and not survey.feasible
    if found.proven:
        assert (found.binding, found.scope) == (expected.binding, expected.scope)
        assert found.least == pytest.approx(expected.least, rel=1e-9) or found.scope == "together"
    nearest, least = [over(limits, asked, told.nearest) for told in (found, expected)]
    assert nearest >= least
    assert nearest == pytest.approx(least, rel=1e-8) or not found.nearest_proven


def over(limits: dict[str, Limit], asked: Problem, index: int) -> float:
    values = asked.values(asked.space.decode(index))
    return float(excess(limits, {name: np.array([values[name]]) for name in limits})[0])


@pytest.mark.parametrize("number", range(3))
def test_limits_that_clash_are_told_apart_from_those_that_do_not(number: int) -> None:
    every = EVERY[number]
    few, much = float(np.quantile(every["parameters"], 0.2)), float(np.quantile(every["flops"], 0.95))
    both = (every["parameters"] <= few) & (every["flops"] >= much)
    most = float(every["flops"][every["parameters"] <= few].max())
    assert not both.any() or most >= much
    clashing = {"parameters": Limit(few), "flops": Limit(1e15, 1.01 * max(most, much))}
    assert isinstance(clash(problem(SPACES[number], clashing)), Shortfall)
    found = clash(problem(SPACES[number], {"parameters": Limit(few), "flops": Limit(1e15, most)}))
    assert not isinstance(found, Shortfall)


def test_a_measured_member_that_keeps_the_limits_leaves_the_answer_to_the_search() -> None:
    where, least = SPACES[0], float(EVERY[0]["latency_ms"].min())
    limits = {"latency_ms": Limit(0.9 * least)}
    assert isinstance(clash(problem(where, limits)), Shortfall)
    a = where.decode(5)
    assert clash(problem(where, limits, measured={a.digest: Measured(a, {"tg": 0.8 * least})})) is None
    slow = clash(problem(where, limits, measured={a.digest: Measured(a, {"tg": 0.95 * least})}))
    assert isinstance(slow, Shortfall)
    assert (slow.nearest, slow.least) == (5, pytest.approx(0.95 * least))


@pytest.mark.alone
@pytest.mark.parametrize("mode", ["dp", "evolution"])
def test_a_clash_in_a_space_beyond_listing_is_proven_at_once(mode: str) -> None:
    limits = {"parameters": Limit(2e6), "flops": Limit(1e15, 60e9)}  # each alone can be kept
    used = time.process_time()
    with pytest.raises(InfeasibleError, match=r"none of 43,486,543,872 architectures of space wide meets") as caught:
        search(SearchRequest(WIDE, limits=limits, mode=mode, **MODELS))
    assert time.process_time() - used < 0.5  # 0.1 on an idle machine
    assert "looked at by" not in caught.value.message
    values = caught.value.details["nearest"]["values"]
    assert max(values["parameters"] / 2e6, 60e9 / values["flops"]) == pytest.approx(1.525056)


def test_the_same_clash_is_told_in_the_same_words() -> None:
    limits = {"latency_ms": Limit(5.0), "parameters": Limit(40e6, 30e6)}
    told = set()
    for _ in range(2):
        with pytest.raises(InfeasibleError) as caught:
            search(SearchRequest(WIDE, limits=limits, **MODELS))
        told.add((caught.value.message, str(caught.value.hint)))
    assert len(told) == 1
    assert "nearest found:" in told.pop()[0]  # not all beginnings were kept, so it is not called the nearest


@pytest.mark.parametrize(
    ("limits", "least_proven", "nearest_proven"),
    [
        ({"latency_ms": Limit(1.0)}, True, True),
        ({"latency_ms": Limit(5.0), "parameters": Limit(40e6, 30e6)}, False, False),
        ({"parameters": Limit(2e6), "flops": Limit(1e15, 60e9)}, True, True),
    ],
)
def test_the_document_says_like_the_message_what_is_proven(
    limits: dict[str, Limit], least_proven: bool, nearest_proven: bool
) -> None:
    with pytest.raises(InfeasibleError) as caught:
        search(SearchRequest(WIDE, limits=limits, **MODELS))
    details, message = caught.value.details, caught.value.message
    assert (details["least_proven"], details["nearest_proven"]) == (least_proven, nearest_proven)
    assert ("was found" in message, "nearest found:" in message) == (not least_proven, not nearest_proven)
    assert (details["limit"], details["lower"]) == (limits[details["binding"]].upper, limits[details["binding"]].lower)


def test_a_space_of_many_families_still_knows_what_no_member_meets_by_itself() -> None:
    counts = list(range(2, 20))
    where = space({"count": counts, "width": [64, 128], "depth": [1, 2], "ffn_ratio": [1]}, embedding_width=64)
    with pytest.raises(InfeasibleError, match="nearest found:") as caught:
        search(SearchRequest(where, limits={"latency_ms": Limit(0.01), "parameters": Limit(1e9)}, **MODELS))
    assert caught.value.details["binding"] == "latency_ms"
