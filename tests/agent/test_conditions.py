"""Which measurements count: each disturbance is named, and a clean run is not accused."""

from __future__ import annotations

from typing import Any

import pytest

from merino_edge.agent.conditions import invalid_reason

CLEAN: dict[str, Any] = {
    "throttled_bits": 0,
    "governor": "ondemand",
    "power_mode": "ondemand",
    "swap_used_bytes": 0,
    "queued_ns": 0,
    "monotonic_ns": 0,
}
SECOND = {**CLEAN, "monotonic_ns": 10**9}


def test_clean_run_counts() -> None:
    assert invalid_reason(CLEAN, SECOND, threads=4) is None


def test_run_on_a_machine_that_tells_nothing_counts() -> None:
    before = dict.fromkeys(CLEAN) | {"monotonic_ns": 0}
    assert invalid_reason(before, {**before, "monotonic_ns": 10**9}, threads=1) is None


def test_throttling_before_the_run_that_is_over_counts() -> None:
    sticky = {"throttled_bits": 0x50000}
    assert invalid_reason({**CLEAN, **sticky}, {**SECOND, **sticky}, threads=4) is None


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({}, {"throttled_bits": 0x4}, "throttled (throttled)"),
        ({"throttled_bits": 0x4}, {}, "let it cool"),
        ({}, {"throttled_bits": 0x40000}, "throttled (throttled)"),
        ({}, {"throttled_bits": 0x10001}, "stronger power supply"),
        ({}, {"throttled_bits": 0x80008}, "soft temperature limit"),
        ({}, {"governor": "powersave"}, "governor changed from ondemand to powersave"),
        ({}, {"power_mode": "15W"}, "power mode changed"),
        ({}, {"swap_used_bytes": 64 << 20}, "swapped 64 MiB"),
        ({}, {"queued_ns": 2 * 10**9}, "took the cores for 50% of the time"),
    ],
)
def test_disturbed_run_does_not_count(before: dict[str, Any], after: dict[str, Any], words: str) -> None:
    reason = invalid_reason({**CLEAN, **before}, {**SECOND, **after}, threads=4)
    assert reason is not None
    assert words in reason
