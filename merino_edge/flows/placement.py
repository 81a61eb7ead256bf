"""Where the processors of a virtual machine stood while something was measured, and whether that is usual.

Its host moves them over its own cores. Where two of them share a cache for a while and then do not, the same model
takes another time by a half or more, and the kernel's counters show nothing. The agent measures how far apart the
cores stand (`merino_edge/agent/core_distance.py`); here it is found out what is usual, by what most records tell.
On a board the distance never changes, and every record counts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from merino_edge.agent.core_distance import TOLERANCE, is_same_place, moved
from merino_edge.measurement import Measurement

LEAST_SHARE = 1 / 3  # of the records: a host that moves a machine often leaves it in two places, half the time each
LEAST_RECORDS = 4  # before anything is called usual
NEWEST_RECORDS = 100  # that tell what is usual: the host may move a machine for good


def distances_ns(record: Measurement) -> list[float]:
    """Return how far apart the cores stood before, during and after a test; what is no distance is left out."""
    told = record.conditions.get("core_distances_ns")
    every = told if isinstance(told, (list, tuple)) else ()
    return [ns for ns in map(as_distance_ns, every) if ns is not None]


def as_distance_ns(told: object) -> float | None:
    """Return what a device tells as a distance, None where it is none."""
    is_number = type(told) in (int, float) and math.isfinite(told) and told > 0  # type: ignore[arg-type, operator]
    return float(told) if is_number else None  # type: ignore[arg-type]


def usual_distance_ns(records: Iterable[Measurement]) -> float | None:
    """Return the distance that most of the newest records agree on, the nearest of equals; None where few agree.

    Args:
        records: In the order they were taken.
    """
    known = [found for found in map(distances_ns, records) if found][-NEWEST_RECORDS:]
    if len(known) < LEAST_RECORDS:
        return None
    steady = [statistics.median(found) for found in known if max(found) <= TOLERANCE * min(found)]
    if not steady:
        return None
    near = {centre: sum(is_same_place(one, centre) for one in steady) for centre in sorted(steady)}
    most = max(near, key=lambda centre: near[centre])
    if near[most] < LEAST_SHARE * len(known):
        return None
    return statistics.median(one for one in steady if is_same_place(one, most))


def is_usual(record: Measurement, usual_ns: float | None) -> bool:
    """Say whether a record was taken while the cores stood where they usually do, or nobody can tell."""
    return usual_ns is None or all(is_same_place(ns, usual_ns) for ns in distances_ns(record))


def counting(records: Sequence[Measurement], place_ns: float | None = None) -> list[Measurement]:
    """Return the valid records that were taken while the cores stood at a place, or nobody can tell.

    Args:
        records: Of one key but for model and test, in the order they were taken.
        place_ns: The distance there; None for the usual one.
    """
    valid = [r for r in records if r.valid]
    place = usual_distance_ns(valid) if place_ns is None else place_ns
    return [r for r in valid if is_usual(r, place)]


def away(records: Iterable[Measurement], place_ns: float) -> list[Measurement]:
    """Return the valid records during the whole of which the cores stood elsewhere than at a place."""
    told = [(r, distances_ns(r)) for r in records if r.valid]
    return [r for r, found in told if found and not any(is_same_place(ns, place_ns) for ns in found)]


def elsewhere(records: Sequence[Measurement], earlier: Iterable[Measurement]) -> str | None:
    """Say that new records were taken where the cores do not usually stand, None where they were not.

    Args:
        records: The new ones.
        earlier: All that the device's log holds of the same key but for model and test.
    """
    usual = usual_distance_ns(r for r in earlier if r.valid)
    return moved([ns for record in records for ns in distances_ns(record)], usual)


def placement(records: Sequence[Measurement]) -> dict[str, Any]:
    """Return what a profile tells of it: the usual distance in ns, None where unknown, and how many records count."""
    valid = [r for r in records if r.valid]
    return {
        "core_distance_ns": usual_distance_ns(valid),
        "records": len(valid),
        "elsewhere": len(valid) - len(counting(valid)),
    }
