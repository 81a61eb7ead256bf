"""A search from request to outcome: what the command, the measuring loop and a notebook call.

Up to 10^8 architectures every one is looked at and the answer is exact. So it is for any number of them where the
model has one width and the classes of blocks in another order are few: then each class is looked at once. Beyond,
neither dynamic programming over blocks nor evolution is always the better, so where the score is a sum both are asked
(`bench/together.py`): what the former found joins the latter half way. Other scores are left to evolution alone.
Either way: the winner, the runners-up, the Pareto front, what each limit costs, and, where nothing is feasible, why.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from merino_edge.errors import UsageError
from merino_edge.search.candidate import Candidate, make_candidates
from merino_edge.search.class_sweep import class_shortfall, sweep_classes
from merino_edge.search.cost import Array
from merino_edge.search.dynamic import search_blocks
from merino_edge.search.entropy import ENTROPIES
from merino_edge.search.evolution import Evolution
from merino_edge.search.exact import MAX_SIZE, Clock, listed_shortfall, survey_space
from merino_edge.search.nearest import clash
from merino_edge.search.problem import Measured, Problem, SearchRequest, make_problem
from merino_edge.search.scores import SumScore, is_sum
from merino_edge.search.shortfall import ALONE, Diagnosis, Shortfall, infeasible, numbered
from merino_edge.search.survey import Survey
from merino_edge.search.tables import GroupTables

__all__ = ["Candidate", "Measured", "SearchOutcome", "SearchRequest", "search"]

AT_ONCE = 500_000  # members that are looked at within a tenth of a second


@dataclass(frozen=True)
class SearchOutcome:
    """What a search found.

    Attributes:
        mode: `exact`, `dp`, `evolution` or `dp+evolution`.
        space: Its name.
        space_size: Its architectures, each counted once.
        evaluated: Members looked at, by themselves or in their class.
        feasible: Of those, how many keep every limit.
        seconds: `score` (filling columns), `search` (limits, winner, sensitivity), `front`, and `total`.
        winner: The best.
        runners_up: The next ten, one a class.
        front: Non-dominated in score, latency, parameters and memory, best score first.
        constraints: For each limit `name, limit, lower, value, binding, lower_binding`; a better score lies above an
            upper end that binds, or below the lower end of a range that does.
        outside_domain: For an entropy, members looked at where gamma reaches 1 and the formula says nothing; else None.
        sensitivity: For each limit and factor `name, factor, limit, score`: the best score, or None.
    """

    mode: str
    space: str
    space_size: int
    evaluated: int
    feasible: int
    seconds: dict[str, float]
    winner: Candidate
    runners_up: tuple[Candidate, ...]
    front: tuple[Candidate, ...]
    constraints: tuple[dict[str, Any], ...]
    outside_domain: int | None
    sensitivity: tuple[dict[str, Any], ...]


def search(request: SearchRequest) -> SearchOutcome:
    """Find the best architecture that keeps the limits.

    Raises:
        InfeasibleError: there is none; it names the binding limit, the least reachable value and the nearest
            candidate.
        UsageError: a limit that nothing here can tell, an unknown name, or a space too large for `exact`.
    """
    started = time.perf_counter()
    problem = make_problem(request)
    mode = _mode(problem)
    by_classes = mode == "exact" and problem.space.numbers > AT_ONCE and problem.classes.are_few
    at_once = by_classes or (mode == "exact" and problem.space.numbers <= AT_ONCE)
    beyond = _impossible(problem, mode) if problem.limits and not at_once else None
    if isinstance(beyond, Shortfall):
        looked = (problem.space.size, "exact") if beyond.seen is None else (beyond.seen, "halves")
        raise infeasible(problem, beyond, int, *looked)
    if mode == "exact":
        survey, clock, shortfall = survey_space(problem, sweep_classes(problem) if by_classes else None)
        index: Callable[[int], int] = int
    else:
        survey, clock, index, shortfall = _by_blocks(problem) if mode == "dp" else _evolve(problem, mode)
    if shortfall is not None and isinstance(beyond, int):
        survey, index = _only(problem, beyond, survey.seen)
    elif shortfall is not None:
        raise infeasible(problem, shortfall, index, survey.seen, mode)
    front = survey.front()
    clock.lap("search")
    listed = make_candidates(problem, [index(number) for number in survey.best])
    return SearchOutcome(
        mode=mode,
        space=problem.space.name,
        space_size=problem.space.size,
        evaluated=survey.seen,
        feasible=survey.feasible,
        winner=listed[0],
        runners_up=listed[1:],
        front=make_candidates(problem, [index(number) for number in front]),
        constraints=_constraints(problem, survey, listed[0]),
        outside_domain=survey.zero if request.score.name in ENTROPIES else None,
        sensitivity=_sensitivity(survey),
        seconds={
            "score": clock.score,
            "search": clock.search - survey.front_seconds,
            "front": survey.front_seconds,
            "total": time.perf_counter() - started,
        },
    )


def _impossible(problem: Problem, mode: str) -> Shortfall | int | None:
    """Say why nothing in a space keeps the limits, or who does, where that is known without looking at all."""
    if problem.space.numbers <= AT_ONCE and problem.additive is not None:
        return listed_shortfall(problem)
    if problem.classes.are_few:
        return class_shortfall(problem)
    if not all(problem.columns[name].is_sum for name in problem.limits):
        return None
    found = clash(problem)
    if not isinstance(found, Shortfall) or mode != "exact":
        return found
    sure = found.proven and (found.scope == ALONE or found.nearest_proven)
    return found if sure else None  # looking at every member takes longer, and says it exactly


def takes_time(request: SearchRequest) -> bool:
    """Say whether a search looks at its members one by one, each with a cost of its own."""
    return "evolution" in request.mode or not is_sum(request.score)


def _mode(problem: Problem) -> str:
    """Choose how to search; a score that is no sum over parts is never searched exactly."""
    asked, additive = problem.request.mode, isinstance(problem.score, SumScore)
    if asked in ("exact", "dp", "dp+evolution") and not additive:
        raise UsageError(
            f"score '{problem.request.score.name}' is no sum over blocks: "
            f"{'exact search' if asked == 'exact' else 'dynamic programming'} cannot use it",
            hint="use --mode evolution",
        )
    if asked == "auto":
        if additive and (problem.space.numbers <= MAX_SIZE or problem.classes.are_few):
            return "exact"
        return "dp+evolution" if additive else "evolution"
    return asked


Looked = tuple[Survey, Clock, Callable[[int], int], Shortfall | None]
"""A survey, the time spent, the index of each number shown, and why nothing is feasible."""


def _by_blocks(problem: Problem, progress: bool = True) -> Looked:
    """Run the dynamic programming and show every member that it led to to a survey."""
    clock, survey, diagnosis = Clock(), Survey(problem.limits), Diagnosis(problem.limits)
    groups, found = problem.space.groups, []
    for ends in search_blocks(problem, progress=progress):
        clock.lap("score")
        numbers = survey.seen + np.arange(len(ends.score))
        if not len(numbers):
            continue
        survey.show(numbers, ends.score, ends.columns, ends.representative)
        if not survey.feasible:
            diagnosis.show(ends.columns, numbered(numbers))
        found.append(ends.genes)
        clock.lap("search")
    starts = np.cumsum([0, *map(len, found)])  # groups may have other numbers of blocks

    def index(number: int) -> int:
        at = int(np.searchsorted(starts, number, side="right")) - 1
        gene = found[at][number - starts[at]]
        group = groups[int(gene[0])]
        return group.offset + group.position(int(digit) for digit in gene[1:])

    every = survey.seen == problem.space.size
    return survey, clock, index, None if survey.feasible else diagnosis.shortfall(proven=every)


def _evolve(problem: Problem, mode: str) -> Looked:
    """Run the evolutionary search and show all it looked at, in the order of the index, to a survey."""
    clock, evolution = Clock(), Evolution(problem, problem.request.seed)
    survey, others = Survey(problem.limits), None
    if mode == "dp+evolution":
        survey, others = _taught(problem, evolution)
    archive = evolution.run(problem.request.evaluations, others)
    archive = archive.take(np.lexsort(archive.genes.T[::-1]))
    clock.lap("score")
    rows = len(archive.score)
    survey.show(np.arange(rows), archive.score, archive.columns, np.ones(rows, bool))
    clock.lap("search")

    def index(number: int) -> int:
        return evolution.index(archive.genes[number])

    if survey.best:
        return survey, clock, index, None
    diagnosis = Diagnosis(problem.limits)
    diagnosis.show(archive.columns, numbered(np.arange(rows)))
    return survey, clock, index, diagnosis.shortfall(proven=rows == problem.space.size)


def _taught(problem: Problem, evolution: Evolution) -> tuple[Survey, Array]:
    """Return the genes of what dynamic programming would list, and a survey with its counts of all others."""
    found, _, index, _ = _by_blocks(problem, progress=False)
    listed = dict.fromkeys([*found.best, *found.front()])
    seen, feasible = found.seen - len(listed), found.feasible - len(listed)
    others = Survey(problem.limits, seen=seen, feasible=feasible, zero=found.zero, relaxed=found.relaxed)
    return others, evolution.genes_of(index(number) for number in listed)


def _only(problem: Problem, index: int, seen: int) -> tuple[Survey, Callable[[int], int]]:
    """Show the one member that is known to keep the limits where a search found none."""
    group = problem.space.group_of(index)
    digits = np.array([group.digits(index - group.offset)])
    score, columns = problem.fill(GroupTables(problem.space, group, problem.parts).gather(digits))
    if score is None:
        score = np.array([problem.plain(problem.space.decode(index))])
    for name, value in problem.measured.get(index, {}).items():
        if name in columns:
            columns[name] = np.array([value])
    survey = Survey(problem.limits, seen=seen)
    survey.show(np.zeros(1, np.int64), score, columns, np.ones(1, bool))
    return survey, lambda _: index


def _constraints(problem: Problem, survey: Survey, winner: Candidate) -> tuple[dict[str, Any], ...]:
    values = problem.values(winner.architecture)
    return tuple(
        {
            "name": name,
            "limit": limit.upper,
            "lower": limit.lower,
            "value": values[name],
            "binding": survey.relaxed[name, math.inf] > survey.best_score,
            "lower_binding": survey.relaxed.get((name, -math.inf), -math.inf) > survey.best_score,
        }
        for name, limit in problem.limits.items()
    )


def _sensitivity(survey: Survey) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "name": name,
            "factor": factor,
            "limit": survey.limits[name].upper * factor,
            "score": score if math.isfinite(score) else None,
        }
        for (name, factor), score in survey.relaxed.items()
        if math.isfinite(factor)
    )
