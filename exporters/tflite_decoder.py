"""The decoder as a TFLite graph, written once; recipes only change how it multiplies by weights.

One signature reads a prompt and generates: T new tokens, S places in the cache and N logits are all
dynamic. The cache belongs to the caller: each call returns the keys and values of its T tokens, which
go into the cache behind those before; `cache_mask` says which places are filled. Attention over old
and new positions is one softmax in two parts, so that nothing is joined or cut and the cache is only
ever read.

Each block's layer is one subgraph that holds the block's weights, and is called once per executed
layer, so that no runtime can pack them twice; the form `legacy` writes the layers out instead.

Shapes: T tokens, S places of the cache, E width, H heads, D head_dim, F FFN width, N logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from merino_edge.architecture import NORM_EPSILON, ROPE_THETA, Architecture
from merino_edge.exporters.quantize import QuantizedTensor, quantize_rows
from merino_edge.exporters.recipes import Recipe
from merino_edge.exporters.tflite_graph import Model, Operator, Subgraph, Tensor, Type
from merino_edge.exporting import Tensors

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
HIDDEN = -1e9  # added to a score that must not count
ANGLE_BITS = 8  # of a factor in `_angle_parts`; times a position below 2 ** 16 the product is exact
TABLE = "embedding.weight"


class Matrices(Protocol):
    """Products with weight matrices, as one recipe stores them."""

    def embed(self, g: Subgraph, table: Float32, token_ids: Tensor) -> Tensor:
        """Rows of the token table `[V, E]`: (1, T) -> (T, E), or with one more axis before."""

    def linear(self, g: Subgraph, names: Sequence[str], tensors: Tensors, x: Tensor) -> Tensor:
        """`x @ W.T` for the matrices `[out, in]` stacked along `out`: (N, in) -> (N, out)."""


class Float32Matrices:
    """Float32 weights; the table serves rows and head as one tensor."""

    def embed(self, g: Subgraph, table: Float32, token_ids: Tensor) -> Tensor:
        """See `Matrices`."""
        return g.gather(g.weight(TABLE, [table], Type.FLOAT32), token_ids)

    def linear(self, g: Subgraph, names: Sequence[str], tensors: Tensors, x: Tensor) -> Tensor:
        """See `Matrices`."""
        return g.fully_connected(x, g.weight(stacked_name(names), [tensors[name] for name in names], Type.FLOAT32))


class DynamicInt8Matrices:
    """int8 weights, one scale a row, applied after the product: in it, all scales are 1.

    So one vector of scales serves rows and head of the table, the file has no zero points, and the
    numbers are right on every runtime.
    """

    def __init__(self) -> None:
        """Begin with nothing quantized."""
        self._quantized: dict[str, QuantizedTensor] = {}

    def embed(self, g: Subgraph, table: Float32, token_ids: Tensor) -> Tensor:
        """See `Matrices`."""
        quantized = self._quantize(TABLE, table)
        rows = g.cast(g.gather(g.weight(TABLE, [quantized.values], Type.INT8), token_ids))  # (1, T, E)
        return g.mul(rows, g.gather(self._scale(g, [TABLE], [quantized], (len(table), 1)), token_ids))

    def linear(self, g: Subgraph, names: Sequence[str], tensors: Tensors, x: Tensor) -> Tensor:
        """See `Matrices`."""
        parts = [self._quantize(name, tensors[name]) for name in names]
        weight = g.weight(stacked_name(names), [part.values for part in parts], Type.INT8, scale=1.0)
        return g.mul(g.fully_connected(x, weight), self._scale(g, names, parts, (weight.shape[0],)))

    def _scale(
        self, g: Subgraph, names: Sequence[str], parts: Sequence[QuantizedTensor], shape: tuple[int, ...]
    ) -> Tensor:
        return g.weight(f"{stacked_name(names)}.row_scale", [part.scale for part in parts], Type.FLOAT32, shape)

    def _quantize(self, name: str, matrix: Float32) -> QuantizedTensor:
        if name not in self._quantized:
            self._quantized[name] = quantize_rows(matrix)
        return self._quantized[name]


class BlockInt4Matrices:
    """int4 weights, one float16 scale a block of inputs; the table serves rows and head."""

    def __init__(self, recipe: Recipe) -> None:
        """Begin with nothing quantized."""
        self._recipe = recipe
        self._packed: dict[str, tuple[Array, Array]] = {}

    def embed(self, g: Subgraph, table: Float32, token_ids: Tensor) -> Tensor:
        """See `Matrices`."""
        return g.lookup(g.reshape(token_ids, -1), self._weight(g, [TABLE], {TABLE: table}))  # (T, E)

    def linear(self, g: Subgraph, names: Sequence[str], tensors: Tensors, x: Tensor) -> Tensor:
        """See `Matrices`."""
        return g.fully_connected(x, self._weight(g, names, tensors))

    def _weight(self, g: Subgraph, names: Sequence[str], tensors: Tensors) -> Tensor:
        parts = [self._pack(name, tensors[name]) for name in names]
        values, scales = [part[0] for part in parts], [part[1] for part in parts]
        return g.block_weight(stacked_name(names), values, scales, self._recipe.block)

    def _pack(self, name: str, matrix: Float32) -> tuple[Array, Array]:
        if name not in self._packed:
            quantized = self._recipe.quantize(matrix)
            half_bytes = quantized.values.view(np.uint8) & 15
            packed = half_bytes[:, 0::2] | half_bytes[:, 1::2] << 4
            self._packed[name] = (packed, quantized.scale.astype(np.float16))
        return self._packed[name]


def stacked_name(names: Sequence[str]) -> str:
    """`blocks.0.query+key+value.weight`: the name of matrices stacked into one."""
    parts = [name.split(".") for name in names]
    return ".".join("+".join(dict.fromkeys(words)) for words in zip(*parts, strict=True))


@dataclass(frozen=True)
class Shared:
    """What every layer reads: values of the main graph, handed on when a layer is called.

    Attributes:
        cos: `(3, 1, T, D)`; for queries (divided by the root of D), for keys, and ones for values.
        sin: The same, the first half negated; zeros for values.
        new_mask: `(1, 1, T, T)`, added to scores of new positions.
        cache_mask: `(1, 1, 1, S)`, added to scores of the cache.
    """

    cos: Tensor
    sin: Tensor
    new_mask: Tensor
    cache_mask: Tensor

    def all(self) -> list[Tensor]:
        """Return them in order."""
        return [self.cos, self.sin, self.new_mask, self.cache_mask]


@dataclass(frozen=True)
class TfliteDecoder:
    """What is written, and how.

    Attributes:
        architecture: The model.
        tensors: Its weights.
        matrices: How they are stored.
        called: Each block's layer is one subgraph; else the layers are written out.
    """

    architecture: Architecture
    tensors: Tensors
    matrices: Matrices
    called: bool = True

    def build(self, metadata: Mapping[str, str]) -> Model:
        """Return the whole model."""
        a, model = self.architecture, Model(metadata)
        g = model.subgraph("main")
        token_ids = g.input("input_ids", Type.INT32, 1, -1)
        positions = g.input("positions", Type.INT32, 1, -1)
        logits_index = g.input("logits_index", Type.INT32, -1)
        cache_mask = g.input("cache_mask", Type.FLOAT32, 1, 1, 1, -1)
        caches = []
        for number, (i, _) in enumerate(a.layers()):
            shape = (1, a.heads(i), -1, a.head_dim)
            caches.append([g.input(f"past.{number}.{part}", Type.FLOAT32, *shape) for part in ("key", "value")])
        shared = self._shared(g, positions, cache_mask)
        x = self.matrices.embed(g, self.tensors[TABLE], token_ids)
        x = g.reshape(x, -1, a.embedding_width)  # (T, E)
        made: list[tuple[Tensor, Tensor]] = []
        layers: dict[int, Subgraph] = {}
        skipped: Tensor | None = None
        for number, (i, layer) in enumerate(a.layers()):
            if layer == 0 and f"blocks.{i}.projection.weight" in self.tensors:
                x = self._linear(g, [f"blocks.{i}.projection.weight"], x)
            if number == 0 and a.embedding_skip:
                skipped = self._unit(g, x)
            skip = [] if skipped is None else [skipped, self._skip_gain(g, i, layer)]
            norms = self._norms(g, i, layer)
            if self.called and i not in layers:
                layers[i] = self._layer_subgraph(model, i)
            if self.called:
                arguments = [x, *shared.all(), *caches[number], *(norms if a.per_layer_norms else []), *skip]
                x, key, value = g.call(layers[i], arguments)
            else:
                x, key, value = self._layer(g, i, x, shared, caches[number], norms, skip)
            made.append((key, value))
        g.output("logits", self._head(g, g.gather(x, logits_index)))
        for number, (key, value) in enumerate(made):
            g.output(f"new.{number}.key", key)
            g.output(f"new.{number}.value", value)
        return model

    def _layer_subgraph(self, model: Model, i: int) -> Subgraph:
        """Write one layer of block i as a subgraph of its own."""
        a = self.architecture
        width, heads, dim = a.blocks[i].width, a.heads(i), a.head_dim
        g = model.subgraph(f"block{i}.layer")
        x = g.input("x", Type.FLOAT32, -1, width)
        shared = Shared(
            g.input("cos", Type.FLOAT32, 3, 1, -1, dim),
            g.input("sin", Type.FLOAT32, 3, 1, -1, dim),
            g.input("new_mask", Type.FLOAT32, 1, 1, -1, -1),
            g.input("cache_mask", Type.FLOAT32, 1, 1, 1, -1),
        )
        cache = [g.input(f"past.{part}", Type.FLOAT32, 1, heads, -1, dim) for part in ("key", "value")]
        if a.per_layer_norms:
            norms = [g.input(f"norm{n}", Type.FLOAT32, width) for n in (0, 1)]
        else:
            norms = self._norms(g, i, 0)
        skip = []
        if a.embedding_skip:
            skip = [g.input("skipped", Type.FLOAT32, -1, width), g.input("skip_gain", Type.FLOAT32, 1, width)]
        results = self._layer(g, i, x, shared, cache, norms, skip)
        for name, tensor in zip(("y", "new.key", "new.value"), results, strict=True):
            g.output(name, tensor)
        return g

    def _norms(self, g: Subgraph, i: int, layer: int) -> list[Tensor]:
        """Return the two norm gains of one layer of block i: (E) each."""
        layer = layer if self.architecture.per_layer_norms else 0
        gains = self.tensors[f"blocks.{i}.norms"][layer]  # (2, E)
        return [g.weight(f"blocks.{i}.norms.{layer}.{n}", [gain], Type.FLOAT32) for n, gain in enumerate(gains)]

    def _skip_gain(self, g: Subgraph, i: int, layer: int) -> Tensor:
        """Return the gains of the embedding skip into one layer of block i: (1, E)."""
        return g.weight(f"blocks.{i}.skip_gains.{layer}", [self.tensors[f"blocks.{i}.skip_gains"][layer]], Type.FLOAT32)

    def _shared(self, g: Subgraph, positions: Tensor, cache_mask: Tensor) -> Shared:
        """Compute rotary tables and the causal mask from the positions (1, T)."""
        at = g.cast(positions)
        row, column = g.reshape(at, 1, 1, 1, -1), g.reshape(at, 1, 1, -1, 1)
        before = g.binary(Operator.MINIMUM, g.sub(column, row), g.constant(np.zeros(1)))  # (1, 1, T, T), < 0 ahead
        new_mask = g.mul(before, g.constant(np.array([-HIDDEN])))
        dim = self.architecture.head_dim
        turns: Tensor | None = None  # of each angle: (1, 1, T, 2 D), for cosines and for sines
        for part in angle_parts(dim):
            product = g.mul(column, g.constant(part.reshape(1, 1, 1, -1)))
            fraction = g.sub(product, g.unary(Operator.FLOOR, product))
            turns = fraction if turns is None else g.add(turns, fraction)
        assert turns is not None
        rotated = g.constant(np.array([1, 1, 0]).reshape(3, 1, 1, 1))  # queries and keys, values not
        quarter = g.constant(np.repeat([0.25, 0.0], dim))  # a cosine is a sine a quarter turn on
        turns = g.add(g.mul(turns, rotated), quarter)  # (3, 1, T, 2 D)
        half = g.constant(np.array([0.5]))
        turns = g.sub(turns, g.unary(Operator.FLOOR, g.add(turns, half)))  # -0.5 .. 0.5
        sines = g.unary(Operator.SIN, g.mul(turns, g.constant(np.array([2 * np.pi]))))
        gain = g.constant(np.array([dim**-0.5, 1, 1]).reshape(3, 1, 1, 1))
        cos, sin = g.split(g.mul(sines, gain), -1, 2)
        return Shared(cos, sin, new_mask, cache_mask)

    def _layer(
        self,
        g: Subgraph,
        i: int,
        x: Tensor,
        shared: Shared,
        cache: Sequence[Tensor],
        norms: Sequence[Tensor],
        skip: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Write one layer of block i: (T, E) in, (T, E) and new keys and values (1, H, T, D) out.

        `skip` is empty, or the normed embedding (T, E) and the gains (1, E) by which it is added to x.
        """
        heads, dim, part = self.architecture.heads(i), self.architecture.head_dim, f"blocks.{i}."
        x = g.add(x, g.mul(*skip)) if skip else x
        h = self._norm(g, x, norms[0])
        h = self._linear(g, [f"{part}{name}.weight" for name in ("query", "key", "value")], h)  # (T, 3 E)
        h = g.transpose(g.reshape(h, -1, 3, heads, dim), 1, 2, 0, 3)  # (3, H, T, D)
        first, second = g.split(h, -1, 2)
        turned = g.mul(g.concat([second, first], -1), shared.sin)
        q, k, v = g.split(g.add(g.mul(h, shared.cos), turned), 0, 3)  # (1, H, T, D)
        h = self._attend(g, q, (k, v), cache, shared)
        h = g.reshape(g.transpose(h, 0, 2, 1, 3), -1, heads * dim)
        x = g.add(x, self._linear(g, [f"{part}output.weight"], h))
        h = self._linear(g, [f"{part}ffn_in.weight"], self._norm(g, x, norms[1]))  # (T, F)
        return g.add(x, self._linear(g, [f"{part}ffn_out.weight"], g.unary(Operator.GELU, h))), k, v

    def _attend(
        self, g: Subgraph, q: Tensor, new: tuple[Tensor, Tensor], cache: Sequence[Tensor], shared: Shared
    ) -> Tensor:
        """Attend to new and old positions: one softmax, its two parts brought to the same maximum."""
        scores = [
            g.add(g.batch_matmul(q, keys, transposed=True), mask)  # (1, H, T, T) and (1, H, T, S)
            for keys, mask in ((new[0], shared.new_mask), (cache[0], shared.cache_mask))
        ]
        highest = g.binary(Operator.MAXIMUM, *(g.reduce(Operator.REDUCE_MAX, s) for s in scores))
        shares = [g.unary(Operator.EXP, g.sub(s, highest)) for s in scores]
        mixed = [g.batch_matmul(e, values) for e, values in zip(shares, (new[1], cache[1]), strict=True)]
        total = g.add(*(g.reduce(Operator.SUM, e) for e in shares))  # (1, H, T, 1)
        return g.binary(Operator.DIV, g.add(*mixed), total)

    def _norm(self, g: Subgraph, x: Tensor, gain: Tensor) -> Tensor:
        """RMSNorm over the last axis."""
        return g.mul(self._unit(g, x), gain)

    def _unit(self, g: Subgraph, x: Tensor) -> Tensor:
        """RMSNorm without a gain."""
        mean = g.reduce(Operator.MEAN, g.mul(x, x))
        inverse = g.unary(Operator.RSQRT, g.add(mean, g.constant(np.array([NORM_EPSILON]))))
        return g.mul(x, inverse)

    def _linear(self, g: Subgraph, names: Sequence[str], x: Tensor) -> Tensor:
        return self.matrices.linear(g, names, self.tensors, x)

    def _head(self, g: Subgraph, x: Tensor) -> Tensor:
        """Write final norm and head: (N, E) -> (N, V)."""
        x = self._norm(g, x, g.weight("final_norm.weight", [self.tensors["final_norm.weight"]], Type.FLOAT32))
        if "output_projection.weight" in self.tensors:
            x = self._linear(g, ["output_projection.weight"], x)
        return self._linear(g, [TABLE], x)


def angle_parts(head_dim: int) -> list[Float32]:
    """Split each frequency, in turns a position, into factors whose products with a position are exact.

    A float32 product of position and frequency is off by 1e-4 at position 1500. Whole turns do not
    count, so each exact product is brought below one turn before it is added.

    Returns:
        Arrays `(2 D,)` that add up to the frequencies of D cosines and D sines (the first half of
        the sines turns the other way).
    """
    half = head_dim // 2
    frequency = ROPE_THETA ** (-np.arange(half, dtype=np.float64) / half) / (2 * np.pi)
    rest = np.concatenate([frequency, frequency, -frequency, frequency])
    parts = []
    for _ in range(2):
        step = 2.0 ** (np.floor(np.log2(np.abs(rest))) - ANGLE_BITS + 1)
        part = np.trunc(rest / step) * step
        parts.append(part.astype(np.float32))
        rest = rest - part
    return [*parts, rest.astype(np.float32)]
