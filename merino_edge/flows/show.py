"""`show`: everything that follows from an architecture alone, and its latency on each profiled device."""

from __future__ import annotations

from typing import Any

from merino_edge.architecture import Architecture
from merino_edge.device.registry import Registry
from merino_edge.flows.profile_file import read_profile
from merino_edge.flows.subject import resolve_subject
from merino_edge.search.cost import count_flops, unique_bytes
from merino_edge.search.entropy import explain
from merino_edge.search.scores import ScoreOptions, explain_score, is_sum


def show(subject_name: str | None, score: ScoreOptions, context_length: int = 1024) -> dict[str, Any]:
    """Describe a run, preset, architecture file, checkpoint or bundle.

    Returns:
        The document of `merino-edge show --json`.
    """
    subject = resolve_subject(subject_name, make_run=False)
    architecture = subject.architecture
    return {
        "name": subject.name,
        "run": subject.run.name if subject.run else None,
        "architecture": architecture.to_json(),
        "architecture_digest": architecture.digest,
        "trained": subject.checkpoint is not None,
        "unique_parameters": architecture.unique_parameters,
        "executed_parameters": architecture.executed_parameters,
        "depth": architecture.depth,
        "flops": count_flops(architecture),
        "flops_with_head": count_flops(architecture, head=True),
        "entropy": explain(architecture, score),
        "searched_score": _searched_score(subject.run.search() if subject.run else None, architecture),
        "file_bytes": {recipe: unique_bytes(architecture, recipe) for recipe in ("fp32", "dynamic_wi8_afp32")},
        "kv_cache_bytes": architecture.kv_cache_bytes(context_length),
        "context_length": context_length,
        "devices": _on_devices(architecture),
    }


def _searched_score(searched: dict[str, Any] | None, architecture: Architecture) -> dict[str, Any] | None:
    """Return the terms of what the run was searched by, None where it was not, or where that needs a network."""
    if searched is None or not isinstance(searched.get("score_options"), dict):
        return None
    options = ScoreOptions(**searched["score_options"])
    return explain_score(architecture, options) if is_sum(options) else None


def _on_devices(architecture: Architecture) -> list[dict[str, Any]]:
    rows = []
    for name in Registry().names():
        profile = read_profile(name)
        for label, recipe in (profile.recipes if profile else {}).items():
            rows.append(
                {
                    "device": name,
                    "bundle": label,
                    "estimate": profile is not None and profile.estimate,
                    **{f"{test}_ms": model.predict_ms(architecture) for test, model in recipe.latency.items()},
                    "memory_bytes": recipe.memory.predict_bytes(architecture),
                }
            )
    return rows
