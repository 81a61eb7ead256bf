"""One contender in one process: asked in JSON lines on stdin, answers on stdout, ends with its stdin.

    python worker.py ENGINE PATH THREADS

An engine is a class `Engine(path, threads)` with `vocab_size`, `reset()`, `feed(ids, want)` and, to return
to a cache that was filled once, `keep()` and `back()`. Times are in nanoseconds and taken here, around
`feed` alone. Runs in any of the environments; imports numpy and the engine's runtime.

    {"do": "decode", "depth": 128, "tokens": 16}   one token at a time after so many, two untimed first
    {"do": "read", "tokens": 1024, "all": false}   a prompt into an empty cache, in one call
    {"do": "logits", "ids": [...], "path": "..."}  last logits of a text fed as prompt and one token, saved
    {"do": "memory"}                               bytes held now
"""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

WARMUP_TOKENS = 2


def memory_bytes() -> dict[str, int]:
    """Return what this process holds: anonymous, backed by files (which the kernel may drop), and its peak of both."""
    names = {"RssAnon": "anonymous", "RssFile": "file", "VmHWM": "peak"}
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.findall(r"^(\w+):\s+(\d+) kB", status, re.M)
    return {names[name]: int(value) * 1024 for name, value in found if name in names}


def queued_ns() -> int:
    """Return how long the threads of this process have waited for a core so far."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that ended meanwhile
            total += int((task / "schedstat").read_text(encoding="ascii").split()[1])
    return total


class Worker:
    """Answers requests about one engine."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self._random = np.random.default_rng(0)
        self._kept_depth = -1

    def tokens(self, count: int) -> list[int]:
        """Draw token ids; their values do not change the time."""
        return [int(token) for token in self._random.integers(0, self.engine.vocab_size, count)]

    def decode(self, depth: int, tokens: int) -> dict[str, Any]:
        """Time single tokens."""
        engine = self.engine
        if self._kept_depth != depth:
            engine.reset()
            engine.feed(self.tokens(depth), [depth - 1])
            engine.keep()
            self._kept_depth = depth
        engine.back()
        for token in self.tokens(WARMUP_TOKENS):
            engine.feed([token], [0])
        engine.back()
        taken, queued = [], queued_ns()
        for token in self.tokens(tokens):
            begin = time.perf_counter_ns()
            engine.feed([token], [0])
            taken.append(time.perf_counter_ns() - begin)
        return {"ns": taken, "queued_ns": queued_ns() - queued}

    def read(self, tokens: int, every: bool) -> dict[str, Any]:
        """Time one prompt."""
        engine, ids = self.engine, self.tokens(tokens)
        engine.reset()
        self._kept_depth = -1
        want = list(range(tokens)) if every else [tokens - 1]
        queued, begin = queued_ns(), time.perf_counter_ns()
        engine.feed(ids, want)
        taken = time.perf_counter_ns() - begin
        return {"ns": [taken], "queued_ns": queued_ns() - queued}

    def logits(self, ids: list[int], path: str) -> dict[str, Any]:
        """Save the logits after a text."""
        self.engine.reset()
        self._kept_depth = -1
        self.engine.feed(ids[:-1], [len(ids) - 2])
        np.save(path, np.array(self.engine.feed(ids[-1:], [0])[0], np.float32))
        return {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request."""
        what = request["do"]
        if what == "decode":
            return self.decode(request["depth"], request["tokens"])
        if what == "read":
            return self.read(request["tokens"], request["all"])
        if what == "logits":
            return self.logits(request["ids"], request["path"])
        return memory_bytes()


def main() -> None:
    """Load, then answer until stdin ends. What a runtime prints goes to stderr."""
    name, path, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    out = sys.stdout
    sys.stdout = sys.stderr
    module = importlib.import_module(f"engine_{name}")
    before, begin = memory_bytes(), time.perf_counter_ns()
    worker = Worker(module.Engine(path, threads))
    loaded = {"load_ns": time.perf_counter_ns() - begin, "empty": before, "loaded": memory_bytes()}
    print(json.dumps({**loaded, "bytes_read": getattr(worker.engine, "bytes_read", None)}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
