"""The measuring loop of a search: the model proposes, the device disposes.

The winner is exported with random weights and measured, and the models are fitted again with what was
measured, until the winner's measured numbers keep the limits or the rounds are spent. Nothing is
measured twice: every record lies in the device's log.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from merino_edge.device.client import Device
from merino_edge.device.registry import device_folder
from merino_edge.errors import InfeasibleError, MeasurementError
from merino_edge.flows.conditions import DEFAULT_CONDITIONS, TESTS, Conditions
from merino_edge.flows.devices import find_entry, opened
from merino_edge.flows.measuring import (
    MEASUREMENTS,
    PASSES,
    SHARED_KEY,
    Known,
    is_sustained,
    known_from_log,
    measure_architecture,
    shared_key,
    what_changed,
)
from merino_edge.flows.profile import MIN_MODELS, fit_known
from merino_edge.flows.profile_file import Profile, RecipeProfile
from merino_edge.measurement import Measurement
from merino_edge.progress import Progress
from merino_edge.search.engine import Candidate, Measured, SearchOutcome, SearchRequest
from merino_edge.search.engine import search as run_search
from merino_edge.search.latency import LatencyModel
from merino_edge.search.problem import EVALUATIONS, PLAIN_EVALUATIONS, latency_tests
from merino_edge.search.scores import ScoreOptions, is_sum
from merino_edge.search.space import Space
from merino_edge.units import Limit

MAX_ROUNDS = 8
VERIFY_SECONDS = 3.0
MAX_PASSES = 3  # of one candidate in one round
SLACK = 0.9  # a measured winner below this share of a binding limit is worth another try
DEVICE_LIMITS = ("latency_ms", "memory_bytes", "energy_mj")


DEFAULT_SCORE = "balanced-parameters"
"""What ranked trained decoders best over five tables (`bench/shape_study.py --stats`), ahead of the paper's entropy."""


def score_options(**given: Any) -> ScoreOptions:
    """Return the score that the command line names; a weight of the entropy without a name means the entropy."""
    chosen = {name: value for name, value in given.items() if value is not None}
    return ScoreOptions(**{"name": "entropy" if chosen else DEFAULT_SCORE, **chosen})


@dataclass(frozen=True)
class SearchOptions:
    """What the command line says.

    Attributes:
        device: `--device`.
        limits: By name: latency_ms, memory_bytes, file_bytes, parameters, flops, energy_mj.
        conditions: What the limits mean.
        space: Name or TOML file.
        vocab_size: The one vocabulary size, instead of the space's choices.
        score: Which score, with its parameters.
        study_beta: The entropy's beta is what the study fitted, within the space's domain, not the one in `score`.
        mode: `auto`, `exact`, `dp`, `evolution`.
        seed: Of the evolutionary search.
        evaluations: How many architectures that one may look at; None for the score's usual number.
        run: Name of the run to write.
        verify: Measure the winner on the device.
    """

    device: str | None = None
    limits: Mapping[str, Limit] = field(default_factory=dict)
    conditions: Conditions = DEFAULT_CONDITIONS
    space: str = "poster"
    vocab_size: int | None = None
    score: ScoreOptions = field(default_factory=lambda: ScoreOptions(DEFAULT_SCORE))
    study_beta: bool = False
    mode: str = "auto"
    seed: int = 0
    evaluations: int | None = None
    run: str | None = None
    verify: bool = True


@dataclass
class State:
    """What one search knows of its device; grows by every measurement."""

    device: str
    conditions: Conditions
    profile: Profile
    recipe: RecipeProfile
    known: dict[str, Known]

    @property
    def log(self) -> Path:
        """The device's measurements."""
        return device_folder(self.device) / MEASUREMENTS

    def learn(self) -> None:
        """Read what the log says now and fit again; a few measurements at least scale an estimate."""
        self.known = known_from_log(self.log, self.recipe.key, self.conditions)
        complete = {
            d: k for d, k in self.known.items() if k.memory_bytes is not None and all(test in k.ms for test in TESTS)
        }
        if len(complete) >= MIN_MODELS:
            self.recipe = fit_known(
                complete, self.recipe.key, self.conditions, self.recipe.cache_bytes, self.recipe.seconds
            )
        elif self.profile.estimate and complete:
            self.recipe = replace(self.recipe, latency=_scaled(self.recipe.latency, complete.values()))


def _scaled(latency: Mapping[str, LatencyModel], known: Collection[Known]) -> dict[str, LatencyModel]:
    """Multiply each estimated model so that it agrees with what was measured, in the median."""
    result = {}
    for test, model in latency.items():
        factor = statistics.median(k.ms[test] / model.predict_ms(k.architecture) for k in known)
        document = model.to_json()
        document["ms_per_unit"] = {name: factor * value for name, value in document["ms_per_unit"].items()}
        result[test] = LatencyModel.from_json(document, f"scaled estimate of {test}")
    return result


