"""A line through few and noisy measurements: robust non-negative least squares and its error band.

Costs cannot be negative, so neither may coefficients; a slow run of a model is an outlier, not a fact
about the model, so residuals are weighted down as they grow; and 1 ms of error means less on a slow
model than on a fast one, so everything is relative: rows are divided by what was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

FloatArray = npt.NDArray[np.float64]
ROUNDS = 30
TUKEY = 4.685  # residuals beyond this many standard deviations have no weight
LEAST_SCALE = 1e-3  # relative; below it residuals are not outliers whatever their spread


def fit_coefficients(features: FloatArray, measured: FloatArray, offset: float = 0.0) -> FloatArray:
    """Return non-negative coefficients `c` with `offset + features @ c` near `measured`, in relative terms.

    Iteratively reweighted: Huber's weights first (convex, so it finds the bulk from anywhere), Tukey's
    bisquare after, until the coefficients rest or `ROUNDS` are over.

    Args:
        features: `(n, k)`, costs of each sample, not negative.
        measured: `(n,)`, greater than zero.
        offset: A part that is known.
    """
    target = 1.0 - offset / measured
    rows = features / measured[:, None]
    norms = np.linalg.norm(rows, axis=0)
    scale = np.where(norms > 0, norms, 1.0)
    rows = rows / scale
    weights = np.ones(len(measured))
    solution = np.zeros(features.shape[1])
    for iteration in range(ROUNDS):
        root = np.sqrt(weights)
        found, _ = nnls(rows * root[:, None], target * root)
        rests = iteration > ROUNDS // 3 and np.allclose(found, solution, rtol=1e-9, atol=1e-12)
        solution = found
        if rests:
            break
        residual = np.abs(rows @ solution - target)
        spread = max(1.4826 * _median(residual), LEAST_SCALE)
        if iteration < ROUNDS // 3:
            weights = np.minimum(1.0, 1.345 * spread / np.maximum(residual, 1e-300))
        else:
            weights = np.maximum(1.0 - (residual / (TUKEY * spread)) ** 2, 0.0) ** 2
    return np.asarray(solution / scale, np.float64)


def _median(values: FloatArray) -> float:
    """Return what `np.median` does of finite numbers; ten times as fast where they are few."""
    ordered = np.sort(values)
    return float((ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2)


def leave_one_out(features: FloatArray, measured: FloatArray, offset: float = 0.0) -> FloatArray:
    """Return for each sample what the other samples predict for it, `(n,)`."""
    predicted = np.empty(len(measured))
    for i, keep in enumerate(~np.eye(len(measured), dtype=bool)):
        predicted[i] = offset + features[i] @ fit_coefficients(features[keep], measured[keep], offset)
    return predicted


def conformal_excess(predicted: FloatArray, measured: FloatArray, coverage: float) -> float:
    """Return the share by which to raise a prediction so that it covers with this probability.

    Split-conformal on held-out relative errors: the `ceil((n + 1) coverage)`-th smallest, the largest
    where n is too small for that. Never below 0.
    """
    excess = np.sort(measured / np.maximum(predicted, 1e-12) - 1.0)
    rank = min(math.ceil((len(excess) + 1) * coverage), len(excess))
    return max(float(excess[rank - 1]), 0.0)


@dataclass(frozen=True)
class Accuracy:
    """How well held-out samples were predicted. Shares are fractions of 1.

    Attributes:
        samples: How many.
        mape: Mean of |predicted - measured| / measured.
        within_10pct: Share of samples off by at most 10 %.
        kendall: Rank correlation (tau-b).
    """

    samples: int
    mape: float | None
    within_10pct: float | None
    kendall: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "samples": self.samples,
            "mape": self.mape,
            "within_10pct": self.within_10pct,
            "kendall": self.kendall,
        }


def judge(predicted: FloatArray, measured: FloatArray) -> Accuracy:
    """Compare predictions with measurements they were not fitted to."""
    if len(measured) == 0:
        return Accuracy(0, None, None, None)
    error = np.abs(predicted - measured) / measured
    return Accuracy(len(measured), float(error.mean()), float((error <= 0.1).mean()), kendall_tau(predicted, measured))


def kendall_tau(a: FloatArray, b: FloatArray) -> float | None:
    """Return Kendall's tau-b, None where one side does not vary."""
    upper = np.triu_indices(len(a), 1)
    x = np.sign(a[:, None] - a[None, :])[upper]
    y = np.sign(b[:, None] - b[None, :])[upper]
    norm = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    return float((x * y).sum()) / norm if norm else None
