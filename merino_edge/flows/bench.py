"""`bench`: the run's bundles side by side on a device: speed, memory, size, and perplexity of the exported file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from merino_edge.bundle import Bundle
from merino_edge.device.client import Device, TestResult, TestSpec
from merino_edge.device.registry import device_folder
from merino_edge.errors import MeasurementError, MerinoEdgeError, PartialFailureError, UsageError
from merino_edge.files import write_lines
from merino_edge.flows.conditions import DEFAULT_CONDITIONS, GENERATED_TOKENS, PROMPT_TOKENS
from merino_edge.flows.deploy import subject_device
from merino_edge.flows.devices import Ask, find_entry, opened, select_device
from merino_edge.flows.export import brought_up_to_date, current_bundle, exported_bundles
from merino_edge.flows.measuring import MEASUREMENTS, shared_key, test_name, to_measurement, what_changed
from merino_edge.flows.profile_file import read_profile
from merino_edge.flows.quality import read_validation
from merino_edge.flows.runtime_version import check_runtime, runtime_version
from merino_edge.flows.subject import Subject, resolve_subject
from merino_edge.measurement import Measurement, append_measurements, percentile_ms, read_measurements
from merino_edge.progress import SILENT, Progress

DEFAULT_RECIPES = ("fp32", "dynamic_wi8_afp32")


@dataclass(frozen=True)
class BenchOptions:
    """What the command line says.

    Attributes:
        device: `--device`.
        recipes: `FORMAT/RECIPE` or `RECIPE`; those exported where none is named, else fp32 and int8.
        seconds: Time for each bundle's speed.
        tokens: Held-out tokens for perplexity; 0 leaves it out.
        threads: Of the runtime; None for all performance cores.
        sustained: Measure the hot state that lasts.
    """

    device: str | None = None
    recipes: tuple[str, ...] = ()
    seconds: float = 10.0
    tokens: int = 4096
    threads: int | None = None
    sustained: bool = False


def bench(
    subject_name: str | None, options: BenchOptions, ask: Ask | None = None, progress: Progress = SILENT
) -> dict[str, Any]:
    """Measure every bundle of a run on a device.

    Returns:
        The document of `merino-edge bench --json`.

    Raises:
        PartialFailureError: some bundles failed; the rows of the others are in its details.
    """
    subject = resolve_subject(subject_name)
    name = select_device(options.device, subject_device(subject), progress)
    entry = find_entry(name)
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    with opened(entry, ask) as device:
        facts = device.facts()
        if facts.get("emulated"):
            progress.note(f"{name} is emulated ({facts['emulated']}): it computes rightly, its times are no board's")
        version = runtime_version(facts)
        device.sustained, device.on_note = options.sustained, progress.note
        bundles = [subject.bundle] if subject.bundle is not None else _bundles(subject, options, version, progress)
        with progress.task(f"measuring {len(bundles)} bundles on {name}", len(bundles)) as task:
            for number, bundle in enumerate(bundles):
                task.update(number, f"measuring {bundle.label} on {name}")
                try:
                    check_runtime(bundle, version, name)
                    rows += _measure(device, facts, subject, bundle, options, name, progress)
                except MerinoEdgeError as error:
                    failures.append(f"{bundle.label}: {error.message}")
                task.update(number + 1)
    if subject.run is not None:
        _keep_records(subject, name)
    document = {
        "device": name,
        "run": subject.run.name if subject.run else None,
        "trained": _trained(bundles),
        "rows": rows,
    }
    if failures:
        raise PartialFailureError("; ".join(failures), hint="the other rows are complete", partial=document)
    if rows and not any(row["valid"] for row in rows):
        raise MeasurementError(
            f"no measurement on {name} is valid: {rows[-1]['invalid_reason']}",
            hint="stop what else runs on the device, let it cool, and measure again; without a fan: --sustained",
            partial=document,
        )
    return document


def _bundles(subject: Subject, options: BenchOptions, version: str | None, progress: Progress) -> list[Bundle]:
    """Return what was asked for, else all that is exported, else the two recipes everyone compares."""
    exported = [] if options.recipes else exported_bundles(subject)
    if exported:
        return [brought_up_to_date(subject, bundle, progress) for bundle in exported]
    found = []
    for wish in options.recipes or DEFAULT_RECIPES:
        format_name, _, recipe = wish.rpartition("/")
        found.append(current_bundle(subject, format_name or "onnx", recipe, progress, version))
    return found


def _trained(bundles: Sequence[Bundle]) -> bool:
    return all(bundle.manifest.trained for bundle in bundles)


def _measure(
    device: Device,
    facts: dict[str, Any],
    subject: Subject,
    bundle: Bundle,
    options: BenchOptions,
    name: str,
    progress: Progress,
) -> list[dict[str, Any]]:
    manifest = bundle.manifest
    results = device.measure(
        bundle, _specs(manifest.context_length), options.threads, manifest.context_length, options.seconds, None
    )
    records = [to_measurement(result, bundle, facts, manifest.context_length) for result in results]
    append_measurements(device_folder(name) / MEASUREMENTS, records)
    _tell_changes(name, bundle, records[0], progress)
    quality = _perplexity(device, subject, bundle, options)
    return [_row(subject, bundle, result, record, quality) for result, record in zip(results, records, strict=True)]


def _tell_changes(name: str, bundle: Bundle, record: Measurement, progress: Progress) -> None:
    """Say where the device is no longer what it was profiled as: what `search` predicts for it is out of date."""
    made = read_profile(name)
    fields = ("format", "recipe", "form")
    meant = {name: getattr(bundle.manifest, name) for name in fields}
    for recipe in made.recipes.values() if made else ():
        if {name: recipe.key.get(name) for name in fields} != meant:
            continue
        changed = what_changed({**recipe.key, "threads": record.key.threads}, shared_key(record))
        if changed:
            progress.note(f"{name} is not what it was profiled as: {changed}; next: merino-edge profile {name}")


def _specs(context_length: int) -> tuple[TestSpec, ...]:
    """Return the tests of a profile, cut down where the model's context is too short for them."""
    if context_length < 2:
        raise UsageError("a context of one token leaves nothing to generate")
    generated = min(GENERATED_TOKENS, context_length // 2)
    depth = min(DEFAULT_CONDITIONS.depth, context_length - generated)
    return (TestSpec("tg", generated, depth), TestSpec("pp", min(PROMPT_TOKENS, context_length), 0))


def _row(
    subject: Subject, bundle: Bundle, result: TestResult, record: Measurement, quality: dict[str, Any]
) -> dict[str, Any]:
    manifest = bundle.manifest
    per_run = 1 if record.key.test == "tg" else result.spec.tokens
    p50 = record.p50_ms
    return {
        "model": subject.name,
        "format": manifest.format,
        "recipe": manifest.recipe,
        "form": manifest.form,
        "test": test_name(result.spec),
        "depth": result.spec.depth,
        "p50_ms": p50,
        "p90_ms": percentile_ms(record.samples_ns, 90),
        "p99_ms": percentile_ms(record.samples_ns, 99),
        "tokens_per_s": 1e3 * per_run / p50,
        "load_ms": record.load_ns / 1e6,
        "peak_memory_bytes": record.peak_memory_bytes,
        "model_memory_bytes": record.model_memory_bytes,
        "file_bytes": manifest.file_bytes,
        "unique_bytes": manifest.unique_bytes,
        "executed_fp32_bytes": 4 * manifest.architecture.executed_parameters,
        "threads": record.key.threads,
        "runtime": f"{record.key.runtime} {record.key.runtime_version}",
        "provider": record.key.provider,
        "valid": record.valid,
        "invalid_reason": record.invalid_reason,
        "energy_mj": record.energy_mj,
        "energy_reason": record.energy_reason,
        "trained": manifest.trained,
        **quality,
        "samples_ns": list(record.samples_ns),
    }


def _perplexity(device: Device, subject: Subject, bundle: Bundle, options: BenchOptions) -> dict[str, Any]:
    """Perplexity of the exported file on the checkpoint's held-out tokens, computed on the device."""
    nothing = {"perplexity": None, "bits_per_byte": None, "perplexity_tokens": 0}
    if subject.checkpoint is None or options.tokens == 0 or not bundle.manifest.trained:
        return nothing
    held_out = read_validation(subject.checkpoint)
    if held_out is None:
        return nothing
    tokens, bytes_per_token = held_out
    tokens = tokens[: options.tokens]
    result = device.perplexity(bundle, tokens, bundle.manifest.context_length, None)
    nats = result.nll_nats_sum / result.tokens
    return {
        "perplexity": math.exp(min(nats, 700.0)),
        "bits_per_byte": nats / math.log(2) / bytes_per_token,
        "perplexity_tokens": result.tokens,
    }


def _keep_records(subject: Subject, name: str) -> None:
    run = subject.require_run()
    old = {json.dumps(r.to_json(), sort_keys=True): r for r in read_measurements(run.measurements_file)}
    for record in read_measurements(device_folder(name) / MEASUREMENTS):
        if record.key.architecture_digest == subject.architecture.digest:
            old[json.dumps(record.to_json(), sort_keys=True)] = record
    write_lines(run.measurements_file, [r.to_json() for r in old.values()])
