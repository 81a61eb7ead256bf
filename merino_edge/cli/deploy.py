"""`merino-edge deploy`."""

from __future__ import annotations

import click

from merino_edge.cli.options import ask_person, device_option, json_option
from merino_edge.cli.output import print_json, print_pairs, terminal_progress
from merino_edge.units import format_bytes


@click.command("deploy")
@click.argument("subject", required=False, metavar="[RUN]")
@device_option
@click.option("--format", "format_name", default=None, help="Format (default: the board's first choice).")
@click.option("--recipe", default=None, help="Recipe (default: the board's first choice).")
@click.option("--rollback", is_flag=True, help="Switch back to an earlier release.")
@click.option("--release", type=click.IntRange(1), default=None, help="Release to roll back to.")
@click.option("--keep", type=click.IntRange(1), default=None, help="First remove all but the newest N releases.")
@json_option
def command(
    as_json: bool,
    subject: str | None,
    device: str | None,
    format_name: str | None,
    recipe: str | None,
    rollback: bool,
    release: int | None,
    keep: int | None,
) -> None:
    """Put the model onto the device, verify it there, and switch to it.

    Exports first where the export is missing or older than the checkpoint.
    """
    from merino_edge.errors import UsageError
    from merino_edge.flows import deploy as flow

    progress = terminal_progress()
    if release is not None and not rollback:
        raise UsageError("--release goes with --rollback")
    if rollback:
        document = flow.rollback(device, release, progress)
    else:
        document = flow.deploy(subject, device, format_name, recipe, keep, ask_person(), progress)
    if as_json:
        print_json(document)
        return
    pairs = [("device", document["device"]), ("release", str(document["release"]))]
    if not rollback:
        pairs += [
            ("bundle", document["bundle"] + ("" if document["trained"] else " (random weights)")),
            ("sent", f"{format_bytes(document['bytes_sent'])} of {format_bytes(document['bytes_total'])}"),
        ]
    pairs.append(("previous", str(document["previous"] or "none")))
    print_pairs(pairs)
    if not rollback and not document["trained"]:
        click.echo("next: merino-edge train", err=True)
    else:
        click.echo('next: merino-edge generate "Once upon a time"', err=True)
