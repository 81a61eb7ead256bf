"""Counts against the design's anchors, the architecture's own tensors, and each other."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merino_edge.architecture import Architecture, Block
from merino_edge.errors import UsageError
from merino_edge.search.cost import count_flops, count_macs, parameters_sum, total, unique_bytes


def unshared(layers: int, width: int, vocab_size: int, embedding_width: int | None = None) -> Architecture:
    blocks = tuple(Block(width, 4, 1) for _ in range(layers))
    return Architecture(blocks, embedding_width or width, vocab_size)


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    head_dim = draw(st.sampled_from([2, 8, 16]))
    blocks = draw(
        st.lists(
            st.builds(
                Block,
                st.integers(1, 8).map(lambda n: n * head_dim),
                st.sampled_from([1, 1.5, 2, 4]),
                st.integers(1, 4),
            ),
            min_size=1,
            max_size=5,
        )
    )
    norms, skip = draw(st.booleans()), draw(st.booleans()) and len({b.width for b in blocks}) == 1
    return Architecture(tuple(blocks), draw(st.integers(1, 200)), draw(st.integers(1, 300)), head_dim, norms, skip)


@pytest.mark.parametrize(
    ("architecture", "without_head", "with_head"),
    [
        (unshared(12, 768, 50_257), 212.60, 291.65),  # GPT-2 124M
        (unshared(12, 768, 50_272), 212.60, 291.67),  # OPT-125M
        (unshared(24, 1024, 50_272, 512), 723.7, 776.4),  # OPT-350M
        (unshared(6, 512, 50_304), 51.5, 104.3),  # Pythia-70M
    ],
)
def test_flops_of_known_shapes(architecture: Architecture, without_head: float, with_head: float) -> None:
    digits = 2 if without_head == 212.60 else 1
    assert round(count_flops(architecture) / 1e9, digits) == without_head
    assert round(count_flops(architecture, head=True) / 1e9, digits) == with_head


def flops_by_hand(a: Architecture, tokens: int, head: bool) -> int:
    macs = 0
    for i, layer in a.layers():
        e, f = a.blocks[i].width, a.blocks[i].ffn_width
        if layer == 0 and a.input_width(i) != e:
            macs += tokens * a.input_width(i) * e
        macs += tokens * (4 * e * e + 2 * e * f) + 2 * tokens * tokens * e
    last = a.blocks[-1].width
    macs += tokens * last * a.embedding_width if last != a.embedding_width else 0
    macs += tokens * a.embedding_width * a.vocab_size if head else 0
    return 2 * macs


@settings(max_examples=100, deadline=None)
@given(architectures(), st.integers(1, 64), st.booleans())
def test_flops_are_those_counted_layer_by_layer(a: Architecture, tokens: int, head: bool) -> None:
    assert count_flops(a, tokens, head) == flops_by_hand(a, tokens, head)


@settings(max_examples=100, deadline=None)
@given(architectures(), st.integers(1, 64))
def test_macs_by_class_add_up_to_the_flops(a: Architecture, tokens: int) -> None:
    assert 2 * sum(count_macs(a, tokens, tokens, tokens).values()) == count_flops(a, tokens, head=True)


@settings(max_examples=100, deadline=None)
@given(architectures())
def test_parameters_are_those_of_the_tensors(a: Architecture) -> None:
    norms, skip = a.per_layer_norms, a.embedding_skip
    assert total(parameters_sum(norms, embedding_skip=skip), a) == a.unique_parameters
    assert total(parameters_sum(norms, executed=True, embedding_skip=skip), a) == a.executed_parameters


@settings(max_examples=100, deadline=None)
@given(architectures())
def test_unique_bytes_count_every_tensor_once(a: Architecture) -> None:
    int8 = 0
    for name, shape in a.tensor_shapes.items():
        is_gain = name.endswith(("norms", "skip_gains")) or name == "final_norm.weight"
        int8 += 4 * math.prod(shape) if is_gain else math.prod(shape) + 4 * shape[0]
    assert unique_bytes(a, "fp32") == 4 * a.unique_parameters
    assert unique_bytes(a, "dynamic_wi8_afp32") == int8


@pytest.mark.parametrize(("bits", "block"), [(8, 32), (4, 128)])
def test_weight_only_recipes_store_one_scale_a_block(bits: int, block: int) -> None:
    a = Architecture((Block(256, 2, 3), Block(128, 1, 1)), 128, 1000)
    expected = sum(
        math.prod(shape) * bits // 8 + 4 * shape[0] * (shape[1] // block) if len(shape) == 2 else 4 * math.prod(shape)
        for shape in a.tensor_shapes.values()
    )
    assert unique_bytes(a, f"weight_only_wi{bits}_b{block}_afp32") == expected


def test_an_unknown_recipe_offers_the_known_ones() -> None:
    with pytest.raises(UsageError, match="did you mean 'dynamic_wi8_afp32'"):
        unique_bytes(unshared(1, 64, 10), "dynamic_wi8")


def test_a_huge_architecture_is_counted_without_overflow() -> None:
    big = Architecture(tuple(Block(1 << 20, 1, 1 << 20) for _ in range(3)), 64, 10)
    assert count_flops(big) == flops_by_hand_of_equal_layers(big)


def flops_by_hand_of_equal_layers(a: Architecture) -> int:
    e, tokens = a.blocks[0].width, 1024
    layer = tokens * 6 * e * e + 2 * tokens * tokens * e
    return 2 * (a.depth * layer + 2 * tokens * e * a.embedding_width)
