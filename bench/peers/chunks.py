"""A text fed in chunks, for whoever is asked for logits of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def feed_in_chunks(feed: Callable[[list[int], list[int]], Any], ids: list[int], want: list[int], size: int) -> Any:
    """Feed `ids`, at most `size` at once, and return the logits of the positions in `want`: `(len(want), V)`.

    Args:
        feed: Appends tokens and returns the logits of positions among them, valid until its next call.
        ids: Token ids.
        want: Positions in `ids`, ascending.
        size: Of a chunk.
    """
    rows = []
    for start in range(0, len(ids), size):
        chunk = ids[start : start + size]
        wanted = [at - start for at in want if start <= at < start + len(chunk)]
        logits = feed(chunk, wanted or [len(chunk) - 1])
        rows += [np.array(logits)] if wanted else []
    return np.concatenate(rows)
