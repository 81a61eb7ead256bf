"""How far a space reaches: the least and the most of each limited quantity, exact, without looking at members.

A quantity is a sum over blocks and the seams between them, so its extreme over all members is found block by block,
keeping the best beginning for each width that the next block may see. A limit that lies beyond is known at once
to be out of reach, however large the space.
"""

from __future__ import annotations

import numpy as np

from merino_edge.search.cost import Array
from merino_edge.search.group import Group
from merino_edge.search.problem import Problem
from merino_edge.search.shortfall import ALONE, Shortfall
from merino_edge.search.survey import excess
from merino_edge.search.tables import GroupTables
from merino_edge.units import Limit

MAX_GROUPS = 500  # more would take longer than an answer at once
TOLERANCE = 1e-9  # relative: adding up in another order may differ in the last bits


def out_of_reach(problem: Problem) -> Shortfall | None:
    """Return the limit that no member meets even by itself, by the largest share; None where there is none."""
    if len(problem.space.groups) > MAX_GROUPS:
        return None
    worst: tuple[float, Shortfall] | None = None
    for name, limit in problem.limits.items():
        if any(name in measured and limit.admits(measured[name]) for measured in problem.overrides.values()):
            continue
        for end in (1.0, -1.0) if limit.lower is not None else (1.0,):
            value, index = extreme(problem, name, end)
            missed = value > limit.upper if end > 0 else value < (limit.lower or 0.0)
            over = _share(limit, value) if missed else 0.0
            if over > TOLERANCE and (worst is None or over > worst[0]):
                worst = over, Shortfall(name, value, ALONE, index, nearest_proven=len(problem.limits) == 1)
    return worst[1] if worst else None


def _share(limit: Limit, value: float) -> float:
    return float(excess({"": limit}, {"": np.array([value])})[0])


def extreme(problem: Problem, name: str, sign: float) -> tuple[float, int]:
    """Return the least value of a quantity (the most where `sign` is -1) and the index of a member that has it."""
    found = [_of_group(problem, group, name, sign) for group in problem.space.groups]
    number = int(np.argmin([sign * value for value, _ in found]))
    group, (_, digits) = problem.space.groups[number], found[number]
    index = group.offset + group.position(digits)
    column, space = problem.columns[name], problem.space
    sums = GroupTables(space, group, column.parts).gather(np.array([digits]))
    return float(column.combine(*sums)[0]), index


def _of_group(problem: Problem, group: Group, name: str, sign: float) -> tuple[float, list[int]]:
    """Return the extreme of one group and the options of a member that has it."""
    column = problem.columns[name]
    tables = GroupTables(problem.space, group, column.parts)

    def combined(values: list[Array]) -> Array:
        return sign * np.asarray(column.combine(*(np.asarray(v, np.float64) for v in values)), np.float64)

    value = combined([table[0] for table in tables.blocks])  # (options): the best that ends in each option
    came: list[Array] = []  # for each later block and option, the option before
    for i in range(1, len(group.options)):
        number, before = tables.width_numbers[i], tables.width_numbers[i - 1]
        best = np.array([np.flatnonzero(before == w)[value[before == w].argmin()] for w in range(before.max() + 1)])
        step = np.zeros((len(best), int(number.max()) + 1))
        seams = [seams[i] for seams in tables.seams]
        if any(seam is not None for seam in seams):
            step = combined([np.zeros(step.shape) if seam is None else seam for seam in seams])
        paths = value[best][:, None] + step  # (widths before, widths)
        came.append(best[paths.argmin(0)][number])
        value = paths.min(0)[number] + combined([table[i] for table in tables.blocks])
    digits = [int(value.argmin())]
    for origin in reversed(came):
        digits.append(int(origin[digits[-1]]))
    return sign * float(value.min()), digits[::-1]
