"""How fast is the search? The poster's 186,624 architectures and the default space, on one core, imports apart.

Beside it: the same space scored the straightforward way, one architecture at a time with a drawn
matrix and an SVD for every tensor (200 architectures timed, the rest extrapolated), and the paper's
0.05 h on a CPU.

    OMP_NUM_THREADS=1 .venv/bin/python bench/search_speed.py
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from record import write_result

from merino_edge.architecture import Architecture
from merino_edge.device.board import load_board
from merino_edge.errors import InfeasibleError
from merino_edge.search.engine import Measured, SearchRequest, search
from merino_edge.search.exact import survey_space
from merino_edge.search.latency import estimate_latency, estimate_memory
from merino_edge.search.multisets import count_classes
from merino_edge.search.problem import make_problem
from merino_edge.search.scores import ScoreOptions, score_architecture
from merino_edge.search.space import Space, load_space, parse_space
from merino_edge.units import Limit

REPEATS = 15
SVD_SAMPLE = 200
PAPER_HOURS = 0.05
RECIPE = "dynamic_wi8_afp32"
BOARD = {"latency_ms": Limit(50.0), "memory_bytes": Limit(400e6)}
LIMITS = {"latency_ms": Limit(25.0), "memory_bytes": Limit(200e6), "parameters": Limit(20e6)}


def main() -> None:
    """Measure, print and record."""
    estimate = load_board("pi4").estimate
    models = {
        "latency": {
            test: estimate_latency(estimate, test=test, depth=128, recipe=RECIPE, cache_bytes=1 << 20)
            for test in ("tg", "pp128")
        },
        "memory": estimate_memory(estimate, recipe=RECIPE, context_length=1024),
    }
    poster = load_space("poster")
    request = SearchRequest(poster, limits=LIMITS, **models)
    result: dict[str, Any] = {"space_size": poster.size, "limits": {k: v.upper for k, v in LIMITS.items()}}
    result["score_and_filter"] = timed(lambda: survey_without_front(request))
    result["whole_search_with_front"] = timed(lambda: search(request))
    free = search(SearchRequest(poster, **models))
    result["front_of_the_whole_space"] = {"seconds": free.seconds["front"], "members": len(free.front)}
    result["infeasible"] = timed(lambda: infeasible(SearchRequest(poster, limits={"latency_ms": Limit(1.0)}, **models)))
    result["same_answer_every_time"] = len({search(request).winner.index for _ in range(5)}) == 1
    default = load_space("free").with_embedding_skip()
    asked = SearchRequest(default, score=ScoreOptions(name="balanced-parameters"), limits=BOARD, **models)
    result["default_search"] = {
        "size": default.size,
        "classes": sum(map(count_classes, default.groups)),
        "limits": {name: limit.upper for name, limit in BOARD.items()},
        "mode": search(asked).mode,
        **timed(lambda: search(asked)),
    }
    wide = SearchRequest(load_space("wide"), limits={"latency_ms": Limit(0.1)}, **models)
    result["infeasible_wide"] = {"size": wide.space.size, **timed(lambda: infeasible(wide))}
    result["infeasible_cases"] = infeasible_cases(models)
    result["fronts_of_mixed_widths"] = [
        time_front(models, mixed_widths(), name) for name in ("balanced-parameters", "entropy")
    ]
    result["large"] = [large(models, space) for space in (one_width(5), own_widths(), many_options())]
    result["svd_loop"] = svd_loop(poster)
    result["svd_loop"]["times_slower"] = result["svd_loop"]["extrapolated_s"] / result["score_and_filter"]["p50_s"]
    result["paper_s"] = PAPER_HOURS * 3600
    path = write_result("search_speed", result)
    for name in ("score_and_filter", "whole_search_with_front", "default_search", "infeasible", "infeasible_wide"):
        print(f"{name:28s} p50 {result[name]['p50_s'] * 1e3:7.1f} ms  cpu {result[name]['cpu_p50_s'] * 1e3:7.1f} ms")
    front = result["front_of_the_whole_space"]
    print(f"{'front of the whole space':28s} {front['seconds'] * 1e3:11.1f} ms  {front['members']} members")
    print_cases(result)
    for space in result["large"]:
        print(
            f"{space['size']:>12,d} architectures       {space['cpu_s']:.2f} s of one core, "
            f"front {space['front_s']:.2f} s"
        )
    print(f"SVD loop, extrapolated       {result['svd_loop']['extrapolated_s'] / 3600:.1f} h; paper {PAPER_HOURS} h")
    print(path)


def print_cases(result: dict[str, Any]) -> None:
    """Print what larger spaces and mixed widths take."""
    for case in result["infeasible_cases"]:
        cpu, judged = case["cpu_p50_s"] * 1e3, "all members judged" if case["all_judged"] else "only some looked at"
        print(f"infeasible: {case['space']:12s} {case['what']:32s} cpu {cpu:7.1f} ms  {judged}")
    for mixed in result["fronts_of_mixed_widths"]:
        print(
            f"front of mixed widths, {mixed['score']:20s} {mixed['seconds'] * 1e3:7.1f} ms  {mixed['members']} members"
        )


def timed(function: Callable[[], Any]) -> dict[str, Any]:
    """Return raw wall and processor seconds of some repetitions."""
    function()
    wall, cpu = [], []
    for _ in range(REPEATS):
        begun, used = time.perf_counter(), time.process_time()
        function()
        wall.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - used)
    return {
        "p50_s": statistics.median(wall),
        "cpu_p50_s": statistics.median(cpu),
        "samples_s": wall,
        "cpu_samples_s": cpu,
    }


def survey_without_front(request: SearchRequest) -> None:
    """Fill every column, apply the limits, find the winner and what each limit costs."""
    survey, *_ = survey_space(make_problem(request))
    assert survey.best


def infeasible(request: SearchRequest) -> InfeasibleError:
    """Ask for what cannot be, and return the answer."""
    try:
        search(request)
    except InfeasibleError as error:
        return error
    raise AssertionError("the limit was meant to be out of reach")


def infeasible_cases(models: dict[str, Any]) -> list[dict[str, Any]]:
    """Time the answers to limits that no member of a larger space meets."""
    free, wide = load_space("free"), load_space("wide")
    between, none_there = {"parameters": Limit(10_000_002, 10_000_001)}, {"latency_ms": Limit(1.0)}
    clash = {"latency_ms": Limit(20.0), "parameters": Limit(80e6, 60e6)}
    four = {**clash, "memory_bytes": Limit(200e6), "flops": Limit(100e9, 90e9)}
    cases: list[tuple[Space, str, dict[str, Limit]]] = [
        (free, "one limit out of reach", none_there),
        (free, "a range between two members", between),
        (free, "two limits that clash", clash),
        (free, "four limits that clash", four),
        (wide, "one limit out of reach", none_there),
        (wide, "two limits that clash", {"parameters": Limit(2e6), "flops": Limit(1e15, 60e9)}),
        (wide, "a range and a limit that clash", {"latency_ms": Limit(5.0), "parameters": Limit(40e6, 30e6)}),
        (wide, "four limits that clash", {**four, "latency_ms": Limit(5.0)}),
        (wide, "a range between two members", between),
        (own_widths(), "two limits that clash", {"parameters": Limit(8e6), "flops": Limit(1e15, 60e9)}),
        (own_widths(), "a range between two members", between),
        (many_groups(), "one limit out of reach", {"latency_ms": Limit(0.1)}),
        (many_groups(), "a range between two members", between),
    ]
    rows = []
    for space, what, limits in cases:
        rows.append(infeasible_case(models, space, what, limits))
    known = {a.digest: Measured(a, {"tg": 40.0, "pp128": 400.0}, 2e8) for a in free.sample(30, seed=0)}
    rows.append(infeasible_case(models, free, "one limit out of reach, 30 models measured", none_there, known))
    return rows


def infeasible_case(
    models: dict[str, Any], space: Space, what: str, limits: dict[str, Limit], known: dict[str, Measured] | None = None
) -> dict[str, Any]:
    """Time one answer to limits that nothing meets."""
    score = ScoreOptions(name="balanced-parameters")
    request = SearchRequest(space, score=score, limits=limits, measured=known or {}, **models)
    details = infeasible(request).details
    return {
        "space": space.name,
        "size": space.size,
        "what": what,
        "all_judged": details["evaluated"] == space.size,
        "least_proven": details["least_proven"],
        "nearest_proven": details["nearest_proven"],
        **timed(lambda: infeasible(request)),
    }


def mixed_widths() -> Space:
    """Return 139,968 architectures of three blocks whose widths mix freely."""
    free = {"count": 2, "width": list(range(256, 769, 64)), "depth": [1, 2, 3], "ffn_ratio": [1, 2, 3, 4]}
    last = {"width": [256, 512, 768], "depth": [1, 2], "ffn_ratio": [2, 4]}
    document = {"schema_version": 1, "name": "mixed widths", "vocab_size": 16384, "embedding_width": 256}
    return parse_space({**document, "block": [free, last]}, "bench")


def time_front(models: dict[str, Any], space: Space, name: str) -> dict[str, Any]:
    """Time the exact front of a whole space; the same every time."""
    request = SearchRequest(space, score=ScoreOptions(name=name), **models)
    found = [search(request) for _ in range(REPEATS)]
    return {
        "size": space.size,
        "score": name,
        "seconds": statistics.median(outcome.seconds["front"] for outcome in found),
        "samples_s": [outcome.seconds["front"] for outcome in found],
        "members": len(found[0].front),
        "same_every_time": len({tuple(c.index for c in outcome.front) for outcome in found}) == 1,
    }


def many_groups() -> Space:
    """Return 42,240 architectures in 2,640 combinations of vocabulary, embedding, head width and model width."""
    document = {"schema_version": 1, "name": "many groups", "vocab_size": list(range(4096, 40961, 4096))}
    widths = {"head_dim": [16, 32, 64], "embedding_width": list(range(64, 513, 64)), "width": list(range(128, 769, 64))}
    return parse_space({**document, **widths, "block": [{"count": 2, "depth": [1, 2], "ffn_ratio": [2, 4]}]}, "bench")


def one_width(blocks: int) -> Space:
    """Return the poster's space with more blocks: 9 x 12^blocks."""
    choices = {"count": blocks, "depth": [1, 2, 3], "ffn_ratio": [1, 2, 3, 4]}
    widths = list(range(256, 769, 64))
    return parse_space(
        {"schema_version": 1, "name": "more blocks", "vocab_size": 16384, "width": widths, "block": [choices]}, "bench"
    )


