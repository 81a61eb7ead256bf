"""Every class of a space whose members have one width, in the place of every member.

Blocks that choose alike may change places there, and neither score nor cost changes, so a class is a multiset of
options for each kind of block: 62,920 classes stand for the 74 billion members of `free`. What is found is exact.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from merino_edge.search.classes import alike, class_members
from merino_edge.search.cost import Array, Sum
from merino_edge.search.exact import Members, listed_shortfall
from merino_edge.search.group import BlockChoices, Group
from merino_edge.search.multisets import Classes, count_classes, multisets, row_of
from merino_edge.search.problem import Problem
from merino_edge.search.shortfall import Shortfall
from merino_edge.search.space import Space
from merino_edge.search.tables import CHUNK_ROWS


@dataclass(frozen=True)
class ClassMembers(Members):
    """Columns of classes: `numbers` are their lowest indices, `representative` says for which these count."""

    space: Space

    def first(self, rows: Array) -> int:
        """Return the lowest index among the members of some classes."""
        listed = self.representative[rows]
        found = [int(self.numbers[rows[listed]].min())] if listed.any() else []
        for index in sorted(self.numbers[rows[~listed]].tolist()):
            if found and index > min(found):
                break
            found.append(self._lowest(index))
        return min(found)

    def _lowest(self, index: int) -> int:
        """Return the lowest index of a class that counts, where its lowest index does not."""
        return next((i for i in class_members(self.space, index) if not self.space.is_repeated(i)), index)


def sweep_classes(problem: Problem, limited: bool = False) -> Iterator[ClassMembers]:
    """Yield the columns of all classes of the space, those of some groups at a time.

    Args:
        problem: What is asked for; `problem.classes.are_few`.
        limited: Leave out the score, and what is not limited.
    """
    classes = problem.classes
    if limited:
        columns = {name: problem.columns[name] for name in problem.limits}
        problem = replace(problem, columns=columns, score=lambda _: 0.0)
    sums = _ClassSums(problem.parts)
    held: list[Group] = []
    rows = 0
    for group in problem.space.groups:
        held.append(group)
        rows += count_classes(group)
        if rows > CHUNK_ROWS or group is problem.space.groups[-1]:
            members = _members(problem, sums, classes, held)
            if len(members.numbers):
                yield members
            held, rows = [], 0


def _members(problem: Problem, sums: _ClassSums, classes: Classes, groups: Sequence[Group]) -> ClassMembers:
    """Return the columns of the classes of some groups."""
    tables = [(*classes.of(group), *sums.of(group)) for group in groups]
    starts = np.cumsum([0, *(len(table[0]) for table in tables)])
    numbers, counts, listed, *parts = (np.concatenate(columns) for columns in zip(*tables, strict=True))
    score, columns = problem.fill(parts)
    _override(problem.measured, groups, starts, columns)
    if score is None:
        score = np.zeros(len(numbers))
    members = ClassMembers(numbers, score, columns, listed, problem.space, weights=counts)
    return members if listed.all() else members.take(np.flatnonzero(counts > 0))


def class_shortfall(problem: Problem) -> Shortfall | None:
    """Return why no member keeps the limits, None as soon as one does; by what is limited alone."""
    return listed_shortfall(problem, sweep_classes(problem, limited=True))


def _override(
    measured: Mapping[int, Mapping[str, float]], groups: Sequence[Group], starts: Array, columns: dict[str, Array]
) -> None:
    """Put measured values in the place of predicted ones."""
    offsets = [group.offset for group in groups]
    for index, values in measured.items():
        number = bisect_right(offsets, index) - 1
        if number >= 0 and index < offsets[number] + groups[number].size:
            row = starts[number] + row_of(groups[number], index)
            for name in columns.keys() & values.keys():
                columns[name][row] = values[name]


class _ClassSums:
    """Sums of each class, group by group; what groups have in common is added up once."""

    def __init__(self, parts: Sequence[Sum]) -> None:
        self.parts = parts
        self._added: dict[tuple[BlockChoices, int, int, int], list[Array]] = {}
        self._ends: dict[tuple[int, int, int], list[Array]] = {}

    def of(self, group: Group) -> list[Array]:
        """Return `(classes,)` of each sum."""
        width = group.options[0][0].width
        key = width, group.embedding_width, group.vocab_size
        if key not in self._ends:
            self._ends[key] = [_outside(part, *key) for part in self.parts]
        result = self._ends[key]
        for positions in alike(group):
            added = self._alike(group, positions[0], len(positions))
            result = [(a[..., None] + b).reshape(-1) for a, b in zip(result, added, strict=True)]
        return result

    def _alike(self, group: Group, block: int, count: int) -> list[Array]:
        """Return what each multiset of options of alike blocks adds to each sum."""
        options = [group.options[block][option] for option in group.distinct[block]]
        key = group.choices[block], options[0].width, group.head_dim, count
        if key not in self._added:
            if count == 1:
                shapes = np.array([(b.width, b.ffn_width, b.depth) for b in options], np.int64).T
                self._added[key] = [np.asarray(part.blocks(*shapes)) for part in self.parts]
            else:
                last, others = multisets(len(options), count)
                pairs = zip(self._alike(group, block, count - 1), self._alike(group, block, 1), strict=True)
                self._added[key] = [fewer[others] + one[last] for fewer, one in pairs]
        return self._added[key]


def _outside(part: Sum, width: int, embedding_width: int, vocab_size: int) -> Array:
    seam = part.seams(np.array(embedding_width), np.array([width]))
    return np.asarray(seam + part.ends(np.array([width]), embedding_width, vocab_size))
