"""From samples to medians, ratios with intervals, and whether a goal is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Samples = Sequence[Sequence[int]]  # nanoseconds, by round
DRAWS = 4000
LEVEL = 0.95


def per_round(rounds: Samples) -> npt.NDArray[np.float64]:
    """Return one time for each round, in ms: the median of its samples."""
    return np.array([float(np.median(samples)) / 1e6 for samples in rounds])


def ratio(slower: Samples, faster: Samples, seed: int = 0) -> dict[str, Any]:
    """Return median over median, and a 95 % interval by drawing rounds with replacement.

    A round is one turn of both in the same minute, so both are drawn together: what disturbed the
    machine for a while disturbed both. Contenders that took part in fewer rounds are cut to the common ones.
    """
    n = min(len(slower), len(faster))
    a, b = per_round(slower[:n]), per_round(faster[:n])
    drawn = np.random.default_rng(seed).integers(0, n, (DRAWS, n))
    values = np.median(a[drawn], axis=1) / np.median(b[drawn], axis=1)
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"value": float(np.median(a) / np.median(b)), "low": float(low), "high": float(high), "rounds": n}


def verdict(found: Mapping[str, Any], at_least: float) -> str:
    """Say whether a ratio reaches what is asked: `ahead`, `short`, or `even` where the interval spans the goal."""
    if found["low"] >= at_least:
        return "ahead"
    return "short" if found["high"] < at_least else "even"


def difference(logits: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> float:
    """Root mean square of the difference over that of the reference."""
    return float(np.sqrt(np.mean((logits - reference) ** 2) / np.mean(reference**2)))
