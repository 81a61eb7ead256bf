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

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from merino_edge.exporters.decoder import FLOAT, INT64, Decoder
from merino_edge.exporters.graph import GraphWriter, annotate, typed
from merino_edge.exporters.operators import MaskedLayer


@dataclass(frozen=True)
class UnrolledDecoder(Decoder):
    """The same decoder without Scan."""

    layer: MaskedLayer

    def write(self, g: GraphWriter, metadata: dict[str, str]) -> bytes:
        """Write the whole graph; return the serialized model."""
        a, dtype = self.architecture, self.layer.dtype
        token_ids = typed("input_ids", INT64, "batch_size", "sequence_length")
        attention_mask = typed("attention_mask", INT64, "batch_size", "total_sequence_length")
        context = self.layer.masked(g, a.head_dim, attention_mask, token_ids)

        x = self.matrices.embed(g, self.tensors["embedding.weight"], token_ids)  # (B, T, E)
        inputs, outputs = [token_ids, attention_mask], []
        skipped: ir.Value | None = None
        for number, (i, layer) in enumerate(a.layers()):
            x = self.enter(g, i, x) if layer == 0 else x
            skipped = self.skipped(g, x) if number == 0 else skipped
            heads, cached = a.heads(i), [f"{number}.key", f"{number}.value"]
            past = [
                typed(f"past_key_values.{name}", dtype, "batch_size", heads, "past_sequence_length", a.head_dim)
                for name in cached
            ]
            gains = self.gains(g, i, layer if a.per_layer_norms else 0)
            names = (None, *(f"present.{name}" for name in cached))
            added: ir.Value | None = None
            if skipped is not None:
                gain = self.gain(g, f"blocks.{i}.skip_gains.{layer}", self.tensors[f"blocks.{i}.skip_gains"][layer])
                added = g.op("Mul", skipped, gain)
            x, *present = self.write_layer(g, i, x, added, gains, (past[0], past[1]), context, names)
            inputs += past
            outputs += [
                annotate(value, dtype, "batch_size", heads, "total_sequence_length", a.head_dim) for value in present
            ]
        logits = annotate(self._logits(g, x, token_ids), FLOAT, "batch_size", "sequence_length", a.vocab_size)
        return g.finish(inputs, [logits, *outputs], self.layer.opsets, self.layer.ir_version, metadata)

    def _logits(self, g: GraphWriter, x: ir.Value, token_ids: ir.Value) -> ir.Value:
        """Write the head for every position: (B, T, E) -> (B, T, V)."""
        a = self.architecture
        rows = g.op("Reshape", x, g.constant([-1, a.blocks[-1].width], np.int64))  # (B * T, E)
        flat = self.write_head(g, rows, "logits.rows")
        shape = g.op("Concat", g.op("Shape", token_ids), g.constant([a.vocab_size], np.int64), axis=0)
        return g.op("Reshape", flat, shape, name="logits")
