"""What must stay in a processor's cache from token to token: weights alone, or keys and values too?

    .venv/bin/python bench/cache_study.py [--log FILE] [--seconds 1600]

Measures one deep and narrow model of the default space on this machine, int8, at several depths; then 90 models, 128
tokens deep, with one thread and with two, in passes in another order each, as many as the seconds allow: pairs of equal
layers with and without sharing, random members, and those that a profile would take. A log keeps every time, and the
same command goes on from it; with `--seconds 0` it only counts anew. Of each model the fastest pass counts.

Recorded, for each number of threads: how the passes of a model agree, and how well `search/latency.py` tells left-out
models where keys and values take 0 to 4 bytes of cache a byte (`kv_room`), or, as before they were counted, nothing
and have no price of their own there ("weights alone").
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from latency_local import VOCAB, held_out
from record import write_result

from merino_edge.agent.facts import Machine, cpu_cache_bytes
from merino_edge.architecture import Architecture, Block
from merino_edge.flows.conditions import Conditions
from merino_edge.flows.devices import find_entry, opened
from merino_edge.flows.measuring import measure_architecture
from merino_edge.flows.profile import ProfileOptions, searched_space
from merino_edge.search.fitting import judge, leave_one_out
from merino_edge.search.latency import KEPT_SHARES, KV_ROOM, MISSED, Features, choose_architectures, parse_test

DEPTH, RECIPE = 128, "dynamic_wi8_afp32"
SECONDS_A_MODEL = 2.0
PASSES = (2, 2, 1, 2, 1, 2)  # threads of each
ROOMS = (0, 1, 2, 3, 4)
DEEP, DEPTHS = (256, 4, 2, 16), (1, 128, 448, 900)  # sixteen blocks of width 256, called twice each
Times = dict[tuple[int, int], list[float]]  # of a model with so many threads


def main() -> None:
    """Measure what is missing, count, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--log", type=Path, help="where to keep the times, to go on from")
    parser.add_argument("--seconds", type=float, default=1600.0)
    asked = parser.parse_args()
    architectures = models()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_DATA_HOME"] = folder
        log = asked.log or Path(folder) / "times.jsonl"
        if asked.seconds:
            measure(architectures, log, time.monotonic() + asked.seconds, Path(folder))
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    times: Times = defaultdict(list)
    for line in lines:
        if "depth" not in line:
            times[line["i"], line["threads"]].append(line["r"]["tg"][0])
    deep: dict[int, float] = {}
    for line in lines:
        if "depth" in line:
            deep[line["depth"]] = min(line["tg_ms"], deep.get(line["depth"], line["tg_ms"]))
    found = [left_out(architectures, times, threads) for threads in sorted(set(PASSES))]
    for row in found:
        print(row, flush=True)
    deepest = {"architecture": alike(*DEEP).to_json(), "tg_ms": {str(depth): ms for depth, ms in sorted(deep.items())}}
    kept = [
        {"architecture": a.to_json(), "tg_ms": {str(threads): times[i, threads] for threads in sorted(set(PASSES))}}
        for i, a in enumerate(architectures)
    ]
    print(write_result("cache_study", {"depth": DEPTH, "left_out": found, "deep_one_thread": deepest, "models": kept}))


def alike(width: int, ffn_ratio: int, depth: int, blocks: int) -> Architecture:
    """Return a model of equal blocks."""
    return Architecture((Block(width, ffn_ratio, depth),) * blocks, width, VOCAB, embedding_skip=True)


