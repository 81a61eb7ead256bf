"""What a search remembers while members pass by in chunks: the best, the front, what each limit costs.

All searches feed it: the exact one every member of the space, or every class with the number of its members, the
others every member that they looked at. Ties go to fewer parameters, then fewer FLOPs, then the lower number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from merino_edge.search.cost import Array
from merino_edge.search.pareto import Screen, non_dominated
from merino_edge.units import Limit

LISTED = 11  # the winner and ten runners-up
FACTORS = (0.8, 1.2, 1.5)
FRONT_BUFFER = 1 << 18
MINIMISED = ("latency_ms", "parameters", "memory_bytes")


def admitted(limit: Limit, values: Array, factor: float = 1.0) -> Array:
    """Say which values a limit admits, its upper end stretched by a factor."""
    mask: Array = values <= limit.upper * factor
    if limit.lower is not None:
        mask &= values >= limit.lower
    return mask


def excess(limits: Mapping[str, Limit], columns: Mapping[str, Array]) -> Array:
    """Return by what share each member passes the limit that it passes most; 0 where it keeps all."""
    worst: Array | None = None
    for name, limit in limits.items():
        over = np.maximum(columns[name] / limit.upper - 1.0, 0.0)
        if limit.lower is not None:
            over = np.maximum(over, limit.lower / np.maximum(columns[name], 1e-300) - 1.0)
        worst = over if worst is None else np.maximum(worst, over)
    assert worst is not None
    return worst


def share(limit: Limit, value: float) -> float:
    """Return by what share a value passes a limit."""
    return float(excess({"": limit}, {"": np.array([value])})[0])


@dataclass
class Survey:
    """Running results over all members shown.

    Attributes:
        limits: What admits a member.
        seen: Members shown.
        feasible: Members that keep every limit.
        zero: Members that score exactly 0: for an entropy, those outside the formula's domain.
        relaxed: Best score by (limit, factor), all other limits kept; factor inf is without the upper end of the
            limit, -inf without the lower end of a range.
        front_seconds: Time spent on the front.
    """

    limits: Mapping[str, Limit]
    seen: int = 0
    feasible: int = 0
    zero: int = 0
    relaxed: dict[tuple[str, float], float] = field(default_factory=dict)
    front_seconds: float = 0.0
    _best: Array = field(default_factory=lambda: np.empty((4, 0)))  # score, parameters, FLOPs, row of _numbers
    _numbers: Array = field(default_factory=lambda: np.empty(0, np.int64))
    _front: Array = field(default_factory=lambda: np.empty((0, 0)))
    _front_numbers: Array = field(default_factory=lambda: np.empty(0, np.int64))
    _buffer: list[tuple[Array, Array]] = field(default_factory=list)
    _buffered: int = 0
    _screen: Screen | None = None

    def show(
        self,
        numbers: Array,
        score: Array,
        columns: Mapping[str, Array],
        representative: Array,
        weights: Array | None = None,
    ) -> None:
        """Take in members.

        Args:
            numbers: `(n,)` their numbers.
            score: `(n,)`.
            columns: What they cost, `(n,)` each.
            representative: `(n,)`: which stand for their class; only these are listed.
            weights: `(n,)`: how many members each stands for, whole numbers of any size; None: one.
        """
        self.seen += _count(np.ones(len(score), bool), weights)
        self.zero += _count(score == 0, weights)
        fits = {name: admitted(limit, columns[name]) for name, limit in self.limits.items()}
        every = _all(list(fits.values()), len(score))
        self.feasible += _count(every, weights)
        self._show_relaxed(fits, score, columns)
        listed = np.flatnonzero(every & representative)
        if len(listed):
            self._show_best(listed, numbers, score, columns)
            started = time.perf_counter()
            self._show_front(listed, numbers, score, columns)
            self.front_seconds += time.perf_counter() - started

    def _show_relaxed(self, fits: Mapping[str, Array], score: Array, columns: Mapping[str, Array]) -> None:
        for name, limit in self.limits.items():
            keys = [(name, factor) for factor in (*FACTORS, math.inf, *([] if limit.lower is None else [-math.inf]))]
            former = [self.relaxed.setdefault(key, -math.inf) for key in keys]
            better = score > min(former)  # few, once something is known
            for other, mask in fits.items():
                if other != name:
                    better &= mask
            rows = np.flatnonzero(better)
            scores, values = score[rows], columns[name][rows]
            free = scores if limit.lower is None else np.where(values >= limit.lower, scores, -np.inf)
            for key, least in zip(keys, former, strict=True):
                if math.isfinite(key[1]):
                    kept = free[values <= limit.upper * key[1]]
                else:
                    kept = free if key[1] > 0 else scores[values <= limit.upper]
                self.relaxed[key] = max(least, float(kept.max(initial=-math.inf)))

    def _show_best(self, listed: Array, numbers: Array, score: Array, columns: Mapping[str, Array]) -> None:
        values = score[listed]
        if self._best.shape[1] == LISTED:
            listed = listed[values >= self._best[0, -1]]
        elif len(listed) > LISTED:
            listed = listed[values >= np.partition(values, len(values) - LISTED)[len(values) - LISTED]]
        keys = np.stack([score[listed], columns["parameters"][listed], columns["flops"][listed]]).astype(np.float64)
        keys = np.concatenate([self._best[:3], keys], axis=1)
        merged = np.concatenate([self._numbers, numbers[listed]])
        order = np.lexsort((merged, keys[2], keys[1], -keys[0]))[:LISTED]
        self._best, self._numbers = keys[:, order], merged[order]

    def _show_front(self, listed: Array, numbers: Array, score: Array, columns: Mapping[str, Array]) -> None:
        names = [name for name in MINIMISED if name in columns]
        points = np.column_stack([-score[listed], *(columns[name][listed] for name in names)]).astype(np.float64)
        if self._screen is not None:
            keep = ~self._screen.dominated(points)
            points, listed = points[keep], listed[keep]
        self._buffer.append((points, numbers[listed]))
        self._buffered += len(points)
        if self._buffered > FRONT_BUFFER:
            self._merge_front()
            self._screen = Screen(self._front)

    def _merge_front(self) -> None:
        if not self._buffer:
            return
        held = [(self._front, self._front_numbers)] if len(self._front) else []
        parts = held + self._buffer
        points = np.concatenate([points for points, _ in parts])
        numbers = np.concatenate([numbers for _, numbers in parts])
        keep = non_dominated(points)
        self._front, self._front_numbers = points[keep], numbers[keep]
        self._buffer, self._buffered = [], 0

    @property
    def best(self) -> list[int]:
        """Numbers of the best members, one a class, best first."""
        return [int(number) for number in self._numbers]

    @property
    def best_score(self) -> float:
        """Score of the winner, -inf where nothing is feasible."""
        return float(self._best[0, 0]) if self._best.shape[1] else -math.inf

    def front(self) -> list[int]:
        """Numbers of the non-dominated members, best score first."""
        started = time.perf_counter()
        self._merge_front()
        self.front_seconds += time.perf_counter() - started
        if not len(self._front):
            return []
        order = np.lexsort((self._front_numbers, *self._front.T[::-1]))
        return [int(number) for number in self._front_numbers[order]]


def _count(mask: Array, weights: Array | None) -> int:
    """Count members, by whole numbers: what floats hold exactly ends at 2^53."""
    return int(np.count_nonzero(mask)) if weights is None else int(weights[mask].sum())


def _all(masks: list[Array], rows: int) -> Array:
    if not masks:
        return np.ones(rows, bool)
    result = masks[0]
    for mask in masks[1:]:
        result = result & mask
    return result
