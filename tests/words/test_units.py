"""Quantities with units: what is read, what is refused, and what the refusal says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merino_edge.errors import UsageError
from merino_edge.units import (
    BYTES,
    COUNT,
    TIME_MS,
    Limit,
    format_bytes,
    format_count,
    format_ms,
    parse_bytes,
    parse_count,
    parse_energy_mj,
    parse_limit,
    parse_ms,
    parse_seconds,
    parse_share,
)


@pytest.mark.parametrize(
    ("text", "ms"), [("50ms", 50), ("1.5s", 1500), (" 2 h ", 7.2e6), ("3m", 180_000), ("20µs", 0.02), ("1e3us", 1)]
)
def test_a_time_becomes_milliseconds(text: str, ms: float) -> None:
    assert parse_ms(text) == pytest.approx(ms)


@pytest.mark.parametrize(
    ("text", "size"), [("64MB", 64_000_000), ("48MiB", 48 << 20), ("1GB", 10**9), ("2KiB", 2048), ("7B", 7)]
)
def test_a_size_becomes_bytes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "count"), [("61M", 61_000_000), ("8192", 8192), ("110G", 110 * 10**9), ("8_192", 8192)]
)
def test_a_count_becomes_a_number(text: str, count: int) -> None:
    assert parse_count(text) == count


def test_seconds_and_energy_have_their_own_units() -> None:
    assert parse_seconds("3m") == 180
    assert parse_energy_mj("0.2J") == pytest.approx(200)


def test_a_percentage_becomes_a_share() -> None:
    assert parse_share("5%") == pytest.approx(0.05)
    assert parse_share("0.5 %") == pytest.approx(0.005)
    for wrong in ("5", "0%", "-1%", "5percent", "nan%"):
        with pytest.raises(UsageError):
            parse_share(wrong)


def test_a_time_without_unit_is_refused_with_an_example() -> None:
    with pytest.raises(UsageError, match="'50' has no unit") as caught:
        parse_ms("50")
    assert caught.value.exit_code == 2
    assert caught.value.hint == "write it like 50ms"


def test_an_unknown_unit_is_refused_with_the_list() -> None:
    with pytest.raises(UsageError, match="unknown unit 'sec'") as caught:
        parse_ms("50sec")
    assert "ms" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["0ms", "-5ms", "0.0s"])
def test_a_time_must_be_greater_than_zero(text: str) -> None:
    with pytest.raises(UsageError, match="greater than zero"):
        parse_ms(text)


def test_a_time_out_of_range_is_said_to_be_too_large() -> None:
    with pytest.raises(UsageError, match="'1e999ms' is too large"):
        parse_ms("1e999ms")


@pytest.mark.parametrize("text", ["", "ms", "five ms", "5 5ms", "nanms", "infs", "0x10ms", "5ms;ls", "٥ms"])
def test_words_are_not_times(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time"):
        parse_ms(text)


def test_a_size_that_rounds_to_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one"):
        parse_bytes("0.1B")
    with pytest.raises(UsageError, match="at least one"):
        parse_count("0.4")


def test_a_value_is_an_upper_limit() -> None:
    assert parse_limit("50ms", parse_ms) == Limit(upper=50)
    assert parse_limit("50ms", parse_ms).admits(50)
    assert not parse_limit("50ms", parse_ms).admits(50.01)


@pytest.mark.parametrize("text", ["40ms..50ms", "40..50ms", "0.04s..50ms"])
def test_a_range_has_both_ends(text: str) -> None:
    limit = parse_limit(text, parse_ms)
    assert (limit.lower, limit.upper) == (pytest.approx(40), 50)
    assert limit.admits(40) or limit.admits(40.001)
    assert not limit.admits(39)


@pytest.mark.parametrize("text", ["50ms..40ms", "..50ms", "40ms..", "..", "1ms..2ms..3ms", "40MB..50ms", "40..50"])
def test_a_broken_range_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_limit(text, parse_ms)


@given(st.text(max_size=12))
def test_any_text_is_a_quantity_or_a_usage_error(text: str) -> None:
    for parse in (parse_ms, parse_bytes, parse_count, parse_energy_mj):
        try:
            assert parse_limit(text, parse).upper > 0
        except UsageError as error:
            assert error.hint


@given(st.floats(1e-3, 1e6), st.sampled_from(sorted(TIME_MS)))
def test_the_unit_scales_the_number(value: float, unit: str) -> None:
    assert parse_ms(f"{value:.6f}{unit}") == pytest.approx(value * TIME_MS[unit], abs=1e-6 * TIME_MS[unit])


@given(st.integers(1, 10**14))
def test_what_is_formatted_reads_back_within_half_a_percent(value: int) -> None:
    assert parse_bytes(format_bytes(value)) == pytest.approx(value, rel=0.006)
    assert parse_count(format_count(value)) == pytest.approx(value, rel=0.006)
    assert parse_ms(format_ms(value)) == pytest.approx(value, rel=0.006)


def test_formats_have_three_digits_and_a_unit() -> None:
    assert (format_bytes(63_630_000), format_bytes(512)) == ("63.6 MB", "512 B")
    assert (format_count(61_200_000), format_count(900)) == ("61.2 M", "900")
    assert (format_ms(3.421), format_ms(1234), format_ms(0.05)) == ("3.42 ms", "1.23 s", "50.0 us")


def test_every_unit_is_positive() -> None:
    assert all(scale > 0 for table in (TIME_MS, BYTES, COUNT) for scale in table.values())
