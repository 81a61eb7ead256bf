"""The conditions a measurement is taken in, and whether it counts.

Everything is read before and after. Whether other programs disturbed it is judged by evidence of this
very process where the kernel gives it: how long its threads stood in the queue for a core.
"""

from __future__ import annotations

import os
import re
import time
from typing import Callable, Sequence

from merino_edge.agent import facts, sensors
from merino_edge.agent.facts import Machine

QUEUED_LIMIT = 0.25  # share of the time that a thread may wait for a core before the run is called disturbed
OTHERS_LIMIT = 0.5  # cores that other programs may use where the kernel tells nothing of our own queue
SWAP_LIMIT_BYTES = 4 << 20
HOT_C = 80.0  # where the kernel names no limit: a Raspberry Pi's firmware begins to slow down there
COOLER_C = 10.0  # below that a measurement may begin
_HEAT_BITS, _SOFT_LIMIT_BIT, _UNDER_VOLTAGE_BIT = 0b1110, 0b1000, 0b0001
_PAGE_BYTES = 4096
_TICKS_PER_S = 100  # of /proc/stat, on every Linux of today
THROTTLE_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}


def snapshot(machine: Machine) -> dict[str, object]:
    """Return what may change during a measurement."""
    memory = facts.memory(machine)
    return {
        "temperature_c": facts.temperature_c(machine),
        "temperature_limit_c": _limit_c(machine),
        "clocks_khz": _numbers(machine, "/sys/devices/system/cpu/cpufreq/policy*/scaling_cur_freq") or None,
        "highest_clocks_khz": _numbers(machine, "/sys/devices/system/cpu/cpufreq/policy*/scaling_max_freq") or None,
        "governor": facts.governor(machine),
        "power_mode": facts.power_mode(machine),
        "throttled_bits": facts.throttled_bits(machine),
        "cooled_down": sensors.cooled_down(machine),
        "overcurrent_events": _sum(_numbers(machine, "/sys/class/hwmon/hwmon*/oc*_event_cnt")),
        "load1": facts.load1(machine),
        "memory_available_bytes": memory["available"],
        "swap_used_bytes": memory["swap_used"],
        "swapped_pages": _swapped_pages(machine),
        "busy_s": _busy_s(machine),
        "own_s": time.process_time(),
        "at_s": time.monotonic(),
    }


def _numbers(machine: Machine, pattern: str) -> list[int]:
    found = (machine.number("/" + str(path.relative_to(machine.root))) for path in machine.paths(pattern))
    return [value for value in found if value is not None]


def _sum(values: list[int]) -> int | None:
    return sum(values) if values else None


def _limit_c(machine: Machine) -> float | None:
    """Return the lowest temperature at which the kernel slows the processor (a passive trip point)."""
    limits = []
    for path in machine.paths("/sys/class/thermal/thermal_zone*/trip_point_*_type"):
        base = "/" + str(path.relative_to(machine.root))[: -len("_type")]
        value = machine.number(base + "_temp")
        if machine.text(base + "_type") == "passive" and value is not None and 40_000 <= value < 150_000:
            limits.append(value / 1000)
    return min(limits) if limits else None


def _swapped_pages(machine: Machine) -> int | None:
    """Return how many pages went to or came from swap since boot."""
    found = re.findall(r"^pswp(?:in|out) (\d{1,18})$", machine.text("/proc/vmstat") or "", re.M)
    return sum(int(n) for n in found) if len(found) == 2 else None


def _busy_s(machine: Machine) -> float | None:
    """Return how many seconds all cores together were busy since boot (but not idle or waiting for a disk)."""
    match = re.match(r"cpu +((?:\d{1,18} ?){7,})", machine.text("/proc/stat") or "")
    if match is None:
        return None
    user, nice, system, _, _, *interrupts = (int(n) for n in match.group(1).split()[:8])
    return (user + nice + system + sum(interrupts)) / _TICKS_PER_S


