"""`hf:NAME` in `bench`: a model of transformers in torch on this machine's processor, a fresh process each time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from merino_edge.agent import facts
from merino_edge.device.client import TestResult, TestSpec
from merino_edge.device.records import clean_text, read_results
from merino_edge.device.registry import LOCAL
from merino_edge.errors import DataError, MerinoEdgeError, UsageError
from merino_edge.flows.bench_quality import Text, quality
from merino_edge.flows.bench_rows import NO_QUALITY, machine, resident_share, timing

KINDS: dict[str, type[MerinoEdgeError]] = {"usage": UsageError, "data": DataError}


def measure_hub(
    hub: str,
    tests: Sequence[TestSpec],
    threads: int | None,
    context_length: int | None,
    budget_s: float,
    text: str | None = None,
) -> tuple[list[TestResult], dict[str, Any]]:
    """Time a model in a fresh process.

    Args:
        hub: A name on the hub, or a folder.
        tests: One result each.
        threads: None for all performance cores.
        context_length: Tokens the cache is filled to for the memory reading; None for the model's.
        budget_s: For all tests together.
        text: Scored too, where there is one.

    Returns:
        The results, and all that the process answered.

    Raises:
        MerinoEdgeError: torch or transformers is not installed, there is no such model, or the process died.
    """
    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            raise MerinoEdgeError(
                f"hf:{hub} needs the package '{package}', which is not installed",
                hint="pip install 'merino-edge[train]'",
            )
    request = {
        "hub": hub,
        "tests": [asdict(spec) for spec in tests],
        "threads": threads,
        "context_length": context_length,
        "budget_s": budget_s / len(tests),
        "text": text,
    }
    answer = _ask_child(hub, request)
    if "error" in answer:
        error = answer["error"]
        raise KINDS.get(error["kind"], MerinoEdgeError)(error["message"], hint=error["hint"])
    return read_results(answer, tuple(tests)), answer


def _ask_child(hub: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Start `torch_child.py` and return what it wrote."""
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with tempfile.TemporaryDirectory(prefix="merino-edge-") as folder:
        target = Path(folder) / "answer.json"
        done = subprocess.run(
            [sys.executable, "-m", "merino_edge.flows.torch_child", json.dumps(request), str(target)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, **quiet},
        )
        if done.returncode != 0 or not target.is_file():
            last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
            raise MerinoEdgeError(f"hf:{hub} could not be measured in torch: {clean_text(last, 300)}")
        answer: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    return answer


def hub_row(name: str, result: TestResult, answer: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of one test, with the columns of a bundle's.

    Args:
        name: What a table calls the model.
        result: Of the test.
        answer: Of the process.
        found: Perplexity, where a text was scored.
    """
    unique_bytes = 4 * int(answer["parameters"])
    here = _facts_here()
    return {
        "device": LOCAL,
        "model": name,
        "format": "torch",
        "recipe": "fp32",
        "form": "eager",
        **timing(result),
        "file_bytes": answer["file_bytes"],
        "unique_bytes": unique_bytes,
        "executed_fp32_bytes": None,
        "sharing_disk": answer["file_bytes"] / unique_bytes if answer["file_bytes"] else None,
        "sharing_ram": resident_share(result, unique_bytes),
        "context_length": answer["context_length"],
        "trained": answer["trained"],
        "exporter_version": None,
        "architecture_digest": None,
        **machine(here["power_mode"], here),
        **NO_QUALITY,
        **found,
        "samples_ns": list(result.samples_ns),
    }


@cache
def _facts_here() -> dict[str, Any]:
    """Return what this machine is; it stays what it is while rows are made."""
    return facts.gather(facts.Machine.here())


def torch_rows(
    hub: str, name: str, tests: Sequence[TestSpec], threads: int | None, seconds: float, text: Text | None
) -> list[dict[str, Any]]:
    """Return the rows of a model of transformers; see `measure_hub`."""
    scored = text.text if text is not None else None
    results, answer = measure_hub(hub, tests, threads, None, seconds, scored)
    found: dict[str, Any] = {}
    if answer["quality"] and text is not None:
        told = answer["quality"]
        found = quality(told["nats"], told["tokens"], float(text.bytes), name, text.name)
    return [hub_row(name, result, answer, found) for result in results]
