"""`merino-edge devices`."""

from __future__ import annotations

from typing import Any

import click

from merino_edge.cli.options import ask_person, json_option
from merino_edge.cli.output import print_json, print_pairs, print_table, terminal_progress


@click.group("devices", invoke_without_command=True)
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the devices; `devices add` and `devices remove` change the list."""
    if ctx.invoked_subcommand is not None:
        return
    from merino_edge.flows.devices import list_devices

    document = list_devices()
    if as_json:
        print_json(document)
        return
    rows = [
        [d["device"], d["board"], d["host"] or "this machine", "yes" if d["profiled"] else "no"]
        for d in document["devices"]
    ]
    print_table(["device", "board", "host", "profiled"], rows)
    click.echo(f"boards known: {', '.join(document['boards'])}", err=True)


@command.command("add")
@click.argument("name")
@click.option("--host", required=True, metavar="USER@HOST", help="Address, or a name from ~/.ssh/config.")
@click.option("--profile", "board", default=None, metavar="BOARD", help="Kind of board (default: what it says it is).")
@click.option("--transport", type=click.Choice(["paramiko", "openssh"]), default="paramiko", show_default=True)
@click.option("--root", default=None, help="Folder on the device (default ~/.local/share/merino-edge).")
@json_option
def add(as_json: bool, name: str, host: str, board: str | None, transport: Any, root: str | None) -> None:
    """Add a device under NAME, once it has answered."""
    from merino_edge.flows.devices import add_device

    document = add_device(name, host, board, transport, root, ask_person(), terminal_progress())
    if as_json:
        print_json(document)
        return
    print_pairs([("device", document["device"]), ("host", document["host"]), ("board", document["board"])])
    click.echo(f"next: merino-edge profile {name}", err=True)


@command.command("remove")
@click.argument("name")
@click.option("--purge", is_flag=True, help="Also remove all that is ours on the device, and its profile here.")
@json_option
def remove(as_json: bool, name: str, purge: bool) -> None:
    """Forget the device NAME."""
    from merino_edge.flows.devices import remove_device

    document = remove_device(name, purge, ask_person(), terminal_progress())
    if as_json:
        print_json(document)
    else:
        click.echo(f"removed {name}" + (", and all that was ours on it" if document["device_folder_removed"] else ""))
