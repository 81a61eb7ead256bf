"""What rounding activations to 8 bits does by itself, computed in numpy: the other half of `dynamic_wi8_afp32`.

Each product of the file rounds its input to 256 steps between the smallest and the largest value of
the whole input, zero among them (ONNX DynamicQuantizeLinear): one scale a tensor, so that the result
depends on how a prompt is cut into pieces. How much comes of it depends on the weights: little for small
random ones, half a standard deviation of the logits for a model of 50 M parameters trained on 300 M
tokens, whose activations have a few large values, and more than any bound could allow where attention
looks at one token only and layers amplify small differences (random weights of standard deviation 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from merino_edge.architecture import Architecture
from merino_edge.exporting import Tensors
from merino_edge.reference import forward

Float32 = npt.NDArray[np.float32]
STEPS = np.float32(255)


class _RoundingInputs:
    """A matrix `[out, in]` in the place of an array, which rounds what it is multiplied with."""

    __array_ufunc__ = None  # numpy leaves `x @ matrix` to `__rmatmul__`

    def __init__(self, matrix: Float32) -> None:
        self._matrix = matrix

    @property
    def T(self) -> _RoundingInputs:
        return self

    def __getitem__(self, rows: Any) -> Float32:
        return np.asarray(self._matrix[rows])

    def __rmatmul__(self, x: Float32) -> Float32:
        return round_to_8_bits(x) @ self._matrix.T


def round_to_8_bits(x: Float32) -> Float32:
    """Return `x` on 256 steps between its extremes and zero, as DynamicQuantizeLinear and back."""
    low, high = np.minimum(x.min(), 0), np.maximum(x.max(), 0)
    step = np.float32(high - low) / STEPS or np.float32(1)
    zero = np.rint(-low / step)
    steps: Float32 = np.clip(np.rint(x / step) + zero, 0, STEPS) - zero
    return steps * step


def forward_with_rounded_activations(
    architecture: Architecture, tensors: Tensors, token_ids: npt.NDArray[np.integer]
) -> Float32:
    """Compute the logits `(T, V)` of a prompt read in one piece, every product's input rounded to 8 bits."""
    replaced = {name: _RoundingInputs(tensor) if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}
    logits: Float32 = forward(architecture, cast(Mapping[str, Any], replaced), token_ids)
    return logits
