"""`search`: the best architecture under limits, then the device's own clock until the winner keeps them.

The latency model proposes, the device disposes: the winner is exported with random weights, measured,
and the model is fitted again with what was measured, until the winner's measured numbers meet the
limits or the rounds are spent.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from merino_edge.errors import InfeasibleError, InvalidFileError, UsageError
from merino_edge.files import write_atomic, write_lines
from merino_edge.flows.conditions import DEFAULT_SPACE
from merino_edge.flows.devices import board_of, find_entry, is_unregistered_board, select_device
from merino_edge.flows.export import find_exporter
from merino_edge.flows.profile_file import estimated_profile, read_profile
from merino_edge.flows.search_state import State
from merino_edge.flows.verify import (
    DEVICE_LIMITS,
    SearchOptions,
    blind_prediction,
    keeps,
    make_request,
    unused_reason,
    unverified_reason,
    verify,
    with_prompt,
)
from merino_edge.measurement import read_measurements
from merino_edge.progress import SILENT, Progress
from merino_edge.run import Run, check_run_name, create_run, list_runs
from merino_edge.search.cost import matrix_bytes, recipe_block, table_block
from merino_edge.search.engine import Candidate, SearchOutcome, takes_time
from merino_edge.search.engine import search as run_search
from merino_edge.search.multisets import classes_of
from merino_edge.search.regime import STUDIED_TOKENS, STUDY_BETA, expected_loss, is_studied, study_beta
from merino_edge.search.scores import is_sum, score_cost
from merino_edge.search.space import Space, load_space
from merino_edge.units import format_count, format_ms

LARGE = 5_000_000  # architectures: a search of so many shows how far it is


def search(options: SearchOptions, progress: Progress = SILENT) -> dict[str, Any]:
    """Search, verify, and write the run.

    Returns:
        The document of `merino-edge search --json`.

    Raises:
        InfeasibleError: nothing meets the limits; the binding one and the nearest candidate are named.
    """
    started = time.monotonic()
    if options.run is not None:
        check_run_name(options.run)
    name = select_device(options.device, None, progress)
    space = load_space(options.space or _usual_space(options), options.vocab_size)
    space = space.with_embedding_skip(options.embedding_skip)
    options = replace(options, conditions=options.conditions.with_(vocab_size=space.vocab_size))
    state = _open_state(name, options)
    progress.note(options.conditions.sentence(name, " or ".join(map(str, space.vocab_sizes))))
    options = _with_study_beta(space, options, progress)
    find_exporter(options.conditions.format)
    cost = score_cost(options.score)
    if cost is not None:
        progress.note(
            f"score {options.score.name} is no sum over blocks, the search by it not exact; each costs {cost}"
        )
    space = _exportable(space, options.conditions.recipe, progress)
    if state.profile.estimate and any(limit in options.limits for limit in DEVICE_LIMITS):
        progress.note(f"{name} was never profiled: every latency and memory below is an estimate (merino-edge profile)")
    _refuse_energy(options, state)
    outcome = first = _first_search(space, options, state, progress)
    rounds: list[dict[str, Any]] = []
    measured: dict[str, Any] | None = None
    if _must_verify(options, name):
        outcome, measured, rounds = verify(space, options, state, outcome, progress)
    document = _document(name, options, space, state, outcome, first, measured, rounds)
    document["seconds"]["total"] = time.monotonic() - started
    run = _write_run(options, name, outcome, document, state)
    return {**document, "run": run.name}


def _usual_space(options: SearchOptions) -> str:
    """Return the default space; the poster's where architectures come one by one, which takes a number of blocks."""
    return DEFAULT_SPACE if options.mode != "evolution" and is_sum(options.score) else "poster"


