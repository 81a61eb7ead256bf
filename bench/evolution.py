"""Does the evolutionary search find the best? Against the exact optimum, and against pymoo's GA.

On the poster's space, where the optimum is known: in how many of 20 seeds its class is found, by the
share of the space looked at. On `wide` (4e10 architectures): the best feasible score of both at the same
number of evaluations, same limits, 20 seeds. pymoo is not a dependency; without it the second part is
left out:

    OMP_NUM_THREADS=1 .venv/bin/python bench/evolution.py
    bench/evolution.py --first-seed 100 [--seeds 20] [--space FILE.toml]    # printed, not recorded

`--space` stands for the poster's: a space whose optimum the exact search knows.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from record import write_result

from merino_edge.device.board import load_board
from merino_edge.errors import MerinoEdgeError
from merino_edge.search.engine import SearchRequest, search
from merino_edge.search.evolution import Evolution
from merino_edge.search.latency import estimate_latency, estimate_memory
from merino_edge.search.problem import make_problem
from merino_edge.search.space import Space, load_space
from merino_edge.search.survey import excess
from merino_edge.units import Limit

SEEDS = 20
SHARES = (0.005, 0.01, 0.02, 0.05)  # of the poster's space
WIDE_EVALUATIONS = 10_000
RECIPE = "dynamic_wi8_afp32"
POSTER_LIMITS: list[dict[str, Limit]] = [
    {"latency_ms": Limit(25.0), "memory_bytes": Limit(200e6)},
    {"parameters": Limit(16e6), "flops": Limit(30e9)},
    {"file_bytes": Limit(14e6), "flops": Limit(15e9), "latency_ms": Limit(20.0)},
    {"parameters": Limit(22e6, 20e6), "latency_ms": Limit(40.0)},
]
WIDE_LIMITS: list[dict[str, Limit]] = [
    {"latency_ms": Limit(25.0), "memory_bytes": Limit(200e6)},
    {"parameters": Limit(16e6), "flops": Limit(30e9)},
    {"file_bytes": Limit(20e6, 15e6), "latency_ms": Limit(30.0), "memory_bytes": Limit(250e6)},
]


def main() -> None:
    """Run both parts, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--space", metavar="FILE.toml", help="for the first part alone, with limits of its members")
    asked = parser.parse_args()
    if asked.seeds < 1 or asked.first_seed < 0:
        sys.exit("at least one seed, from 0 on")
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
    models = estimates()
    try:
        space = load_space(asked.space or "poster")
        limits = limits_of_members(space, models, asked.first_seed) if asked.space else POSTER_LIMITS
        rows = [exactly_known(space, models, each, seeds) for each in limits]
    except MerinoEdgeError as error:
        sys.exit(f"--space {asked.space}: {error}")
    result: dict[str, Any] = {"seeds": len(seeds), "poster": rows}
    for row in rows:
        found = {share: f"{hits}/{len(seeds)}" for share, hits in row["hits_by_share"].items()}
        print(row["limits"], found, flush=True)
    if asked.space:
        print("not recorded: another space than the record's")
        return
    try:
        import pymoo  # noqa: F401
    except ImportError:
        print("pymoo is not installed: the comparison on `wide` is left out", file=sys.stderr)
    else:
        result["wide_evaluations"] = WIDE_EVALUATIONS
        result["wide"] = [wide(models, limits, seeds) for limits in WIDE_LIMITS]
    if seeds != range(SEEDS):
        print("not recorded: other seeds than the record's")
        return
    print(write_result("evolution", result))


def limits_of_members(space: Space, models: dict[str, Any], seed: int) -> list[dict[str, Limit]]:
    """Return limits that a random member each meets, so that something does: two and two of four kinds."""
    problem = make_problem(SearchRequest(space, **models))
    pairs = (("latency_ms", "memory_bytes"), ("parameters", "flops")) * 2
    members = space.sample(len(pairs), seed)
    found = [problem.values(member) for member in members]
    return [{name: Limit(values[name]) for name in pair} for pair, values in zip(pairs, found, strict=True)]


def estimates() -> dict[str, Any]:
    """Return the models of a Raspberry Pi 4, as its file estimates them."""
    estimate = load_board("pi4").estimate
    latency = estimate_latency(estimate, test="tg", depth=128, recipe=RECIPE, cache_bytes=1 << 20)
    return {"latency": {"tg": latency}, "memory": estimate_memory(estimate, recipe=RECIPE, context_length=1024)}


