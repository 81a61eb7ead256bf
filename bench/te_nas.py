"""What one candidate costs by TE-NAS's two scores and by ours: seconds and energy, on the same candidates.

The poster sets its search (0.05 h, 0.75 Wh on a CPU) beside TE-NAS (1.2 h, 300 Wh on a GPU). Here both
look at the same architectures of the poster's space on the same core: TE-NAS's neural tangent kernel
and linear regions, adapted to decoders as `merino_edge/training/scores.py` says and each repeated with
three seeds, and the closed-form entropy, one by one and by outer sums over the whole space.
Energy is what the processor's RAPL counters say, with what the machine uses anyway taken off; where
they cannot be read it is not measured, and said so. It says too how far TE-NAS's order survives another seed.

    OMP_NUM_THREADS=1 .venv/bin/python bench/te_nas.py            20 candidates, a few minutes
    OMP_NUM_THREADS=1 .venv/bin/python bench/te_nas.py --count 4  a trial; nothing is recorded
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from proxy import ordering
from record import write_result

from merino_edge.architecture import Architecture
from merino_edge.search.engine import SearchRequest
from merino_edge.search.exact import survey_space
from merino_edge.search.problem import make_problem
from merino_edge.search.scores import ScoreOptions, score_architecture
from merino_edge.search.space import load_space

COUNT, SEEDS, IDLE_S = 20, (0, 1, 2), 5.0
HALVES = ("ntk-condition", "linear-regions")
ENTROPY = ScoreOptions("entropy-poster")
RAPL = Path("/sys/class/powercap")


def read_energy_j() -> float | None:
    """Return the joules that the processor packages have used so far, None where no counter can be read."""
    try:
        counters = [p / "energy_uj" for p in RAPL.glob("intel-rapl:*") if p.name.count(":") == 1]
        return sum(int(c.read_text()) for c in counters) / 1e6 if counters else None
    except OSError:
        return None


def measured(work: Callable[[], Any], idle_w: float | None) -> dict[str, Any]:
    """Run and return seconds of one core, of the clock, and joules above idle."""
    joules, begun, used = read_energy_j(), time.perf_counter(), time.process_time()
    work()
    cpu, wall = time.process_time() - used, time.perf_counter() - begun
    after = read_energy_j()
    known = joules is not None and after is not None and idle_w is not None and after >= joules
    return {"cpu_s": cpu, "wall_s": wall, "energy_j": after - joules - idle_w * wall if known else None}  # type: ignore[operator]


def idle_watts() -> float | None:
    """Return what the machine draws while this process sleeps."""
    before = read_energy_j()
    time.sleep(IDLE_S if before is not None else 0)
    after = read_energy_j()
    return (after - before) / IDLE_S if before is not None and after is not None and after >= before else None


def te_nas(candidates: list[Architecture]) -> dict[str, list[list[float]]]:
    """Return both halves of each candidate under each seed."""
    import torch

    from merino_edge.training.scores import network_score

    torch.set_num_threads(1)
    return {name: [[network_score(name, a, seed) for a in candidates] for seed in SEEDS] for name in HALVES}


def rank_sum(values: dict[str, list[list[float]]], seed: int) -> np.ndarray:
    """Return TE-NAS's order: the ranks of both halves added up; larger is better."""
    return np.sum([ordering.ranks(np.array(values[name][seed])) for name in HALVES], axis=0)


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=COUNT)
    count = parser.parse_args().count
    space = load_space("poster")
    candidates = space.sample(count, seed=0)
    te_nas(load_space("poster").sample(1, seed=1))  # torch loaded, kernels chosen
    idle = idle_watts()
    values: dict[str, list[list[float]]] = {}
    costs = {
        "te_nas": measured(lambda: values.update(te_nas(candidates)), idle),
        "entropy_one_by_one": measured(lambda: [score_architecture(a, ENTROPY) for a in candidates], idle),
        "entropy_whole_space": measured(lambda: survey_space(make_problem(SearchRequest(space, score=ENTROPY))), idle),
    }
    looked_at = {"te_nas": count, "entropy_one_by_one": count, "entropy_whole_space": space.size}
    each = {
        name: {key: None if v is None else v / looked_at[name] for key, v in cost.items()}
        for name, cost in costs.items()
    }
    whole = costs["entropy_whole_space"]["cpu_s"]
    order = [rank_sum(values, seed) for seed in range(len(SEEDS))]
    result = {
        "candidates": count,
        "seeds": len(SEEDS),
        "each": each,
        "energy": "RAPL, idle taken off" if idle is not None else "not measured: no readable RAPL counter",
        "te_nas_whole_space_h": each["te_nas"]["cpu_s"] * space.size / 3600,
        "entropy_whole_space_s": whole,
        "times_cheaper_each": each["te_nas"]["cpu_s"] / (whole / space.size),
        "order_between_seeds_spearman": [ordering.spearman(order[0], other) for other in order[1:]],
        "values": values,
    }
    for name, cost in each.items():
        joules = "not measured" if cost["energy_j"] is None else f"{cost['energy_j']:.3g} J"
        print(f"{name:20s} {cost['cpu_s']:.3g} s of one core a candidate, energy {joules}")
    print(f"TE-NAS's order under other seeds: Spearman {result['order_between_seeds_spearman']}")
    if count == COUNT:
        print(write_result("te_nas", result))


if __name__ == "__main__":
    main()
