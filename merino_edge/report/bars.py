"""Wholes and their parts: latency and memory, predicted beside measured, and limits beside what became of them."""

from __future__ import annotations

from merino_edge.report.axis import Scale, tick_text
from merino_edge.report.contents import (
    BROKEN,
    KEPT,
    PART_LABELS,
    Bar,
    Breakdown,
    Promise,
    quantity,
)  # fmt: skip
from merino_edge.report.drawing import Chart, Drawing, Table, box, label, line, mark, text_width

LETTERS = "ABCDEFGHIJ"
BAR, GAP = 30.0, 60.0


def breakdown_chart(breakdown: Breakdown) -> Chart:
    """Draw the parts of a whole as bars, one under the other."""
    totals = "; ".join(f"{bar.label} {quantity(bar.total, breakdown.unit)}" for bar in breakdown.bars)
    kinds = _kinds(breakdown)
    rows = [(PART_LABELS[k], *(_cell(bar, k, breakdown.unit) for bar in breakdown.bars)) for k in kinds]
    whole = ("in all", *(quantity(bar.total, breakdown.unit) for bar in breakdown.bars))
    return Chart(
        key=breakdown.key,
        title=breakdown.title,
        description=f"Bars of the same scale: {totals}.",
        draw=lambda width: _draw(breakdown, kinds, width),
        table=Table(("part", *(bar.label for bar in breakdown.bars)), (*rows, whole)),
    )


def _kinds(breakdown: Breakdown) -> list[str]:
    """Return the parts that occur, in one order for all bars."""
    found = {part.kind for bar in breakdown.bars for part in bar.parts if part.value > 0}
    return [kind for kind in PART_LABELS if kind in found]


def _cell(bar: Bar, kind: str, unit: str) -> str:
    found = [part.value for part in bar.parts if part.kind == kind]
    return f"{quantity(found[0], unit)} ({found[0] / bar.total:.0%})" if found and bar.total else "-"


def _draw(breakdown: Breakdown, kinds: list[str], width: float) -> Drawing:
    unit, elements, top = breakdown.unit, [], 4.0
    most = max([bar.total for bar in breakdown.bars] + [bar.high or 0.0 for bar in breakdown.bars]) or 1.0
    x = Scale(0.0, most * 1.03, 4.0, width - 8)
    for bar in breakdown.bars:
        text, between = f"{bar.label}: {quantity(bar.total, unit)}", ""
        if bar.low is not None and bar.high is not None:
            between = f"({quantity(bar.low, unit)} to {quantity(bar.high, unit)})"
        elements.append(label(4, top + 14, f"{text} {between}" if width > 500 else text, "strong"))
        if width <= 500 and between:
            top += 17
            elements.append(label(4, top + 14, between, "small"))
        elements += _bar(bar, kinds, x, top + 22, unit)
        top += 22 + GAP - 4
    elements.append(line(x.start, top - 4, x.end, top - 4, "axis"))
    for tick in (ticks := x.ticks(6 if width > 500 else 3)):
        place = x.place(tick)
        side = "small" if tick == 0 else ("small end" if place > x.end - 24 else "small middle")
        elements.append(line(place, top - 4, place, top + 1, "axis"))
        elements.append(
            label(min(place, x.end) + (4 if side == "small end" else 0), top + 15, tick_text(tick, ticks, unit), side)
        )
    key = _key(breakdown, kinds, width, top + 34)
    return Drawing(key.height, (*elements, *key.elements))


def _bar(bar: Bar, kinds: list[str], x: Scale, top: float, unit: str) -> list[str]:
    elements, at = [], 0.0
    values = {part.kind: part.value for part in bar.parts}
    for letter, kind in zip(LETTERS, kinds, strict=False):
        value = values.get(kind, 0.0)
        if value <= 0:
            continue
        start, end = x.place(at), x.place(at + value)
        tip = f"{bar.label}\n{PART_LABELS[kind]}: {quantity(value, unit)}, {value / bar.total:.1%}"
        elements.append(box(start, top, end - start, BAR, f"point part k-{kind}", tip=tip))
        if end - start >= 13 and len(kinds) > 1 and kind != "whole":
            elements.append(label((start + end) / 2, top + BAR / 2 + 5, letter, f"middle strong l-{kind}"))
        at += value
    if bar.low is not None and bar.high is not None:
        low, high, under = x.place(max(0.0, bar.low)), x.place(bar.high), top + BAR + 7
        elements.append(line(low, under, high, under, "whisker"))
        elements += [line(end, under - 5, end, under + 5, "whisker") for end in (low, high)]
    return elements


