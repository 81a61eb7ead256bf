"""What every limit adds up to along the blocks of a space whose members cannot be listed.

A member is a path: an embedding width, an option for each block, a vocabulary. Groups that share their blocks are one
family. Each side of a limit is a row that a member keeps where it is small enough: `value / upper` has to be at most 1,
`-value / lower` at most -1. Of any weighted sum of the rows the least over all members is found block by block, with
the best end for each width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from merino_edge.search.cost import Array
from merino_edge.search.group import Group
from merino_edge.search.problem import Column, Problem


@dataclass(frozen=True)
class Side:
    """One end of a limit: `scale` times the value may be at most `bound`."""

    name: str
    scale: float
    bound: float

    def allowed(self, excess: float) -> float:
        """Return the bound where the limit may be passed by a share."""
        return self.bound * (1.0 + excess) if self.bound > 0 else self.bound / (1.0 + excess)

    def excess(self, row: Array) -> Array:
        """Return by what share the limit is passed, 0 where it is kept."""
        if self.bound > 0:
            return np.maximum(row - 1.0, 0.0)
        return np.maximum(1.0 / np.maximum(-row, 1e-300) - 1.0, 0.0)


def sides_of(problem: Problem) -> list[Side]:
    """Return the ends of all limits."""
    sides = []
    for name, limit in problem.limits.items():
        sides.append(Side(name, 1.0 / limit.upper, 1.0))
        if limit.lower is not None and limit.lower > 0:
            sides.append(Side(name, -1.0 / limit.lower, -1.0))
    return sides


@dataclass(frozen=True)
class Path:
    """A member.

    Attributes:
        group: Where it is.
        digits: The option of each block.
        rows: Its rows.
        choice: Number of its embedding width and vocabulary, and its options in the order of the family.
    """

    group: Group
    digits: tuple[int, ...]
    rows: Array
    choice: tuple[int, int, tuple[int, ...]]

    @property
    def index(self) -> int:
        """Its number in the space."""
        return self.group.offset + self.group.position(self.digits)


@dataclass(frozen=True)
class Family:
    """Groups of the same blocks.

    Attributes:
        groups: `[embedding][vocabulary]`.
        order: For each block, the options in the order used here: by width.
        number: For each block `(options,)`: number of the width of each, rising.
        blocks: For each block `(rows, options)`.
        seams: For each block `(rows, widths before, widths)`; of the first `(rows, embeddings, widths)`.
        ends: `(rows, embeddings, vocabularies, widths)`.
    """

    groups: list[list[Group]]
    order: list[Array]
    number: list[Array]
    blocks: list[Array]
    seams: list[Array]
    ends: Array

    @cached_property
    def starts(self) -> list[Array]:
        """For each block, where the options of each width begin."""
        return [np.searchsorted(number, np.arange(int(number[-1]) + 1)) for number in self.number]

    def rows(self, kept: Sequence[int]) -> Family:
        """Return the family with some rows."""
        take = list(kept)
        parts = [b[take] for b in self.blocks], [s[take] for s in self.seams], self.ends[take]
        return Family(self.groups, self.order, self.number, *parts)

    def path(self, embedding: int, vocabulary: int, options: Sequence[int]) -> Path:
        """Return the member with these choices, options in the order used here."""
        number = [int(n[o]) for n, o in zip(self.number, options, strict=True)]
        rows = self.ends[:, embedding, vocabulary, number[-1]]
        before = embedding
        for i, option in enumerate(options):
            rows = rows + self.blocks[i][:, option] + self.seams[i][:, before, number[i]]
            before = number[i]
        digits = tuple(int(order[option]) for order, option in zip(self.order, options, strict=True))
        return Path(self.groups[embedding][vocabulary], digits, rows, (embedding, vocabulary, tuple(options)))

    def least(self, weights: Array) -> tuple[float, Path]:
        """Return the least of a weighted sum of the rows, and a member that has it."""
        blocks = [weights @ block for block in self.blocks]
        if all(len(starts) == 1 for starts in self.starts):  # widths are given: each block is chosen by itself
            sums = np.tensordot(weights, self.ends[..., 0] + self.seams[0], 1)  # (embeddings, vocabularies)
            embedding, vocabulary = (int(i) for i in np.unravel_index(sums.argmin(), sums.shape))
            between = sum(float(weights @ seam[:, 0, 0]) for seam in self.seams[1:])
            least = float(sums.min()) + between + sum(float(block.min()) for block in blocks)
            return least, self.path(embedding, vocabulary, [int(block.argmin()) for block in blocks])
        best = [np.minimum.reduceat(b, starts) for b, starts in zip(blocks, self.starts, strict=True)]
        seams = [np.tensordot(weights, seam, 1) for seam in self.seams]
        value = np.tensordot(weights, self.ends, 1)  # (embeddings, vocabularies, widths)
        after: list[Array] = []
        for i in range(len(blocks) - 1, 0, -1):
            paths = (value + best[i])[:, :, None, :] + seams[i]
            after.append(paths.argmin(3))
            value = paths.min(3)
        value = value + best[0] + seams[0][:, None, :]
        embedding, vocabulary, width = (int(i) for i in np.unravel_index(value.argmin(), value.shape))
        least, options = float(value[embedding, vocabulary, width]), []
        for i, block in enumerate(blocks):
            if i:
                width = int(after[-i][embedding, vocabulary, width])
            ends = [*self.starts[i], len(block)]
            options.append(ends[width] + int(block[ends[width] : ends[width + 1]].argmin()))
        return least, self.path(embedding, vocabulary, options)

    def freed(self, path: Path, kept: Sequence[int]) -> Path:
        """Return a member with the same of some rows, and where one option can be changed for that, less of the others.

        Args:
            path: A member.
            kept: Rows that stay.
        """
        others = [row for row in range(len(self.ends)) if row not in kept]
        embedding, vocabulary, options = path.choice
        changed = []
        for block, number, option in zip(self.blocks, self.number, options, strict=True):
            same = (number == number[option]) & (block[kept] == block[kept][:, [option]]).all(0)
            alike = np.flatnonzero(same)
            changed.append(int(alike[block[others][:, alike].sum(0).argmin()]))
        return self.path(embedding, vocabulary, changed)

    def remaining(self, weights: Array) -> list[Array]:
        """Return for each block what the rest adds at least to weighted sums, `(sums, embeddings, widths)`.

        Args:
            weights: `(sums, rows)`.
        """
        value = np.tensordot(weights, self.ends, 1).min(2)
        found = [value]
        for i in range(len(self.blocks) - 1, 0, -1):
            best = np.minimum.reduceat(weights @ self.blocks[i], self.starts[i], axis=1)
            paths = (value + best[:, None])[:, :, None, :] + np.tensordot(weights, self.seams[i], 1)[:, None]
            value = paths.min(3)
            found.append(value)
        return found[::-1]


def families_of(problem: Problem, sides: Sequence[Side], most: int) -> list[Family]:
    """Return the families of a space, none where there are more than `most`."""
    shared: dict[int, list[Group]] = {}
    for group in problem.space.groups:
        shared.setdefault(id(group.options), []).append(group)
    families = list(shared.values())
    if len(problem.space.head_dims) > 1:  # nothing is limited that heads change: the first stand for all
        families = list({groups[0].options: groups for groups in reversed(families)}.values())[::-1]
    return [_family(problem, groups, sides) for groups in families] if len(families) <= most else []


def _family(problem: Problem, groups: list[Group], sides: Sequence[Side]) -> Family:
    vocabularies = len(problem.space.vocab_sizes)  # groups of a family come vocabulary by vocabulary
    embeddings = len(groups) // vocabularies
    table = [[groups[v * embeddings + e] for v in range(vocabularies)] for e in range(embeddings)]
    choices = list(dict.fromkeys(map(id, groups[0].choices)))
    kind = [choices.index(id(c)) for c in groups[0].choices]  # alike blocks have the same tables
    options = [groups[0].options[kind.index(i)] for i in range(len(choices))]
    shapes = [np.array([b.shape for b in o], np.int64).T for o in options]
    order = [np.argsort(shape[0], kind="stable") for shape in shapes]
    shapes = [shape[:, o] for shape, o in zip(shapes, order, strict=True)]
    widths, number = zip(*(np.unique(shape[0], return_inverse=True) for shape in shapes), strict=True)
    columns = {side.name: problem.columns[side.name] for side in sides}

    def rows(value: dict[str, Array]) -> Array:
        return np.stack([side.scale * value[side.name] for side in sides])

    def between(before: Array, after: Array) -> Array:
        pair = before[:, None], after[None, :]
        return rows({n: _sum(c, [p.seams(*pair) for p in c.parts]) for n, c in columns.items()})

    blocks = [rows({n: _sum(c, [p.blocks(*shape) for p in c.parts]) for n, c in columns.items()}) for shape in shapes]
    pairs = {pair: between(widths[pair[0]], widths[pair[1]]) for pair in pairwise(kind)}
    first = between(np.array([row[0].embedding_width for row in table]), widths[kind[0]])
    seams = [first, *(pairs[pair] for pair in pairwise(kind))]
    ends = rows({name: _ends(column, table, widths[kind[-1]]) for name, column in columns.items()})
    return Family(table, [order[k] for k in kind], [number[k] for k in kind], [blocks[k] for k in kind], seams, ends)


def _sum(column: Column, parts: Sequence[Array]) -> Array:
    return np.asarray(column.combine(*(np.asarray(part, np.float64) for part in parts)), np.float64)


def _ends(column: Column, groups: list[list[Group]], widths: Array) -> Array:
    """Return what the ends add, `(embeddings, vocabularies, widths)`."""
    embeddings = np.array([line[0].embedding_width for line in groups])[:, None, None]
    vocabularies = np.array([group.vocab_size for group in groups[0]])[:, None]
    shape = np.broadcast_shapes(embeddings.shape, vocabularies.shape, widths.shape)
    last = np.broadcast_to(widths, shape)
    return _sum(column, [np.broadcast_to(p.ends(last, embeddings, vocabularies), shape) for p in column.parts])
