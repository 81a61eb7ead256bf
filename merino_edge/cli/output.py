"""What the commands print: tables and JSON on stdout, progress and notes on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from merino_edge.progress import Progress, Silent, Task

SCHEMA_VERSION = 1


def print_json(document: Mapping[str, Any]) -> None:
    """Print exactly one JSON document on stdout."""
    click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **document}, indent=2, allow_nan=False))


def visible(text: str) -> str:
    """Return a model's text without what would steer a terminal: any token may hold an escape code."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Print a table on stdout; numbers to the right; plain text where stdout is no terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    width = None if sys.stdout.isatty() else 200
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=width, highlight=False).print(table)


def styled(text: str, colour: str) -> str:
    """Return text in a colour, plain where stdout is no terminal or `NO_COLOR` is set."""
    plain = not sys.stdout.isatty() or bool(os.environ.get("NO_COLOR"))
    return text if plain else click.style(text, fg=colour)


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Print `name  value` lines on stdout."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        click.echo(f"{name:<{width}}  {value}")


def windows(tokens: int, context_length: int, stride: int | None = None) -> str:
    """Say how a text was cut for a perplexity; without a stride no window overlaps another."""
    return f"{tokens:,} tokens, window {context_length}, stride {stride or context_length}"


def interval(value: float, upper: float, form: Callable[[float], str]) -> str:
    """Write the interval around a prediction, as wide below it as above."""
    return f"{form(max(0.0, 2 * value - upper))} to {form(upper)}"


class TerminalProgress:
    """Progress bars and notes on stderr; one line a step where stderr is no terminal."""

    def note(self, text: str) -> None:
        """Print one line."""
        click.echo(text, err=True)

    @contextmanager
    def task(self, text: str, total: float) -> Iterator[Task]:
        """Show a bar with the time left."""
        if not sys.stderr.isatty():
            click.echo(f"{text} ...", err=True)
            with Silent().task(text, total) as task:
                yield task
            return
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with RichProgress(*columns, console=Console(stderr=True), transient=False) as bars:
            yield _Bar(bars, bars.add_task(text, total=total))


class _Bar:
    def __init__(self, bars: Any, number: Any) -> None:
        self._bars, self._number = bars, number

    def update(self, done: float, text: str | None = None) -> None:
        changes = {} if text is None else {"description": text}
        self._bars.update(self._number, completed=done, **changes)


def terminal_progress(quiet: bool = False) -> Progress:
    """Return where a command reports to."""
    return Silent() if quiet else TerminalProgress()
