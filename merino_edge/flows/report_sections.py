"""The sections of a report, each from what a run's files say of it, or the command that would tell."""

from __future__ import annotations

import csv
import io
import math
import re
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from merino_edge.architecture import Architecture
from merino_edge.errors import InvalidFileError, next_step
from merino_edge.files import read_json, read_text
from merino_edge.flows.part_times import variants
from merino_edge.flows.quality import VALIDATION_FACTS
from merino_edge.flows.report_breakdowns import bench_command
from merino_edge.flows.report_promises import latency_label, measured_of, predicted_of
from merino_edge.flows.report_reading import Record
from merino_edge.flows.report_run import SEARCH_AGAIN, TRAIN_AGAIN, RunFacts
from merino_edge.measurement import Measurement
from merino_edge.report.contents import (
    FRONT,
    KNOWN,
    MEASURED,
    RELAXED,
    WINNER,
    Axis,
    BlockShape,
    Curve,
    Export,
    Facts,
    Landscape,
    Missing,
    Point,
    Quality,
    Shape,
    quantity,
)  # fmt: skip
from merino_edge.search.breakdown import latency_of_block
from merino_edge.search.cost import unique_bytes
from merino_edge.units import format_bytes, format_count, format_ms

MOST_DRAWN = 300  # points of the front
HELD_OUT = "held out in training"
COSTS = {"memory_bytes": "peak memory", "parameters": "unique parameters", "file_bytes": "file size"}


def make_shape(facts: RunFacts) -> Shape:
    """Describe the architecture block by block."""
    a, model = facts.architecture, facts.latency_models.get("tg")
    blocks = []
    for i, block in enumerate(a.blocks):
        shapes = {n: s for n, s in a.tensor_shapes.items() if n.startswith(f"blocks.{i}.") and "projection" not in n}
        blocks.append(
            BlockShape(
                width=block.width,
                heads=a.heads(i),
                ffn_width=block.ffn_width,
                depth=block.depth,
                parameters=sum(math.prod(s) for s in shapes.values()),
                projected_from=a.input_width(i) if a.input_width(i) != block.width else None,
                latency_ms=sum(latency_of_block(model, a, i).values()) if model else None,
            )
        )
    return Shape(
        description=a.describe(),
        vocab_size=a.vocab_size,
        embedding_width=a.embedding_width,
        table_parameters=a.vocab_size * a.embedding_width,
        unique_parameters=a.unique_parameters,
        executed_parameters=a.executed_parameters,
        output_projection=a.blocks[-1].width != a.embedding_width,
        per_layer_norms=a.per_layer_norms,
        blocks=tuple(blocks),
    )


def make_landscape(facts: RunFacts) -> Landscape | Missing:
    """Put the front, what was measured and what was found into one picture."""
    searched = facts.searched
    if searched is None:
        return Missing("Nothing was searched", "merino-edge search --latency 50ms")
    test = facts.conditions.latency_of
    latency = f"{test}_ms"
    front = _read_front(facts, latency)
    winner = _winner(facts, searched, latency)
    points = [p for p in front if p.architecture != winner.architecture] + _measured(facts, searched, latency)
    labels = {latency: (latency_label(test), "ms")}
    labels |= {key: (label, "count" if key == "parameters" else "bytes") for key, label in COSTS.items()}
    axes = []
    for key, (label, unit) in labels.items():
        limit = facts.limits.get("latency_ms" if key == latency else key)
        if key in winner.costs:
            axes.append(Axis(key, label, unit, limit.upper if limit else None, limit.lower if limit else None))
    axes.sort(key=lambda axis: axis.limit is None)  # what was limited first
    drawn, left_out = _thinned(points, axes)
    relaxed = _relaxed(searched, latency, {axis.key for axis in axes})
    return Landscape(searched.inside("score_options").text("name"), tuple(axes), (*drawn, *relaxed, winner), left_out)


def _read_front(facts: RunFacts, latency: str) -> list[Point]:
    """Read `pareto.csv`."""
    path, points = facts.run.pareto_file, []
    with next_step(SEARCH_AGAIN):
        rows = list(csv.DictReader(io.StringIO(read_text(path, "Pareto front"))))
    for number, row in enumerate(rows, start=2):
        try:
            costs = {key: float(row[key]) for key in ("tg_ms", "pp128_ms", *COSTS) if row[key]}
            score, architecture = float(row["score"]), row["architecture"]
            if not all(map(math.isfinite, (score, *costs.values()))) or not isinstance(architecture, str):
                raise ValueError("a value is no number")
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidFileError(
                f"Pareto front {path}, line {number} is damaged: {error}", hint=SEARCH_AGAIN
            ) from error
        if latency == "ttft_ms" and {"tg_ms", "pp128_ms"} <= set(costs):
            costs["ttft_ms"] = costs["tg_ms"] + costs["pp128_ms"]
        points.append(Point(FRONT, architecture, score, {k: v for k, v in costs.items() if k in (latency, *COSTS)}))
    return points


