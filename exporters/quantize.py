"""A weight matrix as small integers and float32 scales.

Symmetric quantization: within a group of values along the input axis, `w ~ q * scale`. A group is a
whole row (one scale per output channel) or a block of it.

At 8 bits `scale = max|w| / 127`; rounding to nearest leaves at most half a scale, 0.4 % of the
group's largest value. Where a whole row shares a scale, products are computed in integers, and x86
without VNNI (Intel's until 2019 to 2021, AMD's before Zen 4) adds the products of two neighbours in
16 bits, which overflow. So there `scale` is at least `max|w[2i] + w[2i+1]| / 128`, too: the integers
of two neighbours add up to at most 128 in size, and times 255 of an activation to 32,640.

At 4 bits the value of largest magnitude becomes -8, whatever its sign, so that all 16 steps are used:
`scale = -extreme / 8`. The error is at most half a scale, and one scale for values past 7.5 steps on
the other side: 6.3 % and 12.5 % of the largest value. On average it is a tenth smaller than with the
15 steps -7 .. 7 (measured on trained and on Gaussian weights).

That is rounding to nearest. `RoundedMatrix` carries integers and scales that were chosen with more
care (`quantizers.py`) to whoever asks here for a matrix's integers, so that no writer of files needs
to know how they were chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
RANGES = {8: (-127, 127), 4: (-8, 7)}  # of the integers, by bits
PAIR_LIMIT = 128  # of the sum of two neighbours' integers, in size: 255 times it fits 16 bits


@dataclass(frozen=True)
class QuantizedTensor:
    """A matrix `[out, in]` in integers.

    Attributes:
        values: int8 `[out, in]`; in -127 .. 127, or -8 .. 7 at 4 bits.
        scale: float32, of either sign, `[out, groups]`; a group is `in / groups` values of one row.
        bits: Bits a stored value takes: 8, or 4 (two to a byte in the file).
    """

    values: npt.NDArray[np.int8]
    scale: Float32
    bits: int = 8

    def __post_init__(self) -> None:
        """Check that scales and values belong together."""
        rows, columns = self.values.shape
        assert self.values.dtype == np.int8 and self.scale.dtype == np.float32 and self.bits in (4, 8)
        assert self.scale.shape[0] == rows and columns % self.scale.shape[1] == 0

    @property
    def stored_bytes(self) -> int:
        """Bytes of values and scales as a file holds them."""
        return self.values.size * self.bits // 8 + self.scale.nbytes

    def dequantize(self) -> Float32:
        """Return `values * scale`, float32 `[out, in]`."""
        rows, groups = self.scale.shape
        grouped = self.values.reshape(rows, groups, -1).astype(np.float32)  # (out, groups, in / groups)
        grouped *= self.scale[:, :, None]
        return grouped.reshape(self.values.shape)


class RoundedMatrix(npt.NDArray[np.float32]):
    """A float32 matrix `[out, in]` that lies on a grid already, and knows its integers and scales.

    To numpy it is a plain array; whatever is computed from it knows no integers any more.
    """

    quantized: QuantizedTensor | None

    def __new__(cls, quantized: QuantizedTensor) -> RoundedMatrix:
        """Make the matrix of its integers."""
        matrix = quantized.dequantize().view(cls)
        matrix.quantized = quantized
        return matrix

    def __array_finalize__(self, parent: Any) -> None:
        """Forget the integers in views and results."""
        self.quantized = None


def quantize_rows(matrix: Float32) -> QuantizedTensor:
    """Quantize to int8 with one scale per row.

    Args:
        matrix: float32 `[out, in]`, finite.

    Returns:
        Values in -127 .. 127, those of neighbours within `PAIR_LIMIT`; `|matrix - dequantize()| <= scale / 2` up to
        float32 rounding.
    """
    return quantize_blocks(matrix, matrix.shape[1], bits=8)


def is_paired(bits: int, block: int, columns: int) -> bool:
    """Say whether products are computed in integers, so that those of two neighbours are added in 16 bits."""
    return bits == 8 and block == columns > 1


def hold_pairs(values: npt.NDArray[np.int8]) -> None:
    """Bring the integers `[out, in]` of two neighbours within `PAIR_LIMIT`, the larger one nearer to zero."""
    second = values[:, 1::2]
    first = values[:, ::2][:, : second.shape[1]]  # (out, in // 2), both views
    sums = first.astype(np.int16) + second
    at = np.nonzero(np.abs(sums) > PAIR_LIMIT)
    excess = (sums[at] - np.sign(sums[at]) * PAIR_LIMIT).astype(np.int8)
    of_first = np.abs(first[at]) > np.abs(second[at])
    first[at] -= excess * of_first
    second[at] -= excess * ~of_first


def quantize_blocks(matrix: Float32, block: int, bits: int) -> QuantizedTensor:
    """Quantize with one scale per `block` values of a row.

    Args:
        matrix: float32 `[out, in]`, finite; `block` divides `in`.
        block: Values that share a scale.
        bits: 8 or 4.

    Returns:
        Values and scales; the error bound is the module's. Those that a `RoundedMatrix` brings.
    """
    if isinstance(matrix, RoundedMatrix) and matrix.quantized is not None:
        given = matrix.quantized
        assert given.bits == bits and given.scale.shape[1] * block == matrix.shape[1], "rounded for another recipe"
        return given
    rows, columns = matrix.shape
    grouped = matrix.reshape(rows, columns // block, block)
    high, low = grouped.max(-1), grouped.min(-1)  # (out, groups)
    if bits == 8:
        q_min, q_max = -127, 127
        scale = np.maximum(high, -low) / np.float32(127)
        if is_paired(bits, block, columns):
            sums = matrix[:, 1::2] / np.float32(PAIR_LIMIT)
            sums += matrix[:, : columns - 1 : 2] / np.float32(PAIR_LIMIT)
            np.maximum(scale, np.abs(sums).max(1, keepdims=True), out=scale)
    else:
        q_min, q_max = -8, 7
        scale = np.where(high > -low, high, low) / np.float32(-8)
    scale[np.abs(scale) < np.finfo(np.float32).tiny] = 1.0  # a row of zeros, or of values below any use
    values = grouped / scale[:, :, None]
    np.rint(values, out=values)
    np.clip(values, q_min, q_max, out=values)
    integers = values.astype(np.int8).reshape(rows, columns)
    if is_paired(bits, block, columns):
        hold_pairs(integers)
    return QuantizedTensor(integers, scale, bits)
