"""What a recipe's name means, in the words of the field: how weights and activations are stored.

    fp32                        everything float32
    dynamic_wi8_afp32           weights int8, one scale per output channel; activations are float32
                                between operators and quantized to 8 bits inside each product
    dynamic_wi8_head_b128_afp32   the same, but head and token table, which are one, with one scale per 128 values:
                                the runtime reads them from memory twice as fast when it generates
    weight_only_wi8_b32_afp32   weights int8, one scale per 32 input values; activations float32
    weight_only_wi4_b128_afp32  weights int4, one scale per 128 input values; activations float32
    weight_only_wi4_b32_head8_afp32   the same in blocks of 32, but head and token table, which are one, int8
    fp16                        everything float16, for GPU providers
    weight_only_wi4_b32_afp16   weights int4, one float16 scale per 32 input values; activations float16,
                                for GPU providers

Every matrix of the model is stored so, the token table too; norm gains have the activations' type.
The block of a weight-only recipe is 32, 64 or 128 and must divide every matrix's input width.

What a form is, and which onnxruntime carries it, stands in `forms.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from merino_edge.architecture import Architecture
from merino_edge.errors import UsageError, did_you_mean
from merino_edge.exporters.quantize import QuantizedTensor, RoundedMatrix, quantize_blocks, quantize_rows

Float32 = npt.NDArray[np.float32]
BLOCKS = (128, 64, 32)
# Of float16 files, see `parity_bound`. A value is rounded by up to 2^-11 of itself after every operator, some ten
# times a layer, and the roundings add up like random steps: 0.003 to 0.006 of a deviation was seen. A wrong graph is
# off by a whole one.
HALF_BOUND = 0.05


@dataclass(frozen=True)
class Recipe:
    """How the weights are stored, and how near the file must stay to the reference.

    Attributes:
        name: As the user types it.
        bits: Of a stored weight: 32, 16, 8 or 4.
        block: Values that share a scale; 0 for a whole row. Meaningless for floats.
        dynamic: Activations are quantized inside each product.
        forms: Forms that can carry it; the first is written where nobody asks for another.
        parity_bound: Largest difference to the reference run with the same dequantized weights, as
            a share of the logits' standard deviation. Where the product rounds activations to 8
            bits this is a bound on that rounding; `exact_bound` then holds for the graph itself.
        exact_bound: The same for the graph told to multiply in float32, where it can be told.
        half: Activations, norm gains and scales are float16.
        check_tolerance: The same for another CPU's answer against the exported file's own here.
            Float32: another order of summation and other exponentials, far above any seen. Dynamic
            int8: a value near the middle of two steps may round to either; a wrong weight or a
            wrong graph is off by a whole deviation.
        head_bits: Of the token table, which is also the head, where it is stored in other bits.
        head_block: Values of it that share a scale, where that is another number.
    """

    name: str
    bits: int
    block: int
    dynamic: bool
    forms: tuple[str, ...]
    parity_bound: float
    exact_bound: float | None
    check_tolerance: float
    head_bits: int | None = None
    head_block: int | None = None
    half: bool = False

    @property
    def rounds_activations(self) -> bool:
        """Whether products round their inputs to 8 bits."""
        return self.dynamic or self.exact_bound is not None

    @property
    def table_bits(self) -> int:
        """Bits of a stored value of the token table."""
        return self.head_bits or self.bits

    @property
    def table_block(self) -> int:
        """Values of the token table that share a scale; 0 for a whole row."""
        return self.head_block or self.block

    def stored(self, name: str) -> tuple[int, int]:
        """Return the bits of a stored value of a matrix, and how many share a scale: 0 for a whole row."""
        return (self.table_bits, self.table_block) if name == "embedding.weight" else (self.bits, self.block)

    def quantize(self, matrix: Float32) -> QuantizedTensor:
        """Return a matrix `[out, in]` as this recipe stores it (not for floats)."""
        assert self.bits < 16
        return quantize_blocks(matrix, self.block, self.bits) if self.block else quantize_rows(matrix)

    def rounded(self, tensor: Float32) -> Float32:
        """Return what the file holds of a tensor, back in float32: the reference's weights."""
        if self.bits >= 16 or tensor.ndim != 2:
            return self._as_stored(tensor)
        known = tensor.quantized if isinstance(tensor, RoundedMatrix) else None
        quantized = known or self.quantize(tensor)
        return replace(quantized, scale=self._as_stored(quantized.scale)).dequantize()

    def _as_stored(self, values: Float32) -> Float32:
        """Return floats as the file holds them."""
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32) if self.half else values

    def tensor_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        """Bytes of one unique tensor: values and scales; vectors and norm gains have the activations' type."""
        count, float_bytes = int(np.prod(shape)), 2 if self.half else 4
        if self.bits >= 16 or len(shape) != 2:
            return float_bytes * count
        bits, block = self.stored(name)
        groups = shape[1] // block if block else 1
        return count * bits // 8 + float_bytes * shape[0] * groups

    def unique_bytes(self, architecture: Architecture) -> int:
        """Bytes of the whole model, each unique tensor once."""
        return sum(self.tensor_bytes(name, shape) for name, shape in architecture.tensor_shapes.items())