def own_widths() -> Space:
    """Return 11.7 million architectures of three blocks, each of its own width."""
    choices = {"count": 3, "width": list(range(128, 1025, 64)), "depth": [1, 2, 3], "ffn_ratio": [1, 2, 3, 4]}
    document = {"schema_version": 1, "name": "own widths", "vocab_size": 16384, "embedding_width": [256, 512]}
    return parse_space({**document, "block": [choices]}, "bench")


def many_options() -> Space:
    """Return 74 million architectures of three blocks with 210 options each."""
    choices = {"count": 3, "width": list(range(64, 897, 64)), "depth": [1, 2, 3], "ffn_ratio": [1, 2, 3, 4, 5]}
    document = {"schema_version": 1, "name": "many options", "vocab_size": 16384, "block": [choices]}
    return parse_space({**document, "embedding_width": list(range(128, 1025, 128))}, "bench")


def large(models: dict[str, Any], space: Space) -> dict[str, Any]:
    """Time one larger space: columns, limits and winner; the front apart."""
    problem = make_problem(SearchRequest(space, limits=LIMITS, **models))
    used = time.process_time()
    survey, clock, _ = survey_space(problem)
    used = time.process_time() - used
    within = survey.front_seconds
    members = len(survey.front())
    search_s = clock.score + clock.search - within
    return {
        "space": space.name,
        "size": space.size,
        "wall_s": search_s,
        "cpu_s": used * search_s / (clock.score + clock.search),
        "front_s": survey.front_seconds,
        "front_members": members,
    }


