"""How well a score orders trained models: rank correlations, order inside a budget, bootstrap intervals.

A score is good when large means a low loss, so every figure compares `score` with `quality = -loss`.
Resampling draws architectures, not trainings or pairs: two seeds of one model are one observation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from merino_edge.search import scores

Array = npt.NDArray[np.float64]
BAND = 1.10  # two parameter counts lie within 10 % when the larger is at most 1.1 times the smaller
RESAMPLES = 2000


@contextmanager
def balanced_by(
    aspect: float, balance: float = scores.BALANCE, reuse: float = scores.REUSE, *, executed: bool = False
) -> Iterator[None]:
    """Let `balanced-parameters` look for this width over depth, with this weight and this worth of reuse.

    `executed`: the depth is that of executed layers instead of those with weights of their own, as it was before
    `bench/shared_study.py`.
    """
    kept = scores.ASPECT, scores.BALANCE, scores.REUSE, scores._balanced
    scores.ASPECT, scores.BALANCE, scores.REUSE = aspect, balance, reuse
    if executed:
        own_form = scores._balanced  # told that every executed layer has weights of its own
        scores._balanced = lambda p, squares, n, own, v: own_form(p, squares * n / own, n, n, v) * (n / own) ** reuse
    try:
        yield
    finally:
        scores.ASPECT, scores.BALANCE, scores.REUSE, scores._balanced = kept


def ranks(values: Array) -> Array:
    """Ranks along the last axis, ties sharing their mean; `(..., n)` to `(..., n)`."""
    found = np.empty(np.shape(values))
    rows = np.reshape(values, (-1, np.shape(values)[-1]))
    for row, ranked in zip(rows, found.reshape(rows.shape), strict=True):
        ordered = np.sort(row)
        ranked[:] = np.searchsorted(ordered, row, "left") + np.searchsorted(ordered, row, "right") + 1
    return found / 2


def spearman(score: Array, quality: Array) -> float:
    """Spearman's rho; 0 where one side is constant."""
    return float(spearman_rows(np.asarray(score)[None], np.asarray(quality)[None])[0])


def spearman_rows(score: Array, quality: Array) -> Array:
    """Spearman's rho of each row of `(rows, n)`."""
    a, b = ranks(score), ranks(quality)
    a = a - a.mean(axis=-1, keepdims=True)
    b = b - b.mean(axis=-1, keepdims=True)
    norm = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    return np.asarray(np.divide((a * b).sum(axis=-1), norm, out=np.zeros_like(norm), where=norm > 0))


def spearman_resampled(score: Array, quality: Array, counts: Array) -> Array:
    """Spearman's rho of each resample; `counts` `(rows, n)` says how often it holds each member."""
    a, b = (
        counts @ (v[:, None] < v) + (counts @ (v[:, None] == v) + 1) / 2 - (counts.sum(axis=-1, keepdims=True) + 1) / 2
        for v in (score, quality)
    )
    norm = np.sqrt((counts * a * a).sum(axis=-1) * (counts * b * b).sum(axis=-1))
    return np.asarray(np.divide((counts * a * b).sum(axis=-1), norm, out=np.zeros_like(norm), where=norm > 0))


def _signs(values: Array) -> Array:
    """Which of each two is larger, `(n, n)`."""
    return np.sign(values[:, None] - values[None, :])


def _weighted(pairs: Array, counts: Array) -> Array:
    """Sum of `pairs` `(n, n)` over all pairs of each resample, its members counted as in `(rows, n)`."""
    return np.asarray(((counts @ pairs) * counts).sum(axis=-1))


def kendall(score: Array, quality: Array) -> float:
    """Kendall's tau-b."""
    return float(kendall_rows(np.asarray(score), np.asarray(quality), np.ones((1, len(score))))[0])


def kendall_rows(score: Array, quality: Array, counts: Array) -> Array:
    """Kendall's tau-b of each resample; `counts` `(rows, n)` says how often it holds each member."""
    a, b = _signs(score), _signs(quality)
    norm = np.sqrt(_weighted(a * a, counts) * _weighted(b * b, counts))
    return np.asarray(np.divide(_weighted(a * b, counts), norm, out=np.zeros_like(norm), where=norm > 0))


