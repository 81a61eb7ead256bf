"""The exact search: every member of an enumerable space, scored and held against the limits.

No sampling and no seed: the same request gives the same answer, bit for bit. Members come in chunks by
outer sums (`tables.py`), so memory does not grow with the space. Where classes are few they come in the place of
their members (`class_sweep.py`).
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from merino_edge.errors import UsageError
from merino_edge.search.cost import Array
from merino_edge.search.problem import Problem
from merino_edge.search.runs import RunTables, runs_of
from merino_edge.search.shortfall import Diagnosis, Shortfall
from merino_edge.search.survey import Survey
from merino_edge.search.tables import CHUNK_ROWS, GroupTables

MAX_SIZE = 10**8
PROGRESS_SECONDS = 0.1


@dataclass(frozen=True)
class Members:
    """Columns of members, each architecture once.

    Attributes:
        numbers: `(n,)`: index of each, rising.
        score: `(n,)`.
        columns: `(n,)` each.
        representative: `(n,)`: which stand for their class.
        weights: `(n,)`: how many architectures each row stands for; None: one.
    """

    numbers: Array
    score: Array
    columns: dict[str, Array]
    representative: Array
    weights: Array | None = field(default=None, kw_only=True)

    def first(self, rows: Array) -> int:
        """Return the lowest index among some rows."""
        return int(self.numbers[rows[0]])

    def take(self, kept: Array) -> Self:
        """Return some of them."""
        return replace(
            self,
            numbers=self.numbers[kept],
            score=self.score[kept],
            columns={name: column[kept] for name, column in self.columns.items()},
            representative=self.representative[kept],
            weights=None if self.weights is None else self.weights[kept],
        )


@dataclass
class Clock:
    """Seconds spent filling columns, and on everything after."""

    score: float = 0.0
    search: float = 0.0
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, name: str) -> None:
        """Add the time since the last lap to `score` or `search`."""
        now = time.perf_counter()
        setattr(self, name, getattr(self, name) + now - self._last)
        self._last = now


def sweep(problem: Problem) -> Iterator[Members]:
    """Yield the columns of all members of the space, in the order of the index.

    Raises:
        UsageError: the space is too large, or one block has more options than memory allows.
    """
    space = problem.space
    if space.numbers > MAX_SIZE:
        raise UsageError(
            f"space {space.name} has {space.numbers:,} members; exact search takes up to {MAX_SIZE:,}, "
            "and more only where the whole model has one width and classes of its blocks are few",
            hint="use --mode dp+evolution",
        )
    _check_memory(problem)
    for numbers, sums, representative in _chunks(problem):
        score, columns = problem.fill(sums)
        assert score is not None  # the engine sends scores that are no sum to the evolutionary search
        _override(problem, numbers, columns)
        members = Members(numbers, score, columns, representative)
        if space.numbers > space.size:
            members = members.take(~space.are_repeated(numbers))
        if len(members.numbers):
            yield members


def _chunks(problem: Problem) -> Iterator[tuple[Array, list[Array], Array]]:
    """Yield index, sums and whether they stand for their class of members, in the order of the index."""
    space, parts = problem.space, problem.parts
    for run in runs_of(space):
        if len(run) > 1:
            tables = RunTables(space, run, parts)
            yield tables.numbers, tables.sums(), tables.representative()
            continue
        for chunk in GroupTables(space, run[0], parts).chunks():
            yield chunk.start + np.arange(len(chunk.representative), dtype=np.int64), chunk.sums, chunk.representative


def _override(problem: Problem, numbers: Array, columns: dict[str, Array]) -> None:
    first, end = np.searchsorted(problem.known, [numbers[0], numbers[-1] + 1])
    for index in problem.known[first:end].tolist():
        row = np.searchsorted(numbers, index)
        for name, value in problem.overrides[index].items():
            if name in columns:
                columns[name][row] = value


def _check_memory(problem: Problem) -> None:
    """Refuse a space whose chunks would not fit: a chunk is at least all options of the last block."""
    rows = max(max(CHUNK_ROWS, len(group.options[-1])) for group in problem.space.groups)
    seams = max(
        (len(a) * len(b) for group in problem.space.groups for a, b in itertools.pairwise(group.options)), default=0
    )
    needed, allowed = 8 * (rows + seams) * (4 * len(problem.parts) + 20), _memory_bytes() // 2
    if needed > allowed:
        raise UsageError(
            f"space {problem.space.name}: a block has so many options that {needed / 2**30:.1f} GiB would be needed, "
            f"more than the {allowed / 2**30:.1f} GiB that a search may take here",
            hint="offer fewer widths, depths or ratios per block, or use --mode evolution",
        )


def _memory_bytes() -> int:
    """Return the memory of this machine; 4 GiB where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 * 2**30


def survey_space(problem: Problem, chunks: Iterable[Members] | None = None) -> tuple[Survey, Clock, Shortfall | None]:
    """Show every member to a survey; return it with the time spent, and why nothing is feasible where nothing is.

    Args:
        problem: What is asked for.
        chunks: All members; None is every one by itself (`sweep`).
    """
    survey, clock, diagnosis = Survey(problem.limits), Clock(), Diagnosis(problem.limits)
    size, progress, told = problem.space.size, problem.request.progress, 0.0
    for members in sweep(problem) if chunks is None else chunks:
        clock.lap("score")
        survey.show(members.numbers, members.score, members.columns, members.representative, members.weights)
        if not survey.feasible:  # until the first member that is, which mostly comes early
            diagnosis.show(members.columns, members.first)
        clock.lap("search")
        if progress is not None and clock.score + clock.search - told > PROGRESS_SECONDS:
            told = clock.score + clock.search
            progress(survey.seen / size)
    clock.lap("score")
    return survey, clock, None if survey.feasible else diagnosis.shortfall()


def listed_shortfall(problem: Problem, chunks: Iterable[Members] | None = None) -> Shortfall | None:
    """Return why no member keeps the limits, None as soon as one does; `chunks` as for `survey_space`."""
    diagnosis = Diagnosis(problem.limits)
    for members in sweep(problem) if chunks is None else chunks:
        diagnosis.show(members.columns, members.first)
        if diagnosis.feasible:
            return None
    return diagnosis.shortfall()
