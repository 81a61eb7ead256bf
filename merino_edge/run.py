"""A run: one folder that every command adds to.

    runs/NAME/  run.json architecture.json search.json pareto.csv checkpoint/ export/ measurements.jsonl report.html

A run is relocatable: nothing in it names this host, and all paths are relative to it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merino_edge.architecture import Architecture, load_architecture, save_architecture
from merino_edge.bundle import MANIFEST
from merino_edge.errors import InvalidFileError, UsageError, check_keys, did_you_mean, next_step
from merino_edge.files import read_json, write_json

RUN_FILE = "run.json"
_AGAIN = "search again with: merino-edge search"
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")


def runs_root() -> Path:
    """Return the folder of all runs: `$MERINO_EDGE_RUNS`, by default `runs` here."""
    return Path(os.environ.get("MERINO_EDGE_RUNS") or "runs")


@dataclass(frozen=True)
class Run:
    """One run folder."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def architecture_file(self) -> Path:
        """What was found, or what was given."""
        return self.folder / "architecture.json"

    @property
    def search_file(self) -> Path:
        """The whole search: request, result, constraints, conditions."""
        return self.folder / "search.json"

    @property
    def pareto_file(self) -> Path:
        """The non-dominated architectures as a table."""
        return self.folder / "pareto.csv"

    @property
    def checkpoint(self) -> Path:
        """The Hugging Face folder of the trained model."""
        return self.folder / "checkpoint"

    @property
    def exports(self) -> Path:
        """The folder of bundles."""
        return self.folder / "export"

    @property
    def measurements_file(self) -> Path:
        """Copies of the measurements this run used."""
        return self.folder / "measurements.jsonl"

    def bundle_folders(self) -> list[Path]:
        """Folders of complete bundles, by name; hidden is what an export is writing, or left when it was killed.

        A bundle that a killed export had set aside for its successor is put back first.
        """
        for aside in self.exports.glob(f".*.old/{MANIFEST}"):
            folder = self.exports / aside.parent.name[1 : -len(".old")]
            if not folder.exists():
                with suppress(OSError):
                    os.rename(aside.parent, folder)
        return sorted(p.parent for p in self.exports.glob(f"*/{MANIFEST}") if not p.parent.name.startswith("."))

    def architecture(self) -> Architecture:
        """Read the architecture of this run."""
        with next_step(_AGAIN):
            return load_architecture(self.architecture_file)

    def set_architecture(self, architecture: Architecture) -> None:
        """Write the architecture of this run."""
        save_architecture(self.architecture_file, architecture)

    def info(self) -> dict[str, Any]:
        """Read `run.json`: when it was made and for which device."""
        with next_step(_AGAIN):
            value = read_json(self.folder / RUN_FILE, "run")
            check_keys(value, ("created_at", "device"), f"run {self.folder / RUN_FILE}")
            if not isinstance(value.get("device"), str):
                raise InvalidFileError(f"run {self.folder / RUN_FILE}: 'device' must be a name")
            return value

    def search(self) -> dict[str, Any] | None:
        """Read `search.json`, None where nothing was searched."""
        if not self.search_file.exists():
            return None
        with next_step(_AGAIN):
            return read_json(self.search_file, "search")

    def write_search(self, value: Mapping[str, Any]) -> None:
        """Write `search.json`."""
        write_json(self.search_file, value)


def check_run_name(name: str) -> str:
    """Return the name, or raise where it is not a plain folder name."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' is no name for a run", hint="use letters, digits, '.', '_' and '-'")
    return name


def create_run(name: str | None, device: str, root: Path | None = None) -> Run:
    """Make a run folder; without a name the next free `run-N`.

    An existing run of that name is opened: commands add to it.
    """
    root = runs_root() if root is None else root
    if name is None:
        numbers = [int(m.group(1)) for p in root.glob("run-*") if (m := re.fullmatch(r"run-(\d+)", p.name))]
        name = f"run-{max(numbers, default=0) + 1}"
    run = Run(root / check_run_name(name))
    if not (run.folder / RUN_FILE).exists():
        write_json(run.folder / RUN_FILE, {"created_at": time.time(), "device": device})
    return run


def list_runs(root: Path | None = None) -> list[Run]:
    """Return all runs, the newest last."""
    root = runs_root() if root is None else root
    found = [Run(path.parent) for path in root.glob(f"*/{RUN_FILE}")]
    return sorted(found, key=lambda run: (run.folder / RUN_FILE).stat().st_mtime_ns)


def open_run(name: str | None, root: Path | None = None) -> Run:
    """Open a run by name or path; without one, the latest.

    Raises:
        UsageError: there is none of that name; the nearest is offered.
    """
    root = runs_root() if root is None else root
    runs = list_runs(root)
    if name is None:
        if not runs:
            raise UsageError(f"there is no run in {root}/", hint="make one with: merino-edge search --latency 50ms")
        return runs[-1]
    for folder in (Path(name), root / name):
        if (folder / RUN_FILE).is_file():
            return Run(folder)
    raise UsageError(
        f"there is no run '{name}'{did_you_mean(name, [r.name for r in runs])}", hint="list them with: ls " + str(root)
    )
