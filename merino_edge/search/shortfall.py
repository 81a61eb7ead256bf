"""Why nothing keeps the limits, and in which words: the binding limit, how far it is reached, the nearest candidate.

How far a member is from the limits is the share by which it passes the one that it passes most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from merino_edge.errors import InfeasibleError
from merino_edge.search.cost import Array
from merino_edge.search.problem import Problem
from merino_edge.search.survey import excess
from merino_edge.units import Limit, format_limited

ALONE, OTHERS, TOGETHER = "alone", "others", "together"


@dataclass(frozen=True)
class Shortfall:
    """Why nothing is feasible.

    Attributes:
        binding: The limit that stands in the way.
        least: The nearest to it that is reached.
        scope: `alone` where no member meets this limit even by itself, `others` where it is the one that would have to
            be relaxed least while the others hold, `together` where no limit relaxed by itself would do: then it is the
            one that the nearest member passes most.
        nearest: Number of the member that passes its limits by the smallest share.
        proven: Whether all members were judged, or `least` is only the best of those looked at.
        nearest_proven: The same of the nearest.
        seen: Members judged, where it is not proven that none of the others keeps the limits.
    """

    binding: str
    least: float
    scope: str
    nearest: int
    proven: bool = True
    nearest_proven: bool = True
    seen: int | None = None


class Diagnosis:
    """Finds the shortfall over members that are shown."""

    def __init__(self, limits: Mapping[str, Limit]) -> None:
        """Take the limits, at least one."""
        self.limits = limits
        self.alone = dict.fromkeys(limits, (np.inf, np.nan))  # smallest excess of one limit, its value
        self.with_others = dict(self.alone)
        self.nearest = (np.inf, -1)
        self.passed: dict[str, tuple[float, float]] = {}  # excess and value of each limit, of the nearest

    def show(self, columns: Mapping[str, Array], number: Callable[[Array], int]) -> None:
        """Take in members.

        Args:
            columns: `(n,)` each.
            number: Gives the number of the first of some rows that are equally near.
        """
        each = {name: excess({name: limit}, columns) for name, limit in self.limits.items()}
        worst = np.maximum.reduce(list(each.values()))
        least = float(worst.min())
        if least <= self.nearest[0]:
            rows = np.flatnonzero(worst == least)
            found = least, number(rows)
            if found < self.nearest:
                self.nearest = found
                self.passed = {n: (float(over[rows[0]]), float(columns[n][rows[0]])) for n, over in each.items()}
        for name, over in each.items():
            at = int(over.argmin())
            self.alone[name] = min(self.alone[name], (float(over[at]), float(columns[name][at])))
            others = [o for n, o in each.items() if n != name]
            kept = np.flatnonzero(np.maximum.reduce(others) == 0) if others else np.arange(len(over))
            if len(kept):
                at = int(kept[over[kept].argmin()])
                self.with_others[name] = min(self.with_others[name], (float(over[at]), float(columns[name][at])))

    @property
    def feasible(self) -> bool:
        """Whether a member that was shown keeps every limit."""
        return self.nearest[0] <= 0.0

    def shortfall(self, proven: bool = True) -> Shortfall:
        """Return what stands in the way.

        Args:
            proven: Whether all members were shown.
        """
        number = self.nearest[1]
        alone = {name: found for name, found in self.alone.items() if found[0] > 0}
        if alone:
            name = max(alone, key=lambda n: (alone[n][0], n))
            return Shortfall(name, alone[name][1], ALONE, number, proven, proven)
        name = min(self.limits, key=lambda n: (self.with_others[n][0], n))
        if np.isfinite(self.with_others[name][0]):
            return Shortfall(name, self.with_others[name][1], OTHERS, number, proven, proven)
        name = max(self.limits, key=lambda n: (self.passed[n][0], n))
        return Shortfall(name, self.passed[name][1], TOGETHER, number, proven, proven)


def numbered(numbers: Array) -> Callable[[Array], int]:
    """Return what gives the number of the first of some rows, where numbers rise."""
    return lambda rows: int(numbers[rows[0]])


def infeasible(
    problem: Problem, shortfall: Shortfall, index: Callable[[int], int], seen: int, mode: str
) -> InfeasibleError:
    """Put a shortfall into words.

    Args:
        problem: What was asked for.
        shortfall: What stands in the way.
        index: Gives the index of a number.
        seen: Members judged.
        mode: How.
    """
    nearest = problem.space.decode(index(shortfall.nearest))
    values = problem.values(nearest)
    binding = shortfall.binding
    limit = problem.limits[binding]
    found = f"none of {seen:,} architectures of space {problem.space.name} meets the limits"
    if mode != "exact":
        found += f" (looked at by {mode}, of {problem.space.size:,})"
    too_small = limit.lower is not None and shortfall.least < limit.lower
    near = "nearest" if shortfall.nearest_proven else "nearest found"
    message = (
        f"{found}: {binding} must be {_range(binding, limit)}, {_reached(limit, shortfall)} "
        f"{_outward(binding, shortfall.least, not too_small, _is_narrow(binding, limit))}; {near}: {nearest.describe()}"
    )
    wanted = {binding: (min if too_small else max)(shortfall.least, values[binding])}
    if shortfall.scope == TOGETHER:
        wanted = {name: values[name] for name, each in problem.limits.items() if not each.admits(values[name])}
    return InfeasibleError(
        message,
        hint=f"allow {' and '.join(_allowance(problem, name, value) for name, value in wanted.items())}, "
        "or widen the space",
        binding=binding,
        limit=limit.upper,
        lower=limit.lower,
        least=shortfall.least,
        least_proven=shortfall.proven,
        nearest={"architecture": nearest.to_json(), "values": values},
        nearest_proven=shortfall.nearest_proven,
        feasible=0,
        space_size=problem.space.size,
        evaluated=seen,
    )


def _reached(limit: Limit, shortfall: Shortfall) -> str:
    if shortfall.scope == TOGETHER:
        alone = "no limit relaxed by itself would do: the nearest to all of them"
        return f"and {alone if shortfall.proven else 'the nearest to all limits that was found'} has"
    extreme = "the least" if limit.lower is None else "the nearest"  # between two members a range may hold none
    others = " while the other limits hold" if shortfall.scope == OTHERS else ""
    return f"{extreme} that {'can be reached' if shortfall.proven else 'was found'}{others} is"


def _allowance(problem: Problem, name: str, value: float) -> str:
    limit = problem.limits[name]
    down = limit.lower is not None and value < limit.lower
    outward = _outward(name, value, not down, _is_narrow(name, limit))
    return f"{name} {'down' if down else 'up'} to {outward.replace(' ', '')}"


def _range(name: str, limit: Limit) -> str:
    if limit.lower is None:
        return f"at most {format_limited(name, limit.upper)}"
    if _is_narrow(name, limit):
        return f"{_whole(name, limit.lower)} to {_whole(name, limit.upper)}"
    return f"{format_limited(name, limit.lower)} to {format_limited(name, limit.upper)}"


def _is_narrow(name: str, limit: Limit) -> bool:
    """Say whether four digits do not tell the ends of a range apart."""
    if limit.lower is None or name.endswith(("_ms", "_mj")):
        return False
    return format_limited(name, limit.lower) == format_limited(name, limit.upper)


def _whole(name: str, value: float) -> str:
    return f"{value:.0f}" + (" B" if name.endswith("_bytes") else "")


def _outward(name: str, value: float, up: bool, narrow: bool = False) -> str:
    """Return a quantity in four digits, rounded so that a limit of just that admits it; where narrow, in all digits."""
    if narrow:
        return _whole(name, value)
    if value <= 0.0:
        return format_limited(name, value)
    step = 10.0 ** (math.floor(math.log10(value)) - 3)
    if name.endswith(("_ms", "_mj")):
        value *= 1.0 + (1e-9 if up else -1e-9)  # what is typed is a fraction of another unit, and has its own last bit
    else:
        step = max(1.0, step)  # whole numbers
    return format_limited(name, (math.ceil if up else math.floor)(value / step) * step)
