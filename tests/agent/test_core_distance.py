"""How far apart cores stand: measured on this machine, and what is made of it while a test runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from merino_edge.agent import core_distance, watch
from merino_edge.agent.core_distance import TOLERANCE, distance_ns, meter, moved
from merino_edge.agent.machine import Machine

NEAR, FAR = 5.7, 18.6


def test_two_cores_of_this_machine_have_a_distance() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("this process may use one core only")
    found = [ns for ns in (distance_ns(cpus) for _ in range(20)) if ns is not None]
    if not found:
        pytest.skip("other programs kept two threads from running at the same time, twenty times")
    assert all(0.1 < ns < 10_000 for ns in found)


def test_two_threads_on_one_core_hand_nothing_over() -> None:
    cpu = min(os.sched_getaffinity(0))
    assert distance_ns([cpu, cpu]) is None


def test_what_cannot_be_measured_is_not_known() -> None:
    cpu = min(os.sched_getaffinity(0))
    assert distance_ns([]) is None
    assert distance_ns([cpu]) is None
    assert distance_ns([cpu, 100_000]) is None  # no such processor
    assert meter(Machine(), 1)() is None


def test_measuring_leaves_no_thread_and_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for cpus in (sorted(os.sched_getaffinity(0)), [0, 100_000]):
        distance_ns(cpus)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_a_distance_counts_as_the_same_within_the_tolerance() -> None:
    assert moved([NEAR, NEAR * TOLERANCE * 0.99, NEAR / TOLERANCE * 1.01], NEAR) is None
    assert moved([], NEAR) is None
    assert moved([FAR], None) is None
    assert "farther apart (18.6 ns for a cache line that both write, usually 5.7)" in str(moved([NEAR, FAR], NEAR))
    assert "nearer to each other" in str(moved([NEAR], FAR))


def distances(*values: float | None) -> core_distance.Distance:
    """Return a meter that tells one value after the other, the last again and again."""

    def told() -> Iterator[float | None]:
        yield from values
        while True:
            yield values[-1]

    return told().__next__


def test_a_test_does_not_count_that_saw_the_cores_elsewhere(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    watching = watch.Watch(machine, distances(NEAR, None, FAR))
    reason, seen = watching.reason(0.0, sustained=False, usual_ns=NEAR)
    assert reason is None  # before it, and nobody could tell after it
    assert seen["core_distances_ns"] == [NEAR]
    reason, seen = watching.reason(0.0, sustained=False, usual_ns=NEAR)
    assert "moved its processors farther apart" in str(reason)
    assert seen["core_distances_ns"] == [NEAR, FAR]
    assert watching.reason(0.0, sustained=False)[0] is None  # nobody knows what is usual


def test_the_host_is_waited_for_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MOVED_STEP_S", 0.01)
    said: list[str] = []
    checked: list[int] = []
    back = watch.wait_until_back(distances(FAR, FAR, NEAR), NEAR, 5.0, said.append, lambda: checked.append(1))
    assert back < 1.0
    assert len(checked) == 2
    assert len(said) == 1 and "waiting for it to move them back, at most 5 s more" in said[0]
    assert 0.05 <= watch.wait_until_back(distances(FAR), NEAR, 0.05, said.append, lambda: None) < 1.0
    assert watch.wait_until_back(distances(FAR), None, 5.0, said.append, lambda: None) < 0.1
