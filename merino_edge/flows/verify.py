"""The measuring loop of a search: the model proposes, the device disposes.

The winner is exported with random weights and measured, and the models are fitted again with what was
measured, until the winner's measured numbers keep the limits or the rounds are spent. They keep a limit
with the room that the device's own repeatability asks for (`repeatability.py`): what counts is not what a
few processes showed within seconds of each other, but what a fresh one may show later. So a winner near a
limit is measured in more processes, spread over the verification by measuring a profiled model between them.
Nothing is measured twice: every record lies in the device's log, and whose turn it is follows from it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from merino_edge.architecture import Architecture
from merino_edge.device.client import Device
from merino_edge.errors import InfeasibleError, MeasurementError
from merino_edge.flows.conditions import DEFAULT_CONDITIONS, Conditions
from merino_edge.flows.devices import find_entry, opened
from merino_edge.flows.measuring import (
    PASSES,
    SHARED_KEY,
    Known,
    is_sustained,
    measure_architecture,
    shared_key,
    what_changed,
)
from merino_edge.flows.profile_file import RecipeProfile
from merino_edge.flows.repeatability import DISTURBED, passes_of
from merino_edge.flows.search_state import State
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
VERIFY_SECONDS = 2.0  # of timing in one pass
CONFIRMED = 5  # passes of a winner near a limit
VERIFY_MOST_S = 120.0  # after that no further measurement begins
MAX_INVALID = 3  # measurements in one round that do not count
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
        space: Name or TOML file; None for the default, or for the poster's where architectures come one by one.
        vocab_size: The one vocabulary size, instead of the space's choices.
        embedding_skip: As `Space.with_embedding_skip` takes it.
        score: Which score, with its parameters.
        study_beta: The entropy's beta is what the study fitted, within the space's domain, not the one in `score`.
        mode: `auto`, `exact`, `dp`, `evolution`, `dp+evolution`.
        seed: Of the evolutionary search.
        evaluations: How many architectures that one may look at; None for the score's usual number.
        run: Name of the run to write.
        verify: Measure the winner on the device.
    """

    device: str | None = None
    limits: Mapping[str, Limit] = field(default_factory=dict)
    conditions: Conditions = DEFAULT_CONDITIONS
    space: str | None = None
    vocab_size: int | None = None
    embedding_skip: bool | None = None
    score: ScoreOptions = field(default_factory=lambda: ScoreOptions(DEFAULT_SCORE))
    study_beta: bool = False
    mode: str = "auto"
    seed: int = 0
    evaluations: int | None = None
    run: str | None = None
    verify: bool = True


def make_request(space: Space, options: SearchOptions, state: State, band: bool = True) -> SearchRequest:
    """Put together what is searched for; without the band only the device's repeatability is left room for."""
    latency, memory = with_prompt(state.recipe.latency, options.conditions), state.recipe.memory
    energy = state.recipe.energy
    choose = max if band else min
    latency = {t: replace(model, band=choose(model.band, state.room("latency_ms"))) for t, model in latency.items()}
    memory = replace(memory, band=choose(memory.band, state.room("memory_bytes")))
    if energy and not band:
        energy = replace(energy, band=0.0)
    measured = {d: _measured(known, options, state) for d, known in state.known.items() if state.is_measured(d)}
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


