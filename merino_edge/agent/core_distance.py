"""How far apart two cores stand: the time of one cache line that both write at once.

The threads of a runtime hand cache lines to each other all the time. On a board that takes the same time always.
The host of a virtual machine, however, moves its processors over the cores it has: for some seconds or minutes they
share a cache, then they do not. Nothing that the guest's kernel counts tells of it, and yet every test that two
threads share takes another time, one slower and another faster. So it is measured here, between the passes.

Two threads, each on its own core, let the kernel write zeros into the same small buffer (`readv` from /dev/zero,
which gives the interpreter's lock away). A core that writes a line must first get it from the other one.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from typing import Callable, Optional, Sequence

from merino_edge.agent import facts, sensors
from merino_edge.agent.machine import Machine

LINE_BYTES = 64
BUFFER_BYTES = 2048  # few lines: each is fought for again at once
VECTORS = 1024  # Linux takes no more in one call
PASS_S = 0.002
ALONE_S = 0.001
PASSES = 3
MOST_PAIRS = 3  # of the first core and another
CONTENDED = 1.5  # times what one thread alone needs; less, and the two did not run at the same time
TOLERANCE = 1.4  # a distance within this factor of the usual one is the same

Distance = Callable[[], Optional[float]]


def distance_ns(cpus: Sequence[int]) -> float | None:
    """Return the nanoseconds in which a line goes to the other core and is written, of the pair farthest apart.

    Args:
        cpus: Logical processors that this process may use, of different cores.

    Returns:
        None where there is one core only, where the system offers no way to measure it, or where other programs kept
        the two threads from running at the same time.
    """
    if len(cpus) < 2 or not hasattr(os, "readv") or not hasattr(os, "sched_setaffinity"):
        return None
    try:
        zeros = os.open("/dev/zero", os.O_RDONLY)
    except OSError:
        return None
    try:
        found = [_pair_ns(zeros, (cpus[0], other)) for other in cpus[1 : 1 + MOST_PAIRS]]
    except OSError:  # the processors that may be used changed
        return None
    finally:
        os.close(zeros)
    known = [ns for ns in found if ns is not None]
    return round(max(known), 2) if known else None


def meter(machine: Machine, threads: int) -> Distance:
    """Return what measures how far apart the cores of so many threads stand.

    One thread hands nothing over; a recorded machine has no cores; an emulator's are threads, of which any core of its
    host may run any.
    """
    if threads < 2 or not machine.real or sensors.emulated(machine):
        return lambda: None
    cpus = facts.performance_cores(machine)
    return lambda: distance_ns(cpus)


def is_same_place(ns: float, place_ns: float) -> bool:
    """Say whether two distances are one."""
    return place_ns / TOLERANCE <= ns <= place_ns * TOLERANCE


def moved(distances_ns: Sequence[float], usual_ns: float | None) -> str | None:
    """Return why a test does not count during which the cores stood elsewhere than usual, None where they did not.

    Args:
        distances_ns: Before, during and after it, where known.
        usual_ns: What they usually are; None where nobody knows yet.
    """
    if usual_ns is None:
        return None
    for ns in distances_ns:
        if not is_same_place(ns, usual_ns):
            way = "farther apart" if ns > usual_ns else "nearer to each other"
            return (
                f"the host of this virtual machine moved its processors {way} "
                f"({ns:.1f} ns for a cache line that both write, usually {usual_ns:.1f})"
            )
    return None


def _pair_ns(zeros: int, pair: tuple[int, int]) -> float | None:
    """Measure one pair; None where the two threads did not run at the same time."""
    views = [memoryview(bytearray(BUFFER_BYTES))] * VECTORS
    lines = BUFFER_BYTES * VECTORS / LINE_BYTES
    alone = statistics.median(_write(zeros, views, pair[:1], ALONE_S)) / lines
    both = statistics.median(statistics.median(_write(zeros, views, pair, PASS_S)) for _ in range(PASSES)) / lines
    return both if both >= CONTENDED * alone else None


def _write(zeros: int, views: Sequence[memoryview], cpus: Sequence[int], seconds: float) -> list[int]:
    """Write from one thread on each processor for so long; returns the nanoseconds of each call.

    Raises:
        OSError: a processor that may not be used.
    """
    ready = threading.Barrier(len(cpus))
    taken: list[int] = []
    errors: list[OSError] = []

    def work(cpu: int) -> None:
        try:
            os.sched_setaffinity(0, {cpu})  # of this thread
            os.readv(zeros, views)
            ready.wait()
            mine: list[int] = []
            end = time.perf_counter() + seconds
            while not mine or time.perf_counter() < end:
                begin = time.perf_counter_ns()
                os.readv(zeros, views)
                mine.append(time.perf_counter_ns() - begin)
            taken.extend(mine)
        except OSError as error:
            errors.append(error)
            ready.abort()
        except threading.BrokenBarrierError:
            pass  # the other one tells why

    workers = [threading.Thread(target=work, args=(cpu,)) for cpu in cpus]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    return taken
