"""An architecture as a search lists it, with everything a table or a measuring loop asks of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from merino_edge.architecture import Architecture
from merino_edge.search.classes import class_size
from merino_edge.search.cost import Array, Flops, Sum
from merino_edge.search.group import Group
from merino_edge.search.problem import Column, Problem, latency_tests, raised, upper
from merino_edge.search.scores import ScoreOptions, explain_score
from merino_edge.search.tables import GroupTables


@dataclass(frozen=True)
class Candidate:
    """One architecture as a search lists it: the lowest-numbered member of its class.

    Attributes:
        architecture: What it is.
        index: Its number in the space.
        class_size: Members of the space that differ from it only in the order of blocks, itself included.
        score: Larger is better.
        parameters: Unique ones.
        flops: Of 1,024 tokens, without the product with the token table.
        flops_with_head: With it.
        file_bytes: Unique tensors under the recipe, and room for the graph.
        predicted: `tg_ms`, `tg_ms_upper`, ... of each test, `memory_bytes`, `memory_bytes_upper`; None where unknown.
        score_options: What was scored.
    """

    architecture: Architecture
    index: int
    class_size: int
    score: float
    parameters: int
    flops: int
    flops_with_head: int
    file_bytes: int
    predicted: dict[str, float | None]
    score_options: ScoreOptions

    @cached_property
    def terms(self) -> dict[str, Any]:
        """The score's terms."""
        return explain_score(self.architecture, self.score_options)


def make_candidates(problem: Problem, indices: Sequence[int]) -> tuple[Candidate, ...]:
    """Return the candidates of these numbers, in their order; many at once, by the tables of their groups."""
    space = problem.space
    groups = [space.group_of(index) for index in indices]
    rows: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group.offset, []).append(row)
    found: list[Candidate | None] = [None] * len(indices)
    for mine in rows.values():
        for row, candidate in zip(mine, _of_group(problem, groups[mine[0]], [indices[r] for r in mine]), strict=True):
            found[row] = candidate
    return tuple(candidate for candidate in found if candidate is not None)


def _of_group(problem: Problem, group: Group, indices: Sequence[int]) -> list[Candidate]:
    request, space = problem.request, problem.space
    digits = np.array([group.digits(index - group.offset) for index in indices], np.int64)
    predictions = _predictions(problem)
    extra: list[Sum] = [part for column in predictions.values() for part in column.parts]
    sums = GroupTables(space, group, [*problem.parts, Flops(head=True), *extra]).gather(digits)
    used = len(problem.parts)
    score, columns = problem.fill(sums[:used])
    with_head, sums = sums[used], sums[used + 1 :]
    predicted: dict[str, Array] = {}
    for name, column in predictions.items():
        predicted[name] = column.combine(*sums[: len(column.parts)])
        sums = sums[len(column.parts) :]
    unknown = dict.fromkeys(("tg_ms", "tg_ms_upper", "pp128_ms", "pp128_ms_upper", "memory_bytes"))
    candidates = []
    for row, index in enumerate(indices):
        architecture = space.build(group, digits[row].tolist())
        value = float(score[row]) if score is not None else float(problem.plain(architecture))
        candidates.append(
            Candidate(
                architecture=architecture,
                index=index,
                class_size=class_size(space, index),
                score=value,
                parameters=int(columns["parameters"][row]),
                flops=int(columns["flops"][row]),
                flops_with_head=int(with_head[row]),
                file_bytes=int(columns["file_bytes"][row]),
                predicted={**unknown, **{name: float(values[row]) for name, values in predicted.items()}},
                score_options=request.score,
            )
        )
    return candidates


def _predictions(problem: Problem) -> dict[str, Column]:
    """Return what the models say of every test, without and with their band; measured values stay out."""
    request = problem.request
    columns: dict[str, Column] = {}
    for test, model in request.latency.items():
        columns[f"{test}_ms"] = raised(1.0, model)
        columns[f"{test}_ms_upper"] = raised(1.0 + model.band, model)
    models = [request.latency[test] for test in latency_tests(request.latency_of) if test in request.latency]
    if request.latency_of not in request.latency and models:
        columns[f"{request.latency_of}_ms"] = raised(1.0, *models)
        columns[f"{request.latency_of}_ms_upper"] = upper(models)
    if request.memory is not None:
        columns["memory_bytes"] = raised(1.0, request.memory)
        columns["memory_bytes_upper"] = raised(1.0 + request.memory.band, request.memory)
    if request.energy is not None:
        columns["energy_mj"] = raised(1.0, request.energy)
        columns["energy_mj_upper"] = upper([request.energy])
    return columns
