"""The oracle itself: held against hand-worked cases and against what the design says it must do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from merino_edge.architecture import NORM_EPSILON, Architecture, Block
from merino_edge.reference import Cache, attend, forward, gelu, random_tensors, rms_norm, rotate

NARROW_TO_WIDE = Architecture((Block(8, 2, 3), Block(16, 1.5, 2)), embedding_width=4, vocab_size=32, head_dim=4)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 32, 12)


def float64(architecture: Architecture, seed: int = 1) -> dict[str, npt.NDArray[np.float64]]:
    """Random weights large enough that every part of the model matters."""
    tensors = random_tensors(architecture, seed, scale=0.5)
    return {name: tensor.astype(np.float64) for name, tensor in tensors.items()}


def test_random_tensors_are_those_the_architecture_names_and_repeat() -> None:
    one, two = (random_tensors(NARROW_TO_WIDE, 3) for _ in range(2))
    assert {name: t.shape for name, t in one.items()} == NARROW_TO_WIDE.tensor_shapes
    assert all((one[name] == two[name]).all() and one[name].dtype == np.float32 for name in one)
    assert (random_tensors(NARROW_TO_WIDE, 4)["embedding.weight"] != one["embedding.weight"]).any()


def test_gelu_at_known_points() -> None:
    np.testing.assert_allclose(gelu(np.array([0.0, 1.0, -1.0, 30.0])), [0, 0.841344746, -0.158655254, 30], atol=1e-9)


def test_rms_norm_by_hand() -> None:
    x = np.array([[3.0, 4.0]])
    np.testing.assert_allclose(rms_norm(x, np.array([1.0, 2.0])), x / np.sqrt(12.5 + NORM_EPSILON) * [1, 2])


def test_the_first_position_is_not_turned() -> None:
    x = RNG.standard_normal((1, 2, 4))
    np.testing.assert_array_equal(rotate(x, 0), x)


def test_rotation_turns_first_half_with_second_half() -> None:
    x = np.array([[[1.0, 0.0, 0.0, 0.0]]])
    np.testing.assert_allclose(rotate(x, 2)[0, 0], [np.cos(2), 0, np.sin(2), 0], atol=1e-12)


def test_products_of_turned_heads_depend_on_the_distance_only() -> None:
    q, k = RNG.standard_normal((2, 1, 1, 8))
    near = (rotate(q, 7) * rotate(k, 4)).sum()
    far = (rotate(q, 907) * rotate(k, 904)).sum()
    assert near == pytest.approx(far, rel=1e-9)


def test_attention_by_hand() -> None:
    q = np.array([[[2.0]]])
    k, v = np.array([[[0.0]], [[1.0]]]), np.array([[[10.0]], [[20.0]]])
    share = np.exp(2) / (1 + np.exp(2))
    np.testing.assert_allclose(attend(q, k, v), [[10 + 10 * share]])


def test_silent_layers_leave_the_embedding() -> None:
    architecture = replace(NARROW_TO_WIDE, blocks=(Block(4, 1, 3),))
    tensors = {name: t if t.ndim == 3 or "norm" in name else t * 0 for name, t in float64(architecture).items()}
    table = tensors["embedding.weight"] = RNG.standard_normal((32, 4))
    expected = rms_norm(table[TOKENS], np.ones(4)) @ table.T
    np.testing.assert_allclose(forward(architecture, tensors, TOKENS), expected, rtol=1e-12)


def test_one_token_after_another_gives_what_the_whole_gives() -> None:
    tensors = float64(NARROW_TO_WIDE)
    whole, cache = forward(NARROW_TO_WIDE, tensors, TOKENS), Cache()
    steps = [forward(NARROW_TO_WIDE, tensors, part, cache=cache) for part in (TOKENS[:5], TOKENS[5:6], TOKENS[6:])]
    np.testing.assert_allclose(np.concatenate(steps), whole, rtol=1e-9, atol=1e-12)
    assert cache.length == len(TOKENS)
    assert len(cache.keys) == NARROW_TO_WIDE.depth


def test_a_later_token_changes_nothing_before_it() -> None:
    tensors, changed = float64(NARROW_TO_WIDE), TOKENS.copy()
    changed[8] = (changed[8] + 1) % 32
    one, two = (forward(NARROW_TO_WIDE, tensors, tokens) for tokens in (TOKENS, changed))
    np.testing.assert_array_equal(one[:8], two[:8])
    assert (one[8:] != two[8:]).any(axis=1).all()


def test_wanted_positions_are_those_of_all_logits() -> None:
    tensors = float64(NARROW_TO_WIDE)
    wanted = forward(NARROW_TO_WIDE, tensors, TOKENS, logits_index=[11, 0, 3])
    np.testing.assert_allclose(wanted, forward(NARROW_TO_WIDE, tensors, TOKENS)[[11, 0, 3]], rtol=1e-12)


def test_a_shared_block_is_the_same_block_called_again() -> None:
    shared = Architecture((Block(8, 2, 3),), embedding_width=8, vocab_size=32, head_dim=4)
    apart = replace(shared, blocks=(Block(8, 2, 1),) * 3)
    tensors = float64(shared)
    copies = {name.replace("blocks.0", f"blocks.{i}"): t for name, t in tensors.items() for i in range(3)}
    np.testing.assert_array_equal(forward(shared, tensors, TOKENS), forward(apart, copies, TOKENS))


def test_each_layer_may_have_its_own_norms() -> None:
    shared = Architecture((Block(8, 2, 3),), embedding_width=8, vocab_size=32, head_dim=4)
    own = replace(shared, per_layer_norms=True)
    tensors = float64(shared)
    gains = np.linspace(0.5, 2.0, 3 * 2 * 8).reshape(3, 2, 8)
    apart = replace(shared, blocks=(Block(8, 2, 1),) * 3)
    copies = {name.replace("blocks.0", f"blocks.{i}"): t for name, t in tensors.items() for i in range(3)}
    copies |= {f"blocks.{i}.norms": gains[i : i + 1] for i in range(3)}
    tensors["blocks.0.norms"] = gains
    np.testing.assert_array_equal(forward(own, tensors, TOKENS), forward(apart, copies, TOKENS))


def test_an_embedding_skip_adds_the_normed_embedding_before_each_layer() -> None:
    skip = Architecture((Block(8, 2, 2), Block(8, 1, 1)), 8, vocab_size=32, head_dim=4, embedding_skip=True)
    tensors = float64(skip)
    for i in (0, 1):
        for name in ("output", "ffn_out"):
            tensors[f"blocks.{i}.{name}.weight"] *= 0  # nothing but the skip is added
    tensors["blocks.0.skip_gains"] = np.linspace(-1, 2, 16).reshape(2, 1, 8)
    tensors["blocks.1.skip_gains"] = np.linspace(3, 4, 8)[None, None]
    tensors["final_norm.weight"] = np.ones(8)
    x = tensors["embedding.weight"][TOKENS]
    normed = x / np.sqrt((x * x).mean(-1, keepdims=True) + NORM_EPSILON)
    gains = tensors["blocks.0.skip_gains"].sum((0, 1)) + tensors["blocks.1.skip_gains"][0, 0]
    expected = rms_norm(x + gains * normed, np.ones(8)) @ tensors["embedding.weight"].T
    np.testing.assert_allclose(forward(skip, tensors, TOKENS), expected, rtol=1e-12)


def test_an_embedding_skip_of_gains_zero_changes_nothing() -> None:
    plain = Architecture((Block(8, 2, 3),), embedding_width=4, vocab_size=32, head_dim=4)
    skip, tensors = replace(plain, embedding_skip=True), float64(plain)
    tensors["blocks.0.skip_gains"] = np.zeros((3, 1, 8))
    np.testing.assert_array_equal(forward(skip, tensors, TOKENS), forward(plain, tensors, TOKENS))


def test_float32_agrees_with_float64() -> None:
    tensors = random_tensors(NARROW_TO_WIDE, 1, scale=0.3)
    single = forward(NARROW_TO_WIDE, tensors, TOKENS)
    double = forward(NARROW_TO_WIDE, {n: t.astype(np.float64) for n, t in tensors.items()}, TOKENS)
    assert single.dtype == np.float32
    assert np.abs(single - double).max() < 1e-5 * double.std() + 1e-5
