"""`export`: a checkpoint (or random weights) becomes a bundle, checked against the reference."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from merino_edge.architecture import Architecture
from merino_edge.bundle import TOKENIZER, Bundle, Manifest, bundle_label, describe_file, read_bundle, write_manifest
from merino_edge.checkpoint import WEIGHTS, read_checkpoint
from merino_edge.errors import InvalidFileError, MerinoEdgeError, UsageError, did_you_mean
from merino_edge.exporting import Exporter, ExportOptions
from merino_edge.files import sha256_file, sync_folder
from merino_edge.flows.conditions import DEFAULT_CONDITIONS, run_conditions
from merino_edge.flows.subject import Subject, resolve_subject
from merino_edge.progress import SILENT, Progress
from merino_edge.reference import random_tensors

EXPORTERS = "merino_edge.exporters"
STALE_SECONDS = 600.0  # no export takes so long


@dataclass(frozen=True)
class Weights:
    """Tensors and where they come from.

    Attributes:
        tensors: By the names of `Architecture.tensor_shapes`.
        context_length: Tokens of the cache.
        trained_tokens: 0 for random weights.
        sha256: Of the checkpoint's file; None for random weights.
        tokenizer: Path of `tokenizer.json`, None where there is none.
    """

    tensors: Mapping[str, npt.NDArray[np.float32]]
    context_length: int
    trained_tokens: int = 0
    sha256: str | None = None
    tokenizer: Path | None = None

    @property
    def trained(self) -> bool:
        """False for random weights."""
        return self.sha256 is not None


def load_exporter(format_name: str) -> Exporter:
    """Find the exporter of a format among the installed ones."""
    found = {point.name: point for point in entry_points(group=EXPORTERS)}
    if format_name not in found:
        raise UsageError(f"no exporter writes '{format_name}'{did_you_mean(format_name, found)}")
    exporter: Exporter = found[format_name].load()
    return exporter


def random_weights(architecture: Architecture, context_length: int, seed: int = 0) -> Weights:
    """Return untrained weights: right for timing, useless for text."""
    return Weights(random_tensors(architecture, seed), context_length)


def checkpoint_weights(folder: Path) -> tuple[Architecture, Weights]:
    """Read a checkpoint for export."""
    checkpoint = read_checkpoint(folder)
    weights = Weights(
        checkpoint.tensors,
        checkpoint.context_length,
        checkpoint.trained_tokens,
        sha256_file(folder / WEIGHTS),
        checkpoint.tokenizer,
    )
    return checkpoint.architecture, weights


def write_bundle(
    architecture: Architecture,
    weights: Weights,
    parent: Path,
    format_name: str,
    recipe: str,
    options: ExportOptions,
) -> Bundle:
    """Export into `parent/FORMAT-RECIPE[-FORM]`, which appears only when everything in it is complete and checked.

    An older bundle in its place stays until then. The form is the exporter's: some recipes imply one.
    """
    exporter = load_exporter(format_name)
    parent.mkdir(parents=True, exist_ok=True)
    _sweep(parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{format_name}-{recipe}.", suffix=".tmp", dir=parent))
    try:
        result = exporter(architecture, weights.tensors, temporary, recipe, options)
        names = list(result.files)
        if weights.tokenizer is not None:
            _check_tokenizer(weights.tokenizer, architecture)
            shutil.copyfile(weights.tokenizer, temporary / TOKENIZER)
            names.append(TOKENIZER)
        manifest = Manifest(
            architecture=architecture,
            format=format_name,
            recipe=recipe,
            form=result.form,
            exporter_version=result.exporter_version,
            runtime=result.runtime,
            runtime_min_version=result.runtime_min_version,
            files=tuple(describe_file(temporary, name) for name in names),
            context_length=options.context_length,
            file_bytes=sum((temporary / name).stat().st_size for name in result.files),
            unique_bytes=result.unique_bytes,
            parity=result.parity,
            quality=None,
            trained=weights.trained,
            trained_tokens=weights.trained_tokens,
            check=result.check,
            weights_sha256=weights.sha256,
            notes=result.notes,
        )
        write_manifest(temporary, manifest)
        folder = parent / bundle_label(format_name, recipe, result.form)
        _move_into_place(temporary, folder)
    except OSError as error:
        raise MerinoEdgeError(
            f"cannot write a bundle into {parent}: {error.strerror or error}",
            hint="free some space or choose another folder",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Bundle(folder, manifest, result.layout)


def _sweep(parent: Path) -> None:
    """Remove what a killed export left behind."""
    for left in parent.glob(".*.tmp"):
        if time.time() - left.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _move_into_place(temporary: Path, folder: Path) -> None:
    os.chmod(temporary, 0o755)  # noqa: S103  mkdtemp makes it private; a bundle is for reading
    old = folder.parent / f".{folder.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(temporary, folder)
    except OSError:
        with suppress(OSError):
            os.rename(old, folder)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _check_tokenizer(path: Path, architecture: Architecture) -> None:
    from tokenizers import Tokenizer

    try:
        size = Tokenizer.from_file(str(path)).get_vocab_size()
    except Exception as error:  # the library raises bare Exception for a damaged file
        raise InvalidFileError(
            f"tokenizer {path} cannot be read: {error}", hint="train again, or name another"
        ) from error
    if size != architecture.vocab_size:
        raise InvalidFileError(
            f"tokenizer {path} has {size} entries, the architecture's vocabulary has {architecture.vocab_size}",
            hint="use the tokenizer that the checkpoint was trained with",
        )


def export(
    subject_name: str | None,
    format_name: str,
    recipe: str,
    form: str = "standard",
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Export a run's checkpoint, or random weights where nothing was trained.

    Returns:
        The document of `merino-edge export --json`.
    """
    subject = resolve_subject(subject_name)
    bundle = export_subject(subject, format_name, recipe, form, progress)
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.folder),
        "run": subject.run.name if subject.run else None,
        "format": manifest.format,
        "recipe": manifest.recipe,
        "form": manifest.form,
        "file_bytes": manifest.file_bytes,
        "unique_bytes": manifest.unique_bytes,
        "fp32_executed_bytes": 4 * manifest.architecture.executed_parameters,
        "parity": manifest.parity,
        "trained": manifest.trained,
        "architecture": manifest.architecture.to_json(),
    }


