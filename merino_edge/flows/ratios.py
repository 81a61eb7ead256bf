"""How much slower, and whether that is more than noise: ratios of medians with bootstrap intervals.

Samples that follow each other are alike, so they are drawn in blocks; what was measured in turn is
drawn by rounds, both sides together, because what disturbed the machine for a while disturbed both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DRAWS = 4000
LEVEL = 0.95
FEWEST = 5  # rounds or blocks, for an interval that means something
TG_BLOCK = 8  # generated tokens that are drawn together

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """A ratio of two times.

    Attributes:
        value: Above 1: the first is slower.
        low: Lower end of the 95 % interval.
        high: Upper end.
        drawn: Rounds or blocks of each side that it rests on.
    """

    value: float
    low: float
    high: float
    drawn: int

    @property
    def is_noise(self) -> bool:
        """Say whether the interval holds 1: no difference was shown."""
        return self.low <= 1.0 <= self.high

    def words(self) -> str:
        """Return `1.23x (95 %: 1.20 to 1.27)`."""
        return f"{self.value:.3f}x (95 %: {self.low:.3f} to {self.high:.3f})"


def blocks(samples_ns: Sequence[int], test: str) -> Values:
    """Return what is drawn of one process's samples: prompts one by one, generated tokens by up to eight."""
    size = max(1, min(TG_BLOCK, len(samples_ns) // FEWEST)) if test.startswith("tg") else 1
    whole = [samples_ns[at : at + size] for at in range(0, len(samples_ns) - size + 1, size)]
    return np.array([float(np.median(block)) for block in whole])


def unpaired(first: Values, second: Values, seed: int = 0) -> Ratio:
    """Return median over median of two sets that were taken at different times."""
    random = np.random.default_rng(seed)
    tops, bottoms = (np.median(values[random.integers(0, len(values), (DRAWS, len(values)))], axis=1)
                     for values in (first, second))  # fmt: skip
    return _ratio(float(np.median(first) / np.median(second)), tops / bottoms, min(len(first), len(second)))


def paired(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Ratio:
    """Return the median of the rounds' ratios.

    Args:
        first: One time for each round.
        second: Of the same rounds.
        seed: Of the draws.
    """
    ratios = np.asarray(first, np.float64) / np.asarray(second, np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(ratios), (DRAWS, len(ratios)))
    return _ratio(float(np.median(ratios)), np.median(ratios[drawn], axis=1), len(ratios))


def _ratio(value: float, draws: Values, drawn: int) -> Ratio:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Ratio(value, float(low), float(high), drawn)
