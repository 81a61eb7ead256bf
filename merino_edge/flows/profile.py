"""`profile`: measure a few whole models on a device, and fit what predicts all the others."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from merino_edge.agent.worker import needed_bytes
from merino_edge.architecture import Architecture, Block
from merino_edge.bundle import bundle_label
from merino_edge.device.client import Device
from merino_edge.device.registry import device_folder
from merino_edge.errors import MeasurementError, UsageError
from merino_edge.files import read_json, write_json
from merino_edge.flows.conditions import DEFAULT_CONDITIONS, DEFAULT_SPACE, TESTS, Conditions
from merino_edge.flows.devices import (
    Ask,
    board_of,
    find_entry,
    is_unregistered_board,
    opened,
    register,
    select_device,
)
from merino_edge.flows.measuring import MEASUREMENTS, Known, gather, measure_in_passes, shared_key
from merino_edge.flows.placement import placement
from merino_edge.flows.profile_file import Profile, RecipeProfile, estimated_profile, read_profile, write_profile
from merino_edge.flows.repeatability import how_repeatable
from merino_edge.measurement import Measurement, read_measurements
from merino_edge.progress import SILENT, Progress
from merino_edge.search.cost import count_flops, unique_bytes
from merino_edge.search.latency import LatencySample, MemorySample, choose_architectures, fit_latency, fit_memory
from merino_edge.search.memory import cache_copies
from merino_edge.search.space import Space, load_space
from merino_edge.units import format_bytes

MIN_MODELS = 6
MAX_MODELS = 25
SECONDS_A_MODEL = 6.0
DEFAULT_SECONDS = 300.0
QUICK_SECONDS = 60.0
MEMORY_SHARE = 0.9  # of the free memory that a measured model may need: what is free changes meanwhile
MANY = 500  # members to choose from where some do not fit


@dataclass(frozen=True)
class ProfileOptions:
    """What the command line says.

    Attributes:
        seconds: Time it may take.
        space: Space whose architectures are measured.
        conditions: Recipe, depth, threads, vocabulary, context.
        host: Address that registers the device first.
        estimate: Show the shipped estimate and measure nothing.
        sustained: Measure the hot state that lasts; `search` then measures its winner so, too.
    """

    seconds: float = DEFAULT_SECONDS
    space: str = DEFAULT_SPACE
    conditions: Conditions = DEFAULT_CONDITIONS
    host: str | None = None
    estimate: bool = False
    sustained: bool = False


def profile(
    name: str | None, options: ProfileOptions, ask: Ask | None = None, progress: Progress = SILENT
) -> dict[str, Any]:
    """Profile a device.

    Returns:
        The document of `merino-edge profile --json`.
    """
    name = select_device(name, None, progress)
    if options.estimate:
        return document(estimated_profile(name, board_of(name), options.conditions), options)
    if options.host is not None or is_unregistered_board(name):
        register(name, options.host, ask=ask)
    entry = find_entry(name)
    started = time.monotonic()
    with opened(entry, ask) as device:
        facts = device.facts(bandwidth=True)
        if facts.get("emulated"):
            progress.note(f"{name} is emulated ({facts['emulated']}): it computes rightly, its times are no board's")
        device.sustained, device.on_note = options.sustained, progress.note
        records = _measure(device, facts, name, options, progress)
        facts["runtimes"] = device.facts()["runtimes"]  # one may have come there only now
    note = gpu_note(name, facts.get("jetson"), facts["runtimes"])
    if note is not None:
        progress.note(note)
    seconds = time.monotonic() - started
    recipe = fit_recipe(records, facts, options.conditions, seconds)
    old = read_profile(name)
    kept = old.recipes if old is not None and old.facts.get("device_id") == facts["device_id"] else {}
    label = bundle_label(options.conditions.format, options.conditions.recipe, options.conditions.form)
    result = Profile(name, estimate=False, facts=facts, recipes={**kept, label: recipe})
    write_profile(result)
    (device_folder(name) / _PARTIAL).unlink(missing_ok=True)
    repeats = how_repeatable(gather(records, recipe.key, options.conditions).values(), options.conditions)
    return {
        **document(result, options),
        "repeatability": {name: found.to_json() for name, found in repeats.items()},
        "placement": placement(records),
    }


_PARTIAL = "profile.partial.json"


def gpu_note(name: str, jetson: dict[str, Any] | None, runtimes: list[dict[str, Any]]) -> str | None:
    """Return what to say of a Jetson whose GPU no runtime can use; None for others and where one can."""
    if jetson is None:
        return None
    providers = {str(p) for r in runtimes for p in r.get("providers") or []}
    if providers & {"CUDAExecutionProvider", "TensorrtExecutionProvider"}:
        return None
    return (
        f"{name} is a Jetson with JetPack {jetson.get('jetpack') or '(unknown)'} (L4T {jetson.get('l4t')}), "
        "and no runtime on it uses the GPU: the wheels sent to it compute on the processor alone, and so do these "
        "numbers. A wheel of onnxruntime-gpu made for its JetPack, installed there by hand, is found and taken instead"
    )


def searched_space(options: ProfileOptions) -> Space:
    """Return the space as a search takes it by default."""
    return load_space(options.space, options.conditions.vocab_size).with_embedding_skip()


def _measure(
    device: Device, facts: dict[str, Any], name: str, options: ProfileOptions, progress: Progress
) -> list[Measurement]:
    """Measure a spread of architectures; what an interrupted profile had measured counts."""
    folder = device_folder(name)
    count = max(MIN_MODELS, min(MAX_MODELS, int(options.seconds / SECONDS_A_MODEL)))
    space = searched_space(options)
    architectures, left_out = models_that_fit(space, count, facts["memory"]["available"], options.conditions)
    if left_out:
        free = format_bytes(facts["memory"]["available"])
        progress.note(f"{name} has {free} of memory free: models of space {space.name} that need more are not measured")
    wish = {
        "space": options.space,
        "count": count,
        "conditions": options.conditions.to_json(),
        "facts": _identity(facts),
        "sustained": options.sustained,
    }
    since = _resume(folder / _PARTIAL, wish)
    log = folder / MEASUREMENTS
    records = [r for r in read_measurements(log) if r.taken_at >= since and r.key.device_id == facts["device_id"]]
    before = len({r.key.architecture_digest for r in records if r.valid})
    if before:
        progress.note(f"going on with an interrupted profile: {before} models are measured already")
    with progress.task(f"measuring {len(architectures)} models on {name}", options.seconds) as task:
        return measure_in_passes(device, facts, architectures, options.conditions, options.seconds, log, records, task)


def models_that_fit(
    space: Space, count: int, free_bytes: int | None, conditions: Conditions
) -> tuple[list[Architecture], bool]:
    """Choose members spread over what the device has memory for, smallest first; say whether any were left out."""
    chosen = choose_architectures(space, count, seed=0)
    if free_bytes is None:
        return chosen, False

    def fits(a: Architecture) -> bool:
        stored = unique_bytes(a, conditions.recipe)
        needed = needed_bytes(a.to_json(), stored, conditions.context_length, conditions.form)
        return needed <= MEMORY_SHARE * free_bytes

    fitting = [a for a in chosen if fits(a)]
    if len(fitting) == len(chosen):
        return chosen, False
    many = choose_architectures(space, MANY, seed=0)
    fitting = [a for a in many if fits(a)]
    least = fitting or many[:1]  # the device itself says then that not even this one fits
    places = {round(i * (len(least) - 1) / max(1, count - 1)) for i in range(count)}
    return [least[place] for place in sorted(places)], True


def _identity(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: facts.get(key) for key in ("device_id", "os_image", "power_mode")}


def _resume(path: Any, wish: dict[str, Any]) -> float:
    """Return since when records count: the start of an interrupted profile of the same wish, or now."""
    if path.exists():
        old = read_json(path, "interrupted profile")
        since = old.pop("since", None)
        if old == wish and isinstance(since, float):
            return since
    now = time.time()
    write_json(path, {**wish, "since": now})
    return now


def fit_recipe(
    records: list[Measurement], facts: dict[str, Any], conditions: Conditions, seconds: float
) -> RecipeProfile:
    """Fit the latency and memory models of one recipe to its records.

    Raises:
        MeasurementError: too few of the measurements are valid.
    """
    key = shared_key(records[-1]) if records else {}
    known = gather(records, key, conditions)
    known = {digest: k for digest, k in known.items() if all(test in k.ms for test in TESTS)}
    if len(known) < MIN_MODELS:
        reasons = [r.invalid_reason for r in records if not r.valid]
        raise MeasurementError(
            f"only {len(known)} models gave valid measurements, {MIN_MODELS} are needed"
            + (f": {reasons[-1]}" if reasons else ""),
            hint="stop what else runs on the device, let it cool, and profile again; what was measured is kept; "
            "without a fan: --sustained",
        )
    cache = int(facts["cpu"]["last_level_cache_bytes"] or 0)
    return fit_known(known, key, conditions, cache, seconds)


def fit_known(
    known: dict[str, Known], key: dict[str, Any], conditions: Conditions, cache_bytes: int, seconds: float
) -> RecipeProfile:
    """Fit the models of one recipe to what is known of whole models."""
    latency = {}
    for test in TESTS:
        samples = [LatencySample(k.architecture, k.ms[test]) for k in known.values() if test in k.ms]
        depth = conditions.depth if test == "tg" else 0
        latency[test] = fit_latency(samples, test=test, depth=depth, recipe=conditions.recipe, cache_bytes=cache_bytes)
    with_memory = [k for k in known.values() if k.memory_bytes is not None]
    if not with_memory:
        raise UsageError(
            f"memory was not measured at a context of {conditions.context_length}",
            hint=f"profile again with: merino-edge profile --context {conditions.context_length}",
        )
    runtime = min(k.runtime_bytes or 0 for k in with_memory)
    memory = fit_memory(
        [MemorySample(k.architecture, k.memory_bytes or 0) for k in with_memory],
        recipe=conditions.recipe,
        context_length=conditions.context_length,
        runtime_bytes=runtime,
        copies=cache_copies(conditions.format, str(key.get("form", conditions.form))),
    )
    spent = [LatencySample(k.architecture, k.energy_mj) for k in known.values() if k.energy_mj is not None]
    energy = None  # of a token: power times time, so the same costs at rates of their own
    if len(spent) >= MIN_MODELS:
        energy = fit_latency(
            spent, test="tg", depth=conditions.depth, recipe=conditions.recipe, cache_bytes=cache_bytes
        )
    return RecipeProfile(conditions, key, latency, memory, len(known), seconds, cache_bytes, energy=energy)


def document(profile: Profile, options: ProfileOptions) -> dict[str, Any]:
    """Return the JSON document of a profile, its default latency model first."""
    recipe = profile.recipe(options.conditions)
    assert recipe is not None  # it was just made
    tg = recipe.latency["tg"]
    return {
        "device": profile.device,
        "estimate": profile.estimate,
        "valid": recipe.valid,
        "seconds": recipe.seconds,
        "models": recipe.models,
        "conditions": recipe.conditions.to_json(),
        "key": recipe.key,
        "facts": profile.facts,
        "latency_model": tg.accuracy,
        "latency_models": {test: model.accuracy for test, model in recipe.latency.items()},
        "memory_model": getattr(recipe.memory, "accuracy", None),
        "energy_model": recipe.energy.accuracy if recipe.energy else None,
        "reach": _reach(recipe, options),
    }


def extremes(space: Space) -> tuple[Architecture, Architecture]:
    """Return members of fewest and of most FLOPs, the head counted, in whatever order the choices were written."""

    def weight(block: Block) -> float:
        return block.depth * block.width**2 * (2 + block.ffn_ratio)

    found = [
        space.build(group, [options.index(pick(options, key=weight)) for options in group.options])
        for group in space.groups
        for pick in (min, max)
    ]
    return min(found, key=with_head), max(found, key=with_head)


def with_head(architecture: Architecture) -> float:
    """Return the FLOPs of a pass, the head counted."""
    return count_flops(architecture, head=True)


def _reach(recipe: RecipeProfile, options: ProfileOptions) -> list[dict[str, Any]]:
    """Predict the smallest and the largest architecture of the space, to show what limits make sense."""
    space = searched_space(options)
    rows = []
    for label, architecture in zip(("smallest", "largest"), extremes(space), strict=True):
        rows.append(
            {
                "which": label,
                "architecture": architecture.to_json(),
                **{f"{t}_ms": m.predict_ms(architecture) for t, m in recipe.latency.items()},
                **{f"{t}_ms_upper": m.upper_ms(architecture) for t, m in recipe.latency.items()},
                "memory_bytes": recipe.memory.predict_bytes(architecture),
                "memory_bytes_upper": recipe.memory.upper_bytes(architecture),
            }
        )
    return rows