def _measured(known: Known, options: SearchOptions, state: State) -> Measured:
    """Return what a search is to take for measured: the medians, raised where a fresh process may break a limit."""
    seen = state.seen(known, options.limits)
    told = latency_of(known.ms, state.conditions.latency_of)
    raised = seen["latency_ms"] / told if told else 1.0
    ms = {test: value * raised for test, value in known.ms.items()}
    return Measured(known.architecture, ms, seen.get("memory_bytes"), seen.get("energy_mj"))


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
    state.deadline = time.monotonic() + VERIFY_MOST_S
    with (
        opened(find_entry(state.device)) as device,
        progress.task(f"measuring the winner on {state.device}", MAX_ROUNDS) as task,
    ):
        facts = device.facts(core_distance=True)
        device.sustained, device.on_note = is_sustained(state.recipe.key), progress.note
        _check_unchanged(state, facts)
        if state.stand_at(facts.get("core_distance_ns")):
            progress.note(
                f"the host of {state.device} has its processors elsewhere than usual: searching by what was measured "
                f"there ({state.core_distance_ns:.1f} ns for a cache line that two cores write)"
            )
            outcome = run_search(make_request(space, options, state))
        for number in range(MAX_ROUNDS):
            candidate = _next_candidate(space, options, state, outcome)
            if candidate is None or state.is_late:
                break
            known, reason = _measure(device, facts, candidate, options, state)
            rounds.append(_round(candidate, known, options, state, reason))
            task.update(number + 1)
            if known is None:
                progress.note(f"a measurement does not count: {reason}; trying again")
            outcome = run_search(make_request(space, options, state))
        task.update(MAX_ROUNDS)
    return outcome, measured_json(state.known.get(outcome.winner.architecture.digest)), rounds


def _measure(
    device: Device, facts: Mapping[str, Any], candidate: Candidate, options: SearchOptions, state: State
) -> tuple[Known | None, str | None]:
    """Measure a candidate in fresh processes until it is settled whether it keeps the limits.

    Returns:
        What is known of it now, None where nothing valid came, and why not.
    """
    reason, invalid = None, 0
    while invalid < MAX_INVALID and not state.is_late and not is_settled(options, state, candidate):
        architecture = _whose_turn(state, candidate)
        device.core_distance_ns = state.core_distance_ns
        records = measure_architecture(device, facts, architecture, state.conditions, VERIFY_SECONDS, state.log)
        reason = next((r.invalid_reason for r in records if not r.valid), None)
        invalid += reason is not None
        _adopt_key(state, records)
        state.learn()
    return state.known.get(candidate.architecture.digest), reason


def _whose_turn(state: State, candidate: Candidate) -> Architecture:
    """Choose what is measured next: the candidate, and between its later passes a profiled model.

    That one spreads the candidate's passes over time, and tells how the device repeats what it showed long before.
    """
    digest, conditions = candidate.architecture.digest, state.conditions
    mine = state.known.get(digest)
    told = latency_of(mine.ms, conditions.latency_of) if mine else None
    others = [k for d, k in state.known.items() if d != digest and len(passes_of(k, conditions)) >= PASSES]
    if not state.is_measured(digest) or state.newest != digest or not told or not others:
        return candidate.architecture

    def far(known: Known) -> tuple[int, float]:
        passes = passes_of(known, conditions)
        return len(passes), abs(math.log(statistics.median(passes) / told))

    return min(others, key=far).architecture


def is_settled(options: SearchOptions, state: State, candidate: Candidate) -> bool:
    """Say whether a candidate was measured often enough.

    Twice; once more where some passes keep the latency limit and just as many do not; and `CONFIRMED` times where it
    keeps the limits, but by less than the most that processes of one model may lie apart, or where all passes were so
    much slower than predicted that rather the machine was disturbed for a while.
    """
    if not state.is_measured(candidate.architecture.digest):
        return False
    known = state.known[candidate.architecture.digest]
    passes, limit = passes_of(known, state.conditions), options.limits.get("latency_ms")
    if len(passes) >= CONFIRMED:
        return True
    if not _meets(options, state, known):
        kept = sum(limit.admits(ms) for ms in passes) if limit else 0
        expected = candidate.predicted.get(f"{options.conditions.latency_of}_ms_upper") or math.inf
        return min(passes) <= (1.0 + DISTURBED) * expected and (kept == 0 or 2 * kept != len(passes))
    worst = {**state.seen(known, options.limits), "latency_ms": max(passes)}
    room = {name: 1.0 + max(DISTURBED, state.room(name)) for name in worst}
    return all(value * room[n] <= options.limits[n].upper for n, value in worst.items() if n in options.limits)


