"""Spaces as nobody ships them, under any limits, against a look at every architecture by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from estimated_models import MODELS, NAMES, draw_limit
from hypothesis import given, settings
from hypothesis import strategies as st

from merino_edge.errors import InfeasibleError
from merino_edge.search.engine import SearchRequest, search
from merino_edge.search.problem import make_problem
from merino_edge.search.scores import ScoreOptions, score_architecture
from merino_edge.search.space import Space, parse_space
from merino_edge.search.survey import excess


def space(*blocks: dict[str, Any], **changes: Any) -> Space:
    document = {"schema_version": 1, "name": "strange", "vocab_size": 1021, "head_dim": 6}
    return parse_space({**document, **changes, "block": list(blocks)}, "t")


SPACES = {
    "one block, odd vocabularies": space(
        {"width": [6, 30, 1020], "depth": [1, 40], "ffn_ratio": [0.3, 16]},
        vocab_size=[2, 257, 100_003],
        embedding_width=[1, 7, 512],
    ),
    "eight blocks": space({"count": 8, "depth": [1, 7], "ffn_ratio": 2.5}, width=[12, 3000], per_layer_norms=True),
    "very unequal widths": space(
        {"width": [6, 4092], "depth": [3, 1], "ffn_ratio": [4, 1]},
        {"count": 2, "width": [30, 60], "depth": 5, "ffn_ratio": [1, 9]},
        embedding_width=[2048, 3],
        per_layer_norms=True,
    ),
    "single choices": space({"count": 3, "depth": 2, "ffn_ratio": 1.5}, width=[66], embedding_width=66),
    "ratios that round alike": space(
        {"count": 2, "width": [30, 60], "depth": [1, 2], "ffn_ratio": [2, 2.01, 2.04]}, embedding_width=64
    ),
    "many groups": space(
        {"count": [1, 2], "depth": [1, 3], "ffn_ratio": 2},
        vocab_size=[3, 5, 64],
        head_dim=[6, 10],
        width=[30, 60, 90],
        embedding_width=[8, 30],
    ),
}
EVERY: dict[str, tuple[dict[str, np.ndarray], np.ndarray]] = {}
SCORE = ScoreOptions(name="balanced-parameters")
for _name, _space in SPACES.items():
    _problem = make_problem(SearchRequest(_space, score=SCORE, **MODELS))
    _seen: dict[Any, int] = {}
    for _index in range(_space.numbers):
        _a = _space.decode(_index)
        _seen.setdefault((_a.embedding_width, _a.vocab_size, _a.head_dim, *(b.shape for b in _a.blocks)), _index)
    _all = [_space.decode(index) for index in _seen.values()]
    _values = [_problem.values(a) for a in _all]
    _columns = {name: np.array([v[name] for v in _values], np.float64) for name in NAMES}
    EVERY[_name] = _columns, np.array([score_architecture(a, SCORE) for a in _all])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(SPACES)), st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True), st.data())
def test_winner_and_infeasibility_are_those_of_all_architectures(
    which: str, names: list[str], data: st.DataObject
) -> None:
    columns, score = EVERY[which]
    kinds = ("at most", "range", "gap", "beyond")
    limits = {name: draw_limit(data, columns[name], kinds) for name in names}
    over = excess(limits, columns)
    mode = data.draw(st.sampled_from(["auto", "dp"]))
    request = SearchRequest(SPACES[which], score=SCORE, limits=limits, mode=mode, **MODELS)
    if (over > 0).all():
        with pytest.raises(InfeasibleError) as caught:
            search(request)
        details = caught.value.details
        nearest = excess(limits, {name: np.array([details["nearest"]["values"][name]]) for name in names})
        assert details["least_proven"] and details["nearest_proven"]
        assert details["evaluated"] == details["space_size"] == len(score)
        assert nearest[0] == over.min()
        return
    outcome = search(request)
    kept = make_problem(request).values(outcome.winner.architecture)
    assert all(limit.admits(kept[name]) for name, limit in limits.items())
    if mode == "auto":
        assert (outcome.evaluated, outcome.feasible) == (len(score), int((over == 0).sum()))
        assert outcome.winner.score == pytest.approx(float(score[over == 0].max()), rel=1e-12)
