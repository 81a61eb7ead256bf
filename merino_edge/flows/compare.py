"""`bench --compare A B`: how many times as fast, measured in turn, and whether that is more than noise."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from merino_edge.device.client import Device
from merino_edge.device.registry import LOCAL
from merino_edge.errors import UsageError
from merino_edge.flows import interleaved
from merino_edge.flows.baseline import check_saving, save
from merino_edge.flows.bench import CONTEXT, BenchOptions
from merino_edge.flows.bench_subjects import Contender, bundles_of, find_contenders
from merino_edge.flows.bench_tests import label_of
from merino_edge.flows.conditions import DEFAULT_RECIPE
from merino_edge.flows.deploy import subject_device
from merino_edge.flows.devices import Ask, find_entry, opened, select_device
from merino_edge.flows.interleaved import Turner
from merino_edge.flows.ratios import FEWEST, Ratio
from merino_edge.flows.runtime_version import check_runtime, runtime_version
from merino_edge.progress import SILENT, Progress


def compare(
    first: str, second: str, options: BenchOptions, rounds: int, ask: Ask | None = None, progress: Progress = SILENT
) -> dict[str, Any]:
    """Measure two models in turn.

    Args:
        first: A run, preset, bundle, ..., or `hf:NAME`.
        second: The same; may be the first again.
        options: One recipe serves both; of two, each takes one.
        rounds: Turns that each takes.
        ask: Puts questions to a person.
        progress: Hears what is done.

    Returns:
        The document of `merino-edge bench --compare --json`.
    """
    tests, recipes = options.specs(CONTEXT), _recipes(options.recipes)
    check_saving(options.save)
    with ExitStack() as stack:
        sides = [find_contenders([name], stack, progress)[0] for name in (first, second)]
        name = _device(sides, options, progress)
        device, facts = None, {}
        if any(side.subject is not None for side in sides):
            device = stack.enter_context(opened(find_entry(name), ask))
            device.sustained, device.on_note = options.sustained, progress.note
            facts = device.facts()
        turners = [
            _turner(side, recipe, mark, name, device, facts, options.threads, progress)
            for side, recipe, mark in zip(sides, recipes, _marks(sides), strict=True)
        ]
        interleaved.take_turns(turners, tests, rounds, options.seconds, progress)
    document = {
        "device": name,
        "rows": interleaved.rows(turners, tests),
        "comparison": [_line(turners, number, spec.test, spec.tokens, spec.depth) for number, spec in enumerate(tests)],
    }
    interleaved.check_rounds(turners, tests, document)
    save(options.save, document, progress)
    return document


def _recipes(named: Sequence[str]) -> tuple[str, str]:
    """Return the recipe of each side."""
    if len(named) > 2:
        raise UsageError("--compare takes one --recipe for both, or one for each")
    both = list(named) or [DEFAULT_RECIPE]
    return both[0], both[-1]


def _marks(sides: Sequence[Contender]) -> list[str]:
    """Return what follows a name where both are called the same."""
    return ["", ""] if sides[0].name != sides[1].name else [" (first)", " (second)"]


def _device(sides: Sequence[Contender], options: BenchOptions, progress: Progress) -> str:
    if len(options.devices) > 1:
        raise UsageError("--compare measures on one device", hint="name it with --device")
    ours = next((side.subject for side in sides if side.subject is not None), None)
    flag = options.devices[0] if options.devices else None
    name = select_device(flag, subject_device(ours) if ours else LOCAL, progress)
    if name != LOCAL and any(side.hub is not None for side in sides):
        raise UsageError(f"hf: runs in torch on this machine, and cannot take turns with {name}", hint="--device local")
    return name


def _turner(
    side: Contender,
    recipe: str,
    mark: str,
    name: str,
    device: Device | None,
    facts: dict[str, Any],
    threads: int | None,
    progress: Progress,
) -> Turner:
    if side.hub is not None:
        return interleaved.hub_turner(side.name + mark, side.hub, threads)
    assert side.subject is not None and device is not None
    version = runtime_version(facts)
    (bundle,) = bundles_of(side.subject, [recipe], version, progress)
    check_runtime(bundle, version, name)
    return interleaved.bundle_turner(side.name + mark, bundle, device, name, facts, threads)


def _line(turners: Sequence[Turner], number: int, test: str, tokens: int, depth: int) -> dict[str, Any]:
    """Return one line of the comparison: above 1, the second is faster."""
    a, b = turners
    kept = interleaved.undisturbed(turners, number)
    label = label_of(test, tokens, depth)
    line = {
        "test": label,
        "first": a.name,
        "second": b.name,
        "rounds": len(kept),
        "set_aside": len(a.rounds) - len(kept),
    }
    if not kept:
        nothing = dict.fromkeys(("first_p50_ms", "second_p50_ms", "ratio", "low", "high", "verdict"))
        return {**line, **nothing, "words": "every round was disturbed"}
    found = interleaved.ratio(a, b, number, kept)
    first, second = (t.row(t.pooled(number, kept))["p50_ms"] for t in turners)
    told, words = _verdict(a.name, b.name, found, len(kept))
    numbers = {
        "first_p50_ms": first,
        "second_p50_ms": second,
        "ratio": found.value,
        "low": found.low,
        "high": found.high,
    }
    return {**line, **numbers, "verdict": told, "words": words}


def _verdict(first: str, second: str, found: Ratio, rounds: int) -> tuple[str, str]:
    """Say what a ratio means: `noise` where the interval holds 1, or where there are too few rounds for one."""
    if rounds < FEWEST:
        return "noise", f"too few rounds ({rounds}) to show anything for certain: {found.words()}; give --rounds 10"
    if found.is_noise:
        return "noise", f"noise: no difference is shown: {found.words()}"
    if found.value > 1:
        return "second", f"{second} is faster: {found.words()}"
    turned = Ratio(1 / found.value, 1 / found.high, 1 / found.low, found.drawn)
    return "first", f"{first} is faster: {turned.words()}"
