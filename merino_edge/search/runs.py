"""Columns of many small groups at once: where vocabularies, embeddings and widths leave little to choose in each.

Groups that follow each other and choose alike in every block have tables of one shape, which are filled and added up
together, a row a group. Group by group (`tables.py`), the calls would cost more than the sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from merino_edge.search.cost import Array, Sum
from merino_edge.search.group import Group
from merino_edge.search.space import Space
from merino_edge.search.tables import CHUNK_ROWS, GroupTables


def runs_of(space: Space, rows: int = CHUNK_ROWS) -> Iterator[list[Group]]:
    """Yield the groups of a space in their order, together where they have tables of one shape and few members."""
    run: list[Group] = []
    for group in space.groups:
        if run and ((len(run) + 1) * group.size > rows or not _alike(space, run[0], group)):
            yield run
            run = []
        run.append(group)
    yield run


def _alike(space: Space, one: Group, other: Group) -> bool:
    return one.choices is other.choices and (space.widths is not None or one.options is other.options)


@dataclass(frozen=True)
class RunTables:
    """What the groups of a run add up to.

    Attributes:
        space: The space.
        groups: Of one run.
        parts: The sums.
    """

    space: Space
    groups: Sequence[Group]
    parts: Sequence[Sum]

    @property
    def numbers(self) -> Array:
        """Index of every member, `(groups x members,)`."""
        offsets = np.array([group.offset for group in self.groups], np.int64)
        return np.asarray((offsets[:, None] + np.arange(self.groups[0].size)).reshape(-1))

    def sums(self) -> list[Array]:
        """Return each sum of every member, `(groups x members,)`, in the order of the index."""
        choices = [id(c) for c in self.groups[0].choices]  # alike blocks have the same table
        kind = [choices.index(c) for c in choices]
        shapes = {i: self._shapes(i) for i in set(kind)}
        embedding = np.array([group.embedding_width for group in self.groups])[:, None]
        vocabulary = np.array([group.vocab_size for group in self.groups])[:, None]
        between = GroupTables(self.space, self.groups[0], self.parts)
        last = np.broadcast_to(shapes[kind[-1]][0], (len(self.groups), shapes[kind[-1]].shape[2]))
        found = []
        for part, seams in zip(self.parts, between.seams, strict=True):
            distinct = {i: np.asarray(part.blocks(*shape)) for i, shape in shapes.items()}
            tables = [distinct[i] for i in kind]
            tables[0] = tables[0] + part.seams(embedding, shapes[0][0])
            tables[-1] = tables[-1] + part.ends(last, embedding, vocabulary)
            value = np.broadcast_to(tables[0], (len(self.groups), tables[0].shape[1]))
            for i, table in enumerate(tables[1:], 1):
                step, seam = table[:, None, None, :], seams[i]
                if seam is not None:
                    step = step + seam[np.ix_(between.width_numbers[i - 1], between.width_numbers[i])]
                value = value.reshape(len(value), -1, tables[i - 1].shape[1], 1) + step
                value = value.reshape(len(value), -1)
            found.append(value.reshape(-1))
        return found

    def _shapes(self, block: int) -> Array:
        """Return width, FFN width and depth of a block's options, `(3, groups, options)`; one group where all agree."""
        options = {id(group.options): group.options[block] for group in self.groups}
        arrays = {key: [b.shape for b in blocks] for key, blocks in options.items()}
        groups = self.groups[:1] if len(options) == 1 else self.groups
        return np.array([arrays[id(group.options)] for group in groups], np.int64).transpose(2, 0, 1)

    def representative(self) -> Array:
        """Return which members stand for their class, `(groups x members,)`."""
        one = GroupTables(self.space, self.groups[0], self.parts).representative()
        return np.tile(one, len(self.groups))
