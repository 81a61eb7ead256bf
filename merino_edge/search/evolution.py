"""The evolutionary search of the paper, for spaces that cannot be enumerated.

A population under constraints: whoever keeps the limits comes before whoever does not, the former by
score, the latter by how far they pass. Most children cross two parents first; then half of them are mutated
in one field on average and half in a few, a field being the width, depth or ratio of one block or something
all blocks have in common, by a step or to any choice. Where the number of blocks is open it is one more
field; a block that is added is like the last one. No architecture is looked at twice (but one that two numbers
of blocks of several kinds make), classes count once, and one generator of random numbers drives it all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from merino_edge.search.classes import alike
from merino_edge.search.cost import Array
from merino_edge.search.problem import Problem
from merino_edge.search.survey import excess
from merino_edge.search.tables import GroupTables

POPULATION = 96
OFFSPRING = 96
CROSSOVER = 0.8  # share of children that cross
MUTATED_FIELDS = (1.0, 2.5)  # on average, of one half of the children and of the other
ANYWHERE = 0.1  # share of mutated fields that take any choice, not a near one
FRESH = 0.05  # share of offspring drawn anew
TRIES = 20  # generations without anyone new before the search ends


@dataclass
class Archive:
    """Everything looked at, in the order of looking.

    Attributes:
        genes: `(n, 1 + blocks)`: group, then the option of each block; 0 for blocks that a member lacks.
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
    scored: int = 0

    def __post_init__(self) -> None:
        """Number the groups' tables and options."""
        self.rng = np.random.default_rng(self.seed)
        space = self.problem.space
        self.groups = space.groups
        self.lengths = np.array([len(group.options) for group in self.groups])
        self.most = int(self.lengths.max())
        counts = [[len(o) for o in group.options] + [1] * (self.most - len(group.options)) for group in self.groups]
        self.counts = np.array(counts)
        self.tables: dict[int, GroupTables] = {}
        of_row = {group.choices: group for group in self.groups}  # of blocks; several where their number is open
        self.rows = list(of_row)
        self.kinds = [[1 + np.array(positions) for positions in alike(group)] for group in of_row.values()]
        self._number_fields()
        padded = [
            [(len(c.depths), len(c.ffn_ratios)) for c in row] + [(1, 1)] * (self.most - len(row)) for row in self.rows
        ]
        self.radix = np.array(padded)  # (rows, blocks, 2)

    def _number_fields(self) -> None:
        """Number what all blocks have in common: head_dim, the one width, vocabulary, embedding, how many they are."""
        space = self.problem.space
        embeddings = space.embedding_widths or (0,)
        widths = space.widths or (0,)
        row_of = {row: i for i, row in enumerate(self.rows)}
        self.row_of = np.array([row_of[group.choices] for group in self.groups])
        rows = [
            (
                space.head_dims.index(group.head_dim),
                widths.index(group.options[0][0].width) if space.widths else 0,
                space.vocab_sizes.index(group.vocab_size),
                embeddings.index(group.embedding_width) if space.embedding_widths else 0,
            )
            for group in self.groups
        ]
        self.common = np.array(rows, np.int64)
        shape = [len(space.head_dims), len(widths), len(space.vocab_sizes), len(embeddings)]
        if len(self.rows) > 1:
            self.common = np.column_stack([self.common, self.row_of])
            shape.append(len(self.rows))
        self.group_at = np.full(shape, -1, np.int64)
        self.group_at[tuple(self.common.T)] = np.arange(len(self.groups))
        own = np.ones((self.most, 3), np.int64)
        for row in self.rows:
            sizes = [(len(c.widths or (0,)), len(c.depths), len(c.ffn_ratios)) for c in row]
            own[: len(row)] = np.maximum(own[: len(row)], sizes)
        self.choices = np.array([*shape, *own.ravel()], np.int64)

    def run(self, evaluations: int, others: Array | None = None) -> Archive:
        """Look at up to `evaluations` members; fewer where nobody new can be found.

        Args:
            evaluations: How many.
            others: Genes that another search found; they join half way, so that neither they nor what was found
                without them is all that there is to cross, and do not count.
        """
        archive = self.evaluate(self.unseen(self.draw(POPULATION), evaluations))
        population = self.select(archive)
        if others is not None:
            archive, population = self._evolve(archive, population, evaluations // 2, evaluations)
            if len(joining := self.unseen(others, len(others))):
                joined = self.evaluate(joining)
                archive, population = archive.join(joined), self.select(population.join(joined))
                evaluations += len(joining)
        return self._evolve(archive, population, evaluations, evaluations)[0]

    def _evolve(self, archive: Archive, population: Archive, until: int, evaluations: int) -> tuple[Archive, Archive]:
        """Breed until so many were looked at."""
        barren = 0
        while len(archive.score) < until and barren < TRIES:
            room = until - len(archive.score)
            genes = self.unseen(self.offspring(population), room)
            if not len(genes):
                genes = self.unseen(self.draw(OFFSPRING), room)
            barren = 0 if len(genes) else barren + 1
            if len(genes):
                children = self.evaluate(genes)
                archive = archive.join(children)
                population = self.select(population.join(children))
            if self.problem.request.progress is not None:
                self.problem.request.progress(len(archive.score) / evaluations)
        return archive, population

    def genes_of(self, indices: Iterable[int]) -> Array:
        """Return the genes of members by their index in the space, `(n, 1 + blocks)`."""
        numbers = {group.offset: number for number, group in enumerate(self.groups)}
        genes = []
        for index in indices:
            group = self.problem.space.group_of(index)
            digits = group.digits(index - group.offset)
            genes.append([numbers[group.offset], *digits, *[0] * (self.most - len(digits))])
        return np.array(genes, np.int64).reshape(-1, 1 + self.most)

    def draw(self, count: int) -> Array:
        """Draw members: a group, then an option for each block."""
        groups = self.rng.integers(len(self.groups), size=count)
        digits = (self.rng.random((count, self.most)) * self.counts[groups]).astype(np.int64)
        return np.column_stack([groups, digits])

    def fields(self, genes: Array) -> Array:
        """Take genes apart, `(n, 4 + 3 blocks)`: what all blocks have in common, then width, depth, ratio of each.

        Where the number of blocks is open, it comes fifth, and blocks that a member lacks are like its last.
        """
        depths, ratios = self.radix[self.row_of[genes[:, 0]]].transpose(2, 0, 1)
        options = genes[:, 1:]
        parts = np.stack([options // (depths * ratios), options // ratios % depths, options % ratios], axis=2)
        if len(self.rows) > 1:
            last = np.minimum(np.arange(self.most), self.lengths[genes[:, 0], None] - 1)
            parts = np.take_along_axis(parts, last[:, :, None], axis=1)
        return np.column_stack([self.common[genes[:, 0]], parts.reshape(len(genes), -1)])

    def genes(self, fields: Array, fallback: Array) -> Array:
        """Put fields together; the group is `fallback` where they name none, a width too large the widest."""
        common = self.common.shape[1]
        groups = self.group_at[tuple(fields[:, :common].T)]
        groups = np.where(groups < 0, fallback, groups)
        depths, ratios = self.radix[self.row_of[groups]].transpose(2, 0, 1)
        width, depth, ratio = fields[:, common:].reshape(len(fields), -1, 3).transpose(2, 0, 1)
        width = np.minimum(width, self.counts[groups] // (depths * ratios) - 1)
        options = (width * depths + np.minimum(depth, depths - 1)) * ratios + np.minimum(ratio, ratios - 1)
        return np.column_stack([groups, np.where(np.arange(self.most) < self.lengths[groups, None], options, 0)])

    def offspring(self, population: Archive) -> Array:
        """Return crossed and mutated children of parents won by tournament (the population is sorted)."""
        rng, size = self.rng, len(population.genes)
        parents, others = (np.minimum(*rng.integers(size, size=(2, OFFSPRING))) for _ in range(2))
        fields = self.fields(population.genes[parents])
        crossed = rng.random(OFFSPRING) < CROSSOVER
        swap = crossed[:, None] & (rng.random(fields.shape) < 0.5)
        fields = np.where(swap, self.fields(population.genes[others]), fields)
        fields = self._mutate(fields, ~crossed)
        children = self.genes(fields, population.genes[parents, 0])
        children[: int(OFFSPRING * FRESH)] = self.draw(int(OFFSPRING * FRESH))
        return children

    def _mutate(self, fields: Array, surely: Array) -> Array:
        """Move some fields by a step or to any choice; rows marked `surely` in one field at least."""
        rng = self.rng
        rates = rng.choice(MUTATED_FIELDS, size=(len(fields), 1)) / fields.shape[1]
        moved = rng.random(fields.shape) < rates
        rows = np.flatnonzero(surely)
        moved[rows, rng.integers(fields.shape[1], size=len(rows))] = True
        steps = rng.choice((-2, -1, 1, 2), p=(0.15, 0.35, 0.35, 0.15), size=fields.shape)
        near = np.clip(fields + steps, 0, self.choices - 1)
        anywhere = (rng.random(fields.shape) * self.choices).astype(np.int64)
        return np.where(moved, np.where(rng.random(fields.shape) < ANYWHERE, anywhere, near), fields)

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
        """Put the options of blocks that may be swapped into order, where the widths are one; each option its first."""
        if self.problem.space.numbers > self.problem.space.size:
            genes = genes.copy()
            for own in genes:
                self._options(own)[:] = self.groups[int(own[0])].first_alike(self._options(own).tolist())
        ordered = genes.copy()
        row_of = self.row_of[genes[:, 0]]
        for row in np.unique(row_of):
            members = np.flatnonzero(row_of == row)
            for columns in self.kinds[row]:
                ordered[np.ix_(members, columns)] = np.sort(genes[np.ix_(members, columns)], axis=1)
        if self.problem.space.widths is None:
            for sorted_genes, given in zip(ordered, genes, strict=True):
                if len(set(self._table(int(given[0])).options_width(self._options(given)).tolist())) > 1:
                    sorted_genes[:] = given
        return ordered

    def _options(self, genes: Array) -> Array:
        """Return the option of each block that a member has."""
        return genes[1 : 1 + self.lengths[genes[0]]]

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
            for whole, part in zip(
                sums, self._table(int(group)).gather(genes[rows, 1 : 1 + self.lengths[group]]), strict=True
            ):
                whole[rows] = part
        score, columns = self.problem.fill(sums)
        if score is None:
            score = self._plain_scores(genes)
        self._override(genes, columns)
        return Archive(genes, score, columns)

    def _plain_scores(self, genes: Array) -> Array:
        space, request, scores = self.problem.space, self.problem.request, []
        for row in genes:
            scores.append(self.problem.plain(space.build(self.groups[int(row[0])], self._options(row).tolist())))
            self.scored += 1
            if request.progress is not None:  # a score that is no sum may take long for each member
                request.progress(min(1.0, self.scored / request.evaluations))
        return np.array(scores, np.float64)

    def _override(self, genes: Array, columns: dict[str, Array]) -> None:
        if self.problem.overrides:
            for i, row in enumerate(genes):
                for name, value in self.problem.overrides.get(self.index(row), {}).items():
                    if name in columns:
                        columns[name][i] = value

    def index(self, genes: Array) -> int:
        """Return the index of a member in the space."""
        group = self.groups[int(genes[0])]
        return group.offset + group.position(int(digit) for digit in self._options(genes))

    def select(self, archive: Archive) -> Archive:
        """Return the fittest, best first."""
        limits = self.problem.limits
        over = excess(limits, archive.columns) if limits else np.zeros(len(archive.score))
        keys = (archive.columns["flops"], archive.columns["parameters"], -archive.score, over)
        return archive.take(np.lexsort(keys)[:POPULATION])
