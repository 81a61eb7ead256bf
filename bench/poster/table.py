"""The poster's table put together: what each model is, takes here and was trained to, beside the poster's own.

The six baselines are timed as shape twins (their widths, depth, FFN, heads and vocabulary; our norm and
positions), and beside that as they are, in torch. Whatever is missing is said to be, with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merino_edge.architecture import Architecture
from merino_edge.search.cost import count_flops
from poster.rows import unshared

RESULTS = Path(__file__).resolve().parents[1] / "results"
POSTER = {  # FLOPs, latency on a Jetson Nano in ms, perplexity of WikiText-2 and PTB, as the poster prints them
    "pythia-70m": (100e9, 95, 40.95, 60.28),
    "pythia-162m": (270e9, 243, 23.52, 36.02),
    "cerebras-111m": (260e9, 185, 36.93, 51.89),
    "gpt2-124m": (290e9, 213, 25.19, 33.95),
    "opt-125m": (210e9, 182, 23.62, 29.02),
    "opt-350m": (720e9, 559, 18.51, 23.08),
    "merino-52m": (60e9, 48, 39.05, 52.18),
    "merino-61m": (110e9, 77, 34.24, 34.11),
    "merino-64m": (160e9, 114, 22.47, 27.06),
}
REFERENCE = "opt-350m"
NOT_RECORDED = "no training of it is recorded"


def facts(architecture: Architecture) -> dict[str, Any]:
    """Return what follows from an architecture alone; executed parameters are those of its unshared twin."""
    return {
        "architecture": architecture.describe(),
        "unique_parameters": architecture.unique_parameters,
        "executed_parameters": unshared(architecture).unique_parameters,
        "flops": count_flops(architecture),
        "flops_with_head": count_flops(architecture, head=True),
    }


def poster(name: str) -> dict[str, float] | None:
    """Return what the poster says of a model, and its ratio to OPT-350M there; None where it has no such model."""
    if name not in POSTER:
        return None
    flops, latency, wikitext2, ptb = POSTER[name]
    ratio = POSTER[REFERENCE][1] / latency
    return {"flops": flops, "latency_ms": latency, "ratio": ratio, "wikitext2": wikitext2, "ptb": ptb}


def read_result(name: str) -> dict[str, Any] | None:
    """Return what a script recorded, None where it recorded nothing."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["result"] if path.exists() else None


