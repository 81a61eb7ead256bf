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
}


def test_clean_run_counts() -> None:
    assert invalid_reason(CLEAN, CLEAN, 0.01) is None


def test_run_on_a_machine_that_tells_nothing_counts() -> None:
    nothing = dict.fromkeys(CLEAN)
    assert invalid_reason(nothing, nothing, None) is None


def test_throttling_before_the_run_that_is_over_counts() -> None:
    sticky = {"throttled_bits": 0x50000}
    assert invalid_reason({**CLEAN, **sticky}, {**CLEAN, **sticky}, 0.0) is None


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
    ],
)
def test_disturbed_run_does_not_count(before: dict[str, Any], after: dict[str, Any], words: str) -> None:
    reason = invalid_reason({**CLEAN, **before}, {**CLEAN, **after}, 0.0)
    assert reason is not None
    assert words in reason


def test_run_whose_threads_had_to_queue_does_not_count() -> None:
    assert invalid_reason(CLEAN, CLEAN, 0.5) == "other programs took the cores for 50% of the time"
