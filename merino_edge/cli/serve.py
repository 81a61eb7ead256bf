"""`merino-edge serve`."""

from __future__ import annotations

import click

from merino_edge.cli.options import ask_person, device_option
from merino_edge.cli.output import terminal_progress


@click.command("serve")
@device_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of this host to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--queue", "waiting", type=click.IntRange(0, 1000), default=8, show_default=True, help="Requests that may wait."
)
def command(device: str | None, host: str, port: int, waiting: int) -> None:
    """Serve the deployed model on this host, as OpenAI's /v1/completions and /v1/models."""
    from merino_edge.flows.serve import serve

    serve(device, host, port, waiting, ask_person(), terminal_progress())
