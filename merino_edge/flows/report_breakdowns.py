"""Where time and memory go: what the search's models say part by part, beside what the device showed of the whole."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace

from merino_edge.flows.conditions import TESTS
from merino_edge.flows.part_times import parts_tried, shares_of_parts
from merino_edge.flows.report_promises import latency_label
from merino_edge.flows.report_run import RunFacts, train_command
from merino_edge.measurement import Measurement
from merino_edge.report.contents import Bar, Breakdown, Missing, Part
from merino_edge.search.breakdown import latency_by_kind, memory_by_kind


def make_latency(facts: RunFacts) -> tuple[Breakdown, ...] | Missing:
    """Break the latency of a token and of a prompt down by kind of layer."""
    found, split = [], False
    for test in dict.fromkeys((*TESTS, facts.conditions.latency_of)):
        bars = []
        model = facts.latency_models.get(test)
        if model is not None:
            parts = latency_by_kind(model, facts.architecture)
            total = sum(parts.values())
            word = "estimated" if model.estimate else "predicted"
            bar = Bar(word, _parts(parts), total * max(0.0, 1 - model.band), total * (1 + model.band))
            bars.append(bar)
        passes = facts.mine.passes_ms.get(test, ()) if facts.mine else ()
        if passes and facts.mine:
            low, high = (min(passes), max(passes)) if len(passes) > 1 else (None, None)
            words = f"measured, {len(passes)} passes" if len(passes) > 1 else "measured"
            typical = facts.mine.ms[test]
            shares = shares_of_parts(facts.known, facts.architecture, test) or {"whole": 1.0}
            split = split or "whole" not in shares
            bars.append(Bar(words, _parts({kind: share * typical for kind, share in shares.items()}), low, high))
        if bars:
            title = latency_label(test)
            found.append(Breakdown(f"latency-{test}", title[:1].upper() + title[1:], "ms", tuple(bars), ""))
    if not found:
        return _nothing_measured(facts)
    first = found[0]
    note = ""
    if facts.searched is not None and not facts.latency_models:
        note = "This run's search kept no latency model; a new search tells the parts. "
    if facts.latency_models:
        word = "Estimated" if all(model.estimate for model in facts.latency_models.values()) else "Predicted"
        note = f"{word}: the latency model's terms, as fitted after the last measurement, and its band. It learns from "
        note += "whole models: costs that grow together share one term, and a part without time has it in another. "
    if facts.mine:
        note += "Measured: the whole model; the line under a bar spans its passes, each a process of its own. "
        if split:
            note += "Its parts are twice the difference to models with half of the part (see the commands)."
        elif parts_tried(facts):
            note += (
                "Its parts were measured too, but disturbed, or differing by less than that spread; again, when the"
                f" device does nothing else: {parts_command(facts)}"
            )
        else:
            note += f"To measure parts too: {parts_command(facts)}"
    else:
        note += f"Not measured yet; next: {bench_command(facts)}"
    return (Breakdown(first.key, first.title, first.unit, first.bars, note), *found[1:])


def _parts(values: Mapping[str, float]) -> tuple[Part, ...]:
    return tuple(Part(kind, value) for kind, value in values.items())


def make_memory(facts: RunFacts) -> Breakdown | Missing:
    """Break the peak memory down into runtime, weights, cache and the rest."""
    bars, model, record = [], facts.memory_model, facts.memory_record
    if model is not None and facts.other_context is not None:
        model = replace(model, context_length=facts.other_context)
    if model is not None:
        parts = memory_by_kind(model, facts.architecture)
        total = sum(parts.values())
        low, high = total * max(0.0, 1 - model.band), total * (1 + model.band)
        bars.append(Bar("estimated" if model.estimate else "predicted", _parts(parts), low, high))
    note = f"{bars[0].label.capitalize()}: the memory model's terms, and its band. " if bars else ""
    if record is not None:
        bars.append(Bar("measured", _parts(_measured_memory(facts, record))))
        note += (
            "Measured: the peak of the measuring process and, of it, the empty runtime; weights and cache are counted "
        )
        note += f"at {record.context_length:,} tokens, the rest is what remains."
        if facts.other_context is not None:
            note += (
                f" Both bars are at {record.context_length:,} tokens, the context of the training; the search asked for"
                f" {facts.conditions.context_length:,}, which takes training with it: {train_command(facts)}"
            )
    else:
        note += f"Not measured yet; next: {bench_command(facts)}"
    if not bars:
        return _nothing_measured(facts)
    return Breakdown("memory", "Peak memory", "bytes", tuple(bars), note)


def _measured_memory(facts: RunFacts, record: Measurement) -> dict[str, float]:
    """Split a measured peak: the runtime was measured, weights and cache are counted, where there is room for both."""
    runtime = float(record.peak_memory_bytes - record.model_memory_bytes)
    table = record.unique_bytes * facts.architecture.vocab_size * facts.architecture.embedding_width
    table_bytes = table / facts.architecture.unique_parameters
    cache = float(facts.architecture.kv_cache_bytes(record.context_length))
    rest = record.model_memory_bytes - record.unique_bytes - cache
    if rest < 0:
        return {"runtime": runtime, "whole": float(record.model_memory_bytes)}
    return {
        "runtime": runtime,
        "weights": record.unique_bytes - table_bytes,
        "table": table_bytes,
        "cache": cache,
        "rest": rest,
    }


def parts_command(facts: RunFacts) -> str:
    """Return what measures the parts of a latency."""
    return shlex.join(["merino-edge", "report", facts.run.name, "--measure-parts"])


def bench_command(facts: RunFacts) -> str:
    """Return what measures a run."""
    return shlex.join(["merino-edge", "bench", facts.run.name])


def _nothing_measured(facts: RunFacts) -> Missing:
    return Missing("Nothing of this model was predicted or measured yet", bench_command(facts))
