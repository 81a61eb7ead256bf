"""Measuring whole models with random weights on a device: what profile and search share.

A model is exported into a temporary folder, its graph is pushed, its weights are made on the device, it is
timed and removed; the records go into the device's append-only log as they come, so that an interrupted
profile or search goes on from them.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from merino_edge.agent import synthetic
from merino_edge.architecture import Architecture
from merino_edge.bundle import Bundle, describe_file, write_manifest
from merino_edge.device.client import Device, TestResult, TestSpec
from merino_edge.exporting import ExportOptions
from merino_edge.files import open_atomic
from merino_edge.flows.conditions import GENERATED_TOKENS, PROMPT_TOKENS, TESTS, Conditions, check_threads
from merino_edge.flows.export import random_weights, write_bundle
from merino_edge.flows.placement import counting
from merino_edge.flows.runtime_version import runtime_version
from merino_edge.measurement import (
    Measurement,
    MeasurementKey,
    append_measurements,
    percentile_ms,
    read_measurements,
)
from merino_edge.progress import Task

MEASUREMENTS = "measurements.jsonl"
SUSTAINED = "+sustained"
"""After a power mode: measured in the hot state that lasts, and so comparable with nothing else."""
SHARED_KEY = (
    "device_id", "os_image", "runtime", "runtime_version", "provider", "power_mode", "threads",
    "format", "recipe", "form", "exporter_version",
)  # fmt: skip
"""What all records that inform one prediction have in common."""
PASSES = 2  # far apart in time, that every model gets
MOST_PASSES = 7  # that a model gets, valid or not, while its median is uncertain
NEWEST = MOST_PASSES  # records of one test of one model that count
CERTAIN = 0.007  # uncertainty of a median that is good enough: that of two passes 2 % apart
FIRST_SHARE = 0.5  # of the time, for the passes that every model gets
TIMED_SHARE = 0.6  # of a turn; the rest is exporting, sending and loading
LEAST_TURN_S = 0.5


def with_synthetic_weights(bundle: Bundle, seed: int = 0) -> Bundle:
    """Return an untrained bundle whose weights come from a seed, so that a device can make them itself.

    The files are made here too: what the device makes must have their digests.
    """
    for name, pieces in bundle.layout.items():
        with open_atomic(bundle.folder / name) as stream:
            for chunk in synthetic.generate(pieces, seed):
                stream.write(chunk)
    files = tuple(describe_file(bundle.folder, f.name) if f.name in bundle.layout else f for f in bundle.manifest.files)
    manifest = replace(bundle.manifest, files=files)
    write_manifest(bundle.folder, manifest)
    return replace(bundle, manifest=manifest, seed=seed)


def test_specs(conditions: Conditions) -> tuple[TestSpec, ...]:
    """Return the two tests of every profile, generation and reading a prompt; a prompt of another length besides."""
    prompts = dict.fromkeys((PROMPT_TOKENS, conditions.prompt_tokens))
    return (
        TestSpec("tg", GENERATED_TOKENS, conditions.depth),
        *(TestSpec("pp", tokens, 0) for tokens in prompts),
    )


def test_name(spec: TestSpec) -> str:
    """`tg` (of 64 tokens), `tg16`, `pp128`, `full1024`: the name in a record's key (the depth stands beside it)."""
    return "tg" if (spec.test, spec.tokens) == ("tg", GENERATED_TOKENS) else f"{spec.test}{spec.tokens}"


