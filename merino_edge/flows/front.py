"""What the small chart in a terminal shows of a search: scores against the cost that was limited first."""

from __future__ import annotations

from dataclasses import dataclass

from merino_edge.flows.report_run import read_run
from merino_edge.flows.report_sections import make_landscape
from merino_edge.report.axis import tick_text
from merino_edge.report.contents import FRONT, MEASURED, WINNER, Missing, quantity
from merino_edge.run import open_run

KINDS = (FRONT, MEASURED, WINNER)
"""In the order of drawing: what comes later stands on top."""


@dataclass(frozen=True)
class FrontChart:
    """Points and words of the chart.

    Attributes:
        points: Kind, cost and score, in the order of `KINDS`.
        limit: Upper limit on the cost, None where it was not limited.
        cost: What stands below, in words.
        score: What stands beside, in words.
        low: Least cost shown, in words.
        high: Largest cost shown, in words.
        limited: The limit, in words.
        range: Costs shown.
        bottom: Least score, in words.
        top: Largest score, in words.
    """

    points: tuple[tuple[str, float, float], ...]
    limit: float | None
    cost: str
    score: str
    low: str
    high: str
    limited: str | None
    range: tuple[float, float]
    bottom: str
    top: str


def front_chart(run: str) -> FrontChart | None:
    """Return the chart of a run that was searched, None where there are too few points for one."""
    landscape = make_landscape(read_run(open_run(run)))
    if isinstance(landscape, Missing) or not landscape.axes:
        return None
    axis = landscape.axes[0]
    points = [(p.kind, p.costs[axis.key], p.score) for p in landscape.points if p.kind in KINDS and axis.key in p.costs]
    costs = [cost for _, cost, _ in points] + ([axis.limit] if axis.limit is not None else [])
    scores = [score for _, _, score in points]
    if len(points) < 3 or max(costs) <= min(costs) or max(scores) <= min(scores):
        return None
    ends = [min(scores), max(scores)]
    return FrontChart(
        points=tuple(sorted(points, key=lambda p: KINDS.index(p[0]))),
        limit=axis.limit,
        cost=axis.label,
        score=landscape.score_name,
        low=quantity(min(costs), axis.unit),
        high=quantity(max(costs), axis.unit),
        limited=None if axis.limit is None else quantity(axis.limit, axis.unit),
        range=(min(costs), max(costs)),
        bottom=tick_text(ends[0], ends, None),
        top=tick_text(ends[1], ends, None),
    )
