"""`merino-edge export`."""

from __future__ import annotations

import click

from merino_edge.cli.options import json_option
from merino_edge.cli.output import print_json, print_pairs, terminal_progress
from merino_edge.units import format_bytes


@click.command("export")
@click.argument("subject", required=False, metavar="[RUN]")
@click.option("--format", "format_name", default="onnx", show_default=True, help="Format of the file: onnx, tflite.")
@click.option("--recipe", default="dynamic_wi8_afp32", show_default=True, help="fp32, dynamic_wi8_afp32, ...")
@click.option("--form", default="standard", show_default=True, help="How the graph is written.")
@json_option
def command(as_json: bool, subject: str | None, format_name: str, recipe: str, form: str) -> None:
    """Export the trained model; shared weights stay shared, and the file is checked before it appears."""
    from merino_edge.flows.export import export

    document = export(subject, format_name, recipe, form, progress=terminal_progress())
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
            ("trained", "yes" if document["trained"] else "no: random weights"),
        ]
    )
    click.echo("next: merino-edge deploy", err=True)
