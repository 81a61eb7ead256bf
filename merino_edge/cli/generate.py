"""`merino-edge generate`."""

from __future__ import annotations

from typing import Any

import click

from merino_edge.cli.options import ask_person, device_option, json_option
from merino_edge.cli.output import print_json, terminal_progress, visible


@click.command("generate")
@click.argument("prompt")
@device_option
@click.option("--max-tokens", type=int, default=64, show_default=True, help="At most so many new tokens.")
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0 takes the likeliest token.")
@click.option("--top-p", type=float, default=0.95, show_default=True, help="Smallest set of this probability.")
@click.option("--top-k", type=int, default=0, show_default=True, help="At most so many candidates; 0 for all.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same text.")
@click.option("--stop", multiple=True, help="Text at which to stop; may be given several times.")
@json_option
def command(as_json: bool, prompt: str, device: str | None, stop: tuple[str, ...], **flags: Any) -> None:
    """Continue PROMPT with the model deployed on the device; the text streams as it comes."""
    from merino_edge.flows.generate import Sampling, generate

    shown = False

    def emit(piece: str) -> None:
        nonlocal shown
        if not as_json:
            click.echo(visible(piece if shown else prompt + piece), nl=False)
        shown = True

    sampling = Sampling(**flags, stop=stop)
    document = generate(prompt, device, sampling, emit, ask_person(), terminal_progress())
    if as_json:
        print_json(document)
        return
    click.echo()
    rate = document["tokens_per_s"]
    if rate:
        click.echo(f"{document['tokens']} tokens, {rate:.1f} tokens/s on {document['device']}", err=True)
