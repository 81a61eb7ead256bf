"""`export`: a checkpoint (or random weights) becomes a bundle, checked against the reference."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from merino_edge.architecture import Architecture
from merino_edge.bundle import TOKENIZER, Bundle, Manifest, bundle_label, describe_file, read_bundle, write_manifest
from merino_edge.checkpoint import WEIGHTS, read_checkpoint
from merino_edge.errors import ExportError, InvalidFileError, MerinoEdgeError, UsageError, did_you_mean, writing_hint
from merino_edge.exporting import Exporter, ExportOptions, ExportResult
from merino_edge.files import building_folder, move_into_place, sha256_file
from merino_edge.flows.chat import copy_template
from merino_edge.flows.conditions import DEFAULT_CONDITIONS, run_conditions
from merino_edge.flows.quality import Judge, compare_quality, find_judge, limit_of, not_measured
from merino_edge.flows.runtime_version import fits_runtime, profiled_runtime
from merino_edge.flows.subject import Subject, resolve_subject
from merino_edge.progress import SILENT, Progress
from merino_edge.reference import random_tensors

EXPORTERS = "merino_edge.exporters"
STANDARD = "standard"
FORMS_BY_SPEED = ("fast", STANDARD, "legacy", "unrolled")
RANDOM_DRAWS = 12  # one in three passes where blocks are narrow and the vocabulary large: rounding to 8 bits adds up
# Recipes named without their block, by format: the first that fits the widths and keeps the limit is taken.
_ONNX = tuple(f"weight_only_wi4_{kind}_afp32" for kind in ("b128", "b64", "b32", "b32_head8"))
_TFLITE = tuple(f"dynamic_wi4_b{block}_afp32" for block in (128, 64, 32))
FAMILIES = {
    "onnx": {"int4": _ONNX, "weight_only_wi4_afp32": _ONNX},
    "tflite": {"int4": _TFLITE, "dynamic_wi4_afp32": _TFLITE},
}


@dataclass(frozen=True)
class ExportWish:
    """What is asked of an export.

    Attributes:
        format: Of the file.
        recipe: How weights are stored; a name of `FAMILIES` leaves the block open.
        form: How the graph is written; None for the fastest that a known runtime carries, else `standard`, or
            what the recipe implies.
        quantizer: How integers are chosen; `auto` is the best that the text at hand allows.
        text: To judge and calibrate by; None for what training held out.
        max_perplexity_change: Largest share by which perplexity may rise; None for the recipe's.
        runtime_version: Of the device's runtime, where one is meant.
    """

    format: str = "onnx"
    recipe: str = "dynamic_wi8_afp32"
    form: str | None = None
    quantizer: str = "auto"
    text: str | None = None
    max_perplexity_change: float | None = None
    runtime_version: str | None = None


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
    """Load the exporter of a format."""
    exporter: Exporter = find_exporter(format_name).load()
    return exporter


def find_exporter(format_name: str) -> EntryPoint:
    """Find the exporter of a format among the installed ones.

    Raises:
        UsageError: none writes it.
    """
    found = {point.name: point for point in entry_points(group=EXPORTERS)}
    if format_name not in found:
        raise UsageError(
            f"no exporter writes '{format_name}'{did_you_mean(format_name, found, listed=True)}",
            hint=f"formats: {', '.join(sorted(found))}",
        )
    return found[format_name]


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
    judge: Judge | None = None,
    tell: Callable[[float], None] = lambda share: None,
) -> Bundle:
    """Export into `parent/FORMAT-RECIPE[-FORM]`, which appears only when everything in it is complete and checked.

    An older bundle in its place stays until then. The form is the exporter's: some recipes imply one.

    Args:
        architecture: The model.
        weights: Its tensors and their tokenizer.
        parent: The folder of bundles.
        format_name: Of the exporter.
        recipe: Of the exporter.
        options: For the exporter.
        judge: By which text the file's quality is judged.
        tell: Told how far the judging is, 0 to 1.
    """
    exporter, judge = load_exporter(format_name), judge or Judge()
    if weights.tokenizer is not None:
        _check_tokenizer(weights.tokenizer, architecture)
    try:
        with building_folder(parent, f"{format_name}-{recipe}") as temporary:
            options = replace(options, tokenizer=weights.tokenizer)
            more: tuple[str, ...] = ()
            result = exporter(architecture, weights.tensors, temporary, recipe, options)
            if weights.tokenizer is not None:
                shutil.copyfile(weights.tokenizer, temporary / TOKENIZER)
                more = (TOKENIZER, *copy_template(weights.tokenizer.parent, temporary))
            manifest = _manifest(architecture, weights, temporary, format_name, recipe, result, options, more)
            quality = _judged(architecture, weights, temporary, manifest, judge, tell)
            manifest = replace(manifest, quality=quality)
            write_manifest(temporary, manifest)
            folder = parent / bundle_label(format_name, recipe, result.form)
            move_into_place(temporary, folder)
    except OSError as error:
        raise _cannot_write(parent, error) from error
    return Bundle(folder, manifest, result.layout)


def _cannot_write(parent: Path, error: OSError) -> MerinoEdgeError:
    return MerinoEdgeError(f"cannot write a bundle into {parent}: {error.strerror or error}", hint=writing_hint(error))


def _manifest(
    architecture: Architecture,
    weights: Weights,
    folder: Path,
    format_name: str,
    recipe: str,
    result: ExportResult,
    options: ExportOptions,
    more: tuple[str, ...] = (),
) -> Manifest:
    """Describe what an exporter wrote and the files `more` beside it, but for its quality."""
    names = dict.fromkeys((*result.files, *more))
    return Manifest(
        architecture=architecture,
        format=format_name,
        recipe=recipe,
        form=result.form,
        exporter_version=result.exporter_version,
        runtime=result.runtime,
        runtime_min_version=result.runtime_min_version,
        files=tuple(describe_file(folder, name) for name in names),
        context_length=options.context_length,
        file_bytes=sum((folder / name).stat().st_size for name in result.files),
        unique_bytes=result.unique_bytes,
        parity=result.parity,
        quality=None,
        trained=weights.trained,
        trained_tokens=weights.trained_tokens,
        check=result.check,
        weights_sha256=weights.sha256,
        notes=result.notes,
        quantizer=result.quantizer,
    )


def _judged(
    architecture: Architecture,
    weights: Weights,
    folder: Path,
    manifest: Manifest,
    judge: Judge,
    tell: Callable[[float], None],
) -> dict[str, Any]:
    """Return the manifest's `quality`; the fp32 side is written for it, unless the file is that itself."""
    if judge.held_out is None:
        return not_measured(judge.reason)
    if (manifest.format, manifest.recipe, manifest.form) == ("onnx", "fp32", "standard"):
        return compare_quality(folder, manifest, (folder, manifest), judge.held_out, judge.limit, tell)
    with tempfile.TemporaryDirectory(prefix=".fp32.", dir=folder) as name:
        fp32, options = Path(name), ExportOptions(context_length=manifest.context_length, parity=False)
        result = load_exporter("onnx")(architecture, weights.tensors, fp32, "fp32", options)
        described = _manifest(architecture, replace(weights, tokenizer=None), fp32, "onnx", "fp32", result, options)
        return compare_quality(folder, manifest, (fp32, described), judge.held_out, judge.limit, tell)


