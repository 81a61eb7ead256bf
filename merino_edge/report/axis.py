"""Scales: from values to places, with round numbers marked on them, and the frame that two of them make."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from merino_edge.report.contents import quantity
from merino_edge.report.drawing import label, line

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """Maps values linearly from `low .. high` to `start .. end` px."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Return where a value stands."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Return about so many round values inside."""
        step = round_step((self.high - self.low) / max(1, count))
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def round_step(least: float) -> float:
    """Return the smallest of 1, 2, 2.5, 5 times a power of ten that is at least so much."""
    power = 10.0 ** math.floor(math.log10(least)) if least > 0 else 1.0
    return next(power * step for step in _STEPS if power * step >= least * (1 - 1e-9))


def scale_over(values: Iterable[float], start: float, end: float, zero: bool = False) -> Scale:
    """Return a scale that shows all values with some room around; `zero` lets it begin at 0."""
    found = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = (0.0 if zero else min(found)), max(found)
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    low = 0.0 if zero else (max(0.0, low - room) if low >= 0 else low - room)
    return Scale(low, high + room, start, end)


def tick_text(value: float, ticks: list[float], unit: str | None) -> str:
    """Write a tick: with its unit where it has one, else as short as the ticks can be told apart."""
    largest = max(abs(t) for t in ticks)
    if unit is not None or largest >= 10_000:
        text = "0" if value == 0 else quantity(value, unit or "count")
        return re.sub(r"(\.\d*?)0+(?= )", r"\1", text).replace(". ", " ")
    step = abs(ticks[1] - ticks[0]) if len(ticks) > 1 else largest or 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) + (
        round(step * 10 ** -math.floor(math.log10(step)), 6) == 2.5
    )
    return f"{value:.{decimals}f}"


def frame(x: Scale, y: Scale, x_label: str, x_unit: str, y_label: str) -> list[str]:
    """Return grid, ticks and names of both scales; room is needed for 46 px below and 32 above."""
    found = []
    for tick in (ticks := y.ticks(5)):
        place = y.place(tick)
        found.append(line(x.start, place, x.end, place, "grid"))
        found.append(label(x.start - 6, place + 4, tick_text(tick, ticks, None), "small end"))
    for tick in (ticks := x.ticks(6 if x.end - x.start > 400 else 3)):
        place = x.place(tick)
        found.append(line(place, y.start, place, y.end, "grid"))
        found.append(label(place, y.start + 18, tick_text(tick, ticks, x_unit), "small middle"))
    found += [line(x.start, y.start, x.end, y.start, "axis"), line(x.start, y.start, x.start, y.end, "axis")]
    found += [label(x.end, y.start + 38, f"{x_label} →", "small end"), label(4, y.end - 24, f"↑ {y_label}", "small")]
    return found
