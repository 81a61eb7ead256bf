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
def balanced_by(aspect: float, balance: float = scores.BALANCE) -> Iterator[None]:
    """Let `balanced-parameters` look for this width over depth, with this weight."""
    kept = scores.ASPECT, scores.BALANCE
    scores.ASPECT, scores.BALANCE = aspect, balance
    try:
        yield
    finally:
        scores.ASPECT, scores.BALANCE = kept


def ranks(values: Array) -> Array:
    """Ranks along the last axis, ties sharing their mean; `(..., n)` to `(..., n)`."""
    below = (values[..., None, :] < values[..., :, None]).sum(axis=-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(axis=-1)
    return np.asarray(below + (equal + 1) / 2, np.float64)


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


def kendall(score: Array, quality: Array) -> float:
    """Kendall's tau-b."""
    return float(kendall_rows(np.asarray(score)[None], np.asarray(quality)[None])[0])


def kendall_rows(score: Array, quality: Array) -> Array:
    """Kendall's tau-b of each row of `(rows, n)`."""
    a = np.sign(score[:, :, None] - score[:, None, :])
    b = np.sign(quality[:, :, None] - quality[:, None, :])
    norm = np.sqrt((a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2)))
    return np.asarray(np.divide((a * b).sum(axis=(1, 2)), norm, out=np.zeros_like(norm), where=norm > 0))


def pairs_in_band(size: Array) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the pairs (i < j) whose sizes lie within 10 % of each other."""
    i, j = np.triu_indices(len(size), 1)
    near = np.maximum(size[i], size[j]) <= BAND * np.minimum(size[i], size[j])
    return i[near], j[near]


def share_ordered(score: Array, quality: Array, size: Array) -> float:
    """Share of the pairs within 10 % of parameters that the score orders rightly; a tie counts half.

    NaN where there is no such pair. Pairs of equal quality are left out.
    """
    return _share(np.asarray(score), np.asarray(quality), *pairs_in_band(np.asarray(size)), None)


def _share(
    score: Array, quality: Array, i: npt.NDArray[np.intp], j: npt.NDArray[np.intp], weight: Array | None
) -> float:
    truth = np.sign(quality[i] - quality[j])
    guess = np.sign(score[i] - score[j])
    right = (1 + truth * guess) / 2
    counted = (truth != 0).astype(np.float64)
    if weight is not None:
        counted = counted * weight[i] * weight[j]
    total = float(counted.sum())
    return float((right * counted).sum() / total) if total else float("nan")


def resamples(count: int, draws: int = RESAMPLES, seed: int = 0) -> npt.NDArray[np.intp]:
    """Indices `(draws, count)` drawn with replacement."""
    return np.random.default_rng(seed).integers(0, count, size=(draws, count))


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
    i, j = pairs_in_band(size)
    counts = np.zeros((len(draws), len(score)))
    for row, draw in enumerate(draws):
        counts[row] = np.bincount(draw, minlength=len(score))
    blocks = np.array_split(draws, max(1, len(draws) * len(score) ** 2 // 4_000_000))
    return {
        "spearman": np.concatenate([spearman_rows(score[d], quality[d]) for d in blocks]),
        "kendall": np.concatenate([kendall_rows(score[d], quality[d]) for d in blocks]),
        "in_10pct": np.array([_share(score, quality, i, j, c) for c in counts]),
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
        "pairs_in_10pct": len(pairs_in_band(size)[0]),
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