def make_request(space: Space, options: SearchOptions, state: State, band: bool = True) -> SearchRequest:
    """Put together what is searched for; without the band the limits apply to the plain predictions."""
    latency, memory = with_prompt(state.recipe.latency, options.conditions), state.recipe.memory
    energy = state.recipe.energy
    if not band:
        latency = {test: replace(model, band=0.0) for test, model in latency.items()}
        memory = replace(memory, band=0.0)
        energy = replace(energy, band=0.0) if energy else None
    measured = {
        digest: Measured(k.architecture, k.typical_ms, k.memory_bytes, k.energy_mj) for digest, k in state.known.items()
    }
    return SearchRequest(
        space=space,
        score=options.score,
        limits=options.limits,
        latency=latency,
        latency_of=options.conditions.latency_of,
        memory=memory,
        energy=energy,
        recipe=options.conditions.recipe,
        context_length=options.conditions.context_length,
        mode=options.mode,
        seed=options.seed,
        evaluations=options.evaluations or (EVALUATIONS if is_sum(options.score) else PLAIN_EVALUATIONS),
        measured=measured,
    )


def with_prompt(latency: Mapping[str, LatencyModel], conditions: Conditions) -> dict[str, LatencyModel]:
    """Add the model of a prompt of another length: the analytic costs of N tokens at the rates that `pp128` taught."""
    test = conditions.latency_of
    new = test.startswith("pp") and test not in latency
    return {**latency, **({test: replace(latency["pp128"], test=test)} if new else {})}


def latency_of(ms: Mapping[str, float], test: str) -> float | None:
    """Return what was measured of the latency that a limit means, None where some of it was not."""
    parts = [ms.get(part) for part in latency_tests(test)]
    return None if None in parts else sum(part or 0.0 for part in parts)


def verify(
    space: Space, options: SearchOptions, state: State, outcome: SearchOutcome, progress: Progress
) -> tuple[SearchOutcome, dict[str, Any] | None, list[dict[str, Any]]]:
    """Measure the winner until it keeps its limits by the device's own clock.

    Returns:
        The last search, what was measured of its winner, and every round.
    """
    rounds: list[dict[str, Any]] = []
    with (
        opened(find_entry(state.device)) as device,
        progress.task(f"measuring the winner on {state.device}", MAX_ROUNDS) as task,
    ):
        facts = device.facts()
        device.sustained, device.on_note = is_sustained(state.recipe.key), progress.note
        _check_unchanged(state, facts)
        for number in range(MAX_ROUNDS):
            candidate = _next_candidate(space, options, state, outcome)
            if candidate is None:
                break
            known, reason = _measure(device, facts, candidate, options, state)
            rounds.append(_round(candidate, known, options))
            task.update(number + 1)
            if known is None:
                progress.note(f"a measurement does not count: {reason}; trying again")
            outcome = run_search(make_request(space, options, state))
        task.update(MAX_ROUNDS)
    return outcome, measured_json(state.known.get(outcome.winner.architecture.digest)), rounds


def _measure(
    device: Device, facts: Mapping[str, Any], candidate: Candidate, options: SearchOptions, state: State
) -> tuple[Known | None, str | None]:
    """Measure a candidate in fresh processes: twice, and once more where one keeps the limits and one does not.

    Returns:
        What is known of it now, None where nothing valid came, and why not.
    """
    known: Known | None = None
    reason: str | None = None
    for _ in range(MAX_PASSES):
        records = measure_architecture(
            device, facts, candidate.architecture, state.conditions, VERIFY_SECONDS, state.log
        )
        reason = next((r.invalid_reason for r in records if not r.valid), None)
        _adopt_key(state, records)
        state.learn()
        known = state.known.get(candidate.architecture.digest)
        if is_measured(state, candidate) and not _undecided(options, known):
            break
    return known, reason


def _undecided(options: SearchOptions, known: Known | None) -> bool:
    """Say whether some passes keep the latency limit and just as many do not."""
    limit = options.limits.get("latency_ms")
    passes = _passes(known, options.conditions) if known else ()
    kept = sum(limit.admits(ms) for ms in passes) if limit else 0
    return kept > 0 and 2 * kept == len(passes)


def _passes(known: Known, conditions: Conditions) -> tuple[float, ...]:
    """Return what each pass over a model told of the latency that a limit means."""
    parts = (known.passes_ms.get(test, ()) for test in latency_tests(conditions.latency_of))
    return tuple(sum(times) for times in zip(*parts, strict=False))


