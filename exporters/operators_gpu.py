"""Operators for GPU providers: float16 activations and cache, in plain layers.

onnxruntime's own operators over opset 17, so that builds for boards, which are older than the
newest release, take them too. Attention turns queries and keys by their positions itself and writes
into the cache it reads, which stays on the device. Nothing here multiplies integers by integers:
the CUDA provider would send such products to the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from merino_edge.architecture import NORM_EPSILON
from merino_edge.exporters.graph import GraphWriter
from merino_edge.exporters.operators import Context, Float32, rotary_tables
from merino_edge.exporters.operators_fast import MICROSOFT, BlockMatrices, cache_lengths

HEAD_MULTIPLE = 16  # of head_dim: what the attention turns in vectors


class GpuLayer:
    """A layer in float16. Sums inside norms and attention are float32, as the operators have it."""

    opsets: ClassVar[dict[str, int]] = {"": 17, MICROSOFT: 1}
    ir_version: ClassVar[int] = 8
    dtype: ClassVar[ir.DataType] = ir.DataType.FLOAT16

    def cache_in_place(self, head_dim: int) -> bool:
        """See `Layer`."""
        del head_dim
        return True

    def causal(self, g: GraphWriter, head_dim: int, past: ir.Value, new: ir.Value) -> Context:
        """See `Layer`: tables of all P + T positions, and two lengths."""
        total = g.op("Add", past, new)
        return self._context(g, head_dim, total, total)

    def masked(self, g: GraphWriter, head_dim: int, attention_mask: ir.Value, token_ids: ir.Value) -> Context:
        """See `MaskedLayer`; one sequence, or several without padding: the ones of each row are counted."""
        del token_ids
        counted = g.op("ReduceSum", attention_mask, g.constant([1], np.int64), keepdims=0)  # (B)
        return self._context(g, head_dim, counted, g.op("Shape", attention_mask, start=1, end=2))

    def _context(self, g: GraphWriter, head_dim: int, counted: ir.Value, total: ir.Value) -> Context:
        end = g.op("Squeeze", total, g.constant([0], np.int64))
        every = g.op("Range", g.constant(0, np.int64), end, g.constant(1, np.int64))  # (P + T)
        last, _ = cache_lengths(g, counted)
        return (*rotary_tables(g, head_dim, every, self.dtype), last, g.op("Cast", end, to=ir.DataType.INT32))

    def norm(self, g: GraphWriter, x: ir.Value, gain: ir.Value) -> ir.Value:
        """See `Layer`."""
        return g.op("SimplifiedLayerNormalization", x, gain, axis=-1, epsilon=NORM_EPSILON)

    def add_norm(self, g: GraphWriter, x: ir.Value, delta: ir.Value, gain: ir.Value) -> tuple[ir.Value, ir.Value]:
        """See `Layer`."""
        op = "SkipSimplifiedLayerNormalization"
        names = [None, "", "", None]  # mean and deviation are not wanted
        normed, _, _, total = g.ops(op, x, delta, gain, outputs=4, names=names, domain=MICROSOFT, epsilon=NORM_EPSILON)
        return total, normed

    def gelu(self, g: GraphWriter, x: ir.Value) -> ir.Value:
        """See `Layer`."""
        return g.op("Gelu", x, domain=MICROSOFT)

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
        cos, sin, last, total = context
        inputs = (qkv, None, None, *past, last, total, cos, sin)
        attributes = {"num_heads": heads, "kv_num_heads": heads, "do_rotary": 1}
        return g.ops("GroupQueryAttention", *inputs, outputs=3, names=names, domain=MICROSOFT, **attributes)


class Float16Matrices:
    """float16 weights: `[in, out]` for MatMul; the table once, as rows and transposed by Gemm."""

    def embed(self, g: GraphWriter, table: Float32, token_ids: ir.Value) -> ir.Value:
        """See `Matrices`."""
        return g.op("Gather", g.weight("embedding.weight", half(table)), token_ids)

    def linear(self, g: GraphWriter, name: str, matrices: Sequence[Float32], x: ir.Value) -> ir.Value:
        """See `Matrices`."""
        return g.op("MatMul", x, g.weight(name, np.concatenate([half(m.T) for m in matrices], axis=1)))

    def head(self, g: GraphWriter, table: Float32, x: ir.Value, name: str) -> ir.Value:
        """See `Matrices`; logits leave in float32."""
        del table  # stored by embed
        logits = g.op("Gemm", x, g.stored("embedding.weight"), transB=1)
        return g.op("Cast", logits, to=ir.DataType.FLOAT, name=name)


@dataclass(frozen=True)
class HalfBlockMatrices(BlockMatrices):
    """Block-quantized weights with float16 scales and activations."""

    scale_dtype: npt.DTypeLike = np.float16
    accuracy_level: int = 0  # of no meaning to GPU kernels

    def head(self, g: GraphWriter, table: Float32, x: ir.Value, name: str) -> ir.Value:
        """See `Matrices`; logits leave in float32."""
        product = self._product(g, x, "embedding.weight", table.shape, self.table_bits)
        return g.op("Cast", product, to=ir.DataType.FLOAT, name=name)


def half(array: Float32) -> npt.NDArray[np.float16]:
    """Return float16; what float16 cannot hold becomes infinite, which the parity check refuses."""
    with np.errstate(over="ignore"):
        return array.astype(np.float16)
