"""Why nothing in a space keeps the limits, by classes, against looking at every member."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np
import pytest
from estimated_models import MODELS, NAMES
from hypothesis import given, settings
from hypothesis import strategies as st

from merino_edge.errors import InfeasibleError
from merino_edge.search.class_sweep import class_shortfall
from merino_edge.search.engine import Measured, SearchRequest, search
from merino_edge.search.exact import survey_space, sweep
from merino_edge.search.multisets import count_classes
from merino_edge.search.problem import Problem, make_problem
from merino_edge.search.space import Space, load_space, parse_space
from merino_edge.units import Limit, parse_bytes, parse_count

FREE = load_space("free")
TEN_BLOCKS = {
    "schema_version": 1,
    "name": "ten",
    "vocab_size": 16_384,
    "block": [{"count": [2, 3, 4, 5, 6, 7, 8, 9, 10], "depth": [1, 2], "ffn_ratio": [2, 4]}],
}


def space(*blocks: dict[str, Any], **changes: Any) -> Space:
    document = {"schema_version": 1, "name": "mine", "vocab_size": [300, 500], "head_dim": 32, "width": [96, 64, 160]}
    return parse_space({**document, **changes, "block": list(blocks)}, "t")


SPACES = [
    space({"count": [2, 3], "depth": [2, 1], "ffn_ratio": [1, 3]}),
    space(
        {"count": 2, "depth": [1, 3], "ffn_ratio": [1]},
        {"depth": 2, "ffn_ratio": [2, 1.5]},
        {"count": 2, "depth": [1, 3], "ffn_ratio": [1]},
        embedding_width=[128, 64],
        head_dim=[16, 32],
    ),
    space({"count": [1, 2], "depth": 2, "ffn_ratio": 2}, {"count": [1, 2], "depth": 2, "ffn_ratio": [4, 2]}),
    space({"count": 3, "depth": [2, 1], "ffn_ratio": [3, 1, 1.01, 3.01]}),  # which round alike at 64 and 96
]


def problem(where: Space, limits: dict[str, Limit], **changes: Any) -> Problem:
    return make_problem(SearchRequest(where, limits=limits, **MODELS, **changes))


@pytest.fixture(scope="module")
def every() -> list[dict[str, np.ndarray]]:
    """All members' columns, by space."""
    found = []
    for where in SPACES:
        columns = [members.columns for members in sweep(problem(where, {}))]
        found.append({name: np.concatenate([c[name] for c in columns]) for name in NAMES})
    return found


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 3), st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True), st.data())
def test_classes_tell_what_all_members_tell(every: Any, number: int, names: list[str], data: st.DataObject) -> None:
    limits = {}
    for name in names:
        values = np.unique(every[number][name])
        low, high = sorted(data.draw(st.lists(st.integers(0, len(values) - 2), min_size=2, max_size=2)))
        between = float(values[low]) + 0.3 * float(values[low + 1] - values[low])
        shape = data.draw(st.sampled_from(["at most", "gap", "range"]))
        top = between + 0.1 * float(values[low + 1] - values[low]) if shape == "gap" else float(values[high]) + between
        limits[name] = Limit(between) if shape == "at most" else Limit(top, between)
    measured = {}
    for a in SPACES[number].sample(data.draw(st.integers(0, 3)), seed=data.draw(st.integers(0, 99))):
        factor = data.draw(st.sampled_from([0.5, 0.97, 2.0]))
        values = problem(SPACES[number], limits).values(a)
        measured[a.digest] = Measured(a, {"tg": factor * values["latency_ms"]}, factor * values["memory_bytes"])
    asked = problem(SPACES[number], limits, measured=measured)
    survey, _, expected = survey_space(asked)
    found = class_shortfall(asked)
    assert (found is None) == (survey.feasible > 0)
    assert found == expected


def test_classes_are_those_of_the_sweep() -> None:
    for where in (SPACES[0], SPACES[1], SPACES[3]):
        marked = sum(int(members.representative.sum()) for members in sweep(problem(where, {})))
        assert sum(map(count_classes, where.groups)) == marked
    assert sum(map(count_classes, FREE.groups)) == 62_920