def _next_candidate(space: Space, options: SearchOptions, state: State, outcome: SearchOutcome) -> Candidate | None:
    """Choose what to measure next: the winner, then what the band forbids but might keep the limit.

    The band makes the model careful. Where the measured winner leaves more than a tenth of a binding
    limit unused, the winner of a search without the band is worth a measurement.
    """
    winner = outcome.winner
    if not is_measured(state, winner):
        return winner
    measured = measured_json(state.known[winner.architecture.digest]) or {}
    values = {
        "latency_ms": measured.get(f"{options.conditions.latency_of}_ms"),
        "memory_bytes": measured["peak_memory_bytes"],
        "energy_mj": measured["energy_mj"],
    }
    binding = [c["name"] for c in outcome.constraints if c["binding"] and c["name"] in values]
    if not any((values[name] or 0) < SLACK * options.limits[name].upper for name in binding):
        return None
    try:
        bold = run_search(make_request(space, options, state, band=False)).winner
    except InfeasibleError:  # the lower end of a range may be out of reach without the band
        return None
    return bold if bold.score > winner.score and not is_measured(state, bold) else None


def is_measured(state: State, candidate: Candidate) -> bool:
    """Say whether the device has told latency, in two passes at least, and memory of a candidate."""
    known = state.known.get(candidate.architecture.digest)
    return known is not None and known.memory_bytes is not None and len(_passes(known, state.conditions)) >= PASSES


def _check_unchanged(state: State, found: Mapping[str, Any]) -> None:
    """Refuse to go on with a profile of what the device no longer is: new records would inform nothing.

    Raises:
        MeasurementError: it names what changed, and how to profile again.
    """
    changed = what_changed(state.recipe.key, found)
    if changed:
        wish, default = state.conditions, DEFAULT_CONDITIONS
        names = ("format", "recipe", "form")
        flags = [f" --{n} {getattr(wish, n)}" for n in names if getattr(wish, n) != getattr(default, n)]
        raise MeasurementError(
            f"{state.device} is not what it was profiled as: {changed}",
            hint=f"profile it again: merino-edge profile {state.device}{''.join(flags)}",
        )


def _adopt_key(state: State, records: list[Measurement]) -> None:
    """Hold a record's key against the profile's; take it where the profile was only an estimate."""
    if records:
        _check_unchanged(state, shared_key(records[0]))
    if records and not state.recipe.key:
        key = {name: getattr(records[0].key, name) for name in SHARED_KEY}
        old = state.recipe
        state.recipe = RecipeProfile(
            old.conditions, key, old.latency, old.memory, old.models, old.seconds, old.cache_bytes
        )


def measured_json(known: Known | None) -> dict[str, Any] | None:
    """Return the `measured` object of the search's document."""
    if known is None:
        return None
    return {
        "tg_ms": known.typical_ms.get("tg"),
        "pp128_ms": known.typical_ms.get("pp128"),
        **{f"{test}_ms": ms for test, ms in known.typical_ms.items()},
        "ttft_ms": latency_of(known.typical_ms, "ttft"),
        "peak_memory_bytes": known.memory_bytes,
        "energy_mj": known.energy_mj,
    }


def _round(candidate: Candidate, known: Known | None, options: SearchOptions) -> dict[str, Any]:
    return {
        "architecture": candidate.architecture.to_json(),
        "predicted": candidate.predicted,
        "measured": measured_json(known),
        "meets": known is not None and _meets(options, known),
    }


def _meets(options: SearchOptions, known: Known) -> bool:
    told = latency_of(known.typical_ms, options.conditions.latency_of)
    values = {"latency_ms": told, "memory_bytes": known.memory_bytes, "energy_mj": known.energy_mj}
    return all(v is None or n not in options.limits or options.limits[n].admits(v) for n, v in values.items())


def keeps(options: SearchOptions, state: State, winner: Candidate) -> bool:
    """Say whether the winner was measured and keeps every limit that the device can tell."""
    limited = any(name in options.limits for name in DEVICE_LIMITS)
    return limited and is_measured(state, winner) and _meets(options, state.known[winner.architecture.digest])


def blind_prediction(winner: Candidate, state: State, rounds: list[dict[str, Any]]) -> dict[str, float | None] | None:
    """Return what was predicted of the winner before anything of it was measured; None where it was known."""
    for entry in rounds:
        if entry["architecture"] == winner.architecture.to_json():
            predicted: dict[str, float | None] = entry["predicted"]
            return predicted
    return None if winner.architecture.digest in state.known else winner.predicted
