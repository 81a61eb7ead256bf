"""As `engine_graph.py`, the prompt given in chunks of 256 tokens, as our own sessions do.

Attention then scores fewer masked pairs, and its scores fit memory that is at hand. Whoever takes
another tool's graph has to write that loop; so it stands beside, not instead.
"""

from __future__ import annotations

from typing import Any

from chunks import feed_in_chunks
from engine_graph import Engine as Whole

CHUNK = 256


class Engine(Whole):
    """See `worker.py`."""

    def feed(self, ids: list[int], want: list[int]) -> Any:
        """Append tokens, return `(len(want), V)`."""
        return feed_in_chunks(super().feed, ids, want, CHUNK)
