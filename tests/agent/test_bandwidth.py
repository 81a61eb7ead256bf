"""How fast memory is read: a plausible number, or the reason why there is none."""

from __future__ import annotations

from merino_edge.agent.bandwidth import PASSES, read_bytes_per_s


def test_memory_is_read_at_a_plausible_speed() -> None:
    found = read_bytes_per_s(1, 1 << 20, 1 << 30)
    assert 1e8 < float(str(found["bytes_per_s"])) < 1e12
    assert len(list(found["passes_ns"])) == PASSES  # type: ignore[call-overload]


def test_little_free_memory_is_a_reason_and_not_a_number() -> None:
    found = read_bytes_per_s(1, 1 << 20, 32 << 20)
    assert found["bytes_per_s"] is None
    assert "32 MiB" in str(found["reason"])