def _next_candidate(space: Space, options: SearchOptions, state: State, outcome: SearchOutcome) -> Candidate | None:
    """Choose what to measure next: the winner, then what the band forbids but might keep the limit.

    The band makes the model careful. Where the measured winner leaves more than a tenth of a binding
    limit unused, the winner of a search without the band is worth a measurement.
    """
    winner = outcome.winner
    if not is_settled(options, state, winner):
        return winner
    if not _left_unused(options, state, outcome):
        return None
    try:
        bold = run_search(make_request(space, options, state, band=False)).winner
    except InfeasibleError:  # the lower end of a range may be out of reach without the band
        return None
    return bold if bold.score > winner.score and not is_settled(options, state, bold) else None


def _left_unused(options: SearchOptions, state: State, outcome: SearchOutcome) -> list[str]:
    """Return the binding limits of which the measured winner leaves more than a tenth unused."""
    known = state.known.get(outcome.winner.architecture.digest)
    values = state.seen(known, options.limits) if known else {}
    binding = [c["name"] for c in outcome.constraints if c["binding"]]
    return [name for name in binding if name in values and values[name] < SLACK * options.limits[name].upper]


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
        "tg_ms": known.ms.get("tg"),
        "pp128_ms": known.ms.get("pp128"),
        **{f"{test}_ms": ms for test, ms in known.ms.items()},
        "ttft_ms": latency_of(known.ms, "ttft"),
        "peak_memory_bytes": known.memory_bytes,
        "energy_mj": known.energy_mj,
    }


def _round(
    candidate: Candidate, known: Known | None, options: SearchOptions, state: State, reason: str | None
) -> dict[str, Any]:
    return {
        "architecture": candidate.architecture.to_json(),
        "predicted": candidate.predicted,
        "measured": measured_json(known),
        "passes_ms": list(passes_of(known, state.conditions)) if known else [],
        "meets": known is not None and _meets(options, state, known),
        "invalid_reason": reason,
    }


def _meets(options: SearchOptions, state: State, known: Known) -> bool:
    seen = state.seen(known, options.limits)
    return all(options.limits[name].admits(value) for name, value in seen.items() if name in options.limits)


def keeps(options: SearchOptions, state: State, winner: Candidate) -> bool:
    """Say whether the winner was measured often enough and keeps every limit that the device can tell."""
    limited = any(name in options.limits for name in DEVICE_LIMITS)
    known = state.known.get(winner.architecture.digest)
    return limited and known is not None and is_settled(options, state, winner) and _meets(options, state, known)


def unverified_reason(
    options: SearchOptions, state: State, winner: Candidate, rounds: list[dict[str, Any]]
) -> str | None:
    """Say why a search that measured ended without a winner that keeps its limits; None where it has one."""
    if not rounds or keeps(options, state, winner):
        return None
    go_on = "the same command goes on from what was measured"
    if rounds[-1]["invalid_reason"]:
        return f"the last measurement does not count: {rounds[-1]['invalid_reason']}; {go_on}"
    if state.is_late:
        return f"the {VERIFY_MOST_S:.0f} s for measuring are spent; {go_on}"
    return f"{len(rounds)} candidates were measured, more are not tried at once; {go_on}"


def unused_reason(
    options: SearchOptions, state: State, outcome: SearchOutcome, rounds: list[dict[str, Any]]
) -> str | None:
    """Say why more than a tenth of a binding limit is left unused; None where it is not, or nothing was measured."""
    names = _left_unused(options, state, outcome)
    if not names:
        return None
    if len(rounds) >= MAX_ROUNDS or state.is_late:
        late = f" in {VERIFY_MOST_S:.0f} s" if len(rounds) < MAX_ROUNDS else ""
        return f"more than a tenth of {names[0]} is left: {len(rounds)} measured{late}, more are not tried"
    room = 100 * state.room(names[0])
    return (
        f"more than a tenth of {names[0]} is left: no architecture of a better score keeps it "
        f"with the {room:.1f} % that the device's repeatability asks for"
    )


def blind_prediction(winner: Candidate, state: State, rounds: list[dict[str, Any]]) -> dict[str, float | None] | None:
    """Return what was predicted of the winner before anything of it was measured; None where it was known."""
    for entry in rounds:
        if entry["architecture"] == winner.architecture.to_json():
            predicted: dict[str, float | None] = entry["predicted"]
            return predicted
    return None if winner.architecture.digest in state.known else winner.predicted
