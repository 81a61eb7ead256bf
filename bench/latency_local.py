"""How well does a profile of this machine predict models it has not measured?

    .venv/bin/python bench/latency_local.py [--seconds 300] [--held-out 30] [--seed 1]

Profiles this machine as `merino-edge profile` does, then measures random members of the poster's space
that were not profiled, and compares. Held-out models are measured by the profile's rule: in passes far
apart in time until two agree, of which the fastest counts. What the first pass alone would have said is
recorded too. Everything lies in a folder of its own.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from record import write_result

from merino_edge.flows.conditions import TESTS, Conditions
from merino_edge.flows.devices import find_entry, opened
from merino_edge.flows.measuring import gather, measure_in_passes
from merino_edge.flows.profile import ProfileOptions, profile
from merino_edge.flows.profile_file import read_profile
from merino_edge.progress import SILENT
from merino_edge.search.fitting import judge
from merino_edge.search.space import load_space

VOCAB = 8192
RECIPES = ("dynamic_wi8_afp32", "fp32")
SECONDS_A_MODEL = 10.0  # of the held-out ones


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--held-out", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--seconds-a-model", type=float, default=SECONDS_A_MODEL, help="of the held-out ones")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_DATA_HOME"] = folder
        result = {recipe: one_recipe(recipe, asked, Path(folder)) for recipe in asked.recipes}
    arguments = {name: getattr(asked, name) for name in ("seconds", "seed", "seconds_a_model")} | {"vocab_size": VOCAB}
    print(write_result("latency_local", {**arguments, "recipes": result}))


def one_recipe(recipe: str, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Profile one recipe, measure held-out models, return the errors of each test."""
    conditions = Conditions(recipe=recipe, vocab_size=VOCAB)
    made = profile("local", ProfileOptions(seconds=asked.seconds, conditions=conditions))
    fitted = read_profile("local")
    models = fitted.recipe(conditions) if fitted else None
    assert models is not None
    architectures = load_space("poster", VOCAB).sample(asked.held_out, seed=asked.seed)
    log = folder / f"held-out-{recipe}.jsonl"
    with opened(find_entry("local")) as device, SILENT.task("", 1.0) as task:
        passes = measure_in_passes(
            device, device.facts(), architectures, conditions, asked.seconds_a_model * len(architectures), log, [], task
        )
    count = len(TESTS) * len(architectures)
    both = gather(passes, models.key, conditions)
    first = gather(passes[:count], models.key, conditions)
    result: dict[str, Any] = {}
    for test in TESTS:
        model = models.latency[test]
        found = [(model.predict_ms(k.architecture), k.ms[test]) for k in both.values() if test in k.ms]
        once = [(model.predict_ms(k.architecture), k.ms[test]) for k in first.values() if test in k.ms]
        predicted, measured = np.array(found).T
        result[test] = {
            **judge(predicted, measured).to_json(),
            "held_out": len(found),
            "invalid": asked.held_out - len(found),
            "band": model.band,
            "band_coverage": float(np.mean(measured <= predicted * (1 + model.band))),
            "profiled_models": made["models"],
            "profile_accuracy": model.accuracy,
            "one_pass": judge(*np.array(once).T).to_json(),
            "pairs_ms": [[round(p, 5), round(m, 5)] for p, m in found],
        }
        print(recipe, test, {key: value for key, value in result[test].items() if key != "pairs_ms"}, flush=True)
    return result


if __name__ == "__main__":
    main()
