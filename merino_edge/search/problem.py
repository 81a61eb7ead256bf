"""One search as columns: the score and every quantity that may be limited, for many members at once.

A column is made of sums over parts, so it can be filled for one architecture, a population or a whole
space. What was measured on the device replaces what was predicted, for the architecture and for those
that differ from it only in the order of their blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from merino_edge.architecture import Architecture, Block
from merino_edge.errors import UsageError, did_you_mean
from merino_edge.search.classes import class_members, representative
from merino_edge.search.cost import Array, Flops, Sum, file_sum, parameters_sum, total
from merino_edge.search.latency import LatencyModel
from merino_edge.search.memory import MemoryModel
from merino_edge.search.multisets import Classes, classes_of
from merino_edge.search.scores import PlainScore, ScoreOptions, SumScore, make_score
from merino_edge.search.space import Space
from merino_edge.units import Limit

EVALUATIONS = 40_000
PLAIN_EVALUATIONS = 200  # of scores that are no sums: each costs a look at one architecture
MODES = ("auto", "exact", "dp", "evolution", "dp+evolution")
LIMITS = ("latency_ms", "memory_bytes", "file_bytes", "parameters", "flops", "energy_mj")


@dataclass(frozen=True)
class Measured:
    """What the device said about one architecture.

    Attributes:
        architecture: Which one.
        ms: Median of each test measured.
        memory_bytes: Peak, runtime included, or None.
        energy_mj: Of a generated token, or None.
    """

    architecture: Architecture
    ms: Mapping[str, float]
    memory_bytes: float | None = None
    energy_mj: float | None = None


@dataclass(frozen=True)
class SearchRequest:
    """What to look for.

    Attributes:
        space: Where.
        score: What makes one architecture better than another.
        limits: What it may cost, by name (`LIMITS`).
        latency: Latency models by test.
        latency_of: The test that `latency_ms` means; `ttft` is `pp128` and one token.
        memory: Model of the peak memory.
        energy: Model of a generated token's energy, its unit mJ instead of ms.
        recipe: How weights are stored.
        context_length: Positions the cache must hold.
        mode: `exact`, `dp`, `evolution`, `dp+evolution`, or `auto`: exact up to 10^8 architectures and wherever classes
            are few, then both of the others where the score is a sum, else evolution.
        seed: Of the evolutionary search.
        measured: What is known from the device, by architecture digest.
        progress: Called with the share done.
        evaluations: How many architectures the evolutionary search may look at; what it was taught does not count.
    """

    space: Space
    score: ScoreOptions = field(default_factory=ScoreOptions)
    limits: Mapping[str, Limit] = field(default_factory=dict)
    latency: Mapping[str, LatencyModel] = field(default_factory=dict)
    latency_of: str = "tg"
    memory: MemoryModel | None = None
    energy: LatencyModel | None = None
    recipe: str = "dynamic_wi8_afp32"
    context_length: int = 1024
    mode: str = "auto"
    seed: int = 0
    measured: Mapping[str, Measured] = field(default_factory=dict)
    progress: Callable[[float], None] | None = None
    evaluations: int = EVALUATIONS


@dataclass(frozen=True)
class Column:
    """A quantity of many members, from sums over their parts."""

    parts: tuple[Sum, ...]
    combine: Callable[..., Array]
    is_sum: bool = True  # of what each block adds


@dataclass(frozen=True)
class Problem:
    """A request, checked and turned into columns.

    Attributes:
        request: As asked.
        score: How members are ranked.
        columns: What they cost; those that no model can tell are missing.
        measured: Measured values by column, for classes by their lowest index.
    """

    request: SearchRequest
    score: SumScore | PlainScore
    columns: dict[str, Column]
    measured: dict[int, dict[str, float]]

    @cached_property
    def overrides(self) -> dict[int, dict[str, float]]:
        """Measured values of all members of these classes, by index: many where classes are large."""
        return {
            member: values for index, values in self.measured.items() for member in class_members(self.space, index)
        }

    @cached_property
    def additive(self) -> SumScore | None:
        """The score, where it is a sum over parts."""
        return self.score if isinstance(self.score, SumScore) else None

    @cached_property
    def classes(self) -> Classes:
        """The classes of the space, where it has one width."""
        return classes_of(self.space)

    @cached_property
    def known(self) -> Array:
        """Indices of the members that were measured, rising."""
        return np.array(sorted(self.overrides), np.int64 if self.space.numbers < 1 << 62 else object)

    @property
    def space(self) -> Space:
        """Where to look."""
        return self.request.space

    @property
    def limits(self) -> Mapping[str, Limit]:
        """What may not be passed."""
        return self.request.limits

    @property
    def parts(self) -> list[Sum]:
        """Every sum that the score and the columns need, in the order that `fill` takes them."""
        score = list(self.score.parts) if isinstance(self.score, SumScore) else []
        return score + [part for column in self.columns.values() for part in column.parts]

    def fill(self, sums: list[Array]) -> tuple[Array | None, dict[str, Array]]:
        """Return the score (None where it is no sum) and the columns."""
        score = None
        if self.additive is not None:
            used = len(self.additive.parts)
            score, sums = self.additive.combine(*sums[:used]), sums[used:]
        filled = {}
        for name, column in self.columns.items():
            mine, sums = sums[: len(column.parts)], sums[len(column.parts) :]
            filled[name] = column.combine(*mine)
        return score, filled

    def plain(self, architecture: Architecture) -> float:
        """Return the score of one architecture where it is no sum."""
        assert not isinstance(self.score, SumScore)
        return float(self.score(architecture))

    def values(self, architecture: Architecture) -> dict[str, float]:
        """Return the columns of one architecture, measured values included."""
        values = {
            name: np.asarray(column.combine(*(np.asarray(total(p, architecture)) for p in column.parts))).item()
            for name, column in self.columns.items()
        }
        index = self.space.index_of(architecture)
        return {**values, **(self.measured.get(representative(self.space, index), {}) if index is not None else {})}


def make_problem(request: SearchRequest) -> Problem:
    """Check a request and turn it into columns.

    Raises:
        UsageError: a limit on something that nothing here can tell, or an unknown name.
    """
    if request.mode not in MODES:
        raise UsageError(f"unknown mode '{request.mode}'{did_you_mean(request.mode, MODES)}")
    if request.evaluations < 1:
        raise UsageError(f"a search must look at one architecture at least, not {request.evaluations}")
    columns = _columns(request)
    for name in request.limits:
        if name not in LIMITS:
            raise UsageError(f"unknown limit '{name}'{did_you_mean(name, LIMITS)}")
        if name not in columns:
            why = {
                "latency_ms": f"no latency model for '{request.latency_of}'",
                "memory_bytes": "no memory model",
                "energy_mj": "no energy model for this device",
            }[name]
            raise UsageError(f"cannot limit {name}: there is {why}", hint="profile the device, or leave the limit out")
    _check_range(request.space)
    return Problem(request, make_score(request.score), columns, _measured(request))


def _columns(request: SearchRequest) -> dict[str, Column]:
    norms, skip = request.space.per_layer_norms, bool(request.space.embedding_skip)
    columns = {
        "parameters": Column((parameters_sum(norms, embedding_skip=skip),), _same),
        "flops": Column((Flops(),), _same),
        "file_bytes": Column((file_sum(request.recipe, norms, skip),), _same),
    }
    tests = latency_tests(request.latency_of)
    if all(test in request.latency for test in tests):
        columns["latency_ms"] = upper([request.latency[test] for test in tests])
    if request.memory is not None:
        columns["memory_bytes"] = upper([request.memory])
    if request.energy is not None:
        columns["energy_mj"] = upper([request.energy])
    return columns


def latency_tests(latency_of: str) -> tuple[str, ...]:
    """Return the tests whose times add up to the latency meant."""
    return ("pp128", "tg") if latency_of == "ttft" else (latency_of,)


def _same(value: Array) -> Array:
    return value


def raised(factor: float, *models: LatencyModel | MemoryModel) -> Column:
    """Return the column of predictions times a factor."""
    return _added(models, [factor] * len(models))


def upper(models: Sequence[LatencyModel | MemoryModel]) -> Column:
    """Return the column of the bands' ends, added up."""
    return _added(models, [1.0 + model.band for model in models])


