"""How fast this machine reads its memory: the one number that bounds every small model's decoding.

Threads search a buffer that no cache holds for a byte that is not in it (libc's `memchr`, which reads
as fast as the core can and gives the interpreter's lock away). Every page was written before: untouched
pages are all one page of zeros, and that one is in the cache.
"""

from __future__ import annotations

import ctypes
import threading
import time

LEAST_BYTES = 32 << 20
MOST_BYTES = 256 << 20
PASSES = 5


def read_bytes_per_s(threads: int, cache_bytes: int | None, available_bytes: int | None) -> dict[str, object]:
    """Measure reads of main memory by all threads together; the best of a few passes counts.

    Args:
        threads: One for each fast core.
        cache_bytes: Of the last-level cache; the buffer is many times larger.
        available_bytes: Free memory; at most a quarter of it is taken.

    Returns:
        `bytes_per_s`, `threads`, `buffer_bytes`, `passes_ns`; `bytes_per_s` None and a `reason` where
        memory is too short.
    """
    size = min(MOST_BYTES, max(LEAST_BYTES, 8 * (cache_bytes or 0)))
    if available_bytes is not None and size > available_bytes // 4:
        size = available_bytes // 4
    if size < max(LEAST_BYTES // 2, 2 * (cache_bytes or 0)):
        return {"bytes_per_s": None, "reason": f"only {(available_bytes or 0) >> 20} MiB of memory are free"}
    memchr = ctypes.CDLL(None).memchr
    memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    memchr.restype = ctypes.c_void_p
    buffer = (ctypes.c_char * size)()
    ctypes.memset(buffer, 1, size)
    part = size // threads
    address = ctypes.addressof(buffer)
    passes = [_one_pass(memchr, address, part, threads) for _ in range(PASSES)]
    return {
        "bytes_per_s": part * threads * 1e9 / min(passes),
        "threads": threads,
        "buffer_bytes": size,
        "passes_ns": passes,
    }


def _one_pass(memchr: object, address: int, part: int, threads: int) -> int:
    """Return the nanoseconds in which all threads have read their parts."""
    assert callable(memchr)
    ready = threading.Barrier(threads + 1)
    workers = []
    for number in range(threads):

        def work(begin: int = address + number * part) -> None:
            ready.wait()
            memchr(begin, 0, part)

        workers.append(threading.Thread(target=work))
    for worker in workers:
        worker.start()
    ready.wait()
    begin = time.perf_counter_ns()
    for worker in workers:
        worker.join()
    return max(1, time.perf_counter_ns() - begin)
