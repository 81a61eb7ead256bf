"""Do winners keep their limits when somebody measures them again?

    .venv/bin/python bench/constraints.py [--budgets 20] [--seconds 300] [--seed 1]

Profiles this machine, draws random budgets (a limit on `tg` or on `pp128`, every second one with a limit
on memory too), searches each as `merino-edge search` does, and measures every winner again after all
searches, in three fresh processes with the other winners between them. A winner keeps its limits where the
first of them does: what a user would see who checks once. Whether the median of the three does is recorded
beside it. These wait until a virtual machine's processors stand where they stood while it was profiled, as
`search` does; one more pass takes the machine as it is, and is recorded apart (`kept_as_it_came`). Also recorded:
how far below the limit the binding quantity lies, how many candidates the search measured, and what it knew of
this machine's repeatability. Everything lies in a folder of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from record import write_result

from merino_edge.architecture import Architecture
from merino_edge.device.registry import device_folder
from merino_edge.errors import InfeasibleError
from merino_edge.flows.conditions import Conditions
from merino_edge.flows.devices import find_entry, opened
from merino_edge.flows.measuring import MEASUREMENTS, SHARED_KEY, measure_architecture, shared_key
from merino_edge.flows.placement import distances_ns, usual_distance_ns
from merino_edge.flows.profile import ProfileOptions, profile
from merino_edge.flows.search import search
from merino_edge.flows.verify import SearchOptions
from merino_edge.measurement import read_measurements
from merino_edge.units import Limit

VOCAB = 8192
RECHECK_SECONDS = 4.0
PASSES = 3  # over all winners, and one more that waits for nothing
TRIES = 10  # for a pair of limits that something meets


def main() -> None:
    """Profile, search, measure again, record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--budgets", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_DATA_HOME"] = folder
        os.chdir(folder)
        result = run(asked, Path(folder))
    print(write_result("constraints", result))


def run(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the record of all budgets."""
    made = profile("local", ProfileOptions(seconds=asked.seconds, conditions=Conditions(vocab_size=VOCAB)))
    random = np.random.default_rng(asked.seed)
    rows = [one_search(random, made["reach"], number) for number in range(asked.budgets)]
    with opened(find_entry("local")) as device:
        facts = device.facts()
        key = {name: made["key"][name] for name in SHARED_KEY}
        log = [r for r in read_measurements(device_folder("local") / MEASUREMENTS) if shared_key(r) == key]
        usual = usual_distance_ns(r for r in log if r.valid)
        for number in range(PASSES + 1):
            device.core_distance_ns = usual if number < PASSES else None
            for row in rows:
                conditions = Conditions(vocab_size=VOCAB, latency_of=row["latency_of"])
                architecture = Architecture.from_json(row["architecture"])
                records = measure_architecture(
                    device, facts, architecture, conditions, RECHECK_SECONDS, folder / f"again{number}.jsonl"
                )
                row.setdefault("passes", []).append(seen(row, {r.key.test: r for r in records}))
    for row in rows:
        row.update(judged(row))
        print({key: row[key] for key in ("limits", "passes", "kept", "kept_by_median", "seconds")}, flush=True)
    counted = [row for row in rows if row["valid"]]
    return {
        "budgets": len(rows),
        "counted": len(counted),
        "kept": sum(row["kept"] for row in counted),
        "kept_by_median": sum(row["kept_by_median"] for row in counted),
        "kept_as_it_came": sum(row["kept_as_it_came"] for row in rows),
        "usual_core_distance_ns": usual,
        "verified": sum(row["verified"] for row in rows),
        "within_10pct_below": sum(0.9 <= row["nearest_binding"] <= 1.0 for row in counted),
        "profile": made["latency_models"],
        "seed": asked.seed,
        "vocab_size": VOCAB,
        "rows": rows,
    }


def one_search(random: np.random.Generator, reach: list[dict[str, Any]], number: int) -> dict[str, Any]:
    """Draw limits between the smallest and the largest model until something meets them, and search."""
    latency_of = "pp128" if number % 3 == 2 else "tg"
    small, large = reach
    for _ in range(TRIES):
        low, high = (row[f"{latency_of}_ms_upper"] for row in (small, large))
        limits = {"latency_ms": Limit(float(np.exp(random.uniform(np.log(1.1 * low), np.log(high)))))}
        if number % 2:
            memory = random.uniform(small["memory_bytes_upper"], large["memory_bytes_upper"])
            limits["memory_bytes"] = Limit(float(memory))
        conditions = Conditions(vocab_size=VOCAB, latency_of=latency_of)
        try:
            found = search(SearchOptions(limits=limits, conditions=conditions, run=f"budget{number}"))
        except InfeasibleError:
            continue
        return {
            "latency_of": latency_of,
            "limits": {name: limit.upper for name, limit in limits.items()},
            "binding": [c["name"] for c in found["constraints"] if c["binding"]],
            "measured_by_search": found["measured"],
            "predicted": found["predicted"],
            "verified": found["verified"],
            "rounds": len(found["rounds"]),
            "repeatability": found["repeatability"],
            "unused_reason": found["unused_reason"],
            "seconds": found["seconds"]["total"],
            "architecture": found["architecture"],
        }
    raise SystemExit(f"no budget of {TRIES} could be met: the profile's reach is wrong")


def seen(row: dict[str, Any], records: dict[str, Any]) -> dict[str, Any]:
    """Return what one fresh process showed of what is limited."""
    record = records[row["latency_of"]]
    return {
        "latency_ms": record.p50_ms,
        "memory_bytes": record.peak_memory_bytes,
        "valid": record.valid,
        "core_distances_ns": distances_ns(record),
    }


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """Hold the first fresh measurement, and the median of all, against the limits."""
    *waited, last = row["passes"]
    middle = {name: statistics.median(p[name] for p in waited) for name in row["limits"]}
    first, shares = row["passes"][0], {name: row["passes"][0][name] / limit for name, limit in row["limits"].items()}
    binding = [shares[name] for name in row["binding"] if name in shares]
    return {
        "again": {name: first[name] for name in ("latency_ms", "memory_bytes")},
        "valid": first["valid"],
        "kept": all(share <= 1.0 for share in shares.values()),
        "kept_by_median": all(middle[name] <= limit for name, limit in row["limits"].items()),
        "kept_as_it_came": all(last[name] <= limit for name, limit in row["limits"].items()),
        "nearest_binding": max(binding, default=max(shares.values())),
    }


if __name__ == "__main__":
    main()
