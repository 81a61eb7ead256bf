"""The evolutionary search of the paper, for spaces that cannot be enumerated.

A population under constraints: whoever keeps the limits comes before whoever does not, the former by
score, the latter by how far they pass. Parents are mutated in one block (another option, or the next
width, depth or ratio) or in what is common to all blocks; now and then two parents are crossed. No
architecture is looked at twice, classes count once, and one generator of random numbers drives it all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from merino_edge.search.classes import alike
from merino_edge.search.cost import Array
from merino_edge.search.problem import Problem
from merino_edge.search.survey import excess
from merino_edge.search.tables import GroupTables

POPULATION = 96
OFFSPRING = 96
CROSSOVER = 0.4
COMMON = 0.15  # share of mutations that change what all blocks have in common
ANYWHERE = 0.3  # share of mutated blocks that take any option, not a neighbour
FRESH = 0.05  # share of offspring drawn anew
TRIES = 20  # generations without anyone new before the search ends


@dataclass
class Archive:
    """Everything looked at, in the order of looking.

    Attributes:
        genes: `(n, 1 + blocks)`: group, then the option of each block.
        score: `(n,)`.
        columns: `(n,)` each.
    """

    genes: Array
    score: Array
    columns: dict[str, Array]

    def join(self, other: Archive) -> Archive:
        """Return both."""
        return Archive(
            np.concatenate([self.genes, other.genes]),
            np.concatenate([self.score, other.score]),
            {name: np.concatenate([v, other.columns[name]]) for name, v in self.columns.items()},
        )

    def take(self, rows: Array) -> Archive:
        """Return some rows."""
        return Archive(self.genes[rows], self.score[rows], {n: v[rows] for n, v in self.columns.items()})


@dataclass
class Evolution:
    """One run of the search.

    Attributes:
        problem: What is looked for.
        seed: Of the one generator.
    """

    problem: Problem
    seed: int
    seen: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Number the groups' tables and options."""
        self.rng = np.random.default_rng(self.seed)
        space = self.problem.space
        self.groups = space.groups
        self.counts = np.array([[len(o) for o in group.options] for group in self.groups])
        self.tables: dict[int, GroupTables] = {}
        self.kinds = alike(space)
        self.radix = np.array([(len(choices.depths), len(choices.ffn_ratios)) for choices in space.blocks])

    def run(self, evaluations: int) -> Archive:
        """Look at up to `evaluations` members; fewer where nobody new can be found."""
        archive = self.evaluate(self.unseen(self.draw(POPULATION), evaluations))
        population, barren = self.select(archive), 0
        while len(archive.score) < evaluations and barren < TRIES:
            genes = self.unseen(self.offspring(population), evaluations - len(archive.score))
            if not len(genes):
                genes = self.unseen(self.draw(OFFSPRING), evaluations - len(archive.score))
            barren = 0 if len(genes) else barren + 1
            if len(genes):
                children = self.evaluate(genes)
                archive = archive.join(children)
                population = self.select(population.join(children))
            if self.problem.request.progress is not None:
                self.problem.request.progress(len(archive.score) / evaluations)
        return archive

    def draw(self, count: int) -> Array:
        """Draw members: a group, then an option for each block."""
        groups = self.rng.integers(len(self.groups), size=count)
        digits = (self.rng.random((count, self.counts.shape[1])) * self.counts[groups]).astype(np.int64)
        return np.column_stack([groups, digits])

    def offspring(self, population: Archive) -> Array:
        """Return mutated and crossed children of parents won by tournament (the population is sorted)."""
        rng, size = self.rng, len(population.genes)
        parents, others = (np.minimum(*rng.integers(size, size=(2, OFFSPRING))) for _ in range(2))
        genes = population.genes[parents]
        crossed = rng.random(OFFSPRING) < CROSSOVER
        swap = crossed[:, None] & (rng.random(genes.shape) < 0.5)
        genes = np.where(swap, population.genes[others], genes)
        genes[:, 1:] = np.minimum(genes[:, 1:], self.counts[genes[:, 0]] - 1)
        mutated = np.flatnonzero(~crossed | (rng.random(OFFSPRING) < 0.5))
        common = rng.random(len(mutated)) < COMMON
        genes[mutated[common], 0] = rng.integers(len(self.groups), size=int(common.sum()))
        self._mutate_blocks(genes, mutated[~common])
        genes[: int(OFFSPRING * FRESH)] = self.draw(int(OFFSPRING * FRESH))
        genes[:, 1:] = np.minimum(genes[:, 1:], self.counts[genes[:, 0]] - 1)
        return np.asarray(genes)

    def _mutate_blocks(self, genes: Array, rows: Array) -> None:
        """Give one block of each row another option, in place: any, or a neighbour in width, depth or ratio."""
        rng = self.rng
        block = rng.integers(self.counts.shape[1], size=len(rows))
        count = self.counts[genes[rows, 0], block]
        depths, ratios = self.radix[block].T
        sizes = np.stack([count // (depths * ratios), depths, ratios])
        option = genes[rows, 1 + block]
        place = np.stack([option // (depths * ratios), option // ratios % depths, option % ratios])
        axis, column = rng.integers(3, size=len(rows)), np.arange(len(rows))
        moved = place[axis, column] + rng.choice((-1, 1), size=len(rows))
        place[axis, column] = np.clip(moved, 0, sizes[axis, column] - 1)
        near = (place[0] * depths + place[1]) * ratios + place[2]
        anywhere = (rng.random(len(rows)) * count).astype(np.int64)
        genes[rows, 1 + block] = np.where(rng.random(len(rows)) < ANYWHERE, anywhere, near)

    def unseen(self, genes: Array, limit: int) -> Array:
        """Return the representatives of classes not looked at yet, at most `limit`."""
        fresh: list[Array] = []
        for row in self._representatives(genes):
            key = row.tobytes()
            if key not in self.seen and len(fresh) < limit:
                self.seen.add(key)
                fresh.append(row)
        return np.array(fresh, np.int64).reshape(-1, genes.shape[1])

    def _representatives(self, genes: Array) -> Array:
        """Put the options of blocks that may be swapped into order, where the widths are one."""
        ordered = genes.copy()
        for positions in self.kinds:
            columns = 1 + np.array(positions)
            ordered[:, columns] = np.sort(genes[:, columns], axis=1)
        widths = np.stack([self._table(int(row[0])).options_width(row[1:]) for row in genes])
        return np.asarray(np.where((widths == widths[:, :1]).all(1)[:, None], ordered, genes))

    def _table(self, group: int) -> GroupTables:
        if group not in self.tables:
            self.tables[group] = GroupTables(self.problem.space, self.groups[group], self.problem.parts)
        return self.tables[group]

    def evaluate(self, genes: Array) -> Archive:
        """Return score and columns of members."""
        parts = self.problem.parts
        sums: list[Array] = [np.empty(len(genes), np.float64) for _ in parts]  # integers below 2^53 stay exact
        for group in np.unique(genes[:, 0]):
            rows = np.flatnonzero(genes[:, 0] == group)
            for whole, part in zip(sums, self._table(int(group)).gather(genes[rows, 1:]), strict=True):
                whole[rows] = part
        score, columns = self.problem.fill(sums)
        if score is None:
            score = self._plain_scores(genes)
        self._override(genes, columns)
        return Archive(genes, score, columns)

    def _plain_scores(self, genes: Array) -> Array:
        space = self.problem.space
        members = (space.build(self.groups[int(row[0])], row[1:].tolist()) for row in genes)
        return np.array([self.problem.plain(member) for member in members], np.float64)

    def _override(self, genes: Array, columns: dict[str, Array]) -> None:
        if self.problem.overrides:
            for i, row in enumerate(genes):
                for name, value in self.problem.overrides.get(self.index(row), {}).items():
                    if name in columns:
                        columns[name][i] = value

    def index(self, genes: Array) -> int:
        """Return the index of a member in the space."""
        group = self.groups[int(genes[0])]
        return group.offset + group.position(int(digit) for digit in genes[1:])

    def select(self, archive: Archive) -> Archive:
        """Return the fittest, best first."""
        limits = self.problem.limits
        over = excess(limits, archive.columns) if limits else np.zeros(len(archive.score))
        keys = (archive.columns["flops"], archive.columns["parameters"], -archive.score, over)
        return archive.take(np.lexsort(keys)[:POPULATION])