def queued_ns() -> int | None:
    """Return how long all threads of this process have waited for a core so far."""
    total = 0
    try:
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/schedstat", encoding="ascii") as stream:
                total += int(stream.read().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return total


def queued_per_thread(threads: int) -> Callable[[], float | None]:
    """Return what tells how long each of so many threads has waited for a core so far, on average."""

    def average() -> float | None:
        total = queued_ns()
        return None if total is None else total / threads

    return average


def is_hot(now: dict[str, object]) -> bool:
    """Say whether a board is too hot to begin: slowed for its heat now, or within some degrees of that."""
    bits = now.get("throttled_bits")
    if isinstance(bits, int) and bits & (_SOFT_LIMIT_BIT if bits & _UNDER_VOLTAGE_BIT else _HEAT_BITS):
        return True  # a weak supply caps and throttles too, and no waiting helps against that
    heat, limit = now.get("temperature_c"), now.get("temperature_limit_c")
    near = isinstance(heat, float) and heat > (limit if isinstance(limit, float) else HOT_C) - COOLER_C
    return now.get("cooled_down") is True or near


def invalid_reason(
    before: dict[str, object],
    after: dict[str, object],
    queued_share: float | None,
    during: Sequence[dict[str, object]] = (),
    sustained: bool = False,
) -> str | None:
    """Return why a measurement between two snapshots does not count, None where it does.

    Args:
        before: Snapshot.
        after: Snapshot.
        queued_share: Share of the time that its threads stood in the queue for a core, where known.
        during: Snapshots between its passes.
        sustained: The hot state is what was asked for: slowing down for heat is part of it.
    """
    every = [before, *during, after]
    reasons = [_throttled(every, sustained), _too_hot(every, sustained)]
    for name, word in (
        ("governor", "frequency governor"),
        ("power_mode", "power mode"),
        ("highest_clocks_khz", "highest clock allowed"),
    ):
        changed = [s.get(name) for s in every if s.get(name) != before.get(name)]
        if changed and not (name == "highest_clocks_khz" and sustained):
            reasons.append(f"the {word} changed from {before.get(name)} to {changed[0]}")
            break
    reasons += [_swapped(before, after), _taken_away(before, after, queued_share)]
    events = _growth(before, after, "overcurrent_events")
    if events:
        reasons.append(f"the supply gave too little current {events:.0f} times; use a stronger power supply")
    return "; ".join(reason for reason in reasons if reason) or None


def _growth(before: dict[str, object], after: dict[str, object], name: str) -> float:
    """Return by how much a counter grew, 0 where it is not known."""
    first, last = before.get(name), after.get(name)
    if isinstance(first, (int, float)) and isinstance(last, (int, float)):
        return last - first
    return 0


def _throttled(every: Sequence[dict[str, object]], sustained: bool) -> str | None:
    known = [bits for bits in (s.get("throttled_bits") for s in every) if isinstance(bits, int)]
    acting = 0
    for bits in known:
        new = (bits >> 16) & ~(known[0] >> 16)  # happened since boot, and not before the run
        acting |= (bits | new) & 0xF
    if sustained:
        acting &= ~_HEAT_BITS
    words = [word for bit, word in THROTTLE_BITS.items() if acting >> bit & 1]
    if not words:
        return None
    advice = "; use a stronger power supply" if acting & 1 else "; let it cool, or give it a fan"
    return "the board was throttled (" + ", ".join(words) + ")" + advice


def _too_hot(every: Sequence[dict[str, object]], sustained: bool) -> str | None:
    if sustained:
        return None
    if any(s.get("cooled_down") is True for s in every):
        return "the kernel slowed the processor for its heat; let it cool, give it a fan, or measure with --sustained"
    for s in every:
        heat, limit = s.get("temperature_c"), s.get("temperature_limit_c")
        most = limit if isinstance(limit, float) else HOT_C
        if isinstance(heat, float) and heat >= most:
            return f"the board was {heat:.0f} C hot, where {most:.0f} C slow it; let it cool, or give it a fan"
    return None


def _swapped(before: dict[str, object], after: dict[str, object]) -> str | None:
    grown = max(_growth(before, after, "swap_used_bytes"), _growth(before, after, "swapped_pages") * _PAGE_BYTES)
    return f"the device swapped {grown / (1 << 20):.0f} MiB" if grown > SWAP_LIMIT_BYTES else None


def _taken_away(before: dict[str, object], after: dict[str, object], queued_share: float | None) -> str | None:
    """Say whether other programs took the cores: by this process's queue, else by what all others did."""
    if queued_share is None:
        seconds = _growth(before, after, "at_s")
        if "own_s" not in before or seconds <= 0:
            return None
        others = _growth(before, after, "busy_s") - _growth(before, after, "own_s")
        queued_share = others / seconds if before.get("busy_s") is not None else 0.0
        queued_share = queued_share if queued_share > OTHERS_LIMIT else 0.0
    if queued_share > QUEUED_LIMIT:
        return f"other programs took the cores for {queued_share:.0%} of the time"
    return None
