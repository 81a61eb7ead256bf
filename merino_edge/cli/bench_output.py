"""How `bench` prints what it found: tables for people, the same rows flat for programs."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from merino_edge.cli.output import print_json, print_table, windows
from merino_edge.flows.bench_rows import COLUMNS
from merino_edge.flows.bench_tests import label_of
from merino_edge.units import format_bytes

Row = dict[str, Any]
Table = tuple[list[str], list[list[str]]]


def print_document(document: dict[str, Any], form: str) -> None:
    """Print a document as `table`, `markdown`, `csv`, `json` or `jsonl`."""
    rows = document.get("rows", [])
    if form == "json":
        print_json(document)
    elif form == "jsonl":
        for row in rows:
            click.echo(json.dumps({name: row[name] for name in COLUMNS}, allow_nan=False))
    elif form == "csv":
        writer = csv.DictWriter(sys.stdout, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _plain(row[name]) for name in COLUMNS} for row in rows)
    else:
        show = _markdown if form == "markdown" else print_table
        for columns, lines in tables(document):
            if lines:
                show(columns, lines)
        _notes(document)


def _plain(value: Any) -> Any:
    """Write truth values as JSON does."""
    return str(value).lower() if isinstance(value, bool) else value


def tables(document: dict[str, Any]) -> list[Table]:
    """Return what a person reads: times, then what each file is, then what was compared."""
    rows = document.get("rows", [])
    found = [_times(rows), _files(rows)]
    if "comparison" in document:
        lines = [[line["test"], str(line["rounds"]), line["words"]] for line in document["comparison"]]
        found.append((["in turn", "rounds", ""], lines))
    if "ratios" in document:
        found = [_ratios(document), _files(rows)]
    return found


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    click.echo("| " + " | ".join(columns) + " |")
    click.echo("|" + "|".join([" --- ", *([" ---: "] * (len(columns) - 1))]) + "|")
    for row in rows:
        click.echo("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    click.echo()


def _known(value: Any, form: Callable[[Any], str]) -> str:
    return "-" if value is None else form(value)


def _names(rows: Sequence[Row]) -> list[tuple[str, Callable[[Row], str]]]:
    """Return the columns that say what a row is of; the device only where there are several."""
    several = len({row["device"] for row in rows}) > 1
    device: list[tuple[str, Callable[[Row], str]]] = [("device", lambda r: str(r["device"]))] if several else []
    return [
        ("model", lambda r: r["model"] + ("" if r["trained"] else " (random)")),
        *device,
        ("file", lambda r: f"{r['format']} {r['recipe']}" + ("" if r["form"] == "standard" else f" {r['form']}")),
    ]


def _filled(columns: Sequence[tuple[str, Callable[[Row], str]]], rows: Sequence[Row]) -> Table:
    """Return a table without the columns in which nothing is known."""
    filled = [(name, [cell(row) for row in rows]) for name, cell in columns]
    kept = [(name, cells) for name, cells in filled if any(cell != "-" for cell in cells)]
    return [name for name, _ in kept], [list(cells) for cells in zip(*(cells for _, cells in kept), strict=True)]


def _times(rows: Sequence[Row]) -> Table:
    columns = [
        *_names(rows),
        ("test", lambda r: label_of(r["test"], r["tokens"], r["depth"]) + ("" if r["valid"] else " (not valid)")),
        *((f"{p} ms", lambda r, p=p: f"{r[f'{p}_ms']:.3f}") for p in ("p50", "p90", "p99")),
        ("ms/token", lambda r: f"{r['ms_per_token']:.3f}"),
        ("tokens/s", lambda r: f"{r['tokens_per_s']:.1f}"),
        ("mJ/token", lambda r: _known(r["energy_mj_per_token"], lambda v: f"{v:.1f}")),
        ("°C", lambda r: _known(r["temperature_c"], lambda v: f"{v:.0f}")),
        ("throttled", lambda r: _known(r["throttled"], lambda v: "yes" if v else "no")),
    ]
    return _filled(columns, rows)


def _files(rows: Sequence[Row]) -> Table:
    """One line a file: what does not depend on the test."""
    once = list({(r["device"], r["model"], r["format"], r["recipe"], r["form"]): r for r in rows}.values())
    columns = [
        *_names(rows),
        ("load ms", lambda r: f"{r['load_ms']:.0f}"),
        ("peak", lambda r: format_bytes(r["peak_memory_bytes"])),
        ("on disk", lambda r: _known(r["file_bytes"], format_bytes)),
        ("unique", lambda r: format_bytes(r["unique_bytes"])),
        ("disk/unique", lambda r: _known(r["sharing_disk"], lambda v: f"{v:.3f}")),
        ("RAM/unique", lambda r: _known(r["sharing_ram"], lambda v: f"{v:.3f}")),
        *perplexity_columns(once),
        ("bits/byte", lambda r: _known(r["bits_per_byte"], lambda v: f"{v:.4f}")),
    ]
    if len({_computed_by(r) for r in once}) > 1:
        columns.append(("computed by", _computed_by))
    return _filled(columns, once)


def _computed_by(row: Row) -> str:
    """Return the runtime and its threads; said once below where it is the same for all."""
    return f"{row['runtime']}, {row['threads']} threads"


def perplexity_columns(rows: Sequence[Row]) -> list[tuple[str, Callable[[Row], str]]]:
    """Return a column of perplexities for each tokenizer and text: others do not compare."""
    kinds = list(dict.fromkeys((r["tokenizer"], r["text"]) for r in rows if r["perplexity"] is not None))

    def column(kind: tuple[Any, Any], title: str) -> tuple[str, Callable[[Row], str]]:
        def cell(row: Row) -> str:
            mine = row["perplexity"] is not None and (row["tokenizer"], row["text"]) == kind
            return f"{row['perplexity']:.2f}" if mine else "-"

        return title, cell

    if len(kinds) < 2:
        return [column(kinds[0] if kinds else (None, None), "perplexity")]
    return [column(kind, f"perplexity {number}") for number, kind in enumerate(kinds, start=1)]


def _ratios(document: dict[str, Any]) -> Table:
    lines = [
        [
            line["model"] + (" (shape twin)" if line["twin"] else ""),
            line["test"],
            _known(line["p50_ms"], lambda v: f"{v:.2f}"),
            _known(line["ratio"], lambda v: f"{v:.2f}x"),
            "-" if line["low"] is None else f"{line['low']:.2f} to {line['high']:.2f}",
        ]
        for line in document["ratios"]
    ]
    return ["model", "test", "p50 ms", f"as fast as {document['reference']}", "95 %"], lines


def _notes(document: dict[str, Any]) -> None:
    """Say on stderr what the tables cannot."""
    rows = document.get("rows", [])
    computed_by = {_computed_by(row) for row in rows}
    if len(computed_by) == 1:
        click.echo(f"computed by {computed_by.pop()}", err=True)
    for row in rows:
        if not row["valid"]:
            click.echo(f"not valid: {row['model']} {row['recipe']} {row['test']}: {row['invalid_reason']}", err=True)
    reasons = {str(row["energy_reason"]) for row in rows if row["energy_mj_per_token"] is None}
    if reasons:
        click.echo(f"energy: {'; '.join(sorted(reasons))}", err=True)
    scored = [row for row in rows if row["perplexity"] is not None]
    cuts = sorted({windows(row["perplexity_tokens"], row["context_length"]) for row in scored})
    if cuts:
        click.echo(f"perplexity on {' or '.join(cuts)}", err=True)
    kinds = list(dict.fromkeys((row["tokenizer"], row["text"]) for row in scored))
    if len(kinds) > 1:
        for number, (tokenizer, text) in enumerate(kinds, start=1):
            click.echo(f"perplexity {number}: tokenizer {tokenizer}, text: {text}", err=True)
        if len({text for _, text in kinds}) > 1:
            click.echo("bits per byte on different texts do not compare: --text FILE scores all on one", err=True)
    guarded = document.get("baseline")
    if guarded is not None:
        for note in guarded["notes"]:
            click.echo(f"baseline: {note}", err=True)
        counts = [line["verdict"] for line in guarded["rows"]]
        told = ", ".join(f"{counts.count(verdict)} {verdict}" for verdict in dict.fromkeys(counts))
        click.echo(f"baseline: {told} (limit {guarded['fail_over']:.1%})", err=True)
        for line in guarded["rows"]:
            if line["verdict"] != "within the limit":
                click.echo(f"baseline: {line['verdict']}: {line['model']} {line['label']}: {line['words']}", err=True)
