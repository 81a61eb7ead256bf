"""The same layer in different operators.

Two small classes make an operator set: `Matrices` writes whatever multiplies by a weight matrix,
by recipe; `Layer` writes all the rest (norm, rotary positions, attention, activation), by form.
`decoder.py` knows neither recipe nor form. Here are the two protocols and the operators of the ONNX
standard; `operators_fast.py` has onnxruntime's own.

Shapes: B sequences (1 but in the unrolled form), T new tokens, P tokens in the cache, E width,
H heads, D head_dim, N logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from merino_edge.architecture import NORM_EPSILON, ROPE_THETA
from merino_edge.exporters.graph import GraphWriter
from merino_edge.exporters.quantize import quantize_rows

Float32 = npt.NDArray[np.float32]


class Matrices(Protocol):
    """Products with weight matrices, as one recipe stores them."""

    def embed(self, g: GraphWriter, table: Float32, token_ids: ir.Value) -> ir.Value:
        """Rows of the token table `[V, E]`: (1, T) -> (1, T, E)."""

    def linear(self, g: GraphWriter, name: str, matrices: Sequence[Float32], x: ir.Value) -> ir.Value:
        """`x @ W.T` for the matrices `[out, in]` stacked along `out`: (..., in) -> (..., out)."""

    def head(self, g: GraphWriter, table: Float32, x: ir.Value, name: str) -> ir.Value:
        """Logits by the same token table: (N, E) -> (N, V), named `name`."""


class Layer(Protocol):
    """Everything of a layer that is no product with weights."""

    opsets: ClassVar[dict[str, int]]

    def rotary_tables(self, g: GraphWriter, head_dim: int, positions: ir.Value) -> tuple[ir.Value, ...]:
        """Cosines and sines of positions (B, T), int64, for `rotate`: (B, T, D/2) each."""

    def rotate(self, g: GraphWriter, x: ir.Value, tables: tuple[ir.Value, ...], heads: int) -> ir.Value:
        """Turn each head by its position: (1, T, H * D) -> the same."""

    def norm(self, g: GraphWriter, x: ir.Value, gain: ir.Value) -> ir.Value:
        """RMSNorm over the last axis."""

    def add_norm(self, g: GraphWriter, x: ir.Value, delta: ir.Value, gain: ir.Value) -> tuple[ir.Value, ir.Value]:
        """`x + delta`, and its norm."""

    def gelu(self, g: GraphWriter, x: ir.Value) -> ir.Value:
        """Exact: x * Phi(x)."""

    def attend(
        self,
        g: GraphWriter,
        qkv: tuple[ir.Value, ir.Value, ir.Value],
        past: tuple[ir.Value, ir.Value],
        heads: int,
        mask: ir.Value | None = None,
        names: Sequence[str | None] = (None, None, None),
    ) -> tuple[ir.Value, ...]:
        """Causal attention with a cache.

        Args:
            g: The graph.
            qkv: Rotated queries and keys, and values: (1, T, H * D) each.
            past: Keys and values so far: (1, H, P, D) each.
            heads: H.
            mask: (B, 1, T, P + T) bool, False where a position is padding; None for none.
            names: Of the three outputs.

        Returns:
            (1, T, H * D), and keys and values (1, H, P + T, D).
        """


class Float32Matrices:
    """Float32 weights: `[in, out]` for MatMul; the table once, as rows and transposed by Gemm."""

    def embed(self, g: GraphWriter, table: Float32, token_ids: ir.Value) -> ir.Value:
        """See `Matrices`."""
        return g.op("Gather", g.weight("embedding.weight", table), token_ids)

    def linear(self, g: GraphWriter, name: str, matrices: Sequence[Float32], x: ir.Value) -> ir.Value:
        """See `Matrices`."""
        return g.op("MatMul", x, g.weight(name, np.concatenate([m.T for m in matrices], axis=1)))

    def head(self, g: GraphWriter, table: Float32, x: ir.Value, name: str) -> ir.Value:
        """See `Matrices`."""
        return g.op("Gemm", x, g.weight("embedding.weight", table), name=name, transB=1)


class DynamicInt8Matrices:
    """int8 weights, one scale per output channel; inputs quantized to 8 bits at run time.

    onnxruntime recognises MatMulInteger, Cast and the two Mul as one kernel and packs the weights.
    The table is stored `[V, E]`; the runtime transposes and packs it for the head while loading,
    and the rows that Gather reads stay in the mapped file.
    """

    def embed(self, g: GraphWriter, table: Float32, token_ids: ir.Value) -> ir.Value:
        """See `Matrices`."""
        quantized = quantize_rows(table)
        values = g.weight("embedding.weight", quantized.values)  # (V, E)
        scale = g.weight("embedding.scale", quantized.scale[:, 0])  # (V,)
        rows = g.op("Cast", g.op("Gather", values, token_ids), to=ir.DataType.FLOAT)  # (1, T, E)
        by_row = g.op("Unsqueeze", g.op("Gather", scale, token_ids), g.constant([-1], np.int64))  # (1, T, 1)
        return g.op("Mul", rows, by_row)

    def linear(self, g: GraphWriter, name: str, matrices: Sequence[Float32], x: ir.Value) -> ir.Value:
        """See `Matrices`."""
        quantized = [quantize_rows(m) for m in matrices]
        values = g.weight(name, np.concatenate([q.values.T for q in quantized], axis=1))  # (in, out)
        scale = g.weight(f"{name}.scale", np.concatenate([q.scale[:, 0] for q in quantized]))  # (out,)
        return self._product(g, x, values, scale)

    def head(self, g: GraphWriter, table: Float32, x: ir.Value, name: str) -> ir.Value:
        """See `Matrices`."""
        del table  # stored by embed
        values, scale = g.stored("embedding.weight"), g.stored("embedding.scale")
        return self._product(g, x, g.op("Transpose", values, perm=[1, 0]), scale, name=name)

    def _product(
        self, g: GraphWriter, x: ir.Value, values: ir.Value, scale: ir.Value, name: str | None = None
    ) -> ir.Value:
        """One product (..., in) x (in, out), the row scales taken in after the integers are summed."""
        codes, step, zero = g.ops("DynamicQuantizeLinear", x, outputs=3)
        sums = g.op("Cast", g.op("MatMulInteger", codes, values, zero), to=ir.DataType.FLOAT)
        return g.op("Mul", sums, g.op("Mul", step, scale), name=name)


class StandardLayer:
    """ONNX's own operators of opset 23, nothing else: onnxruntime 1.23 and later."""

    opsets: ClassVar[dict[str, int]] = {"": 23}

    def rotary_tables(self, g: GraphWriter, head_dim: int, positions: ir.Value) -> tuple[ir.Value, ...]:
        """See `Layer`; computed in float64, so that far positions keep their angles.

        Cosines are sines a quarter turn on: onnxruntime 1.23 has no float64 Cos.
        """
        half = head_dim // 2
        frequency = ROPE_THETA ** (-np.arange(half, dtype=np.float64) / half)
        column = g.op("Unsqueeze", g.op("Cast", positions, to=ir.DataType.DOUBLE), g.constant([-1], np.int64))
        angle = g.op("Mul", column, g.constant(frequency, np.float64))  # (B, T, D/2)
        quarter_on = g.op("Add", angle, g.constant(np.pi / 2, np.float64))
        return tuple(g.op("Cast", g.op("Sin", a), to=ir.DataType.FLOAT) for a in (quarter_on, angle))

    def rotate(self, g: GraphWriter, x: ir.Value, tables: tuple[ir.Value, ...], heads: int) -> ir.Value:
        """See `Layer`."""
        return g.op("RotaryEmbedding", x, *tables, num_heads=heads)

    def norm(self, g: GraphWriter, x: ir.Value, gain: ir.Value) -> ir.Value:
        """See `Layer`."""
        return g.op("RMSNormalization", x, gain, axis=-1, epsilon=NORM_EPSILON)

    def add_norm(self, g: GraphWriter, x: ir.Value, delta: ir.Value, gain: ir.Value) -> tuple[ir.Value, ir.Value]:
        """See `Layer`."""
        total = g.op("Add", x, delta)
        return total, self.norm(g, total, gain)

    def gelu(self, g: GraphWriter, x: ir.Value) -> ir.Value:
        """See `Layer`."""
        return g.op("Gelu", x, approximate="none")

    def attend(
        self,
        g: GraphWriter,
        qkv: tuple[ir.Value, ir.Value, ir.Value],
        past: tuple[ir.Value, ir.Value],
        heads: int,
        mask: ir.Value | None = None,
        names: Sequence[str | None] = (None, None, None),
    ) -> tuple[ir.Value, ...]:
        """See `Layer`."""
        return g.ops(
            "Attention", *qkv, mask, *past, outputs=3, names=names, q_num_heads=heads, kv_num_heads=heads, is_causal=1
        )