def _check_tokenizer(path: Path, architecture: Architecture) -> None:
    from tokenizers import Tokenizer

    try:
        ids = Tokenizer.from_file(str(path)).get_vocab().values()
    except Exception as error:  # the library raises bare Exception for a damaged file
        raise InvalidFileError(
            f"tokenizer {path} cannot be read: {error}", hint="train again, or name another"
        ) from error
    if len(ids) != architecture.vocab_size or max(ids) >= architecture.vocab_size:
        beyond = f" and ids up to {max(ids)}" if ids and max(ids) >= len(ids) else ""
        raise InvalidFileError(
            f"tokenizer {path} has {len(ids)} entries{beyond}, "
            f"the architecture's vocabulary has {architecture.vocab_size}",
            hint="use the tokenizer that the checkpoint was trained with",
        )


def export(subject_name: str | None, wish: ExportWish, progress: Progress = SILENT) -> dict[str, Any]:
    """Export a run's checkpoint, or random weights where nothing was trained.

    Where no form is asked for, it is the fastest that the runtime of the run's device carries, as the
    device was profiled; without a profile `standard`, or what the recipe needs.

    Returns:
        The document of `merino-edge export --json`.
    """
    subject = resolve_subject(subject_name)
    if wish.form is None and wish.format == "onnx":
        wish = replace(wish, runtime_version=profiled_runtime(subject))
    bundle = export_subject(subject, wish, progress)
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.folder),
        "run": subject.run.name if subject.run else None,
        "format": manifest.format,
        "recipe": manifest.recipe,
        "form": manifest.form,
        "quantizer": manifest.quantizer,
        "file_bytes": manifest.file_bytes,
        "unique_bytes": manifest.unique_bytes,
        "fp32_executed_bytes": 4 * manifest.architecture.executed_parameters,
        "parity": manifest.parity,
        "quality": manifest.quality,
        "trained": manifest.trained,
        "architecture": manifest.architecture.to_json(),
    }


