"""What a name on the command line stands for: a run, a checkpoint folder, a preset or an architecture file."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from merino_edge.architecture import Architecture, load_architecture
from merino_edge.bundle import MANIFEST, Bundle, read_bundle
from merino_edge.checkpoint import WEIGHTS, is_checkpoint, read_config
from merino_edge.errors import InvalidFileError, UsageError, did_you_mean
from merino_edge.run import RUN_FILE, Run, create_run, list_runs, open_run, runs_root


@dataclass(frozen=True)
class Subject:
    """A model to work on.

    Attributes:
        name: What a table calls it.
        architecture: What it computes.
        checkpoint: Folder of its weights; None where they would be random.
        run: The run it belongs to; None for a bare bundle.
        bundle: The one bundle it is, where a bundle folder was named.
    """

    name: str
    architecture: Architecture
    checkpoint: Path | None = None
    run: Run | None = None
    bundle: Bundle | None = None

    def require_run(self) -> Run:
        """Return the run, or say that there is none to write to."""
        if self.run is None:
            raise UsageError(f"{self.name} is a bundle, not a run", hint="name the run that it was exported from")
        return self.run


def preset_names() -> list[str]:
    """Names of the shipped presets."""
    folder = resources.files("merino_edge.search") / "presets"
    if not folder.is_dir():
        return []
    return sorted(p.name.removesuffix(".json") for p in folder.iterdir() if p.name.endswith(".json"))


def resolve_subject(name: str | None, make_run: bool = True) -> Subject:
    """Find what a name means: a run's name or path first, then a path, then a preset.

    A run that was made for a checkpoint folder of the same name, here, gives way to that folder: else the
    call that made the run would mean something else when it is repeated.

    A preset, an architecture file or a checkpoint folder gets a run of its own, named after it, the first
    time something is to be written (`make_run`).

    Raises:
        UsageError: nothing is called so; the nearest name is offered.
    """
    if name is None or (Path(name) / RUN_FILE).is_file():
        return _from_run(open_run(name))
    path = Path(name)
    if (runs_root() / name / RUN_FILE).is_file() and not _gives_way(Run(runs_root() / name), path, name):
        return _from_run(open_run(name))
    if (path / MANIFEST).is_file():
        bundle = read_bundle(path)
        return Subject(str(path), bundle.manifest.architecture, bundle=bundle)
    if path.is_dir() and is_checkpoint(path):
        architecture, _ = read_config(path)
        label = path.resolve().parent.name if path.name == "checkpoint" else path.name
        return Subject(label, architecture, path, _own_run(label, architecture) if make_run else None)
    if path.is_file():
        architecture = load_architecture(path)
        return Subject(path.stem, architecture, run=_own_run(path.stem, architecture) if make_run else None)
    if name in preset_names():
        with resources.as_file(resources.files("merino_edge.search") / "presets" / f"{name}.json") as file:
            architecture = load_preset(file)
        return Subject(name, architecture, run=_own_run(name, architecture) if make_run else None)
    if path.is_dir():
        raise UsageError(
            f"the folder '{name}' is no run, checkpoint or bundle: it has no {RUN_FILE}, {WEIGHTS} or {MANIFEST}",
            hint="make a run with: merino-edge search --latency 50ms",
        )
    known = {*(run.name for run in list_runs()), *preset_names()}
    raise UsageError(
        f"'{name}' is no run, checkpoint folder, bundle, preset or architecture file{did_you_mean(name, known)}",
        hint="make a run with: merino-edge search --latency 50ms",
    )


def load_preset(path: Path) -> Architecture:
    """Read a preset: an architecture file that also says how it was found."""
    from merino_edge.files import read_json

    document = read_json(path, "preset")
    return Architecture.from_json(document.get("architecture"), str(path))


def _gives_way(run: Run, path: Path, name: str) -> bool:
    """Say whether a run was made for what else is called so: a checkpoint folder, or, where it was cut, a preset."""
    if run.architecture_file.exists():
        return path.is_dir() and is_checkpoint(path) and not run.checkpoint.exists()
    return path.is_file() or is_checkpoint(path) or name in preset_names()


def _from_run(run: Run) -> Subject:
    if not run.architecture_file.exists():
        raise InvalidFileError(f"run {run.folder} has no architecture yet", hint="search again: merino-edge search")
    complete = (run.checkpoint / WEIGHTS).is_file()
    return Subject(run.name, run.architecture(), run.checkpoint if complete else None, run)


def _own_run(name: str, architecture: Architecture) -> Run:
    run = create_run(name, "local")
    if not run.architecture_file.exists():
        run.set_architecture(architecture)
    elif run.architecture() != architecture:
        raise UsageError(
            f"run '{run.name}' holds another architecture",
            hint=f"to use the run, name {run.folder}; else remove or rename it",
        )
    return run
