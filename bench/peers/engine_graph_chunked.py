"""As `engine_graph.py`, the prompt given in chunks of 256 tokens, as our own sessions do.

Attention then scores fewer masked pairs, and its scores fit memory that is at hand. Whoever takes
another tool's graph has to write that loop; so it stands beside, not instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from engine_graph import Engine as Whole

CHUNK = 256


class Engine(Whole):
    """See `worker.py`."""

    def feed(self, ids: list[int], want: list[int]) -> Any:
        """Append tokens, return `(len(want), V)`."""
        rows = []
        for start in range(0, len(ids), CHUNK):
            chunk = ids[start : start + CHUNK]
            wanted = [at - start for at in want if start <= at < start + len(chunk)]
            logits = super().feed(chunk, wanted or [len(chunk) - 1])
            rows += [np.array(logits)] if wanted else []
        return np.concatenate(rows)