def export_subject(subject: Subject, wish: ExportWish, progress: Progress = SILENT) -> Bundle:
    """Export what a name stands for into its run."""
    run = subject.require_run()
    with progress.task(f"exporting {bundle_label(wish.format, wish.recipe, wish.form or STANDARD)}", 1.0) as task:
        if subject.checkpoint is not None:
            architecture, weights = checkpoint_weights(subject.checkpoint)
            if architecture != subject.architecture:
                raise InvalidFileError(
                    f"{subject.checkpoint} holds {architecture.describe()}, the run's architecture is "
                    f"{subject.architecture.describe()}",
                    hint="train again with: merino-edge train",
                )
            judge = find_judge(subject.checkpoint, architecture.vocab_size, wish.text, wish.max_perplexity_change)
            if judge.held_out is None:
                progress.note(f"perplexity is not compared: {judge.reason}; name a text with: --text PATH")
        else:
            if wish.text is not None:
                raise UsageError("random weights have no quality that --text could show", hint="merino-edge train")
            _keep_trained_bundles(subject)
            progress.note("no checkpoint: exporting random weights (trained: false); next: merino-edge train")
            architecture, weights = subject.architecture, random_weights(subject.architecture, _context_length(subject))
            judge = Judge()
        for seed in range(1, RANDOM_DRAWS + 1):
            try:
                bundle = _first_that_keeps(architecture, weights, run.exports, wish, judge, progress, task.update)
                break
            except ExportError as error:
                if weights.trained or "max_abs_diff" not in error.details or seed == RANDOM_DRAWS:
                    raise
                progress.note(f"these random weights do not survive {wish.recipe}: drawing others")
                weights = random_weights(architecture, weights.context_length, seed)
        task.update(1.0)
    return bundle


def _keep_trained_bundles(subject: Subject) -> None:
    """Refuse random weights where a run holds trained bundles whose checkpoint lies elsewhere, or is gone."""
    trained = [bundle.folder.name for bundle in exported_bundles(subject) if bundle.manifest.trained]
    if trained:
        raise UsageError(
            f"run '{subject.name}' holds trained weights in {trained[0]}, and no checkpoint: random ones will not be "
            "exported beside them",
            hint="name the checkpoint's folder again: merino-edge export FOLDER",
        )


