"""Dynamic programming over blocks, for spaces that cannot be enumerated and scores that are sums.

Blocks are put on one after the other. Two beginnings that agree in executed depth, in the width that the
next block sees, and in what they have used of every limit, in steps, may go on in the same ways: of
each such class only the best are kept, and of all classes `BEAM` beginnings for each choice of what the
blocks share. With every sum in the class instead of steps it would be exact, and as large as the space;
so it is a search, not a proof, but one without a seed: the same request gives the same answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from merino_edge.search.classes import alike_before
from merino_edge.search.cost import Array, Sum
from merino_edge.search.entropy import Layers
from merino_edge.search.group import Group
from merino_edge.search.overlaps import inside
from merino_edge.search.problem import Problem
from merino_edge.search.scores import SumScore
from merino_edge.search.survey import excess
from merino_edge.search.tables import GroupTables

BEAM = 200
STEPS = 12  # of each limit
NEAREST = 20  # beginnings kept where none can keep the limits, to say what comes nearest


@dataclass(frozen=True)
class Beginnings:
    """Members whose first blocks are chosen.

    Attributes:
        digits: `(n, blocks so far)` options.
        sums: `(n,)` of each part.
        last: `(n,)` number of the last block's width among its widths.
    """

    digits: Array
    sums: list[Array]
    last: Array

    def take(self, rows: Array) -> Beginnings:
        """Return some of them."""
        return Beginnings(self.digits[rows], [s[rows] for s in self.sums], self.last[rows])


@dataclass(frozen=True)
class Ends:
    """Whole members of one group that the beam led to.

    Attributes:
        genes: `(n, 1 + blocks)`: group, then the option of each block, as in the evolutionary search.
        score: `(n,)`.
        columns: `(n,)` each.
        representative: `(n,)`: which stand for their class.
    """

    genes: Array
    score: Array
    columns: dict[str, Array]
    representative: Array

    def take(self, rows: Array) -> Ends:
        """Return some of them."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Ends(self.genes[rows], self.score[rows], columns, self.representative[rows])


def search_blocks(problem: Problem, beam: int = BEAM, progress: bool = True) -> Iterator[Ends]:
    """Yield what the beam finds, group by group.

    Args:
        problem: Its score must be a sum.
        beam: Beginnings kept.
        progress: Whether to tell the request how far this is.
    """
    for number, group in enumerate(problem.space.groups):
        yield _search_group(problem, number, group, beam)
        if progress and problem.request.progress is not None:
            problem.request.progress((number + 1) / len(problem.space.groups))


def _search_group(problem: Problem, number: int, group: Group, beam: int) -> Ends:
    parts: list[Sum] = [*problem.parts, Layers()]
    tables = GroupTables(problem.space, group, parts)
    blocks = len(group.options)
    least = [[sum(float(t[j].min()) for j in range(i + 1, blocks)) for t in tables.blocks] for i in range(blocks)]
    assert isinstance(problem.score, SumScore)
    last = tables.widths[-1]  # of the score: what comes outside the blocks, at the least
    outside = [float(p.ends(last, group.embedding_width, group.vocab_size).min()) for p in problem.score.parts]
    first = np.arange(len(group.options[0]))
    found = Beginnings(first[:, None], [np.asarray(t[0], np.float64) for t in tables.blocks], tables.width_numbers[0])
    for i in range(1, blocks):
        found = _extend(tables, i, _keep(problem, found, least[i - 1], outside, beam))
    score, columns = problem.fill(found.sums[:-1])
    assert score is not None
    genes = np.column_stack([np.full(len(score), number), found.digits])
    _override(problem, group, found.digits, columns)
    ends = Ends(genes, score, columns, _representative(group, tables, found.digits))
    repeats = problem.space.repeats(group)
    return ends.take(~inside(repeats, found.digits)) if repeats else ends


def _extend(tables: GroupTables, i: int, found: Beginnings) -> Beginnings:
    """Put every option of block `i` on every beginning."""
    number, options = tables.width_numbers[i], len(tables.widths[i])
    sums = []
    for value, table, seams in zip(found.sums, tables.blocks, tables.seams, strict=True):
        seam = seams[i]
        step = table[i][None] if seam is None else table[i][None] + seam[np.ix_(found.last, number)]
        sums.append((value[:, None] + step).reshape(-1))
    rows, option = np.repeat(np.arange(len(found.last)), options), np.tile(np.arange(options), len(found.last))
    return Beginnings(np.column_stack([found.digits[rows], option]), sums, number[option])


def _keep(problem: Problem, found: Beginnings, least: list[float], outside: list[float], beam: int) -> Beginnings:
    """Drop what cannot keep an upper limit any more, then keep the best of each class, round after round."""
    assert isinstance(problem.score, SumScore)
    uppers = {name: replace(limit, lower=None) for name, limit in problem.limits.items()}
    alive = np.arange(len(found.last))
    if uppers:
        _, bound = problem.fill([s + more for s, more in zip(found.sums[:-1], least[:-1], strict=True)])
        over = excess(uppers, bound)
        alive = np.flatnonzero(over <= 0) if (over <= 0).any() else np.argsort(over, kind="stable")[:NEAREST]
    kept = found.take(alive)
    _, columns = problem.fill(kept.sums[:-1])
    score = problem.score.combine(*(s + more for s, more in zip(kept.sums, outside, strict=False)))
    key = kept.sums[-1].astype(np.int64) * (1 + int(kept.last.max())) + kept.last
    for name, limit in uppers.items():
        step = np.minimum(columns[name] / limit.upper * STEPS, STEPS - 1).astype(np.int64)
        key = np.unique(key * STEPS + step, return_inverse=True)[1]
    order = np.lexsort((-score, key))
    numbers = np.arange(len(order))
    fresh = np.r_[True, key[order][1:] != key[order][:-1]]
    rank = numbers - np.maximum.accumulate(np.where(fresh, numbers, 0))
    return kept.take(order[np.lexsort((-score[order], rank))[:beam]])


def _representative(group: Group, tables: GroupTables, digits: Array) -> Array:
    """Say which members stand for their class: options in order, or widths that differ."""
    ordered = np.ones(len(digits), bool)
    for i, before in enumerate(alike_before(group)):
        if before is not None:
            ordered &= digits[:, before] <= digits[:, i]
    widths = np.stack([width[digits[:, i]] for i, width in enumerate(tables.widths)])
    return np.asarray(ordered | (widths != widths[0]).any(0))


def _override(problem: Problem, group: Group, digits: Array, columns: dict[str, Array]) -> None:
    """Put measured values in the place of predicted ones."""
    first, end = np.searchsorted(problem.known, [group.offset, group.offset + group.size])
    if first == end:
        return
    numbers = group.offset + digits.astype(problem.known.dtype) @ np.array(group.radix, problem.known.dtype)
    rows = np.flatnonzero(np.isin(numbers, problem.known[first:end]))
    for row in rows.tolist():
        for name, value in problem.overrides[int(numbers[row])].items():
            if name in columns:
                columns[name] = np.asarray(columns[name], np.float64)
                columns[name][row] = value
