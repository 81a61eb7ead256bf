"""Columns over a whole space by outer sums: no architecture is ever looked up by itself.

For each sum a group gets one small table a block (what each option adds) and one a seam (what each
pair of widths adds). The last blocks are added up once, by broadcasting; then each choice of the first
blocks costs one number more. A chunk is one such choice: a run of consecutive indices.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from merino_edge.search.classes import alike_before
from merino_edge.search.cost import Array, Sum
from merino_edge.search.group import Group
from merino_edge.search.space import Space

CHUNK_ROWS = 1 << 15  # some arrays of this many numbers stay in a core's second-level cache


@dataclass(frozen=True)
class GroupTables:
    """What each option of each block adds to each sum, in one group.

    Attributes:
        space: The space.
        group: The group.
        parts: The sums.
    """

    space: Space
    group: Group
    parts: Sequence[Sum]

    @cached_property
    def widths(self) -> list[Array]:
        """Width of each option, for each block."""
        return [np.array([b.width for b in options], np.int64) for options in self.group.options]

    @cached_property
    def one_width(self) -> bool:
        """Whether every member has one width throughout."""
        return len({int(w) for widths in self.widths for w in widths}) == 1

    @cached_property
    def blocks(self) -> list[list[Array]]:
        """For each sum and block `(options,)`: what they add, the ends included in the outer blocks."""
        group = self.group
        kinds = list(dict.fromkeys(self.group.choices))
        kind = [kinds.index(choices) for choices in self.group.choices]  # alike blocks have the same table
        shapes = [self._shapes(kind.index(i)) for i in range(len(kinds))]
        tables = []
        for part in self.parts:
            distinct = [np.asarray(part.blocks(*shape)) for shape in shapes]
            table = [distinct[i] for i in kind]
            table[0] = table[0] + part.seams(np.array(group.embedding_width), self.widths[0])
            table[-1] = table[-1] + part.ends(self.widths[-1], group.embedding_width, group.vocab_size)
            tables.append(table)
        return tables

    def _shapes(self, block: int) -> tuple[Array, Array, Array]:
        """Width, FFN width and depth of each option of a block."""
        options = self.group.options[block]
        ffn_width = np.array([b.ffn_width for b in options], np.int64)
        return self.widths[block], ffn_width, np.array([b.depth for b in options], np.int64)

    @cached_property
    def width_numbers(self) -> list[Array]:
        """For each block `(options,)`: the number of each option's width among the block's different widths."""
        return [np.unique(widths, return_inverse=True)[1] for widths in self.widths]

    @cached_property
    def seams(self) -> list[list[Array | None]]:
        """For each sum and block `(widths before, widths)`: what the projection adds; None where nothing."""
        if self.one_width:
            return [[None] * len(self.widths) for _ in self.parts]
        distinct = [np.unique(widths) for widths in self.widths]
        tables: list[list[Array | None]] = []
        for part in self.parts:
            table: list[Array | None] = [None]
            for before, after in itertools.pairwise(distinct):
                seam = np.asarray(part.seams(before[:, None], after[None, :]))
                table.append(seam if seam.any() else None)
            tables.append(table)
        return tables

    def options_width(self, digits: Array) -> Array:
        """Return the width of each block of one member."""
        return np.array([widths[digit] for widths, digit in zip(self.widths, digits, strict=True)])

    def gather(self, digits: Array) -> list[Array]:
        """Return each sum of some members.

        Args:
            digits: `(n, blocks)` options.
        """
        sums, number = [], self.width_numbers
        for table, seams in zip(self.blocks, self.seams, strict=True):
            value = table[0][digits[:, 0]]
            for i in range(1, digits.shape[1]):
                value = value + table[i][digits[:, i]]
                seam = seams[i]
                if seam is not None:
                    value = value + seam[number[i - 1][digits[:, i - 1]], number[i][digits[:, i]]]
            sums.append(value)
        return sums

    def representative(self) -> Array:
        """Return which members of the group stand for their class, `(members,)`."""
        return _Representatives(self, 0).mask((), np.arange(0))

    def chunks(self, rows: int = CHUNK_ROWS) -> Iterator[Chunk]:
        """Yield the whole group, in the order of the index."""
        counts = [len(options) for options in self.group.options]
        first = next(i for i in range(len(counts)) if math.prod(counts[i:]) <= rows or i == len(counts) - 1)
        tails = [self._tail(part, first) for part in range(len(self.parts))]
        classes, offset = _Representatives(self, first), self.group.offset
        if first == 0:
            yield Chunk(offset, [np.asarray(tail.reshape(-1)) for tail in tails], classes.mask((), np.arange(0)))
            return
        size = math.prod(counts[first:])
        step = max(1, rows // size)
        for head in itertools.product(*(range(count) for count in counts[: first - 1])):
            for begin in range(0, counts[first - 1], step):
                digits = np.arange(begin, min(begin + step, counts[first - 1]))
                sums = [self._add_head(part, head, digits, tail) for part, tail in enumerate(tails)]
                yield Chunk(offset, sums, classes.mask(head, digits))
                offset += len(digits) * size

    def _tail(self, part: int, first: int) -> Array:
        """Return the sum over blocks `first` and later, `(options of first, members for each)`.

        From the last block to the first, so that the inner loop runs over the long axis.
        """
        table, seams, number = self.blocks[part], self.seams[part], self.width_numbers
        value = table[-1][:, None]
        for i in range(len(table) - 2, first - 1, -1):
            seam = seams[i + 1]
            if seam is None:
                value = table[i][:, None] + value.reshape(1, -1)
            else:
                step = table[i][:, None] + seam[np.ix_(number[i], number[i + 1])]  # (options, options after)
                value = (step[:, :, None] + value[None]).reshape(len(table[i]), -1)
        return np.asarray(value)

    def _add_head(self, part: int, head: tuple[int, ...], digits: Array, tail: Array) -> Array:
        """Return the sum over all blocks, `(rows,)`.

        Args:
            part: Of which sum.
            head: Options of the first blocks, one each.
            digits: `(n,)` options of the block after those.
            tail: What `_tail` gave of the blocks after that one.
        """
        table, seams, number = self.blocks[part], self.seams[part], self.width_numbers
        last = len(head)
        value = table[last][digits]
        for i, digit in enumerate(head):
            value = value + table[i][digit]
            seam = seams[i + 1]
            if seam is not None:
                after = number[i + 1][head[i + 1] if i + 1 < last else digits]
                value = value + seam[number[i][digit], after]
        seam = seams[last + 1]
        if seam is None:
            return np.asarray((value[:, None] + tail.reshape(1, -1)).reshape(-1))
        step = value[:, None] + seam[np.ix_(number[last][digits], number[last + 1])]  # (n, options of the next block)
        return np.asarray((step[:, :, None] + tail[None]).reshape(-1))


@dataclass(frozen=True)
class Chunk:
    """Consecutive members of a space.

    Attributes:
        start: Index of the first.
        sums: `(rows,)` for each sum.
        representative: `(rows,)`: which stand for their class.
    """

    start: int
    sums: list[Array]
    representative: Array


class _Representatives:
    """Which members of a group stand for their class: options in order, or widths that differ."""

    def __init__(self, tables: GroupTables, first: int) -> None:
        self.tables, self.first = tables, first
        self.before = alike_before(tables.group)
        self.shape = tuple(len(options) for options in tables.group.options[first:])
        self.ordered = np.ones(self.shape, bool)
        self.same = np.ones(self.shape, bool)
        for i in range(first, len(tables.widths)):
            before = self.before[i]
            if before is not None and before >= first:
                self.ordered &= self._axis(np.arange(len(tables.widths[before])), before) <= self._axis(
                    np.arange(len(tables.widths[i])), i
                )
            if not tables.one_width:
                self.same &= self._axis(tables.widths[i], i) == self._axis(tables.widths[first], first)

    def _axis(self, values: Array, block: int) -> Array:
        shape = [1] * len(self.shape)
        shape[block - self.first] = len(values)
        return values.reshape(shape)

    def mask(self, head: tuple[int, ...], digits: Array) -> Array:
        """Return the mask, `(rows,)`.

        Args:
            head: Options of the first blocks, one each.
            digits: `(n,)` options of the block after those; empty where no block is fixed.
        """
        if self.first == 0:
            return self._flat(self.ordered if self.tables.one_width else self.ordered | ~self.same, self.shape)
        last, shape = self.first - 1, (len(digits), *self.shape)
        column = digits.reshape(-1, *([1] * len(self.shape)))
        ordered, same = self.ordered[None], self.same[None]
        for i, before in enumerate(self.before):
            if before is None or before >= self.first:
                continue
            if i < last:
                ordered = ordered & (head[before] <= head[i])
                continue
            option = column if i == last else self._axis(np.arange(self.shape[i - self.first]), i)[None]
            ordered = ordered & (option >= (column if before == last else head[before]))
        if self.tables.one_width:
            return self._flat(ordered, shape)
        widths = {int(self.tables.widths[i][digit]) for i, digit in enumerate(head)}
        if len(widths) > 1:
            return np.ones(math.prod(shape), bool)
        width = self.tables.widths[last][column]
        same = same & (self._axis(self.tables.widths[self.first], self.first)[None] == width)
        if widths:
            same = same & (width == widths.pop())
        return self._flat(ordered | ~same, shape)

    def _flat(self, mask: Array, shape: tuple[int, ...]) -> Array:
        return np.asarray(np.broadcast_to(mask, shape).reshape(-1))
