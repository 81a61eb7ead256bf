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
Context = tuple[ir.Value | None, ...]


class Matrices(Protocol):
    """Products with weight matrices, as one recipe stores them."""

    def embed(self, g: GraphWriter, table: Float32, token_ids: ir.Value) -> ir.Value:
        """Rows of the token table `[V, E]`: (1, T) -> (1, T, E)."""

    def linear(self, g: GraphWriter, name: str, matrices: Sequence[Float32], x: ir.Value) -> ir.Value:
        """`x @ W.T` for the matrices `[out, in]` stacked along `out`: (..., in) -> (..., out)."""

    def head(self, g: GraphWriter, table: Float32, x: ir.Value, name: str) -> ir.Value:
        """Logits by the same token table: (N, E) -> (N, V), named `name`."""


class Layer(Protocol):
    """Everything of a layer that is no product with weights.

    `context` is what every layer's attention reads besides its own values: rotary tables, masks,
    lengths. It is computed once, by `causal`, and only the layer knows what is in it.
    """

    opsets: ClassVar[dict[str, int]]
    ir_version: ClassVar[int]
    dtype: ClassVar[ir.DataType]  # of activations, norm gains and cache

    def cache_in_place(self, head_dim: int) -> bool:
        """Say whether the cache may be bound as input and output at once, longer than it is filled."""

    def causal(self, g: GraphWriter, head_dim: int, past: ir.Value, new: ir.Value) -> Context:
        """Context of one sequence without padding; `past` and `new` are P and T, int64 (1)."""

    def norm(self, g: GraphWriter, x: ir.Value, gain: ir.Value) -> ir.Value:
        """RMSNorm over the last axis."""

    def add_norm(self, g: GraphWriter, x: ir.Value, delta: ir.Value, gain: ir.Value) -> tuple[ir.Value, ir.Value]:
        """`x + delta`, and its norm."""

    def gelu(self, g: GraphWriter, x: ir.Value) -> ir.Value:
        """Exact: x * Phi(x)."""

    def attend(
        self,
        g: GraphWriter,
        qkv: ir.Value,
        past: tuple[ir.Value, ir.Value],
        heads: int,
        context: Context,
        names: Sequence[str | None] = (None, None, None),
    ) -> tuple[ir.Value, ...]:
        """Causal attention with a cache; queries and keys are turned by their positions first.

        Args:
            g: The graph.
            qkv: Queries, keys and values beside each other: (B, T, 3 * H * D).
            past: Keys and values so far: (B, H, P, D) each.
            heads: H.
            context: From `causal` (or `masked`).
            names: Of the three outputs.

        Returns:
            (B, T, H * D), and keys and values (B, H, P + T, D).
        """


class MaskedLayer(Layer, Protocol):
    """A layer that also takes the mask of the unrolled form."""

    def masked(self, g: GraphWriter, head_dim: int, attention_mask: ir.Value, token_ids: ir.Value) -> Context:
        """Context of B sequences padded on the left: (B, P + T) and (B, T), int64."""


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
    ir_version: ClassVar[int] = 11
    dtype: ClassVar[ir.DataType] = ir.DataType.FLOAT

    def cache_in_place(self, head_dim: int) -> bool:
        """See `Layer`: the operator gives the whole cache anew."""
        del head_dim
        return False

    def causal(self, g: GraphWriter, head_dim: int, past: ir.Value, new: ir.Value) -> Context:
        """See `Layer`."""
        return (*rotary_tables(g, head_dim, positions(g, past, new)), None)

    def masked(self, g: GraphWriter, head_dim: int, attention_mask: ir.Value, token_ids: ir.Value) -> Context:
        """See `MaskedLayer`; the mask is (B, 1, T, P + T) bool, False where a position is padding."""
        new, axis = g.op("Shape", token_ids, start=1, end=2), g.constant([1], np.int64)
        kept = g.op("Unsqueeze", g.op("Cast", attention_mask, to=ir.DataType.BOOL), g.constant([1, 2], np.int64))
        mask = g.op("Expand", kept, g.op("Concat", axis, axis, new, axis, axis=0))  # (1, 1, T, 1) widens the rows
        return (*rotary_tables(g, head_dim, masked_positions(g, attention_mask, new)), mask)

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
        qkv: ir.Value,
        past: tuple[ir.Value, ir.Value],
        heads: int,
        context: Context,
        names: Sequence[str | None] = (None, None, None),
    ) -> tuple[ir.Value, ...]:
        """See `Layer`."""
        *tables, mask = context
        q, k, v = g.ops("Split", qkv, outputs=3, axis=-1, num_outputs=3)
        q, k = (g.op("RotaryEmbedding", t, *tables, num_heads=heads) for t in (q, k))
        inputs = (q, k, v, mask, *past)
        return g.ops("Attention", *inputs, outputs=3, names=names, q_num_heads=heads, kv_num_heads=heads, is_causal=1)


def positions(g: GraphWriter, past: ir.Value, new: ir.Value) -> ir.Value:
    """Return P .. P + T - 1: (1, T), int64."""
    axis = g.constant([0], np.int64)
    first, end = g.op("Squeeze", past, axis), g.op("Squeeze", g.op("Add", past, new), axis)
    return g.op("Unsqueeze", g.op("Range", first, end, g.constant(1, np.int64)), axis)


def masked_positions(g: GraphWriter, attention_mask: ir.Value, new: ir.Value) -> ir.Value:
    """Return the positions of the T new tokens, counting only what the mask keeps: (B, T), int64."""
    count = g.op("CumSum", attention_mask, g.constant(1, np.int64))  # (B, P + T)
    last = g.constant([np.iinfo(np.int64).max], np.int64)
    counted = g.op("Slice", count, g.op("Neg", new), last, g.constant([1], np.int64))  # (B, T)
    one = g.constant(1, np.int64)
    return g.op("Sub", g.op("Max", counted, one), one)


def rotary_tables(
    g: GraphWriter, head_dim: int, at: ir.Value, dtype: ir.DataType = ir.DataType.FLOAT
) -> tuple[ir.Value, ir.Value]:
    """Return cosines and sines of positions (..., T): (..., T, D/2) each.

    Computed in float64, so that far positions keep their angles. Cosines are sines a quarter turn
    on: onnxruntime 1.23 has no float64 Cos.
    """
    half = head_dim // 2
    frequency = ROPE_THETA ** (-np.arange(half, dtype=np.float64) / half)
    column = g.op("Unsqueeze", g.op("Cast", at, to=ir.DataType.DOUBLE), g.constant([-1], np.int64))
    angle = g.op("Mul", column, g.constant(frequency, np.float64))
    quarter_on = g.op("Add", angle, g.constant(np.pi / 2, np.float64))
    cos, sin = (g.op("Cast", g.op("Sin", a), to=dtype) for a in (quarter_on, angle))
    return cos, sin
