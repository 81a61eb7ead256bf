"""The forms of an ONNX graph: which operators it is written in, and which onnxruntime runs them.

    standard   ONNX's own operators of opset 23, one Scan per block; onnxruntime 1.23 and later
    fast       onnxruntime's own operators, one Scan per block, the cache written in place; 1.23 and later
    legacy     opset 17 with everything newer spelled out, one Scan per block; 1.17 and later
    unrolled   plain layers and the names other tools expect; 1.23 and later. Weight-only recipes: 1.28,
               below which each layer keeps a packed copy of its own; fp16, whose operators are older: 1.20

A weight-only recipe needs operators that only onnxruntime has; recipes with float16 activations are
written for GPU providers. What a version carries was found by running every pair on it.
"""

from __future__ import annotations

import re

from merino_edge.architecture import Architecture
from merino_edge.errors import UsageError, did_you_mean
from merino_edge.exporters.decoder import Decoder
from merino_edge.exporters.operators import (
    DynamicInt8Matrices,
    Float32Matrices,
    Layer,
    MaskedLayer,
    Matrices,
    StandardLayer,
)
from merino_edge.exporters.operators_fast import BlockMatrices, FastInt8Matrices, FastLayer, FusedLayer, HeadInBlocks
from merino_edge.exporters.operators_gpu import HEAD_MULTIPLE, Float16Matrices, GpuLayer, HalfBlockMatrices
from merino_edge.exporters.operators_legacy import LegacyLayer
from merino_edge.exporters.recipes import RECIPES, Recipe
from merino_edge.exporters.unrolled import UnrolledDecoder
from merino_edge.exporting import Tensors

FORMS = ("standard", "fast", "legacy", "unrolled")
BY_SPEED = ("fast", "standard", "legacy")  # a device's form is the first that its runtime carries
RUNTIME = {"fast": "1.23", "standard": "1.23", "legacy": "1.17", "unrolled": "1.23"}
RUNTIME_OF_PAIR = {
    ("fp16", "unrolled"): "1.20",
    **{(name, "unrolled"): "1.28" for name, recipe in RECIPES.items() if recipe.block and not recipe.half},
}


def runtime_min_version(recipe: Recipe, form: str) -> str:
    """Return the lowest onnxruntime that runs a pair rightly and keeps each weight in memory once."""
    return RUNTIME_OF_PAIR.get((recipe.name, form), RUNTIME[form])


def find_form(
    recipe: Recipe,
    form: str,
    architecture: Architecture,
    runtime_version: str | None = None,
    asked: bool = False,
) -> str:
    """Return the form a recipe is written in.

    Args:
        recipe: See `recipes.py`.
        form: What was asked for; `standard`, the form of no special wish, gives way to what the
            recipe needs, and to the fastest that the runtime carries where that is known.
        architecture: The model.
        runtime_version: Of the device's onnxruntime, None where the file is for no device in particular.
        asked: The form was asked for by name: `standard` gives way to none then.

    Raises:
        UsageError: no such form, or a pair of recipe and form, or of both and the runtime, that does
            not exist; the message names the nearest that does.
    """
    if form not in FORMS:
        known = f"forms: {', '.join(FORMS)}"
        raise UsageError(f"unknown form '{form}' of an ONNX export{did_you_mean(form, FORMS, listed=True)}", hint=known)
    if recipe.half and architecture.head_dim % HEAD_MULTIPLE:
        raise UsageError(
            f"recipe '{recipe.name}' needs a head_dim that is a multiple of {HEAD_MULTIPLE}, "
            f"not {architecture.head_dim}",
            hint="nearest recipe that fits: fp32",
            nearest="fp32",
        )
    if form == "standard" and not asked:
        wishes = [f for f in BY_SPEED if f in recipe.forms] if runtime_version else []
        fitting = [f for f in wishes if carries(runtime_version, recipe, f)]
        form = fitting[0] if fitting else recipe.forms[0]
    if form not in recipe.forms:
        raise UsageError(
            f"recipe '{recipe.name}' cannot be written in the form '{form}'",
            hint=f"nearest: form '{recipe.forms[0]}' of this recipe, or {nearest_recipe(form)} in this form",
        )
    if not carries(runtime_version, recipe, form):
        raise UsageError(
            f"recipe '{recipe.name}' in the form '{form}' needs onnxruntime {runtime_min_version(recipe, form)}, "
            f"the device's is {runtime_version}",
            hint=f"nearest: {_nearest(recipe, runtime_version)}",
        )
    return form


def carries(runtime_version: str | None, recipe: Recipe, form: str) -> bool:
    """Say whether a runtime runs a recipe in a form; one whose version is unknown runs everything."""
    return runtime_version is None or _numbers(runtime_version) >= _numbers(runtime_min_version(recipe, form))


def nearest_recipe(form: str) -> str:
    """Return the recipe to name where one cannot be written in a form."""
    return (
        "dynamic_wi8_afp32" if "dynamic_wi8_afp32" in {r.name for r in RECIPES.values() if form in r.forms} else "fp32"
    )


def _nearest(recipe: Recipe, runtime_version: str | None) -> str:
    """Return words for the nearest pair that a runtime carries: the same recipe first."""
    for other in (recipe, RECIPES["dynamic_wi8_afp32"]):
        forms = [form for form in BY_SPEED if form in other.forms and carries(runtime_version, other, form)]
        if forms:
            return f"recipe '{other.name}' in the form '{forms[0]}'"
    return f"onnxruntime {RUNTIME['legacy']} or later on the device"


def decoder_of(architecture: Architecture, tensors: Tensors, recipe: Recipe, form: str) -> Decoder:
    """Return what writes a recipe in a form."""
    matrices = matrices_of(recipe, form)
    if form == "unrolled":
        layer: MaskedLayer = GpuLayer() if recipe.half else FusedLayer() if recipe.block else StandardLayer()
        return UnrolledDecoder(architecture, tensors, matrices, layer)
    layers: dict[str, Layer] = {"standard": StandardLayer(), "fast": FastLayer(), "legacy": LegacyLayer()}
    return Decoder(architecture, tensors, matrices, layers[form])


def matrices_of(recipe: Recipe, form: str) -> Matrices:
    """Return the operators that multiply by weights stored so."""
    if recipe.bits >= 16:
        return Float16Matrices() if recipe.half else Float32Matrices()
    if recipe.head_block:
        return HeadInBlocks(recipe.bits, recipe.head_block, recipe.table_bits)
    if recipe.dynamic:
        return FastInt8Matrices() if form == "fast" else DynamicInt8Matrices()
    return (HalfBlockMatrices if recipe.half else BlockMatrices)(recipe.bits, recipe.block, recipe.table_bits)


def _numbers(version: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", version)[:2]]