def _with_study_beta(space: Space, options: SearchOptions, progress: Progress) -> SearchOptions:
    """Give the entropy the beta that belongs to the training budget, and say how far it is to be trusted."""
    if not options.study_beta or options.score.name != "entropy":
        return options
    beta, tokens = study_beta(space), options.conditions.train_tokens
    low, high = (f"{count / 1e6:.0f}" for count in STUDIED_TOKENS)
    why = "" if beta == STUDY_BETA else f" (no more keeps gamma below 1 throughout space {space.name})"
    progress.note(
        f"beta {beta:g}{why}: fitted to models of {low} to {high} M training tokens, between which it did not move"
        + ("" if is_studied(tokens) else f"; for {format_count(tokens)} tokens that is an extrapolation")
    )
    return replace(options, score=replace(options.score, beta=beta))


def _exportable(space: Space, recipe: str, progress: Progress) -> Space:
    """Leave out what the recipe cannot be written for."""
    matrix_bytes(recipe)  # an unknown recipe is told before anything else
    block, of_table = recipe_block(recipe), table_block(recipe)
    result = space.aligned(block, of_table) if max(block, of_table) > 1 else space
    if result.size < space.size:
        what = "matrices" if block > 1 else "an embedding width"
        number = max(block, of_table)
        progress.note(
            f"{recipe} needs {what} that {number} divides: {result.size:,} of {space.size:,} architectures are left"
        )
    return result


def _first_search(space: Space, options: SearchOptions, state: State, progress: Progress) -> SearchOutcome:
    """Search before anything is measured; what only an estimate calls impossible may yet be possible."""
    request = make_request(space, options, state)
    try:
        if (space.size < LARGE or classes_of(space).are_few) and not takes_time(request):
            return run_search(request)
        with progress.task(f"searching {space.size:,} architectures", 1.0) as task:
            return run_search(replace(request, progress=task.update))
    except InfeasibleError as error:
        if state.profile.estimate and error.details.get("binding") in DEVICE_LIMITS:
            host = " --host USER@ADDRESS" if is_unregistered_board(state.device) else ""
            error.hint = f"that is an estimate; measure the device first: merino-edge profile {state.device}{host}"
        raise


def _open_state(name: str, options: SearchOptions) -> State:
    """Read the profile; the shipped estimate stands in where there is none."""
    conditions = options.conditions
    profile = None if is_unregistered_board(name) else read_profile(find_entry(name).name)
    recipe = profile.recipe(conditions) if profile else None
    if profile is not None and recipe is None:
        raise UsageError(
            f"{name} was profiled with {', '.join(profile.recipes)}, not with {conditions.format} {conditions.recipe}",
            hint=f"merino-edge profile {name} --format {conditions.format} --recipe {conditions.recipe}",
        )
    if profile is None and conditions.percentile != 50:
        raise UsageError(
            f"{name} was never profiled, and an estimate knows no percentile but the median",
            hint=f"merino-edge profile {name}",
        )
    if profile is None or recipe is None:
        profile = estimated_profile(name, board_of(name), conditions)
        recipe = profile.recipe(conditions)
        assert recipe is not None
    for what in ("depth", "context_length", "threads"):
        have, want = getattr(recipe.conditions, what), getattr(conditions, what)
        if have != want:
            flag = {"context_length": "context"}.get(what, what)
            raise UsageError(
                f"{name} was profiled with {what} {have}, the search asks for {want}",
                hint=f"merino-edge profile {name} --{flag} {want}",
            )
    state = State(name, conditions, profile, recipe, {})
    if recipe.key:
        state.learn()
    return state


def _refuse_energy(options: SearchOptions, state: State) -> None:
    """Refuse a limit on energy where nothing tells it: no sensor, or no profile that read one."""
    if "energy_mj" in options.limits and state.recipe.energy is None:
        reason = board_of(state.device).sensors.energy_reason
        hint = "leave --energy out" if reason else f"leave --energy out, or: merino-edge profile {state.device}"
        raise UsageError(
            f"--energy cannot be held on {state.device}: {reason or 'its energy was not profiled'}", hint=hint
        )


def _must_verify(options: SearchOptions, name: str) -> bool:
    wanted = options.verify and any(limit in options.limits for limit in DEVICE_LIMITS)
    return wanted and not is_unregistered_board(name)


