"""What comes nearest to a range, by halves, against looking at every member of small spaces."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from estimated_models import MODELS, NAMES
from hypothesis import given, settings
from hypothesis import strategies as st

from merino_edge.errors import InfeasibleError
from merino_edge.search.engine import Measured, SearchRequest, search
from merino_edge.search.exact import sweep
from merino_edge.search.halves import Nearest, nearest_to
from merino_edge.search.layers import Side, families_of
from merino_edge.search.problem import make_problem
from merino_edge.search.space import Space, load_space, parse_space
from merino_edge.units import Limit

BETWEEN = {"parameters": Limit(10_000_002, 10_000_001)}


def space(*blocks: dict[str, Any], **changes: Any) -> Space:
    document = {"schema_version": 1, "name": "mine", "vocab_size": [900, 300, 77], "head_dim": 32}
    return parse_space({**document, "embedding_width": [96, 32], **changes, "block": list(blocks)}, "t")


OWN = {"count": 3, "width": [96, 64, 160], "depth": [2, 1], "ffn_ratio": [1, 3]}
SPACES = {
    "widths of their own": space(OWN),
    "one block": space({**OWN, "count": 1}, head_dim=[16, 32]),
    "norms for each layer": space({**OWN, "count": 2}, {"width": [32, 192], "depth": [5, 1], "ffn_ratio": 0.7}),
    "as many blocks as pay": space({**OWN, "count": [1, 2, 3]}, per_layer_norms=True),
    "one width": space({"count": 4, "depth": [3, 1], "ffn_ratio": [1, 2, 4]}, width=[64, 96, 128]),
}
EVERY: dict[str, dict[str, np.ndarray]] = {}
for _name, _space in SPACES.items():
    _columns = [members.columns for members in sweep(make_problem(SearchRequest(_space, **MODELS)))]
    EVERY[_name] = {name: np.unique(np.concatenate([c[name] for c in _columns]).astype(float)) for name in NAMES}


def nearest(where: Space, name: str, limit: Limit) -> tuple[Nearest, float]:
    """Return what halves find, and the value of the member that they name."""
    asked = make_problem(SearchRequest(where, limits={name: limit}, **MODELS))
    families = families_of(asked, [Side(name, 1.0, math.inf)], 50)
    found = nearest_to(limit, families)
    assert found.choice is not None
    number, *choice = found.choice
    path = families[number].path(*choice)  # type: ignore[arg-type]
    return found, asked.values(where.decode(path.index))[name]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(SPACES)), st.sampled_from(NAMES), st.floats(0, 1), st.floats(0.01, 0.98), st.floats(0, 1))
def test_the_nearest_to_a_range_is_that_of_all_members(
    which: str, name: str, place: float, begin: float, share: float
) -> None:
    values = EVERY[which][name]
    low = int(place * (len(values) - 2))
    width = values[low + 1] - values[low]
    lower = float(values[low] + begin * width)
    limit = Limit(lower + share * (0.99 - begin) * float(width), lower)
    found, value = nearest(SPACES[which], name, limit)
    least = min(found.share(float(value)) for value in values[low : low + 2])
    assert found.settled
    assert found.excess == pytest.approx(least, rel=1e-6, abs=1e-12)
    assert found.share(value) == pytest.approx(least, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("which", SPACES)
@pytest.mark.parametrize("name", NAMES)
def test_a_range_of_one_value_is_held_by_whom_has_it(which: str, name: str) -> None:
    for value in EVERY[which][name][::97].tolist():
        found, held = nearest(SPACES[which], name, Limit(value, value))
        assert found.held and held == pytest.approx(value, rel=1e-12)


def test_with_too_much_to_look_up_the_nearest_is_only_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merino_edge.search.halves.MOST", 200)
    monkeypatch.setattr("merino_edge.search.halves.FEW", 100)
    monkeypatch.setattr("merino_edge.search.reach.ENOUGH", 0)
    which, name = "widths of their own", "latency_ms"
    values = EVERY[which][name]
    middle = len(values) // 2
    limit = Limit(
        float(values[middle] * 0.1 + values[middle + 1] * 0.9), float(values[middle] * 0.9 + values[middle + 1] * 0.1)
    )
    found, value = nearest(SPACES[which], name, limit)
    assert not found.settled and 0 < found.seen < SPACES[which].size
    assert found.excess == pytest.approx(found.share(value)) and value in values
    for size, words in (
        (0, r"looked at by halves, of 10,368\).*was found"),
        (500_000, r"none of 10,368 .*can be reached"),
    ):
        monkeypatch.setattr("merino_edge.search.engine.AT_ONCE", size)
        mode = "auto" if size else "evolution"
        with pytest.raises(InfeasibleError, match=words) as caught:
            search(SearchRequest(SPACES[which], limits={name: limit}, mode=mode, **MODELS))
        assert caught.value.details["least_proven"] is caught.value.details["nearest_proven"] is bool(size)


@pytest.mark.alone
@pytest.mark.parametrize("more", [{}, {"latency_ms": Limit(200.0)}], ids=["alone", "with a limit that holds"])
def test_a_gap_between_billions_of_members_is_proven_at_once(more: dict[str, Limit]) -> None:
    wide = load_space("wide")
    measured = {a.digest: Measured(a, {"tg": 40.0}, 2e8) for a in wide.sample(20, seed=0)}
    for known in ({}, measured):
        used = time.process_time()
        with pytest.raises(
            InfeasibleError, match=r"none of 43,486,543,872 .* that can be reached is 9999616; nearest:"
        ):
            search(SearchRequest(wide, limits={**BETWEEN, **more}, measured=known, **MODELS))
        assert time.process_time() - used < 0.5  # 0.1 on an idle machine


def test_a_member_that_only_halves_find_is_the_answer_of_the_search() -> None:
    limits = {"file_bytes": Limit(20_000_000, 20_000_000)}
    found = search(SearchRequest(load_space("wide"), limits=limits, mode="evolution", evaluations=500, **MODELS))
    assert found.winner.file_bytes == 20_000_000
    assert (found.feasible, found.evaluated) == (1, 501)
    assert found.front == (found.winner,)
