"""The score that the command uses by default."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from merino_edge.architecture import Architecture, Block
from merino_edge.flows.verify import DEFAULT_SCORE, score_options
from merino_edge.search.engine import SearchRequest, search
from merino_edge.search.scores import ScoreOptions, score_architecture
from merino_edge.search.space import load_space, parse_space, space_names
from merino_edge.units import Limit


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


def test_the_default_score_grows_with_the_width_of_a_block_however_unlike_it_the_others_are() -> None:
    space = load_space("wide")
    choices = space.blocks[0]
    assert choices.widths
    ends = [{"width": w, "ffn_ratio": r} for w in (choices.widths[0], choices.widths[-1]) for r in (1, 4)]
    options = ScoreOptions(DEFAULT_SCORE)
    for one, *others in product((1, 4), ends, ends, ends):
        scores = [
            score_architecture(
                Architecture(
                    (Block(width, one, 4), *(Block(depth=1, **other) for other in others)), embedding_width=128,  # type: ignore[arg-type]
                    vocab_size=4096,
                ),
                options,
            )
            for width in choices.widths
        ]  # fmt: skip
        assert scores == sorted(set(scores))


def test_executing_a_block_again_counts_for_more_and_leaves_the_shape() -> None:
    options = ScoreOptions(DEFAULT_SCORE)
    once, twice = (Architecture((Block(512, 4, depth),) * 4, 512, 8192) for depth in (1, 2))
    assert score_architecture(twice, options) == pytest.approx(2**0.3 * score_architecture(once, options))


def test_four_layers_gain_more_than_their_parameters_up_to_176_of_width_and_less_beyond() -> None:
    options = ScoreOptions(DEFAULT_SCORE)
    found = {w: Architecture((Block(w, 4, 1),) * 4, w, 8192) for w in (128, 192, 512, 1024)}
    score = {width: score_architecture(one, options) for width, one in found.items()}
    assert score[192] / score[128] > (192 / 128) ** 2
    assert score[1024] / score[512] < 0.9 * (1024 / 512) ** 2


def test_a_vocabulary_four_times_as_large_is_worth_twice_the_blocks() -> None:
    options = ScoreOptions(DEFAULT_SCORE)
    (one,) = load_space("free", 4096).sample(1, seed=3)
    assert score_architecture(replace(one, vocab_size=16_384), options) == 2 * score_architecture(one, options)


def test_search_takes_the_vocabulary_that_scores_best() -> None:
    choices = {"width": [256, 384, 512], "embedding_width": "width", "vocab_size": [4096, 8192, 16_384, 32_768]}
    block = {"count": [2, 3, 4], "depth": [1, 2], "ffn_ratio": [2, 4]}
    names = {"schema_version": 1, "name": "vocabularies", "title": "four tables"}
    space = parse_space({**names, **choices, "block": [block]}, "here")
    limits = {"parameters": Limit(16e6)}
    found = search(SearchRequest(space, score=ScoreOptions(DEFAULT_SCORE), limits=limits)).winner.architecture
    members = [space.decode(i) for i in range(space.size)]
    within = [a for a in members if a.unique_parameters <= 16e6]
    best = max(score_architecture(a, ScoreOptions(DEFAULT_SCORE)) for a in within)
    assert score_architecture(found, ScoreOptions(DEFAULT_SCORE)) == best
    assert found.vocab_size > 4096


@pytest.mark.parametrize(
    ("given", "name"), [({}, DEFAULT_SCORE), ({"beta": 0.1}, "entropy"), ({"name": "flops"}, "flops")]
)
def test_a_weight_of_the_entropy_without_a_name_means_the_entropy(given: dict[str, float], name: str) -> None:
    assert score_options(**given).name == name