def test_a_measured_member_is_judged_by_its_measurement() -> None:
    where = SPACES[0]
    least = min(members.columns["latency_ms"].min() for members in sweep(problem(where, {})))
    limits = {"latency_ms": Limit(float(least))}
    assert class_shortfall(problem(where, limits)) is None
    slow = problem(where, limits)
    nearest = next(
        i for m in sweep(slow) for i, ms in zip(m.numbers, m.columns["latency_ms"], strict=True) if ms == least
    )
    a = where.decode(int(nearest))
    slow = problem(where, limits, measured={a.digest: Measured(a, {"tg": 99.0})})
    _, _, expected = survey_space(slow)
    assert class_shortfall(slow) == expected


def test_a_class_that_is_a_measured_one_once_more_is_judged_by_its_measurement() -> None:
    where = SPACES[2]  # "r2 | r4 r2" and "r2 r2 | r4" are of two groups, and the second of them is in both
    a = where.sample(1, seed=3)[0]
    values = problem(where, {}).values(a)
    ms = values["latency_ms"]
    limits = {"latency_ms": Limit(1.0013 * ms, 1.001 * ms)}
    asked = problem(where, limits, measured={a.digest: Measured(a, {"tg": 0.5 * ms})})
    _, _, expected = survey_space(asked)
    assert expected is not None
    assert expected.least > ms
    assert class_shortfall(asked) == expected


@pytest.mark.alone
@pytest.mark.parametrize(
    "limits",
    [
        {"parameters": Limit(10_000_002, 10_000_001)},
        {"latency_ms": Limit(20.0), "parameters": Limit(80e6, 60e6)},
        {
            "latency_ms": Limit(20.0),
            "parameters": Limit(80e6, 60e6),
            "flops": Limit(1e11, 9e10),
            "memory_bytes": Limit(2e8),
        },
    ],
    ids=["a gap inside a range", "limits that clash", "four limits"],
)
def test_what_no_member_of_a_large_space_meets_is_answered_at_once(limits: dict[str, Limit]) -> None:
    assert problem(FREE, limits).classes.are_few
    used = time.process_time()
    with pytest.raises(InfeasibleError, match=r"none of 74,446,099,728 architectures") as caught:
        search(SearchRequest(FREE, limits=limits, **MODELS))
    assert time.process_time() - used < 0.5  # 0.1 on an idle machine
    assert caught.value.details["evaluated"] == FREE.size


def test_where_no_one_limit_could_be_relaxed_alone_the_hint_names_all_that_the_nearest_passes() -> None:
    limits = {
        "latency_ms": Limit(20.0),
        "parameters": Limit(80e6, 60e6),
        "memory_bytes": Limit(2e8),
        "flops": Limit(1e11, 9e10),
        "file_bytes": Limit(1e8),
    }
    with pytest.raises(InfeasibleError, match="no limit relaxed by itself would do") as caught:
        search(SearchRequest(FREE, limits=limits, **MODELS))
    passed = {n for n, limit in limits.items() if not limit.admits(caught.value.details["nearest"]["values"][n])}
    assert caught.value.details["binding"] in passed
    assert all(f"{name} " in str(caught.value.hint) for name in passed)
    assert "file_bytes" not in str(caught.value.hint)


@pytest.mark.parametrize("name", ["parameters", "file_bytes"])
def test_the_limit_that_the_hint_names_for_a_narrow_range_is_met(name: str) -> None:
    with pytest.raises(InfeasibleError) as caught:
        search(SearchRequest(FREE, limits={name: Limit(10_000_002, 10_000_001)}, **MODELS))
    found = re.search(r"(down|up) to (\d+B?)", str(caught.value.hint))
    assert found is not None
    value = (parse_bytes if name == "file_bytes" else parse_count)(found[2])
    wider = Limit(10_000_002, value) if found[1] == "down" else Limit(value, 10_000_001)
    assert class_shortfall(problem(FREE, {name: wider})) is None


@pytest.mark.alone
def test_many_measured_members_of_large_classes_cost_no_time() -> None:
    where = parse_space(
        {**TEN_BLOCKS, "width": [256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960, 1024]}, "t"
    )
    measured = {a.digest: Measured(a, {"tg": 40.0}, 2e8) for a in where.sample(30, seed=0)}
    used = time.process_time()
    asked = problem(where, {"latency_ms": Limit(1.0)}, measured=measured)
    assert class_shortfall(asked) is not None
    assert time.process_time() - used < 1.5  # 0.2 on an idle machine
    assert len(asked.overrides) > 100_000
    assert all(asked.space.decode(index).depth <= 20 for index in list(asked.overrides)[::20_000])
