"""A bundle of this project, opened as its agent does on a board."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chunks import feed_in_chunks

from merino_edge.agent.large_pages import use_large_pages
from merino_edge.agent.opening import open_session


class Engine:
    """See `worker.py`."""

    def __init__(self, path: str, threads: int) -> None:
        folder = Path(path)
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self._session = open_session(folder, manifest, threads)
        use_large_pages()
        self.vocab_size = self._session.vocab_size
        self._kept = 0

    def reset(self) -> None:
        """Empty the cache."""
        self._session.truncate(0)

    def keep(self) -> None:
        """Remember the cache as it is."""
        self._kept = self._session.length

    def back(self) -> None:
        """Return to what was remembered."""
        self._session.truncate(self._kept)

    def feed(self, ids: list[int], want: list[int]) -> Any:
        """Append tokens as generation does, in the session's chunks; return `(len(want), V)`."""
        return feed_in_chunks(self._session.feed, ids, want, self._session.prefill_chunk)
