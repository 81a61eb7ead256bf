"""Weights in large pages, where the kernel can: fewer translations of addresses for a token that reads all of them.

A matrix that no cache holds is read from end to end at every token, and every 4 KiB of it need a translation of
their own. Linux 6.1 and later puts pages that are there into large ones on request (MADV_COLLAPSE), whatever the
system's policy for them is. Only ranges that are wholly in memory are asked for, so that what is resident does not
grow. Where it cannot be had, an older kernel among the reasons, weights stay as they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from typing import Iterator

_MADV_COLLAPSE = 25  # linux/mman.h
_LARGE = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"
_ANONYMOUS = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p 0+ 00:00 0\s*(?:\[heap\])?$")
_PRESENT = 0x80  # of the last byte of an entry in /proc/PID/pagemap


def use_large_pages() -> int:
    """Put what this process holds in anonymous memory into large pages; return how many bytes it was done for."""
    if sys.platform != "linux":
        return 0
    done = 0
    with contextlib.suppress(OSError, ValueError, ArithmeticError, AttributeError):  # no such files, another C library
        with open(_LARGE, encoding="ascii") as stream:
            large = int(stream.read())
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for start in _whole_ranges(large):
            done += large if madvise(start, large, _MADV_COLLAPSE) == 0 else 0
    return done


def _whole_ranges(large: int) -> Iterator[int]:
    """Yield the addresses of aligned anonymous ranges of this size whose pages are all in memory."""
    page = os.sysconf("SC_PAGE_SIZE")
    with open("/proc/self/pagemap", "rb", buffering=0) as pages:
        for begin, end in list(_anonymous_mappings()):
            for start in range(-(-begin // large) * large, end - large + 1, large):
                pages.seek(start // page * 8)
                entries = pages.read(large // page * 8)
                if entries and all(byte & _PRESENT for byte in entries[7::8]):
                    yield start


def _anonymous_mappings() -> Iterator[tuple[int, int]]:
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            found = _ANONYMOUS.match(line)
            if found:
                yield int(found[1], 16), int(found[2], 16)
