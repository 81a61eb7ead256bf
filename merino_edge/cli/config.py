"""`merino-edge config`."""

from __future__ import annotations

import os
from dataclasses import asdict

import click

from merino_edge.cli.options import json_option
from merino_edge.cli.output import print_json, print_table
from merino_edge.cli.settings import PREFIX, command_settings, first_level, options_of, variable_of
from merino_edge.errors import did_you_mean
from merino_edge.run import runs_root
from merino_edge.settings import VARIABLES, cache_home, config_file, data_home, read_settings

_OTHER_VARIABLES = ("MERINO_EDGE_SSH_CONFIG",)


@click.command("config")
@click.option("--all", "everything", is_flag=True, help="Also list every setting that has its default.")
@json_option
def command(as_json: bool, everything: bool) -> None:
    """Show your settings and where each comes from: flag > environment > file > default."""
    from merino_edge.cli.main import COMMANDS, cli

    settings, found, known = read_settings(), [], {*VARIABLES.values(), *_OTHER_VARIABLES}
    found += list(first_level(settings))
    with click.Context(cli) as context:
        for name in COMMANDS:
            subcommand = cli.get_command(context, name)
            assert subcommand is not None
            found += [s for s in command_settings(name, subcommand, settings) if everything or s.source != "default"]
            known |= {variable_of(name, option) for option in options_of(subcommand)}
    unknown = sorted(v for v in os.environ if v.startswith(PREFIX) and v not in known)
    folders = {"data": str(data_home()), "cache": str(cache_home()), "runs": str(runs_root())}
    document = {
        "file": str(config_file()),
        "exists": config_file().exists(),
        "folders": folders,
        "settings": [asdict(setting) for setting in found],
        "unknown_variables": unknown,
    }
    if as_json:
        print_json(document)
    else:
        rows = [[s.name, "-" if s.value is None else _text(s.value), s.where or "default"] for s in found]
        print_table(["setting", "value", "from"], rows)
        click.echo(f"file: {config_file()}" + ("" if config_file().exists() else " (not there)"), err=True)
        click.echo(f"devices and profiles: {folders['data']}; what can be had again: {folders['cache']}", err=True)
    for variable in unknown:
        click.echo(f"${variable} is set, and nothing reads it{did_you_mean(variable, known)}", err=True)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
