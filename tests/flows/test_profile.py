"""What a profile says of the space it was made for."""

from __future__ import annotations

import itertools

import pytest

from merino_edge.flows.profile import extremes, with_head
from merino_edge.search.space import parse_space

CHOICES = {"width": [320, 192], "depth": [3, 1], "ffn_ratio": [4, 1, 2]}


@pytest.mark.parametrize("turned", list(itertools.product((False, True), repeat=3)))
def test_the_extremes_do_not_depend_on_the_order_of_choices(turned: tuple[bool, ...]) -> None:
    width, depth, ratio = (
        values[::-1] if turn else values for values, turn in zip(CHOICES.values(), turned, strict=True)
    )
    blocks = {"count": 2, "width": width, "depth": depth, "ffn_ratio": ratio}
    space = parse_space(
        {
            "schema_version": 1,
            "name": "x",
            "embedding_width": [192],
            "vocab_size": [512, 256],
            "head_dim": [64],
            "block": [blocks],
        },
        "x",
    )
    costs = [with_head(space.decode(index)) for index in range(space.numbers)]
    least, most = extremes(space)
    assert (with_head(least), with_head(most)) == (min(costs), max(costs))
