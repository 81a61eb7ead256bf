"""How well does a profile of this machine predict models it has not measured?

    .venv/bin/python bench/latency_local.py [--seconds 300] [--held-out 30] [--seed 1] [--threads 1] [--space free]
    .venv/bin/python bench/latency_local.py --against OLDER.json    # measures nothing

Profiles this machine as `merino-edge profile --space poster` does, then measures random members of
that space that were not profiled, and compares. Held-out models are measured by the profile's rule: in passes far
apart in time until their median is certain. What the first pass alone would have said is recorded too, and what the
fastest pass of every model, profiled or not, would have: by a disturbance that only ever slows it would be better.
Where the host of a virtual machine moves its processors, each place has its own fit and its own
measurements, as in a search. `--threads 1` and `--space free` are recorded in files of their own: what one thread
takes hardly depends on the place. Everything lies in a folder of its own.

The profiled models are measured once more in the passes of the held-out ones, one between every two: `same_passes` is
the error of a profile fitted to these. It has the formula's part of the error, without what the machine has become
since the profile.

No model can be nearer to a machine than the machine is to itself: `passes_apart` is by how much two passes over one
model differ, one after the other, in the mean. Where the record before this one measured the
same models, the mean difference of the two is recorded beside the error, and how well the formula predicts left-out
models where it is fitted to the faster of both times. `--against` does that for the present record and an older one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from record import RESULTS, of_case, write_result

from merino_edge.agent.facts import Machine, cpu_cache_bytes
from merino_edge.architecture import Architecture
from merino_edge.device.registry import device_folder
from merino_edge.files import write_json
from merino_edge.flows.conditions import TESTS, Conditions
from merino_edge.flows.devices import find_entry, opened
from merino_edge.flows.measuring import MEASUREMENTS, Known, gather, measure_in_passes, shared_key
from merino_edge.flows.placement import away, counting, usual_distance_ns
from merino_edge.flows.profile import MIN_MODELS, ProfileOptions, fit_known, profile, searched_space
from merino_edge.flows.profile_file import RecipeProfile, read_profile
from merino_edge.measurement import Measurement, read_measurements
from merino_edge.progress import SILENT
from merino_edge.search.fitting import judge
from merino_edge.search.latency import LatencySample, fit_latency, sample_lengths

VOCAB = 8192
RECIPES = ("dynamic_wi8_afp32", "fp32")
SECONDS_A_MODEL = 10.0  # of the held-out ones


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--held-out", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, help="all performance cores where it is left out")
    parser.add_argument("--space", default="poster")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--seconds-a-model", type=float, default=SECONDS_A_MODEL, help="of the held-out ones")
    parser.add_argument("--against", type=Path, metavar="OLDER", help="an older record of the same models")
    asked = parser.parse_args()
    name = of_case("latency_local", asked.threads, asked.space)
    path = RESULTS / f"{name}.json"
    if asked.against is not None:
        record = json.loads(path.read_text(encoding="utf-8"))
        hold_against(json.loads(asked.against.read_text(encoding="utf-8")), record["result"])
        write_json(path, {key: value for key, value in record.items() if key != "schema_version"})
        return
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_DATA_HOME"] = folder
        result = {recipe: one_recipe(recipe, asked, Path(folder)) for recipe in asked.recipes}
    arguments = {name: getattr(asked, name) for name in ("seconds", "seed", "seconds_a_model", "threads", "space")}
    arguments |= {"vocab_size": VOCAB, "embedding_skip": True}
    made = {**arguments, "recipes": result}
    if before is not None:
        hold_against(before, made)
    print(write_result(name, made))


def hold_against(before: dict[str, Any], result: dict[str, Any]) -> None:
    """Add to each test how far the same models' times lie from those of an older record."""
    alike = ("seed", "vocab_size", "embedding_skip", "space")
    same = all(before["result"].get(key) == result.get(key) for key in alike)
    for recipe, tests in result["recipes"].items():
        for test, found in tests.items():
            old = before["result"]["recipes"].get(recipe, {}).get(test, {}).get("pairs_ms", [])
            found["since_last_record"] = None
            if same and len(old) == len(found["pairs_ms"]) and in_one_order(old, found["pairs_ms"]):
                then, now = (np.array(pairs)[:, 1] for pairs in (old, found["pairs_ms"]))
                kept = judge(then, now)
                found["since_last_record"] = {
                    "date": before["date"],
                    "mean_difference": kept.mape,
                    "within_10pct": kept.within_10pct,
                    "fitted_to_the_faster": fitted(result, recipe, test, np.minimum(then, now)),
                }


def in_one_order(old: list[list[float]], new: list[list[float]]) -> bool:
    """Say whether records hold the same models in one order: predictions of one model lie near each other."""
    ratio = np.array(old)[:, 0] / np.array(new)[:, 0]
    return bool((np.abs(np.log(ratio)) < np.log(1.5)).all())


