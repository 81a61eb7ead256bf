"""How well does a profile of this machine predict models it has not measured?

    .venv/bin/python bench/latency_local.py [--seconds 300] [--held-out 30] [--seed 1]

Profiles this machine as `merino-edge profile` does, then measures random members of the poster's space
that were not profiled, and compares. Everything lies in a folder of its own; invalid measurements are
repeated once and then left out, and counted.
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
from merino_edge.flows.measuring import measure_architecture
from merino_edge.flows.profile import ProfileOptions, profile
from merino_edge.flows.profile_file import read_profile
from merino_edge.search.fitting import judge
from merino_edge.search.space import load_space

VOCAB = 8192
RECIPES = ("dynamic_wi8_afp32", "fp32")


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--held-out", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_DATA_HOME"] = folder
        result = {recipe: one_recipe(recipe, asked, Path(folder)) for recipe in RECIPES}
    arguments = {"seconds": asked.seconds, "seed": asked.seed, "vocab_size": VOCAB}
    print(write_result("latency_local", {**arguments, "recipes": result}))


def one_recipe(recipe: str, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Profile one recipe, measure held-out models, return the errors of each test."""
    conditions = Conditions(recipe=recipe, vocab_size=VOCAB)
    made = profile("local", ProfileOptions(seconds=asked.seconds, conditions=conditions))
    fitted = read_profile("local")
    models = fitted.recipe(conditions) if fitted else None
    assert models is not None
    space = load_space("poster", VOCAB)
    pairs: dict[str, list[tuple[float, float]]] = {test: [] for test in TESTS}
    inside: dict[str, int] = dict.fromkeys(TESTS, 0)
    with opened(find_entry("local")) as device:
        facts = device.facts()
        for architecture in space.sample(asked.held_out, seed=asked.seed):
            for _ in range(2):
                records = measure_architecture(device, facts, architecture, conditions, 5.0, folder / "held-out.jsonl")
                if all(record.valid for record in records):
                    break
            for record in records:
                if record.valid:
                    model = models.latency[record.key.test]
                    pairs[record.key.test].append((model.predict_ms(architecture), record.p50_ms))
                    inside[record.key.test] += record.p50_ms <= model.upper_ms(architecture)
    result: dict[str, Any] = {}
    for test, found in pairs.items():
        predicted, measured = np.array(found).T
        result[test] = {
            **judge(predicted, measured).to_json(),
            "held_out": len(found),
            "invalid": asked.held_out - len(found),
            "band_coverage": inside[test] / len(found),
            "profiled_models": made["models"],
            "pairs_ms": [[round(p, 5), round(m, 5)] for p, m in found],
        }
        print(recipe, test, {key: value for key, value in result[test].items() if key != "pairs_ms"}, flush=True)
    return result


if __name__ == "__main__":
    main()
