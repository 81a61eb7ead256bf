"""`merino-edge bench`."""

from __future__ import annotations

import csv
import json
import sys
from typing import Any

import click

from merino_edge.cli.options import SECONDS, ask_person, device_option, json_option
from merino_edge.cli.output import print_json, print_table, terminal_progress
from merino_edge.units import format_bytes

COLUMNS = (
    "model", "format", "recipe", "form", "test", "p50_ms", "p90_ms", "p99_ms", "tokens_per_s", "load_ms",
    "peak_memory_bytes", "file_bytes", "unique_bytes", "perplexity", "bits_per_byte", "threads", "runtime", "valid",
    "trained",
)  # fmt: skip


@click.command("bench")
@click.argument("subject", required=False, metavar="[RUN]")
@device_option
@click.option("--recipe", "recipes", multiple=True, help="RECIPE or FORMAT/RECIPE; may be given several times.")
@click.option("--time", "seconds", type=SECONDS, default="10s", show_default=True, help="Time for each bundle's speed.")
@click.option(
    "--tokens", type=click.IntRange(0), default=4096, show_default=True, help="Held-out tokens for perplexity."
)
@click.option("--threads", type=click.IntRange(1), default=None, help="Threads (default: all performance cores).")
@click.option("--sustained", is_flag=True, help="Measure the hot state that lasts, for a board without a fan.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "markdown", "csv", "json", "jsonl"]),
    default="table",
    show_default=True,
)
@json_option
def command(as_json: bool, subject: str | None, output: str, **flags: Any) -> None:
    """Measure the run's bundles on the device: speed, memory, size, and perplexity of the exported file."""
    from merino_edge.flows.bench import BenchOptions, bench

    document = bench(subject, BenchOptions(**flags), ask_person(), terminal_progress())
    if as_json or output == "json":
        print_json(document)
    elif output == "jsonl":
        for row in document["rows"]:
            click.echo(json.dumps(row, allow_nan=False))
    elif output == "csv":
        writer = csv.DictWriter(sys.stdout, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(document["rows"])
    else:
        _print(document, markdown=output == "markdown")


def _print(document: dict[str, Any], markdown: bool) -> None:
    columns = [
        "model",
        "recipe",
        "test",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "tokens/s",
        "load ms",
        "peak",
        "file",
        "unique",
        "perplexity",
    ]
    rows = [
        [
            row["model"] + ("" if row["trained"] else " (random)"),
            f"{row['format']} {row['recipe']}" + ("" if row["form"] == "standard" else f" {row['form']}"),
            row["test"] if row["test"] != "tg" else f"tg@{row['depth']}",
            *(f"{row[k]:.3f}" for k in ("p50_ms", "p90_ms", "p99_ms")),
            f"{row['tokens_per_s']:.1f}",
            f"{row['load_ms']:.0f}",
            *(format_bytes(row[k]) for k in ("peak_memory_bytes", "file_bytes", "unique_bytes")),
            "-" if row["perplexity"] is None else f"{row['perplexity']:.2f}",
        ]
        for row in document["rows"]
    ]
    if not markdown:
        print_table(columns, rows)
    else:
        click.echo("| " + " | ".join(columns) + " |")
        click.echo("|" + "|".join([" --- ", *([" ---: "] * (len(columns) - 1))]) + "|")
        for row in rows:
            click.echo("| " + " | ".join(row) + " |")
    for row in document["rows"]:
        if not row["valid"]:
            click.echo(f"not valid: {row['recipe']} {row['test']}: {row['invalid_reason']}", err=True)
