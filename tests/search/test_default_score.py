"""The score that the command uses by default."""

from __future__ import annotations

from dataclasses import replace

import pytest

from merino_edge.flows.verify import DEFAULT_SCORE, score_options
from merino_edge.search.scores import ScoreOptions, score_architecture
from merino_edge.search.space import load_space, space_names


def test_the_default_score_grows_with_width_at_fixed_depth_throughout_the_poster_space() -> None:
    space = load_space("poster", 1024)
    assert len({group.size for group in space.groups}) == 1  # one group a width, the same choices in each
    for index in range(0, space.groups[0].size, 97):
        members = [space.decode(group.offset + index) for group in space.groups]
        assert len({a.depth for a in members}) == 1
        scores = [
            score_architecture(a, ScoreOptions(DEFAULT_SCORE)) for a in sorted(members, key=lambda a: a.blocks[0].width)
        ]
        assert scores == sorted(set(scores))


@pytest.mark.parametrize("name", space_names())
def test_the_default_score_grows_with_the_width_of_any_block_at_fixed_depth_in_every_shipped_space(name: str) -> None:
    space = load_space(name)
    for architecture in space.sample(60, seed=1):
        for i, block in enumerate(architecture.blocks):
            widths = space.widths or space.blocks[i].widths or ()
            scores = []
            for width in sorted(w for w in widths if w % architecture.head_dim == 0):
                blocks = list(architecture.blocks)
                blocks = [replace(b, width=width) for b in blocks] if space.widths else blocks
                blocks[i] = replace(block, width=width)
                scores.append(
                    score_architecture(replace(architecture, blocks=tuple(blocks)), ScoreOptions(DEFAULT_SCORE))
                )
            assert scores == sorted(set(scores))


@pytest.mark.parametrize(
    ("given", "name"), [({}, DEFAULT_SCORE), ({"beta": 0.1}, "entropy"), ({"name": "flops"}, "flops")]
)
def test_a_weight_of_the_entropy_without_a_name_means_the_entropy(given: dict[str, float], name: str) -> None:
    assert score_options(**given).name == name
