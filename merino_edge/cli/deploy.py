"""`merino-edge deploy`."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from typing import Any

import click

from merino_edge.cli.options import ask_person, json_option
from merino_edge.cli.output import print_json, print_pairs, print_table, terminal_progress
from merino_edge.units import format_bytes


@click.command("deploy")
@click.argument("subject", required=False, metavar="[RUN]")
@click.option(
    "--device", "-d", "devices", multiple=True, metavar="NAME", help="Device (default: the run's); may be repeated."
)
@click.option("--all", "everywhere", is_flag=True, help="All devices that were added, at once.")
@click.option("--format", "format_name", default=None, help="Format (default: the board's first choice).")
@click.option("--recipe", default=None, help="Recipe (default: the board's first choice).")
@click.option("--rollback", is_flag=True, help="Switch back to an earlier release.")
@click.option("--release", type=click.IntRange(1), default=None, help="Release to roll back to.")
@click.option("--list", "listing", is_flag=True, help="List the releases on the device.")
@click.option("--keep", type=click.IntRange(1), default=None, help="First remove all but the newest N releases.")
@click.option("--standalone", is_flag=True, help="Also send a tokenizer, so that run.py there needs no host.")
@click.option("--bundle", metavar="PATH|URL", help="Deploy this bundle instead of a run's: folder, archive or URL.")
@click.option("--sha256", metavar="HEX", help="Digest that the bundle's archive must have; a URL needs it.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@json_option
def command(
    as_json: bool,
    subject: str | None,
    devices: tuple[str, ...],
    everywhere: bool,
    listing: bool,
    rollback: bool,
    release: int | None,
    keep: int | None,
    bundle: str | None,
    sha256: str | None,
    **flags: Any,
) -> None:
    """Put the model onto the device, verify it there, and switch to it.

    Exports first where the export is missing or older than the checkpoint.
    """
    from merino_edge.errors import UsageError
    from merino_edge.flows import deploy as flow
    from merino_edge.flows import fleet
    from merino_edge.flows.fetch import fetched

    progress, ask = terminal_progress(), ask_person()
    dry_run = bool(flags.pop("dry_run"))
    standalone = bool(flags.pop("standalone"))
    if everywhere and devices:
        raise UsageError("--all names all devices; leave out --device")
    _check_company(rollback, listing, release is not None, bool(keep or dry_run), standalone)
    _check_bundle(bundle, sha256, subject is not None or rollback or listing)
    if subject is not None and (rollback or listing):
        hint = f"merino-edge deploy --{'rollback' if rollback else 'list'} --device NAME"
        raise UsageError(f"a device knows its own releases: leave out {subject}", hint=hint)

    def one(device: str | None, ask: Any, progress: Any) -> dict[str, Any]:
        if listing:
            return fleet.list_releases(device, ask, progress)
        if rollback:
            return (fleet.plan_rollback if dry_run else flow.rollback)(device, release, progress)
        work = fleet.plan if dry_run else partial(flow.deploy, standalone=standalone)
        return work(subject, device, flags["format_name"], flags["recipe"], keep, ask, progress)

    names = fleet.all_devices() if everywhere else list(devices)
    with ExitStack() as stack:
        if bundle is not None:
            subject = str(stack.enter_context(fetched(bundle, sha256, progress)))
        if len(names) > 1:
            document = fleet.on_each(names, one, ask, progress)
            shown = document["deployments"]
        else:
            document = one(names[0] if names else None, ask, progress)
            shown = [document]
    if as_json:
        print_json(document)
        return
    for each in shown:
        _print_list(each) if listing else _print(each, rollback)
    if not listing:
        _say_next(shown, rollback, dry_run)


def _say_next(shown: list[dict[str, Any]], rollback: bool, dry_run: bool) -> None:
    """Name the command that follows, with the device where `generate` would mean another."""
    from merino_edge.flows.devices import select_device

    if not rollback and not all(each["trained"] for each in shown):
        click.echo("next: merino-edge train", err=True)
        return
    if dry_run:
        return
    name = shown[0]["device"]
    there = "" if select_device(None, None, terminal_progress(quiet=True)) == name else f" --device {name}"
    click.echo(f'next: merino-edge generate{there} "Once upon a time"', err=True)
    for each in shown:
        if each.get("run_py"):
            click.echo(f"on {each['device']} itself: python3 {each['run_py']} --help", err=True)


def _check_company(rollback: bool, listing: bool, release: bool, changes: bool, standalone: bool) -> None:
    """Refuse what does not go together."""
    from merino_edge.errors import UsageError

    if release and not rollback:
        raise UsageError("--release goes with --rollback")
    if listing and (rollback or changes):
        raise UsageError("--list changes nothing and goes with --device alone")
    if standalone and (rollback or listing):
        raise UsageError("--standalone goes with a deployment", hint="leave out --rollback and --list")


def _check_bundle(bundle: str | None, sha256: str | None, others: bool) -> None:
    """Refuse what does not go together with `--bundle`."""
    from merino_edge.errors import UsageError

    if bundle is not None and others:
        raise UsageError("--bundle stands in the place of a run", hint="leave out the run, --rollback and --list")
    if sha256 is not None and bundle is None:
        raise UsageError("--sha256 goes with --bundle")


def _print(document: dict[str, Any], rollback: bool) -> None:
    dry = document.get("dry_run", False)
    pairs = [("device", document["device"]), ("would be release" if dry else "release", str(document["release"]))]
    if not rollback:
        random = "" if document["trained"] else " (random weights)"
        first = ", to be exported first" if document.get("export_first") else ""
        pairs.append(("bundle", document["bundle"] + random + first))
        if document["bytes_total"] is not None:
            sizes = f"{format_bytes(document['bytes_sent'])} of {format_bytes(document['bytes_total'])}"
            pairs.append(("to be sent" if dry else "sent", sizes))
        if document.get("releases_removed"):
            pairs.append(("would be removed", ", ".join(map(str, document["releases_removed"]))))
    pairs.append(("previous", str(document["previous"] or "none")))
    print_pairs(pairs)


def _print_list(document: dict[str, Any]) -> None:
    if not document["releases"]:
        click.echo(f"nothing is deployed on {document['device']}")
        click.echo(f"next: merino-edge deploy --device {document['device']}", err=True)
        return
    rows = [
        [
            f"{r['release']}" + (" *" if r["current"] else ""),
            f"{r['format']} {r['recipe']}" + ("" if r["trained"] else " (random)"),
            format_bytes(r["bytes"]),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(float(r["installed_at"] or 0))),
        ]
        for r in document["releases"]
    ]
    print_table(["release", "bundle", "files", "installed"], rows, title=f"{document['device']} (* in use)")
