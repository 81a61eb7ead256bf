"""A text fed in chunks, for whoever is asked for logits of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def feed_in_chunks(feed: Callable[[list[int], list[int]], Any], ids: list[int], want: list[int], size: int) -> Any:
    """Feed `ids`, at most `size` at once; return the logits of the last chunk, `(n, V)`.

    Those that `want` names in earlier chunks are there before the next is fed: whoever needs every
    position reads them then, as perplexity does, and nobody holds all of them at once.

    Args:
        feed: Appends tokens and returns the logits of positions among them, valid until its next call.
        ids: Token ids.
        want: Positions in `ids`, ascending; the last token's among them.
        size: Of a chunk.
    """
    for start in range(0, len(ids), size):
        chunk = ids[start : start + size]
        wanted = [at - start for at in want if start <= at < start + len(chunk)]
        logits = feed(chunk, wanted or [len(chunk) - 1])
    return logits
