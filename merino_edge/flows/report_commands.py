"""The commands that make a run again, as they would be typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from merino_edge.bundle import Manifest
from merino_edge.flows.conditions import DEFAULT_CONDITIONS, DEFAULT_SPACE, Conditions
from merino_edge.flows.report_reading import Record
from merino_edge.flows.verify import DEFAULT_SCORE
from merino_edge.search.scores import ScoreOptions
from merino_edge.units import BYTES, COUNT, ENERGY_MJ, TIME_MS, Limit

LIMIT_FLAGS = {
    "latency_ms": ("--latency", {unit: TIME_MS[unit] for unit in ("s", "ms", "us", "ns")}),
    "memory_bytes": ("--memory", {unit: BYTES[unit] for unit in ("GB", "MB", "kB", "B")}),
    "file_bytes": ("--file-size", {unit: BYTES[unit] for unit in ("GB", "MB", "kB", "B")}),
    "parameters": ("--parameters", {unit: COUNT[unit] for unit in ("G", "M", "k", "")}),
    "flops": ("--flops", {unit: COUNT[unit] for unit in ("T", "G", "M", "k", "")}),
    "energy_mj": ("--energy", {unit: ENERGY_MJ[unit] for unit in ("J", "mJ", "uJ")}),
}
"""By limit: its option, and units from large to small."""


def typed(value: float, units: Mapping[str, float]) -> str:
    """Write a quantity in the largest unit that leaves it at least 1, exactly."""
    unit, size = next(((u, s) for u, s in units.items() if abs(value) >= s), list(units.items())[-1])
    number = repr(round(value / size, 12))
    return (number.removesuffix(".0") if "e" not in number else f"{value / size:.12f}".rstrip("0").rstrip(".")) + unit


def search_command(run: str, device: str, searched: Record, limits: Mapping[str, Limit], means: Conditions) -> str:
    """Return the search that found what is in the run."""
    words = ["merino-edge", "search", "--device", device]
    for name, limit in limits.items():
        flag, units = LIMIT_FLAGS[name]
        low = "" if limit.lower is None else f"{typed(limit.lower, units)}.."
        words += [flag, low + typed(limit.upper, units)]
    for name in ("latency_of", "percentile", "depth", "format", "recipe", "threads", "train_tokens"):
        if getattr(means, name) != getattr(DEFAULT_CONDITIONS, name):
            words += [f"--{name.replace('_', '-')}", str(getattr(means, name))]
    words += ["--vocab", str(means.vocab_size)]
    if means.context_length != DEFAULT_CONDITIONS.context_length:
        words += ["--context", str(means.context_length)]
    if searched.text("space") != DEFAULT_SPACE:
        words += ["--space", searched.text("space")]
    found = searched.inside("architecture")
    alone = len({block.count("width") for block in found.each("blocks")}) == 1
    if alone and not found.value.get("embedding_skip"):
        words.append("--no-embedding-skip")
    words += _score(searched)
    if searched.text("mode") != "exact":
        words += ["--mode", searched.text("mode"), "--seed", str(searched.count("seed"))]
    return shlex.join([*words, "--run", run])


def _score(searched: Record) -> list[str]:
    options, usual = searched.inside("score_options"), ScoreOptions()
    name = options.text("name")
    if name == DEFAULT_SCORE:
        return []
    words = ["--score", name]
    if name == "entropy":
        words += ["--beta", f"{options.number('beta'):g}"]
        for weight in ("alpha1", "alpha2", "eps"):
            if options.number(weight) != getattr(usual, weight):
                words += [f"--{weight}", f"{options.number(weight):g}"]
    return words


def train_command(run: str, training: Record | None) -> str:
    """Return the training that made the checkpoint, or the one to begin with."""
    words = ["merino-edge", "train", run]
    if training is None:
        return shlex.join(words)
    request, source = training.inside("request"), training.inside("data").text("source")
    if not re.fullmatch(r"wikitext2|Python .* documentation", source):  # the text taken where none is named
        words += ["--data", source]
    for key, flag in (("tokens", "--tokens"), ("steps", "--steps")):
        if request.optional(key) is not None:
            words += [flag, str(request.count(key))]
    seconds = request.optional("seconds")
    if seconds is not None:
        words += ["--time", typed(1e3 * seconds, {"h": 3.6e6, "m": 6e4, "s": 1e3})]
    words += [
        "--context",
        str(request.count("context_length")),
        "--batch-tokens",
        str(request.count("tokens_per_batch")),
    ]
    words += ["--learning-rate", f"{request.number('learning_rate'):g}", "--seed", str(request.count("seed"))]
    if request.text("schedule") != "cosine":
        words += ["--schedule", request.text("schedule")]
    return shlex.join(words)


def export_command(run: str, manifest: Manifest) -> str:
    """Return the export that wrote a bundle."""
    words = ["merino-edge", "export", run, "--format", manifest.format, "--recipe", manifest.recipe]
    if manifest.form != "standard":
        words += ["--form", manifest.form]
    return shlex.join([*words, *(["--quantizer", manifest.quantizer] if manifest.quantizer else [])])


def device_commands(run: str, device: str, manifests: Sequence[Manifest]) -> list[str]:
    """Return how what was exported is deployed and measured."""
    if not manifests:
        return []
    return [shlex.join(["merino-edge", command, run, "--device", device]) for command in ("deploy", "bench")]
