"""The decoder as plain layers, with the names that other tools expect: the form `unrolled`.

Inputs `input_ids` (B, T), `attention_mask` (B, P + T) and, for executed layer n,
`past_key_values.{n}.key` and `past_key_values.{n}.value` (B, H, P, D); outputs `logits` (B, T, V)
for every position and `present.{n}.key`, `present.{n}.value`. Positions count the ones in the mask,
so prompts padded on the left are right.

Each weight is still stored once, and each layer names it again: whether memory stays shared is the
runtime's doing (onnxruntime before 1.21 packs int8 and float32 weights once per layer, before 1.28
MatMulNBits too). The Scan of `decoder.py` does not depend on it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from merino_edge.exporters.decoder import FLOAT, INT64, Decoder
from merino_edge.exporters.graph import GraphWriter, annotate, typed


class UnrolledDecoder(Decoder):
    """The same decoder without Scan."""

    def write(self, g: GraphWriter, metadata: dict[str, str]) -> bytes:
        """Write the whole graph; return the serialized model."""
        a = self.architecture
        token_ids = typed("input_ids", INT64, "batch", "tokens")
        attention_mask = typed("attention_mask", INT64, "batch", "total")
        mask, positions = self._mask_and_positions(g, token_ids, attention_mask)
        tables = self.layer.rotary_tables(g, a.head_dim, positions)

        x = self.matrices.embed(g, self.tensors["embedding.weight"], token_ids)  # (B, T, E)
        inputs, outputs = [token_ids, attention_mask], []
        for number, (i, layer) in enumerate(a.layers()):
            x = self.enter(g, i, x) if layer == 0 else x
            heads, cached = a.heads(i), [f"{number}.key", f"{number}.value"]
            past = [typed(f"past_key_values.{name}", FLOAT, "batch", heads, "past", a.head_dim) for name in cached]
            gains = self.gains(g, i, layer if a.per_layer_norms else 0)
            names = (None, *(f"present.{name}" for name in cached))
            x, *present = self.write_layer(g, i, x, gains, (past[0], past[1]), tables, mask, names)
            inputs += past
            outputs += [annotate(value, FLOAT, "batch", heads, "total", a.head_dim) for value in present]
        logits = annotate(self._logits(g, x, token_ids), FLOAT, "batch", "tokens", a.vocab_size)
        return g.finish(inputs, [logits, *outputs], self.layer.opsets, ir_version=11, metadata=metadata)

    def _mask_and_positions(
        self, g: GraphWriter, token_ids: ir.Value, attention_mask: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """Return the mask (B, 1, T, P + T) and the new tokens' positions (B, T)."""
        new, axis = g.op("Shape", token_ids, start=1, end=2), g.constant([1], np.int64)
        kept = g.op("Unsqueeze", g.op("Cast", attention_mask, to=ir.DataType.BOOL), g.constant([1, 2], np.int64))
        mask = g.op("Expand", kept, g.op("Concat", axis, axis, new, axis, axis=0))  # (1, 1, T, 1) widens the rows
        count = g.op("CumSum", attention_mask, g.constant(1, np.int64))  # (B, P + T)
        last = g.constant([np.iinfo(np.int64).max], np.int64)
        counted = g.op("Slice", count, g.op("Neg", new), last, axis)  # (B, T)
        one = g.constant(1, np.int64)
        return mask, g.op("Sub", g.op("Max", counted, one), one)

    def _logits(self, g: GraphWriter, x: ir.Value, token_ids: ir.Value) -> ir.Value:
        """Write the head for every position: (B, T, E) -> (B, T, V)."""
        a = self.architecture
        rows = g.op("Reshape", x, g.constant([-1, a.blocks[-1].width], np.int64))  # (B * T, E)
        flat = self.write_head(g, rows, "logits.rows")
        shape = g.op("Concat", g.op("Shape", token_ids), g.constant([a.vocab_size], np.int64), axis=0)
        return g.op("Reshape", flat, shape, name="logits")
