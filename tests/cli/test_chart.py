"""The small chart of `search`: what stands where, and when it is not drawn at all."""

from __future__ import annotations

import pytest

from merino_edge.cli import chart as module
from merino_edge.cli.chart import HEIGHT, chart_lines, print_front
from merino_edge.flows.front import FrontChart

CHART = FrontChart(
    points=(("front", 1.0, 10.0), ("front", 2.0, 20.0), ("measured", 3.0, 15.0), ("winner", 3.5, 30.0)),
    limit=4.0,
    cost="latency of a token",
    score="entropy",
    low="1.00 ms",
    high="4.00 ms",
    limited="4.00 ms",
    range=(1.0, 4.0),
    bottom="10",
    top="30",
)


def plain(text: str, _: str) -> str:
    return text


def test_what_is_found_stands_highest_and_the_limit_on_the_right() -> None:
    lines = chart_lines(CHART, 80, False, plain)
    first, last = lines[1], lines[HEIGHT]
    assert first.startswith("30 │") and "★" in first and first.index("★") < first.index("┆")
    assert last.startswith("10 │·")
    assert all(line.endswith("┆") for line in lines[1 : HEIGHT + 1])
    assert sum("◆" in line for line in lines[1 : HEIGHT + 1]) == 1
    assert "limit 4.00 ms" in lines[-1]


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_it_fits_the_terminal(columns: int) -> None:
    lines = chart_lines(CHART, columns, False, plain)
    assert lines
    assert max(map(len, lines[1 : HEIGHT + 3])) <= columns


def test_a_terminal_too_narrow_gets_none() -> None:
    assert chart_lines(CHART, 20, False, plain) == []


def test_ascii_alone_where_a_terminal_knows_no_more() -> None:
    assert "".join(chart_lines(CHART, 80, True, plain)).isascii()


def test_every_mark_is_painted_with_its_colour() -> None:
    painted: set[tuple[str, str]] = set()
    chart_lines(CHART, 80, False, lambda text, colour: painted.add((text, colour)) or text)  # type: ignore[func-returns-value]
    assert painted == {("·", "cyan"), ("◆", "yellow"), ("★", "magenta"), ("┆", "red")}


def test_nothing_is_drawn_into_a_pipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merino_edge.flows.front.front_chart", lambda run: CHART)
    print_front("any")
    assert capsys.readouterr().out == ""


def test_no_colour_where_nobody_wants_any(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merino_edge.flows.front.front_chart", lambda run: CHART)
    monkeypatch.setattr(module.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    print_front("any")
    without = capsys.readouterr().out
    assert "★" in without or "*" in without
    assert "\x1b" not in without
    monkeypatch.delenv("NO_COLOR")
    print_front("any")
    assert "\x1b[35m" in capsys.readouterr().out