def svd_loop(space: Space) -> dict[str, Any]:
    """Score architectures one by one with drawn matrices and an SVD each."""
    rng = np.random.default_rng(0)
    begun, used = time.perf_counter(), time.process_time()
    worst = 0.0
    for architecture in space.sample(SVD_SAMPLE, seed=0):
        drawn = svd_score(architecture, rng)
        worst = max(worst, abs(score_architecture(architecture, ScoreOptions()) / drawn - 1))
    wall, cpu = time.perf_counter() - begun, time.process_time() - used
    return {
        "sample": SVD_SAMPLE,
        "wall_s": wall,
        "cpu_s": cpu,
        "extrapolated_s": cpu / SVD_SAMPLE * space.size,
        "largest_difference_of_closed_form": worst,
    }


def svd_score(architecture: Architecture, rng: np.random.Generator, eps: float = 0.01) -> float:
    """Return the paper's score with one drawn matrix for each unique tensor."""
    sums, logs = np.zeros(2), np.zeros(2)
    for block in architecture.blocks:
        shapes = [[(block.width, block.width)] * 4, [(block.ffn_width, block.width)] * 2]
        for kind, kind_shapes in enumerate(shapes):
            for shape in kind_shapes:
                values = np.linalg.svd(rng.standard_normal(shape), compute_uv=False)
                sums[kind] += block.depth * np.log1p((values / eps) ** 2).sum()
        logs += block.depth * np.log([block.width, block.ffn_width])
    gamma = architecture.depth / 16 / (logs / architecture.depth)
    return float(((1 - gamma) * sums).sum())


if __name__ == "__main__":
    main()
