"""What `bench` can be told to measure: whatever other commands work on, archives of bundles, and `hf:NAME`."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from merino_edge.bundle import Bundle
from merino_edge.errors import UsageError
from merino_edge.flows.export import brought_up_to_date, current_bundle, exported_bundles
from merino_edge.flows.fetch import fetched
from merino_edge.flows.subject import Subject, resolve_subject
from merino_edge.progress import SILENT, Progress

HUB = "hf:"
DEFAULT_RECIPES = ("fp32", "dynamic_wi8_afp32")


@dataclass(frozen=True)
class Contender:
    """One model to measure.

    Attributes:
        name: What a table calls it.
        subject: Ours: a run, a preset, a bundle, ...; None for a model of others.
        hub: Theirs: a name on the Hugging Face hub or a folder in its format; None for ours.
    """

    name: str
    subject: Subject | None = None
    hub: str | None = None


def find_contenders(names: Sequence[str], stack: ExitStack, progress: Progress = SILENT) -> list[Contender]:
    """Find what each name means; without any, the latest run.

    Args:
        names: From the command line.
        stack: Archives are unpacked until it closes.
        progress: Hears what is done.

    Raises:
        UsageError: nothing is called so.
    """
    found = [_find(name, stack, progress) for name in dict.fromkeys(names)]
    if not found:
        subject = resolve_subject(None)
        found = [Contender(subject.name, subject)]
    return found


def _find(name: str, stack: ExitStack, progress: Progress) -> Contender:
    if name.startswith(HUB):
        hub = name.removeprefix(HUB)
        if not hub:
            raise UsageError("hf: names no model", hint="write it like hf:gpt2, or hf:PATH for a folder")
        return Contender(name, hub=hub)
    if "://" in name:
        raise UsageError(f"{name} is an address", hint="fetch the archive first, and give its path")
    path = Path(name)
    if path.is_file() and tarfile.is_tarfile(path):
        subject = resolve_subject(str(stack.enter_context(fetched(name, None, progress))))
        return Contender(name, replace(subject, name=name))
    subject = resolve_subject(name)
    return Contender(subject.name, subject)


def bundles_of(
    subject: Subject, recipes: Sequence[str], version: str | None, progress: Progress = SILENT
) -> list[Bundle]:
    """Return what was asked for, else all that is exported, else the two recipes everyone compares.

    Args:
        subject: Whose bundles; a bare bundle is itself.
        recipes: `FORMAT/RECIPE` or `RECIPE`.
        version: Of the device's onnxruntime, None where that is not known.
        progress: Hears what is exported.
    """
    if subject.bundle is not None:
        return [subject.bundle]
    exported = [] if recipes else exported_bundles(subject)
    if exported:
        return [brought_up_to_date(subject, bundle, progress) for bundle in exported]
    found = []
    for wish in recipes or DEFAULT_RECIPES:
        format_name, _, recipe = wish.rpartition("/")
        found.append(current_bundle(subject, format_name or "onnx", recipe, progress, version))
    return found
