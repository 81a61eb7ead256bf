"""The timing code: one copy, for every device and every runtime.

    tg    ms per generated token: one token at a time, 64 of them after `depth` tokens of context
    pp    ms to read one prompt of N tokens, in the chunks of generation, after `depth` tokens (0: an empty cache)
    full  as pp, with the logits of all positions (one training-like forward)

A pass is repeated until the median's 95 % interval is within 1 % of it, or the budget is spent.
Samples stay in the order they were taken, in nanoseconds; nothing is averaged or trimmed. A pass
during which the threads had to queue for a core is set aside whole, by that evidence alone and
whatever its times were; where no other pass remains, all of them stand and the test is not valid.
"""

from __future__ import annotations

import math
import re
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Sequence

import numpy as np

from merino_edge.agent.conditions import QUEUED_LIMIT
from merino_edge.agent.errors import AgentError
from merino_edge.agent.session import Session

if TYPE_CHECKING:
    import numpy.typing as npt

TG_WARMUP_TOKENS = 8
PP_REPEATS = 5
MAX_SAMPLES = 4096
TARGET_INTERVAL = 0.01  # of the median
TESTS = ("tg", "pp", "full")


def memory_bytes() -> dict[str, int | None]:
    """Return what this process holds: peak, anonymous, file-backed (which the kernel may drop), proportional."""
    names = {"VmHWM": "peak", "RssAnon": "anonymous", "RssFile": "file_backed"}
    found: dict[str, int | None] = {"peak": None, "anonymous": None, "file_backed": None, "proportional": None}
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines():
            match = re.match(r"(\w+):\s+(\d+) kB", line)
            if match and match.group(1) in names:
                found[names[match.group(1)]] = int(match.group(2)) * 1024
        match = re.search(r"^Pss:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(encoding="utf-8"), re.M)
        found["proportional"] = int(match.group(1)) * 1024 if match else None
    except OSError:
        pass  # macOS has no /proc, old kernels no smaps_rollup
    if found["peak"] is None:
        unit = 1 if sys.platform == "darwin" else 1024
        found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return found


def process_memory(
    empty: dict[str, int | None], loaded: dict[str, int | None], full: dict[str, int | None]
) -> dict[str, Any]:
    """Return what an answer says of a measuring process.

    Args:
        empty: `memory_bytes` with the runtime alone.
        loaded: With the model.
        full: With its cache filled.
    """
    peak, base = full["peak"] or 0, empty["peak"] or 0
    return {
        "peak_memory_bytes": peak,
        "model_memory_bytes": max(0, peak - base),
        "file_backed_bytes": full["file_backed"] or 0,
        "memory": {"empty_runtime": empty, "loaded": loaded, "cache_full": full},
    }


def is_settled(samples_ns: Sequence[int]) -> bool:
    """Say whether the distribution-free 95 % interval of the median lies within 1 % of it."""
    ordered = sorted(samples_ns)
    n = len(ordered)
    spread = 0.98 * math.sqrt(n)
    low, high = ordered[max(0, math.floor(n / 2 - spread))], ordered[min(n - 1, math.ceil(n / 2 + spread))]
    return high - low <= TARGET_INTERVAL * ordered[n // 2]


class Pass:
    """Samples of one pass, and how long each thread stood in the queue for a core, None where nobody knows."""

    def __init__(self, samples: list[int], elapsed_ns: int, queued_ns: float | None) -> None:
        self.samples = samples
        self.elapsed_ns = elapsed_ns
        self.queued_ns = queued_ns

    @property
    def disturbed(self) -> bool:
        """Say whether other programs took the cores."""
        return self.queued_ns is not None and self.queued_ns > QUEUED_LIMIT * self.elapsed_ns


class Timed:
    """What a test gave.

    Args:
        warmup: Nanoseconds, not counted.
        least: Undisturbed passes that are enough to leave out the disturbed ones.
    """

    def __init__(self, warmup: list[int], least: int) -> None:
        self.warmup = warmup
        self._least = least
        self._passes: list[Pass] = []

    def add(self, one: Pass) -> None:
        """Take one pass."""
        self._passes.append(one)

    def _kept(self) -> list[Pass]:
        quiet = [p for p in self._passes if not p.disturbed]
        return quiet if len(quiet) >= self._least else self._passes

    @property
    def samples(self) -> list[int]:
        """Nanoseconds of the passes that count."""
        return [sample for p in self._kept() for sample in p.samples]

    @property
    def set_aside(self) -> list[int]:
        """Nanoseconds of the disturbed passes, where enough others are there."""
        kept = self._kept()
        return [sample for p in self._passes if p not in kept for sample in p.samples]

    @property
    def queued_share(self) -> float | None:
        """Share of the time of the passes that count which a thread stood in the queue."""
        known = [(p.queued_ns, p.elapsed_ns) for p in self._kept() if p.queued_ns is not None]
        return sum(q for q, _ in known) / max(1, sum(e for _, e in known)) if known else None

    @property
    def settled(self) -> bool:
        """Say whether enough undisturbed passes are there and their median is known to 1 %."""
        quiet = [p for p in self._passes if not p.disturbed]
        return len(quiet) >= self._least and is_settled([sample for p in quiet for sample in p.samples])


class Timer:
    """Runs tests on one open session.

    Args:
        session: What is measured.
        budget_s: Per test; a first pass is always completed.
        progress: Called between passes with the share done of the budget.
        check: Called between passes and tokens; raises to stop.
        queued_ns: Tells how long a thread has stood in the queue for a core so far, None where nobody knows.
        seed: Of the tokens that are fed (their values do not change the time).
    """

    def __init__(
        self,
        session: Session,
        budget_s: float,
        progress: Callable[[float], None],
        check: Callable[[], None],
        queued_ns: Callable[[], float | None] = lambda: None,
        seed: int = 0,
    ) -> None:
        self.session = session
        self.budget_s = budget_s
        self.progress = progress
        self.check = check
        self.queued_ns = queued_ns
        self.between: Callable[[], None] = lambda: None  # called between passes, outside of what is timed
        self._random = np.random.Generator(np.random.PCG64(seed))

    def tokens(self, count: int) -> npt.NDArray[np.int64]:
        """Draw `(count,)` token ids."""
        return self._random.integers(0, self.session.vocab_size, count)

    def fill(self, length: int) -> None:
        """Bring the cache to exactly so many positions."""
        if self.session.length > length:
            self.session.truncate(length)
        while self.session.length < length:
            self.check()
            count = min(self.session.prefill_chunk, length - self.session.length)
            self.session.feed(self.tokens(count), [count - 1])

    def run(self, test: str, tokens: int, depth: int, warmup: int | None = None, repeats: int | None = None) -> Timed:
        """Run one test.

        Args:
            test: One of `TESTS`.
            tokens: Of one pass.
            depth: Positions in the cache before it.
            warmup: Passes that do not count; None for one prompt, or a few tokens.
            repeats: Passes that count, whatever they take; None for as many as the budget and the median ask for.
        """
        if test not in TESTS or tokens < 1 or depth < 0:
            raise AgentError("request", f"there is no test {test!r} of {tokens} tokens after {depth}")
        single = test == "tg"
        one_pass = self._generate if single else lambda count: self._read(count, test == "full")
        self.fill(depth)
        least = min(1 if single else PP_REPEATS, repeats or PP_REPEATS)
        timed = Timed(self._warm_up(one_pass, test, tokens, depth, warmup), least)
        started, passes, taken = time.perf_counter(), 0, 0
        while True:
            self.check()
            self.between()
            self.fill(depth)
            queued, begin = self.queued_ns(), time.perf_counter_ns()
            samples = one_pass(tokens)
            elapsed, after = time.perf_counter_ns() - begin, self.queued_ns()
            timed.add(Pass(samples, elapsed, None if queued is None or after is None else after - queued))
            passes, taken = passes + 1, taken + len(samples)
            spent = time.perf_counter() - started
            self.progress(min(1.0, passes / repeats if repeats else spent / self.budget_s))
            enough = passes >= repeats if repeats else passes >= least and (spent >= self.budget_s or timed.settled)
            if enough or (passes >= least and taken + len(samples) > MAX_SAMPLES):
                return timed

    def _warm_up(
        self, one_pass: Callable[[int], list[int]], test: str, tokens: int, depth: int, passes: int | None
    ) -> list[int]:
        """Run what does not count; the cache is at `depth` before each pass."""
        if passes is None:
            return one_pass(min(TG_WARMUP_TOKENS, tokens) if test == "tg" else tokens)
        samples: list[int] = []
        for _ in range(passes):
            self.fill(depth)
            samples += one_pass(tokens)
        return samples[-MAX_SAMPLES:]

    def once(self, test: str, tokens: int, depth: int) -> None:
        """Run one pass that is not timed."""
        self.fill(depth)
        if test == "tg":
            self._generate(tokens)
        else:
            self._read(tokens, test == "full")

    def _generate(self, count: int) -> list[int]:
        """Feed tokens one by one and return the time of each."""
        feed, clock, samples = self.session.feed, time.perf_counter_ns, []
        for token in self.tokens(count):
            self.check()
            one, want = [int(token)], [0]
            begin = clock()
            feed(one, want)
            samples.append(clock() - begin)
        return samples

    def _read(self, count: int, all_positions: bool) -> list[int]:
        """Feed one prompt as generation does, in the session's chunks, and return its time."""
        prompt = self.tokens(count)
        begin = time.perf_counter_ns()
        for chunk in self.session.chunks(prompt):
            self.session.feed(chunk, range(len(chunk)) if all_positions else [len(chunk) - 1])
        return [time.perf_counter_ns() - begin]


def negative_log_likelihood(
    session: Session, token_ids: npt.NDArray[Any], context_length: int, progress: Callable[[int], None]
) -> tuple[float, int]:
    """Return (sum in nats, tokens predicted) over non-overlapping windows.

    Every token but the first is predicted once, from at most `context_length` tokens before it in its window.

    Args:
        session: Truncated to nothing by this.
        token_ids: `(N,)`, at least two.
        context_length: Tokens of a window.
        progress: Called with the tokens predicted so far.
    """
    total, count = 0.0, 0
    inputs, targets = token_ids[:-1], token_ids[1:]
    for start in range(0, len(inputs), context_length):
        session.truncate(0)
        window = inputs[start : start + context_length]
        at = start
        for chunk in session.chunks(window):
            logits = session.feed(chunk, range(len(chunk)))  # (T, V)
            top = logits.max(axis=1, keepdims=True)
            mass = np.log(np.exp((logits - top).astype(np.float64)).sum(axis=1))
            wanted, at = targets[at : at + len(chunk)], at + len(chunk)
            chosen = (logits - top)[np.arange(len(chunk)), wanted]
            total += float((mass - chosen).sum())
            count += len(chunk)
            progress(count)
    return total, count
