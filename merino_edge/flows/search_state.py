"""What a search knows of its device: the profile, and all that the device's log holds by now."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from merino_edge.agent.core_distance import is_same_place
from merino_edge.device.registry import device_folder
from merino_edge.flows.conditions import TESTS, Conditions
from merino_edge.flows.measuring import MEASUREMENTS, PASSES, Known, gather, shared_key
from merino_edge.flows.placement import as_distance_ns, away, usual_distance_ns
from merino_edge.flows.profile import MIN_MODELS, fit_known
from merino_edge.flows.profile_file import Profile, RecipeProfile
from merino_edge.flows.repeatability import Repeatability, how_repeatable, passes_of, seen_values
from merino_edge.measurement import Measurement, read_measurements
from merino_edge.search.latency import LatencyModel
from merino_edge.units import Limit


@dataclass
class State:
    """What one search knows of its device; grows by every measurement.

    Attributes:
        device: Its name.
        conditions: What the limits mean.
        profile: What `profile` found, or an estimate.
        recipe: The models of the recipe that is searched for.
        known: What the log says of each model, by architecture digest.
        repeats: How well the device repeats a limited quantity, by the limit's name.
        newest: Digest of the architecture in the log's last record.
        place_ns: How far apart the device's cores must stand for a record to count; None for the usual.
        core_distance_ns: How far that is, where known.
        elsewhere: How many times as long the limited latency takes with the cores elsewhere, and of how many models
            that is the median; None where the log holds none that were measured here and there.
        deadline: Of `time.monotonic`, after which no further measurement begins.
    """

    device: str
    conditions: Conditions
    profile: Profile
    recipe: RecipeProfile
    known: dict[str, Known]
    repeats: dict[str, Repeatability] = field(default_factory=dict)
    newest: str | None = None
    place_ns: float | None = None
    core_distance_ns: float | None = None
    elsewhere: tuple[float, int] | None = None
    deadline: float = math.inf

    @property
    def is_late(self) -> bool:
        """Say whether the time for measuring is spent."""
        return time.monotonic() > self.deadline

    @property
    def log(self) -> Path:
        """The device's measurements."""
        return device_folder(self.device) / MEASUREMENTS

    def learn(self) -> None:
        """Read what the log says now and fit again; a few measurements at least scale an estimate."""
        records = read_measurements(self.log)
        mine = [r for r in records if r.valid and shared_key(r) == dict(self.recipe.key)]
        self.core_distance_ns = self.place_ns or usual_distance_ns(mine)
        self.known = gather(mine, self.recipe.key, self.conditions, self.core_distance_ns)
        self.newest = records[-1].key.architecture_digest if records else None
        self.repeats = how_repeatable(self.known.values(), self.conditions)
        self.elsewhere = self._compare_elsewhere(mine)
        complete = self._complete()
        if len(complete) >= MIN_MODELS:
            self.recipe = fit_known(
                complete, self.recipe.key, self.conditions, self.recipe.cache_bytes, self.recipe.seconds
            )
        elif self.profile.estimate and complete:
            self.recipe = replace(self.recipe, latency=_scaled(self.recipe.latency, complete.values()))

    def _complete(self) -> dict[str, Known]:
        """Return what the models are fitted to: what was measured in two passes, or in one where that is too little."""
        whole = {d: k for d, k in self.known.items() if all(test in k.ms for test in TESTS)}
        twice = {d: k for d, k in whole.items() if self.is_measured(d)}
        once = {d: k for d, k in whole.items() if k.memory_bytes is not None}
        return once if self.place_ns is not None and len(twice) < MIN_MODELS else twice

    def stand_at(self, told: object) -> bool:
        """Search by what was measured where the device's cores stand now, if that is enough; say whether it changed.

        Args:
            told: How far apart they stand, by the device.
        """
        now = as_distance_ns(told)
        if now is None or self.core_distance_ns is None or is_same_place(now, self.core_distance_ns):
            return False
        before, self.place_ns = self.place_ns, now
        self.learn()
        if len(self._complete()) >= MIN_MODELS:
            return True
        self.place_ns = before
        self.learn()
        return False

    def _compare_elsewhere(self, records: list[Measurement]) -> tuple[float, int] | None:
        """Return how many times as long models took elsewhere, the median, and of how many."""
        if self.core_distance_ns is None:
            return None
        there = gather(away(records, self.core_distance_ns), self.recipe.key, self.conditions)
        ratios = [
            statistics.median(passes_of(k, self.conditions)) / statistics.median(passes_of(here, self.conditions))
            for d, k in there.items()
            if (here := self.known.get(d)) is not None
            and passes_of(k, self.conditions)
            and passes_of(here, self.conditions)
        ]
        return (statistics.median(ratios), len(ratios)) if ratios else None

    def is_measured(self, digest: str) -> bool:
        """Say whether the device has told latency, in two passes at least, and memory of an architecture."""
        known = self.known.get(digest)
        enough = known is not None and len(passes_of(known, self.conditions)) >= PASSES
        return enough and known is not None and known.memory_bytes is not None

    def seen(self, known: Known, limits: Mapping[str, Limit]) -> dict[str, float]:
        """Return what counts of a measured model, see `seen_values`."""
        return seen_values(known, self.conditions, self.repeats, limits)

    def room(self, name: str) -> float:
        """Return the share that is left between a limit and a median."""
        return self.repeats[name].margin if name in self.repeats else 0.0


def _scaled(latency: Mapping[str, LatencyModel], known: Collection[Known]) -> dict[str, LatencyModel]:
    """Multiply each estimated model so that it agrees with what was measured, in the median."""
    result = {}
    for test, model in latency.items():
        factor = statistics.median(k.ms[test] / model.predict_ms(k.architecture) for k in known)
        document = model.to_json()
        document["ms_per_unit"] = {name: factor * value for name, value in document["ms_per_unit"].items()}
        result[test] = LatencyModel.from_json(document, f"scaled estimate of {test}")
    return result
