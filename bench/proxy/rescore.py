"""Columns of the study's table that follow from the architecture alone, computed again or for the first time.

Scores that need a network are drawn once an architecture, on one core, and kept in `.proxy/scores.jsonl`
as they come, so that a run that was cut short goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from merino_edge.architecture import Architecture
from merino_edge.device.board import load_board
from merino_edge.search.entropy import ScoreOptions
from merino_edge.search.latency import LatencyModel, estimate_latency
from merino_edge.search.scores import score_architecture

NETWORK_SCORES = ("synflow", "grad-norm", "snip", "ntk-condition", "linear-regions", "w-pca")
LATENCY = "pi4_tg_ms_estimate"


def pi4() -> LatencyModel:
    """Return what a Raspberry Pi 4's file says of a generated token, int8: an estimate, not a measurement."""
    board = load_board("pi4")
    cache = board.cpu.last_level_cache_bytes
    return estimate_latency(board.estimate, test="tg", depth=128, recipe="dynamic_wi8_afp32", cache_bytes=cache)


def rescore(rows: list[dict[str, Any]], cache: Path) -> dict[str, float]:
    """Fill the columns in place; returns the mean CPU seconds of each network score."""
    model = pi4()
    known = _known(cache)
    for number, row in enumerate(rows):
        architecture = Architecture.from_json(json.loads(row["architecture"]))
        row["parameters_per_depth"] = round(score_architecture(architecture, ScoreOptions("parameters-per-depth")), 2)
        row[LATENCY] = round(model.predict_ms(architecture), 4)
        for name in NETWORK_SCORES:
            key = (architecture.digest, name)
            if key not in known:
                known[key] = _look(architecture, name, cache)
            row[name.replace("-", "_")] = float(f"{known[key][0]:.8g}")
        print(f"{number + 1}/{len(rows)} {row['blocks']}", flush=True)
    return {
        n: sum(s for (_, m), (_, s) in known.items() if m == n) / len({d for d, _ in known}) for n in NETWORK_SCORES
    }


def _look(architecture: Architecture, name: str, cache: Path) -> tuple[float, float]:
    import torch

    from merino_edge.training.scores import network_score

    torch.set_num_threads(1)
    used = time.process_time()
    value = network_score(name, architecture)
    seconds = time.process_time() - used
    cache.parent.mkdir(exist_ok=True)
    with cache.open("a", encoding="utf-8") as stream:
        line = {"digest": architecture.digest, "score": name, "value": value, "cpu_s": seconds}
        stream.write(json.dumps(line) + "\n")
    return value, seconds


def _known(cache: Path) -> dict[tuple[str, str], tuple[float, float]]:
    if not cache.exists():
        return {}
    lines = [json.loads(line) for line in cache.read_text(encoding="utf-8").splitlines()]
    return {(line["digest"], line["score"]): (line["value"], line["cpu_s"]) for line in lines}
