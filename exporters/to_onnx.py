"""The exporter registered as `onnx`: `model.onnx` (the graph) and `model.data` (the weights).

Whole here: checking what comes in, writing both files under temporary names, running them, and
taking them away again if they do not compute what the architecture says.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from merino_edge.architecture import Architecture, check_tensors
from merino_edge.bundle import Piece
from merino_edge.errors import ExportError, MerinoEdgeError
from merino_edge.exporters.forms import decoder_of, find_form, runtime_min_version
from merino_edge.exporters.graph import GraphWriter, WeightFile
from merino_edge.exporters.parity import FileRunner, check_file, remove_refused
from merino_edge.exporters.quantizers import quantize_model
from merino_edge.exporters.recipes import Recipe, find_recipe
from merino_edge.exporters.side_files import SEVERAL_WIDTHS, SIDE_FILES, has_one_width, write_side_files
from merino_edge.exporting import ExportOptions, ExportResult, Tensors
from merino_edge.files import open_atomic, write_atomic

EXPORTER_VERSION = 4
GRAPH, WEIGHTS = "model.onnx", "model.data"

UNROLLED_NOTE = (
    "unrolled: every layer names the block's weights again; onnxruntime before 1.21 (weight-only: before 1.28) "
    "keeps one packed copy per layer in memory"
)
GPU_NOTE = (
    "for GPU providers of onnxruntime; checked on its CPU provider, which runs float16 too, not by us on a Jetson"
)


def export(
    architecture: Architecture, tensors: Tensors, folder: Path, recipe: str, options: ExportOptions
) -> ExportResult:
    """Write the model as ONNX and check it.

    Args:
        architecture: The model.
        tensors: Its tensors, float32, by the names of `architecture.tensor_shapes`.
        folder: Where `model.onnx` and `model.data` go; made if missing.
        recipe: How weights are stored; see `recipes.py`.
        options: Form, parity, seed, and how integers are chosen.

    Raises:
        UsageError: no such recipe or form.
        InvalidFileError: tensors that are missing, foreign, or of another shape.
        ExportError: weights that are no numbers, or a file that does not compute the model. Nothing
            is left in `folder` then.
    """
    chosen = find_recipe(recipe, architecture)
    form = find_form(chosen, options.form, architecture, options.runtime_version, options.form_is_asked)
    check_tensors(architecture, {name: tensor.shape for name, tensor in tensors.items()}, "weights to export")
    check_values(tensors)
    made = not folder.exists()
    tensors, quantizer = quantize_model(architecture, tensors, chosen, options)
    try:
        layout = write_files(architecture, tensors, folder, chosen, form)
        parity, check = check_file(FileRunner(folder / GRAPH), architecture, tensors, chosen, options)
        beside = _write_beside(folder, architecture, chosen, form, options)
    except BaseException:  # Ctrl-C too: nothing half-written stays
        remove_refused(folder, (GRAPH, WEIGHTS, *SIDE_FILES), made)
        raise
    return ExportResult(
        files=(GRAPH, WEIGHTS, *beside),
        form=form,
        exporter_version=EXPORTER_VERSION,
        runtime="onnxruntime",
        runtime_min_version=runtime_min_version(chosen, form),
        unique_bytes=chosen.unique_bytes(architecture),
        parity=parity,
        check=check,
        notes=notes_of(architecture, chosen, form),
        layout={WEIGHTS: layout},
        quantizer=quantizer,
    )


def notes_of(architecture: Architecture, recipe: Recipe, form: str) -> tuple[str, ...]:
    """Return what a reader of the manifest should know of a form."""
    if form != "unrolled":
        return ()
    widths = () if has_one_width(architecture) else (SEVERAL_WIDTHS,)
    return (UNROLLED_NOTE, *widths, *((GPU_NOTE,) if recipe.half else ()))


def _write_beside(
    folder: Path, architecture: Architecture, recipe: Recipe, form: str, options: ExportOptions
) -> tuple[str, ...]:
    """Write what other tools want beside an unrolled graph; return the names."""
    if form != "unrolled":
        return ()
    dtype = "float16" if recipe.half else "float32"
    return write_side_files(folder, architecture, options.context_length, dtype, options.tokenizer)


def check_values(tensors: Tensors) -> None:
    """Refuse NaN and infinities, naming the tensor."""
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise ExportError(f"tensor '{name}' is {tensor.dtype}, exporters take float32")
        if not (np.isfinite(tensor.min()) and np.isfinite(tensor.max())):
            raise ExportError(
                f"tensor '{name}' holds values that are no numbers (NaN or infinite)",
                hint="this checkpoint is damaged: train again from an earlier one",
            )


def write_files(
    architecture: Architecture, tensors: Tensors, folder: Path, recipe: Recipe, form: str
) -> tuple[Piece, ...]:
    """Write weights, then the graph that points into them; return what lies where in the weights."""
    metadata = {
        "merino_edge.architecture_digest": architecture.digest,
        "merino_edge.recipe": recipe.name,
        "merino_edge.form": form,
        "merino_edge.exporter_version": str(EXPORTER_VERSION),
    }
    decoder = decoder_of(architecture, tensors, recipe, form)
    metadata["merino_edge.cache_in_place"] = str(decoder.layer.cache_in_place(architecture.head_dim)).lower()
    try:
        with open_atomic(folder / WEIGHTS) as stream:
            weights = WeightFile(stream, WEIGHTS)
            graph = decoder.write(GraphWriter(weights), metadata)
        write_atomic(folder / GRAPH, graph)
    except MerinoEdgeError as error:
        raise ExportError(f"export of {recipe.name} stopped: {error.message}", hint=error.hint) from error
    return tuple(weights.layout)
