"""The exporter registered as `tflite`: one file, `model.tflite`, graph and weights.

Whole here: checking what comes in, writing the file under a
temporary name, running it, and taking it away again if it does not compute what the architecture says.
The form `standard` calls each block's layer as a subgraph; `legacy` writes all layers out, for
tflite-runtime 2.14, which crashes on called subgraphs of dynamic size.
"""

from __future__ import annotations

from pathlib import Path

from merino_edge.architecture import Architecture, check_tensors
from merino_edge.bundle import Piece
from merino_edge.errors import ExportError, MerinoEdgeError
from merino_edge.exporters.parity import check_file, remove_refused
from merino_edge.exporters.recipes import Recipe
from merino_edge.exporters.tflite_decoder import (
    BlockInt4Matrices,
    DynamicInt8Matrices,
    Float32Matrices,
    Matrices,
    TfliteDecoder,
)
from merino_edge.exporters.tflite_recipes import find_recipe, quantize_model
from merino_edge.exporters.tflite_runner import TfliteRunner, load_interpreter
from merino_edge.exporters.to_onnx import check_values
from merino_edge.exporting import ExportOptions, ExportResult, Tensors
from merino_edge.files import open_atomic

EXPORTER_VERSION = 3
MODEL = "model.tflite"
SIGNATURE = "serving_default"
MAX_LAYOUT_CHARACTERS = 512 << 10  # a request to a device is at most 1 MiB
RUNTIMES = {"standard": ("ai-edge-litert", "1.4.0"), "legacy": ("tflite-runtime", "2.14.0")}
BLOCKS_SINCE = "2.1.6"  # the lowest release of ai-edge-litert seen to compute scales by block rightly
LEGACY_NOTE = (
    "legacy: layers are written out for tflite-runtime 2.14 (with numpy<2); ai-edge-litert runs it too, "
    "but keeps one packed copy of a shared weight per layer in memory"
)


def export(
    architecture: Architecture, tensors: Tensors, folder: Path, recipe: str, options: ExportOptions
) -> ExportResult:
    """Write the model as TFLite and check it.

    Args:
        architecture: The model.
        tensors: Its tensors, float32, by the names of `architecture.tensor_shapes`.
        folder: Where `model.tflite` goes; made if missing.
        recipe: How weights are stored; see `tflite_recipes.py`.
        options: Form, parity, seed, and how integers are chosen.

    Raises:
        UsageError: no such recipe or form, or a pair that does not exist.
        InvalidFileError: tensors that are missing, foreign, or of another shape.
        ExportError: weights that are no numbers, no runtime to run the file with, or a file that does
            not compute the model. Nothing is left in `folder` then.
    """
    chosen = find_recipe(recipe, options.form, architecture)
    check_tensors(architecture, {name: tensor.shape for name, tensor in tensors.items()}, "weights to export")
    check_values(tensors)
    load_interpreter()  # before long work, not after it
    made = not folder.exists()
    tensors, quantizer = quantize_model(architecture, tensors, chosen, options)
    try:
        layout = write_file(architecture, tensors, folder, chosen, options.form)
        parity, check = check_file(TfliteRunner(folder / MODEL), architecture, tensors, chosen, options)
    except BaseException:  # Ctrl-C too: nothing half-written stays
        remove_refused(folder, (MODEL,), made)
        raise
    runtime, lowest = RUNTIMES[options.form]
    return ExportResult(
        files=(MODEL,),
        form=options.form,
        exporter_version=EXPORTER_VERSION,
        runtime=runtime,
        runtime_min_version=BLOCKS_SINCE if chosen.block else lowest,
        unique_bytes=chosen.unique_bytes(architecture),
        parity=parity,
        check=check,
        notes=(LEGACY_NOTE,) if options.form == "legacy" else (),
        layout={MODEL: layout} if _can_travel(layout) else {},
        quantizer=quantizer,
    )


def matrices_of(recipe: Recipe) -> Matrices:
    """Return the operators that multiply by weights stored so."""
    if recipe.block:
        return BlockInt4Matrices(recipe)
    return Float32Matrices() if recipe.bits == 32 else DynamicInt8Matrices()


def write_file(
    architecture: Architecture, tensors: Tensors, folder: Path, recipe: Recipe, form: str
) -> tuple[Piece, ...]:
    """Write `model.tflite`; return what lies where in it."""
    metadata = {
        "merino_edge.architecture_digest": architecture.digest,
        "merino_edge.recipe": recipe.name,
        "merino_edge.form": form,
        "merino_edge.exporter_version": str(EXPORTER_VERSION),
    }
    decoder = TfliteDecoder(architecture, tensors, matrices_of(recipe), called=form == "standard")
    try:
        with open_atomic(folder / MODEL) as stream:
            return decoder.build(metadata).write(stream, SIGNATURE)
    except MerinoEdgeError as error:
        raise ExportError(f"export of {recipe.name} stopped: {error.message}", hint=error.hint) from error


def _can_travel(layout: tuple[Piece, ...]) -> bool:
    """Say whether a description is short enough for a device to make the file from it."""
    return sum(len(pattern) for _, _, pattern in layout) <= MAX_LAYOUT_CHARACTERS