def fitted(result: dict[str, Any], recipe: str, test: str, ms: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Return how well the formula predicts each of the held-out models from the others."""
    architectures = held_out(len(ms), result["seed"], result["space"])
    samples = [LatencySample(a, float(value)) for a, value in zip(architectures, ms, strict=True)]
    depth = Conditions().depth if test == "tg" else 0
    cache = cpu_cache_bytes(Machine.here()) or 0
    return fit_latency(samples, test=test, depth=depth, recipe=recipe, cache_bytes=cache).accuracy


def held_out(count: int, seed: int, space: str) -> list[Architecture]:
    """Return random members of a space as `profile` takes it; any number of blocks is as likely as another."""
    searched = searched_space(ProfileOptions(space=space, conditions=Conditions(vocab_size=VOCAB)))
    return sample_lengths(searched, count, seed)


def one_recipe(recipe: str, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Profile one recipe, measure held-out models, return the errors of each test."""
    conditions = Conditions(recipe=recipe, vocab_size=VOCAB, threads=asked.threads)
    made = profile("local", ProfileOptions(seconds=asked.seconds, space=asked.space, conditions=conditions))
    fitted = read_profile("local")
    models = fitted.recipe(conditions) if fitted else None
    assert models is not None
    architectures = held_out(asked.held_out, asked.seed, asked.space)
    order = {architecture.digest: number for number, architecture in enumerate(architectures)}
    log = folder / f"held-out-{recipe}.jsonl"
    profiled = [r for r in read_measurements(device_folder("local") / MEASUREMENTS) if shared_key(r) == models.key]
    again = {r.key.architecture_digest: Architecture.from_json(r.architecture) for r in profiled}
    mixed = [a for pair in zip_longest(architectures, (again[d] for d in again if d not in order)) for a in pair if a]
    with opened(find_entry("local")) as device, SILENT.task("", 1.0) as task:
        passes = measure_in_passes(
            device, device.facts(), mixed, conditions, asked.seconds_a_model * len(mixed), log, [], task
        )
    beside = [r for r in passes if r.key.architecture_digest not in order]
    passes = [r for r in passes if r.key.architecture_digest in order]
    every = held_out_pairs(profiled, passes, models, conditions, order)
    once = held_out_pairs(profiled, passes[: len(TESTS) * len(architectures)], models, conditions, order)
    alike = held_out_pairs(beside, passes, models, conditions, order)
    fastest = held_out_pairs(profiled, passes, models, conditions, order, min)
    result: dict[str, Any] = {}
    for test in TESTS:
        predicted, measured, band = np.array([(p, m, b) for t, p, m, b in every if t == test]).T
        result[test] = {
            **judge(predicted, measured).to_json(),
            "held_out": len(predicted),
            "invalid": asked.held_out - len(predicted),
            "band": models.latency[test].band,
            "band_coverage": float(np.mean(measured <= predicted * (1 + band))),
            "profiled_models": made["models"],
            "profile_accuracy": models.latency[test].accuracy,
            "placement": made["placement"],
            "same_passes": judged(alike, test),
            "one_pass": judged(once, test),
            "fastest_pass": judged(fastest, test),
            "passes": passes_each(passes, test),
            "passes_apart": passes_apart(passes, test),
            "pairs_ms": [[round(p, 5), round(m, 5)] for p, m in zip(predicted, measured, strict=True)],
        }
        print(recipe, test, {key: value for key, value in result[test].items() if key != "pairs_ms"}, flush=True)
    return result


def judged(pairs: list[tuple[str, float, float, float]], test: str) -> dict[str, Any] | None:
    """Return the errors of one test's pairs; None where no place had enough models for a fit."""
    found = [(predicted, measured) for name, predicted, measured, _ in pairs if name == test]
    return judge(*np.array(found).T).to_json() if found else None


def passes_each(passes: list[Measurement], test: str) -> float:
    """Return how many valid passes a held-out model had in the mean."""
    counted = [r.key.architecture_digest for r in passes if r.valid and r.key.test == test]
    return len(counted) / len(set(counted))


def passes_apart(passes: list[Measurement], test: str) -> float | None:
    """Return by how much two passes over one held-out model differ, one after the other, in the mean of all."""
    ms: dict[str, list[float]] = {}
    for record in counting(passes):
        if record.key.test == test:
            ms.setdefault(record.key.architecture_digest, []).append(record.p50_ms)
    apart = [abs(later / earlier - 1.0) for every in ms.values() for earlier, later in pairwise(every)]
    return statistics.fmean(apart) if apart else None


def held_out_pairs(
    profiled: list[Measurement],
    passes: list[Measurement],
    recipe: RecipeProfile,
    conditions: Conditions,
    order: dict[str, int],
    speaks: Callable[[Sequence[float]], float] = statistics.median,
) -> list[tuple[str, float, float, float]]:
    """Return (test, predicted ms, measured ms, band) of every held-out model in order, each in its place.

    The host of a virtual machine may have had it in two places, in each of which a profile predicts by the records
    from there, as a search does. A model that was measured in both counts once, in the place where the profile took
    more of its records. `speaks` makes one time of a model's passes.
    """

    def told(records: list[Measurement], place: float | None) -> dict[str, Known]:
        found = gather(records, recipe.key, conditions, place)
        return {d: replace(k, passes_ms={t: (speaks(p),) for t, p in k.passes_ms.items()}) for d, k in found.items()}

    usual = usual_distance_ns(r for r in profiled if r.valid)
    other = usual_distance_ns(away(profiled, usual)) if usual is not None else None
    places = [usual] if other is None else [usual, other]
    found: dict[tuple[str, str], tuple[str, float, float, float]] = {}
    for place in places:
        known = {d: k for d, k in told(profiled, place).items() if set(TESTS) <= set(k.ms)}
        if len(known) < MIN_MODELS:
            continue
        models = fit_known(known, dict(recipe.key), conditions, recipe.cache_bytes, recipe.seconds).latency
        for digest, k in told(passes, place).items():
            for test in set(TESTS) & set(k.ms):
                pair = (test, models[test].predict_ms(k.architecture), k.ms[test], models[test].band)
                found.setdefault((digest, test), pair)
    return [found[key] for key in sorted(found, key=lambda key: (order[key[0]], key[1]))]


if __name__ == "__main__":
    main()
