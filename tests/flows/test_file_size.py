"""What the search counts as a file's size, against files that were written."""

from __future__ import annotations

from pathlib import Path

import pytest

from merino_edge.architecture import Architecture, Block
from merino_edge.exporting import ExportOptions
from merino_edge.flows.export import random_weights, write_bundle
from merino_edge.search.cost import RECIPES, file_sum, recipe_block, total, unique_bytes

TFLITE_ONLY = [recipe for recipe in RECIPES if recipe.startswith("dynamic_wi4")]
CASES = [
    *(
        ("onnx", recipe, form)
        for recipe in RECIPES
        if recipe not in TFLITE_ONLY
        for form in ("standard", "unrolled")
        if form == "standard" or "_head_b" not in recipe
    ),
    *(("tflite", recipe, "standard") for recipe in ("fp32", "dynamic_wi8_afp32", *TFLITE_ONLY)),
]


@pytest.mark.parametrize(("format_name", "recipe", "form"), CASES)
def test_an_exported_file_is_never_larger_than_the_search_counts(
    format_name: str, recipe: str, form: str, tmp_path: Path
) -> None:
    first = max(64, recipe_block(recipe))
    architecture = Architecture((Block(first, 2, 3), Block(128, 1, 1), Block(128, 1, 2)), 128, 64, 32)
    options = ExportOptions(form=form, context_length=32, parity=False)
    bundle = write_bundle(architecture, random_weights(architecture, 32), tmp_path, format_name, recipe, options)
    manifest = bundle.manifest
    assert unique_bytes(architecture, recipe) == manifest.unique_bytes < manifest.file_bytes
    assert manifest.file_bytes <= total(file_sum(recipe, False), architecture)
