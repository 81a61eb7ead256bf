"""One row of `bench`: everything that was found about one test of one model, flat, but for the raw samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from merino_edge.bundle import TOKENIZER, Bundle
from merino_edge.device.client import TestResult
from merino_edge.flows.measuring import test_name, to_measurement
from merino_edge.measurement import percentile_ms

COLUMNS = (
    "device", "model", "format", "recipe", "form", "test", "tokens", "depth", "p50_ms", "p90_ms", "p99_ms",
    "ms_per_token", "tokens_per_s", "samples", "load_ms", "peak_memory_bytes", "model_memory_bytes", "file_bytes",
    "unique_bytes", "executed_fp32_bytes", "sharing_disk", "sharing_ram", "energy_mj", "energy_mj_per_token",
    "energy_reason", "temperature_c", "throttled", "perplexity", "bits_per_byte", "perplexity_tokens", "tokenizer",
    "text", "threads", "runtime", "provider", "context_length", "valid", "invalid_reason", "trained", "device_id",
    "os_image", "power_mode", "exporter_version", "architecture_digest",
)  # fmt: skip
"""The flat part, in the order of CSV; `schemas/bench_row.json` says what each is."""

NO_QUALITY: dict[str, Any] = {
    "perplexity": None, "bits_per_byte": None, "perplexity_tokens": 0, "tokenizer": None, "text": None,
}  # fmt: skip
THROTTLED_NOW = 0xF  # of a Raspberry Pi's bits: what acts, not what once did


def bundle_row(
    device: str, model: str, bundle: Bundle, result: TestResult, facts: Mapping[str, Any], quality: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the row of one test of a bundle.

    Args:
        device: Its name.
        model: The subject's name.
        bundle: What was measured.
        result: What the device returned.
        facts: What the device says of itself.
        quality: Perplexity and what it was computed on; see `NO_QUALITY`.
    """
    manifest = bundle.manifest
    return {
        "device": device,
        "model": model,
        "format": manifest.format,
        "recipe": manifest.recipe,
        "form": manifest.form,
        **timing(result),
        "file_bytes": manifest.file_bytes,
        "unique_bytes": manifest.unique_bytes,
        "executed_fp32_bytes": 4 * manifest.architecture.executed_parameters,
        "sharing_disk": manifest.file_bytes / manifest.unique_bytes,
        "sharing_ram": resident_share(result, manifest.unique_bytes),
        "context_length": manifest.context_length,
        "trained": manifest.trained,
        "exporter_version": manifest.exporter_version,
        "architecture_digest": manifest.architecture.digest,
        **machine(to_measurement(result, bundle, facts, manifest.context_length).key.power_mode, facts),
        **NO_QUALITY,
        "tokenizer": tokenizer_digest(bundle),
        **quality,
        "samples_ns": list(result.samples_ns),
    }


def machine(power_mode: str | None, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a baseline must have been taken on."""
    return {"device_id": facts["device_id"], "os_image": facts["os_image"], "power_mode": power_mode}


def timing(result: TestResult) -> dict[str, Any]:
    """Return what the samples, the process and the conditions say, whatever ran."""
    spec, samples = result.spec, result.samples_ns
    per_sample = 1 if spec.test == "tg" else spec.tokens
    p50 = percentile_ms(samples, 50)
    return {
        "test": test_name(spec),
        "tokens": spec.tokens,
        "depth": spec.depth,
        "p50_ms": p50,
        "p90_ms": percentile_ms(samples, 90),
        "p99_ms": percentile_ms(samples, 99),
        "ms_per_token": p50 / per_sample,
        "tokens_per_s": 1e3 * per_sample / p50,
        "samples": len(samples),
        "load_ms": result.load_ns / 1e6,
        "peak_memory_bytes": result.peak_memory_bytes,
        "model_memory_bytes": result.model_memory_bytes,
        "energy_mj": result.energy_mj,
        "energy_mj_per_token": None if result.energy_mj is None else result.energy_mj / per_sample,
        "energy_reason": None if result.energy_mj is not None else result.energy_reason or "no power sensor",
        "temperature_c": hottest_c(result.conditions),
        "throttled": was_throttled(result.conditions),
        "threads": result.threads,
        "runtime": f"{result.runtime} {result.runtime_version}",
        "provider": result.provider,
        "valid": result.valid,
        "invalid_reason": result.invalid_reason,
    }


def _looks(conditions: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return every look at the machine, those that are none left out."""
    during = conditions.get("during")
    every = [conditions.get("before"), *(during if isinstance(during, list) else []), conditions.get("after")]
    return [look for look in every if isinstance(look, Mapping)]


def hottest_c(conditions: Mapping[str, Any]) -> float | None:
    """Return the highest temperature seen around and between the passes, None without a sensor."""
    heats = [look.get("temperature_c") for look in _looks(conditions)]
    known = [float(h) for h in heats if isinstance(h, int | float) and not isinstance(h, bool) and math.isfinite(h)]
    return max(known, default=None)


def was_throttled(conditions: Mapping[str, Any]) -> bool | None:
    """Say whether the board was slowed at any look; None where nothing on it tells."""
    known: list[bool] = []
    for look in _looks(conditions):
        bits, cooled = look.get("throttled_bits"), look.get("cooled_down")
        known += [bool(bits & THROTTLED_NOW)] if isinstance(bits, int) else []
        known += [cooled] if isinstance(cooled, bool) else []
    return any(known) if known else None


def resident_share(result: TestResult, unique_bytes: int) -> float | None:
    """Return the anonymous memory that loading took, over the weights' unique bytes; None where nobody knows.

    Pages of mapped files, which the kernel may drop, are not counted; what a runtime needs for any model is.
    """
    memory = result.conditions.get("memory")
    try:
        empty, loaded = (memory[name] for name in ("empty_runtime", "loaded"))  # type: ignore[index]
        grown = loaded["anonymous"] - empty["anonymous"]
        return float(grown) / unique_bytes if grown > 0 else None
    except (KeyError, TypeError, OverflowError):  # an old or another system's answer
        return None


def tokenizer_digest(bundle: Bundle) -> str | None:
    """Return the first digits of the SHA-256 of a bundle's tokenizer, None where it has none."""
    return next((f.sha256[:12] for f in bundle.manifest.files if f.name == TOKENIZER), None)
