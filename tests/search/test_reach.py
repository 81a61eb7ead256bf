"""What a space can reach is known without looking at its members."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from merino_edge.device.board import load_board
from merino_edge.errors import InfeasibleError
from merino_edge.search.engine import SearchRequest, search
from merino_edge.search.exact import sweep
from merino_edge.search.latency import estimate_latency, estimate_memory
from merino_edge.search.problem import make_problem
from merino_edge.search.reach import extreme, out_of_reach
from merino_edge.search.space import Space, load_space, parse_space
from merino_edge.units import Limit

RECIPE = "dynamic_wi8_afp32"
ESTIMATE = load_board("pi4").estimate
MODELS: dict[str, Any] = {
    "latency": {
        test: estimate_latency(ESTIMATE, test=test, depth=128, recipe=RECIPE, cache_bytes=1 << 20)
        for test in ("tg", "pp128")
    },
    "memory": estimate_memory(ESTIMATE, recipe=RECIPE, context_length=1024),
}
BLOCKS = [
    {"width": [96, 64, 160], "depth": [2, 1], "ffn_ratio": [3, 1]},
    {"count": 2, "width": [192, 32, 128], "depth": [1, 3], "ffn_ratio": [2]},
]


def drawn(blocks: list[dict[str, Any]], **more: Any) -> Space:
    document = {"schema_version": 1, "name": "drawn", "vocab_size": [512, 256], "head_dim": 32, **more}
    return parse_space({**document, "block": blocks}, "a test")


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("name", ["latency_ms", "memory_bytes", "parameters", "flops", "file_bytes"])
@pytest.mark.parametrize("latency_of", ["tg", "ttft"])
def test_extremes_are_those_of_all_members(name: str, sign: float, latency_of: str) -> None:
    for space in (
        drawn(BLOCKS, embedding_width=[128, 64]),
        drawn([{"count": [1, 3, 2], "depth": [2, 1], "ffn_ratio": [1, 2]}], width=[64, 32]),
    ):
        problem = make_problem(SearchRequest(space, latency_of=latency_of, **MODELS))
        every = np.concatenate([members.columns[name] for members in sweep(problem)])
        value, index = extreme(problem, name, sign)
        assert value == sign * (sign * every).min()
        assert every[index] == value


def test_only_what_no_member_meets_is_out_of_reach() -> None:
    space = drawn(BLOCKS, embedding_width=64)
    problem = make_problem(SearchRequest(space, **MODELS))
    least, index = extreme(problem, "parameters", 1.0)
    most, _ = extreme(problem, "parameters", -1.0)

    def beyond(limit: Limit) -> Any:
        return out_of_reach(make_problem(SearchRequest(space, limits={"parameters": limit}, **MODELS)))

    assert beyond(Limit(least)) is None
    assert beyond(Limit(2 * most, most)) is None
    found = beyond(Limit(least - 1))
    assert (found.binding, found.least, found.nearest) == ("parameters", least, index)
    assert beyond(Limit(2 * most, most + 1)).least == most


@pytest.mark.alone
@pytest.mark.parametrize("mode", ["dp", "evolution"])
def test_a_budget_that_nothing_meets_is_answered_at_once_however_large_the_space(mode: str) -> None:
    request = SearchRequest(load_space("wide"), limits={"latency_ms": Limit(0.01)}, mode=mode, **MODELS)
    used = time.process_time()
    with pytest.raises(InfeasibleError, match=r"none of [0-9,]+ architectures of space wide meets") as caught:
        search(request)
    assert time.process_time() - used < 0.5  # 0.1 on an idle machine
    assert caught.value.details["nearest"]["values"]["latency_ms"] == caught.value.details["least"]
