"""The decoder as an ONNX graph, written once; recipes and forms only change its operators.

Inputs `input_ids` (1, T), `logits_index` (N) and, for block b, `past.{b}.key` and `past.{b}.value`
(L, 1, H, P, D); outputs `logits` (N, V) and `present.{b}.key`, `present.{b}.value`
(L, 1, H, P + T, D). One graph serves prefill (P = 0) and decode.

Where attention can write into the cache it reads, there is one more input, `past_length` (1), and
each cache may be longer than it is filled: bound as `past` and `present` at once, it is neither
copied nor held twice; given apart, it behaves as above.

Each block is ONE `Scan` over its L layers: the body is the layer, its weights are read from the
outer scope, so no runtime can copy them per layer. The Scan carries the residual stream and
walks over the block's cache, and over the gains that each layer has of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from merino_edge.architecture import Architecture
from merino_edge.exporters.graph import GraphWriter, annotate, typed
from merino_edge.exporters.operators import Context, Layer, Matrices
from merino_edge.exporting import Tensors

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
PROJECTIONS = ("query", "key", "value")


@dataclass(frozen=True)
class Decoder:
    """What is written, and in which operators."""

    architecture: Architecture
    tensors: Tensors
    matrices: Matrices
    layer: Layer

    def write(self, g: GraphWriter, metadata: dict[str, str]) -> bytes:
        """Write the whole graph; return the serialized model."""
        a = self.architecture
        token_ids = typed("input_ids", INT64, 1, "tokens")
        logits_index = typed("logits_index", INT64, "logits")
        caches = [self._cache_inputs(i) for i in range(len(a.blocks))]
        lengths = [typed("past_length", INT64, 1)] if self.layer.cache_in_place(a.head_dim) else []
        past = lengths[0] if lengths else g.op("Shape", caches[0][0], start=3, end=4)
        context = self.layer.causal(g, a.head_dim, past, g.op("Shape", token_ids, start=1, end=2))

        x = self.matrices.embed(g, self.tensors["embedding.weight"], token_ids)  # (1, T, E)
        outputs: list[ir.Value] = []
        skipped: ir.Value | None = None
        for i, cache in enumerate(caches):
            x = self.enter(g, i, x)
            skipped = self.skipped(g, x) if i == 0 else skipped
            x, *present = self._block(g, i, x, skipped, cache, context)
            outputs += present
        wanted = g.op("Gather", g.op("Squeeze", x, g.constant([0], np.int64)), logits_index)  # (N, E)
        logits = annotate(self.write_head(g, wanted, "logits"), FLOAT, "logits", a.vocab_size)
        inputs = [token_ids, logits_index, *lengths, *(value for cache in caches for value in cache)]
        return g.finish(inputs, [logits, *outputs], self.layer.opsets, self.layer.ir_version, metadata)

    def _cache_inputs(self, i: int) -> tuple[ir.Value, ir.Value]:
        a = self.architecture
        shape = (a.blocks[i].depth, 1, a.heads(i), "past", a.head_dim)
        return typed(f"past.{i}.key", self.layer.dtype, *shape), typed(f"past.{i}.value", self.layer.dtype, *shape)

    def _block(
        self,
        g: GraphWriter,
        i: int,
        x: ir.Value,
        skipped: ir.Value | None,
        cache: tuple[ir.Value, ir.Value],
        context: Context,
    ) -> tuple[ir.Value, ...]:
        """Write block i as one Scan; return x and the block's new cache."""
        a = self.architecture
        block, name, dtype = a.blocks[i], f"block{i}", self.layer.dtype
        gains = self.tensors[f"blocks.{i}.norms"]  # (1 or L, 2, E)
        state = typed(f"{name}.x", dtype, 1, "tokens", block.width)
        shape = (1, a.heads(i), "past", a.head_dim)
        slices = [typed(f"{name}.past_key", dtype, *shape), typed(f"{name}.past_value", dtype, *shape)]
        scanned = list(cache)
        with g.body() as nodes:
            if a.per_layer_norms:
                scanned.append(self.gain(g, f"blocks.{i}.norms", gains))
                slices.append(typed(f"{name}.norms", dtype, 2, block.width))
                norms = [g.op("Gather", slices[-1], g.constant(n, np.int64)) for n in (0, 1)]
            else:
                norms = self.gains(g, i, 0)
            added: ir.Value | None = None
            if skipped is not None:
                scanned.append(self.gain(g, f"blocks.{i}.skip_gains", self.tensors[f"blocks.{i}.skip_gains"]))
                slices.append(typed(f"{name}.skip_gain", dtype, 1, block.width))
                added = g.op("Mul", skipped, slices[-1])
            y, key, value = self.write_layer(g, i, state, added, norms, (slices[0], slices[1]), context)
        annotate(y, dtype, 1, "tokens", block.width)
        for present in (key, value):
            annotate(present, dtype, 1, a.heads(i), "total", a.head_dim)
        body = ir.Graph([state, *slices], [y, key, value], nodes=nodes, name=f"{name}.layer")
        names = (f"{name}.out", f"present.{i}.key", f"present.{i}.value")
        out = g.ops("Scan", x, *scanned, outputs=3, names=names, body=body, num_scan_inputs=len(scanned))
        for present in out[1:]:
            annotate(present, dtype, block.depth, 1, a.heads(i), "total", a.head_dim)
        return out

    def enter(self, g: GraphWriter, i: int, x: ir.Value) -> ir.Value:
        """Bring x to the width of block i."""
        name = f"blocks.{i}.projection.weight"
        return self.matrices.linear(g, name, [self.tensors[name]], x) if name in self.tensors else x

    def skipped(self, g: GraphWriter, x: ir.Value) -> ir.Value | None:
        """Return what an embedding skip adds to the input of every layer, by its gains: x normed; None without one."""
        if not self.architecture.embedding_skip:
            return None
        width = g.constant([self.architecture.blocks[0].width], np.int64)
        ones = g.op("ConstantOfShape", width, value=ir.tensor(np.ones(1, self.layer.dtype.numpy())))
        return self.layer.norm(g, x, ones)

    def gains(self, g: GraphWriter, i: int, layer: int) -> list[ir.Value]:
        """Return the two norm gains of one layer of block i: (E) each."""
        both = self.tensors[f"blocks.{i}.norms"][layer]  # (2, E)
        return [self.gain(g, f"blocks.{i}.norms.{layer}.{n}", both[n]) for n in (0, 1)]

    def gain(self, g: GraphWriter, name: str, values: npt.NDArray[np.float32]) -> ir.Value:
        """Return gains in the layer's type."""
        return g.weight(name, values.astype(self.layer.dtype.numpy()))

    def write_layer(
        self,
        g: GraphWriter,
        i: int,
        x: ir.Value,
        added: ir.Value | None,
        norms: list[ir.Value],
        past: tuple[ir.Value, ir.Value],
        context: Context,
        names: tuple[str | None, ...] = (None, None, None),
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Write one layer of block i: (1, T, E), what is added to it first, and its cache in, x and cache out."""
        heads, part = self.architecture.heads(i), f"blocks.{i}."
        if added is None:
            h = self.layer.norm(g, x, norms[0])
        else:
            x, h = self.layer.add_norm(g, x, added, norms[0])
        qkv = self._linear(g, part, PROJECTIONS, h)  # (1, T, 3 E)
        attended, key, value = self.layer.attend(g, qkv, past, heads, context, names)
        x, h = self.layer.add_norm(g, x, self._linear(g, part, ("output",), attended), norms[1])
        h = self.layer.gelu(g, self._linear(g, part, ("ffn_in",), h))  # (1, T, F)
        return g.op("Add", x, self._linear(g, part, ("ffn_out",), h)), key, value

    def _linear(self, g: GraphWriter, part: str, names: tuple[str, ...], x: ir.Value) -> ir.Value:
        label = f"{part}{'_'.join(names)}.weight"
        return self.matrices.linear(g, label, [self.tensors[f"{part}{name}.weight"] for name in names], x)

    def write_head(self, g: GraphWriter, x: ir.Value, name: str) -> ir.Value:
        """Write final norm and head: (N, E) -> (N, V), named `name`."""
        final = self.layer.norm(g, x, self.gain(g, "final_norm.weight", self.tensors["final_norm.weight"]))
        if "output_projection.weight" in self.tensors:
            final = self.matrices.linear(
                g, "output_projection.weight", [self.tensors["output_projection.weight"]], final
            )
        return self.matrices.head(g, self.tensors["embedding.weight"], final, name)
