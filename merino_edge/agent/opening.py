"""Opening a laid-out bundle with the runtime that its manifest names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merino_edge.agent.errors import AgentError
from merino_edge.agent.session import Session
from merino_edge.agent.session_onnx import OnnxSession
from merino_edge.agent.session_tflite import TfliteSession
from merino_edge.agent.session_unrolled import UnrolledSession

FORMATS = ("onnx", "tflite")


def open_session(folder: Path, manifest: dict[str, Any], threads: int) -> Session:
    """Open a laid-out bundle with the runtime its manifest names."""
    kind = manifest.get("format")
    if kind not in FORMATS:
        raise AgentError("request", f"this agent cannot run format {kind}, only {' and '.join(FORMATS)}")
    graph = [str(f["name"]) for f in manifest["files"] if str(f["name"]).endswith("." + kind)]
    if len(graph) != 1:
        raise AgentError("request", f"the manifest must name one .{kind} file")
    if kind == "tflite":
        return TfliteSession(folder / graph[0], threads, str(manifest.get("runtime")))
    if manifest.get("form") == "unrolled":
        on_gpu = str(manifest.get("recipe")).endswith("fp16")  # int8 products would go back to the host
        return UnrolledSession(folder / graph[0], threads, on_gpu)
    return OnnxSession(folder / graph[0], threads)
