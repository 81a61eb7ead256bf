"""The exact non-dominated front: what nothing else beats in everything at once."""

from __future__ import annotations

import numpy as np

from merino_edge.search.cost import Array

BATCH = 512
CELLS = 128  # per axis of a screen
SAMPLE = 20_000  # of a front, to cut axes at
FEW = 2_000  # are compared with each other at once
COARSE = 1 << 18  # cells in all where points screen each other, and at most two for each


class Screen:
    """Finds points that a front dominates, in time that does not grow with the front; it may miss some.

    All objectives but the last are cut at quantiles of the front. A cell holds the least last objective
    among members of the front that are no larger than the cell in every other objective; a point in the
    cell that lies above it is dominated.
    """

    def __init__(self, front: Array, cells: int = CELLS) -> None:
        """Build the cells from a front or from any points, `(n, objectives)`, at least two objectives."""
        shares, some = np.linspace(0.0, 1.0, cells), front[:: 1 + len(front) // SAMPLE, :-1]
        self.edges = [np.unique(np.quantile(column, shares, method="higher")) for column in some.T]
        self.least = np.full([len(edges) + 2 for edges in self.edges], np.inf)  # the last: beyond all edges
        places = [1 + np.searchsorted(e, column) for e, column in zip(self.edges, front.T, strict=False)]
        np.minimum.at(self.least, tuple(places), front[:, -1])
        for axis in range(self.least.ndim):
            np.minimum.accumulate(self.least, axis=axis, out=self.least)

    def dominated(self, points: Array) -> Array:
        """Say which points are dominated for certain, `(n,)`."""
        cells = [np.searchsorted(e, column, side="right") for e, column in zip(self.edges, points.T, strict=False)]
        result: Array = self.least[tuple(cells)] < points[:, -1]
        return result


def non_dominated(points: Array) -> Array:
    """Say which points no other point dominates, all objectives to be minimised.

    A point dominates another where it is nowhere larger and somewhere smaller; equal points stay together.
    Most are found by screens of all points, each with another objective last. What is left is taken in
    lexicographic order, so that only earlier points can dominate, and compared by ranks with the front so far.

    Args:
        points: `(n, objectives)`.

    Returns:
        `(n,)` bool.
    """
    result = np.zeros(len(points), bool)
    left = _screened(points)
    if len(left):
        result[left] = _compared(points[left])
    return result


def _screened(points: Array) -> Array:
    """Return the rows that screens of all points let pass; each looks at fewer, and so is finer."""
    left, objectives = np.arange(len(points)), points.shape[1]
    for turn in range(2 * objectives if objectives > 1 else 0):
        if len(left) <= FEW:
            break
        turned = np.roll(points[left], turn, axis=1)
        cells = int(min(COARSE, 2 * len(left)) ** (1.0 / (objectives - 1)))
        keep = ~Screen(turned, min(CELLS, cells)).dominated(turned)
        left = left[keep]
        if np.count_nonzero(keep) > 0.8 * len(keep):
            break
    return left


def _compared(points: Array) -> Array:
    """Say which points no other point dominates, `(n,)`."""
    order = np.lexsort(points.T[::-1])
    ordered = points[order]
    fresh = np.ones(len(points), bool)
    fresh[1:] = (ordered[1:] != ordered[:-1]).any(1)
    ranks = np.column_stack([_rank(column) for column in ordered[fresh].T])
    kept = _front(ranks[:, 1:])  # the first objective never falls along the order
    result = np.zeros(len(points), bool)
    result[order] = kept[np.cumsum(fresh) - 1]
    return result


def _rank(values: Array) -> Array:
    """Replace values by small whole numbers in the same order: they compare faster."""
    distinct, rank = np.unique(values, return_inverse=True)
    return rank.astype(np.int16 if len(distinct) < 1 << 15 else np.int32)


def _front(ranks: Array) -> Array:
    """Say which rows have no earlier row that is nowhere larger; all rows differ."""
    kept = np.zeros(len(ranks), bool)
    if ranks.shape[1] == 0:
        kept[0] = True
        return kept
    front = ranks[:0]
    for start in range(0, len(ranks), BATCH):
        batch = ranks[start : start + BATCH]
        alive = np.flatnonzero(~_dominated(batch, front))
        batch = batch[alive]
        inside = np.tril(_no_larger(batch, batch), -1)  # (later, earlier)
        alive, batch = alive[~inside.any(1)], batch[~inside.any(1)]
        kept[start + alive] = True
        front = np.concatenate([front, batch])
    return kept


def _no_larger(later: Array, earlier: Array) -> Array:
    """Return `(later, earlier)`: whether the earlier row is nowhere larger."""
    result: Array = earlier[None, :, 0] <= later[:, None, 0]
    for column in range(1, later.shape[1]):
        result &= earlier[None, :, column] <= later[:, None, column]
    return result


def _dominated(batch: Array, front: Array) -> Array:
    """Say which rows of the batch some row of the front dominates; rows that fall early cost little."""
    dominated = np.zeros(len(batch), bool)
    for start in range(0, len(front), BATCH):
        alive = np.flatnonzero(~dominated)
        if len(alive) == 0:
            break
        dominated[alive] = _no_larger(batch[alive], front[start : start + BATCH]).any(1)
    return dominated
