"""Writes `docs/commands.md` from the commands themselves; `--check` only says whether it is current.

.venv/bin/python tools/cli_reference.py
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import click

from merino_edge.cli.main import COMMANDS, cli
from merino_edge.cli.settings import options_of, variable_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "commands.md"
HEAD = """# Commands

Written by `tools/cli_reference.py` from the commands themselves; `merino-edge COMMAND --help` says the same. Quantities
carry units (`50ms`, `200MB`, `61M`); a limit is an upper one, or a range `A..B`. What the last column names may be
set in the [environment or in `config.toml`](settings.md) instead.
"""


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    with click.Context(cli, info_name="merino-edge") as context:
        for name in COMMANDS:
            command = cli.get_command(context, name)
            assert command is not None
            parts += _section(command, context, name, 2)
    return "\n".join(parts) + "\n"


def _section(command: click.Command, parent: click.Context, name: str, level: int) -> list[str]:
    """Return the heading, the words and the options of a command and of those below it."""
    context = click.Context(command, info_name=name, parent=parent)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = [f"{'#' * level} {name}", "", f"`{usage}`", "", *_text(command.help or ""), ""]
    options = [p for p in command.params if isinstance(p, click.Option)]
    settable = options_of(command) if parent.parent is None else {}
    if options:
        lines += ["| option | meaning | setting |", "| --- | --- | --- |"]
        lines += [_row(option, context, name, settable) for option in options]
        lines.append("")
    if isinstance(command, click.Group):
        for below, subcommand in command.commands.items():
            lines += _section(subcommand, context, below, level + 1)
    return lines


def _row(option: click.Option, context: click.Context, name: str, settable: dict[str, click.Option]) -> str:
    record = option.get_help_record(context)
    assert record is not None
    key = next((key for key, found in settable.items() if found is option), None)
    setting = f"`{variable_of(name, key)}`" if key else ""
    words = [re.sub(r"\s+", " ", text).replace("|", "\\|") for text in record]
    return f"| `{words[0]}` | {words[1]} | {setting} |"


def _text(text: str) -> list[str]:
    """Return a docstring as Markdown: what click prints as it stands becomes a block."""
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if paragraph.startswith("\b"):
            lines += ["", "```text", *(line.rstrip() for line in paragraph.splitlines()[1:]), "```"]
        else:
            lines += ["", " ".join(paragraph.split())]
    return lines[1:]


def main() -> int:
    """Write or check the page."""
    new = page()
    if "--check" in sys.argv[1:]:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != new)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