def _key(breakdown: Breakdown, kinds: list[str], width: float, top: float) -> Drawing:
    """List letter and part, with its value in each bar."""
    elements, columns = [], (2 if width > 700 else 1)
    if len(breakdown.bars) > 1:
        words = " / ".join(bar.label.partition(",")[0] for bar in breakdown.bars)
        elements.append(label(4, top + 10, f"part: {words}", "small"))
        top += 20
    for number, kind in enumerate(kinds):
        x, y = 4 + (number % columns) * width / columns, top + (number // columns) * 23
        elements.append(box(x, y - 1, 17, 17, f"part k-{kind}", radius=3))
        if kind != "whole":
            elements.append(label(x + 8.5, y + 12, LETTERS[number], f"middle strong l-{kind}"))
        values = [next((p.value for p in bar.parts if p.kind == kind and p.value > 0), None) for bar in breakdown.bars]
        words = " / ".join("–" if value is None else quantity(value, breakdown.unit) for value in values)
        elements.append(label(x + 25, y + 12, f"{PART_LABELS[kind]}: {words}", "small"))
    return Drawing(top + ((len(kinds) + columns - 1) // columns) * 23 + 4, tuple(elements))


def promise_chart(promises: tuple[Promise, ...]) -> Chart:
    """Draw each limit as a line over what was predicted and measured."""
    rows = tuple(
        (
            p.label,
            asked(p),
            quantity(p.predicted, p.unit)
            + (f", up to {quantity(p.predicted_upper, p.unit)}" if p.predicted_upper else ""),
            "counted" if p.exact else quantity(p.measured, p.unit),
            WORDS.get(p.state, "not measured yet"),
        )
        for p in promises
    )
    return Chart(
        key="limits",
        title="Limits",
        description="; ".join(
            f"{row[0]}: asked {row[1]}, predicted {row[2]}, measured {row[3]}: {row[4]}" for row in rows
        ),
        draw=lambda width: _gauges(promises, width),
        table=Table(("limit", "asked", "predicted", "measured", "verdict"), rows),
    )


WORDS = {KEPT: "kept", BROKEN: "not kept"}


def asked(promise: Promise) -> str:
    """Say in words what was asked."""
    if promise.lower is None:
        return f"at most {quantity(promise.upper, promise.unit)}"
    return f"{quantity(promise.lower, promise.unit)} to {quantity(promise.upper, promise.unit)}"


def _gauges(promises: tuple[Promise, ...], width: float) -> Drawing:
    elements, top = [], 4.0
    for p in promises:
        values = [v for v in (p.upper, p.predicted, p.predicted_upper, p.measured) if v is not None]
        x = Scale(0.0, 1.12 * max(values), 4.0, width - 6)
        state = {KEPT: "✓ kept", BROKEN: "✗ not kept"}.get(p.state, "≈ not measured")
        elements.append(label(4, top + 14, f"{p.label}: {asked(p)}", "strong"))
        if width > 500:
            elements.append(label(width - 6, top + 14, state, f"end state-{p.state}"))
        else:
            top += 19
            elements.append(label(4, top + 14, state, f"state-{p.state}"))
        middle = top + 36
        elements.append(box(x.start, top + 24, x.end - x.start, 24, "track", radius=4))
        if p.predicted is not None and p.predicted_upper is not None:
            low, high = x.place(p.predicted), x.place(p.predicted_upper)
            elements.append(box(low, middle - 5, high - low, 10, "band"))
            elements.append(line(high, middle - 8, high, middle + 8, "front-line"))
        if p.predicted is not None:
            word = "counted" if p.exact else "predicted"
            tip = f"{p.label}\n{word} {quantity(p.predicted, p.unit)}"
            tip += f", up to {quantity(p.predicted_upper, p.unit)}" if p.predicted_upper else ""
            elements.append(mark("circle", x.place(p.predicted), middle, 5, "point front", tip))
        if p.measured is not None and not p.exact:
            tip = f"{p.label}\nmeasured {quantity(p.measured, p.unit)}"
            elements.append(mark("diamond", x.place(p.measured), middle, 6, "point measured", tip))
        for limit in (p.upper, p.lower):
            if limit is not None:
                elements.append(line(x.place(limit), top + 20, x.place(limit), top + 52, "limit"))
        elements += _told(p, top + 66, width)
        top += 84 if width > 500 else 102
    return Drawing(top, tuple(elements))


def _told(promise: Promise, y: float, width: float) -> list[str]:
    """Write the numbers under a gauge, each behind its mark."""
    unit, x, found = promise.unit, 4.0, []
    entries = []
    if promise.predicted is not None:
        text = f"{'counted' if promise.exact else 'predicted'} {quantity(promise.predicted, unit)}"
        if promise.predicted_upper is not None:
            text += f", up to {quantity(promise.predicted_upper, unit)}"
        entries.append(("circle", "front", text))
    if promise.measured is not None and not promise.exact:
        entries.append(("diamond", "measured", f"measured {quantity(promise.measured, unit)}"))
    for shape, classes, text in entries:
        if x > 4 and x + 15 + text_width(text, 12) > width:
            x, y = 4.0, y + 18
        found += [mark(shape, x + 5, y - 4, 4.5, classes), label(x + 15, y, text, "small")]
        x += 15 + text_width(text, 12) + 14
    return found
