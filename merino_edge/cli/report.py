"""`merino-edge report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from merino_edge.cli.options import ask_person, json_option
from merino_edge.cli.output import print_json, print_pairs, terminal_progress, visible
from merino_edge.units import format_bytes

_PATH = click.Path(path_type=Path)


@click.command("report")
@click.argument("run", required=False, metavar="[RUN]")
@click.option("--output", "-o", type=_PATH, metavar="FILE", help="The page (default: report.html in the run).")
@click.option("--svg", type=_PATH, metavar="FOLDER", help="Write every chart as SVG too.")
@click.option("--png", type=_PATH, metavar="FOLDER", help="Write every chart as PNG too (needs merino-edge[report]).")
@click.option("--measure-parts", is_flag=True, help="Measure on the device first what the parts take (a minute).")
@json_option
def command(as_json: bool, run: str | None, **options: Any) -> None:
    """Write a run as one HTML page: what was searched, what was found, does it keep the promise.

    The page fetches nothing. A run at any stage will do; what it cannot tell yet names the command that would.
    """
    from merino_edge.flows.report import ReportOptions, report

    document = report(run, ReportOptions(**options), ask_person(), terminal_progress())
    if as_json:
        print_json(document)
        return
    pairs = [
        ("verdict", document["verdict"]["headline"]),
        ("page", f"{document['page']} ({format_bytes(document['bytes'])})"),
    ]
    pairs += [(kind, f"{len(document[kind])} images in {options[kind]}") for kind in ("svg", "png") if document[kind]]
    pairs += [("not yet", f"{section}: {command}") for section, command in document["missing"].items()]
    print_pairs([(name, visible(value)) for name, value in pairs])
