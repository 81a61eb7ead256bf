"""A process of its own that times a model of transformers in torch, as the agent's child times exported files.

Started by `bench_torch.py`: takes its request as JSON, and writes its answer into a file, whatever
libraries print meanwhile.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, cast

from merino_edge.agent import conditions, facts, measure, watch
from merino_edge.agent.facts import Machine
from merino_edge.agent.session import Session
from merino_edge.errors import DataError, MerinoEdgeError, UsageError
from merino_edge.training.hub_session import VERSIONS, HubSession


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Load a model and run its tests: the answer of the agent's child, and what the model is besides."""
    machine = Machine.here()
    threads = request["threads"] or len(facts.performance_cores(machine))
    empty = measure.memory_bytes()
    begin = time.perf_counter_ns()
    session = HubSession(request["hub"], threads)
    load_ns = time.perf_counter_ns() - begin
    loaded = measure.memory_bytes()

    queued = conditions.queued_per_thread(threads)
    timer = measure.Timer(
        cast("Session", session), request["budget_s"], lambda share: None, lambda: None, queued, seed=0
    )
    most = max(test["tokens"] + test["depth"] for test in request["tests"])
    if most > session.context_length:
        raise UsageError(
            f"hf:{request['hub']} reads {session.context_length} tokens, a test needs {most}",
            hint="name shorter ones with --test",
        )
    context = min(request["context_length"] or session.context_length, session.context_length)
    timer.fill(context)
    full = measure.memory_bytes()
    tests = [_one_test(timer, machine, test) for test in request["tests"]]
    return {
        **VERSIONS,
        "provider": session.provider,
        "threads": threads,
        "load_ns": load_ns,
        **measure.process_memory(empty, loaded, full),
        "tests": tests,
        "trained": session.trained,
        "parameters": session.parameters,
        "file_bytes": session.file_bytes,
        "context_length": context,
        "quality": _quality(session, request["text"], context) if request["text"] and session.trained else None,
    }


def _one_test(timer: measure.Timer, machine: Machine, test: dict[str, Any]) -> dict[str, Any]:
    watching = watch.Watch(machine)
    timer.between = watching.between
    timed = timer.run(test["test"], test["tokens"], test["depth"], test["warmup"], test["repeats"])
    reason, seen = watching.reason(timed.queued_share, sustained=False)
    return {
        "samples_ns": timed.samples,
        "warmup_ns": timed.warmup,
        "conditions": {**seen, "disturbed_ns": timed.set_aside},
        "invalid_reason": reason,
        "energy_mj": None,
        "energy_reason": "not measured in torch",
    }


def _quality(session: HubSession, text: str, context: int) -> dict[str, Any]:
    ids = session.encode(text)
    if len(ids) < 2:
        raise DataError("the text of --text is shorter than two tokens", hint="name a longer one")
    nats, scored = measure.negative_log_likelihood(cast("Session", session), ids, context, lambda done: None)
    return {"nats": nats, "tokens": scored}


def main(request: str, target: str) -> int:
    """Answer a request, or say in the same file what is wrong with it."""
    try:
        found = answer(json.loads(request))
    except MerinoEdgeError as error:
        found = {"error": {"kind": error.kind, "message": error.message, "hint": error.hint}}
    Path(target).write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
