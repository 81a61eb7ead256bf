"""The classes of a group whose members have one width, as rows.

Blocks that choose alike may change places there, so a class is a multiset of options for each kind of block. Rows are
ordered by the multiset of the first kind, then of the second, and so on. For each row: its lowest index, how many
architectures it stands for, and whether it is listed. An architecture that several numbers name counts at its lowest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, cached_property

import numpy as np

from merino_edge.search.classes import alike
from merino_edge.search.cost import Array
from merino_edge.search.group import Group
from merino_edge.search.overlaps import Box
from merino_edge.search.space import Space

MAX_CLASSES = 400_000  # are looked at within some tenths of a second
MAX_GROUPS = 2_000
MAX_STEPS = 20_000_000  # of counting, in all groups together: some tenths of a second


def count_classes(group: Group) -> int:
    """Return how many classes a group of one width has."""
    return math.prod(_kind_sizes(group))


def _kind_sizes(group: Group) -> list[int]:
    """Return how many multisets of options each kind of block has."""
    return [math.comb(len(group.distinct[k[0]]) + len(k) - 1, len(k)) for k in alike(group)]


@cache
def multisets(options: int, count: int) -> tuple[Array, Array]:
    """Return for each multiset of `count` options its largest, and the row of the others among those of one less.

    Rows are ordered by the largest option, so that what may come before an option is a beginning of the rows.
    """
    if count == 1:
        return np.arange(options), np.zeros(options, np.int64)
    ends = np.searchsorted(multisets(options, count - 1)[0], np.arange(options), side="right")
    return np.repeat(np.arange(options), ends), np.concatenate([np.arange(end) for end in ends])


@cache
def _orders(options: int, count: int) -> tuple[Array, Array]:
    """Return how often each multiset has its largest option, and in how many orders it can be put, whatever size."""
    if count == 1:
        return np.ones(options, np.int64), np.ones(options, object)
    last, others = multisets(options, count)
    often, orders = _orders(options, count - 1)
    often = np.where(multisets(options, count - 1)[0][others] == last, often[others] + 1, 1)
    return often, orders[others] * count // often.astype(object)


@cache
def _without(options: int, count: int) -> Array:
    """Return for each multiset and option the row of the multiset without it, -1 where it is not in."""
    last, others = multisets(options, count)
    found = np.full((len(last), options), -1)
    if count > 1:
        starts = np.searchsorted(multisets(options, count - 1)[0], np.arange(options))
        fewer = _without(options, count - 1)[others]
        found = np.where(fewer >= 0, starts[last][:, None] + fewer, -1)
    found[np.arange(len(last)), last] = others
    return found


def row_of(group: Group, index: int) -> int:
    """Return where among the classes of a group the one with this lowest index stands."""
    digits, row = group.digits(index - group.offset), 0
    for positions, size in zip(alike(group), _kind_sizes(group), strict=True):
        mine = 0  # multisets of one more option come by the largest, then by the others
        for count, position in enumerate(positions, 1):
            mine += math.comb(group.distinct[position].index(digits[position]) + count - 1, count)
        row = row * size + mine
    return row


class OverlapError(Exception):
    """So many counts of blocks overlap that counting each architecture once takes too long."""


class Classes:
    """What the classes of a space stand for; groups whose blocks choose alike share it."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.whole = np.dtype(np.int64 if space.numbers < 1 << 62 else object)
        self.steps = 0
        self._found: dict[object, tuple[Array, Array, Array]] = {}

    @cached_property
    def are_few(self) -> bool:
        """Whether all can be looked at at once, and their architectures be counted."""
        space = self.space
        if space.widths is None or len(space.groups) > MAX_GROUPS:
            return False
        if sum(map(count_classes, space.groups)) > MAX_CLASSES:
            return False
        try:
            for group in space.groups if space.numbers > space.size else ():
                self.of(group)
        except OverlapError:
            return False
        return True

    def of(self, group: Group) -> tuple[Array, Array, Array]:
        """Return the lowest index of each class, its architectures, and whether it is listed: its lowest index counts.

        Raises:
            OverlapError: see there.
        """
        key = id(group.choices), group.distinct, id(self.space.repeats(group))  # the space holds both
        if key not in self._found:
            index = self._fold(group, np.add, 0, lambda block: self._steps(group, block))
            self._found[key] = index, *self._counted(group)
        index, counts, listed = self._found[key]
        return index + group.offset, counts, listed

    def _steps(self, group: Group, block: int) -> Array:
        """Return what each option of a block adds to an index."""
        return np.array(group.distinct[block], self.whole) * group.radix[block]

    def _counted(self, group: Group) -> tuple[Array, Array]:
        boxes = different(group, self.space.repeats(group))
        listed = np.ones(count_classes(group), bool)
        if boxes:
            for box in boxes:
                listed &= ~self._fold(group, np.logical_and, True, box.__getitem__)
            return self._not_in(group, boxes), listed
        counts = np.ones(1, self.whole)
        for positions in alike(group):
            orders = _orders(len(group.distinct[positions[0]]), len(positions))[1]
            counts = np.multiply.outer(counts, orders.astype(self.whole)).reshape(-1)
        return counts, listed

    def _fold(self, group: Group, join: np.ufunc, first: int | bool, options: Callable[[int], Array]) -> Array:
        """Join over all blocks what each adds by its option, in the lowest member of each class."""
        dtype = bool if isinstance(first, bool) else self.whole
        result = np.array([first], dtype)
        for positions in alike(group):
            value = np.array([first], dtype)
            for count, position in enumerate(positions, 1):
                last, others = multisets(len(group.distinct[position]), count)
                value = join(value[others], options(position).astype(dtype)[last])
            result = join.outer(result, value).reshape(-1)
        return result

    def _not_in(self, group: Group, boxes: Sequence[Box]) -> Array:
        """Count the members of each class that lie in no box, block by block, by the boxes that still hold them."""
        kinds = {position: kind for kind, positions in enumerate(alike(group)) for position in positions}
        begun = [0] * len(alike(group))
        ways = {(1 << len(boxes)) - 1: np.ones([1] * len(begun), self.whole)}
        for position, kind in sorted(kinds.items()):
            begun[kind] += 1
            options = len(group.distinct[position])
            fewer = _without(options, begun[kind])
            allowed = [sum(1 << i for i, box in enumerate(boxes) if box[position][option]) for option in range(options)]
            after: dict[int, Array] = {}
            for held, counts in ways.items():
                shape = [len(fewer) if k == kind else size for k, size in enumerate(counts.shape)]
                self.steps += math.prod(shape) * options
                if self.steps > MAX_STEPS:
                    raise OverlapError
                for option in range(options):
                    rows = np.flatnonzero(fewer[:, option] >= 0)
                    found = after.setdefault(held & allowed[option], np.zeros(shape, self.whole))
                    np.moveaxis(found, kind, 0)[rows] += np.moveaxis(counts, kind, 0)[fewer[rows, option]]
            ways = after
        return ways.get(0, np.zeros(count_classes(group), self.whole)).reshape(-1)


def classes_of(space: Space) -> Classes:
    """Return the classes of a space, counted once: the searches of a measuring loop ask again and again."""
    kept = _latest.get("space")
    if kept is None or kept.space is not space:
        kept = _latest["space"] = Classes(space)
    return kept


_latest: dict[str, Classes] = {}


def different(group: Group, boxes: Sequence[Box]) -> list[Box]:
    """Return boxes over the options that differ; without those that are empty there, or lie in another."""
    narrow = [tuple(mask[list(kept)] for mask, kept in zip(box, group.distinct, strict=True)) for box in boxes]
    found: list[Box] = []
    for box in sorted(narrow, key=lambda box: -math.prod(int(mask.sum()) for mask in box)):
        if all(mask.any() for mask in box) and not any(_holds(large, box) for large in found):
            found.append(box)
    return found


def _holds(large: Box, small: Box) -> bool:
    return all((one >= other).all() for one, other in zip(large, small, strict=True))
