"""Quantities as people write them (`50ms`, `48MiB`, `61M`, `10..20ms`) and back.

Times become milliseconds (float), sizes bytes (int), counts plain numbers (int), energies
millijoules (float), percentages shares (float). A number without its unit is an error: 50 of what?
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from merino_edge.errors import UsageError

_NUMBER = re.compile(r"^\s*([+-]?[0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµ]*|%)\s*$")

TIME_MS = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4, "min": 6e4, "h": 3.6e6}
BYTES = {
    "B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
    "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40,
}  # fmt: skip
COUNT = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
SHARE = {"%": 1e-2}
ENERGY_MJ = {"uJ": 1e-3, "mJ": 1.0, "J": 1e3}


def _parse(text: str, table: dict[str, float], what: str, example: str) -> float:
    match = _NUMBER.match(text)
    if not match:
        raise UsageError(f"'{text}' is not a {what}", hint=f"write it like {example}")
    number, unit = match.groups()
    if unit not in table:
        if not unit:
            raise UsageError(f"'{text}' has no unit: {what} needs one", hint=f"write it like {example}")
        allowed = ", ".join(u for u in table if u)
        raise UsageError(
            f"'{text}': unknown unit '{unit}' for a {what}", hint=f"units: {allowed}; for example {example}"
        )
    value = float(number.replace("_", "")) * table[unit]
    if math.isinf(value):
        raise UsageError(f"'{text}' is too large for a {what}", hint=f"write it like {example}")
    if value <= 0:
        raise UsageError(f"'{text}': a {what} must be greater than zero", hint=f"write it like {example}")
    return value


def parse_ms(text: str) -> float:
    """Parse a time (`50ms`, `1.5s`, `2h`) to milliseconds."""
    return _parse(text, TIME_MS, "time", "50ms")


def parse_seconds(text: str) -> float:
    """Parse a time to seconds."""
    return _parse(text, TIME_MS, "time", "5m") / 1e3


def parse_bytes(text: str) -> int:
    """Parse a size (`64MB`, `48MiB`) to bytes."""
    return _whole(text, _parse(text, BYTES, "size", "64MB"), "size", "64MB")


def parse_count(text: str) -> int:
    """Parse a count (`61M`, `110G`, `8192`) to a number."""
    return _whole(text, _parse(text, COUNT, "count", "61M"), "count", "61M")


def _whole(text: str, value: float, what: str, example: str) -> int:
    if round(value) < 1:
        raise UsageError(f"'{text}': a {what} must be at least one", hint=f"write it like {example}")
    return round(value)


def parse_energy_mj(text: str) -> float:
    """Parse an energy (`30mJ`, `0.2J`) to millijoules."""
    return _parse(text, ENERGY_MJ, "energy", "30mJ")


def parse_share(text: str) -> float:
    """Parse a percentage (`5%`) to a share."""
    return _parse(text, SHARE, "percentage", "5%")


@dataclass(frozen=True)
class Limit:
    """What a quantity may be: at most `upper`, and at least `lower` where a range was given."""

    upper: float
    lower: float | None = None

    def admits(self, value: float) -> bool:
        """Say whether `value` lies inside."""
        return value <= self.upper and (self.lower is None or value >= self.lower)


def parse_limit(text: str, parse: Callable[[str], float]) -> Limit:
    """Parse `50ms` (an upper limit) or `40ms..50ms` / `40..50ms` (a range)."""
    if ".." not in text:
        return Limit(upper=parse(text))
    low, _, high = text.partition("..")
    match = _NUMBER.match(high)
    if match and low.strip() and not re.search(r"[A-Za-zµ]\s*$", low):
        low += match.group(2)  # 40..50ms: the unit of the end serves both
    lower, upper = parse(low), parse(high)
    if lower > upper:
        raise UsageError(f"'{text}': the range is empty", hint="write the smaller value first")
    return Limit(upper=upper, lower=lower)


_BYTES_STEPS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
_COUNT_STEPS = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))
_MS_STEPS = (("s", 1e3), ("ms", 1.0), ("us", 1e-3), ("ns", 1e-6))


def format_bytes(value: float) -> str:
    """Format bytes in decimal units with three significant digits: ``63.6 MB``."""
    return _scaled(value, _BYTES_STEPS)


def format_count(value: float) -> str:
    """Format a count: ``61.2 M``."""
    return _scaled(value, _COUNT_STEPS).strip()


def format_ms(value: float) -> str:
    """Format milliseconds: ``3.42 ms``, ``1.2 s``."""
    return _scaled(value, _MS_STEPS)


def format_limited(name: str, value: float) -> str:
    """Format a quantity that a search can limit, by its name, with four significant digits: ``61.23 M``."""
    if name.endswith("_mj"):
        return f"{value:.4g} mJ"
    steps = _MS_STEPS if name.endswith("_ms") else _BYTES_STEPS if name.endswith("_bytes") else _COUNT_STEPS
    return _scaled(value, steps, 1).strip()


def _scaled(value: float, steps: tuple[tuple[str, float], ...], more: int = 0) -> str:
    for unit, size in steps:
        if abs(value) >= size or (unit, size) == steps[-1]:
            scaled = value / size
            if size == 1.0 and unit in ("B", ""):
                return f"{scaled:.0f} {unit}"
            digits = 2 if abs(scaled) < 10 else 1 if abs(scaled) < 100 else 0
            return f"{scaled:.{digits + more}f} {unit}"
    raise AssertionError("unreachable")
