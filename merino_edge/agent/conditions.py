"""The conditions a measurement is taken in, and whether it counts.

Everything is read before and after. Whether other programs disturbed it is judged by evidence of this
very process where the kernel gives it: how long its threads stood in the queue for a core.
"""

from __future__ import annotations

import os

from merino_edge.agent import facts
from merino_edge.agent.facts import Machine

QUEUED_LIMIT = 0.25  # share of the time that a thread may wait for a core before the run is called disturbed
THROTTLE_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}


def snapshot(machine: Machine) -> dict[str, object]:
    """Return what may change during a measurement."""
    clocks = []
    for path in machine.paths("/sys/devices/system/cpu/cpufreq/policy*/scaling_cur_freq"):
        value = machine.number("/" + str(path.relative_to(machine.root)))
        if value is not None:
            clocks.append(value)
    memory = facts.memory(machine)
    return {
        "temperature_c": facts.temperature_c(machine),
        "clocks_khz": clocks or None,
        "governor": facts.governor(machine),
        "power_mode": facts.power_mode(machine),
        "throttled_bits": facts.throttled_bits(machine),
        "load1": facts.load1(machine),
        "memory_available_bytes": memory["available"],
        "swap_used_bytes": memory["swap_used"],
    }


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


def invalid_reason(before: dict[str, object], after: dict[str, object], queued_share: float | None) -> str | None:
    """Return why a measurement between two snapshots does not count, None where it does.

    Args:
        before: Snapshot.
        after: Snapshot.
        queued_share: Share of the time that its threads stood in the queue for a core, where known.
    """
    reasons = []
    bits_before, bits_after = before.get("throttled_bits"), after.get("throttled_bits")
    if isinstance(bits_before, int) and isinstance(bits_after, int):
        new = (bits_after >> 16) & ~(bits_before >> 16)  # happened since boot, and not before the run
        acting = (bits_before | bits_after | new) & 0xF
        words = [word for bit, word in THROTTLE_BITS.items() if acting >> bit & 1]
        if words:
            advice = "; use a stronger power supply" if acting & 1 else "; let it cool, or give it a fan"
            reasons.append("the board was throttled (" + ", ".join(words) + ")" + advice)
    for name, word in (("governor", "frequency governor"), ("power_mode", "power mode")):
        if before.get(name) != after.get(name):
            reasons.append(f"the {word} changed from {before.get(name)} to {after.get(name)}")
            break
    swap_before, swap_after = before.get("swap_used_bytes"), after.get("swap_used_bytes")
    if isinstance(swap_before, int) and isinstance(swap_after, int) and swap_after - swap_before > 4 << 20:
        reasons.append(f"the device swapped {(swap_after - swap_before) >> 20} MiB")
    if queued_share is not None and queued_share > QUEUED_LIMIT:
        reasons.append(f"other programs took the cores for {queued_share:.0%} of the time")
    return "; ".join(reasons) or None
