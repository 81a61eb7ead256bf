"""What the matrices of a model meet on real text: the Hessian of each one's output error.

The error that rounding `W` to `Q` makes in the outputs of a matrix over a text is
`sum_x |(W - Q) x|^2 = trace((W - Q) H (W - Q)^T)` with `H = sum_x x x^T` over its inputs `x`. The
inputs come from `merino_edge.reference`, window by window. A matrix that several layers share meets
the inputs of all of them, and the token table those of the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from merino_edge.architecture import Architecture
from merino_edge.exporting import Tensors
from merino_edge.reference import forward

Float64 = npt.NDArray[np.float64]
SAME_INPUT = {"key": "query", "value": "query"}  # three matrices, one input


class _Watched:
    """A matrix `[out, in]` in the place of an array, which adds up its inputs' outer products.

    It does what `reference.forward` asks of a matrix: rows by number, and `x @ matrix.T`.
    """

    __array_ufunc__ = None  # numpy leaves `x @ watched` to `__rmatmul__`

    def __init__(self, matrix: npt.NDArray[np.float32], wanted: bool, product: bool) -> None:
        self._matrix = matrix
        self._product = product
        self.hessian: Float64 | None = np.zeros((matrix.shape[1], matrix.shape[1])) if wanted else None

    @property
    def T(self) -> _Watched:
        return self

    def __getitem__(self, rows: Any) -> npt.NDArray[np.float32]:
        return np.asarray(self._matrix[rows])

    def __rmatmul__(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self.hessian is not None:
            self.hessian += x.T @ x
        return x @ self._matrix.T if self._product else x


def collect_hessians(
    architecture: Architecture, tensors: Tensors, token_ids: npt.NDArray[np.integer], window: int
) -> dict[str, Float64]:
    """Run a text through the model and return each matrix's Hessian.

    Args:
        architecture: The model.
        tensors: Its weights, float32.
        token_ids: `(N,)` the text; a last window of one token is left out.
        window: Tokens that see one another, at least 2.

    Returns:
        By the name of the matrix: `sum x x^T / N`, float64 `[in, in]`.
    """
    watched: dict[str, Any] = {}
    for name, tensor in tensors.items():
        last = name.split(".")[-2]
        is_head = name == "embedding.weight"
        watched[name] = tensor
        if tensor.ndim == 2:
            watched[name] = _Watched(tensor, last not in SAME_INPUT, product=not is_head)
    used = 0
    for start in range(0, len(token_ids), window):
        piece = token_ids[start : start + window]
        if len(piece) > 1:
            forward(architecture, cast(Mapping[str, Any], watched), piece)
            used += len(piece)
    hessians = {n: w.hessian / used for n, w in watched.items() if isinstance(w, _Watched) and w.hessian is not None}
    for name in [n for n in watched if n.split(".")[-2] in SAME_INPUT]:
        block, part, rest = name.rsplit(".", 2)
        hessians[name] = hessians[f"{block}.{SAME_INPUT[part]}.{rest}"]
    return hessians
