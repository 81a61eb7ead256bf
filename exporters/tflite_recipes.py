"""Which recipes a TFLite file can have, in which form, and how its 4-bit weights are rounded.

    fp32                    everything float32
    dynamic_wi8_afp32       int8 weights, one scale a row; inputs of a product rounded to 8 bits, row by row
    dynamic_wi4_b32_afp32   int4 weights, one scale for 32 inputs (64, 128); inputs as above

The runtime multiplies no 4-bit weights by float32 inputs, so that there is no `weight_only` recipe.
Its 4-bit scales are float16 in the file and bfloat16 in the product, and positive: here they are
rounded to what both can hold before the integers are chosen, so that nothing is rounded later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from merino_edge.architecture import Architecture
from merino_edge.errors import UsageError, did_you_mean
from merino_edge.exporters import quantizers, recipes
from merino_edge.exporters.forms import FORMS as ONNX_FORMS
from merino_edge.exporters.quantize import Float32, QuantizedTensor
from merino_edge.exporting import ExportOptions, Tensors

FORMS = ("standard", "legacy")
BLOCKS = (128, 64, 32)
_SMALLEST_SCALE = np.float32(2.0**-14)  # of float16 with all its digits


@dataclass(frozen=True)
class BlockInt4(recipes.Recipe):
    """int4 weights in blocks that share a float16 scale."""

    def quantize(self, matrix: Float32) -> QuantizedTensor:
        """Round to nearest; the value of largest magnitude becomes -8 where it is negative, else 7."""
        rows, columns = matrix.shape
        grouped = matrix.reshape(rows, columns // self.block, self.block)
        scale = np.maximum(grouped.max(-1) / np.float32(7), grouped.min(-1) / np.float32(-8))
        scale = eight_digits(np.maximum(scale, _SMALLEST_SCALE))  # (out, groups)
        values = np.clip(np.rint(grouped / scale[:, :, None]), -8, 7)
        return QuantizedTensor(values.astype(np.int8).reshape(rows, columns), scale, bits=4)

    def unique_bytes(self, architecture: Architecture) -> int:
        """Bytes of the whole model, each unique tensor once; scales take two bytes each."""
        matrices = [shape for shape in architecture.tensor_shapes.values() if len(shape) == 2]
        vectors = [shape for shape in architecture.tensor_shapes.values() if len(shape) != 2]
        values = sum(rows * columns for rows, columns in matrices)
        return values // 2 + 2 * values // self.block + 4 * sum(int(np.prod(shape)) for shape in vectors)


def eight_digits(scale: Float32) -> Float32:
    """Round positive float32 to eight binary digits, which bfloat16 has: to nearest, ties to even."""
    mantissa, exponent = np.frexp(scale)
    rounded: Float32 = np.ldexp(np.rint(mantissa * 256) / 256, exponent).astype(np.float32)
    return rounded


RECIPES: dict[str, recipes.Recipe] = {
    **{name: replace(recipes.RECIPES[name], forms=FORMS) for name in ("fp32", "dynamic_wi8_afp32")},
    **{
        f"dynamic_wi4_b{block}_afp32": BlockInt4(
            f"dynamic_wi4_b{block}_afp32", 4, block, True, FORMS[:1], 0.2, None, check_tolerance=0.35
        )
        for block in BLOCKS
    },
}


def quantize_model(
    architecture: Architecture, tensors: Tensors, recipe: recipes.Recipe, options: ExportOptions
) -> tuple[Tensors, str | None]:
    """Round every matrix with the quantizer asked for; see `quantizers.py`.

    Raises:
        UsageError: a quantizer that this recipe cannot use.
    """
    if not recipe.block:
        return quantizers.quantize_model(architecture, tensors, recipe, options)
    if options.quantizer not in ("auto", "rtn"):
        raise UsageError(
            f"recipe '{recipe.name}' is rounded to nearest: quantizer '{options.quantizer}' knows no float16 scales",
            hint="leave --quantizer out, or take --format onnx --recipe int4",
        )
    return tensors, "rtn"


def find_recipe(name: str, form: str, architecture: Architecture) -> recipes.Recipe:
    """Return the recipe of a name.

    Raises:
        UsageError: no such recipe or form, a pair that does not exist, or matrices that blocks do not
            divide; the nearest that is possible is named.
    """
    allowed = f"recipes: {', '.join(RECIPES)}; forms: {', '.join(FORMS)}"
    if form not in FORMS:
        of_onnx = f"nearest: --form {FORMS[0]}, or --format onnx --form {form}" if form in ONNX_FORMS else allowed
        raise UsageError(
            f"unknown form '{form}' of a TFLite export{did_you_mean(form, FORMS, listed=True)}", hint=of_onnx
        )
    if name not in RECIPES and name in recipes.RECIPES:
        other = recipes.RECIPES[name]
        nearest = name.replace("weight_only_wi4", "dynamic_wi4").replace("_head8", "")
        nearest = nearest if nearest in RECIPES else "fp32" if other.bits == 16 else "dynamic_wi8_afp32"
        reason = "its runtime rounds the inputs of such products to 8 bits"
        reason = "it is for GPU providers of onnxruntime" if other.half else reason
        reason = "only onnxruntime looks rows up in a table of blocks" if other.dynamic else reason
        raise UsageError(
            f"recipe '{name}' cannot be written as TFLite: {reason}",
            hint=f"nearest: --recipe {nearest}, or --format onnx --recipe {name}",
        )
    if name not in RECIPES:
        raise UsageError(f"unknown recipe '{name}'{did_you_mean(name, RECIPES, listed=True)}", hint=allowed)
    recipe = RECIPES[name]
    if form not in recipe.forms:
        raise UsageError(
            f"recipe '{name}' has no form 'legacy': tflite-runtime 2.14 computes blocks wrongly",
            hint="nearest: --recipe dynamic_wi8_afp32 --form legacy",
        )
    _check_blocks(recipe, architecture)
    return recipe


def _check_blocks(recipe: recipes.Recipe, architecture: Architecture) -> None:
    columns = {name: shape[1] for name, shape in architecture.tensor_shapes.items() if len(shape) == 2}
    odd = [name for name, width in columns.items() if recipe.block and width % recipe.block]
    if odd:
        fitting = [b for b in BLOCKS if all(width % b == 0 for width in columns.values())]
        nearest = f"dynamic_wi4_b{fitting[0]}_afp32" if fitting else "dynamic_wi8_afp32"
        raise UsageError(
            f"recipe '{recipe.name}': blocks of {recipe.block} do not divide "
            f"the {columns[odd[0]]} inputs of '{odd[0]}'",
            hint=f"nearest recipe that fits: {nearest}",
            nearest=nearest,
        )
