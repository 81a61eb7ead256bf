"""Options and parameter types that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from merino_edge.errors import UsageError
from merino_edge.units import (
    parse_bytes,
    parse_count,
    parse_energy_mj,
    parse_limit,
    parse_ms,
    parse_seconds,
    parse_share,
)

_F = TypeVar("_F", bound=Callable[..., Any])


if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # older clicks have no generic one


class NamedText(_ParamType):
    """A text, as it is: what offers names to a shell builds on it."""

    name = "text"


class Quantity(_ParamType):
    """A value with a unit; anything else is a usage error that shows how to write it."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        """Name the metavar and the parser of `merino_edge.units`."""
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text, naming the option in the error."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except UsageError as error:
            name = param.opts[0] if param else "value"
            raise UsageError(f"{name}: {error.message}", hint=error.hint) from error


SECONDS = Quantity("TIME", parse_seconds)
COUNT = Quantity("COUNT", parse_count)
SHARE = Quantity("PERCENT", parse_share)
MS_LIMIT = Quantity("TIME", lambda text: parse_limit(text, parse_ms))
BYTES_LIMIT = Quantity("SIZE", lambda text: parse_limit(text, parse_bytes))
COUNT_LIMIT = Quantity("COUNT", lambda text: parse_limit(text, parse_count))
ENERGY_LIMIT = Quantity("ENERGY", lambda text: parse_limit(text, parse_energy_mj))


def json_option(command: _F) -> _F:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")(command)


def device_option(command: _F) -> _F:
    """Add `--device`."""
    text = "Device to use (default: $MERINO_EDGE_DEVICE, then the configured one, then local)."
    return click.option("--device", "-d", metavar="NAME", help=text)(command)


def ask_person() -> Callable[..., str | None] | None:
    """Return a way to ask the person at the terminal, None where there is nobody."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None

    def ask(question: str, secret: bool = False) -> str | None:
        return str(click.prompt(question.rstrip(": "), err=True, hide_input=secret, default="")) or None

    return ask
