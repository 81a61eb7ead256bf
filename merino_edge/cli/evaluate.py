"""`merino-edge evaluate`."""

from __future__ import annotations

from typing import Any

import click

from merino_edge.cli.options import COUNT, ask_person, json_option
from merino_edge.cli.output import print_json, print_table, terminal_progress


@click.command("evaluate")
@click.argument("subject", required=False, metavar="[RUN]")
@click.option("--model", metavar="hf:NAME", help="A model of the Hugging Face hub, or a folder in its format.")
@click.option("--data", multiple=True, metavar="PATH|wikitext2|ptb", help="Text to score.")
@click.option("--context", "context_length", type=click.IntRange(2), help="Tokens of a window (default: the model's).")
@click.option("--stride", type=click.IntRange(1), help="Tokens to the next window (default: half the context).")
@click.option("--tokens", type=COUNT, help="At most so many tokens of each text.")
@click.option("--tasks", multiple=True, metavar="NAME|FILE|all", help="Zero-shot tasks: ours, lm-eval's, a YAML file.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    help="So many questions of each task: ours at random, always the same; others the first.",
)
@click.option("--exports", is_flag=True, help="Score the run's exported files too, beside the checkpoint.")
@json_option
def command(as_json: bool, subject: str | None, **flags: Any) -> None:
    """Score a trained model: perplexity of texts, zero-shot accuracy, what its exported files lose.

    Without --data: the test texts of WikiText-2 and PTB in $MERINO_EDGE_DATA, where that is set.
    """
    from merino_edge.flows.evaluate import EvaluateOptions, evaluate

    document = evaluate(subject, EvaluateOptions(**flags), ask_person(), terminal_progress())
    if as_json:
        print_json(document)
        return
    if document["texts"]:
        _print_texts(document["texts"])
    if document["exports"]:
        _print_exports(document["exports"])
    if document["tasks"]:
        _print_tasks(document["tasks"], document["average"])


def _print_texts(rows: list[dict[str, Any]]) -> None:
    columns = ("text", "tokens", "window", "stride", "perplexity a token", "a word", "words", "bits per byte")
    print_table(
        columns,
        [
            (
                row["text"], f"{row['tokens']:,}", str(row["context_length"]), str(row["stride"]),
                f"{row['perplexity']:.2f}", f"{row['word_perplexity']:.2f}", f"{row['words']:,}",
                f"{row['bits_per_byte']:.4f}",
            )
            for row in rows
        ],
    )  # fmt: skip


def _print_exports(rows: list[dict[str, Any]]) -> None:
    columns = (
        "exported file",
        "held-out tokens",
        "window",
        "stride",
        "perplexity",
        "checkpoint",
        "change",
        "bits per byte",
    )
    print_table(
        columns,
        [
            (
                row["bundle"], f"{row['tokens']:,}", str(row["context_length"]), str(row["stride"]),
                f"{row['perplexity']:.3f}", f"{row['checkpoint_perplexity']:.3f}",
                f"{100 * row['change']:+.2f} %", f"{row['bits_per_byte']:.4f}",
            )
            for row in rows
        ],
    )  # fmt: skip


def _print_tasks(rows: list[dict[str, Any]], average: dict[str, Any]) -> None:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    def row(name: str, documents: str, found: dict[str, Any]) -> tuple[str, ...]:
        accuracy = f"{found['accuracy']:.3f} ± {found['stderr']:.3f}"
        normed = share(found.get("accuracy_norm"))
        return name, documents, accuracy, normed, share(found["chance"]), share(found["majority"])

    columns = ("task", "questions", "accuracy", "by length", "chance", "most frequent answer")
    lines = [row(r["task"], f"{r['documents']:,}", r) for r in rows]
    print_table(columns, [*lines, row(f"average of {average['tasks']}", "", average)])
