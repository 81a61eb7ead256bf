"""Columns by outer sums: however a group is cut into chunks, every member has its own sums and its own class."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from merino_edge.search.classes import representative
from merino_edge.search.cost import Flops, Sum, parameters_sum, total
from merino_edge.search.engine import SearchRequest, search
from merino_edge.search.entropy import Layers
from merino_edge.search.runs import RunTables, runs_of
from merino_edge.search.space import Space, parse_space
from merino_edge.search.tables import GroupTables

PARTS: list[Sum] = [parameters_sum(True), Flops(), Layers()]
ALIKE = {"count": 2, "width": [80, 120], "depth": [1, 4], "ffn_ratio": [1, 2.5]}
OTHER = {"width": [40, 160, 200], "depth": 2, "ffn_ratio": [3, 5]}


OTHER_ONE = {"count": [1, 2], "depth": [2, 3], "ffn_ratio": 2}


def space(*blocks: dict[str, Any], **more: Any) -> Space:
    document = {"schema_version": 1, "name": "small", "vocab_size": 64, "head_dim": 40, "block": list(blocks)}
    return parse_space({**document, **more}, "a test")


SPACES = {
    "one block": space(OTHER, embedding_width=80),
    "blocks that choose alike before, between and after others": space(
        {**ALIKE, "count": 1}, OTHER, ALIKE, embedding_width=[80, 120]
    ),
    "one width": space({"count": 4, "depth": [1, 2], "ffn_ratio": [1, 3]}, width=[40, 80]),
    "as many blocks as pay": space({"count": [1, 2, 4], "depth": [1, 2], "ffn_ratio": [1, 3]}, width=[40, 80]),
    "each width its own": space({**ALIKE, "count": 4}, embedding_width=120),
}


@pytest.mark.parametrize("rows", [1, 7, 20, 90, 100_000])
@pytest.mark.parametrize("name", SPACES)
def test_chunks_of_any_size_give_every_member_its_sums_and_class(name: str, rows: int) -> None:
    drawn = SPACES[name]
    sums: list[list[Any]] = [[] for _ in PARTS]
    stand: list[Any] = []
    for group in drawn.groups:
        for chunk in GroupTables(drawn, group, PARTS).chunks(rows):
            assert chunk.start == len(stand)
            assert len(chunk.representative) <= max(rows, len(group.options[-1]))
            stand += chunk.representative.tolist()
            for whole, part in zip(sums, chunk.sums, strict=True):
                whole += part.tolist()
    assert len(stand) == drawn.size
    for index in range(0, drawn.size, max(1, drawn.size // 150)):
        architecture = drawn.decode(index)
        assert [whole[index] for whole in sums] == [total(part, architecture) for part in PARTS]
        assert stand[index] == (representative(drawn, index) == index)
    assert np.sum(stand) == sum(representative(drawn, i) == i for i in range(drawn.size))


MANY = {
    "widths of their own": space(ALIKE, OTHER, embedding_width=[80, 120, 40], vocab_size=[64, 50], head_dim=[8, 40]),
    "one width": space({"count": 3, "depth": [1, 2], "ffn_ratio": [1, 3]}, width=[40, 80, 120], vocab_size=[64, 9]),
    "one block": space({"depth": [1, 2], "ffn_ratio": [1, 3]}, width=[40, 80, 120], embedding_width=[16, 80]),
    "counts to choose": space(
        {"count": [1, 3], "depth": [1, 2], "ffn_ratio": [1, 3]}, OTHER_ONE, width=[40, 80], vocab_size=[64, 9]
    ),
    "ratios that round alike": space({"count": 2, "depth": 1, "ffn_ratio": [1, 1.01, 3]}, width=[40, 80, 160]),
}


@pytest.mark.parametrize("rows", [1, 100, 100_000])
@pytest.mark.parametrize("name", MANY)
def test_groups_together_give_every_member_its_sums_and_class(name: str, rows: int) -> None:
    drawn, index = MANY[name], 0
    for run in runs_of(drawn, rows):
        assert len(run) == 1 or len(run) * run[0].size <= rows
        tables = RunTables(drawn, run, PARTS)
        sums, stand = tables.sums(), tables.representative()
        assert tables.numbers.tolist() == list(range(index, index + sum(group.size for group in run)))
        for row in range(len(stand)):
            architecture = drawn.decode(index)
            assert [whole[row] for whole in sums] == [total(part, architecture) for part in PARTS]
            assert stand[row] == (representative(drawn, index) == index)
            index += 1
    assert index == drawn.numbers


@pytest.mark.alone
def test_hundreds_of_groups_are_searched_in_no_more_time_than_their_members_take() -> None:
    block = {"count": 2, "depth": [1, 2], "ffn_ratio": [2, 4]}
    many = {"vocab_size": [1000 * i for i in range(1, 11)], "embedding_width": [64 * i for i in range(1, 9)]}
    drawn = space(block, **many, head_dim=[16, 32, 64], width=[64 * i for i in range(2, 13)])
    used = time.process_time()
    assert search(SearchRequest(drawn)).evaluated == drawn.size == 10 * 8 * 11 * 16 * 3
    assert time.process_time() - used < 0.5  # 0.05 on an idle machine
