"""What an architecture costs: FLOPs, parameters, bytes. Every one is a sum over its parts.

A cost is written once, as a `Sum` of what a block adds, what a seam adds where the width changes, and
what the ends add (token table, last norm, output projection, head). The parts take arrays of any
shape, so the same lines count one architecture, a population, or a whole space by outer sums.

FLOPs are 2 x MACs of one forward pass over 1,024 tokens, attention counted full T x T.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from merino_edge.architecture import Architecture
from merino_edge.errors import UsageError, did_you_mean

FLOPS_TOKENS = 1024
Array = npt.NDArray[Any]
Whole = int | Array  # one number, or one for each member


class Sum(Protocol):
    """A quantity that adds up over blocks, seams and ends.

    Arrays may have any shape; all of one call broadcast. Results must add exactly in any order:
    integers, or floats on a binary grid (`on_grid`).
    """

    def blocks(self, width: Array, ffn_width: Array, depth: Array) -> Array:
        """What blocks add: E, F and the number of executions."""
        ...

    def seams(self, before: Array, after: Array) -> Array:
        """What the projection from one width to another adds; 0 where they are equal."""
        ...

    def ends(self, last_width: Array, embedding_width: Whole, vocab_size: Whole) -> Array:
        """What table, last norm, output projection and head add."""
        ...


def on_grid(value: Array, step: float) -> Array:
    """Round to multiples of a power of two, so that float64 sums are exact whatever their order."""
    rounded: Array = np.rint(np.asarray(value, np.float64) / step) * step
    return rounded


def total(quantity: Sum, architecture: Architecture) -> Any:
    """Return the quantity of one architecture, by the same lines that fill a space."""
    blocks = architecture.blocks
    width = np.array([b.width for b in blocks], dtype=object)  # Python integers: nothing overflows
    ffn_width = np.array([b.ffn_width for b in blocks], dtype=object)
    depth = np.array([b.depth for b in blocks], dtype=object)
    before = np.array([architecture.input_width(i) for i in range(len(blocks))], dtype=object)
    ends = quantity.ends(width[-1:], architecture.embedding_width, architecture.vocab_size)
    return quantity.blocks(width, ffn_width, depth).sum() + quantity.seams(before, width).sum() + np.asarray(ends).sum()


def where_changed(before: Array, after: Array, value: Array) -> Array:
    """Return `value` where a width changes, else 0."""
    return np.asarray((np.asarray(before) != np.asarray(after)) * value)


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward pass, by operator class.

    Attributes:
        tokens: T, new tokens.
        positions: P, positions attended to by each (T for a pass without cache).
        logits: Rows of the product with the token table; 0 leaves the head out.
        classes: Which of `attention`, `scores`, `ffn`, `projection`, `head` to count.
    """

    tokens: int = FLOPS_TOKENS
    positions: int = FLOPS_TOKENS
    logits: int = 0
    classes: tuple[str, ...] = ("attention", "scores", "ffn", "projection", "head")

    def blocks(self, width: Array, ffn_width: Array, depth: Array) -> Array:
        """Query, key, value, output; T x P scores and their product with V; the two matrices of the FFN."""
        macs: Array = width * 0
        if "attention" in self.classes:
            macs = macs + self.tokens * 4 * width * width * depth
        if "scores" in self.classes:
            macs = macs + 2 * self.tokens * self.positions * width * depth
        if "ffn" in self.classes:
            macs = macs + self.tokens * 2 * width * ffn_width * depth
        return macs

    def seams(self, before: Array, after: Array) -> Array:
        """One product per token."""
        return where_changed(before, after, self.tokens * ("projection" in self.classes) * before * after)

    def ends(self, last_width: Array, embedding_width: Whole, vocab_size: Whole) -> Array:
        """Output projection and head, for the rows asked for (the projection at least once a pass)."""
        rows = self.logits or self.tokens
        back = self.seams(last_width, np.asarray(embedding_width)) // self.tokens * rows
        head: Whole = self.logits * embedding_width * vocab_size if "head" in self.classes else 0
        return back + head