def export_subject(
    subject: Subject, format_name: str, recipe: str, form: str = "standard", progress: Progress = SILENT
) -> Bundle:
    """Export what a name stands for into its run."""
    run = subject.require_run()
    with progress.task(f"exporting {bundle_label(format_name, recipe, form)}", 2) as task:
        if subject.checkpoint is not None:
            architecture, weights = checkpoint_weights(subject.checkpoint)
            if architecture != subject.architecture:
                raise InvalidFileError(
                    f"{subject.checkpoint} holds {architecture.describe()}, the run's architecture is "
                    f"{subject.architecture.describe()}",
                    hint="train again with: merino-edge train",
                )
        else:
            progress.note("no checkpoint: exporting random weights (trained: false); next: merino-edge train")
            architecture, weights = subject.architecture, random_weights(subject.architecture, _context_length(subject))
        task.update(1)
        options = ExportOptions(form=form, context_length=weights.context_length)
        bundle = write_bundle(architecture, weights, run.exports, format_name, recipe, options)
        task.update(2)
    return bundle


def _context_length(subject: Subject) -> int:
    """Return the context the run was searched for, the default where nothing was searched."""
    return (run_conditions(subject.run) or DEFAULT_CONDITIONS).context_length


def bundle_is_current(subject: Subject, bundle: Bundle) -> bool:
    """Say whether a bundle holds the weights that the checkpoint holds now."""
    if subject.checkpoint is None:
        return not bundle.manifest.trained and bundle.manifest.architecture == subject.architecture
    return bundle.manifest.weights_sha256 == sha256_file(subject.checkpoint / WEIGHTS)


def current_bundle(subject: Subject, format_name: str, recipe: str, progress: Progress = SILENT) -> Bundle:
    """Return a bundle of a subject, the standard form first, exporting where it is missing or out of date."""
    label = bundle_label(format_name, recipe)
    names = {folder.name: folder for folder in subject.require_run().bundle_folders()}
    fitting = sorted(name for name in names if name == label or name.startswith(f"{label}-"))
    if not fitting:
        return export_subject(subject, format_name, recipe, progress=progress)
    return brought_up_to_date(subject, read_bundle(names[fitting[0]]), progress)


def exported_bundles(subject: Subject) -> list[Bundle]:
    """Return the complete bundles of a run, by name."""
    return [read_bundle(folder) for folder in subject.require_run().bundle_folders()]


def brought_up_to_date(subject: Subject, bundle: Bundle, progress: Progress = SILENT) -> Bundle:
    """Return a bundle, exported again where the checkpoint is another one by now."""
    if bundle_is_current(subject, bundle):
        return bundle
    progress.note(f"{bundle.folder} is not from the present checkpoint: exporting again")
    manifest = bundle.manifest
    return export_subject(subject, manifest.format, manifest.recipe, manifest.form, progress)