def models() -> list[Architecture]:
    """Return pairs of equal layers, each of its own and two at a time, then random members and a profile's choice."""
    pairs = [(w, 4, layers) for w in (256, 448, 704, 1024) for layers in (4, 8, 16)]
    pairs += [(w, 2, layers) for w in (320, 576, 832) for layers in (6, 12)]
    found = [alike(w, r, depth, layers // depth) for w, r, layers in pairs for depth in (1, 2)]
    space = searched_space(ProfileOptions(space="free", conditions=Conditions(vocab_size=VOCAB)))
    return list(dict.fromkeys([*found, *held_out(30, 1, "free"), *choose_architectures(space, 25, 0)]))


def measure(architectures: Sequence[Architecture], log: Path, until: float, folder: Path) -> None:
    """Append a line for every model and pass that the log lacks, until the time is over."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    done = {(line["threads"], line["rep"], line["i"]) for line in lines if "rep" in line}
    deep = {line["depth"] for line in lines if "depth" in line}
    with opened(find_entry("local")) as device, open(log, "a", encoding="utf-8") as stream:
        facts = device.facts()

        def medians(architecture: Architecture, conditions: Conditions) -> dict[str, tuple[float, bool]]:
            records = measure_architecture(
                device, facts, architecture, conditions, SECONDS_A_MODEL, folder / "measurements.jsonl"
            )
            return {record.key.test: (record.p50_ms, record.valid) for record in records}

        def keep(line: dict[str, Any]) -> None:
            stream.write(json.dumps(line) + "\n")
            stream.flush()

        for depth in DEPTHS:
            for _ in range(2 * (depth not in deep)):
                told = medians(alike(*DEEP), Conditions(vocab_size=VOCAB, threads=1, depth=depth))
                keep({"depth": depth, "tg_ms": told["tg"][0]})
        rng, count = random.Random(0), dict.fromkeys(PASSES, 0)  # noqa: S311  no secret
        for threads in PASSES:
            order = list(range(len(architectures)))
            rng.shuffle(order)
            for i in order:
                if time.monotonic() > until:
                    return
                if (threads, count[threads], i) not in done:
                    told = medians(architectures[i], Conditions(vocab_size=VOCAB, threads=threads, depth=DEPTH))
                    keep({"i": i, "threads": threads, "rep": count[threads], "t": time.time(), "r": told})
            count[threads] += 1


def left_out(architectures: Sequence[Architecture], times: Times, threads: int) -> dict[str, Any]:
    """Return how passes agree, and the errors of left-out models by what keys and values take of the cache."""
    have = [i for i in range(len(architectures)) if times[i, threads]]
    fastest = np.array([min(times[i, threads]) for i in have])
    again = [max(times[i, threads]) / min(times[i, threads]) - 1 for i in have if len(times[i, threads]) > 1]
    cache, work = cpu_cache_bytes(Machine.here()) or 0, parse_test("tg", DEPTH)

    def best(room: int, priced: bool) -> dict[str, Any]:
        tried = []
        for share in KEPT_SHARES:
            costs = Features(work, RECIPE, cache, None, int(share * cache), room)
            features = np.stack([costs.of(architectures[i]) for i in have])
            features[:, MISSED + 1 :] *= priced
            tried.append((judge(leave_one_out(features, fastest), fastest), share))
        accuracy, share = min(tried, key=lambda pair: pair[0].mape or 0.0)
        return {**accuracy.to_json(), "kept_share": share}

    errors = {"weights alone": best(0, priced=False)} | {str(room): best(room, priced=True) for room in ROOMS}
    return {"threads": threads, "median_spread_of_passes": float(np.median(again)), "by_kv_room": errors}


def figure_rows(r: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the README's rows."""
    told = []
    for row in r["left_out"]:
        before, now = row["by_kv_room"]["weights alone"], row["by_kv_room"][str(KV_ROOM)]
        threads = "one thread" if row["threads"] == 1 else f"{row['threads']} threads"
        told.append(
            (
                f"{now['samples']} models of 3 to 210 MB, int8, {threads}: mean error of a token's time, each one told "
                "from the others, where only weights count against the cache; where keys and values do too; median "
                "difference of a model's passes",
                "; ".join(f"{100 * v:.1f} %" for v in (before["mape"], now["mape"], row["median_spread_of_passes"])),
            )
        )
    return told


if __name__ == "__main__":
    main()
