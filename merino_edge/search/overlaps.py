"""Numbers of a space that name an architecture once more.

Where the number of blocks is a choice of several kinds of block, and two kinds allow the same block, one sequence of
blocks may come from two rows: with counts of 1 and 2 each, the middle block of three may be of either kind. The first
row in the order of the index names the architecture; later rows repeat it. So does an option whose FFN ratio gives, in
whole numbers, the same FFN width as an earlier one. A row is a box, one set of options for each block, so what is
repeated is a union of boxes, and what is different is counted without listing any.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from merino_edge.errors import InvalidFileError
from merino_edge.search.group import BlockChoices, multiples

MAX_STATES = 5_000  # sets of rows that beginnings may be told apart by

Mask = npt.NDArray[np.bool_]
Row = tuple[BlockChoices, ...]
Box = tuple[Mask, ...]


@dataclass(frozen=True)
class Rows:
    """Rows of blocks where all else is fixed.

    Attributes:
        rows: In the order of the index.
        model_width: The one width, or None where each block has its own. Widths where the same ratios round to one
            FFN width have the same overlaps.
        head_dim: Of all members.
    """

    rows: Sequence[Row]
    model_width: int | None
    head_dim: int

    @cached_property
    def _kinds(self) -> tuple[list[BlockChoices], list[list[int]]]:
        """The different choices, and which of them each block of each row has."""
        kinds: dict[BlockChoices, int] = {}
        number: dict[int, int] = {}
        for row in self.rows:
            for choices in row:
                if id(choices) not in number:  # hashing them all would take seconds where rows are many
                    number[id(choices)] = kinds.setdefault(choices, len(kinds))
        return list(kinds), [[number[id(choices)] for choices in row] for row in self.rows]

    @cached_property
    def _allowed(self) -> npt.NDArray[np.bool_]:
        """`(kinds, blocks that any kind allows)`: what each kind allows."""
        options = [self._shapes(kind) for kind in self._kinds[0]]
        every = {shape: i for i, shape in enumerate(dict.fromkeys(shape for some in options for shape in some))}
        allowed = np.zeros((len(options), len(every)), bool)
        for kind, some in enumerate(options):
            allowed[kind, [every[shape] for shape in some]] = True
        return allowed

    def _shapes(self, kind: BlockChoices) -> list[tuple[int, int, int]]:
        """Width, FFN width and depth of each option of a kind."""
        return [block.shape for block in kind.options(self.model_width, self.head_dim)]

    @cached_property
    def overlap(self) -> bool:
        """Whether two kinds allow the same block, so that rows may share members, or one kind allows it twice."""
        twice = any(
            len(self._shapes(kind)) > count for kind, count in zip(self._kinds[0], self._allowed.sum(1), strict=True)
        )
        return twice or bool((self._allowed.sum(0) > 1).any())

    @cached_property
    def size(self) -> int:
        """How many different members the rows have.

        Raises:
            InvalidFileError: they overlap in more ways than can be told apart in reasonable time.
        """
        patterns = Counter(tuple(np.flatnonzero(column).tolist()) for column in self._allowed.T)
        lengths: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        for row in self._kinds[1]:
            lengths[len(row)].append(tuple(row))
        return sum(count_sequences(rows, patterns) for rows in lengths.values())

    def boxes(self, row: Row) -> tuple[Box, ...]:
        """Return what of a row is repeated: of each earlier row that shares members, which options it allows, by block.

        And for each block, which of its options it has had before.
        """
        kinds, table = self._kinds
        at = next(i for i, other in enumerate(self.rows) if other == row)
        masks = {}
        for mine in set(table[at]):
            allowed = self._shapes(kinds[mine])
            for other, choices in enumerate(kinds):
                theirs = set(self._shapes(choices))
                masks[mine, other] = np.array([shape in theirs for shape in allowed], bool)
        shared = {pair for pair, mask in masks.items() if mask.any()}
        found = []
        for other_row in table[:at]:
            if len(other_row) == len(row):
                pairs = list(zip(table[at], other_row, strict=True))
                if all(pair in shared for pair in pairs):
                    found.append(tuple(masks[pair] for pair in pairs))
        every = [self._shapes(choices) for choices in row]
        for i, shapes in enumerate(every):
            again = np.array([shape in shapes[:option] for option, shape in enumerate(shapes)])
            if again.any():
                found.append(tuple(again if j == i else np.ones(len(other), bool) for j, other in enumerate(every)))
        return tuple(found)


@dataclass(frozen=True)
class Repeats:
    """What of a space has several numbers.

    Attributes:
        rows: Of blocks, in the order of the index.
        widths: Choices of the one width, or None where each block has its own.
        head_dims: Choices.
    """

    rows: tuple[Row, ...]
    widths: tuple[int, ...] | None
    head_dims: tuple[int, ...]

    @cached_property
    def rows_of(self) -> dict[tuple[int, tuple[int, ...]], Rows]:
        """For each head_dim and rounding of FFN widths, the rows; empty where nothing has several numbers."""
        every = [choices for row in self.rows for choices in dict.fromkeys(row)]
        narrowest = min(width for choices in every for width in choices.widths or self.widths or ())
        apart = min((b - a for a, b in pairwise(self._ratios)), default=math.inf)
        if len(self.rows) == 1 and apart * narrowest > 1:
            return {}
        found: dict[tuple[int, tuple[int, ...]], Rows] = {}
        for head_dim in self.head_dims:
            for width in self._fitting(head_dim):
                key = head_dim, self._rounding(width)
                if key not in found:
                    found[key] = Rows(self.rows, width, head_dim)
        return found if any(rows.overlap for rows in found.values()) else {}

    @property
    def size(self) -> int:
        """How many different sequences of blocks there are, over all widths and head_dims."""
        pairs = [(head_dim, width) for head_dim in self.head_dims for width in self._fitting(head_dim)]
        return sum(self.rows_of[head_dim, self._rounding(width)].size for head_dim, width in pairs)

    def boxes(self, head_dim: int, width: int | None, row: Row) -> tuple[Box, ...]:
        """Return what of a row has a lower number, too."""
        if not self.rows_of:
            return ()
        key = head_dim, self._rounding(width)
        if (key, id(row)) not in self._boxes:
            self._boxes[key, id(row)] = self.rows_of[key].boxes(row)
        return self._boxes[key, id(row)]

    @cached_property
    def _boxes(self) -> dict[tuple[tuple[int, tuple[int, ...]], int], tuple[Box, ...]]:
        return {}

    @cached_property
    def _ratios(self) -> list[float]:
        return sorted({ratio for row in self.rows for choices in dict.fromkeys(row) for ratio in choices.ffn_ratios})

    def _fitting(self, head_dim: int) -> tuple[int | None, ...]:
        return (None,) if self.widths is None else multiples(self.widths, head_dim)

    def _rounding(self, width: int | None) -> tuple[int, ...]:
        """Return for each FFN ratio the first that gives the same FFN width, where the model has one width."""
        if width is None:
            return ()
        ffn_widths = [int(ratio * width) for ratio in self._ratios]
        return tuple(ffn_widths.index(ffn_width) for ffn_width in ffn_widths)


def inside(boxes: Sequence[Box], digits: npt.NDArray[np.int64]) -> Mask:
    """Say which members, `(n, blocks)` options, lie in any of some boxes."""
    found = np.zeros(len(digits), bool)
    for box in boxes:
        held = np.ones(len(digits), bool)
        for mask, digit in zip(box, digits.T, strict=True):
            held &= mask[digit]
        found |= held
    return found


def count_sequences(rows: Sequence[tuple[int, ...]], patterns: Counter[tuple[int, ...]]) -> int:
    """Count the different sequences of blocks that rows of one length allow.

    Blocks are put on one after the other, and beginnings counted by the set of what may follow. Two rows that are the
    same from here on are one.

    Args:
        rows: The kind of each block.
        patterns: For each set of kinds, how many blocks just these kinds allow.

    Raises:
        InvalidFileError: there are more such sets than can be counted in reasonable time.
    """
    ends = sorted(set(rows))
    counted = {(1 << len(ends)) - 1: 1}  # by the set of ends that are open, a bit each
    while ends[0]:
        later = {end: i for i, end in enumerate(sorted({end[1:] for end in ends}))}
        after: Counter[int] = Counter()
        for still_open, ways in counted.items():
            by_kind: dict[int, int] = defaultdict(int)
            for i, end in enumerate(ends):
                if still_open >> i & 1:
                    by_kind[end[0]] |= 1 << later[end[1:]]
            for kinds, blocks in patterns.items():
                left = 0
                for kind in kinds:
                    left |= by_kind.get(kind, 0)
                if left:
                    after[left] += ways * blocks
        if len(after) > MAX_STATES:
            raise InvalidFileError(
                f"{len(rows):,} combinations of counts allow the same blocks, too many to count each architecture once",
                hint="let the kinds of block differ in what they choose, or offer fewer counts",
            )
        counted, ends = dict(after), list(later)
    return sum(counted.values())
