"""onnxruntime's own operators (domain com.microsoft): the form `fast`, and every weight-only recipe.

`BlockMatrices` keeps int4 or int8 weights with a scale per block of inputs, as MatMulNBits takes
them. The token table is one run of bytes under two names: GatherBlockQuantized reads rows of it,
MatMulNBits multiplies by it.
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
from merino_edge.exporters.operators import (
    Context,
    DynamicInt8Matrices,
    Float32,
    StandardLayer,
    positions,
    rotary_tables,
)
from merino_edge.exporters.quantize import QuantizedTensor, quantize_blocks

MICROSOFT = "com.microsoft"
INT8_COMPUTE = 4  # accuracy_level: activations go to int8, per block, inside the product


class FusedLayer(StandardLayer):
    """The standard's layer with the residual sum and its norm in one operator."""

    opsets: ClassVar[dict[str, int]] = {"": 23, MICROSOFT: 1}

    def add_norm(self, g: GraphWriter, x: ir.Value, delta: ir.Value, gain: ir.Value) -> tuple[ir.Value, ir.Value]:
        """See `Layer`."""
        op = "SkipSimplifiedLayerNormalization"
        names = [None, "", "", None]  # mean and deviation are not wanted
        normed, _, _, total = g.ops(op, x, delta, gain, outputs=4, names=names, domain=MICROSOFT, epsilon=NORM_EPSILON)
        return total, normed


class FastLayer(FusedLayer):
    """Besides, attention that writes new keys and values into the cache it reads.

    GroupQueryAttention leaves what is in the cache where it is when past and present are the same
    memory: no copy of the cache, and no second one in memory.
    """

    def cache_in_place(self, head_dim: int) -> bool:
        """See `Layer`: the operator takes heads of a multiple of 8."""
        return head_dim % 8 == 0

    def causal(self, g: GraphWriter, head_dim: int, past: ir.Value, new: ir.Value) -> Context:
        """See `Layer`."""
        if not self.cache_in_place(head_dim):
            return super().causal(g, head_dim, past, new)
        return (*rotary_tables(g, head_dim, positions(g, past, new)), *cache_lengths(g, g.op("Add", past, new)))

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
        *tables, last, total = context
        if len(tables) < 2:  # the standard's context
            return super().attend(g, qkv, past, heads, context, names)
        q, k, v = g.ops("Split", qkv, outputs=3, axis=-1, num_outputs=3)
        q, k = (g.op("RotaryEmbedding", t, *tables, num_heads=heads) for t in (q, k))
        inputs, attributes = (q, k, v, *past, last, total), {"num_heads": heads, "kv_num_heads": heads}
        return g.ops("GroupQueryAttention", *inputs, outputs=3, names=names, domain=MICROSOFT, **attributes)


def cache_lengths(g: GraphWriter, total: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Return what GroupQueryAttention wants of P + T, int64 (1): P + T - 1 as (1), P + T as a scalar; int32."""
    last = g.op("Cast", g.op("Sub", total, g.constant([1], np.int64)), to=ir.DataType.INT32)
    return last, g.op("Cast", g.op("Squeeze", total, g.constant([0], np.int64)), to=ir.DataType.INT32)


class FastInt8Matrices(DynamicInt8Matrices):
    """The same weights as the standard form; quantization, product and scales as one operator."""

    def _product(
        self, g: GraphWriter, x: ir.Value, values: ir.Value, scale: ir.Value, name: str | None = None
    ) -> ir.Value:
        return g.op("DynamicQuantizeMatMul", x, values, scale, domain=MICROSOFT, name=name)


@dataclass(frozen=True)
class BlockMatrices:
    """Weights of `bits` bits with one scale per `block` input values; the token table of `table_bits`."""

    bits: int
    block: int
    table_bits: int
    scale_dtype: npt.DTypeLike = np.float32
    accuracy_level: int = INT8_COMPUTE

    def embed(self, g: GraphWriter, table: Float32, token_ids: ir.Value) -> ir.Value:
        """See `Matrices`."""
        self._store(g, "embedding.weight", [table], self.table_bits)
        rows = g.alias("embedding.rows", "embedding.weight", (len(table), table.shape[1] * self.table_bits // 8))
        scale = g.stored("embedding.weight.scale")
        return g.op(
            "GatherBlockQuantized",
            rows,
            token_ids,
            scale,
            domain=MICROSOFT,
            bits=self.table_bits,
            block_size=self.block,
            gather_axis=0,
            quantize_axis=1,
        )

    def linear(self, g: GraphWriter, name: str, matrices: Sequence[Float32], x: ir.Value) -> ir.Value:
        """See `Matrices`."""
        self._store(g, name, matrices, self.bits)
        return self._product(g, x, name, (sum(len(m) for m in matrices), matrices[0].shape[1]), self.bits)

    def head(self, g: GraphWriter, table: Float32, x: ir.Value, name: str) -> ir.Value:
        """See `Matrices`."""
        return self._product(g, x, "embedding.weight", table.shape, self.table_bits, output=name)

    def _store(self, g: GraphWriter, name: str, matrices: Sequence[Float32], bits: int) -> None:
        quantized = [quantize_blocks(m, self.block, bits) for m in matrices]
        g.weight(name, np.concatenate([pack(q) for q in quantized]))  # (out, blocks, bytes of a block)
        g.weight(
            f"{name}.scale", np.concatenate([q.scale for q in quantized]).astype(self.scale_dtype)
        )  # (out, blocks)

    def _product(
        self, g: GraphWriter, x: ir.Value, name: str, shape: tuple[int, ...], bits: int, output: str | None = None
    ) -> ir.Value:
        return g.op(
            "MatMulNBits",
            x,
            g.stored(name),
            g.stored(f"{name}.scale"),
            domain=MICROSOFT,
            name=output,
            K=shape[1],
            N=shape[0],
            bits=bits,
            block_size=self.block,
            accuracy_level=self.accuracy_level,
        )


class HeadInBlocks(BlockMatrices):
    """Layers as `FastInt8Matrices`, the token table as `BlockMatrices`.

    The head is one row of products over a matrix that no cache holds. MatMulNBits reads such a matrix at
    twice the rate of DynamicQuantizeMatMul; layers, which share their weights and read prompts, are better
    with the latter.
    """

    def linear(self, g: GraphWriter, name: str, matrices: Sequence[Float32], x: ir.Value) -> ir.Value:
        """See `Matrices`."""
        return FastInt8Matrices().linear(g, name, matrices, x)


def pack(quantized: QuantizedTensor) -> npt.NDArray[np.uint8]:
    """Return `(out, groups, bytes)` as MatMulNBits stores values: offset by half the range.

    Two 4-bit values share a byte, the earlier in the low half.
    """
    rows, groups = quantized.scale.shape
    codes: npt.NDArray[np.uint8] = quantized.values.view(np.uint8) + np.uint8(1 << quantized.bits - 1)  # modulo 256
    if quantized.bits == 4:
        codes = codes[:, 0::2] + codes[:, 1::2] * np.uint8(16)
    return codes.reshape(rows, groups, -1)
