"""How far a space reaches: the limit that no member meets even by itself, without looking at members.

A quantity is a sum over blocks and the seams between them, so its extreme over all members is found block by block,
keeping the best rest for each width (`layers.py`); a limit that lies beyond is known at once to be out of reach,
however large the space. A range within reach may lie between two values that members have (`halves.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from merino_edge.search.classes import representative
from merino_edge.search.group import Group
from merino_edge.search.halves import nearest_to
from merino_edge.search.layers import Family, Path, Side, families_of, sides_of
from merino_edge.search.problem import Problem
from merino_edge.search.shortfall import ALONE, Shortfall
from merino_edge.search.survey import share
from merino_edge.search.tables import GroupTables

MAX_ROWS = 240  # of all families: more would take longer than an answer at once
ENOUGH = 10**8  # members judged, many times those that a search looks at, say something where not all can be
TOLERANCE = 1e-9  # relative: adding up in another order may differ in the last bits

Known = Mapping[int, Mapping[str, float]]
"""What was measured or, where it was not, predicted, of each class of which something was; by its lowest index."""


@dataclass(frozen=True)
class Missed:
    """A limit that no member meets by itself.

    Attributes:
        name: Which.
        excess: By what share it is passed at least, by what is predicted.
        least: The nearest to it that is reached.
        index: Number of a member that has it.
        path: Who is nearest by what is predicted.
        proven: Whether none is nearer than `least`.
        seen: Members judged, where not all were.
    """

    name: str
    excess: float
    least: float
    index: int
    path: Path
    proven: bool
    seen: int | None


def out_of_reach(problem: Problem) -> Shortfall | None:
    """Return the limit that no member meets even by itself, by the largest share; None where none is known."""
    sides = sides_of(problem)
    found = missed(problem, families_of(problem, sides, MAX_ROWS // len(sides)), sides, measured_of(problem), [])
    if found is None:
        return None
    alone = len(problem.limits) == 1
    return Shortfall(found.name, found.least, ALONE, found.index, found.proven, alone and found.proven, found.seen)


def missed(
    problem: Problem, families: Sequence[Family], sides: Sequence[Side], measured: Known, met: list[Path]
) -> Missed | None:
    """Return the limit that no member meets even by itself, by the largest share; None where none is known.

    Args:
        problem: With limits.
        families: Of the whole space, a row a side; none where there are too many.
        sides: The ends of all limits.
        measured: What was measured.
        met: Takes in members that lie in a range.
    """
    found = []
    for name, limit in problem.limits.items() if families else ():
        if any(limit.admits(values[name]) for values in measured.values()):
            continue
        path, seen = _nearest(problem, families, sides, name)
        least = value_of(problem, path, name)
        if limit.admits(least):
            met.append(path)
            continue
        bound, index = share(limit, least), lowest_index(problem, path)
        known = {i: (share(limit, values[name]), values[name]) for i, values in measured.items()}
        known.setdefault(index, (bound, least))  # unless it was measured
        index = min(known, key=lambda i: (known[i][0], i))
        proven = seen is None and known[index][0] <= bound
        if seen is not None and seen < ENOUGH:
            continue
        found.append(Missed(name, bound, known[index][1], index, path, proven, seen))
    return max(found, key=lambda one: (share(problem.limits[one.name], one.least), one.name)) if found else None


def _nearest(problem: Problem, families: Sequence[Family], sides: Sequence[Side], name: str) -> tuple[Path, int | None]:
    """Return a member that comes nearest to a limit by itself, and how many were judged where not all were."""
    mine = [i for i, side in enumerate(sides) if side.name == name]
    for i in mine:
        unit = np.eye(len(sides))[i]
        found = [family.least(unit) for family in families]
        number = min(range(len(found)), key=lambda n: found[n][0])
        path = found[number][1]
        over = [float(sides[j].excess(path.rows[j])) for j in mine]
        if over[mine.index(i)] > TOLERANCE or len(mine) == 1:
            return families[number].freed(path, mine), None
        if max(over) <= 0.0 and problem.limits[name].admits(value_of(problem, path, name)):
            return families[number].freed(path, mine), None
    near = nearest_to(problem.limits[name], families_of(problem, [Side(name, 1.0, math.inf)], MAX_ROWS))
    assert near.choice is not None
    number, embedding, vocabulary, options = near.choice
    path = families[number].freed(families[number].path(embedding, vocabulary, options), mine)
    return path, None if near.settled else near.seen


def lowest_index(problem: Problem, path: Path) -> int:
    """Return the lowest number of a member, and of those that differ from it only in the order of blocks."""
    index = problem.space.index_of(problem.space.build(path.group, path.digits))
    assert index is not None
    return representative(problem.space, index)


def value_of(problem: Problem, path: Path, name: str) -> float:
    """Return what is predicted of a member, as it is for all of them at once."""
    column = problem.columns[name]
    tables = GroupTables(problem.space, path.group, column.parts)
    return float(column.combine(*tables.gather(np.array([path.digits])))[0])


def extreme(problem: Problem, name: str, sign: float) -> tuple[float, int]:
    """Return the least value of a quantity (the most where `sign` is -1) and the index of a member that has it."""
    families = families_of(problem, [Side(name, sign, math.inf)], MAX_ROWS)
    path = min((family.least(np.ones(1)) for family in families), key=lambda found: found[0])[1]
    return value_of(problem, path, name), path.index


def measured_of(problem: Problem) -> Known:
    """Return what the limits are about for each class of which something was measured."""
    groups: dict[int, tuple[Group, list[int]]] = {}
    for index in problem.measured:
        group = problem.space.group_of(index)
        groups.setdefault(group.offset, (group, []))[1].append(index)
    known: dict[int, dict[str, float]] = {}
    for group, indices in groups.values():
        digits = np.array([group.digits(index - group.offset) for index in indices])
        columns = {}
        for name in problem.limits:
            column = problem.columns[name]
            columns[name] = column.combine(*GroupTables(problem.space, group, column.parts).gather(digits))
        for row, index in enumerate(indices):
            predicted = {name: float(column[row]) for name, column in columns.items()}
            known[index] = {**predicted, **problem.measured[index]}
    return known
