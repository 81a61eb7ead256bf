"""How well a device repeats itself: the same model in a fresh process, some time later.

Within one process a median is known to a percent, and still the next process may come out some percent above
it for minutes on end: its pages lie elsewhere, a neighbour on the host takes its share of a cache. No margin that is
computed from one process's samples sees that. The passes of all models that a device's log holds do: each was taken in
a process of its own, a profile's far apart in time. How much slower a later pass came out than the median of the
passes before it is what a winner's median must leave room for.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from merino_edge.flows.conditions import Conditions
from merino_edge.flows.measuring import Known
from merino_edge.search.fitting import conformal_excess
from merino_edge.search.problem import latency_tests
from merino_edge.units import Limit

COVERAGE = 0.9  # of fresh processes, by the bound of a winner at the very edge of its limit
MOST_ROOM = 0.3  # no more room is left than this: by then the machine is too restless to promise anything
DISTURBED = 0.1  # a pass this far above two that agree was taken on a disturbed machine
AGREE = 1.02  # two passes no further apart than this were taken on the same, undisturbed machine
Passes = Callable[[Known], Sequence[float]]


@dataclass(frozen=True)
class Repeatability:
    """How far above the median of earlier passes a fresh process comes out.

    Attributes:
        margin: One-sided, as a share: `COVERAGE` of later passes lie at most this far above. At most `MOST_ROOM`.
        repeats: Later passes that were compared.
        disturbed: Passes that do not count: two others agreed, and these, fewer, lay `DISTURBED` above them.
        enough: False where the machine repeats itself so badly that `MOST_ROOM` is not enough.
    """

    margin: float
    repeats: int
    disturbed: int
    enough: bool

    def bound(self, value: float) -> float:
        """Return what a fresh process may show of a quantity whose median is `value`."""
        return value * (1.0 + self.margin)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {**asdict(self), "coverage": COVERAGE}


def repeatability(known: Iterable[Known], passes: Passes) -> Repeatability:
    """Compare every pass over a model with the median of those before it.

    Args:
        known: What the device's log says of each model.
        passes: What is compared of a model: one value a pass, in the order they were taken.
    """
    earlier: list[float] = []
    later: list[float] = []
    disturbed = 0
    for one in known:
        every = passes(one)
        quiet = undisturbed(every)
        disturbed += len(every) - len(quiet)
        for number in range(1, len(quiet)):
            earlier.append(statistics.median(quiet[:number]))
            later.append(quiet[number])
    if not later:
        return Repeatability(0.0, 0, disturbed, enough=True)
    margin = conformal_excess(np.array(earlier), np.array(later), COVERAGE)
    return Repeatability(min(margin, MOST_ROOM), len(later), disturbed, enough=margin <= MOST_ROOM)


def undisturbed(passes: Sequence[float]) -> list[float]:
    """Leave out what lies `DISTURBED` above two passes that agree with each other, unless that is most of them.

    Where most passes are slower, that is how the device is, and two of them met it undisturbed for once.
    """
    fastest = sorted(passes)[:2]
    if len(passes) < 3 or fastest[1] > AGREE * fastest[0]:
        return list(passes)
    quiet = [value for value in passes if value <= (1.0 + DISTURBED) * fastest[1]]
    return quiet if 2 * len(quiet) > len(passes) else list(passes)


def passes_of(known: Known, conditions: Conditions) -> tuple[float, ...]:
    """Return what each pass over a model told of the latency that a limit means."""
    parts = (known.passes_ms.get(test, ()) for test in latency_tests(conditions.latency_of))
    return tuple(sum(times) for times in zip(*parts, strict=False))


def how_repeatable(known: Collection[Known], conditions: Conditions) -> dict[str, Repeatability]:
    """Return how well a device repeats what may be limited, by the limit's name."""
    return {
        "latency_ms": repeatability(known, lambda one: passes_of(one, conditions)),
        "memory_bytes": repeatability(known, lambda one: one.memory_passes),
    }


def seen_values(
    known: Known, conditions: Conditions, repeats: Mapping[str, Repeatability], limits: Mapping[str, Limit]
) -> dict[str, float]:
    """Return what counts of a measured model, by the limit's name.

    The median of its passes; but where one of them, or the median with the device's repeatability on top, passes the
    upper end of a limit, that.
    """
    told: dict[str, Sequence[float]] = {
        "latency_ms": passes_of(known, conditions),
        "memory_bytes": known.memory_passes,
        "energy_mj": () if known.energy_mj is None else (known.energy_mj,),
    }
    seen = {}
    for name, passes in told.items():
        if passes:
            seen[name] = statistics.median(passes)
            worst = max(undisturbed(passes))
            bound = max(worst, repeats[name].bound(seen[name])) if name in repeats else worst
            if name in limits and bound > limits[name].upper:
                seen[name] = bound
    return seen
