"""What was asked, predicted and measured, limit by limit, and the verdict over all of them."""

from __future__ import annotations

import shlex

from merino_edge.bundle import bundle_label
from merino_edge.flows.report_run import RunFacts, train_command
from merino_edge.flows.verify import DEVICE_LIMITS, latency_of
from merino_edge.report.bars import asked
from merino_edge.report.contents import BROKEN, ESTIMATED, KEPT, OPEN, PREDICTED, Promise, Verdict, quantity
from merino_edge.search.cost import count_flops
from merino_edge.units import Limit

_LABELS = {
    "memory_bytes": ("peak memory", "bytes"),
    "file_bytes": ("file size", "bytes"),
    "parameters": ("unique parameters", "count"),
    "flops": ("FLOPs of 1,024 tokens", "count"),
    "energy_mj": ("energy of a token", "mJ"),
}


def latency_label(test: str) -> str:
    """Return a latency in words."""
    words = {"tg": "latency of a token", "ttft": "time to the first token"}
    return words.get(test, f"latency of a prompt of {test[2:]}")


def make_promises(facts: RunFacts) -> tuple[Promise, ...]:
    """Hold every limit against what is known by now."""
    return tuple(_promise(facts, name, limit) for name, limit in facts.limits.items())


def _promise(facts: RunFacts, name: str, limit: Limit) -> Promise:
    test = facts.conditions.latency_of
    label, unit = (latency_label(test), "ms") if name == "latency_ms" else _LABELS[name]
    exact = name in ("parameters", "flops")
    predicted, upper = predicted_of(facts, f"{test}_ms" if name == "latency_ms" else name)
    if exact:
        predicted = {"parameters": facts.architecture.unique_parameters, "flops": count_flops(facts.architecture)}[name]
    measured = None if exact else measured_of(facts, name)
    told = predicted if exact else measured
    if told is not None:
        state = KEPT if limit.admits(told) else BROKEN
    else:
        estimate = facts.searched is not None and facts.searched.flag("estimate") and name in DEVICE_LIMITS
        state = ESTIMATED if estimate else PREDICTED
    return Promise(name, label, unit, limit.upper, limit.lower, predicted, upper, measured, exact, state)


def predicted_of(facts: RunFacts, key: str) -> tuple[float | None, float | None]:
    """Return what was predicted before anything of this model was measured, and the end of the band."""
    if facts.searched is None:
        return None, None
    last, blind = facts.searched.inside("predicted"), facts.searched.maybe("predicted_blind")
    record = blind if blind is not None and blind.optional(key) is not None else last
    return record.optional(key), record.optional(f"{key}_upper")


def measured_of(facts: RunFacts, name: str) -> float | None:
    """Return what the device showed of a limited quantity, None where it was not asked."""
    if name == "file_bytes":
        means = facts.conditions
        label = bundle_label(means.format, means.recipe)
        sizes = [m.file_bytes for m in facts.manifests if bundle_label(m.format, m.recipe) == label]
        return float(max(sizes)) if sizes else None
    mine, test = facts.mine, facts.conditions.latency_of
    kept = facts.searched.maybe("measured") if facts.searched else None
    if name == "latency_ms":
        told = latency_of(mine.ms, test) if mine else None
        return told if told is not None else (kept.optional(f"{test}_ms") if kept else None)
    if name == "memory_bytes":
        peak = mine.memory_bytes if mine else None
        return float(peak) if peak is not None else (kept.optional("peak_memory_bytes") if kept else None)
    energy = mine.energy_mj if mine else None
    return energy if energy is not None else (kept.optional("energy_mj") if kept else None)


def make_verdict(facts: RunFacts, promises: tuple[Promise, ...]) -> Verdict:
    """Answer whether the promise is kept."""
    if not promises:
        if facts.searched is None:
            return Verdict(
                OPEN, "No promise: this architecture was given, not searched for",
                "Nothing was asked of it, so there is nothing to keep.", "merino-edge search --latency 50ms",
            )  # fmt: skip
        return Verdict(OPEN, "No limit was asked", "This is the best of the whole space by its score.")
    told = "; ".join(map(_told, promises)) + "."
    states = {p.state for p in promises}
    bench = shlex.join(["merino-edge", "bench", facts.run.name, "--device", facts.device])
    if BROKEN in states:
        broken = ", ".join(p.label for p in promises if p.state == BROKEN)
        return Verdict(BROKEN, f"Does not keep its limits: {broken}", _sentence(told), "merino-edge search")
    if states == {KEPT}:
        return Verdict(KEPT, "Keeps its limits", _sentence(told))
    if ESTIMATED in states:
        command = shlex.join(["merino-edge", "profile", facts.device])
        return Verdict(ESTIMATED, f"Estimate only: {facts.device} was not measured", _sentence(told), command)
    open_ones = {p.name for p in promises if p.state == PREDICTED}
    if open_ones == {"memory_bytes"} and facts.other_context is not None:
        bench = train_command(facts)
    if open_ones == {"file_bytes"}:
        bench = shlex.join(["merino-edge", "export", facts.run.name, "--recipe", facts.conditions.recipe])
    return Verdict(PREDICTED, "Predicted, not measured yet", _sentence(told), bench)


def _told(promise: Promise) -> str:
    value, word = (promise.predicted, "counted") if promise.exact else (promise.measured, "measured")
    if value is None:
        value = promise.predicted_upper if promise.predicted_upper is not None else promise.predicted
        word = "predicted up to" if promise.predicted_upper is not None else "predicted"
    return f"{promise.label}: asked {asked(promise)}, {word} {quantity(value, promise.unit)}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