def _winner(facts: RunFacts, searched: Record, latency: str) -> Point:
    exact = {"parameters": float(facts.architecture.unique_parameters)}
    predicted, upper = dict(exact), dict[str, float]()
    for key in (latency, "memory_bytes", "file_bytes"):
        value, most = predicted_of(facts, key)
        predicted |= {key: value} if value is not None else {}
        upper |= {key: most} if most is not None else {}
    measured = {
        key: measured_of(facts, "latency_ms" if key == latency else key) for key in predicted if key not in exact
    }
    told = {key: value for key, value in measured.items() if value is not None}
    before = {key: predicted[key] for key in told}
    return Point(WINNER, facts.architecture.describe(), searched.number("score"), {**predicted, **told}, before, upper)


def _measured(facts: RunFacts, searched: Record, latency: str) -> list[Point]:
    """Return the candidates of the search's rounds, and what had been measured of other models before."""
    found: dict[str, Point] = {}
    for entry in searched.each("rounds"):
        with next_step(SEARCH_AGAIN):
            architecture = Architecture.from_json(entry.inside("architecture").value, entry.where)
        measured, predicted, score = entry.maybe("measured"), entry.inside("predicted"), facts.score(architecture)
        if measured is None or score is None or architecture == facts.architecture:
            continue
        told = {latency: measured.optional(latency), "memory_bytes": measured.optional("peak_memory_bytes")}
        before = {k: v for k, v in predicted.numbers().items() if k in told and told[k] is not None}
        found[architecture.digest] = _point(facts, MEASURED, architecture, score, told, before)
    halved = {architecture.digest for architecture, _ in variants(facts.architecture).values()}
    for digest, known in facts.known.items():
        if digest in halved:
            continue
        score = facts.score(known.architecture)
        same = known.architecture.vocab_size == facts.architecture.vocab_size
        if digest in found or digest == facts.architecture.digest or score is None or not same:
            continue
        told = {f"{test}_ms": ms for test, ms in known.ms.items()}
        if {"tg", "pp128"} <= set(known.ms):
            told["ttft_ms"] = known.ms["tg"] + known.ms["pp128"]
        told = {latency: told.get(latency), "memory_bytes": known.memory_bytes}
        found[digest] = _point(facts, KNOWN, known.architecture, score, told, {})
    return list(found.values())


def _point(
    facts: RunFacts,
    kind: str,
    architecture: Architecture,
    score: float,
    told: Mapping[str, float | None],
    predicted: Mapping[str, float],
) -> Point:
    costs = {key: float(value) for key, value in told.items() if value is not None}
    costs["parameters"] = float(architecture.unique_parameters)
    costs["file_bytes"] = float(unique_bytes(architecture, facts.conditions.recipe))
    return Point(kind, architecture.describe(), score, costs, predicted)


def _relaxed(searched: Record, latency: str, keys: set[str]) -> list[Point]:
    """Return what the best score would be were a limit lower or higher."""
    points = []
    for entry in searched.each("sensitivity"):
        key, score = entry.text("name"), entry.optional("score")
        key = latency if key == "latency_ms" else key
        if key in keys and score is not None:
            words = f"the limit times {entry.number('factor'):g}"
            points.append(Point(RELAXED, words, score, {key: entry.number("limit")}))
    return points


def _thinned(points: list[Point], axes: list[Axis]) -> tuple[list[Point], int]:
    """Keep all but so many points of a large front: those best for some cost, and every n-th of the others."""
    front = [p for p in points if p.kind == FRONT]
    if len(front) <= MOST_DRAWN:
        return points, 0
    kept: set[int] = set()
    for axis in axes:
        best = -math.inf
        for i in sorted(range(len(front)), key=lambda i: (front[i].costs.get(axis.key, math.inf), -front[i].score)):
            if front[i].score > best:
                best = front[i].score
                kept.add(i)
    room = max(1, MOST_DRAWN - len(kept))
    kept |= set(range(0, len(front), math.ceil(len(front) / room)))
    drawn = [front[i] for i in sorted(kept)]
    return drawn + [p for p in points if p.kind != FRONT], len(front) - len(drawn)


