"""`bench --suite poster`: the nine models of MeRino's poster on one device, in turn, as ratio to OPT-350M.

The six baselines are shape twins through our own exporter: the same widths, depth, FFN, heads and
vocabulary, with our norm and positions. The three others are the presets, found for the poster's
budgets; the authors' own architectures are not published. All weights are random: right for timing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merino_edge.architecture import Architecture, Block
from merino_edge.bundle import Bundle
from merino_edge.device.client import Device
from merino_edge.device.registry import LOCAL
from merino_edge.errors import UsageError, did_you_mean
from merino_edge.exporting import ExportOptions
from merino_edge.flows import interleaved
from merino_edge.flows.baseline import check_saving, save
from merino_edge.flows.bench import CONTEXT, BenchOptions
from merino_edge.flows.bench_tests import check_context, label_of
from merino_edge.flows.conditions import DEFAULT_RECIPE
from merino_edge.flows.devices import Ask, find_entry, opened, select_device
from merino_edge.flows.export import random_weights, write_bundle
from merino_edge.flows.measuring import with_synthetic_weights
from merino_edge.flows.runtime_version import runtime_version
from merino_edge.flows.subject import resolve_subject
from merino_edge.progress import SILENT, Progress

REFERENCE = "opt-350m"
TWIN = "shape twin"
SUITES = ("poster",)


def _plain(width: int, depth: int, vocab_size: int, embedding_width: int | None = None) -> Architecture:
    """Return a decoder without sharing: every layer its own, FFN of four times the width, heads of 64."""
    return Architecture(tuple(Block(width, 4, 1) for _ in range(depth)), embedding_width or width, vocab_size)


BASELINES = {
    "pythia-70m": _plain(512, 6, 50_304),
    "pythia-162m": _plain(768, 12, 50_304),
    "cerebras-111m": _plain(768, 10, 50_257),
    "gpt2-124m": _plain(768, 12, 50_257),
    "opt-125m": _plain(768, 12, 50_272),
    "opt-350m": _plain(1024, 24, 50_272, embedding_width=512),
}
PRESETS = ("merino-52m", "merino-61m", "merino-64m")


def suite_models(name: str) -> dict[str, Architecture]:
    """Return the models of a suite in the order of its table.

    Raises:
        UsageError: there is no such suite.
    """
    if name not in SUITES:
        raise UsageError(f"there is no suite '{name}'{did_you_mean(name, SUITES)}")
    return BASELINES | {preset: resolve_subject(preset, make_run=False).architecture for preset in PRESETS}


def run_suite(
    name: str,
    options: BenchOptions,
    rounds: int,
    ask: Ask | None = None,
    progress: Progress = SILENT,
    models: dict[str, Architecture] | None = None,
) -> dict[str, Any]:
    """Measure the models of a suite in turn.

    Args:
        name: `poster`.
        options: One recipe, one device; tests, passes, seconds for each model.
        rounds: Turns that each takes.
        ask: Puts questions to a person.
        progress: Hears what is done.
        models: Others in their place, the reference among them (for tests).

    Returns:
        The document of `merino-edge bench --suite --json`.
    """
    chosen = models or suite_models(name)
    tests = options.specs(CONTEXT)
    check_context(tests, CONTEXT, f"the suite {name}")
    if len(options.recipes) > 1 or len(options.devices) > 1:
        raise UsageError("--suite takes one --recipe and one --device", hint="run it once for each")
    check_saving(options.save)
    device_name = select_device(options.devices[0] if options.devices else None, LOCAL, progress)
    with opened(find_entry(device_name), ask) as device, tempfile.TemporaryDirectory(prefix="merino-edge-") as folder:
        device.sustained, device.on_note = options.sustained, progress.note
        turners = _turners(chosen, Path(folder), device, device_name, options, progress)
        interleaved.take_turns(turners, tests, rounds, options.seconds, progress)
        device.collect()
    document = {
        "device": device_name,
        "suite": name,
        "reference": REFERENCE,
        "rounds": rounds,
        "rows": interleaved.rows(turners, tests),
        "ratios": _ratios(list(chosen), turners, [label_of(s.test, s.tokens, s.depth) for s in tests]),
    }
    interleaved.check_rounds(turners, tests, document)
    save(options.save, document, progress)
    return document


def _turners(
    models: Mapping[str, Architecture],
    folder: Path,
    device: Device,
    device_name: str,
    options: BenchOptions,
    progress: Progress,
) -> list[interleaved.Turner]:
    """Export every model and send it."""
    facts, turners = device.facts(), []
    wish = options.recipes[0] if options.recipes else DEFAULT_RECIPE
    with progress.task(f"exporting {len(models)} models", float(len(models))) as task:
        for number, (model, architecture) in enumerate(models.items()):
            task.update(float(number), f"exporting {model}")
            bundle = _export(architecture, folder / model, wish, runtime_version(facts))
            label = f"{model} ({TWIN})" if model in BASELINES else model
            turners.append(interleaved.bundle_turner(label, bundle, device, device_name, facts, options.threads))
    return turners


def _export(architecture: Architecture, folder: Path, wish: str, version: str | None) -> Bundle:
    """Write a model with weights that the device can make itself."""
    format_name, _, recipe = wish.rpartition("/")
    options = ExportOptions(context_length=CONTEXT, parity=False, runtime_version=version)
    weights = random_weights(architecture, CONTEXT)
    return with_synthetic_weights(write_bundle(architecture, weights, folder, format_name or "onnx", recipe, options))


def _ratios(
    models: Sequence[str], turners: Sequence[interleaved.Turner], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Return how many times as fast as the reference each model is, test by test."""
    reference = turners[models.index(REFERENCE)]
    found = []
    for model, turner in zip(models, turners, strict=True):
        for number, label in enumerate(labels):
            kept = interleaved.undisturbed(turners, number)
            line: dict[str, Any] = {"model": model, "twin": model in BASELINES, "test": label, "rounds": len(kept)}
            if kept:
                one = interleaved.ratio(reference, turner, number, kept)
                p50 = turner.row(turner.pooled(number, kept))["p50_ms"]
                line |= {"p50_ms": p50, "ratio": one.value, "low": one.low, "high": one.high}
            else:
                line |= dict.fromkeys(("p50_ms", "ratio", "low", "high"))
            found.append(line)
    return found
