"""The poster's nine rows on this machine, in turn: int8 decode and prefill, fp32 `full1024`, as ratio to OPT-350M.

With them go what the default search chooses at the presets' FLOPs and the plain decoders of equal FLOPs.

    .venv/bin/python bench/poster.py             # records bench/results/poster.json; keep the machine quiet
    .venv/bin/python bench/poster.py --join      # refreshes what the trainings recorded; measures nothing
    .venv/bin/python bench/poster.py --rounds 2 --models merino-52m,opt-350m --out build/poster.json

Both halves are `merino-edge bench --suite poster`: the baselines as shape twins through our exporter.
Beside them the real models, built from their configurations with random weights, in torch in float32.
Only `full1024` stands beside the poster's own ratios: its latencies fit one pass with all logits.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from poster.rows import BASELINES, defaults_at_presets, uniforms_of_presets
from poster.table import RESULTS, facts, join, markdown
from record import write_result

from merino_edge.architecture import Architecture
from merino_edge.device.client import TestSpec
from merino_edge.errors import MeasurementError, MerinoEdgeError
from merino_edge.files import write_json
from merino_edge.flows.bench import BenchOptions
from merino_edge.flows.bench_tests import label_of
from merino_edge.flows.bench_torch import measure_hub
from merino_edge.flows.suite import run_suite, suite_models
from merino_edge.measurement import percentile_ms
from merino_edge.progress import Silent

ROUNDS = 10
FULL_ROUNDS = 5
HALVES = (  # recipe, tests, passes of each turn, rounds
    ("dynamic_wi8_afp32", "tg64@128,pp128", 2, ROUNDS),
    ("fp32", "full1024", 1, FULL_ROUNDS),
)
REAL_TESTS = (TestSpec("tg", 64, 128, 1, 2), TestSpec("pp", 128, 0, 1, 5), TestSpec("full", 1024, 0, 1, 3))


class Told(Silent):
    """Notes on stderr."""

    def note(self, text: str) -> None:
        """Print one line."""
        print(text, file=sys.stderr, flush=True)


def measure_real(models: list[str], threads: int | None, repeats: int | None) -> dict[str, dict[str, Any]]:
    """Time the published architectures in torch, one process each."""
    from transformers import AutoConfig

    found: dict[str, dict[str, Any]] = {}
    for name in (n for n in models if n in BASELINES):
        settings = dict(BASELINES[name][0])
        tests = [TestSpec(t.test, t.tokens, t.depth, 1, repeats or t.repeats) for t in REAL_TESTS]
        with tempfile.TemporaryDirectory(prefix="merino-edge-") as folder:
            AutoConfig.for_model(settings.pop("model_type"), **settings).save_pretrained(folder)
            began = time.monotonic()
            try:
                results, answer = measure_hub(folder, tests, threads, 1, 1e3)
            except MerinoEdgeError as error:
                found[name] = {"reason": error.message}
                continue
        found[name] = {
            "parameters": answer["parameters"],
            "runtime": f"torch {answer['runtime_version']}",
            **{
                label_of(r.spec.test, r.spec.tokens, r.spec.depth): {
                    "p50_ms": percentile_ms(r.samples_ns, 50),
                    "samples_ns": list(r.samples_ns),
                    "valid": r.valid,
                    "invalid_reason": r.invalid_reason,
                }
                for r in results
            },
        }
        print(f"{name} in torch: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return found


def measure_twins(
    models: dict[str, Architecture], options: argparse.Namespace
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Run both halves; returns the ratios by model and test, and the rows of `bench` without their samples."""
    ratios: dict[str, dict[str, Any]] = {name: {} for name in models}
    rows = []
    for recipe, tests, repeats, rounds in HALVES:
        wish = BenchOptions(recipes=(recipe,), tests=(tests,), repeats=repeats, warmup=1, threads=options.threads)
        began = time.monotonic()
        try:
            document = run_suite("poster", wish, options.rounds or rounds, progress=Told(), models=models)
        except MeasurementError as error:
            if not options.out:  # a trial may be disturbed; what is recorded may not
                raise
            print(f"{error.message}: no ratios", file=sys.stderr)
            document = error.details["partial"]
        print(f"{recipe} {tests}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        for line in document["ratios"]:
            ratios[line["model"]][line["test"]] = {
                key: line[key] for key in ("p50_ms", "ratio", "low", "high", "rounds")
            } | {"recipe": recipe}
        rows += [{key: value for key, value in row.items() if key != "samples_ns"} for row in document["rows"]]
    return ratios, rows


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything that is asked for."""
    every = {**suite_models("poster"), **defaults_at_presets(), **uniforms_of_presets()}
    names = options.models.split(",") if options.models else list(every)
    models = {name: every[name] for name in names}
    began = time.monotonic()
    ratios, rows = measure_twins(models, options)
    real = measure_real(names, options.threads, options.rounds and 1)
    return {
        "rounds": {tests: options.rounds or rounds for _, tests, _, rounds in HALVES},
        "threads": rows[0]["threads"],
        "rows": [
            {
                "model": name,
                "twin": name in BASELINES,
                **facts(architecture),
                "measured": ratios[name],
                "real": real.get(name) or {"reason": "ours: no published model of that name"},
            }
            for name, architecture in models.items()
        ],
        "bench_rows": rows,
        "seconds": time.monotonic() - began,
    }


def main() -> None:
    """Measure or join, print the table, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="of both halves (default: 10 and 5)")
    parser.add_argument("--models", help="some of the rows, OPT-350M among them (default: all)")
    parser.add_argument("--threads", type=int, help="of every runtime (default: all performance cores)")
    parser.add_argument("--join", action="store_true", help="measure nothing, refresh what others recorded")
    parser.add_argument("--out", type=Path, help="write there instead of recording, disturbed or not")
    options = parser.parse_args()
    recorded = RESULTS / "poster.json"
    if options.join:
        if not recorded.exists():
            parser.error(f"--join needs an earlier {recorded}")
        document = json.loads(recorded.read_text(encoding="utf-8"))
        result = document["result"] = join(document["result"])
        write_json(recorded, document)
    else:
        result = join(measure(options))
        if options.out:
            write_json(options.out, {"result": result})
        else:
            write_result("poster", result)
    print(markdown(result))


if __name__ == "__main__":
    try:
        main()
    except MerinoEdgeError as problem:
        sys.exit(f"error: {problem.message}\n  next: {problem.hint}")
