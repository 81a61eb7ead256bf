"""Where recorded results go: `bench/results/NAME.json`, with what is needed to read them later."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from merino_edge.files import write_json

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "scipy", "onnx", "onnx-ir", "onnxruntime", "ai-edge-litert", "torch", "transformers", "tokenizers")


def write_result(name: str, result: Mapping[str, Any]) -> Path:
    """Write a result with commit, versions, machine and date; return its path."""
    path = RESULTS / f"{name}.json"
    about = {"commit": commit(), "versions": versions(), "machine": machine()}
    write_json(path, {"date": datetime.now(UTC).isoformat(timespec="seconds"), **about, "result": dict(result)})
    return path


def of_case(name: str, threads: int | None, space: str) -> str:
    """Return the name of a record: one of its own where threads were asked for, and for a space but the poster's."""
    return name + ("" if threads is None else f"_{threads}_thread") + ("" if space == "poster" else f"_{space}")


def commit() -> str:
    """Return the commit of this tree; with `+` where files differ from it."""
    here = Path(__file__).parent.parent
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True)
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True)
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else "unknown"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages whose version matters, where installed."""
    found = {"python": platform.python_version(), "merino-edge": metadata.version("merino-edge")}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return processor, cores, memory and load of this machine."""
    import psutil

    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:  # not Linux
        pass
    return {
        "processor": model,
        "cores": psutil.cpu_count(logical=True),
        "memory_bytes": psutil.virtual_memory().total,
        "load_1min": round(psutil.getloadavg()[0], 2),
        "system": platform.system(),
    }