@dataclass(frozen=True)
class Flops:
    """2 x MACs of a forward pass over `tokens`, with or without the product with the token table."""

    tokens: int = FLOPS_TOKENS
    head: bool = False

    @property
    def _macs(self) -> Macs:
        return Macs(self.tokens, self.tokens, self.tokens if self.head else 0)

    def blocks(self, width: Array, ffn_width: Array, depth: Array) -> Array:
        """Twice the MACs."""
        return 2 * self._macs.blocks(width, ffn_width, depth)

    def seams(self, before: Array, after: Array) -> Array:
        """Twice the MACs."""
        return 2 * self._macs.seams(before, after)

    def ends(self, last_width: Array, embedding_width: Whole, vocab_size: Whole) -> Array:
        """Twice the MACs."""
        return 2 * self._macs.ends(last_width, embedding_width, vocab_size)


MatrixSize = Callable[[Any, Any], Any]  # (out, in) -> parameters or bytes


def _count(rows: Any, columns: Any) -> Any:
    return rows * columns


def _bytes_fp32(rows: Any, columns: Any) -> Any:
    return 4 * rows * columns


def _bytes_int8(rows: Any, columns: Any) -> Any:
    return rows * columns + 4 * rows  # one float32 scale a row


def _bytes_blockwise(bits: int, block: int, scale_bytes: int = 4) -> MatrixSize:
    def size(rows: Any, columns: Any) -> Any:
        return rows * columns * bits // 8 + scale_bytes * rows * (columns // block)  # one scale a block

    return size


RECIPES: dict[str, MatrixSize] = {
    "fp32": _bytes_fp32,
    "dynamic_wi8_afp32": _bytes_int8,
    **{f"weight_only_wi{b}_b{n}_afp32": _bytes_blockwise(b, n) for b in (8, 4) for n in (128, 64, 32)},
    **{f"weight_only_wi4_b{n}_head8_afp32": _bytes_blockwise(4, n) for n in (128, 64, 32)},
    **{f"dynamic_wi8_head_b{n}_afp32": _bytes_int8 for n in (128, 64)},
    **{f"dynamic_wi4_b{n}_afp32": _bytes_blockwise(4, n, scale_bytes=2) for n in (128, 64, 32)},  # TFLite
}
# Of the token table, which is also the head, where it is stored otherwise than the other matrices.
TABLES: dict[str, MatrixSize] = {
    **{f"weight_only_wi4_b{n}_head8_afp32": _bytes_blockwise(8, n) for n in (128, 64, 32)},
    **{f"dynamic_wi8_head_b{n}_afp32": _bytes_blockwise(8, n) for n in (128, 64)},
}


@dataclass(frozen=True)
class Storage:
    """What is stored, each unique tensor once: parameters, or bytes under a recipe.

    Attributes:
        matrix: Size of one `[out, in]` matrix.
        value: Size of one norm gain.
        per_layer_norms: As in `Architecture`.
        embedding_skip: As in `Architecture`.
        table: Whether the token table counts.
        executed: Count a shared matrix at every use, and the tied table twice.
        table_matrix: As `matrix`, of the token table; None where it is the same.
    """

    matrix: MatrixSize
    value: int
    per_layer_norms: bool = False
    table: bool = True
    executed: bool = False
    table_matrix: MatrixSize | None = None
    embedding_skip: bool = False

    def blocks(self, width: Array, ffn_width: Array, depth: Array) -> Array:
        """Four attention matrices, two of the FFN, two gains; those of an embedding skip for each layer."""
        uses = depth if self.executed else 1
        gains: Array = 2 * width * self.value * (depth if self.per_layer_norms or self.executed else 1)
        gains = gains + self.embedding_skip * depth * width * self.value
        matrices: Array = 4 * self.matrix(width, width) + self.matrix(ffn_width, width) + self.matrix(width, ffn_width)
        return uses * matrices + gains

    def seams(self, before: Array, after: Array) -> Array:
        """One matrix."""
        return where_changed(before, after, self.matrix(after, before))

    def ends(self, last_width: Array, embedding_width: Whole, vocab_size: Whole) -> Array:
        """Last norm, output projection, table."""
        of_table = self.table_matrix or self.matrix
        table = of_table(vocab_size, embedding_width) * (1 + self.executed) if self.table else 0
        back = where_changed(last_width, np.asarray(embedding_width), self.matrix(embedding_width, last_width))
        return self.value * last_width + back + table