def pairs_in_band(size: Array) -> npt.NDArray[np.bool_]:
    """Say of which pairs the sizes lie within 10 % of each other, `(n, n)`; none with itself."""
    near = np.maximum(size[:, None], size) <= BAND * np.minimum(size[:, None], size)
    return np.asarray(near & ~np.eye(len(size), dtype=bool))


def share_ordered(score: Array, quality: Array, size: Array) -> float:
    """Share of the pairs within 10 % of parameters that the score orders rightly; a tie counts half.

    NaN where there is no such pair. Pairs of equal quality are left out.
    """
    one = np.ones((1, len(score)))
    return float(shares_ordered(np.asarray(score), np.asarray(quality), np.asarray(size), one)[0])


def shares_ordered(score: Array, quality: Array, size: Array, counts: Array) -> Array:
    """The same of each resample; `counts` `(rows, n)` says how often it holds each member."""
    truth = _signs(quality)
    counted = pairs_in_band(size) & (truth != 0)
    right = counted * (1 + truth * _signs(score)) / 2
    total = _weighted(counted.astype(np.float64), counts)
    return np.asarray(np.divide(_weighted(right, counts), total, out=np.full_like(total, np.nan), where=total > 0))


def resamples(count: int, draws: int = RESAMPLES, seed: int = 0) -> npt.NDArray[np.intp]:
    """Indices `(draws, count)` drawn with replacement."""
    return np.random.default_rng(seed).integers(0, count, size=(draws, count))


def count_members(draws: npt.NDArray[np.intp]) -> Array:
    """Say how often each resample holds each member, `(draws, n)` to `(draws, n)`."""
    return np.array([np.bincount(draw, minlength=draws.shape[1]) for draw in draws], np.float64)


def interval(values: Array) -> tuple[float, float]:
    """Percentile interval, 95 %."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


def bootstrap_all(score: Array, quality: Array, size: Array, draws: npt.NDArray[np.intp]) -> dict[str, Array]:
    """Return each figure on each resample.

    A model drawn twice makes no pair with itself: for Spearman and Kendall such ties are ties on both
    sides; for the pairs a pair counts as often as its members were drawn together.
    """
    counts = count_members(draws)
    return {
        "spearman": spearman_resampled(score, quality, counts),
        "kendall": kendall_rows(score, quality, counts),
        "in_10pct": shares_ordered(score, quality, size, counts),
    }


def summarise(score: Array, quality: Array, size: Array, draws: npt.NDArray[np.intp]) -> dict[str, object]:
    """Return Spearman, Kendall and the share of near pairs with their 95 % intervals."""
    sampled = bootstrap_all(score, quality, size, draws)
    values = {
        "spearman": spearman(score, quality),
        "kendall": kendall(score, quality),
        "in_10pct": share_ordered(score, quality, size),
    }
    return {
        "n": len(score),
        "pairs_in_10pct": int(pairs_in_band(size).sum()) // 2,
        **{
            name: {"value": _rounded(value), "interval": [_rounded(v) for v in interval(sampled[name])]}
            for name, value in values.items()
        },
    }


def paired(
    score: Array, rival: Array, quality: Array, size: Array, draws: npt.NDArray[np.intp]
) -> dict[str, dict[str, object]]:
    """Return score minus rival on the same resamples: difference, interval, share of resamples won."""
    ours, theirs = (bootstrap_all(s, quality, size, draws) for s in (score, rival))
    point = {
        "spearman": spearman(score, quality) - spearman(rival, quality),
        "kendall": kendall(score, quality) - kendall(rival, quality),
        "in_10pct": share_ordered(score, quality, size) - share_ordered(rival, quality, size),
    }
    result: dict[str, dict[str, object]] = {}
    for name, value in point.items():
        difference = ours[name] - theirs[name]
        finite = difference[np.isfinite(difference)]
        won = float((finite > 0).mean() + (finite == 0).mean() / 2) if len(finite) else float("nan")
        result[name] = {
            "difference": _rounded(value),
            "interval": [_rounded(v) for v in interval(difference)],
            "won": _rounded(won),
        }
    return result


def best_on_grid(grid: Sequence[float], measure: Callable[[float], float]) -> tuple[float, float]:
    """Return the middle of the best plateau of a grid, and the measure there."""
    values = np.array([measure(point) for point in grid])
    best = np.nanmax(values)
    plateau = np.flatnonzero(values >= best - 1e-12)
    middle = plateau[len(plateau) // 2]
    return float(grid[middle]), float(values[middle])


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
