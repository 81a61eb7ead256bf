"""Limits that clash in a space too large to list: a proof that nothing keeps them, and what comes nearest.

Weights on the limits that make the least weighted sum over all members too large prove that nothing keeps them all;
they are found by raising the weight of what the best member so far passes. The same weights bound what a beginning
can still become: block by block, only beginnings are kept that may lead to a member nearer than the nearest known,
and of two with the same width not the one that is behind in everything. As long as no more than `BEGINNINGS` are
left, that is exact. Of a range only the end that stands in the way is looked at; what is found is held against both.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from merino_edge.search.cost import Array
from merino_edge.search.layers import Family, Path, Side, families_of, sides_of
from merino_edge.search.pareto import non_dominated
from merino_edge.search.problem import Problem
from merino_edge.search.reach import Known, Missed, lowest_index, measured_of, missed, out_of_reach, value_of
from merino_edge.search.shortfall import ALONE, OTHERS, TOGETHER, Shortfall
from merino_edge.search.survey import excess, share

MAX_FAMILIES = 16
ROUNDS = 12  # of weights, for each aim
LOWEST, HIGHEST, HALVINGS = -0.9, 1e3, 12  # of the excess that weights exclude
WHOLE = 1e3  # how strongly the shares of a mixture add up to one
FEW, BEGINNINGS, AT_ONCE = 40, 500, 8  # beginnings kept, the most where all families have so many blocks
EXTENDED = 20_000  # beginnings with each option of the next block
ROUNDING = 1e-9  # relative: sums of floats in another order


@dataclass
class Aim:
    """What is to be as small as can be: the excess of all limits, or of one while the others hold.

    Attributes:
        name: The limit, None for all.
        best: Smallest excess known.
        path: Who has it.
        weights: `(sides,)`: what bounds the aim best.
        proven: Whether some weights show that nothing keeps all limits.
        relaxed: Smallest excess of the ends looked at.
    """

    name: str | None
    best: float = np.inf
    path: Path | None = None
    weights: Array | None = None
    proven: bool = False
    relaxed: float = np.inf

    def offer(self, sides: Sequence[Side], path: Path) -> None:
        """Take in a member."""
        value = float(self.value(sides, path.rows[:, None])[0])
        if (value, path.index) < (self.best, self.path.index if self.path else -1):
            self.best, self.path = value, path

    def value(self, sides: Sequence[Side], rows: Array) -> Array:
        """Return the aim of members, `(sides, n)` rows; infinite where another limit does not hold."""
        each = [side.excess(row) for side, row in zip(sides, rows, strict=True)]
        zero = np.zeros(rows.shape[1])
        aimed = [e for e, side in zip(each, sides, strict=True) if self.name in (None, side.name)]
        others = [e for e, side in zip(each, sides, strict=True) if self.name not in (None, side.name)]
        worst = np.maximum.reduce([zero, *aimed])
        result: Array = np.where(np.maximum.reduce([zero, *others]) > ROUNDING, np.inf, worst)
        return result

    def allowed(self, sides: Sequence[Side], most: Array, excess: float | None = None) -> Array:
        """Return what each side may be at most where the aim is as good as the best known, or has an excess.

        Args:
            sides: The sides.
            most: `(sides,)`: what each can be at most.
            excess: Instead of the best known.
        """
        mine = [self.name in (None, side.name) for side in sides]
        aimed = self.best if excess is None else excess
        free = [side.allowed(aimed) if np.isfinite(aimed) else np.inf for side in sides]
        rows = [f if own else side.bound for f, own, side in zip(free, mine, sides, strict=True)]
        allowed: Array = np.minimum(np.array(rows), most)
        return allowed


def clash(problem: Problem) -> Shortfall | int | None:
    """Return why nothing in a space keeps the limits, the index of a member that does, or None: not told at once."""
    sides = sides_of(problem)
    families = families_of(problem, sides, MAX_FAMILIES)
    if not families:
        return out_of_reach(problem)
    measured = measured_of(problem)
    if any(_excess(problem, values, ()) <= 0 for values in measured.values()):
        return None
    met: list[Path] = []
    alone = missed(problem, families, sides, measured, met)
    aims = [Aim(None)] + ([] if alone else [Aim(name) for name in problem.limits])
    for path in [alone.path] if alone else met:
        aims[0].offer(sides, path)
    exact: bool | None = True
    if alone is not None and alone.seen is None and aims[0].best <= alone.excess + ROUNDING:
        aims[0].relaxed = aims[0].best
    else:
        exact = _narrow(families, sides, aims) if aims[0].best > ROUNDING else None
    if exact is None or aims[0].best <= ROUNDING:
        return _kept(problem, aims[0].path)
    if not (alone or aims[0].proven or (exact and aims[0].relaxed > ROUNDING)):
        return None
    return _shortfall(problem, aims, alone, exact, measured)


def _kept(problem: Problem, path: Path | None) -> int | None:
    """Return the index of a member that keeps all limits, measured values included."""
    if path is None:
        return None
    index = lowest_index(problem, path)
    values = problem.values(problem.space.decode(index))
    return index if all(limit.admits(values[name]) for name, limit in problem.limits.items()) else None


def _narrow(families: list[Family], sides: list[Side], aims: list[Aim]) -> bool | None:
    """Look for the members that serve the aims best; say whether none was left out, None where one keeps all limits."""
    most = -np.min([[f.least(-unit)[0] for unit in np.eye(len(sides))] for f in families], 0)
    cuts: list[Array] = []
    for aim in aims:
        if not _weigh(families, sides, aims, aim, most, cuts):
            return None
    kept = _one_side_each(sides, aims)
    exact = True
    share = max(1.0, sum(len(family.blocks) for family in families) / AT_ONCE)
    for most_kept in (FEW, int(2 * BEGINNINGS / max(2, len(kept)) / share)):  # the first time to know who is near
        exact = True
        for family in families:
            exact &= _extend(family, sides, kept, aims, most, most_kept)
    return exact


def _excess(problem: Problem, values: Mapping[str, float], without: Container[str]) -> float:
    """Return by what share a member passes the limits, some left out."""
    limits = {name: limit for name, limit in problem.limits.items() if name not in without}
    return float(excess(limits, {n: np.array([values[n]]) for n in limits})[0]) if limits else 0.0


def _weigh(
    families: list[Family], sides: list[Side], aims: list[Aim], aim: Aim, most: Array, cuts: list[Array]
) -> bool:
    """Find weights that bound an aim; False where a member keeps all limits.

    Args:
        families: Of the space.
        sides: The ends of the limits.
        aims: All aims.
        aim: This one.
        most: `(sides,)`: what each can be at most.
        cuts: Rows of members found so far; new ones are added.
    """
    weights: Array | None = np.ones(len(sides)) / len(sides)
    for _ in range(ROUNDS):
        if cuts:
            weights = _separating(np.array(cuts), sides, aim, most)
        if weights is None:
            break
        least, path = min((f.least(weights) for f in families), key=lambda found: found[0])
        for other in aims:
            other.offer(sides, path)
        if aims[0].best <= ROUNDING:
            return False
        aims[0].proven |= least > float(weights @ [side.bound for side in sides]) + ROUNDING
        known = min((float(weights @ cut) for cut in cuts), default=np.inf)
        aim.weights = weights
        cuts.append(path.rows)
        if least > known - 1e-6 * abs(known):
            break
    return True


def _separating(cuts: Array, sides: list[Side], aim: Aim, most: Array) -> Array | None:
    """Return the weights that show for the largest excess that no mixture of some members has it; None without any."""
    low, high = LOWEST, aim.best if np.isfinite(aim.best) else HIGHEST
    found = None
    for _ in range(HALVINGS):
        middle = np.sqrt((1.0 + low) * (1.0 + high)) - 1.0
        over = (cuts - aim.allowed(sides, most, middle)).T  # (sides, cuts)
        matrix = np.block([[over, np.eye(len(over))], [np.full((1, len(cuts)), WHOLE), np.zeros((1, len(over)))]])
        mixture, _ = nnls(matrix, np.r_[np.zeros(len(over)), WHOLE])
        passed = np.maximum(matrix[:-1] @ mixture, 0.0)
        if passed.sum() > 1e-9:
            low, found = middle, passed / passed.sum()
        else:
            high = middle
    return found


def _one_side_each(sides: list[Side], aims: list[Aim]) -> list[int]:
    """Choose of each range the end that weighs more."""
    total = np.sum([aim.weights for aim in aims if aim.weights is not None], 0)
    chosen: dict[str, int] = {}
    for i, side in enumerate(sides):
        if side.name not in chosen or total[i] > total[chosen[side.name]]:
            chosen[side.name] = i
    return sorted(chosen.values())


def _extend(whole: Family, every: list[Side], kept: list[int], aims: list[Aim], most: Array, keep: int) -> bool:
    """Offer the members of a family that may be nearer; say whether none of them was left out."""
    family, sides = whole.rows(kept), [every[i] for i in kept]
    bounds = _Bounds(sides, aims, kept, most[kept], family)
    choices = [_not_behind(family, i) for i in range(len(family.blocks))]
    options = len(family.number[0])
    embeddings, digits = np.divmod(np.arange(len(family.groups) * options), options)
    rows = family.blocks[0][:, digits] + family.seams[0][:, embeddings, family.number[0][digits]]
    digits, exact = digits[:, None], True
    for i in range(len(family.blocks)):
        choice = choices[i]
        if i:
            before = family.number[i - 1][digits[:, -1]]
            step = family.blocks[i][:, choice][:, None] + family.seams[i][:, before][:, :, family.number[i][choice]]
            rows = (rows[:, :, None] + step).reshape(len(kept), -1)
            embeddings = np.repeat(embeddings, len(choice))
            digits = np.column_stack([np.repeat(digits, len(choice), axis=0), np.tile(choice, len(digits))])
        last = family.number[i][digits[:, -1]]
        alive, all_of_them = bounds.promising(i, rows, embeddings, last, 2 * keep)
        exact &= all_of_them
        if alive.size == 0:
            return exact
        bucket = embeddings[alive] * (1 + int(family.number[i][-1])) + last[alive]
        alive = alive[non_dominated(np.column_stack([bucket, -bucket, rows[:, alive].T]))]
        room = max(FEW, min(keep, EXTENDED // len(choices[min(i + 1, len(choices) - 1)])))
        exact &= len(alive) <= room
        alive = alive[:room]
        rows, embeddings, digits = rows[:, alive], embeddings[alive], digits[alive]
    last = family.number[-1][digits[:, -1]]
    whole_rows = rows[:, :, None] + family.ends[:, embeddings, :, last].transpose(1, 0, 2)
    for aim in aims:
        values = aim.value(sides, whole_rows.reshape(len(kept), -1))
        at, vocabulary = divmod(int(values.argmin()), whole_rows.shape[2])
        aim.relaxed = min(aim.relaxed, float(values.min()))
        if np.isfinite(values.min()):
            aim.offer(every, whole.path(int(embeddings[at]), vocabulary, digits[at].tolist()))
    return exact


def _not_behind(family: Family, block: int) -> Array:
    """Return the options of a block that no other of the same width is at least level with in everything."""
    number = family.number[block]
    return np.flatnonzero(non_dominated(np.column_stack([number, -number, family.blocks[block].T])))


class _Bounds:
    """What a beginning can still become at best."""

    def __init__(self, sides: list[Side], aims: list[Aim], kept: list[int], most: Array, family: Family) -> None:
        self.sides, self.aims, self.most = sides, aims, most
        self.weights = np.array([np.ones(len(kept)) if a.weights is None else a.weights[kept] for a in aims])
        self.rest = family.remaining(np.concatenate([np.eye(len(kept)), self.weights]))

    def promising(self, block: int, rows: Array, embeddings: Array, last: Array, room: int) -> tuple[Array, bool]:
        """Return the beginnings that may serve an aim, the most promising first, and whether these are all."""
        rest = self.rest[block][:, embeddings, last]
        bound, weighed = rows + rest[: len(rows)], self.weights @ rows + rest[len(rows) :]
        nearest = np.full(rows.shape[1], np.inf)  # to an aim: the place among those that may serve it
        for aim, weights, sums in zip(self.aims, self.weights, weighed, strict=True):
            allowed = aim.allowed(self.sides, self.most)
            allowed = allowed + ROUNDING * (1.0 + np.abs(allowed))
            useful = np.flatnonzero((bound <= allowed[:, None]).all(0) & (sums <= float(weights @ allowed)))
            useful = useful[np.argsort(sums[useful], kind="stable")]
            nearest[useful] = np.minimum(nearest[useful], np.arange(len(useful)))
        alive = np.flatnonzero(np.isfinite(nearest))
        alive = alive[np.argsort(nearest[alive], kind="stable")]
        return alive[:room], len(alive) <= room


def _shortfall(problem: Problem, aims: list[Aim], alone: Missed | None, exact: bool, measured: Known) -> Shortfall:
    """Put together what was found."""
    nearest = aims[0].path
    assert nearest is not None
    index, sure = lowest_index(problem, nearest), exact and aims[0].best <= aims[0].relaxed + ROUNDING
    values: Mapping[str, float] = {name: value_of(problem, nearest, name) for name in problem.limits}
    if measured:
        sure &= index not in measured
        over = {i: _excess(problem, each, ()) for i, each in measured.items()}
        best = min(over, key=lambda i: (over[i], i))
        if over[best] < aims[0].best or index in measured:
            index, values = best, measured[best]
    if alone is not None:
        return Shortfall(alone.name, alone.least, ALONE, index, alone.proven, sure, alone.seen)
    singles = [aim for aim in aims[1:] if aim.path is not None and np.isfinite(aim.best)]
    if singles:
        found = [(value_of(problem, aim.path, str(aim.name)), aim) for aim in singles if aim.path is not None]
        _, name, single = min((share(problem.limits[str(aim.name)], value), str(aim.name), aim) for value, aim in found)
        assert single.path is not None
        holds = _excess(problem, {n: value_of(problem, single.path, n) for n in problem.limits}, (name,)) <= 0
        known = exact and holds and not measured and single.best <= min(a.relaxed for a in aims[1:]) + ROUNDING
        return Shortfall(name, value_of(problem, single.path, name), OTHERS, index, known, sure)
    name = max(problem.limits, key=lambda n: (share(problem.limits[n], values[n]), n))
    known = sure and not measured and all(np.isinf(aim.relaxed) for aim in aims[1:])
    return Shortfall(name, values[name], TOGETHER, index, known, sure)
