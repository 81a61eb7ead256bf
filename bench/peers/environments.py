"""One virtual environment for each peer, made here with the versions named here.

They lie in a folder that git ignores. Nothing of theirs enters the project's own `.venv`. A peer whose
environment cannot be made is reported as not measured, with what pip said.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TORCH = "torch==2.13.0"
STAMP = "complete.txt"


class NotMeasured(Exception):
    """A peer cannot be prepared or run here; the text is the reason that the page gives."""


@dataclass(frozen=True)
class Environment:
    """Packages of one peer.

    Attributes:
        steps: Requirements, one call of pip each: torch first, alone, so that nothing chooses another build.
        options: Further arguments of pip.
        variables: Of the environment in which pip runs.
        told: Packages whose version the page gives.
    """

    steps: tuple[tuple[str, ...], ...]
    told: tuple[str, ...]
    options: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


ENVIRONMENTS = {
    "torch": Environment(
        (
            (TORCH,),
            ("transformers==5.23.0", "onnxscript==0.7.2", "onnx==1.23.2", "onnxruntime==1.32.0", "numpy==2.4.6"),
        ),
        ("torch", "onnxscript", "onnxruntime"),
    ),
    "optimum": Environment(
        (
            (TORCH,),
            ("optimum-onnx==0.1.0", "transformers==4.57.6", "onnxruntime==1.32.0", "onnx==1.23.2", "accelerate"),
        ),
        ("optimum-onnx", "transformers", "onnxruntime"),
    ),
    "llama": Environment(
        (("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy==2.4.6"),),
        ("llama-cpp-python", "gguf"),
        options=("--no-binary", "llama-cpp-python"),
        variables={"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"},
    ),
    "litert": Environment(
        ((TORCH,), ("litert-torch==0.10.0", "transformers==5.23.0")),
        ("litert-torch", "ai-edge-litert"),
    ),
}


def python_of(folder: Path, name: str) -> Path:
    """Return the interpreter of an environment; `project` is the one that runs this."""
    return Path(sys.executable) if name == "project" else folder / f"venv-{name}" / "bin" / "python"


def is_made(folder: Path, name: str) -> bool:
    """Say whether an environment is complete and of the versions named here."""
    if name == "project":
        return True
    stamp = folder / f"venv-{name}" / STAMP
    return stamp.exists() and stamp.read_text(encoding="utf-8") == repr(ENVIRONMENTS[name])


def make(folder: Path, name: str) -> None:
    """Make one environment, unless it is complete already.

    Raises:
        NotMeasured: pip failed; with its last line.
    """
    if is_made(folder, name):
        return
    environment, python = ENVIRONMENTS[name], python_of(folder, name)
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(python.parent.parent)], {}, name)
    torch_index = os.environ.get("TORCH_INDEX")
    for step in environment.steps:
        index = ["--index-url", torch_index] if torch_index and step == (TORCH,) else []
        pip = [str(python), "-m", "pip", "install", "-q", *environment.options, *index, *step]
        _run(pip, environment.variables, name)
    (python.parent.parent / STAMP).write_text(repr(environment), encoding="utf-8")


def versions(folder: Path, name: str) -> dict[str, str]:
    """Return the versions that the page gives of an environment."""
    code = "import sys; from importlib.metadata import version; print(*[version(p) for p in sys.argv[1:]])"
    told = ENVIRONMENTS[name].told
    child = subprocess.run([str(python_of(folder, name)), "-c", code, *told], capture_output=True, text=True)
    return dict(zip(told, child.stdout.split(), strict=True)) if child.returncode == 0 else {}


def complaint(text: str, otherwise: str) -> str:
    """Return the line of a tool's output that says what went wrong: the last that begins with an error's name."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|ERROR)\b.*:", line)]
    return ((errors or lines)[-1] if lines else otherwise)[:400]


def _run(command: list[str], variables: Mapping[str, str], name: str) -> None:
    child = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    if child.returncode:
        raise NotMeasured(f"its environment '{name}' could not be made: {complaint(child.stderr, 'pip failed')}")
