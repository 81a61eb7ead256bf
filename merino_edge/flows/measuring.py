"""Measuring whole models with random weights on a device: what profile and search share.

A model is exported into a temporary folder, pushed, timed and removed; the records go into the
device's append-only log as they come, so that an interrupted profile or search goes on from them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from merino_edge.architecture import Architecture
from merino_edge.bundle import Bundle
from merino_edge.device.client import Device, TestResult, TestSpec
from merino_edge.exporting import ExportOptions
from merino_edge.flows.conditions import GENERATED_TOKENS, PROMPT_TOKENS, Conditions
from merino_edge.flows.export import random_weights, write_bundle
from merino_edge.measurement import Measurement, MeasurementKey, append_measurements, read_measurements

MEASUREMENTS = "measurements.jsonl"
SHARED_KEY = (
    "device_id", "os_image", "runtime", "runtime_version", "provider", "power_mode", "threads",
    "format", "recipe", "form", "exporter_version",
)  # fmt: skip
"""What all records that inform one prediction have in common."""
NEWEST = 3  # records of one test of one model, of which the fastest counts


def test_specs(conditions: Conditions) -> tuple[TestSpec, ...]:
    """Return the two tests of every profile: generation and reading a prompt."""
    return (
        TestSpec("tg", GENERATED_TOKENS, conditions.depth),
        TestSpec("pp", PROMPT_TOKENS, 0),
    )


def test_name(spec: TestSpec) -> str:
    """`tg`, `pp128`: the name in a record's key (the depth stands beside it)."""
    return "tg" if spec.test == "tg" else f"pp{spec.tokens}"


def to_measurement(result: TestResult, bundle: Bundle, facts: Mapping[str, Any], context_length: int) -> Measurement:
    """Turn what a device returned into the record that is kept."""
    manifest = bundle.manifest
    key = MeasurementKey(
        device_id=facts["device_id"],
        os_image=facts["os_image"],
        runtime=result.runtime,
        runtime_version=result.runtime_version,
        provider=result.provider,
        power_mode=facts["power_mode"],
        threads=result.threads,
        format=manifest.format,
        recipe=manifest.recipe,
        form=manifest.form,
        exporter_version=manifest.exporter_version,
        architecture_digest=manifest.architecture.digest,
        test=test_name(result.spec),
        depth=result.spec.depth,
    )
    return Measurement(
        key=key,
        architecture=manifest.architecture.to_json(),
        samples_ns=tuple(result.samples_ns),
        warmup_ns=tuple(result.warmup_ns),
        load_ns=result.load_ns,
        peak_memory_bytes=result.peak_memory_bytes,
        model_memory_bytes=result.model_memory_bytes,
        file_backed_bytes=result.file_backed_bytes,
        context_length=context_length,
        file_bytes=manifest.file_bytes,
        unique_bytes=manifest.unique_bytes,
        conditions=dict(result.conditions),
        valid=result.valid,
        invalid_reason=result.invalid_reason,
        energy_mj=result.energy_mj,
        energy_reason=result.energy_reason,
        taken_at=time.time(),
    )


def measure_architecture(
    device: Device,
    facts: Mapping[str, Any],
    architecture: Architecture,
    conditions: Conditions,
    budget_s: float | None,
    log: Path,
) -> list[Measurement]:
    """Measure one architecture with random weights and append the records to the device's log.

    Args:
        device: Where to measure.
        facts: What the device says of itself.
        architecture: What to measure.
        conditions: Recipe, threads, depth, context.
        budget_s: Seconds it may take; None for as long as the median needs to settle.
        log: The device's `measurements.jsonl`.

    Returns:
        One record a test, valid or not.
    """
    with tempfile.TemporaryDirectory(prefix="merino-edge-") as folder:
        options = ExportOptions(form=conditions.form, context_length=conditions.context_length, parity=False)
        weights = random_weights(architecture, conditions.context_length)
        bundle = write_bundle(architecture, weights, Path(folder), conditions.format, conditions.recipe, options)
        results = device.measure(
            bundle, test_specs(conditions), conditions.threads, conditions.context_length, budget_s, None
        )
    records = [to_measurement(result, bundle, facts, conditions.context_length) for result in results]
    append_measurements(log, records)
    return records


@dataclass(frozen=True)
class Known:
    """What valid records say of one architecture.

    Attributes:
        architecture: The model.
        ms: Median by test name.
        memory_bytes: Peak of the measuring process at the context asked for; None where not measured.
        runtime_bytes: Of that, what the empty runtime needs.
    """

    architecture: Architecture
    ms: dict[str, float]
    memory_bytes: int | None
    runtime_bytes: int | None


def shared_key(record: Measurement) -> dict[str, Any]:
    """Return the part of a record's key that does not depend on the model or the test."""
    key = asdict(record.key)
    return {name: key[name] for name in SHARED_KEY}


def known_from_log(log: Path, key: Mapping[str, Any], depth: int, context_length: int) -> dict[str, Known]:
    """Gather what a device's log says under one key.

    Args:
        log: The device's `measurements.jsonl`.
        key: See `SHARED_KEY`.
        depth: Depth that `tg` must have been measured at.
        context_length: Context that memory must have been measured at.

    Returns:
        By architecture digest; of the newest three valid records of a test the fastest counts, because
        what disturbs a measurement only ever makes it slower.
    """
    return gather(read_measurements(log), key, depth, context_length)


def gather(records: Iterable[Measurement], key: Mapping[str, Any], depth: int, context_length: int) -> dict[str, Known]:
    """Gather what records say under one key; see `known_from_log`."""
    known: dict[str, Known] = {}
    recent: dict[tuple[str, str], list[float]] = {}
    for record in records:
        wanted_depth = depth if record.key.test == "tg" else 0
        if not record.valid or shared_key(record) != dict(key) or record.key.depth != wanted_depth:
            continue
        digest, test = record.key.architecture_digest, record.key.test
        medians = recent.setdefault((digest, test), [])
        medians.append(record.p50_ms)
        old = known.get(digest) or Known(Architecture.from_json(record.architecture), {}, None, None)
        same_context = record.context_length == context_length
        memory = record.peak_memory_bytes if same_context else old.memory_bytes
        runtime = record.peak_memory_bytes - record.model_memory_bytes if same_context else old.runtime_bytes
        known[digest] = Known(old.architecture, {**old.ms, test: min(medians[-NEWEST:])}, memory, runtime)
    return known
