"""Scales that leave a small squared error, where the largest value of a block need not be kept exactly.

Rounding to nearest takes each block's scale from its largest value (`quantize.py`). At 4 bits a
smaller scale, which clips that one value, often serves the others better. `best_scales` tries a
fixed number of them, on either side of zero, and keeps the one of smallest error: of the weights
themselves, or of the outputs where the mean square of each input is known.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from merino_edge.exporters.quantize import RANGES, QuantizedTensor, quantize_blocks

Float32 = npt.NDArray[np.float32]
SHARES = np.linspace(0.6, 1.0, 17)  # of the scale that keeps the largest value
CHUNK = 1 << 20  # values tried at once: bounds the memory


def best_scales(matrix: Float32, block: int, bits: int, importance: npt.NDArray[np.floating] | None = None) -> Float32:
    """Choose a scale per block of inputs.

    Args:
        matrix: float32 `[out, in]`.
        block: Inputs that share a scale; divides `in`.
        bits: 8 or 4.
        importance: `[in]`, what a squared error of each input counts; None for all the same.

    Returns:
        float32 `[out, in / block]`.
    """
    rows, columns = matrix.shape
    weight = None if importance is None else importance.astype(np.float32).reshape(1, -1, block)
    chunk = max(1, CHUNK // columns)
    parts = [
        _best_of(matrix[start : start + chunk].reshape(-1, columns // block, block), bits, weight)
        for start in range(0, rows, chunk)
    ]
    return np.concatenate(parts)


def _best_of(grouped: Float32, bits: int, weight: Float32 | None) -> Float32:
    """Return the best scale of each group `(rows, groups, block)`: `(rows, groups)`."""
    q_min, q_max = RANGES[bits]
    high, low = grouped.max(-1), grouped.min(-1)
    extreme = np.where(high > -low, high, low)
    tiny = np.finfo(np.float32).tiny
    best = np.full(extreme.shape, np.inf, np.float32)
    chosen = np.ones(extreme.shape, np.float32)
    for end in (q_min, q_max):  # the integer that the largest value becomes
        for share in SHARES:
            scale = (extreme * np.float32(share / end)).astype(np.float32)
            scale[np.abs(scale) < tiny] = 1.0
            error = grouped / scale[:, :, None]
            np.clip(np.rint(error, out=error), q_min, q_max, out=error)
            error *= scale[:, :, None]
            error -= grouped
            error *= error
            total = error.sum(-1) if weight is None else (error * weight).sum(-1)
            better = total < best
            best[better], chosen[better] = total[better], scale[better]
    return chosen


def round_to_scales(matrix: Float32, scale: Float32, bits: int) -> QuantizedTensor:
    """Round a matrix `[out, in]` to the nearest steps of given scales `[out, groups]`."""
    q_min, q_max = RANGES[bits]
    grouped = matrix.reshape(*scale.shape, -1) / scale[:, :, None]
    values = np.clip(np.rint(grouped, out=grouped), q_min, q_max, out=grouped)
    return QuantizedTensor(values.astype(np.int8).reshape(matrix.shape), scale, bits)


def quantize_with_mse(matrix: Float32, block: int, bits: int) -> QuantizedTensor:
    """Quantize with the scales of least squared error; never worse than by the largest value."""
    if bits == 8:
        return quantize_blocks(matrix, block, bits)
    return round_to_scales(matrix, best_scales(matrix, block, bits), bits)
