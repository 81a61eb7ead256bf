"""The study's table: one row a training, scores beside losses; CSV both ways."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from merino_edge.architecture import Architecture
from merino_edge.flows.verify import DEFAULT_SCORE
from merino_edge.search.cost import count_flops, parameters_sum, total
from merino_edge.search.entropy import ScoreOptions, entropy_score, explain
from merino_edge.search.scores import score_architecture

Array = npt.NDArray[np.float64]

COLUMNS = (
    "id", "group", "blocks", "width", "depth", "decoder_parameters", "executed_parameters", "total_parameters",
    "flops", "flops_with_head", "tokens", "steps", "seed", "init", "lr_factor", "matrix_lr", "table_lr",
    "training_flops", "valid_loss",
    "train_loss_tail", "entropy_poster", "entropy_mhsa_nats", "entropy_ffn_nats", "mean_log_width",
    "mean_log_ffn_width", "width_per_root_depth", "parameters_per_depth",
    "synflow", "grad_norm", "snip", "ntk_condition", "linear_regions", "w_pca", "pi4_tg_ms_estimate",
    "measured_tg_ms", "measured_pp128_ms", "architecture",
)  # fmt: skip
INTEGERS = {"depth", "decoder_parameters", "executed_parameters", "total_parameters", "flops", "flops_with_head",
            "tokens", "steps", "seed"}  # fmt: skip
TEXT = {"id", "group", "blocks", "init", "architecture"}


def make_row(result: dict[str, Any]) -> dict[str, Any]:
    """Return the CSV row of one training's JSON line."""
    architecture = Architecture.from_json(result["architecture"])
    terms = explain(architecture, ScoreOptions("entropy-poster"))
    return {
        **describe(architecture),
        "id": result["id"],
        "group": result["group"],
        "blocks": result["blocks"],
        "tokens": result["trained_tokens"],
        "steps": result["steps"],
        "seed": result["seed"],
        "init": result["init"],
        "lr_factor": result["override"].get("factor", 1.0),
        "matrix_lr": float(f"{result['matrix_lr']:.4g}"),
        "table_lr": float(f"{result['table_lr']:.4g}"),
        "training_flops": float(f"{result['training_flops']:.4g}"),
        "valid_loss": round(result["valid_loss"], 5),
        "train_loss_tail": round(result["train_loss_tail"], 5),
        "entropy_poster": round(terms["score"], 3),
        "entropy_mhsa_nats": round(terms["sum_mhsa_nats"], 4),
        "entropy_ffn_nats": round(terms["sum_ffn_nats"], 4),
        "mean_log_width": round(terms["mean_log_width"], 9),
        "mean_log_ffn_width": round(terms["mean_log_ffn_width"], 9),
    }


def describe(architecture: Architecture) -> dict[str, Any]:
    """Return what `SIMPLE` scores an architecture by."""
    decoder = int(total(parameters_sum(False, table=False), architecture))
    depth = architecture.depth
    width = sum(b.width * b.depth for b in architecture.blocks) / depth
    return {
        "width": round(width, 3),
        "depth": depth,
        "decoder_parameters": decoder,
        "executed_parameters": architecture.executed_parameters,
        "total_parameters": architecture.unique_parameters,
        "flops": count_flops(architecture),
        "flops_with_head": count_flops(architecture, head=True),
        "width_per_root_depth": round(width / depth**0.5, 5),
        "parameters_per_depth": round(decoder / depth, 2),
        "architecture": json.dumps(architecture.to_json(), sort_keys=True, separators=(",", ":")),
    }


def make_try(result: dict[str, Any]) -> dict[str, Any]:
    """Return what a training of the sweeps before the study says about the recipe."""
    override = result.get("override", {})
    rate = result.get("peak_lr")  # the first sweeps had one rate for everything
    return {
        "blocks": result["blocks"],
        "tokens": result["trained_tokens"],
        "tokens_a_step": result["trained_tokens"] // result["steps"],
        "init": override.get("init", result.get("init", "model")),
        "matrix_lr_at_512": override.get("matrix_lr"),
        "matrix_lr": rate if rate is not None else result["matrix_lr"],
        "table_lr": rate if rate is not None else result["table_lr"],
        "valid_loss": round(result["valid_loss"], 5),
    }


def write_table(path: Path, results: Iterable[dict[str, Any]]) -> int:
    """Write the CSV, groups and budgets together; returns the number of rows."""
    rows = {row["id"]: row for row in (make_row(r) for r in results if r["valid_loss"] is not None)}
    ordered = sorted(rows.values(), key=lambda r: (r["group"], r["tokens"], r["seed"], r["flops"], r["id"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, ordered)
    return len(ordered)


def read_table(path: Path) -> list[dict[str, Any]]:
    """Read the CSV with its numbers as numbers."""
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path}: the columns are not those of the proxy study")
        return [{k: _value(k, v) for k, v in row.items()} for row in reader]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as they are."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _value(name: str, text: str) -> Any:
    if name in TEXT:
        return text
    if text == "":
        return float("nan")  # not computed yet: see rescore.py
    return int(text) if name in INTEGERS else float(text)


def network_scores(rows: list[dict[str, Any]]) -> dict[str, Array]:
    """Return the scores that need a network, those that every row has."""
    names = ("synflow", "grad_norm", "snip", "ntk_condition", "linear_regions", "w_pca")
    found = {name.replace("_", "-"): column(rows, name) for name in names}
    return {name: values for name, values in found.items() if np.isfinite(values).all()}


def column(rows: list[dict[str, Any]], name: str) -> Array:
    """One column as float64."""
    return np.array([row[name] for row in rows], np.float64)


def entropy(rows: list[dict[str, Any]], beta: float, alpha2: float = 1.0) -> Array:
    """The formula at any beta and alpha_2 from the sums in the table (alpha_1 = 1, eps = 0.01)."""
    layers = column(rows, "depth")
    score = entropy_score(ScoreOptions("entropy", beta=beta, alpha2=alpha2))
    return score.combine(
        column(rows, "entropy_mhsa_nats"), column(rows, "entropy_ffn_nats"), layers,
        layers * column(rows, "mean_log_width"), layers * column(rows, "mean_log_ffn_width"),
    )  # fmt: skip


def default_score(row: dict[str, Any]) -> float:
    """Return the default's score of a row's architecture."""
    return score_architecture(Architecture.from_json(json.loads(row["architecture"])), ScoreOptions(DEFAULT_SCORE))


SIMPLE: dict[str, Callable[[list[dict[str, Any]]], Array]] = {
    "unique-parameters": lambda rows: column(rows, "decoder_parameters"),
    "executed-parameters": lambda rows: column(rows, "executed_parameters"),
    "total-parameters": lambda rows: column(rows, "total_parameters"),
    "flops": lambda rows: column(rows, "flops"),
    "width": lambda rows: column(rows, "width"),
    "minus-depth": lambda rows: -column(rows, "depth"),
    "width-per-root-depth": lambda rows: column(rows, "width_per_root_depth"),
    "balanced-parameters": lambda rows: np.array([default_score(row) for row in rows]),
    "parameters-per-depth": lambda rows: column(rows, "parameters_per_depth"),
    "total-parameters-per-depth": lambda rows: column(rows, "total_parameters") / column(rows, "depth"),
}
