"""The chart of scores: what was found, what else is on the front, what was measured, and where the limits are."""

from __future__ import annotations

from collections.abc import Iterable

from merino_edge.report.axis import Scale, frame, scale_over
from merino_edge.report.contents import FRONT, KNOWN, MEASURED, RELAXED, WINNER, Axis, Landscape, Point, quantity
from merino_edge.report.drawing import Chart, Drawing, Table, label, legend, line, mark, polyline

NAMES = {
    FRONT: "Pareto front (predicted)",
    KNOWN: "measured before",
    MEASURED: "measured in this search",
    RELAXED: "best score, were this limit so",
    WINNER: "found",
}
SHAPES = {FRONT: "circle", KNOWN: "cross", MEASURED: "diamond", RELAXED: "triangle", WINNER: "star"}
SIZES = {FRONT: 4.0, KNOWN: 3.5, MEASURED: 5.0, RELAXED: 4.5, WINNER: 4.6}
TABLE_ROWS = 60


def pareto_chart(landscape: Landscape, axis: Axis) -> Chart:
    """Draw scores against one cost."""
    points = [p for p in landscape.points if axis.key in p.costs]
    counts = ", ".join(f"{sum(p.kind == kind for p in points)} {NAMES[kind]}" for kind in NAMES if _any(points, kind))
    limit = f" The limit is {quantity(axis.limit, axis.unit)}." if axis.limit is not None else ""
    return Chart(
        key=f"pareto-{axis.key.replace('_', '-')}",
        title=f"Score against {axis.label}",
        description=f"Each mark is an architecture: {counts}. Higher is better, further left costs less.{limit}",
        draw=lambda width: _draw(landscape, axis, points, width),
        table=_table(landscape, axis, points),
    )


def _any(points: Iterable[Point], kind: str) -> bool:
    return any(p.kind == kind for p in points)


def _draw(landscape: Landscape, axis: Axis, points: list[Point], width: float) -> Drawing:
    points = _near(points, axis)
    kinds = [kind for kind in NAMES if _any(points, kind)]
    entries = [(SHAPES[k], k, NAMES[k]) for k in kinds]
    if axis.limit is not None:
        entries.append(("line", "limit", "limit"))
    head = legend(entries, width, 12)
    top, height = head.height + 46, (340.0 if width > 500 else 280.0)
    x = scale_over(_costs(points, axis), 56, width - 14)
    y = scale_over([p.score for p in points], top + height, top)
    elements = [
        *head.elements,
        *frame(x, y, axis.label, axis.unit, f"score: {landscape.score_name}"),
        *_limits(axis, x, y),
    ]
    elements += [polyline(_stairs([p for p in points if p.kind in (FRONT, WINNER)], axis, x, y), "front-line")]
    for p in points:
        if p.kind in (MEASURED, WINNER):
            elements += _from_prediction(p, axis, x, y)
    for kind in kinds:
        for p in sorted((p for p in points if p.kind == kind), key=lambda p: p.costs[axis.key]):
            across, up = x.place(p.costs[axis.key]), y.place(p.score)
            elements.append(mark(SHAPES[kind], across, up, SIZES[kind], f"point {kind}", _tip(p, axis, landscape)))
    return Drawing(top + height + 46, tuple(elements))


def _costs(points: list[Point], axis: Axis) -> list[float]:
    found = [p.costs[axis.key] for p in points] + [v for v in (axis.limit, axis.lower) if v is not None]
    return found + [p.upper[axis.key] for p in points if p.kind == WINNER and axis.key in p.upper]


def _near(points: list[Point], axis: Axis) -> list[Point]:
    """Leave out what was measured before and lies far from all else: it would press the rest into a corner."""
    most = 1.15 * max(_costs([p for p in points if p.kind != KNOWN], axis))
    highest = max(p.score for p in points if p.kind != KNOWN)
    return [p for p in points if p.kind != KNOWN or (p.costs[axis.key] <= most and p.score <= 1.15 * highest)]


def _limits(axis: Axis, x: Scale, y: Scale) -> list[str]:
    found = []
    for value, word in ((axis.limit, "at most"), (axis.lower, "at least")):
        if value is None:
            continue
        place = x.place(value)
        right = place > (x.start + x.end) / 2
        text = label(
            place + (-6 if right else 6),
            y.end - 7,
            f"{word} {quantity(value, axis.unit)}",
            "limit-text" + (" end" if right else ""),
        )
        found += [line(place, y.start, place, y.end, "limit"), text]
    return found


def _stairs(points: list[Point], axis: Axis, x: Scale, y: Scale) -> list[tuple[float, float]]:
    """Return the steps of the best score that any cost buys, of predictions alone."""
    costs = sorted((p.predicted.get(axis.key, p.costs[axis.key]), -p.score) for p in points)
    found: list[tuple[float, float]] = []
    best = float("-inf")
    for cost, negative in costs:
        if -negative > best:
            if found:
                found.append((x.place(cost), y.place(best)))
            best = -negative
            found.append((x.place(cost), y.place(best)))
    return found if len(found) > 1 else []


def _from_prediction(point: Point, axis: Axis, x: Scale, y: Scale) -> list[str]:
    """Join what was measured with what had been predicted; for what was found, with the end of its band too."""
    if axis.key not in point.predicted:
        return []
    height, classes = y.place(point.score), f"{point.kind}-line"
    start, here = x.place(point.predicted[axis.key]), x.place(point.costs[axis.key])
    found = [line(start, height, here, height, f"{classes} faint"), line(start, height - 5, start, height + 5, classes)]
    if point.kind == WINNER and axis.key in point.upper:
        end = x.place(point.upper[axis.key])
        found += [line(start, height, end, height, f"{classes} faint"), line(end, height - 8, end, height + 8, classes)]
    return found


def _tip(point: Point, axis: Axis, landscape: Landscape) -> str:
    lines = [NAMES[point.kind], point.architecture, f"score {point.score:.6g}"]
    for other in landscape.axes:
        if other.key in point.costs:
            text = f"{other.label} {quantity(point.costs[other.key], other.unit)}"
            if other.key in point.predicted:
                text += f", predicted {quantity(point.predicted[other.key], other.unit)}"
            if other.key in point.upper:
                text += f", at most {quantity(point.upper[other.key], other.unit)}"
            lines.append(text)
    return "\n".join(lines)


def _table(landscape: Landscape, axis: Axis, points: list[Point]) -> Table:
    order = [WINNER, MEASURED, RELAXED, FRONT, KNOWN]
    rows = sorted(points, key=lambda p: (order.index(p.kind), -p.score, p.costs[axis.key]))[:TABLE_ROWS]
    others = [a for a in landscape.axes if any(a.key in p.costs for p in rows)]
    return Table(
        ("what", "architecture", "score", *(a.label for a in others)),
        tuple(
            (NAMES[p.kind], p.architecture, f"{p.score:.6g}", *(quantity(p.costs.get(a.key), a.unit) for a in others))
            for p in rows
        ),
    )
