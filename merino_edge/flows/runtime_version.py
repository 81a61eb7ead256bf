"""Which onnxruntime a device has, and whether a bundle can be run by it: what decides an ONNX bundle's form."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from typing import Any

from merino_edge.bundle import Bundle
from merino_edge.errors import UsageError
from merino_edge.flows.profile_file import read_profile
from merino_edge.flows.subject import Subject

NEWEST_FOR_PYTHON = {"3.8": "1.19.2", "3.9": "1.19.2", "3.10": "1.23.2"}  # of onnxruntime, whose later wheels need more


def runtime_version(facts: Mapping[str, Any]) -> str | None:
    """Return the version of onnxruntime a device has, or would get; None where its facts do not say.

    Args:
        facts: What the device says of itself.
    """
    there = [r for r in facts.get("runtimes") or [] if isinstance(r, dict) and r.get("runtime") == "onnxruntime"]
    if there:
        return str(there[-1].get("runtime_version"))
    python = (facts.get("python") or {}).get("version")
    if not python:
        return None
    return NEWEST_FOR_PYTHON.get(".".join(str(python).split(".")[:2]), importlib.metadata.version("onnxruntime"))


def profiled_runtime(subject: Subject) -> str | None:
    """Return the version on the device of a subject's run, None where that was not profiled."""
    profile = read_profile(str(subject.run.info()["device"])) if subject.run else None
    return runtime_version(profile.facts) if profile else None


def fits_runtime(bundle: Bundle, version: str | None) -> bool:
    """Say whether a device's onnxruntime is new enough for a bundle; other runtimes are not asked about."""
    if version is None or bundle.manifest.runtime != "onnxruntime":
        return True
    have, need = ([int(n) for n in re.findall(r"\d+", v)] for v in (version, bundle.manifest.runtime_min_version))
    return have >= need


def check_runtime(bundle: Bundle, version: str | None, device: str) -> None:
    """Raise where a device's runtime is too old for a bundle."""
    if not fits_runtime(bundle, version):
        manifest = bundle.manifest
        raise UsageError(
            f"{bundle.label} needs {manifest.runtime} {manifest.runtime_min_version}, {device} has {version}",
            hint=f"merino-edge deploy --format {manifest.format} --recipe {manifest.recipe}",
        )