def words(limits: dict[str, Limit]) -> dict[str, list[float | None]]:
    """Return limits as JSON holds them: lower, upper."""
    return {name: [limit.lower, limit.upper] for name, limit in limits.items()}


def exactly_known(
    space: Space, models: dict[str, Any], limits: dict[str, Limit], seeds: Sequence[int]
) -> dict[str, Any]:
    """Count the seeds that find the exact optimum's class."""
    best = search(SearchRequest(space, mode="exact", limits=limits, **models)).winner.index
    hits = dict.fromkeys(SHARES, 0)
    for seed in seeds:
        for share in SHARES:
            looks = max(1, int(share * space.size))
            request = SearchRequest(space, limits=limits, mode="evolution", seed=seed, evaluations=looks, **models)
            hits[share] += search(request).winner.index == best
    return {"limits": words(limits), "hits_by_share": {str(share): count for share, count in hits.items()}}


def wide(models: dict[str, Any], limits: dict[str, Limit], seeds: Sequence[int]) -> dict[str, Any]:
    """Compare the best feasible scores of both engines, seed by seed."""
    ours, theirs, seconds = [], [], [0.0, 0.0]
    for seed in seeds:
        request = SearchRequest(
            load_space("wide"), limits=limits, mode="evolution", seed=seed, evaluations=WIDE_EVALUATIONS, **models
        )
        used = time.process_time()
        ours.append(search(request).winner.score)
        seconds[0] += time.process_time() - used
        used = time.process_time()
        theirs.append(pymoo_best(request))
        seconds[1] += time.process_time() - used
    wins = sum(a > b for a, b in zip(ours, theirs, strict=True))
    print(words(limits), f"ours {statistics.mean(ours):.0f}, pymoo {statistics.mean(theirs):.0f}", end=" ")
    each = [s / len(seeds) for s in seconds]
    print(f"better in {wins}/{len(seeds)} ({each[0]:.1f} and {each[1]:.1f} s)", flush=True)
    return {
        "limits": words(limits), "ours": ours, "pymoo": theirs, "better": wins,
        "mean_ratio": statistics.mean(ours) / statistics.mean(theirs),
        "seconds_each": each,
    }  # fmt: skip


def pymoo_best(request: SearchRequest) -> float:
    """Return the best feasible score that pymoo's GA finds.

    One integer for the group and three for each block (width, depth, ratio), so that its crossover and
    mutation see neighbours as neighbours; its own handling of constraints and of duplicates.
    """
    from pymoo.algorithms.soo.nonconvex.ga import GA
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling
    from pymoo.optimize import minimize

    evolution = Evolution(make_problem(request), request.seed)
    blocks, radix = evolution.counts.shape[1], evolution.radix[0]
    assert len(evolution.radix) == 1 and (evolution.counts == evolution.counts[0]).all()
    sizes = np.column_stack([evolution.counts[0] // radix.prod(1), radix])  # (blocks, 3)
    upper = np.concatenate([[len(evolution.groups) - 1], sizes.reshape(-1) - 1])
    best = -math.inf

    class Wide(Problem):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(n_var=len(upper), n_obj=1, n_ieq_constr=1, xl=0, xu=upper, vtype=int)

        def _evaluate(self, x: Any, out: dict[str, Any], *_: Any, **__: Any) -> None:
            nonlocal best
            place = x[:, 1:].astype(np.int64).reshape(len(x), blocks, 3)
            options = (place[:, :, 0] * sizes[:, 1] + place[:, :, 1]) * sizes[:, 2] + place[:, :, 2]
            archive = evolution.evaluate(np.column_stack([x[:, 0].astype(np.int64), options]))
            over = excess(request.limits, archive.columns)
            out["F"], out["G"] = -archive.score[:, None], over[:, None]
            best = max(best, float(np.max(archive.score, where=over <= 0, initial=-math.inf)))

    integers = {"vtype": float, "repair": RoundingRepair()}
    algorithm = GA(
        pop_size=100,
        sampling=IntegerRandomSampling(),
        crossover=SBX(prob=0.9, eta=3.0, **integers),
        mutation=PM(prob=1.0, eta=3.0, **integers),
        eliminate_duplicates=True,
    )
    minimize(Wide(), algorithm, ("n_evals", request.evaluations), seed=request.seed, verbose=False)
    return best


if __name__ == "__main__":
    main()
