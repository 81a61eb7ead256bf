"""`merino-edge doctor`."""

from __future__ import annotations

import sys
from typing import Any

import click

from merino_edge.cli.options import ask_person, json_option
from merino_edge.cli.output import print_json, styled, terminal_progress

_SIGNS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "problem": ("PROBLEM", "red")}


@click.command("doctor")
@click.argument("devices", nargs=-1, metavar="[DEVICE]...")
@json_option
def command(as_json: bool, devices: tuple[str, ...]) -> None:
    """Check this host and the devices (all registered ones by default); print what mends each problem.

    Exit code 0 where nothing will fail, 4 where a device cannot be reached, 1 for any other problem.
    """
    from merino_edge.flows.doctor import doctor

    document = doctor(devices, ask_person(), terminal_progress())
    if as_json:
        print_json(document)
    else:
        _print(document)
    if document["problems"]:
        sys.exit(4 if len(document["unreachable"]) == document["problems"] else 1)


def _print(document: dict[str, Any]) -> None:
    where = None
    for finding in document["findings"]:
        if finding["where"] != where:
            where = finding["where"]
            click.echo(where)
        word, colour = _SIGNS[finding["status"]]
        click.echo(f"  {styled(f'{word:<8}', colour)}{finding['what']:<16}{finding['found']}")
        if finding["mend"] and finding["status"] != "ok":
            click.echo(f"  {'':<8}{'':<16}next: {finding['mend']}")
    problems = document["problems"]
    click.echo("nothing will fail" if not problems else f"{problems} problem{'s' * (problems > 1)}", err=True)
