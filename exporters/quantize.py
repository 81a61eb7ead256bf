"""A weight matrix as small integers and float32 scales.

Symmetric quantization: within a group of values along the input axis, `w ~ q * scale` with
`scale = max|w| / q_max`. A group is a whole row (one scale per output channel) or a block of it.
Rounding to nearest leaves an error of at most half a scale, so at most `max|w| / (2 q_max)` of the
group: 0.4 % of its largest value at 8 bits, 7.2 % at 4 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class QuantizedTensor:
    """A matrix `[out, in]` in integers.

    Attributes:
        values: int8 `[out, in]`, in `-q_max .. q_max`.
        scale: float32 `[out, groups]`; a group is `in / groups` values of one row.
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


def quantize_rows(matrix: Float32) -> QuantizedTensor:
    """Quantize to int8 with one scale per row.

    Args:
        matrix: float32 `[out, in]`, finite.

    Returns:
        Values in -127 .. 127; `|matrix - dequantize()| <= scale / 2` up to float32 rounding.
    """
    return quantize_blocks(matrix, matrix.shape[1], bits=8)


def quantize_blocks(matrix: Float32, block: int, bits: int) -> QuantizedTensor:
    """Quantize with one scale per `block` values of a row.

    Args:
        matrix: float32 `[out, in]`, finite; `block` divides `in`.
        block: Values that share a scale.
        bits: 8 or 4.

    Returns:
        Values in `-q_max .. q_max`, `q_max = 2**(bits-1) - 1`; error at most half a scale.
    """
    rows, columns = matrix.shape
    q_max = np.float32(2 ** (bits - 1) - 1)
    grouped = matrix.reshape(rows, columns // block, block)
    largest = np.maximum(grouped.max(-1), -grouped.min(-1))  # (out, groups)
    scale = largest / q_max
    scale[scale < np.finfo(np.float32).tiny] = 1.0  # a row of zeros, or of values below any use
    values = grouped / scale[:, :, None]
    np.rint(values, out=values)
    np.clip(values, -q_max, q_max, out=values)
    return QuantizedTensor(values.astype(np.int8).reshape(rows, columns), scale, bits)