ALL, WEIGHT_ONLY, GPU = ("standard", "fast", "legacy", "unrolled"), ("fast", "unrolled"), ("unrolled",)
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("fp32", 32, 0, False, ALL, parity_bound=1e-4, exact_bound=None, check_tolerance=1e-3),
        Recipe("dynamic_wi8_afp32", 8, 0, True, ALL, parity_bound=0.2, exact_bound=1e-4, check_tolerance=0.35),
        *(
            Recipe(f"dynamic_wi8_head_b{block}_afp32", 8, 0, True, ("fast",), 0.2, 1e-4, 0.35, head_block=block)
            for block in (128, 64)
        ),
        *(
            Recipe(f"weight_only_wi{bits}_b{block}_afp32", bits, block, False, WEIGHT_ONLY, 0.2, 1e-4, 0.35)
            for bits in (8, 4)
            for block in BLOCKS
        ),
        *(
            Recipe(f"weight_only_wi4_b{block}_head8_afp32", 4, block, False, WEIGHT_ONLY, 0.2, 1e-4, 0.35, head_bits=8)
            for block in BLOCKS
        ),
        Recipe("fp16", 16, 0, False, GPU, HALF_BOUND, None, check_tolerance=0.1, half=True),
        Recipe("weight_only_wi4_b32_afp16", 4, 32, False, GPU, HALF_BOUND, None, check_tolerance=0.1, half=True),
    )
}


def find_recipe(name: str, architecture: Architecture) -> Recipe:
    """Return the recipe of a name.

    Raises:
        UsageError: no such recipe, or matrices that its blocks do not divide.
    """
    if name not in RECIPES:
        if re.fullmatch(r"dynamic_wi4_b\d+_afp32", name):
            nearest = name.replace("dynamic", "weight_only")
            nearest = nearest if nearest in RECIPES else "int4"
            raise UsageError(
                f"recipe '{name}' cannot be written as ONNX: it is what TFLite's runtime computes",
                hint=f"nearest: --recipe {nearest}, or --format tflite --recipe {name}",
            )
        known = f"recipes: {', '.join(RECIPES)}"
        raise UsageError(f"unknown recipe '{name}'{did_you_mean(name, RECIPES, listed=True)}", hint=known)
    _check_blocks(RECIPES[name], architecture)
    return RECIPES[name]


def _check_blocks(recipe: Recipe, architecture: Architecture) -> None:
    columns = {name: shape[1] for name, shape in architecture.tensor_shapes.items() if len(shape) == 2}
    blocks = {name: recipe.stored(name)[1] for name in columns}
    odd = [name for name, width in columns.items() if blocks[name] and width % blocks[name]]
    if not odd:
        return
    fitting = [b for b in BLOCKS if all(width % b == 0 for width in columns.values())] if recipe.block else []
    nearest = f"weight_only_wi{recipe.bits}_b{fitting[0]}_afp32" if fitting else "dynamic_wi8_afp32"
    raise UsageError(
        f"recipe '{recipe.name}': blocks of {blocks[odd[0]]} do not divide the {columns[odd[0]]} inputs of '{odd[0]}'",
        hint=f"nearest recipe that fits: {nearest}",
        nearest=nearest,
    )
