"""Writes `docs/licences.md`: what the installed package needs at run time, and under which licence each of it comes.

    .venv/bin/python tools/licences.py            writes the page
    .venv/bin/python tools/licences.py --check    says whether it is current, and whether a licence would bind its users

Read from the metadata of what is installed; a distribution of another machine may be missing.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

PAGE = Path(__file__).resolve().parent.parent / "docs" / "licences.md"
PROJECT = "merino-edge"
EXTRAS = ("", "train", "tflite", "serve", "report", "eval")  # not the developers' own
# AGPL and GPL bind whoever distributes a program that links to them; LGPL and MPL leave that program its licence.
BINDING = re.compile(r"\bA?GPL|(?<!Lesser )(?<!Library or Lesser )General Public License", re.IGNORECASE)
# What metadata do not say, or say in a way that fits no table.
KNOWN = {"scipy": "BSD-3-Clause", "mdurl": "MIT"}
HEAD = """# Licences of dependencies

merino-edge is under Apache-2.0. Written by `tools/licences.py` from the metadata of what is installed; a test keeps
AGPL and GPL out of what anybody needs at run time. paramiko is under the LGPL, tqdm partly under the MPL: they are
used as they come, and leave your program its own licence.
"""


@dataclass(frozen=True)
class Dependency:
    """One distribution, its licence, and which extras bring it; `base` for the package itself."""

    name: str
    licence: str
    brought_by: tuple[str, ...]


def dependencies() -> list[Dependency]:
    """Return all that is needed at run time and installed here, by name."""
    brought: dict[str, list[str]] = {}
    for extra in EXTRAS:
        for name in _closure(PROJECT, extra):
            brought.setdefault(name, []).append(extra or "base")
    found = [Dependency(n, licence_of(n), ("base",) if "base" in by else tuple(by)) for n, by in brought.items()]
    return sorted(found, key=lambda d: d.name)


def _closure(name: str, extra: str) -> set[str]:
    todo, seen = [(name, extra)], set()
    while todo:
        project, wanted = todo.pop()
        try:
            requires = metadata.requires(project) or []
        except metadata.PackageNotFoundError:
            continue
        seen.add(project)
        for text in requires:
            requirement = Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": wanted}):
                continue
            below = requirement.name.lower().replace("_", "-")
            if below not in seen:
                todo += [(below, ""), *((below, e) for e in requirement.extras)]
    return {name for name in seen if name != PROJECT and _is_installed(name)}


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def licence_of(name: str) -> str:
    """Return the licence that a distribution's metadata name: expression, classifiers, or the old field."""
    about = metadata.metadata(name)
    if name in KNOWN:
        return KNOWN[name]
    if "License-Expression" in about:
        return str(about["License-Expression"])
    classes = [c.split(" :: ")[-1] for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    if classes:
        return ", ".join(sorted(set(classes)))
    return str((about.get_all("License") or ["not said"])[0]).strip().splitlines()[0][:60]


def page() -> str:
    """Return the page."""
    lines = [HEAD, "| distribution | licence | needed by |", "| --- | --- | --- |"]
    lines += [f"| {d.name} | {d.licence} | {', '.join(d.brought_by)} |" for d in dependencies()]
    return "\n".join(lines) + "\n"


def problems() -> list[str]:
    """Return what is wrong: a licence that binds, or a dependency that the page lacks."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    found = [f"{d.name} is under {d.licence}" for d in dependencies() if BINDING.search(d.licence)]
    missing = [d.name for d in dependencies() if f"| {d.name} | {d.licence} |" not in text]
    return found + [f"{PAGE.name} lacks {name}: .venv/bin/python tools/licences.py" for name in missing]


def main() -> int:
    """Write or check the page."""
    if "--check" in sys.argv[1:]:
        print("\n".join(problems()) or "current, and nothing binds")
        return int(bool(problems()))
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