def _document(
    name: str,
    options: SearchOptions,
    space: Space,
    state: State,
    outcome: SearchOutcome,
    first: SearchOutcome,
    measured: dict[str, Any] | None,
    rounds: list[dict[str, Any]],
) -> dict[str, Any]:
    winner = outcome.winner
    loss = expected_loss(winner.architecture, options.conditions.train_tokens)
    return {
        "device": name,
        "estimate": state.profile.estimate,
        "mode": outcome.mode,
        "space": outcome.space,
        "space_size": outcome.space_size,
        "evaluated": outcome.evaluated,
        "feasible": outcome.feasible,
        "seconds": {"score": first.seconds["score"], "search": first.seconds["search"], "total": 0.0},
        "architecture": winner.architecture.to_json(),
        "architecture_digest": winner.architecture.digest,
        "score": winner.score,
        "terms": winner.terms,
        "class_size": winner.class_size,
        "parameters": winner.parameters,
        "executed_parameters": winner.architecture.executed_parameters,
        "flops": winner.flops,
        "flops_with_head": winner.flops_with_head,
        "predicted": {**winner.predicted, "file_bytes": winner.file_bytes},
        "predicted_blind": blind_prediction(winner, state, rounds),
        "measured": measured,
        "rounds": rounds,
        "verified": keeps(options, state, winner),
        "unverified_reason": unverified_reason(options, state, winner, rounds),
        "core_distance_ns": state.core_distance_ns,
        "elsewhere": None if state.elsewhere is None else dict(zip(("ratio", "models"), state.elsewhere, strict=True)),
        "repeatability": {name: found.to_json() for name, found in state.repeats.items()},
        "unused_reason": unused_reason(options, state, outcome, rounds),
        "constraints": [dict(c) if isinstance(c, Mapping) else asdict(c) for c in outcome.constraints],
        "sensitivity": [dict(s) if isinstance(s, Mapping) else asdict(s) for s in outcome.sensitivity],
        "runners_up": [_brief(c) for c in outcome.runners_up],
        "front_size": len(outcome.front),
        "outside_domain": outcome.outside_domain,
        "expected_loss": loss.to_json() if loss else None,
        "latency_model": {test: model.accuracy for test, model in state.recipe.latency.items()},
        "known_models": len(state.known),
        "predictor": _predictor(options, state),
        "prediction_checks": _prediction_checks(name, state),
        "conditions": options.conditions.with_(vocab_size=winner.architecture.vocab_size).to_json(),
        "score_options": asdict(options.score),
        "seed": options.seed,
        "limits": {key: asdict(limit) for key, limit in options.limits.items()},
    }


def _predictor(options: SearchOptions, state: State) -> dict[str, Any]:
    """Return the models that predicted, so that a run explains its numbers wherever it is read."""
    latency = with_prompt(state.recipe.latency, options.conditions)
    return {
        "key": dict(state.recipe.key),
        "latency": {test: model.to_json() for test, model in latency.items()},
        "memory": state.recipe.memory.to_json(),
    }


def _brief(candidate: Candidate) -> dict[str, Any]:
    return {
        "architecture": candidate.architecture.to_json(),
        "score": candidate.score,
        "parameters": candidate.parameters,
        "flops": candidate.flops,
        "predicted": candidate.predicted,
    }


def _prediction_checks(name: str, state: State) -> list[dict[str, Any]]:
    """Hold what earlier runs predicted of their winners, before measuring them, against what was measured since."""
    checks = []
    for run in list_runs():
        try:
            found = run.search() or {}
        except InvalidFileError:
            continue  # that run's own commands will say so
        if found.get("device") != name or not found.get("predicted_blind"):
            continue
        known = state.known.get(str(found.get("architecture_digest")))
        for test, ms in known.ms.items() if known else ():
            predicted = found["predicted_blind"].get(f"{test}_ms")
            if predicted:
                checks.append(
                    {
                        "run": run.name,
                        "test": test,
                        "estimate": bool(found.get("estimate")),
                        "predicted_ms": predicted,
                        "measured_ms": ms,
                        "error_percent": 100 * (predicted - ms) / ms,
                    }
                )
    return checks


