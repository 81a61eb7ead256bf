"""Charts as SVG text: elements, shapes, and how a chart is framed for a page or as an image by itself.

Everything that comes from a run goes through `element`, which escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from merino_edge.report.theme import LIGHT, chart_rules

WIDE, NARROW = 760, 328
"""Widths that each chart is drawn at, in px: for a desk and paper, and for a phone."""

CHARACTER = 0.56  # mean width of a character over the height of its type


@dataclass(frozen=True)
class Table:
    """A chart's data for those who do not see it; cells are text already."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Drawing:
    """What a chart looks like at one width: its elements, and how high it became."""

    height: float
    elements: tuple[str, ...]


@dataclass(frozen=True)
class Chart:
    """A chart at any width.

    Attributes:
        key: Its name in identifiers and file names.
        title: What it shows, a few words.
        description: What is to be seen in it, for those who do not see it.
        draw: From a width in px to a drawing.
        table: The same data as text.
    """

    key: str
    title: str
    description: str
    draw: Callable[[float], Drawing]
    table: Table


def element(name: str, *content: str, text: str | None = None, **attributes: object) -> str:
    """Return one SVG or HTML element.

    Args:
        name: Of the element.
        content: Elements inside it, made by this function.
        text: Text inside it, escaped here.
        attributes: By name, `_` for `-`, a final `_` dropped; those that are None are left out.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is not None:
            shown = number(value) if isinstance(value, float) else str(value)
            parts.append(f'{key.rstrip("_").replace("_", "-")}="{escape(shown, quote=True)}"')
    inside = (escape(text, quote=False) if text is not None else "") + "".join(content)
    return f"<{' '.join(parts)}>{inside}</{name}>"


def number(value: float) -> str:
    """Write a coordinate with two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if math.isfinite(value) else "0"


def label(x: float, y: float, text: str, classes: str | None = None) -> str:
    """Return a line of text; `y` is its base line."""
    return element("text", text=text, x=x, y=y, class_=classes)


def line(x1: float, y1: float, x2: float, y2: float, classes: str) -> str:
    """Return a straight line."""
    return element("path", d=f"M{number(x1)} {number(y1)}L{number(x2)} {number(y2)}", class_=classes)


def polyline(points: Sequence[tuple[float, float]], classes: str) -> str:
    """Return a line through points."""
    if not points:
        return ""
    return element("path", d="M" + "L".join(f"{number(x)} {number(y)}" for x, y in points), class_=classes)


def box(
    x: float, y: float, width: float, height: float, classes: str, radius: float = 0, tip: str | None = None
) -> str:
    """Return a rectangle; with a tip it can be pointed at."""
    return element(
        "rect", x=x, y=y, width=max(0.0, width), height=height, rx=radius or None, class_=classes, data_tip=tip
    )


SHAPES: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    "triangle": ((0, -1.3), (1.25, 1), (-1.25, 1)),
    "star": tuple(
        (r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5))
        for i in range(10)
        for r in [2.1 - 1.2 * (i % 2)]
    ),
}


def mark(shape: str, x: float, y: float, size: float, classes: str, tip: str | None = None) -> str:
    """Return a mark around a place: `circle`, `cross`, or a name of `SHAPES`; with a tip it can be pointed at."""
    if shape == "circle":
        return element("circle", cx=x, cy=y, r=size, class_=classes, data_tip=tip)
    if shape == "cross":
        d = f"M{number(x - size)} {number(y - size)}l{number(2 * size)} {number(2 * size)}m0 {number(-2 * size)}"
        return element("path", d=f"{d}l{number(-2 * size)} {number(2 * size)}", class_=classes, data_tip=tip)
    corners = "L".join(f"{number(x + size * dx)} {number(y + size * dy)}" for dx, dy in SHAPES[shape])
    return element("path", d=f"M{corners}Z", class_=classes, data_tip=tip)


def text_width(text: str, size: float = 13) -> float:
    """Return about how wide a line of text is, in px."""
    return CHARACTER * size * len(text)


def wrapped(words: Sequence[str], width: float, size: float = 12) -> list[str]:
    """Break words into lines that fit a width."""
    lines: list[str] = []
    for word in words:
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def legend(entries: Sequence[tuple[str, str, str]], width: float, top: float) -> Drawing:
    """Lay out `(shape, classes, words)` in rows; `height` is that of the rows."""
    elements, x, y = [], 4.0, top
    for shape, classes, words in entries:
        needed = 20 + text_width(words, 12) + 12
        if x > 4 and x + needed > width:
            x, y = 4.0, y + 20
        if shape == "line":
            elements.append(line(x, y, x + 14, y, classes))
        else:
            elements.append(mark(shape, x + 7, y, 3.4 if shape == "star" else 5, classes))
        elements.append(label(x + 20, y + 4, words, "small"))
        x += needed
    return Drawing(y - top + 20, tuple(elements))


def framed(chart: Chart, width: float, classes: str) -> str:
    """Return a chart for a page, whose own style sheet colours it."""
    drawing, key = chart.draw(width), f"{chart.key}-{number(width)}"
    return element(
        "svg",
        element("title", text=chart.title, id=f"{key}-t"),
        element("desc", text=chart.description, id=f"{key}-d"),
        *drawing.elements,
        viewBox=f"0 0 {number(width)} {number(drawing.height)}",
        width=width,
        height=drawing.height,
        class_=f"chart {classes}",
        role="group",
        aria_labelledby=f"{key}-t",
        aria_describedby=f"{key}-d",
    )


def standalone(chart: Chart, width: float = WIDE) -> str:
    """Return a chart as an image by itself, for a paper: light, with its title and its own style."""
    drawing, head = chart.draw(width), 30
    rules = chart_rules(LIGHT.__getitem__)
    return (
        element(
            "svg",
            element("title", text=chart.title),
            element("desc", text=chart.description),
            element("style", text=rules),
            box(0, 0, width, drawing.height + head, "sheet"),
            label(4, 19, chart.title, "title"),
            element("g", *drawing.elements, transform=f"translate(0 {head})"),
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {number(width)} {number(drawing.height + head)}",
            width=width,
            height=drawing.height + head,
        )
        + "\n"
    )
