"""Opening a laid-out bundle with the runtime that its manifest names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merino_edge.agent.errors import AgentError
from merino_edge.agent.session import Session
from merino_edge.agent.session_onnx import OnnxSession


def open_session(folder: Path, manifest: dict[str, Any], threads: int) -> Session:
    """Open a laid-out bundle with the runtime its manifest names."""
    if manifest.get("format") != "onnx":
        raise AgentError("request", f"this agent cannot run format {manifest.get('format')}")
    graph = [str(f["name"]) for f in manifest["files"] if str(f["name"]).endswith(".onnx")]
    if len(graph) != 1:
        raise AgentError("request", "the manifest must name one .onnx file")
    return OnnxSession(folder / graph[0], threads)