def _added(models: Sequence[LatencyModel | MemoryModel], factors: Sequence[float]) -> Column:
    """Return the column of predictions times their factors; a model too large for the cache takes longer as a whole."""
    whole = [(i, m) for i, m in enumerate(models) if isinstance(m, LatencyModel) and m.kept_bytes is not None]

    def combine(*sums: Array) -> Array:
        predicted = list(sums[: len(models)])
        held = iter(sums[len(models) :])
        for i, model in whole:
            predicted[i] = predicted[i] + model.missed_ms(next(held), next(held)).sum(0)
        return _weighted(predicted, factors)

    parts = (*models, *(quantity for _, model in whole for quantity in model.features.held))
    return Column(parts, combine, is_sum=not whole)


def _weighted(sums: Sequence[Array], factors: Sequence[float]) -> Array:
    result = sums[0] * factors[0]
    for value, factor in zip(sums[1:], factors[1:], strict=True):
        result = result + value * factor
    return result


def _measured(request: SearchRequest) -> dict[int, dict[str, float]]:
    """Give measured values to the class of each measured member of the space."""
    found: dict[int, dict[str, float]] = {}
    for measured in request.measured.values():
        index = request.space.index_of(measured.architecture)
        if index is None:
            continue
        values: dict[str, float] = {}
        tests = latency_tests(request.latency_of)
        if all(test in measured.ms for test in tests):
            values["latency_ms"] = sum(measured.ms[test] for test in tests)
        if measured.memory_bytes is not None:
            values["memory_bytes"] = measured.memory_bytes
        if measured.energy_mj is not None:
            values["energy_mj"] = measured.energy_mj
        found.setdefault(representative(request.space, index), {}).update(values)
    return found


def _check_range(space: Space) -> None:
    """Refuse a space whose largest member would not fit 64-bit counting."""
    blocks = []
    for choices in space.blocks:
        widths = choices.widths or space.widths or (1,)
        blocks.append(Block(max(widths), max(choices.ffn_ratios), max(choices.depths)))
    head_dim = math.gcd(*(b.width for b in blocks))
    if head_dim % 2:
        return
    largest = Architecture(tuple(blocks), max(space.embedding_widths or (blocks[0].width,)), space.vocab_size, head_dim)
    flops: Any = total(Flops(head=True), largest)
    if flops >= 2**60:
        raise UsageError(f"space {space.name}: its largest member needs {flops:.1e} FLOPs, more than can be counted")