def make_training(facts: RunFacts) -> Curve | Missing:
    """Return the curve of the training, whole or as far as it went."""
    train = shlex.join(["merino-edge", "train", facts.run.name])
    if facts.training is not None:
        return _finished(facts.training)
    if facts.log is not None:
        entries = [entry for entry in facts.log.each("log_history") if "loss" in entry.value]
        points = tuple((e.count("tokens"), e.number("loss")) for e in entries if "tokens" in e.value)
        if points:
            words = f"stopped after {format_count(points[-1][0])} tokens; the same command goes on: {train}"
            return Curve(points, None, False, (("unfinished", words),))
    return Missing("Not trained yet: weights are random", train)


def _finished(training: Record) -> Curve | Missing:
    result, data = training.inside("result"), training.inside("data")
    points = tuple((point.count("tokens"), point.number("loss")) for point in training.each("curve"))
    held_out = result.number("validation_loss")
    told: Facts = (
        ("trained on", f"{format_count(result.count('tokens'))} tokens of {data.text('source')}"),
        ("by", f"{training.text('device')}, torch {training.text('torch')}"),
        ("held-out text", f"loss {held_out:.3f} nats a token, perplexity {result.number('perplexity'):.2f}, "
                          f"{result.number('bits_per_byte'):.3f} bits per byte"),
        ("speed", f"{result.number('tokens_per_s'):,.0f} tokens/s, {result.number('seconds'):,.0f} s in all"),
    )  # fmt: skip
    return Curve(points or ((result.count("tokens"), result.number("train_loss")),), held_out, True, told)


def make_quality(facts: RunFacts) -> Quality | Missing:
    """Return what rounding cost, by size of the file."""
    name = facts.run.name
    if not facts.manifests:
        return Missing("Nothing is exported yet", shlex.join(["merino-edge", "export", name]))
    per_token = _bytes_per_token(facts)
    exports, texts, tokens = [], [], 0
    for manifest in facts.manifests:
        quality = Record(manifest.quality or {"measured": False, "reason": "not asked for"}, "manifest", SEARCH_AGAIN)
        label = " ".join(part for part in (manifest.format, manifest.recipe) if part)
        label += "" if manifest.form in ("standard", "fast") else f" {manifest.form}"
        if not quality.flag("measured"):
            exports.append(
                Export(label, _bits(manifest.recipe), manifest.file_bytes, None, None, None, quality.text("reason"))
            )
            continue
        perplexity = quality.number("perplexity")
        texts.append(quality.text("text"))
        tokens = max(tokens, quality.count("tokens"))
        bits = math.log2(perplexity) / per_token if per_token and texts[-1] == HELD_OUT and perplexity > 0 else None
        change = quality.number("perplexity_change")
        exports.append(Export(label, _bits(manifest.recipe), manifest.file_bytes, perplexity, bits, change, None))
    if not texts:
        if facts.training is None:
            return Missing("The exported files hold random weights", shlex.join(["merino-edge", "train", name]))
        return Missing(
            "No text to compare on lay beside the weights",
            shlex.join(["merino-edge", "export", name, "--text", "FILE"]),
        )
    return Quality(tuple(exports), ", ".join(dict.fromkeys(texts)), tokens)


def _bits(recipe: str) -> int:
    found = re.search(r"wi(\d+)", recipe)
    return int(found[1]) if found else (16 if "fp16" in recipe else 32)


def _bytes_per_token(facts: RunFacts) -> float | None:
    path = facts.run.checkpoint / VALIDATION_FACTS
    if not path.is_file():
        return None
    with next_step(TRAIN_AGAIN):
        record = Record(read_json(path, "held-out text"), f"held-out text {path}", TRAIN_AGAIN)
    tokens = record.count("tokens")
    return record.number("bytes") / tokens if tokens else None


