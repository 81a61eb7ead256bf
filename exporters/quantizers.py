"""Who chooses the integers of a model's matrices.

    rtn    round to nearest; scales by the largest value of each block (`quantize.py`)
    mse    scales of least squared error, then round to nearest (`scales.py`); needs no text
    gptq   scales and rounding by what the matrices meet on calibration text (`gptq.py`)

`auto` is `gptq` at 4 bits where there is calibration text, `mse` where there is none, and `rtn` at 8
bits, where nothing is left to gain. The file's layout and operators are the same for all of them.
Before `mse` and `gptq` choose 4-bit integers, inputs of like size are brought into the same blocks
(`ordering.py`).

`bench/quantization.py` compares them. Zero points, which MatMulNBits also takes, were tried and left
out: a zero point a block, chosen by the range or by half-quadratic quantization (HQQ), did less on a
trained model than `mse` does without one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from merino_edge.architecture import Architecture
from merino_edge.errors import UsageError, did_you_mean
from merino_edge.exporters.calibration import collect_hessians
from merino_edge.exporters.gptq import damping_for, round_with_gptq
from merino_edge.exporters.ordering import order_by_size
from merino_edge.exporters.quantize import QuantizedTensor, RoundedMatrix, hold_pairs, is_paired, quantize_blocks
from merino_edge.exporters.recipes import Recipe
from merino_edge.exporters.scales import best_scales, quantize_with_mse
from merino_edge.exporting import ExportOptions, Tensors

Float32 = npt.NDArray[np.float32]
QUANTIZERS = ("rtn", "mse", "gptq")
FEWEST_CALIBRATION_TOKENS = 256
WINDOW = 256  # calibration tokens that see one another: bounds time and memory


def quantize_model(
    architecture: Architecture, tensors: Tensors, recipe: Recipe, options: ExportOptions
) -> tuple[Tensors, str | None]:
    """Round every matrix as the recipe stores it, with the quantizer asked for.

    Args:
        architecture: The model.
        tensors: Its weights, float32.
        recipe: How they are stored.
        options: `quantizer` and `calibration`.

    Returns:
        The tensors, matrices as `RoundedMatrix` where they are not simply rounded to nearest; and
        the quantizer's name, None for a recipe without integers.

    Raises:
        UsageError: no such quantizer, one that this recipe cannot use, or too little text for it.
    """
    quantizer = _choose(recipe, options)
    alike = recipe.stored("embedding.weight") == (recipe.bits, recipe.block)
    if quantizer is None or (quantizer == "rtn" and alike):
        return tensors, quantizer
    if recipe.bits == 4 and quantizer != "rtn":
        tensors = order_by_size(architecture, tensors)
    quantize = _by_name(quantizer, architecture, tensors, options)
    rounded = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.ndim == 2:
            bits, block = recipe.stored(name)
            rounded[name] = RoundedMatrix(quantize(name, tensor, block or tensor.shape[1], bits))
    return rounded, quantizer


def _choose(recipe: Recipe, options: ExportOptions) -> str | None:
    """Return the quantizer's name, None for a recipe without integers."""
    name, text = options.quantizer, options.calibration
    if name not in (*QUANTIZERS, "auto"):
        raise UsageError(
            f"unknown quantizer '{name}'{did_you_mean(name, QUANTIZERS, listed=True)}",
            hint=f"quantizers: auto, {', '.join(QUANTIZERS)}",
        )
    enough = text is not None and len(text) >= FEWEST_CALIBRATION_TOKENS
    if recipe.bits >= 16:
        if name not in ("auto", "rtn"):
            raise UsageError(f"recipe '{recipe.name}' has no integers to choose", hint="leave --quantizer out")
        return None
    if name == "auto":
        return "rtn" if recipe.bits == 8 else "gptq" if enough else "mse"
    if name == "gptq" and not enough:
        raise UsageError(
            f"the quantizer gptq needs at least {FEWEST_CALIBRATION_TOKENS} tokens of text for a trained model",
            hint="train first, name a text with --text PATH, or take --quantizer mse",
        )
    return name


def _by_name(
    quantizer: str, architecture: Architecture, tensors: Tensors, options: ExportOptions
) -> Callable[[str, Float32, int, int], QuantizedTensor]:
    """Return what quantizes the matrix of a name, with a block and a number of bits."""
    if quantizer == "rtn":
        return lambda name, matrix, block, bits: quantize_blocks(matrix, block, bits)
    if quantizer == "mse":
        return lambda name, matrix, block, bits: quantize_with_mse(matrix, block, bits)
    text = options.calibration
    assert text is not None
    hessians = collect_hessians(architecture, tensors, text, WINDOW)

    def with_gptq(name: str, matrix: Float32, block: int, bits: int) -> QuantizedTensor:
        hessian = hessians[name]
        nearest = quantize_blocks(matrix, block, bits)
        scale = nearest.scale if bits == 8 else best_scales(matrix, block, bits, np.diag(hessian))
        if name == "embedding.weight" and bits == 8:  # its rows are also read as they are: they must stay near
            return nearest
        found = round_with_gptq(matrix, hessian, scale, bits, damping_for(len(hessian), len(text)))
        if is_paired(bits, block, matrix.shape[1]):
            hold_pairs(found.values)
        return found

    return with_gptq
