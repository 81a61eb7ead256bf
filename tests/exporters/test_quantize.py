"""Quantized matrices stay within half a scale of the original."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from merino_edge.exporters.quantize import QuantizedTensor, hold_pairs, quantize_blocks, quantize_rows

VALUES = st.floats(-(2.0**100), 2.0**100, width=32)
MATRICES = hnp.arrays(np.float32, st.tuples(st.integers(1, 7), st.sampled_from([1, 3, 8, 32])), elements=VALUES)


def error_in_scales(matrix: np.ndarray, quantized: QuantizedTensor) -> float:
    """Largest rounding error, in scales of its group."""
    groups = quantized.scale.shape[1]
    difference = np.abs(matrix.astype(np.float64) - quantized.dequantize())
    return float((difference.reshape(len(matrix), groups, -1) / np.abs(quantized.scale[:, :, None])).max())


@settings(deadline=None)
@given(MATRICES)
def test_rows_are_at_most_half_a_scale_off(matrix: np.ndarray) -> None:
    assert error_in_scales(matrix, quantize_rows(matrix)) <= 0.5 + 1e-4


@settings(deadline=None)
@given(MATRICES, st.sampled_from([4, 8]))
def test_quantizing_what_was_dequantized_changes_nothing(matrix: np.ndarray, bits: int) -> None:
    once = quantize_blocks(matrix, matrix.shape[1], bits)
    twice = quantize_blocks(once.dequantize(), matrix.shape[1], bits)
    np.testing.assert_array_equal(once.values, twice.values)


@settings(deadline=None)
@given(MATRICES)
def test_four_bits_are_at_most_one_scale_off_and_use_sixteen_steps(matrix: np.ndarray) -> None:
    quantized = quantize_blocks(matrix, matrix.shape[1], 4)
    assert -8 <= quantized.values.min() <= quantized.values.max() <= 7
    assert error_in_scales(matrix, quantized) <= 1 + 1e-4


@pytest.mark.parametrize(("bits", "steps"), [(4, (-8, 7)), (8, (-127, 127))])
def test_blocks_have_scales_of_their_own(bits: int, steps: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal((50, 96), np.float32)
    quantized = quantize_blocks(matrix, 32, bits)
    assert quantized.scale.shape == (50, 3)
    assert (quantized.values.min(), quantized.values.max()) == steps
    below = (quantized.values < 7) | (bits == 8)
    difference = np.abs(matrix - quantized.dequantize()) / np.repeat(np.abs(quantized.scale), 32, axis=1)
    assert difference[below].max() <= 0.5 + 1e-4


def test_sixteen_steps_are_nearer_than_fifteen() -> None:
    matrix = np.random.default_rng(2).standard_normal((256, 128), np.float32)
    scale = np.abs(matrix).max(1, keepdims=True) / 7
    fifteen = np.square(np.rint(matrix / scale) * scale - matrix).mean()
    sixteen = np.square(quantize_blocks(matrix, 128, 4).dequantize() - matrix).mean()
    assert sixteen < 0.85 * fifteen


def test_largest_value_of_a_block_survives() -> None:
    matrix = np.random.default_rng(1).standard_normal((20, 66), np.float32)
    blocks = matrix.reshape(40, 33)
    back = quantize_blocks(matrix, 33, bits=8).dequantize().reshape(40, 33)
    where = np.abs(blocks).argmax(1)
    np.testing.assert_allclose(back[np.arange(40), where], blocks[np.arange(40), where], rtol=1e-6)


def test_scale_of_a_row_keeps_its_largest_value_and_its_largest_pair() -> None:
    rows = np.array([[5.08, -1, 3, 2, 0.5], [3, 4, 5, -5, 1], [-6.4, 1, 1, 1, 6.35]], np.float32)
    quantized = quantize_rows(rows)
    np.testing.assert_allclose(quantized.scale[:, 0], [5.08 / 127, 7 / 128, 6.4 / 127], rtol=1e-6)
    assert quantized.values[1].tolist() == [55, 73, 91, -91, 18]


@settings(deadline=None)
@given(MATRICES)
def test_products_of_two_neighbours_fit_sixteen_bits(matrix: np.ndarray) -> None:
    values = quantize_rows(matrix).values[:, : matrix.shape[1] // 2 * 2].astype(np.int64)
    for a, b in ((255, 255), (255, 0), (254, 255)):
        sums = a * values[:, ::2] + b * values[:, 1::2]
        assert (np.abs(sums) < 2**15).all()


def test_integers_of_two_neighbours_are_brought_within_the_limit() -> None:
    values = np.array([[127, 127, -127, -2, 100, -100, 64, 65, 127]], np.int8)
    hold_pairs(values)
    assert values.tolist() == [[127, 1, -126, -2, 100, -100, 64, 64, 127]]


def test_a_row_of_zeros_stays_zero() -> None:
    np.testing.assert_array_equal(quantize_rows(np.zeros((2, 4), np.float32)).dequantize(), 0)


def test_stored_bytes_count_values_and_scales() -> None:
    matrix = np.ones((6, 64), np.float32)
    assert quantize_rows(matrix).stored_bytes == 6 * 64 + 6 * 4
    assert quantize_blocks(matrix, 32, 4).stored_bytes == 6 * 64 // 2 + 6 * 2 * 4
