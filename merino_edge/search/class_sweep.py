"""Every class of a space whose members have one width, held against the limits.

Blocks that choose alike may change places there, and nothing that is limited changes, so a class is a multiset of
options for each kind of block: 12,948 classes stand for the 18 million members of `free`. What is found is exact.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from merino_edge.search.classes import alike, class_members
from merino_edge.search.cost import Array, Sum
from merino_edge.search.group import BlockChoices, Group
from merino_edge.search.problem import Problem
from merino_edge.search.reach import Known
from merino_edge.search.shortfall import Diagnosis, Shortfall
from merino_edge.search.tables import CHUNK_ROWS

MAX_CLASSES = 400_000  # are looked at within a tenth of a second
MAX_GROUPS = 2_000


def count_classes(group: Group) -> int:
    """Return how many classes a group of one width has."""
    return math.prod(_kind_sizes(group))


def _kind_sizes(group: Group) -> list[int]:
    """Return how many multisets of options each kind of block has."""
    return [math.comb(len(group.distinct[k[0]]) + len(k) - 1, len(k)) for k in alike(group)]


def has_few_classes(problem: Problem) -> bool:
    """Say whether all classes of the space can be looked at at once."""
    space = problem.space
    if space.widths is None or len(space.groups) > MAX_GROUPS:
        return False
    return sum(map(count_classes, space.groups)) <= MAX_CLASSES


def class_shortfall(problem: Problem) -> Shortfall | None:
    """Return why no member keeps the limits, None where one does."""
    names = list(problem.limits)
    sums = _ClassSums([part for name in names for part in problem.columns[name].parts])
    diagnosis, held, rows = Diagnosis(problem.limits), [], 0
    measured = {**problem.measured, **_repeated(problem)}
    for group in problem.space.groups:
        held.append((group, sums.of(group)))
        rows += len(held[-1][1][0])
        if rows > CHUNK_ROWS or group is problem.space.groups[-1]:
            _show(problem, measured, diagnosis, held)
            if diagnosis.feasible:
                return None
            held, rows = [], 0
    return diagnosis.shortfall()


def _show(problem: Problem, measured: Known, diagnosis: Diagnosis, held: list[tuple[Group, list[Array]]]) -> None:
    """Show the classes of some groups to a diagnosis."""
    groups, tables = [group for group, _ in held], [table for _, table in held]
    starts = np.cumsum([0, *(len(table[0]) for table in tables)])
    parts = [np.concatenate(columns) for columns in zip(*tables, strict=True)]
    columns = {}
    for name in problem.limits:
        count = len(problem.columns[name].parts)
        columns[name], parts = problem.columns[name].combine(*parts[:count]), parts[count:]
    _override(measured, groups, starts, columns)

    def index(rows: Array) -> int:
        first = int(np.searchsorted(starts, rows[0], side="right")) - 1  # groups come in the order of the index
        return int(_indices(groups[first], rows[rows < starts[first + 1]] - starts[first]).min())

    diagnosis.show(columns, index)


def _override(measured: Known, groups: Sequence[Group], starts: Array, columns: dict[str, Array]) -> None:
    """Put measured values in the place of predicted ones."""
    offsets = [group.offset for group in groups]
    for index, values in measured.items():
        number = bisect_right(offsets, index) - 1
        if number >= 0 and index < offsets[number] + groups[number].size:
            row = starts[number] + _row(groups[number], index)
            for name in columns.keys() & values.keys():
                columns[name][row] = values[name]


def _repeated(problem: Problem) -> dict[int, Mapping[str, float]]:
    """Return measured values for the classes of other groups that are nothing but measured ones once more."""
    space, found = problem.space, dict[int, Mapping[str, float]]()
    for index, values in problem.measured.items() if space.numbers > space.size else ():
        for member in class_members(space, index):
            for again in list(space.indices_of(space.decode(member)))[1:]:
                members = class_members(space, again)
                if all(map(space.is_repeated, members)):
                    found[members[0]] = values
    return found


def _row(group: Group, index: int) -> int:
    """Return where among the classes of a group the one with this lowest index stands."""
    digits, row = group.digits(index - group.offset), 0
    for positions, size in zip(alike(group), _kind_sizes(group), strict=True):
        mine = 0  # multisets of one more option come by the largest, then by the others
        for count, position in enumerate(positions, 1):
            mine += math.comb(group.distinct[position].index(digits[position]) + count - 1, count)
        row = row * size + mine
    return row


@cache
def _multisets(options: int, count: int) -> tuple[Array, Array]:
    """Return for each multiset of `count` options its largest, and the row of the others among those of one less.

    Rows are ordered by the largest option, so that what may come before an option is a beginning of the rows.
    """
    if count == 1:
        return np.arange(options), np.zeros(options, np.int64)
    ends = np.searchsorted(_multisets(options, count - 1)[0], np.arange(options), side="right")
    return np.repeat(np.arange(options), ends), np.concatenate([np.arange(end) for end in ends])


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
                last, others = _multisets(len(options), count)
                pairs = zip(self._alike(group, block, count - 1), self._alike(group, block, 1), strict=True)
                self._added[key] = [fewer[others] + one[last] for fewer, one in pairs]
        return self._added[key]


def _outside(part: Sum, width: int, embedding_width: int, vocab_size: int) -> Array:
    seam = part.seams(np.array(embedding_width), np.array([width]))
    return np.asarray(seam + part.ends(np.array([width]), embedding_width, vocab_size))


def _indices(group: Group, rows: Array) -> Array:
    """Return the index of the lowest member of each class."""
    result = np.full(len(rows), group.offset, object)
    for positions, row in zip(alike(group), np.unravel_index(rows, _kind_sizes(group)), strict=True):
        left = row
        for count in range(len(positions), 0, -1):
            distinct = np.array(group.distinct[positions[0]])
            last, others = _multisets(len(distinct), count)
            result = result + distinct[last[left]].astype(object) * group.radix[positions[count - 1]]
            left = others[left]
    return result
