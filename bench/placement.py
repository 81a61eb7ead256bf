"""What does it do to a model's times where the host of a virtual machine puts its processors?

    .venv/bin/python bench/placement.py [--seconds 300]

Runs three models in turn on all performance cores, and one on a single core, and measures between every two tests how
far apart the cores stand (`merino_edge/agent/core_distance.py`). Tests with the same distance before and after are
sorted by it, and the medians of each group recorded, beside how long the machine stayed where it was. On a board, and
on a machine of one's own, there is one group only, and that is what the record then says.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import write_result

from merino_edge.agent.core_distance import distance_ns, is_same_place
from merino_edge.agent.facts import Machine, performance_cores
from merino_edge.agent.large_pages import use_large_pages
from merino_edge.agent.measure import Timer
from merino_edge.agent.opening import open_session
from merino_edge.architecture import Architecture, Block
from merino_edge.exporting import ExportOptions
from merino_edge.flows.export import random_weights, write_bundle
from merino_edge.flows.subject import resolve_subject

CONTEXT = 512
DEPTH, TOKENS, PROMPT = 128, 24, 128
REST_S = 0.02  # for the threads of the session before, which wait for work by spinning
INT8, FP32 = "dynamic_wi8_afp32", "fp32"


def small() -> Architecture:
    """Return a model that every cache holds: 3 MB in int8."""
    return Architecture((Block(256, 1, 8),), 256, 1024)


def large() -> Architecture:
    """Return the preset merino-52m: in float32 larger than any cache of a small machine."""
    return resolve_subject("merino-52m", make_run=False).architecture


def main() -> None:
    """Measure, sort, record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    asked = parser.parse_args()
    cores = performance_cores(Machine.here())
    with tempfile.TemporaryDirectory() as folder:
        tests = all_tests(Path(folder), len(cores))
        rows = measured(tests, cores, asked.seconds)
    print(write_result("placement", result(rows, list(tests), cores)))


def all_tests(folder: Path, threads: int) -> dict[str, Callable[[], float]]:
    """Return what is measured by name, each a function that runs it once and returns milliseconds."""
    tests: dict[str, Callable[[], float]] = {}
    for name, architecture, recipe, on in (
        ("small int8", small(), INT8, threads),
        ("large int8", large(), INT8, threads),
        ("large fp32", large(), FP32, threads),
        ("large int8, 1 thread", large(), INT8, 1),
    ):
        options = ExportOptions(context_length=CONTEXT, parity=False)
        weights = random_weights(architecture, CONTEXT)
        bundle = write_bundle(architecture, weights, folder / name, "onnx", recipe, options)
        manifest = json.loads((bundle.folder / "manifest.json").read_text(encoding="utf-8"))
        timer = Timer(open_session(bundle.folder, manifest, on), 0.0, lambda share: None, lambda: None)
        tests[f"{name} tg"] = functools.partial(once, timer, "tg", TOKENS, DEPTH)
        tests[f"{name} pp{PROMPT}"] = functools.partial(once, timer, "pp", PROMPT, 0)
    use_large_pages()
    return tests


def once(timer: Timer, test: str, tokens: int, depth: int) -> float:
    """Run one pass of a test; returns milliseconds, the median where there are several tokens."""
    return statistics.median(timer.run(test, tokens, depth, warmup=0, repeats=1).samples) / 1e6


def measured(tests: dict[str, Callable[[], float]], cores: list[int], seconds: float) -> list[dict[str, Any]]:
    """Run all tests in turn; one row a test: when, which, ms, and the distance before and after."""
    rows: list[dict[str, Any]] = []
    for test in tests.values():
        test()
    started = time.monotonic()
    before = distance_ns(cores)
    while time.monotonic() - started < seconds:
        for name, test in tests.items():
            time.sleep(REST_S)
            ms = test()
            after = distance_ns(cores)
            rows.append({"at_s": time.monotonic() - started, "test": name, "ms": ms, "ns": (before, after)})
            before = after
    return rows


def result(rows: list[dict[str, Any]], tests: list[str], cores: list[int]) -> dict[str, Any]:
    """Sort the rows by where the cores stood."""
    places = sorted_places([row["ns"][1] for row in rows if row["ns"][1] is not None])
    groups = [[row for row in rows if at(row["ns"], place)] for place in places]
    found = [
        {
            "core_distance_ns": place,
            "share": len(group) / len(rows),
            "spells_s": spells(rows, place),
            "ms": {name: summary([row["ms"] for row in group if row["test"] == name]) for name in tests},
        }
        for place, group in zip(places, groups, strict=True)
    ]
    return {"cores": len(cores), "tests": len(rows), "seconds": rows[-1]["at_s"], "places": found}


def at(ns: tuple[float | None, ...], place: float) -> bool:
    """Say whether all of these distances are a place's."""
    return all(one is not None and is_same_place(one, place) for one in ns)


def sorted_places(known: list[float]) -> list[float]:
    """Return the median distance of each group that at least a hundredth of the readings belong to."""
    left, places = sorted(known), []
    while left:
        centre = max(left, key=lambda one: sum(at((other,), one) for other in left))
        group = [one for one in left if at((one,), centre)]
        if len(group) >= max(3, len(known) // 100):
            places.append(statistics.median(group))
        left = [one for one in left if one not in group]
    return sorted(places)


def spells(rows: list[dict[str, Any]], place: float) -> list[float]:
    """Return for how many seconds on end the cores stood at a place."""
    found: list[float] = []
    since = last = None
    for row in rows:
        if at(row["ns"], place):
            since, last = (row["at_s"] if since is None else since), row["at_s"]
        elif since is not None and last is not None:
            found.append(round(last - since, 1))
            since = None
    return [*found, round(last - since, 1)] if since is not None and last is not None else found


def summary(ms: list[float]) -> dict[str, Any]:
    """Return the median and the quartiles."""
    if len(ms) < 3:
        return {"count": len(ms)}
    low, middle, high = statistics.quantiles(ms, n=4)
    return {"count": len(ms), "median": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)]}


if __name__ == "__main__":
    main()
