"""The search as a whole, against looking at every member one by one."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from merino_edge.architecture import Architecture
from merino_edge.errors import InfeasibleError, UsageError
from merino_edge.search.classes import class_members, class_size, representative
from merino_edge.search.cost import count_flops, file_sum, total
from merino_edge.search.engine import Candidate, Measured, SearchRequest, search
from merino_edge.search.exact import sweep
from merino_edge.search.latency import LatencyModel, MemoryModel, estimate_latency, estimate_memory
from merino_edge.search.pareto import non_dominated
from merino_edge.search.problem import make_problem
from merino_edge.search.scores import ScoreOptions, score_architecture
from merino_edge.search.space import Space, load_space, parse_space
from merino_edge.units import Limit, parse_bytes, parse_count, parse_ms

RECIPE = "dynamic_wi8_afp32"
ESTIMATE = {
    "bandwidth_bytes_per_s": 4e9,
    "cache_bandwidth_bytes_per_s": 12e9,
    "fp32_macs_per_s": 16e9,
    "int8_macs_per_s": 24e9,
    "layer_overhead_ms": 0.1,
    "token_overhead_ms": 0.4,
    "runtime_memory_bytes": 60_000_000,
    "relative_error": 0.5,
}


def space(*blocks: dict[str, Any], **changes: Any) -> Space:
    base = {"schema_version": 1, "name": "tiny", "vocab_size": 500, "head_dim": 32}
    return parse_space({**base, **changes, "block": list(blocks)}, "t")


ALIKE = space({"count": 3, "depth": [1, 2], "ffn_ratio": [1, 2, 4]}, width=[64, 96, 128], embedding_width="width")
MIXED = space(
    {"count": 2, "width": [64, 96], "depth": [1, 3], "ffn_ratio": [1, 2.5]},
    {"width": [64, 128], "depth": [1], "ffn_ratio": [2, 3]},
    {"width": [64, 96], "depth": [1, 3], "ffn_ratio": [1, 2.5]},
    embedding_width=[64, 96],
    vocab_size=[300, 500],
    per_layer_norms=True,
)
COUNTED = space(
    {"count": [1, 3], "depth": [1, 2], "ffn_ratio": [1, 2]},
    {"count": [1, 2], "depth": 1, "ffn_ratio": 3},
    width=[64, 96],
    embedding_width="width",
    embedding_skip=True,
)
POSTER = load_space("poster")


def latency() -> dict[str, LatencyModel]:
    return {
        test: estimate_latency(ESTIMATE, test=test, depth=128, recipe=RECIPE, cache_bytes=50_000)
        for test in ("tg", "pp128")
    }


def memory() -> MemoryModel:
    return estimate_memory(ESTIMATE, recipe=RECIPE, context_length=256)


def request(where: Space, limits: dict[str, Limit] | None = None, **changes: Any) -> SearchRequest:
    base: dict[str, Any] = {"latency": latency(), "memory": memory(), "recipe": RECIPE, "context_length": 256}
    return SearchRequest(where, limits=limits or {}, **{**base, **changes})


LATENCY, MEMORY = latency(), memory()


@functools.cache
def values(a: Architecture) -> dict[str, float]:
    return {
        "latency_ms": LATENCY["tg"].upper_ms(a),
        "memory_bytes": MEMORY.upper_bytes(a),
        "file_bytes": total(file_sum(RECIPE, a.per_layer_norms, a.embedding_skip), a),
        "parameters": a.unique_parameters,
        "flops": count_flops(a),
    }


@functools.cache
def score_of(a: Architecture, options: ScoreOptions) -> float:
    return score_architecture(a, options)


def brute_force(where: Space, limits: dict[str, Limit], options: ScoreOptions) -> list[int]:
    """Indices of all feasible members, best first, by the stated order."""
    ranked = []
    for index in range(where.size):
        a = where.decode(index)
        cost = values(a)
        if all(limit.admits(cost[name]) for name, limit in limits.items()):
            ranked.append((-score_of(a, options), a.unique_parameters, count_flops(a), index))
    return [index for *_, index in sorted(ranked)]


LIMITS: list[dict[str, Limit]] = [
    {},
    {"latency_ms": Limit(1.9), "parameters": Limit(200_000)},
    {"flops": Limit(4e9, 2e9), "file_bytes": Limit(320_000)},
    {"memory_bytes": Limit(93e6)},
]


@pytest.mark.parametrize("where", [ALIKE, MIXED, COUNTED], ids=["one width", "own widths", "several counts"])
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("name", ["entropy", "minus-depth", "balanced-parameters"])
def test_exact_search_agrees_with_looking_at_every_member(where: Space, limits: dict[str, Limit], name: str) -> None:
    options = ScoreOptions(name=name, beta=0.4)
    feasible = brute_force(where, limits, options)
    classes = list(dict.fromkeys(representative(where, index) for index in feasible))
    outcome = search(request(where, limits, score=options))
    assert outcome.feasible == len(feasible)
    assert [c.index for c in (outcome.winner, *outcome.runners_up)] == classes[:11]


RUNS = ({"count": [1, 2], "depth": 2, "ffn_ratio": 2}, {"count": [1, 2, 3], "depth": [1, 2], "ffn_ratio": [2, 4]})
OPEN = [
    COUNTED,
    space(*RUNS, width=[64, 96], embedding_width="width"),
    space({"count": [1, 2, 3], "width": [64, 96], "depth": [1, 2], "ffn_ratio": 2}, embedding_width=[64, 96]),
]


@pytest.mark.parametrize("where", OPEN, ids=["one kind", "two kinds", "own widths"])
@pytest.mark.parametrize("limits", LIMITS)
def test_evolution_finds_the_exact_optimum_where_the_number_of_blocks_is_open(
    where: Space, limits: dict[str, Limit]
) -> None:
    exact, found = (search(request(where, limits, mode=mode, evaluations=3000)) for mode in ("exact", "evolution"))
    assert (exact.mode, found.mode) == ("exact", "evolution")
    assert found.winner.score == exact.winner.score
    assert sorted(b.shape for b in found.winner.architecture.blocks) == sorted(
        b.shape for b in exact.winner.architecture.blocks
    )
    assert found.winner.predicted == exact.winner.predicted
    assert where.decode(found.winner.index) == found.winner.architecture


def test_evolution_by_any_score_goes_through_all_numbers_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[int] = Counter()

    def plain(a: Architecture) -> float:
        seen[len(a.blocks)] += 1
        return -abs(math.log(a.unique_parameters) - 11.5)

    monkeypatch.setattr("merino_edge.search.problem.make_score", lambda options: plain)
    outcome = search(request(COUNTED, evaluations=2000))
    assert outcome.mode == "evolution"
    assert set(seen) == {len(group.options) for group in COUNTED.groups}
    assert outcome.winner.score == max(plain(COUNTED.decode(i)) for i in range(COUNTED.size))


@pytest.mark.parametrize("limits", LIMITS)
def test_a_space_of_several_counts_is_searched_by_blocks_too(limits: dict[str, Limit]) -> None:
    for where in OPEN[:2]:
        exact, found = (search(request(where, limits, mode=mode)) for mode in ("exact", "dp"))
        assert found.winner == exact.winner
        assert found.evaluated <= where.size
        assert len({c.architecture for c in found.front}) == len(found.front)


def test_a_space_of_several_counts_beyond_listing_is_searched_by_both() -> None:
    blocks = {"count": [2, 3, 4, 5], "width": [64, 96, 128], "depth": [1, 2, 3], "ffn_ratio": [1, 2, 4, 6]}
    where = space(blocks, embedding_width=[32, 64])
    assert where.size > 10**8
    outcome = search(request(where, {"parameters": Limit(300_000), "latency_ms": Limit(2.5)}))
    assert outcome.mode == "dp+evolution"
    assert values(outcome.winner.architecture)["parameters"] <= 300_000


@pytest.mark.parametrize("where", [ALIKE, MIXED, COUNTED], ids=["one width", "own widths", "several counts"])
def test_every_column_of_the_space_equals_the_count_of_its_member(where: Space) -> None:
    problem = make_problem(request(where, latency_of="tg"))
    for members in sweep(problem):
        for row in range(0, len(members.score), 7):
            a = where.decode(int(members.numbers[row]))
            assert {name: column[row] for name, column in members.columns.items()} == values(a)
            assert members.score[row] == score_architecture(a, ScoreOptions())


def test_random_members_of_the_poster_space_have_exactly_their_own_columns() -> None:
    problem = make_problem(request(POSTER))
    rng = np.random.default_rng(0)
    for members in sweep(problem):
        for row in rng.integers(len(members.score), size=20):
            a = POSTER.decode(int(members.numbers[row]))
            assert {name: column[row] for name, column in members.columns.items()} == values(a)
            assert members.score[row] == score_architecture(a, ScoreOptions())


def test_the_poster_space_has_12285_classes() -> None:
    problem = make_problem(request(POSTER))
    assert sum(int(members.representative.sum()) for members in sweep(problem)) == 12_285


@pytest.mark.parametrize("where", [ALIKE, MIXED], ids=["one width", "own widths"])
def test_classes_part_the_space_and_are_listed_by_their_lowest_index(where: Space) -> None:
    seen: dict[int, list[int]] = {}
    for index in range(where.size):
        seen.setdefault(representative(where, index), []).append(index)
    marked = {int(m.numbers[i]) for m in sweep(make_problem(request(where))) for i in np.flatnonzero(m.representative)}
    assert marked == set(seen)
    for lowest, members in seen.items():
        assert lowest == min(members)
        assert class_members(where, lowest) == members
        assert class_size(where, members[-1]) == len(members)
        assert len({where.decode(i).unique_parameters for i in members}) == 1


@pytest.mark.parametrize("where", [ALIKE, MIXED], ids=["one width", "own widths"])
def test_the_front_is_every_class_that_nothing_dominates(where: Space) -> None:
    limits = {"parameters": Limit(300_000)}
    feasible = brute_force(where, limits, ScoreOptions())
    classes = sorted({representative(where, index) for index in feasible})
    points = []
    for index in classes:
        a = where.decode(index)
        cost = values(a)
        points.append(
            [-score_architecture(a, ScoreOptions()), *(cost[n] for n in ("latency_ms", "parameters", "memory_bytes"))]
        )
    expected = {index for index, kept in zip(classes, non_dominated(np.array(points)), strict=True) if kept}
    front = search(request(where, limits)).front
    assert {c.index for c in front} == expected
    assert [c.score for c in front] == sorted((c.score for c in front), reverse=True)


def test_sensitivity_and_binding_agree_with_searching_again() -> None:
    limits = {"latency_ms": Limit(1.9), "parameters": Limit(10**9)}
    outcome = search(request(ALIKE, limits))
    for entry in outcome.sensitivity:
        changed = {**limits, entry["name"]: Limit(limits[entry["name"]].upper * entry["factor"])}
        again = brute_force(ALIKE, changed, ScoreOptions())
        assert entry["score"] == (score_architecture(ALIKE.decode(again[0]), ScoreOptions()) if again else None)
    assert [c["binding"] for c in outcome.constraints] == [True, False]


@pytest.mark.parametrize("lower", [None, 0.75])
def test_the_lower_end_of_a_range_binds_where_a_better_score_lies_below_it(lower: float | None) -> None:
    score = ScoreOptions(name="minus-depth")
    values = sorted({count_flops(ALIKE.decode(index)) for index in range(ALIKE.size)})
    upper = float(values[-1])
    outcome = search(request(ALIKE, {"flops": Limit(upper, lower and lower * upper)}, score=score))
    better = search(request(ALIKE, {"flops": Limit(upper)}, score=score))
    (entry,) = outcome.constraints
    assert entry["lower_binding"] == (better.winner.score > outcome.winner.score) == (lower is not None)
    assert not entry["binding"]
    assert len(outcome.sensitivity) == 3


@pytest.mark.parametrize("name", ["parameters", "flops", "file_bytes", "latency_ms", "memory_bytes"])
@pytest.mark.parametrize("below", [True, False])
def test_the_limit_that_the_hint_names_is_met(name: str, below: bool) -> None:
    limit = Limit(1e-3 if name == "latency_ms" else 10.0) if below else Limit(2e14, 1e14)
    with pytest.raises(InfeasibleError) as caught:
        search(request(ALIKE, {name: limit}))
    _, _, named = str(caught.value.hint).partition("up to " if below else "down to ")
    parse = parse_ms if name == "latency_ms" else parse_bytes if name.endswith("bytes") else parse_count
    value = parse(named.partition(",")[0])
    assert search(request(ALIKE, {name: Limit(value) if below else Limit(2e14, value)})).feasible
    assert value == pytest.approx(caught.value.details["least"], rel=1e-3)


def test_an_architecture_that_has_two_numbers_is_listed_once() -> None:
    kinds = {"count": [1, 2], "depth": 2, "ffn_ratio": 2}, {"count": [1, 2], "depth": 2, "ffn_ratio": [2, 4]}
    where = space(*kinds, width=[64, 96], embedding_width="width")
    different = {where.decode(index) for index in range(where.numbers)}
    assert len(different) < where.numbers
    outcome = search(request(where, {}))
    assert outcome.space_size == outcome.evaluated == outcome.feasible == len(different)
    for listed in ((outcome.winner, *outcome.runners_up), outcome.front):
        assert len({candidate.architecture for candidate in listed}) == len(listed)


def test_two_searches_give_the_same_outcome_bit_for_bit() -> None:
    limits = {"latency_ms": Limit(20.0), "memory_bytes": Limit(200e6)}
    first, second = (search(request(POSTER, limits)) for _ in range(2))
    assert first.winner == second.winner
    assert first.front == second.front
    assert first.sensitivity == second.sensitivity


def test_a_limit_on_latency_holds_for_the_upper_end_of_the_band() -> None:
    outcome = search(request(POSTER, {"latency_ms": Limit(20.0)}))
    assert outcome.winner.predicted["tg_ms_upper"] == outcome.constraints[0]["value"]
    assert outcome.winner.predicted["tg_ms_upper"] <= 20.0


def test_ttft_is_the_prompt_and_one_token() -> None:
    outcome = search(request(POSTER, {"latency_ms": Limit(400.0)}, latency_of="ttft"))
    p = outcome.winner.predicted
    assert outcome.constraints[0]["value"] == pytest.approx(p["tg_ms_upper"] + p["pp128_ms_upper"])


def test_a_measured_architecture_is_judged_by_its_measurement_in_every_block_order() -> None:
    limits = {"latency_ms": Limit(20.0)}
    winner = search(request(POSTER, limits)).winner
    order = POSTER.decode(class_members(POSTER, winner.index)[-1])
    slow = {order.digest: Measured(order, {"tg": 21.0})}
    assert search(request(POSTER, limits, measured=slow)).winner.index != winner.index
    best = POSTER.decode(POSTER.size - 1)
    fast = {best.digest: Measured(best, {"tg": 19.0}, 1e8)}
    found = search(request(POSTER, limits, measured=fast))
    assert found.winner.architecture == best
    assert found.constraints[0]["value"] == 19.0
    assert found.winner.predicted["tg_ms"] == latency()["tg"].predict_ms(best)


def test_one_limit_that_nothing_meets_is_named_with_the_least_and_the_nearest() -> None:
    with pytest.raises(InfeasibleError) as caught:
        search(request(ALIKE, {"latency_ms": Limit(0.001), "parameters": Limit(10**9)}))
    details = caught.value.details
    least = min(values(ALIKE.decode(i))["latency_ms"] for i in range(ALIKE.size))
    assert (details["binding"], details["least"], details["feasible"]) == ("latency_ms", least, 0)
    assert details["space_size"] == ALIKE.size
    nearest = Architecture.from_json(details["nearest"]["architecture"])
    assert values(nearest)["latency_ms"] == least
    assert caught.value.exit_code == 3


def test_limits_that_only_clash_together_name_the_one_that_misses_by_least() -> None:
    all_values = [values(ALIKE.decode(i)) for i in range(ALIKE.size)]
    limits = {"flops": Limit(min(v["flops"] for v in all_values) * 1.01), "parameters": Limit(1e9, 250_000)}
    with pytest.raises(InfeasibleError) as caught:
        search(request(ALIKE, limits))
    others = {"flops": "parameters", "parameters": "flops"}[caught.value.details["binding"]]
    reachable = [v for v in all_values if limits[others].admits(v[others])]
    assert caught.value.details["least"] in [v[caught.value.details["binding"]] for v in reachable]
    assert "while the other limits hold" in caught.value.message


def test_a_range_that_holds_nothing_says_the_nearest_and_which_way_to_widen_it() -> None:
    counts = sorted({values(ALIKE.decode(i))["parameters"] for i in range(ALIKE.size)})
    with pytest.raises(InfeasibleError, match="the nearest that can be reached") as above:
        search(request(ALIKE, {"parameters": Limit(2e9, 1e9)}))
    assert above.value.details["least"] == counts[-1]
    assert "allow parameters down to" in str(above.value.hint)
    low, high = max(itertools.pairwise(counts), key=lambda pair: pair[1] / pair[0])
    with pytest.raises(InfeasibleError, match="the nearest that can be reached") as between:
        search(request(ALIKE, {"parameters": Limit(high - 1, low + (high - low) // 2)}))
    assert between.value.details["least"] == high
    assert "allow parameters up to" in str(between.value.hint)


@pytest.mark.parametrize(
    ("limits", "changes", "reason"),
    [
        ({"energy_mj": Limit(5.0)}, {}, "no energy model"),
        ({"latency_ms": Limit(5.0)}, {"latency": {}}, "no latency model for 'tg'"),
        ({"memory_bytes": Limit(5.0)}, {"memory": None}, "no memory model"),
        ({"latency": Limit(5.0)}, {}, "unknown limit 'latency'"),
        ({}, {"mode": "dynamic"}, "unknown mode 'dynamic'"),
        ({}, {"recipe": "int3"}, "unknown recipe 'int3'"),
    ],
)
def test_what_nothing_can_tell_is_refused(limits: dict[str, Limit], changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        search(request(ALIKE, limits, **changes))
    assert reason in caught.value.message


def test_exact_search_refuses_a_space_too_large_for_it() -> None:
    with pytest.raises(UsageError, match="takes up to"):
        search(request(load_space("wide"), mode="exact"))


def test_without_models_the_search_knows_parameters_flops_and_bytes() -> None:
    outcome = search(SearchRequest(ALIKE, limits={"file_bytes": Limit(200_000)}))
    assert outcome.winner.file_bytes <= 200_000
    assert outcome.winner.predicted["tg_ms"] is None


def test_progress_rises_to_the_whole_space() -> None:
    told: list[float] = []
    big = space({"count": 5, "depth": [1, 2, 3], "ffn_ratio": [1, 2, 3, 4]}, width=[64, 96, 128, 160, 192, 224, 256])
    search(request(big, progress=told.append, mode="exact"))
    assert told == sorted(told) and all(0 < share <= 1 for share in told)


def test_evolution_finds_the_class_of_the_exact_optimum_with_five_percent_of_the_space() -> None:
    limits = {"latency_ms": Limit(20.0), "parameters": Limit(12e6), "memory_bytes": Limit(220e6)}
    exact = search(request(POSTER, limits))
    hits = 0
    for seed in range(3):
        outcome = search(request(POSTER, limits, mode="evolution", seed=seed, evaluations=POSTER.size // 20))
        assert outcome.evaluated <= POSTER.size // 20
        hits += outcome.winner.index == exact.winner.index
    assert hits == 3


@pytest.mark.parametrize("mode", ["evolution", "dp+evolution"])
def test_evolution_depends_on_the_seed_alone(mode: str) -> None:
    wide = load_space("wide")
    limits = {"latency_ms": Limit(20.0)}
    first, second = (search(request(wide, limits, mode=mode, seed=5, evaluations=1500)) for _ in range(2))
    assert first.mode == mode
    assert (first.winner, first.front) == (second.winner, second.front)
    assert first.winner.predicted["tg_ms_upper"] <= 20.0


@pytest.mark.parametrize("mode", ["exact", "dp", "evolution"])
def test_every_mode_tells_the_same_of_a_budget_that_nothing_in_a_small_space_meets(mode: str) -> None:
    limits = {"latency_ms": Limit(6.0), "parameters": Limit(40e6, 20e6), "file_bytes": Limit(30_000_001, 30_000_000)}
    told = []
    for way in ("exact", mode):
        with pytest.raises(InfeasibleError, match="none of 186,624 architectures") as caught:
            search(request(POSTER, limits, mode=way))
        told.append((caught.value.message, caught.value.hint, caught.value.details))
    assert told[0] == told[1]


def test_evolution_says_when_nothing_it_saw_is_feasible() -> None:
    both = {"parameters": Limit(9_999_616, 9_999_616), "flops": Limit(49_996_103_680, 49_996_103_680)}
    with pytest.raises(
        InfeasibleError, match=r"looked at by dp\+evolution"
    ) as caught:  # some members have the one, some the other
        search(request(load_space("wide"), both, evaluations=1000))
    assert not caught.value.details["least_proven"]


def point(candidate: Candidate) -> tuple[float, ...]:
    """Return what the front compares, each the less the better."""
    costs = (candidate.predicted[name] for name in ("tg_ms_upper", "memory_bytes_upper"))
    return (-candidate.score, candidate.parameters, *(0.0 if cost is None else cost for cost in costs))


@pytest.mark.parametrize("score", ["entropy", "balanced-parameters", "minus-depth"])
@pytest.mark.parametrize("seed", range(4))
def test_what_dynamic_programming_found_is_not_lost_to_evolution(score: str, seed: int) -> None:
    blocks = {"count": 6, "width": [64, 96, 128, 192], "depth": [1, 2, 3], "ffn_ratio": [1, 2, 4]}
    where = space(blocks, embedding_width=[32, 64])
    member = values(where.sample(1, seed)[0])
    limits = {name: Limit(member[name]) for name in ("parameters", "flops")}
    alone, both = (
        search(replace(request(where, limits, mode=mode, evaluations=400), score=ScoreOptions(score)))
        for mode in ("dp", "dp+evolution")
    )
    assert both.winner.score >= alone.winner.score
    assert both.evaluated <= alone.evaluated + 400
    assert both.feasible >= alone.feasible
    points = [point(candidate) for candidate in both.front]
    for listed in alone.front:
        assert any(all(ours <= theirs for ours, theirs in zip(p, point(listed), strict=True)) for p in points)
    for ours, theirs in zip(both.sensitivity, alone.sensitivity, strict=True):
        assert (ours["score"] or -math.inf) >= (theirs["score"] or -math.inf)
    assert len({c.index for c in (both.winner, *both.runners_up)}) == 1 + len(both.runners_up)


def test_evolution_takes_a_score_that_is_no_sum_and_exact_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(a: Architecture) -> float:
        return -abs(math.log(a.unique_parameters) - 12.0)

    monkeypatch.setattr("merino_edge.search.problem.make_score", lambda options: plain)
    with pytest.raises(UsageError, match="no sum over blocks"):
        search(request(ALIKE, mode="exact"))
    outcome = search(request(ALIKE, evaluations=2000))
    assert outcome.mode == "evolution"
    assert outcome.winner.score == max(plain(ALIKE.decode(i)) for i in range(ALIKE.size))


def test_swapping_blocks_changes_nothing_the_search_looks_at() -> None:
    a = POSTER.decode(20_736 * 4 + 777)
    for order in itertools.permutations(a.blocks):
        swapped = Architecture(order, a.embedding_width, a.vocab_size, a.head_dim)
        assert values(swapped) == values(a)
        assert score_architecture(swapped, ScoreOptions(beta=0.3)) == score_architecture(a, ScoreOptions(beta=0.3))
