"""What a profile says of the space it was made for."""

from __future__ import annotations

import itertools

import pytest

from merino_edge.agent.worker import needed_bytes
from merino_edge.flows.conditions import Conditions
from merino_edge.flows.profile import MEMORY_SHARE, extremes, models_that_fit, with_head
from merino_edge.search.cost import unique_bytes
from merino_edge.search.latency import choose_architectures
from merino_edge.search.space import load_space, parse_space

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


@pytest.mark.parametrize("count", [6, 25])
@pytest.mark.parametrize("recipe", ["dynamic_wi8_afp32", "fp32"])
def test_what_does_not_fit_a_small_board_is_not_measured_there(count: int, recipe: str) -> None:
    space, conditions, free = load_space("free").with_embedding_skip(), Conditions(recipe=recipe), 350_000_000
    chosen, left_out = models_that_fit(space, count, free, conditions)
    sizes = [(a.to_json(), unique_bytes(a, recipe)) for a in chosen]
    needed = [needed_bytes(a, stored, conditions.context_length, conditions.form) for a, stored in sizes]
    assert left_out
    assert len(set(chosen)) == count
    assert max(needed) <= MEMORY_SHARE * free
    assert max(needed) > 0.7 * MEMORY_SHARE * free  # and it is no smaller than it has to be
    assert len({len(architecture.blocks) for architecture in chosen}) > 2


@pytest.mark.parametrize("free", [None, 64_000_000_000])
def test_where_all_fit_the_models_are_spread_over_the_whole_space(free: int | None) -> None:
    space = load_space("free").with_embedding_skip()
    assert models_that_fit(space, 6, free, Conditions()) == (choose_architectures(space, 6, seed=0), False)
