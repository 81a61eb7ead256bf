"""Not a model: how fast this machine reads memory that is in no cache, by numpy, one share a thread.

"Decoding" one token is one pass over `PATH` MB of float32; of two ways to read, whichever is faster here.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np


class Engine:
    """See `worker.py`."""

    vocab_size = 1

    def __init__(self, path: str, threads: int) -> None:
        count = int(float(path) * 1e6) // 8 // threads * threads * 2
        self.bytes_read = 4 * count
        self._shares = np.array_split(np.ones(count, np.float32), threads)
        self._pool = ThreadPoolExecutor(threads)
        self._way = min((self._dot, self._max), key=self._seconds)

    @staticmethod
    def _dot(share: Any) -> float:
        half = len(share) // 2
        return float(np.dot(share[:half], share[half : 2 * half]))

    @staticmethod
    def _max(share: Any) -> float:
        return float(share.max())

    def _seconds(self, way: Any) -> float:
        taken = []
        for _ in range(5):
            begin = time.perf_counter()
            list(self._pool.map(way, self._shares))
            taken.append(time.perf_counter() - begin)
        return min(taken)

    def reset(self) -> None:
        """Nothing is kept."""

    keep = back = reset

    def feed(self, ids: list[int], want: list[int]) -> Any:
        """Read everything once."""
        list(self._pool.map(self._way, self._shares))
        return np.zeros((len(want), 1), np.float32)