def _write_run(
    options: SearchOptions, name: str, outcome: SearchOutcome, document: Mapping[str, Any], state: State
) -> Run:
    run = create_run(options.run, name)
    run.set_architecture(outcome.winner.architecture)
    write_atomic(run.pareto_file, pareto_csv(outcome.front))
    _keep_records(run, state)
    run.write_search({**document, "run": run.name})
    return run


def _keep_records(run: Run, state: State) -> None:
    """Keep a copy of the measurements this search used, so that the run explains itself elsewhere."""
    used = [r.to_json() for r in read_measurements(state.log) if r.key.architecture_digest in state.known]
    write_lines(run.measurements_file, used)


def pareto_csv(front: Iterable[Candidate]) -> str:
    """Write the non-dominated architectures as CSV, best score first."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        [
            "score",
            "tg_ms",
            "tg_ms_upper",
            "pp128_ms",
            "memory_bytes",
            "file_bytes",
            "parameters",
            "flops",
            "architecture",
        ]
    )
    predicted = ("tg_ms", "tg_ms_upper", "pp128_ms", "memory_bytes")
    for c in sorted(front, key=lambda c: -c.score):
        p = c.predicted
        writer.writerow(
            [
                c.score,
                *(p.get(name) for name in predicted),
                c.file_bytes,
                c.parameters,
                c.flops,
                c.architecture.describe(),
            ]
        )
    return stream.getvalue()


def limit_lines(document: Mapping[str, Any]) -> list[str]:
    """Say in words which limit binds, or that none does."""
    given = document["constraints"]
    if not given:
        return ["no limit was given: this is the best of the whole space"]
    lines = [f"{c['name']} binds: {c['value']:g} of {c['limit']:g}" for c in given if c["binding"]]
    lines += [f"{c['name']} binds: {c['value']:g} of at least {c['lower']:g}" for c in given if c.get("lower_binding")]
    if not lines:
        more = "; --space free has more layers" if document["space"] == "poster" else ""
        found = f"nothing in space {document['space']} scores better"
        alone = "" if len(given) == 1 else " with one of them raised"
        lines = [f"no limit binds: {found}{alone}{more}"]
    return lines


def repeatability_lines(document: Mapping[str, Any]) -> list[str]:
    """Say in words what room a limit leaves for a fresh process, where the winner was held against one."""
    words = {"latency_ms": "slower", "memory_bytes": "larger"}
    lines = []
    for name, found in document["repeatability"].items():
        if document["measured"] is None or name not in document["limits"] or not found["repeats"]:
            continue
        share, repeats = f"{100 * found['coverage']:.0f} %", found["repeats"]
        line = f"a fresh process comes out up to {100 * found['margin']:.1f} % {words[name]} ({share} of {repeats}"
        line += " repeats), and the limit is kept with that" if document["verified"] else " repeats)"
        if not found["enough"]:
            line += "; the machine is disturbed: more is not left room for, a later measurement may pass the limit"
        lines.append(line)
    other = document["elsewhere"]
    if other is not None and document["measured"] is not None and "latency_ms" in document["limits"]:
        lines.append(
            f"the host moves this virtual machine's processors: elsewhere than {document['core_distance_ns']:.0f} ns "
            f"apart {other['models']} models take {other['ratio']:.2f} times as long in the median"
        )
    return lines + ([document["unused_reason"]] if document["unused_reason"] else [])


def describe_check(check: Mapping[str, Any]) -> str:
    """Say in words how far a prediction was off."""
    return (
        f"{check['run']}: {check['test']} predicted {format_ms(check['predicted_ms'])}, "
        f"measured {format_ms(check['measured_ms'])}: {check['error_percent']:+.1f} %"
    )
