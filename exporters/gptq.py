"""GPTQ (Frantar et al. 2023, arXiv 2210.17323): rounding that makes up for its own error.

Inputs of a matrix are rounded one after the other, for all rows at once. What rounding one of them
changes in the outputs, those not yet rounded take over, as the Hessian `H` of the output error says
(`calibration.py`). With `H^-1 = U^T U`, `U` upper triangular, and `e = (w_j - q_j) / U_jj`, the
update of every later input k is `w_k -= e * U_jk`.

As in the authors' own code the inputs of largest `H_jj` come first, and updates of later inputs are
gathered. Scales are chosen beforehand (`scales.py`), so that the order is free. The authors damp by
0.01 of the mean of `H_jj`; here it is as much as the text is short of (`damping_for`), since what few
tokens show of an input's correlations is chance.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_triangular

from merino_edge.errors import ExportError
from merino_edge.exporters.quantize import RANGES, QuantizedTensor

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
LEAST_DAMPING = 0.01  # of the mean diagonal, added to it
GATHERED = 32
ROWS = 2048  # rounded together: what they need stays in a cache


def damping_for(inputs: int, tokens: int) -> float:
    """Return the damping for a matrix of so many inputs, seen on a text of so many tokens.

    An estimate of `inputs` correlations from `tokens` samples is off by the square root of their ratio. Twice the
    ratio is near the best of what was tried on 8, 32 and 64 thousand tokens.
    """
    return max(LEAST_DAMPING, 2 * inputs / tokens)


def round_with_gptq(
    matrix: Float32, hessian: Float64, scale: Float32, bits: int, damping: float = LEAST_DAMPING
) -> QuantizedTensor:
    """Round a matrix to given scales, so that its outputs change little.

    Args:
        matrix: float32 `[out, in]`.
        hessian: float64 `[in, in]`, positive semidefinite.
        scale: float32 `[out, groups]`.
        bits: 8 or 4.
        damping: Added to the Hessian's diagonal, as a share of its mean.
    """
    rows, columns = matrix.shape
    order = np.argsort(-np.diag(hessian), kind="stable")
    factor = _factor(hessian[np.ix_(order, order)], damping)
    group = order // (columns // scale.shape[1])  # of each input, in the order of rounding
    values = np.empty((rows, columns), np.int8)
    for start in range(0, rows, ROWS):
        part = slice(start, start + ROWS)
        w = np.ascontiguousarray(matrix[part].T[order], np.float32)  # (in, out): an input is one run of memory
        values[part, order] = _round_in_order(w, np.ascontiguousarray(scale[part].T)[group], factor, RANGES[bits]).T
    return QuantizedTensor(values, scale, bits)


def _round_in_order(w: Float32, steps: Float32, factor: Float32, limits: tuple[int, int]) -> npt.NDArray[np.int8]:
    """Round `w` `(in, out)`, which is used up, to multiples of `steps` `(in, out)`; return the integers."""
    columns, rows = w.shape
    values = np.empty((columns, rows), np.int8)
    for start in range(0, columns, GATHERED):
        stop = min(start + GATHERED, columns)
        errors = np.empty((stop - start, rows), np.float32)
        for j in range(start, stop):
            rounded = np.clip(np.rint(w[j] / steps[j]), *limits)
            values[j] = rounded
            errors[j - start] = w[j] - rounded * steps[j]
            w[j + 1 : stop] -= factor[j, j + 1 : stop, None] * errors[j - start]
        w[stop:] -= factor[start:stop, stop:].T @ errors
    return values


def _factor(hessian: Float64, damping: float) -> Float32:
    """Return `U_jk / U_jj` of the inverse's upper factor; the diagonal is damped more where there is none."""
    count = len(hessian)
    mean = float(np.diag(hessian).mean()) or 1.0
    dampings = (damping, 1.0, 10.0) if np.isfinite(mean) and np.isfinite(hessian).all() else ()
    for share in dampings:
        try:
            # H = R R^T with R upper, by factoring H turned end for end; then U = R^-1
            turned = np.linalg.cholesky((hessian + share * mean * np.eye(count))[::-1, ::-1])
        except np.linalg.LinAlgError:
            continue
        upper = solve_triangular(turned[::-1, ::-1], np.eye(count), lower=False, check_finite=False)
        ratios: Float32 = (upper / np.diag(upper)[:, None]).astype(np.float32)
        return ratios
    raise ExportError(
        "what a matrix meets on the calibration text gives no numbers to round by", hint="export with --quantizer rtn"
    )