def make_conditions(facts: RunFacts) -> Facts | Missing:
    """Say under which conditions the newest valid measurement of this model was taken."""
    records = facts.mine_in(valid=True)
    refused = facts.mine_in(valid=False)
    if not records:
        if refused:
            words = f"No measurement of this model is valid: {refused[-1].invalid_reason}"
            return Missing(words, bench_command(facts))
        return Missing("Nothing of this model was measured yet", bench_command(facts))
    record = records[-1]
    key, before, after = record.key, _snapshot(record, "before"), _snapshot(record, "after")
    told = [
        ("device", f"{facts.device} ({key.device_id}), {key.os_image}"),
        ("runtime", f"{key.runtime} {key.runtime_version}, {key.provider}, {key.threads} threads"),
        ("file", f"{key.format} {key.recipe}, form {key.form}, exporter {key.exporter_version}"),
        (
            "governor",
            str(before.get("governor") or "the machine names none") + f", power mode {key.power_mode or 'none'}",
        ),
        ("temperature", _temperature(before, after)),
        ("throttling", _throttling(before, after)),
        ("load", f"{before.get('load1', '?')} before, {after.get('load1', '?')} after"),
        ("measured", f"{date_text(records[0].taken_at)} to {date_text(record.taken_at)}"),
        ("records", f"{len(records)} valid, {len(refused)} not valid and not used"),
        (
            "energy",
            f"{record.energy_mj:.3g} mJ a repetition" if record.energy_mj is not None else str(record.energy_reason),
        ),
    ]
    return tuple(told)


def _snapshot(record: Measurement, when: str) -> Mapping[str, Any]:
    found = record.conditions.get(when)
    return found if isinstance(found, Mapping) else {}


def _temperature(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    first, last = before.get("temperature_c"), after.get("temperature_c")
    if not isinstance(first, int | float) or not isinstance(last, int | float):
        return "no sensor is readable here"
    return f"{first:.1f} C before, {last:.1f} C after"


def _throttling(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    bits = [s.get("throttled_bits") for s in (before, after)]
    if None not in bits:
        return "none" if not any(bits) else f"flags {bits[0]:#x} before, {bits[1]:#x} after"
    return "this machine tells no flags; clocks and queue were watched"


def date_text(seconds: float) -> str:
    """Write a time, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def make_found(facts: RunFacts) -> Facts:
    """Say what was found, in numbers."""
    a = facts.architecture
    told = [
        ("architecture", a.describe()),
        ("parameters", f"{format_count(a.unique_parameters)} stored, {format_count(a.executed_parameters)} executed"),
        ("layers", f"{len(a.blocks)} stored, {a.depth} executed"),
    ]
    if facts.searched is not None:
        name = facts.searched.inside("score_options").text("name")
        told.append(("score", f"{facts.searched.number('score'):.6g} ({name})"))
        flops, head = facts.searched.number("flops"), facts.searched.number("flops_with_head")
        told.append(("FLOPs", f"{format_count(flops)}, with head {format_count(head)}, for 1,024 tokens"))
    cache = a.kv_cache_bytes(facts.conditions.context_length)
    told.append(("cache", f"{format_bytes(cache)} for {facts.conditions.context_length:,} tokens"))
    return tuple(told)


def make_searched(facts: RunFacts) -> Facts | Missing:
    """Say what was searched, and what it took."""
    s = facts.searched
    if s is None:
        return Missing("Nothing was searched: the architecture was given", "merino-edge search --latency 50ms")
    seconds = s.inside("seconds")
    looked = 1e3 * (seconds.number("score") + seconds.number("search"))
    told = [
        ("space", f"{s.text('space')}: {s.count('space_size'):,} architectures"),
        ("looked at", f"{s.count('evaluated'):,} ({s.text('mode')}) in {format_ms(looked)}"),
        ("keep the limits", f"{s.count('feasible'):,}, of which {s.count('front_size'):,} on the Pareto front"),
        ("measurements", f"{len(s.each('rounds'))} in this search; models known: {s.count('known_models')}"),
    ]
    binding = [c for c in s.each("constraints") if c.flag("binding")]
    told.append(("limits that bind", ", ".join(c.text("name").partition("_")[0] for c in binding) or "none"))
    model = s.inside("latency_model").maybe("tg")
    error = model.optional("mape") if model else None
    if model is not None and error is not None:
        told.append(
            ("latency model", f"mean error {100 * error:.1f} % on {model.count('samples')} models left out in turn")
        )
    loss = s.maybe("expected_loss")
    if loss is not None:
        told.append(("expected loss", f"{loss.number('nats_per_token'):.2f} nats a token of the study's text"))
    return tuple(told)


def means_text(facts: RunFacts) -> str:
    """Say what a latency limit means, where one was asked."""
    if "latency_ms" not in facts.limits:
        return ""
    text = facts.conditions.sentence(facts.device)
    return quantity(None, "ms") if not text else text[:1].upper() + text[1:] + "."