@dataclass(frozen=True)
class FileSize(Storage):
    """Bytes of an exported model: its unique tensors, and room for a graph of any form (`bench/export_sizes.py`)."""

    GRAPH, GRAPH_BLOCK, GRAPH_LAYER = 12_000, 10_000, 3_000

    def blocks(self, width: Array, ffn_width: Array, depth: Array) -> Array:
        """The tensors of blocks, and nodes."""
        size: Array = super().blocks(width, ffn_width, depth) + self.GRAPH_BLOCK + self.GRAPH_LAYER * depth
        return size

    def ends(self, last_width: Array, embedding_width: Whole, vocab_size: Whole) -> Array:
        """The tensors of the ends, and what every graph has."""
        size: Array = super().ends(last_width, embedding_width, vocab_size) + self.GRAPH
        return size


@dataclass(frozen=True)
class KvBytes:
    """Bytes of keys and values at a number of positions."""

    positions: int
    bytes_per_value: int = 4

    def blocks(self, width: Array, ffn_width: Array, depth: Array) -> Array:
        """One key and one value per executed layer and position."""
        return 2 * self.positions * self.bytes_per_value * width * depth

    def seams(self, before: Array, after: Array) -> Array:
        """Nothing."""
        return 0 * before * after

    def ends(self, last_width: Array, embedding_width: Whole, vocab_size: Whole) -> Array:
        """Nothing."""
        return 0 * last_width


def parameters_sum(
    per_layer_norms: bool, *, table: bool = True, executed: bool = False, embedding_skip: bool = False
) -> Storage:
    """Return the sum that counts parameters: unique ones, unless `executed`."""
    return Storage(_count, 1, per_layer_norms, table, executed, embedding_skip=embedding_skip)


def bytes_sum(recipe: str, per_layer_norms: bool, embedding_skip: bool = False) -> Storage:
    """Return the sum that counts stored bytes under a recipe."""
    table = table_bytes(recipe)
    return Storage(matrix_bytes(recipe), 4, per_layer_norms, table_matrix=table, embedding_skip=embedding_skip)


def file_sum(recipe: str, per_layer_norms: bool, embedding_skip: bool = False) -> FileSize:
    """Return the sum that a limit on the file applies to: never less than the file."""
    table = table_bytes(recipe)
    return FileSize(matrix_bytes(recipe), 4, per_layer_norms, table_matrix=table, embedding_skip=embedding_skip)


def matrix_bytes(recipe: str) -> MatrixSize:
    """Return how many bytes a recipe needs for a matrix `[out, in]`."""
    try:
        return RECIPES[recipe]
    except KeyError as error:
        raise UsageError(f"unknown recipe '{recipe}'{did_you_mean(recipe, RECIPES)}") from error


def table_bytes(recipe: str) -> MatrixSize:
    """Return how many bytes a recipe needs for the token table `[V, E]`."""
    return TABLES.get(recipe) or matrix_bytes(recipe)


def recipe_block(recipe: str) -> int:
    """Return how many input values share a scale under a recipe, and must divide every matrix's width; else 1."""
    match = re.fullmatch(r"(?:weight_only|dynamic)_wi\d+_b(\d+)(?:_head8)?_afp32", recipe)
    return int(match[1]) if match else 1


def table_block(recipe: str) -> int:
    """Return the same for the token table alone, whose width is the embedding's."""
    match = re.search(r"_head_b(\d+)_", recipe)
    return int(match[1]) if match else recipe_block(recipe)


def count_flops(architecture: Architecture, tokens: int = FLOPS_TOKENS, head: bool = False) -> int:
    """Return 2 x MACs of one forward pass.

    Args:
        architecture: The model.
        tokens: T; attention is counted full T x T.
        head: Count the product with the token table (all T rows) too.
    """
    return int(total(Flops(tokens, head), architecture))


def count_macs(architecture: Architecture, tokens: int, positions: int, logits: int) -> dict[str, int]:
    """Return MACs of one forward pass by operator class; `projection` holds the width projections."""
    names = ("attention", "scores", "ffn", "projection")
    macs = {n: int(total(Macs(tokens, positions, logits, (n,)), architecture)) for n in names}
    return {**macs, "head": logits * architecture.embedding_width * architecture.vocab_size}


def unique_bytes(architecture: Architecture, recipe: str) -> int:
    """Return the bytes of all unique tensors under a recipe, each stored once."""
    return int(total(bytes_sum(recipe, architecture.per_layer_norms, architecture.embedding_skip), architecture))
