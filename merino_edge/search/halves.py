"""A range that lies in a gap between the values that members have, settled by halves.

No weights can show such a gap, for mixtures of members fill it. But a value is a sum over blocks: all that the first
blocks add up to, and all that the rest may add, are two sorted lists for each width where they meet, and for each entry
of one the nearest in the other is looked up. Two lists stand for the product of their lengths, so that billions of
members are settled by a million look-ups. Whole numbers have a step in common, too: where a member has the multiple
that is nearest to the range, none is nearer. Lists longer than there is time for are thinned, evenly; then what is
nearest was only found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from merino_edge.search.cost import Array
from merino_edge.search.layers import Family
from merino_edge.search.survey import share
from merino_edge.units import Limit

FEW, MOST = 20_000, 2_000_000  # entries of all lists: first to see whether the range is easily hit, then to settle it
WHOLE = 2.0**53
RUNS = 600  # lists in all: where more would be needed, one of several embeddings and vocabularies is looked at
ROUNDING = 1e-12  # relative: sums of floats in another order

Lists = list[Array]
"""For each width, what may add up to there, rising."""


@dataclass
class Nearest:
    """What comes nearest to a range of one quantity.

    Attributes:
        limit: The range.
        excess: By what share it is passed, at the least known.
        choice: Who has that: family, embedding width, vocabulary, and options in the family's order.
        settled: Whether no member comes nearer.
        seen: Members that were held against it, at least.
    """

    limit: Limit
    excess: float = math.inf
    choice: tuple[int, int, int, list[int]] | None = None
    settled: bool = True
    seen: int = 0

    @property
    def held(self) -> bool:
        """Whether a member lies in the range, as far as rounding tells."""
        return self.excess <= ROUNDING

    def share(self, value: float) -> float:
        """Return by what share a value passes the range."""
        return share(self.limit, value)


def nearest_to(limit: Limit, families: Sequence[Family]) -> Nearest:
    """Return what comes nearest to a range.

    Args:
        limit: The range.
        families: Of a whole space, with one row: the quantity itself.
    """
    found = Nearest(limit)
    parts = [
        (number, embedding, vocabularies)
        for number, family in enumerate(families)
        for embedding in range(len(family.groups))
        for vocabularies in _alike(family.ends[0, embedding])
    ]
    bounds = [_bound(found, family) for family in families]
    runs = sum(len(starts) for number, *_ in parts for starts in families[number].starts)
    every = -(-runs // RUNS)
    for most in (FEW, MOST):
        found.settled, found.seen = every == 1, 0
        for number, embedding, vocabularies in parts[::every]:
            if not found.held and bounds[number] < found.excess - ROUNDING:
                window = (limit.lower or 0.0) / (1.0 + found.excess), limit.upper * (1.0 + found.excess)
                _look(
                    found,
                    number,
                    _Halves(families[number], embedding, vocabularies, window, most // len(parts[::every])),
                )
    return found


def _alike(ends: Array) -> list[list[int]]:
    """Return the vocabularies, `(vocabularies, widths)` ends, together whose ends differ by one number."""
    found: dict[bytes, list[int]] = {}
    for vocabulary, row in enumerate(ends - ends[:, :1]):
        found.setdefault(row.tobytes(), []).append(vocabulary)
    return list(found.values())


def _look(found: Nearest, family: int, halves: _Halves) -> None:
    """Look up the nearest of the members with one embedding width."""
    best: tuple[float, int, int, float, float] | None = None
    lower = found.limit.lower or 0.0
    for vocabulary, more in halves.shifts.items():
        for width, (heads, tails) in enumerate(zip(halves.heads[-1], halves.tails[-1], strict=True)):
            few, many = sorted((heads, tails), key=len)
            if not len(few):
                continue
            wanted = (lower - more) - few[::-1]  # rising
            within = np.searchsorted(wanted, (many[0], many[-1]))
            wanted = wanted[max(0, int(within[0]) - 1) : int(within[1]) + 1]
            at = np.searchsorted(many, wanted)
            for one, places in ((1, at[at < len(many)]), (-1, at[at > 0] - 1)):
                mine = wanted[at < len(many)] if one > 0 else wanted[at > 0]
                if not len(mine):
                    continue
                off = many[places] - mine
                nearest = int(off.argmin() if one > 0 else off.argmax())
                excess = found.share(float(lower + off[nearest]))
                if excess < (found.excess if best is None else best[0]):
                    pair = float(lower - more - mine[nearest]), float(many[places[nearest]])
                    head, tail = pair if few is heads else pair[::-1]
                    best = excess, vocabulary, width, head, tail
            found.seen += len(heads) * len(tails)
    found.settled &= halves.whole
    if best is not None:
        found.excess, vocabulary, width, head, tail = best
        found.choice = family, halves.embedding, vocabulary, halves.options_of(width, head, tail)


def _bound(found: Nearest, family: Family) -> float:
    """Return how near a member can come at best: to the nearest multiple of the step that whole numbers share."""
    tables = [*(block[0] for block in family.blocks), *(seam[0] for seam in family.seams), family.ends[0]]
    if not all((table == np.rint(table)).all() and np.abs(table).max() < WHOLE for table in tables):
        return 0.0
    firsts = [table.reshape(-1)[0] for table in tables]
    steps = [np.gcd.reduce((t - first).astype(np.int64), axis=None) for t, first in zip(tables, firsts, strict=True)]
    step, base = int(np.gcd.reduce(steps)), int(sum(firsts))
    if not step:
        return found.share(base)
    above = base + -((base - math.ceil(found.limit.lower or 0.0)) // step) * step
    return min(found.share(above), found.share(above - step))


@dataclass
class _Halves:
    """What the first and the last blocks of a family can add up to, for one embedding width.

    Attributes:
        family: Which.
        embedding: Number of the embedding width.
        vocabularies: Numbers of vocabularies whose ends differ by one number.
        window: What members add up to that are nearer than the nearest known.
        room: Entries that all lists may still have together.
        heads: After each of the first blocks, up to where the halves meet.
        tails: Before each of the last, the ends first: what is still to come for each width of the block before.
        whole: Whether no list was thinned.
    """

    family: Family
    embedding: int
    vocabularies: list[int]
    window: tuple[float, float]
    room: int
    heads: list[Lists] = field(default_factory=list)
    tails: list[Lists] = field(default_factory=list)
    whole: bool = True

    def __post_init__(self) -> None:
        """Lengthen the half that costs less, until they meet."""
        family = self.family
        self.options = [
            [np.unique(part) for part in np.split(block[0], starts[1:])]
            for block, starts in zip(family.blocks, family.starts, strict=True)
        ]
        ends = family.ends[0, self.embedding, self.vocabularies]  # (vocabularies, widths)
        self.shifts = dict(zip(self.vocabularies, (ends - ends[:1])[:, 0].tolist(), strict=True))
        self.seams = [family.seams[0][0, self.embedding][None], *(seam[0] for seam in family.seams[1:])]
        self._set_extremes(ends)
        heads = [seam + values for seam, values in zip(self.seams[0][0], self.options[0], strict=True)]
        self.heads.append(self._useful(heads, self.rests[0]))
        self.tails.append(self._useful([np.array([end]) for end in ends[0]], self.begins[-1]))
        while len(self.heads) + len(self.tails) <= len(family.blocks):
            first, last = len(self.heads), len(family.blocks) - len(self.tails)
            longer_heads = sum(map(len, self.heads[-1])) * sum(map(len, self.options[first]))
            pairs = zip(self.options[last], self.tails[-1], strict=True)
            longer_tails = len(self.options[last - 1]) * sum(len(a) * len(b) for a, b in pairs)
            if longer_heads <= longer_tails:
                self.heads.append(self._longer_heads(first, longer_heads))
            else:
                self.tails.append(self._longer_tails(last, longer_tails))

    def _set_extremes(self, ends: Array) -> None:
        """Find the least and the most, for each width `(2, widths)`, of what is up to each block and what is after."""
        signs = np.array([[1.0], [-1.0]])
        own = [np.array([[values[0], -values[-1]] for values in options]).T for options in self.options]
        seams = [signs[..., None] * seam for seam in self.seams]  # (2, widths before, widths)
        shifts = np.array([[min(self.shifts.values())], [-max(self.shifts.values())]])  # are no part of the tails
        begins, rests = [seams[0][:, 0] + own[0] + shifts], [np.stack([ends.min(0), -ends.max(0)])]
        for added, seam in zip(own[1:], seams[1:], strict=True):
            begins.append((begins[-1][..., None] + seam).min(1) + added)
        for added, seam in zip(own[:0:-1], seams[:0:-1], strict=True):
            rests.insert(0, (seam + (rests[0] + added)[:, None]).min(2))
        self.begins, self.rests = [signs * begin for begin in begins], [signs * rest for rest in rests]

    def _useful(self, lists: Lists, others: Array) -> Lists:
        """Keep what may lie in the window, together with the least or the most of what else there is."""
        (low, high), (least, most) = self.window, others
        edges = [np.searchsorted(values, (low - m, high - n)) for values, n, m in zip(lists, least, most, strict=True)]
        return [values[max(0, first - 1) : last + 1] for values, (first, last) in zip(lists, edges, strict=True)]

    def _longer_heads(self, block: int, entries: int) -> Lists:
        before, result = self._thinned(self.heads[-1], entries), []
        for after, values in enumerate(self.options[block]):
            arrived = _merged([b + s for b, s in zip(before, self.seams[block][:, after], strict=True)])
            result.append(_merged([arrived + value for value in values]))
        return self._useful(result, self.rests[block])

    def _longer_tails(self, block: int, entries: int) -> Lists:
        after = self._thinned(self.tails[-1], entries)
        added = [_merged([rest + value for value in o]) for o, rest in zip(self.options[block], after, strict=True)]
        result = [_merged([a + s for a, s in zip(added, seams, strict=True)]) for seams in self.seams[block]]
        return self._useful(result, self.begins[block - 1])

    def _thinned(self, lists: Lists, entries: int) -> Lists:
        """Thin lists out of which more entries would come than there is room for; half of it where more are to come."""
        last = len(self.heads) + len(self.tails) == len(self.family.blocks)
        step = -(-entries // max(1, self.room if last else self.room // 2))
        self.room -= entries // step
        if step <= 1:
            return lists
        self.whole = False
        return [np.concatenate([values[:-1:step], values[-1:]]) for values in lists]

    def options_of(self, width: int, head: float, tail: float) -> list[int]:
        """Return the option of each block of a member whose halves add up to these."""
        options: list[int] = []
        at, value = width, head
        for block in range(len(self.heads) - 1, -1, -1):
            lists = self.heads[block - 1] if block else [np.zeros(1)]
            seams = enumerate(self.seams[block][:, at])
            steps = [(*self._step(block, at, lists[b], value - s), b) for b, s in seams if len(lists[b])]
            _, option, value, at = min(steps)
            options.insert(0, option)
        at, value = width, tail
        for block in range(len(self.heads), len(self.family.blocks)):
            lists = self.tails[len(self.family.blocks) - block - 1]
            seams = enumerate(self.seams[block][at])
            steps = [(*self._step(block, a, lists[a], value - s), a) for a, s in seams if len(lists[a])]
            _, option, value, at = min(steps)
            options.append(option)
        return options

    def _step(self, block: int, width: int, others: Array, value: float) -> tuple[float, int, float]:
        """Return by how much an option of a width and one of some others miss a sum, the option, and the other."""
        start, end = [*self.family.starts[block], self.family.blocks[block].shape[1]][width : width + 2]
        left = value - self.family.blocks[block][0, start:end]
        at = np.searchsorted(others, left)
        pairs = np.stack([others[np.maximum(at - 1, 0)], others[np.minimum(at, len(others) - 1)]])
        off = np.abs(pairs - left)
        side, option = np.unravel_index(int(off.argmin()), off.shape)
        return float(off[side, option]), int(start + option), float(pairs[side, option])


def _merged(runs: Sequence[Array]) -> Array:
    """Return the different values of some rising runs, rising."""
    values = np.concatenate(runs)
    if len(runs) > 1:
        values.sort(kind="stable")  # which merges runs
        values = values[np.append(True, values[1:] != values[:-1])]
    return values
