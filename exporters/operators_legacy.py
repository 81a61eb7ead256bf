"""Operators of opset 17 alone, with what came later spelled out: the form `legacy`, onnxruntime 1.17 and later.

For boards whose Python gets no newer runtime (3.8 and 3.9 stop at onnxruntime 1.19.2). Norm and
activation are spelled in the order of operators in which onnxruntime recognises and fuses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from merino_edge.architecture import NORM_EPSILON
from merino_edge.exporters.graph import GraphWriter
from merino_edge.exporters.operators import Context, positions, rotary_tables

MASKED = -1e9  # added to a score; its exponential is 0


class LegacyLayer:
    """A layer without RMSNormalization, RotaryEmbedding, Gelu and Attention."""

    opsets: ClassVar[dict[str, int]] = {"": 17}
    ir_version: ClassVar[int] = 8
    dtype: ClassVar[ir.DataType] = ir.DataType.FLOAT

    def cache_in_place(self, head_dim: int) -> bool:
        """See `Layer`: keys and values are joined anew."""
        del head_dim
        return False

    def causal(self, g: GraphWriter, head_dim: int, past: ir.Value, new: ir.Value) -> Context:
        """See `Layer`: cosines and signed sines (1, T, 1, D), and what is added to the scores (T, P + T)."""
        at = positions(g, past, new)  # (1, T)
        cos, sin = rotary_tables(g, head_dim, at)
        tables = (g.op("Concat", cos, cos, axis=-1), g.op("Concat", g.op("Neg", sin), sin, axis=-1))  # (1, T, D)
        by_head = [g.op("Unsqueeze", table, g.constant([2], np.int64)) for table in tables]
        zero, one = g.constant(0, np.int64), g.constant(1, np.int64)
        end = g.op("Squeeze", g.op("Add", past, new), g.constant([0], np.int64))
        column = g.op("Unsqueeze", g.op("Squeeze", at, g.constant([0], np.int64)), g.constant([1], np.int64))
        later = g.op("Less", column, g.op("Range", zero, end, one))  # (T, P + T)
        return (*by_head, g.op("Mul", g.op("Cast", later, to=self.dtype), g.constant(MASKED, np.float32)))

    def norm(self, g: GraphWriter, x: ir.Value, gain: ir.Value) -> ir.Value:
        """See `Layer`."""
        mean = g.op("ReduceMean", g.op("Pow", x, g.constant(2, np.float32)), axes=[-1], keepdims=1)
        deviation = g.op("Sqrt", g.op("Add", mean, g.constant(NORM_EPSILON, np.float32)))
        return g.op("Mul", g.op("Div", x, deviation), gain)

    def add_norm(self, g: GraphWriter, x: ir.Value, delta: ir.Value, gain: ir.Value) -> tuple[ir.Value, ir.Value]:
        """See `Layer`."""
        total = g.op("Add", x, delta)
        return total, self.norm(g, total, gain)

    def gelu(self, g: GraphWriter, x: ir.Value) -> ir.Value:
        """See `Layer`."""
        erf = g.op("Erf", g.op("Div", x, g.constant(np.sqrt(2), np.float32)))
        return g.op("Mul", g.op("Mul", x, g.op("Add", erf, g.constant(1, np.float32))), g.constant(0.5, np.float32))

    def attend(
        self,
        g: GraphWriter,
        qkv: ir.Value,
        past: tuple[ir.Value, ir.Value],
        heads: int,
        context: Context,
        names: Sequence[str | None] = (None, None, None),
    ) -> tuple[ir.Value, ...]:
        """See `Layer`; queries and keys are turned as 2 H heads at once."""
        cos, sin, mask = context
        split = g.op("Reshape", qkv, g.constant([0, 0, 3 * heads, -1], np.int64))  # (1, T, 3 H, D)
        qk, v = g.ops("Split", split, g.constant([2 * heads, heads], np.int64), outputs=2, axis=2)
        first, second = g.ops("Split", qk, outputs=2, axis=-1)
        turned = g.op("Mul", g.op("Concat", second, first, axis=-1), sin)
        qk = g.op("Transpose", g.op("Add", g.op("Mul", qk, cos), turned), perm=[0, 2, 1, 3])  # (1, 2 H, T, D)
        q, k = g.ops("Split", qk, outputs=2, axis=1)
        key = g.op("Concat", past[0], k, axis=2, name=names[1])  # (1, H, P + T, D)
        value = g.op("Concat", past[1], g.op("Transpose", v, perm=[0, 2, 1, 3]), axis=2, name=names[2])
        head_dim = past[0].shape[3] if past[0].shape is not None else None
        assert isinstance(head_dim, int)
        scores = g.op("MatMul", q, g.op("Transpose", key, perm=[0, 1, 3, 2]))  # (1, H, T, P + T)
        scores = g.op("Mul", scores, g.constant(head_dim**-0.5, np.float32))
        weights = g.op("Softmax", g.op("Add", scores, mask), axis=-1)
        mixed = g.op("Transpose", g.op("MatMul", weights, value), perm=[0, 2, 1, 3])  # (1, T, H, D)
        return g.op("Reshape", mixed, g.constant([0, 0, -1], np.int64), name=names[0]), key, value