def to_measurement(result: TestResult, bundle: Bundle, facts: Mapping[str, Any], context_length: int) -> Measurement:
    """Turn what a device returned into the record that is kept."""
    manifest = bundle.manifest
    key = MeasurementKey(
        device_id=facts["device_id"],
        os_image=facts["os_image"],
        runtime=result.runtime,
        runtime_version=result.runtime_version,
        provider=result.provider,
        power_mode=facts["power_mode"] + (SUSTAINED if result.conditions.get("state") == "sustained" else ""),
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
    check_threads(device.name, facts, conditions.threads)
    with tempfile.TemporaryDirectory(prefix="merino-edge-") as folder:
        options = ExportOptions(
            form=conditions.form,
            context_length=conditions.context_length,
            parity=False,
            runtime_version=runtime_version(facts),
        )
        weights = random_weights(architecture, conditions.context_length)
        bundle = with_synthetic_weights(
            write_bundle(architecture, weights, Path(folder), conditions.format, conditions.recipe, options)
        )
        results = device.measure(
            bundle, test_specs(conditions), conditions.threads, conditions.context_length, budget_s, None
        )
    records = [to_measurement(result, bundle, facts, conditions.context_length) for result in results]
    append_measurements(log, records)
    return records


def measure_in_passes(
    device: Device,
    facts: Mapping[str, Any],
    architectures: Sequence[Architecture],
    conditions: Conditions,
    seconds: float,
    log: Path,
    records: list[Measurement],
    task: Task,
) -> list[Measurement]:
    """Measure many models, each in fresh processes far apart in time, until the median of their passes is certain.

    A neighbour that slows or frees the machine for some seconds leaves no trace in the kernel's counters, but it
    seldom meets the same model twice: every model is measured in two rounds over all of them. Then,
    while there is time, the model whose median is least certain is measured again.

    Args:
        device: Where to measure.
        facts: What the device says of itself.
        architectures: What to measure, in this order.
        conditions: Recipe, threads, depth, context.
        seconds: Time for all of it; each model is measured at least twice whatever it takes.
        log: The device's `measurements.jsonl`.
        records: What is known already and counts as measured.
        task: Hears how many seconds of them are gone.

    Returns:
        Old and new records.
    """
    records = list(records)
    started = time.monotonic()

    def turn(architecture: Architecture, share_s: float) -> None:
        budget = TIMED_SHARE * max(LEAST_TURN_S, share_s)
        records.extend(measure_architecture(device, facts, architecture, conditions, budget, log))
        task.update(min(time.monotonic() - started, seconds))

    turns = [(wanted, a) for wanted in range(1, PASSES + 1) for a in architectures]
    for number, (wanted, architecture) in enumerate(turns):
        if len(pass_medians(counting(records), architecture)) < wanted:
            left = started + FIRST_SHARE * seconds - time.monotonic()
            turn(architecture, left / (len(turns) - number))
    share = FIRST_SHARE * seconds / len(turns) if turns else 0.0
    while time.monotonic() + share < started + seconds:
        tried = Counter(r.key.architecture_digest for r in records)  # one record a test
        quiet = counting(records)
        unsure = uncertainties([pass_medians(quiet, a) for a in architectures])
        again = {a: u for a, u in zip(architectures, unsure, strict=True) if tried[a.digest] < MOST_PASSES * len(TESTS)}
        worst = max(again, key=again.__getitem__, default=None)
        if worst is None or again[worst] <= CERTAIN:
            break
        turn(worst, share)
    task.update(seconds)
    return records


def pass_medians(records: Iterable[Measurement], architecture: Architecture) -> list[tuple[float, ...]]:
    """Return the medians of each valid pass over one architecture, one value a test."""
    mine = [r for r in records if r.valid and r.key.architecture_digest == architecture.digest]
    by_test = [[r.p50_ms for r in mine if r.key.test == test] for test in TESTS]
    return list(zip(*by_test, strict=False))


def uncertainties(models: Sequence[Sequence[tuple[float, ...]]]) -> list[float]:
    """Return how uncertain the median of each model's passes is, as a share, in the worst test.

    The median absolute deviation of the passes over the root of their number. Few passes may agree by chance where
    the machine is restless: no deviation counts as less than the usual one, the median of all models.

    Args:
        models: The passes of each, of each pass one value a test.

    Returns:
        One number a model, infinite for fewer than two passes.
    """
    worst = [math.inf if len(passes) < PASSES else 0.0 for passes in models]
    for number in range(len(TESTS)):
        apart = [_deviation([values[number] for values in passes]) for passes in models]
        several = [found for found, passes in zip(apart, models, strict=True) if len(passes) >= PASSES]
        usual = statistics.median(several) if several else 0.0
        for i, passes in enumerate(models):
            if passes:
                worst[i] = max(worst[i], max(apart[i], usual) / math.sqrt(len(passes)))
    return worst


def _deviation(values: Sequence[float]) -> float:
    """Return the median absolute deviation, as a share of the median; nothing where there is no value."""
    if not values:
        return 0.0
    middle = statistics.median(values)
    return statistics.median(abs(value / middle - 1.0) for value in values)


@dataclass(frozen=True)
class Known:
    """What valid records say of one architecture.

    Attributes:
        architecture: The model.
        passes_ms: By test name, the percentile asked for of the newest passes, each a process of its own.
        memory_bytes: Peak of the measuring process at the context asked for, the median of the newest passes; None
            where not measured.
        runtime_bytes: Of that, what the empty runtime needs.
        energy_mj: Of a generated token, where the device has a sensor.
        memory_passes: The peak in each of those passes.
    """

    architecture: Architecture
    passes_ms: dict[str, tuple[float, ...]]
    memory_bytes: int | None
    runtime_bytes: int | None
    energy_mj: float | None = None
    memory_passes: tuple[int, ...] = ()

    @property
    def ms(self) -> dict[str, float]:
        """The median of the passes by test name: what a fresh process will most likely show."""
        return {test: statistics.median(passes) for test, passes in self.passes_ms.items()}


def shared_key(record: Measurement) -> dict[str, Any]:
    """Return the part of a record's key that does not depend on the model or the test."""
    key = asdict(record.key)
    return {name: key[name] for name in SHARED_KEY}


def is_sustained(key: Mapping[str, Any]) -> bool:
    """Say whether a key's records were taken in the hot state that lasts."""
    return str(key.get("power_mode", "")).endswith(SUSTAINED)


def base_mode(power_mode: object) -> str:
    """Return a power mode without how it was measured."""
    return str(power_mode).removesuffix(SUSTAINED)


def what_changed(profiled: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """Say in words how a device differs from what it was profiled as, None where it does not.

    Args:
        profiled: The profile's key; empty for an estimate, which nothing differs from.
        found: What the device is now; names that are missing are not compared.
    """
    differ = [name for name in SHARED_KEY if profiled and name in found and profiled.get(name) != found[name]]
    if "power_mode" in differ and base_mode(profiled["power_mode"]) == base_mode(found["power_mode"]):
        differ.remove("power_mode")  # hot or not, that is how it was measured
    if not differ:
        return None
    return ", ".join(f"{name.replace('_', ' ')} was {profiled.get(name)} and is {found[name]}" for name in differ)


def known_from_log(log: Path, key: Mapping[str, Any], conditions: Conditions) -> dict[str, Known]:
    """Gather what a device's log says under one key.

    Args:
        log: The device's `measurements.jsonl`.
        key: See `SHARED_KEY`.
        conditions: The depth that `tg` and the context that memory must have been measured at, and which
            percentile of the samples of a pass speaks for it.

    Returns:
        By architecture digest, the newest passes of each test that count.
    """
    return gather(read_measurements(log), key, conditions)


def gather(
    records: Iterable[Measurement], key: Mapping[str, Any], conditions: Conditions, place_ns: float | None = None
) -> dict[str, Known]:
    """Gather what records say under one key; see `known_from_log`.

    Args:
        records: In the order they were taken.
        key: See `SHARED_KEY`.
        conditions: What they must have been taken under.
        place_ns: Where the cores must have stood, see `placement.py`; None for where they usually do.
    """
    known: dict[str, Known] = {}
    recent: dict[tuple[str, str], list[float]] = {}
    peaks: dict[str, list[int]] = {}
    for record in counting([r for r in records if shared_key(r) == dict(key)], place_ns):
        wanted_depth = conditions.depth if record.key.test == "tg" else 0
        if record.key.depth != wanted_depth:
            continue
        digest, test = record.key.architecture_digest, record.key.test
        passes = recent.setdefault((digest, test), [])
        passes.append(percentile_ms(record.samples_ns, conditions.percentile))
        newest = tuple(passes[-NEWEST:])
        old = known.get(digest) or Known(Architecture.from_json(record.architecture), {}, None, None)
        same_context = record.context_length == conditions.context_length
        if same_context and test == "tg":  # the other tests of a pass ran in the same process
            peaks.setdefault(digest, []).append(record.peak_memory_bytes)
        memory = tuple(peaks.get(digest, ())[-NEWEST:])
        peak = int(statistics.median(memory)) if memory else None
        runtime = record.peak_memory_bytes - record.model_memory_bytes if same_context else old.runtime_bytes
        energy = record.energy_mj if test == "tg" and record.energy_mj is not None else old.energy_mj
        known[digest] = Known(old.architecture, {**old.passes_ms, test: newest}, peak, runtime, energy, memory)
    return known
