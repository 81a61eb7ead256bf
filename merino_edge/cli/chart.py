"""A small chart in the terminal, of characters alone: where the front is, what was measured, what was found."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from merino_edge.cli.output import styled

if TYPE_CHECKING:
    from merino_edge.flows.front import FrontChart

HEIGHT, WIDEST, NARROWEST = 12, 64, 24
MARKS = {"front": ("·", "."), "measured": ("◆", "o"), "winner": ("★", "*"), "limit": ("┆", "|")}
"""By kind: the character, and the one where the terminal knows only ASCII."""
COLOURS = {"front": "cyan", "measured": "yellow", "winner": "magenta", "limit": "red"}
WORDS = {"front": "front, predicted", "measured": "measured", "winner": "found", "limit": "limit"}


def chart_lines(chart: FrontChart, columns: int, plain: bool, paint: Callable[[str, str], str]) -> list[str]:
    """Draw the chart.

    Args:
        chart: What to draw.
        columns: Of the terminal.
        plain: Use ASCII alone.
        paint: Colours a text, given both.
    """
    left = max(len(chart.top), len(chart.bottom))
    width = min(WIDEST, columns - left - 4)
    if width < NARROWEST:
        return []
    scores = [score for _, _, score in chart.points]
    low, high = chart.range

    def column(cost: float) -> int:
        return round((cost - low) / (high - low) * (width - 1))

    grid: list[list[str | None]] = [[None] * width for _ in range(HEIGHT)]
    if chart.limit is not None:
        for row in grid:
            row[column(chart.limit)] = "limit"
    for kind, cost, score in chart.points:
        height = round((score - min(scores)) / (max(scores) - min(scores)) * (HEIGHT - 1))
        grid[HEIGHT - 1 - height][column(cost)] = kind

    def cell(kind: str | None) -> str:
        return " " if kind is None else paint(MARKS[kind][plain], COLOURS[kind])

    bar, corner, dash = ("|", "+", "-") if plain else ("│", "└", "─")
    lines = [f"score ({chart.score}) against {chart.cost}"]
    for number, row in enumerate(grid):
        name = {0: chart.top, HEIGHT - 1: chart.bottom}.get(number, "")
        lines.append(f"{name:>{left}} {bar}{''.join(map(cell, row)).rstrip()}")
    lines.append(f"{'':>{left}} {corner}{dash * width}")
    lines.append(f"{'':>{left}}  {chart.low}{chart.high:>{max(1, width - len(chart.low))}}")
    shown = [kind for kind in MARKS if any(kind in row for row in grid)]
    words = {**WORDS, "limit": f"limit {chart.limited}"}
    lines.append(f"{'':>{left}}  " + "   ".join(f"{cell(kind)} {words[kind]}" for kind in shown))
    return lines


def print_front(run: str) -> None:
    """Print the chart of a run where a person looks on; nothing where stdout is no terminal."""
    if not sys.stdout.isatty():
        return
    from merino_edge.flows.front import front_chart

    chart = front_chart(run)
    if chart is None:
        return
    plain = "utf" not in (sys.stdout.encoding or "").lower()
    lines = chart_lines(chart, shutil.get_terminal_size().columns, plain, styled)
    if lines:
        click.echo("\n".join(["", *lines, ""]))
