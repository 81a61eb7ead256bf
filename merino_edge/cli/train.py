"""`merino-edge train`."""

from __future__ import annotations

import os
from typing import Any

import click

from merino_edge.cli.options import COUNT, SECONDS, json_option
from merino_edge.cli.output import print_json, print_pairs, terminal_progress, windows
from merino_edge.units import format_count


@click.command("train")
@click.argument("subject", required=False, metavar="[RUN]")
@click.option(
    "--data", multiple=True, metavar="PATH|hf:NAME", help="Text: files or folders (txt, md, jsonl; gz, xz, zst)."
)
@click.option("--tokenizer", metavar="gpt2|PATH", help="Tokenizer to use instead of one trained on the text.")
@click.option("--from", "start_from", metavar="RUN|DIR", help="Continue a checkpoint, with its tokenizer.")
@click.option("--teacher", metavar="RUN|DIR", help="Learn a checkpoint's probabilities too, with its tokenizer.")
@click.option("--teacher-share", type=float, help="The teacher's share of the loss, up to 1 (default: 0.5).")
@click.option("--tokens", type=COUNT, help="Budget in tokens: 20M (default: one epoch).")
@click.option("--steps", type=click.IntRange(1), help="Budget in optimizer steps.")
@click.option("--time", "seconds", type=SECONDS, help="Budget in time: 3m.")
@click.option("--context", "context_length", type=click.IntRange(2), default=256, show_default=True)
@click.option("--batch-tokens", type=COUNT, help="Tokens of one optimizer step.")
@click.option("--micro-batch", type=click.IntRange(1), help="Sequences of one forward pass.")
@click.option("--learning-rate", type=float, help="At its highest (default: by width and batch).")
@click.option("--schedule", type=click.Choice(["cosine", "wsd", "constant"]), default="cosine", show_default=True)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of weights, order and held-out text."
)
@click.option("--resume/--no-resume", default=True, help="Go on with an interrupted training.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--compile/--no-compile", default=None, help="Use torch.compile (default: on a GPU).")
@click.option("--tensorboard", is_flag=True, help="Write loss, speed and MFU for TensorBoard into the run.")
@json_option
def command(as_json: bool, subject: str | None, **flags: Any) -> None:
    """Train the run's architecture on text; an interrupted training goes on where it was.

    Without --data: WikiText-2 in $MERINO_EDGE_DATA where that is set, else the English text in Python's own library.
    Several processes: torchrun --nproc-per-node N -m merino_edge.cli train [RUN].
    """
    from merino_edge.flows.train import TrainOptions, train

    others = os.environ.get("RANK", "0") != "0"  # of several processes the first one speaks
    document = train(subject, TrainOptions(**flags), progress=terminal_progress(quiet=others))
    if others:
        return
    if as_json:
        print_json(document)
        return
    scored = windows(document["validation_tokens"], document["context_length"], document["stride"])
    teacher = document["teacher"]
    both = "(text and teacher) " if teacher else ""
    print_pairs(
        [
            ("checkpoint", document["checkpoint"]),
            *([("teacher", f"{teacher['share']:g} of the loss: {teacher['architecture']}")] if teacher else []),
            (
                "trained",
                f"{format_count(document['tokens'])} tokens, {document['steps']} steps, {document['seconds']:.0f} s",
            ),
            ("speed", f"{document['tokens_per_s']:,.0f} tokens/s" + _of_peak(document)),
            ("loss", f"training {both}{document['train_loss']:.4f}, held-out text {document['validation_loss']:.4f}"),
            ("perplexity", f"{document['perplexity']:.2f} ({document['bits_per_byte']:.3f} bits per byte; {scored})"),
        ]
    )
    click.echo(f"next: merino-edge export {document['run']}", err=True)


def _of_peak(document: dict[str, Any]) -> str:
    if document["mfu"] is None:
        return ""
    return f"; {document['steady_tokens_per_s']:,.0f} once compiled, MFU {100 * document['mfu']:.1f} %"
