"""`merino-edge export`."""

from __future__ import annotations

from typing import Any

import click

from merino_edge.cli.options import SHARE, json_option
from merino_edge.cli.output import print_json, print_pairs, terminal_progress, windows
from merino_edge.units import format_bytes


@click.command("export")
@click.argument("subject", required=False, metavar="[RUN]")
@click.option("--format", default="onnx", show_default=True, help="Format of the file: onnx, tflite.")
@click.option(
    "--recipe",
    default="dynamic_wi8_afp32",
    show_default=True,
    help="fp32, dynamic_wi8_afp32, weight_only_wi4_b32_afp32, ...; int4 finds the largest block that keeps the limit.",
)
@click.option("--form", help="How the graph is written (default: what the run's device runs fastest).")
@click.option("--quantizer", default="auto", show_default=True, help="How integers are chosen: rtn, mse, gptq.")
@click.option("--text", metavar="PATH", help="Text to compare perplexity on (default: what training held out).")
@click.option(
    "--max-perplexity-change",
    type=SHARE,
    help="Largest rise of perplexity against fp32 (default: 1% at 8 bits, 3% at 4 bits).",
)
@json_option
def command(as_json: bool, subject: str | None, **wishes: Any) -> None:
    """Export the trained model; shared weights stay shared, and the file is checked before it appears."""
    from merino_edge.flows.export import ExportWish, export

    document = export(subject, ExportWish(**wishes), progress=terminal_progress())
    if as_json:
        print_json(document)
        return
    parity = document["parity"]
    ratio = document["file_bytes"] / document["unique_bytes"]
    print_pairs(
        [
            ("bundle", document["bundle"]),
            ("file", f"{format_bytes(document['file_bytes'])} = {ratio:.4f} x the unique bytes"),
            ("unshared", f"{format_bytes(document['fp32_executed_bytes'])} if each layer had its own fp32 weights"),
            (
                "parity",
                f"largest difference {parity['max_abs_diff']:.3g}, logits' deviation {parity['logits_std']:.3g}",
            ),
            ("quality", _quality(document["quality"])),
            ("trained", "yes" if document["trained"] else "no: random weights"),
        ]
    )
    click.echo(f"next: merino-edge deploy {document['run'] or ''}".rstrip(), err=True)


def _quality(quality: dict[str, Any]) -> str:
    if not quality["measured"]:
        return f"not measured: {quality['reason']}"
    return (
        f"perplexity {quality['perplexity_fp32']:.4g} in fp32, {quality['perplexity']:.4g} in this file: "
        f"{100 * quality['perplexity_change']:+.2f} % ({windows(quality['tokens'], quality['context_length'])}; "
        f"{quality['text']})"
    )
