"""An architecture names every tensor; a file that describes none is refused."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merino_edge.architecture import Architecture, Block, check_tensors, load_architecture, save_architecture
from merino_edge.errors import InvalidFileError, MerinoEdgeError

BLOCKS = st.builds(
    Block,
    width=st.integers(1, 6).map(lambda n: 8 * n),
    ffn_ratio=st.sampled_from([0.5, 1, 1.5, 2, 4.0]),
    depth=st.integers(1, 4),
)
ARCHITECTURES = st.builds(
    Architecture,
    blocks=st.lists(BLOCKS, min_size=1, max_size=4).map(tuple),
    embedding_width=st.integers(1, 40),
    vocab_size=st.integers(1, 99),
    head_dim=st.sampled_from([2, 4, 8]),
    per_layer_norms=st.booleans(),
)
TWO_BLOCKS = Architecture((Block(8, 2, 3), Block(16, 1.5, 2)), embedding_width=8, vocab_size=10, head_dim=4)


def test_tensors_have_the_names_and_shapes_of_the_design() -> None:
    assert TWO_BLOCKS.tensor_shapes == {
        "embedding.weight": (10, 8),
        "blocks.0.query.weight": (8, 8),
        "blocks.0.key.weight": (8, 8),
        "blocks.0.value.weight": (8, 8),
        "blocks.0.output.weight": (8, 8),
        "blocks.0.ffn_in.weight": (16, 8),
        "blocks.0.ffn_out.weight": (8, 16),
        "blocks.0.norms": (1, 2, 8),
        "blocks.1.projection.weight": (16, 8),
        "blocks.1.query.weight": (16, 16),
        "blocks.1.key.weight": (16, 16),
        "blocks.1.value.weight": (16, 16),
        "blocks.1.output.weight": (16, 16),
        "blocks.1.ffn_in.weight": (24, 16),
        "blocks.1.ffn_out.weight": (16, 24),
        "blocks.1.norms": (1, 2, 16),
        "final_norm.weight": (16,),
        "output_projection.weight": (8, 16),
    }


def test_parameters_counted_by_hand() -> None:
    shared_0, shared_1 = 4 * 64 + 2 * 128 + 16, 4 * 256 + 2 * 384 + 32
    once = 80 + 128 + 16 + 128
    assert TWO_BLOCKS.unique_parameters == once + shared_0 + shared_1
    assert TWO_BLOCKS.executed_parameters == once + 80 + 3 * shared_0 + 2 * shared_1


def test_norms_of_each_layer_are_stored_and_executed_once_each() -> None:
    apart = replace(TWO_BLOCKS, per_layer_norms=True)
    assert apart.tensor_shapes["blocks.0.norms"] == (3, 2, 8)
    assert apart.executed_parameters == TWO_BLOCKS.executed_parameters
    assert apart.unique_parameters == TWO_BLOCKS.unique_parameters + 2 * 16 + 32


def test_a_first_projection_stands_where_the_embedding_is_narrower() -> None:
    narrow = replace(TWO_BLOCKS, embedding_width=4)
    assert narrow.tensor_shapes["blocks.0.projection.weight"] == (8, 4)


@given(ARCHITECTURES, st.integers(1, 5))
def test_depth_costs_no_unique_parameters(architecture: Architecture, depth: int) -> None:
    shared = replace(architecture, per_layer_norms=False)
    deeper = replace(shared, blocks=tuple(replace(b, depth=depth) for b in shared.blocks))
    assert deeper.unique_parameters == shared.unique_parameters
    assert deeper.depth == depth * len(shared.blocks) == len(list(deeper.layers()))


def test_an_embedding_skip_has_a_gain_for_each_channel_of_each_executed_layer() -> None:
    plain = replace(TWO_BLOCKS, blocks=(Block(8, 2, 3), Block(8, 1.5, 2)))
    skip = replace(plain, embedding_skip=True)
    assert skip.tensor_shapes["blocks.0.skip_gains"] == (3, 1, 8)
    assert skip.unique_parameters == plain.unique_parameters + (3 + 2) * 8
    assert skip.executed_parameters == plain.executed_parameters + (3 + 2) * 8
    assert Architecture.from_json(skip.to_json()) == skip
    assert skip.digest != plain.digest
    assert "embedding_skip" not in plain.to_json()  # digests of earlier measurements stay
    assert skip.describe() == plain.describe() + ", embedding skip"
    with pytest.raises(InvalidFileError, match="embedding_skip needs blocks of one width"):
        replace(TWO_BLOCKS, embedding_skip=True)


@given(ARCHITECTURES)
def test_json_gives_the_same_architecture_and_digest(architecture: Architecture) -> None:
    again = Architecture.from_json(architecture.to_json())
    assert again == architecture
    assert again.digest == architecture.digest
    assert len(architecture.digest) == 64


@given(ARCHITECTURES, ARCHITECTURES)
def test_digests_agree_only_for_equal_architectures(one: Architecture, other: Architecture) -> None:
    assert (one.digest == other.digest) == (one == other)


def test_an_integral_ratio_has_one_digest() -> None:
    whole, real = (Architecture((Block(8, r, 1),), 8, 10, head_dim=4) for r in (2, 2.0))
    assert whole.digest == real.digest


def test_the_file_reads_back(tmp_path: Path) -> None:
    save_architecture(tmp_path / "architecture.json", TWO_BLOCKS)
    assert load_architecture(tmp_path / "architecture.json") == TWO_BLOCKS


def test_cache_bytes_counted_by_hand() -> None:
    assert TWO_BLOCKS.kv_cache_bytes(100) == 2 * (3 * 8 + 2 * 16) * 100 * 4


def change(path: str, value: Any) -> dict[str, Any]:
    """Return the JSON of a good architecture with one place changed (`...` removes it)."""
    document = TWO_BLOCKS.to_json()
    *parents, last = path.split(".")
    place: Any = document
    for key in parents:
        place = place[int(key) if key.isdigit() else key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("blocks.0.widht", 8, r"block 0: unknown key 'widht'; did you mean 'width'\?"),
        ("vocab_sise", 8, "unknown key 'vocab_sise'"),
        ("vocab_size", ..., "'vocab_size' is missing"),
        ("blocks.1.depth", ..., "block 1: key 'depth' is missing"),
        ("blocks.0.depth", -3, "depth must be a whole number"),
        ("blocks.0.depth", 1.5, "depth must be a whole number"),
        ("blocks.0.depth", True, "depth must be a whole number"),
        ("blocks.0.width", 10, "no multiple of head_dim"),
        ("blocks.0.width", 10**400, "width must be a whole number"),
        ("blocks.0.ffn_ratio", -1, "no feed-forward network"),
        ("blocks.0.ffn_ratio", 0.01, "no feed-forward network"),
        ("blocks.0.ffn_ratio", 1e308, "no feed-forward network"),
        ("blocks.0.ffn_ratio", 10**400, "no feed-forward network"),
        ("blocks.0.ffn_ratio", float("nan"), "ffn_ratio must be a number"),
        ("blocks.0.ffn_ratio", "2", "ffn_ratio must be a number"),
        ("blocks", [], "1 to 1024 blocks"),
        ("blocks", {}, "must be a list"),
        ("blocks", [[]], "block 0 must be a JSON object"),
        ("vocab_size", 0, "vocab_size must be a whole number"),
        ("vocab_size", None, "vocab_size must be a whole number"),
        ("head_dim", 3, "even"),
        ("per_layer_norms", 1, "true or false"),
        ("embedding_skip", "yes", "embedding_skip must be true or false"),
        ("embedding_skip", True, "needs blocks of one width"),
    ],
)
def test_a_wrong_description_is_refused_and_named(path: str, value: Any, problem: str) -> None:
    with pytest.raises(InvalidFileError, match=problem) as caught:
        Architecture.from_json(change(path, value), "run/architecture.json")
    assert caught.value.message.startswith("run/architecture.json")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(list(TWO_BLOCKS.to_json())), inner),
        max_leaves=6,
    )
)
def test_any_json_is_an_architecture_or_an_error_of_ours(value: Any) -> None:
    with contextlib.suppress(MerinoEdgeError):
        Architecture.from_json(value)


def test_tensors_that_do_not_belong_are_named() -> None:
    shapes = dict(TWO_BLOCKS.tensor_shapes)
    check_tensors(TWO_BLOCKS, shapes, "w")
    with pytest.raises(InvalidFileError, match=r"'lm_head\.weight' belongs to no part"):
        check_tensors(TWO_BLOCKS, {**shapes, "lm_head.weight": (10, 8)}, "w")
    with pytest.raises(InvalidFileError, match=r"shape \[8, 10\], the architecture says \[10, 8\]"):
        check_tensors(TWO_BLOCKS, {**shapes, "embedding.weight": (8, 10)}, "w")
    del shapes["blocks.0.norms"]
    with pytest.raises(InvalidFileError, match=r"'blocks\.0\.norms' is missing"):
        check_tensors(TWO_BLOCKS, shapes, "w")


def test_the_description_fits_one_line() -> None:
    assert TWO_BLOCKS.describe() == "8x3 r2 | 16x2 r1.5, V 10"
    alike = Architecture((Block(8, 2, 1), Block(8, 2, 1), Block(8, 2, 2), Block(8, 2, 1)), 8, 10, head_dim=4)
    assert alike.describe() == "2 of 8x1 r2 | 8x2 r2 | 8x1 r2, V 10"
