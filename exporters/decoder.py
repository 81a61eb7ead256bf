"""The decoder as an ONNX graph, written once; recipes and forms only change its operators.

Inputs `input_ids` (1, T), `logits_index` (N) and, for block b, `past.{b}.key` and `past.{b}.value`
(L, 1, H, P, D); outputs `logits` (N, V) and `present.{b}.key`, `present.{b}.value`
(L, 1, H, P + T, D). One graph serves prefill (P = 0) and decode.

Each block is ONE `Scan` over its L layers: the body is the layer, its weights are read from the
outer scope, so no runtime can copy them per layer. The Scan carries the residual stream and
walks over the block's cache. Positions follow from the length of the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from merino_edge.architecture import Architecture
from merino_edge.exporters.graph import GraphWriter, annotate, typed
from merino_edge.exporters.operators import Layer, Matrices
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
        tables = self.layer.rotary_tables(g, a.head_dim, self._positions(g, token_ids, caches[0][0]))

        x = self.matrices.embed(g, self.tensors["embedding.weight"], token_ids)  # (1, T, E)
        outputs: list[ir.Value] = []
        for i, cache in enumerate(caches):
            x, *present = self._block(g, i, self.enter(g, i, x), cache, tables)
            outputs += present
        wanted = g.op("Gather", g.op("Squeeze", x, g.constant([0], np.int64)), logits_index)  # (N, E)
        logits = annotate(self.write_head(g, wanted, "logits"), FLOAT, "logits", a.vocab_size)
        inputs = [token_ids, logits_index, *(value for cache in caches for value in cache)]
        return g.finish(inputs, [logits, *outputs], self.layer.opsets, ir_version=11, metadata=metadata)

    def _cache_inputs(self, i: int) -> tuple[ir.Value, ir.Value]:
        a = self.architecture
        shape = (a.blocks[i].depth, 1, a.heads(i), "past", a.head_dim)
        return typed(f"past.{i}.key", FLOAT, *shape), typed(f"past.{i}.value", FLOAT, *shape)

    def _positions(self, g: GraphWriter, token_ids: ir.Value, key: ir.Value) -> ir.Value:
        """Return P .. P + T - 1: (1, T)."""
        axis = g.constant([0], np.int64)
        past = g.op("Squeeze", g.op("Shape", key, start=3, end=4), axis)
        new = g.op("Squeeze", g.op("Shape", token_ids, start=1, end=2), axis)
        positions = g.op("Range", past, g.op("Add", past, new), g.constant(1, np.int64))
        return g.op("Unsqueeze", positions, axis)

    def _block(
        self, g: GraphWriter, i: int, x: ir.Value, cache: tuple[ir.Value, ir.Value], tables: tuple[ir.Value, ...]
    ) -> tuple[ir.Value, ...]:
        """Write block i as one Scan; return x and the block's new cache."""
        a = self.architecture
        block, name = a.blocks[i], f"block{i}"
        gains = self.tensors[f"blocks.{i}.norms"]  # (1 or L, 2, E)
        state = typed(f"{name}.x", FLOAT, 1, "tokens", block.width)
        shape = (1, a.heads(i), "past", a.head_dim)
        slices = [typed(f"{name}.past_key", FLOAT, *shape), typed(f"{name}.past_value", FLOAT, *shape)]
        scanned = list(cache)
        with g.body() as nodes:
            if a.per_layer_norms:
                scanned.append(g.weight(f"blocks.{i}.norms", gains))
                slices.append(typed(f"{name}.norms", FLOAT, 2, block.width))
                axis = g.constant([0], np.int64)
                parts = g.ops("Split", slices[-1], outputs=2, axis=0, num_outputs=2)
                norms = [g.op("Squeeze", part, axis) for part in parts]
            else:
                norms = self.gains(g, i, 0)
            y, key, value = self.write_layer(g, i, state, norms, (slices[0], slices[1]), tables)
        annotate(y, FLOAT, 1, "tokens", block.width)
        for present in (key, value):
            annotate(present, FLOAT, 1, a.heads(i), "total", a.head_dim)
        body = ir.Graph([state, *slices], [y, key, value], nodes=nodes, name=f"{name}.layer")
        names = (f"{name}.out", f"present.{i}.key", f"present.{i}.value")
        out = g.ops("Scan", x, *scanned, outputs=3, names=names, body=body, num_scan_inputs=len(scanned))
        for present in out[1:]:
            annotate(present, FLOAT, block.depth, 1, a.heads(i), "total", a.head_dim)
        return out

    def enter(self, g: GraphWriter, i: int, x: ir.Value) -> ir.Value:
        """Bring x to the width of block i."""
        name = f"blocks.{i}.projection.weight"
        return self.matrices.linear(g, name, [self.tensors[name]], x) if name in self.tensors else x

    def gains(self, g: GraphWriter, i: int, layer: int) -> list[ir.Value]:
        """Return the two norm gains of one layer of block i: (E) each."""
        return [g.weight(f"blocks.{i}.norms.{layer}.{n}", self.tensors[f"blocks.{i}.norms"][layer, n]) for n in (0, 1)]

    def write_layer(
        self,
        g: GraphWriter,
        i: int,
        x: ir.Value,
        norms: list[ir.Value],
        past: tuple[ir.Value, ir.Value],
        tables: tuple[ir.Value, ...],
        mask: ir.Value | None = None,
        names: tuple[str | None, ...] = (None, None, None),
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Write one layer of block i: (1, T, E) and its cache in, the same out."""
        heads, part = self.architecture.heads(i), f"blocks.{i}."
        h = self.layer.norm(g, x, norms[0])
        qkv = self._linear(g, part, PROJECTIONS, h)  # (1, T, 3 E)
        q, k, v = g.ops("Split", qkv, outputs=3, axis=-1, num_outputs=3)
        q, k = (self.layer.rotate(g, t, tables, heads) for t in (q, k))
        attended, key, value = self.layer.attend(g, (q, k, v), past, heads, mask, names)
        x, h = self.layer.add_norm(g, x, self._linear(g, part, ("output",), attended), norms[1])
        h = self.layer.gelu(g, self._linear(g, part, ("ffn_in",), h))  # (1, T, F)
        return g.op("Add", x, self._linear(g, part, ("ffn_out",), h)), key, value

    def _linear(self, g: GraphWriter, part: str, names: tuple[str, ...], x: ir.Value) -> ir.Value:
        label = f"{part}{'_'.join(names)}.weight"
        return self.matrices.linear(g, label, [self.tensors[f"{part}{name}.weight"] for name in names], x)

    def write_head(self, g: GraphWriter, x: ir.Value, name: str) -> ir.Value:
        """Write final norm and head: (N, E) -> (N, V), named `name`."""
        final = self.layer.norm(g, x, g.weight("final_norm.weight", self.tensors["final_norm.weight"]))
        if "output_projection.weight" in self.tensors:
            final = self.matrices.linear(
                g, "output_projection.weight", [self.tensors["output_projection.weight"]], final
            )
        return self.matrices.head(g, self.tensors["embedding.weight"], final, name)