def _first_that_keeps(
    architecture: Architecture,
    weights: Weights,
    parent: Path,
    wish: ExportWish,
    judge: Judge,
    progress: Progress,
    tell: Callable[[float], None],
) -> Bundle:
    """Write the recipe asked for; of a family the first that the widths allow and that keeps the limit."""
    options = ExportOptions(
        form=wish.form or STANDARD,
        form_is_asked=wish.form is not None,
        runtime_version=wish.runtime_version,
        context_length=weights.context_length,
        quantizer="rtn" if wish.quantizer == "auto" and not weights.trained else wish.quantizer,
        calibration=judge.held_out.calibration if judge.held_out is not None else None,
    )
    recipes = family(wish.format, wish.recipe)
    for recipe in recipes:
        try:
            return write_bundle(architecture, weights, parent, wish.format, recipe, options, judge, tell)
        except (UsageError, ExportError) as error:
            too_wide, too_coarse = "nearest" in error.details, "quality" in error.details
            if recipe == recipes[-1] or not (too_wide or too_coarse):
                raise
            progress.note(f"{error.message}; trying {recipes[recipes.index(recipe) + 1]}")
    raise AssertionError("unreachable")


def family(format_name: str, recipe: str) -> tuple[str, ...]:
    """Return the recipes that a name stands for in a format, in the order of trying; most stand for themselves."""
    return FAMILIES.get(format_name, {}).get(recipe, (recipe,))


def _context_length(subject: Subject) -> int:
    """Return the context the run was searched for, the default where nothing was searched."""
    return (run_conditions(subject.run) or DEFAULT_CONDITIONS).context_length


def bundle_is_current(subject: Subject, bundle: Bundle) -> bool:
    """Say whether a bundle holds the weights that the checkpoint holds now."""
    if subject.checkpoint is None:
        return bundle.manifest.architecture == subject.architecture  # trained ones too: their checkpoint is elsewhere
    return bundle.manifest.weights_sha256 == sha256_file(subject.checkpoint / WEIGHTS)


def current_bundle(
    subject: Subject, format_name: str, recipe: str, progress: Progress = SILENT, version: str | None = None
) -> Bundle:
    """Return a bundle of a subject that a device can run, exporting where none is there or it is out of date.

    Of several forms the one for the newest runtimes counts, the one for other tools last.

    Args:
        subject: What to export.
        format_name: Of the exporter.
        recipe: Of the exporter, or a family of recipes.
        progress: Hears what is done.
        version: Of the device's onnxruntime, None where that is not known.
    """
    folders = {folder.name: folder for folder in subject.require_run().bundle_folders()}
    for name in (bundle_label(format_name, r, form) for r in family(format_name, recipe) for form in FORMS_BY_SPEED):
        bundle = read_bundle(folders[name]) if name in folders else None
        if bundle is not None and fits_runtime(bundle, version):
            return brought_up_to_date(subject, bundle, progress)
    wish = ExportWish(format_name, recipe, runtime_version=version if format_name == "onnx" else None)
    return export_subject(subject, wish, progress)


def exported_bundles(subject: Subject) -> list[Bundle]:
    """Return the complete bundles of a run, by name."""
    return [read_bundle(folder) for folder in subject.require_run().bundle_folders()]


def brought_up_to_date(subject: Subject, bundle: Bundle, progress: Progress = SILENT) -> Bundle:
    """Return a bundle, exported again in the same way where the checkpoint is another one by now."""
    if bundle_is_current(subject, bundle):
        return bundle
    progress.note(f"{bundle.folder} is not from the present checkpoint: exporting again")
    manifest = bundle.manifest
    allowed = (manifest.quality or {}).get("limit", limit_of(manifest.recipe))
    quantizer = (manifest.quantizer if manifest.trained else None) or "auto"
    wish = ExportWish(manifest.format, manifest.recipe, manifest.form, quantizer, None, allowed)
    return export_subject(subject, wish, progress)
