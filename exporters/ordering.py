"""The channels of the residual stream in another order: the same model, with inputs of like size in the same blocks.

A block of 4-bit values shares one scale, which its largest value decides. In a trained token table a
few columns are several times as large as the others (up to eight times after 300 M tokens), and where
they are scattered, nearly every block has one. Nothing that a decoder computes depends on the order of
its residual channels, so they are sorted by the size of the table's columns: large ones share blocks
with one another. Rows of what writes to the stream, columns of what reads from it, and gains follow,
those of an embedding skip too, which enters the stream normed. The graph does not change.

Where blocks differ in width, only the streams that the table reads or writes are sorted.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from merino_edge.architecture import Architecture
from merino_edge.exporting import Tensors

READS = ("query", "key", "value", "ffn_in")
WRITES = ("output", "ffn_out")
TABLE = "embedding.weight"


def order_by_size(architecture: Architecture, tensors: Tensors) -> dict[str, npt.NDArray[np.float32]]:
    """Return the tensors of the same model, the table's columns in the order of their mean square."""
    order = np.argsort(np.square(tensors[TABLE]).mean(0), kind="stable")
    reordered = dict(tensors)
    for name, axis in _axes_of_the_table_s_stream(architecture, tensors):
        reordered[name] = np.take(reordered[name], order, axis)
    return reordered


def _axes_of_the_table_s_stream(architecture: Architecture, tensors: Tensors) -> list[tuple[str, int]]:
    """Return tensors and their axes that run over the channels the table's columns stand for."""
    count = len(architecture.blocks)
    starts = [i for i in range(count) if f"blocks.{i}.projection.weight" in tensors]  # of another stream
    ends_elsewhere = "output_projection.weight" in tensors
    first, last = (starts[0], starts[-1]) if starts else (count, 0)
    axes = [(TABLE, 1)]
    for i in range(count):
        if i < first or (i >= last and not ends_elsewhere):
            axes += [(f"blocks.{i}.{part}.weight", 1) for part in READS]
            axes += [(f"blocks.{i}.{part}.weight", 0) for part in WRITES]
            axes.append((f"blocks.{i}.norms", 2))
            axes += [(f"blocks.{i}.skip_gains", 2)] if architecture.embedding_skip else []
    if starts:
        axes.append((f"blocks.{first}.projection.weight", 1))
        axes += [] if ends_elsewhere else [(f"blocks.{last}.projection.weight", 0)]
    axes.append(("output_projection.weight", 0) if ends_elsewhere else ("final_norm.weight", 0))
    return axes
