"""Spaces: sizes, numbering, and the reasons a file is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merino_edge.errors import InvalidFileError, UsageError
from merino_edge.search.space import load_space, parse_space, space_names

POSTER = load_space("poster")
WIDE = load_space("wide")
FREE = load_space("free")


def document(**changes: Any) -> dict[str, Any]:
    base = {
        "schema_version": 1,
        "name": "tiny",
        "vocab_size": 100,
        "head_dim": 32,
        "width": [64, 96],
        "block": [{"count": 2, "depth": [1, 2], "ffn_ratio": [1, 2.5]}],
    }
    result = {**base, **changes}
    return copy.deepcopy({key: value for key, value in result.items() if value is not None})


def test_poster_space_has_exactly_186624_members() -> None:
    assert POSTER.size == 186_624


def test_poster_space_decodes_to_architectures_all_different() -> None:
    assert len({POSTER.decode(index) for index in range(POSTER.size)}) == 186_624


def test_wide_space_has_at_least_ten_to_the_ten_members() -> None:
    assert WIDE.size == 43_486_543_872
    assert load_space("wide", vocab_size=16_384).size >= 10**10


def test_every_shipped_space_loads() -> None:
    assert space_names() == ["free", "poster", "wide"]


def test_count_may_be_a_choice_of_every_kind_of_block() -> None:
    blocks = [{"count": [1, 3], "depth": 1, "ffn_ratio": [1, 2]}, {"count": [1, 2], "depth": 2, "ffn_ratio": 4}]
    space = parse_space(document(block=blocks, width=[64]), "here")
    shapes = [tuple(b.depth for b in space.decode(index).blocks) for index in range(space.size)]
    assert space.size == 2 + 2 + 8 + 8
    assert sorted(set(shapes)) == [(1, 1, 1, 2), (1, 1, 1, 2, 2), (1, 2), (1, 2, 2)]
    assert len({space.decode(index) for index in range(space.size)}) == space.size
    assert [space.index_of(space.decode(index)) for index in range(space.size)] == list(range(space.size))
    assert FREE.size == 13 * sum(4**count for count in range(2, 17))


@pytest.mark.parametrize("space", [POSTER, WIDE, FREE], ids=lambda s: s.name)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_index_of_inverts_decode(space: Any, data: Any) -> None:
    index = data.draw(st.integers(0, space.size - 1))
    assert space.index_of(space.decode(index)) == index


def test_vocab_size_replaces_the_choices_of_the_file() -> None:
    assert load_space("wide", vocab_size=5000).vocab_sizes == (5000,)


def test_an_architecture_outside_the_space_has_no_index() -> None:
    assert POSTER.index_of(WIDE.decode(0)) is None


def test_samples_are_different_members_and_depend_on_the_seed_alone() -> None:
    drawn = WIDE.sample(50, seed=3)
    assert len(set(drawn)) == 50
    assert drawn == WIDE.sample(50, seed=3) != WIDE.sample(50, seed=4)


def test_a_sample_of_a_small_space_is_the_whole_space() -> None:
    assert len(parse_space(document(), "t").sample(1000, seed=0)) == 2 * 4**2


def test_a_width_that_one_head_dim_does_not_divide_is_left_out_there_only() -> None:
    space = parse_space(document(head_dim=[32, 48], width=[64, 96]), "t")
    assert {(a.head_dim, a.blocks[0].width) for a in map(space.decode, range(space.size))} == {
        (32, 64), (32, 96), (48, 96),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"widths": [64]}, "unknown key 'widths'; did you mean 'width'"),
        ({"width": []}, "'width' has no choice"),
        ({"width": [100]}, "no head divides width 100"),
        ({"width": [64, 64]}, "stands twice"),
        ({"width": None}, "block 0 has no 'width'"),
        ({"width": [64.5]}, "whole numbers"),
        ({"vocab_size": 0}, "vocab_size must be whole numbers from 1"),
        ({"head_dim": 33, "width": [66]}, "must be even"),
        ({"schema_version": 2}, "schema_version must be 1"),
        ({"block": []}, "at least one [[block]]"),
        ({"block": [{"depth": [1], "ffn_ratio": [1], "dept": 2}]}, "unknown key 'dept'; did you mean 'depth'"),
        ({"block": [{"depth": [0], "ffn_ratio": [1]}]}, "depth must be whole numbers from 1"),
        ({"block": [{"depth": [1], "ffn_ratio": [-1]}]}, "greater than zero"),
        ({"block": [{"depth": [1]}]}, "key 'ffn_ratio' is missing"),
        ({"block": [{"depth": [1], "ffn_ratio": [1], "width": [64]}]}, "'width' stands both"),
        ({"block": [{"depth": [1], "ffn_ratio": [0.001]}]}, "gives no feed-forward network"),
        ({"name": ""}, "'name' must be a word"),
        ({"name": "a\nb"}, "'name' must be a word"),
        ({"title": "\x1b[31mred"}, "'title' a line of text"),
        ({"vocab_size": [1, 300]}, "vocab_size must be at least 2"),
        ({"per_layer_norms": 1}, "per_layer_norms must be true or false, not 1"),
        ({"embedding_skip": "yes"}, "embedding_skip must be true or false, not 'yes'"),
    ],
)
def test_a_file_that_is_no_space_is_refused_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidFileError) as caught:
        parse_space(document(**changes), "space t.toml")
    assert reason in caught.value.message
    assert caught.value.message.startswith("space t.toml")


def test_a_file_as_windows_writes_it_is_read(tmp_path: Path) -> None:
    text = Path(load_space.__code__.co_filename).with_name("spaces").joinpath("poster.toml").read_text()
    (tmp_path / "poster.toml").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load_space(str(tmp_path / "poster.toml")) == POSTER


def test_an_own_width_for_each_block_needs_numbers_for_the_embedding() -> None:
    blocks = [{"width": [64], "depth": [1], "ffn_ratio": [1]}]
    with pytest.raises(InvalidFileError, match="embedding_width must be numbers"):
        parse_space(document(width=None, block=blocks), "t")


@pytest.mark.parametrize("said", [None, True, False])
@pytest.mark.parametrize("wanted", [None, True, False])
def test_an_embedding_skip_is_what_is_wanted_else_what_the_file_says_else_there(
    said: bool | None, wanted: bool | None
) -> None:
    space = parse_space(document() if said is None else document(embedding_skip=said), "t")
    assert space.decode(3).embedding_skip == bool(said)  # the file by itself
    chosen = space.with_embedding_skip(wanted)
    expected = wanted if wanted is not None else said is not False
    assert {chosen.decode(i).embedding_skip for i in range(chosen.size)} == {expected}
    assert all(chosen.index_of(chosen.decode(i)) == i for i in range(chosen.size))
    assert replace(chosen.decode(3), embedding_skip=not expected) not in map(chosen.decode, range(chosen.size))
    assert chosen.index_of(replace(chosen.decode(3), embedding_skip=not expected)) is None


def test_an_embedding_skip_needs_one_width() -> None:
    assert not WIDE.with_embedding_skip().decode(0).embedding_skip
    with pytest.raises(UsageError, match="needs one for all"):
        WIDE.with_embedding_skip(True)
    own = [{"width": [64], "depth": [1], "ffn_ratio": [1]}]
    with pytest.raises(InvalidFileError, match="embedding_skip needs one 'width'"):
        parse_space(document(width=None, embedding_width=64, block=own, embedding_skip=True), "t")


def test_an_unknown_space_offers_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="did you mean 'poster'"):
        load_space("postr")


def test_a_broken_toml_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("width = [")
    with pytest.raises(UsageError, match=r"mine\.toml is not valid TOML"):
        load_space(str(path))