def trained(name: str, recorded: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return every recorded training of a model, those with most tokens last, or why there is none."""
    rows = [row for row in (recorded or {}).get("rows", []) if row.get("id") == name and "judged" in row]
    if not rows:
        reason = (recorded or {}).get("missing", {}).get(name)
        return {"trainings": [], "reason": reason or NOT_RECORDED}
    kept = ("tokens", "epochs", "seed", "learning_rate", "judged", "tasks", "average")
    found = [{key: row[key] for key in kept if key in row} for row in rows]
    return {"trainings": sorted(found, key=lambda row: (row["tokens"], row["seed"])), "reason": None}


def join(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Put what the trainings and the search recorded beside what was measured."""
    recorded = read_result("poster_train")
    rows = [{**row, **trained(row["model"], recorded), "poster": poster(row["model"])} for row in measured["rows"]]
    te_nas = read_result("te_nas")
    search = {"reason": "no result of te_nas.py is recorded"} if te_nas is None else {
        "candidate": te_nas["each"], "energy": te_nas["energy"]
    }  # fmt: skip
    return {**measured, "rows": rows, "search_beside_te_nas": search}


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _alike(rows: list[Mapping[str, Any]]) -> int:
    """Return the number of tokens that most models were trained on; the larger of two that are as many."""
    tokens = [training["tokens"] for row in rows for training in row["trainings"] if not training["seed"]]
    return max(set(tokens), key=lambda n: (tokens.count(n), n), default=0)


def _trained_cells(row: Mapping[str, Any], tokens: int) -> list[str]:
    """Return loss and perplexities of the training that is like the others', then what the longest one reached."""
    trainings = [training for training in row["trainings"] if not training["seed"]]
    like: Mapping[str, Any] = next((t["judged"] for t in trainings if t["tokens"] == tokens), {})
    told = [_cell(like.get("validation", {}).get("loss"), ".3f")]
    told += [_cell(like.get(text, {}).get("perplexity"), ".1f") for text in ("wikitext2", "ptb")]
    longest: Mapping[str, Any] = trainings[-1] if trainings else {}
    more = longest["judged"]["validation"]["loss"] if longest and longest["tokens"] > tokens else None
    asked = [training for training in row["trainings"] if "average" in training]  # of any seed, the longest last
    accuracy = "-"
    if asked:
        average, length = asked[-1]["average"], asked[-1]["tokens"] / 1e6
        accuracy = f"{average['accuracy']:.3f} ({average['tasks']} tasks, {length:.0f} M tokens)"
    return [*told, _cell(more, ".3f"), accuracy]


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table for people; `-` where something was not measured or trained."""
    columns = (
        "model", "unique M", "executed M", "GFLOPs", "with head", "int8 tg ms", "x OPT-350M", "int8 pp128 ms",
        "x OPT-350M", "fp32 full1024 ms", "x OPT-350M", "poster x", "torch full1024 ms", "loss", "wikitext2", "ptb",
        "loss, longest training", "zero-shot accuracy",
    )  # fmt: skip
    tokens = _alike(result["rows"])
    lines = ["| " + " | ".join(columns) + " |", "| --- " + "| ---: " * (len(columns) - 1) + "|"]
    for row in result["rows"]:
        timed = [row["measured"].get(test) or {} for test in ("tg64@128", "pp128", "full1024")]
        pairs = [(t.get("p50_ms"), t.get("ratio")) for t in timed]
        cells = [
            row["model"] + (" (shape twin)" if row["twin"] else ""),
            *(f"{row[name] / 1e6:.1f}" for name in ("unique_parameters", "executed_parameters")),
            *(f"{row[name] / 1e9:.1f}" for name in ("flops", "flops_with_head")),
            *(cell for p50, ratio in pairs for cell in (_cell(p50, ".1f"), _cell(ratio, ".2f"))),
            _cell((row["poster"] or {}).get("ratio"), ".1f"),
            _cell((row["real"].get("full1024") or {}).get("p50_ms"), ".0f"),
            *_trained_cells(row, tokens),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _beside(row: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """Return the poster's ratio and that of FLOPs, for ours also with the head counted on the other side only."""
    head = reference["flops_with_head"]
    if row["poster"] is None:
        return f"FLOPs: {head / row['flops_with_head']:.1f}"
    told = f"poster: {row['poster']['ratio']:.1f}; FLOPs: {head / row['flops_with_head']:.1f}"
    return told if row["twin"] else f"{told}, our head left out {head / row['flops']:.1f}"


def figure_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of the README's table of figures: each speed as ratio to OPT-350M's shape twin."""
    what = {
        "tg64@128": "int8, generating (tg64@128)",
        "pp128": "int8, reading a prompt (pp128)",
        "full1024": "fp32, one pass over 1,024 tokens with all logits (full1024), the poster's kind of latency",
    }
    found = []
    for test, words in what.items():
        rows = [row for row in result["rows"] if row["measured"].get(test)]
        if not rows:
            continue
        beside = test == "full1024"
        reference = next(row for row in result["rows"] if row["model"] == REFERENCE)
        told = [
            f"{row['model']} {row['measured'][test]['ratio']:.1f}" + (f" ({_beside(row, reference)})" if beside else "")
            for row in rows
            if row["model"] != REFERENCE
        ]
        label = f"times as fast as {REFERENCE}, both as our exports, baselines as shape twins, in turn: {words}"
        found.append((label, "; ".join(told)))
    return found
