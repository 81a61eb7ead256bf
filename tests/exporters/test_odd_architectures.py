"""Architectures of every shape compute the model in every form, in the export's check and in the agent's session."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from merino_edge.agent.opening import open_session
from merino_edge.architecture import Architecture, Block
from merino_edge.errors import UsageError
from merino_edge.exporters.forms import FORMS, find_form, runtime_min_version
from merino_edge.exporters.quantizers import quantize_model
from merino_edge.exporters.recipes import RECIPES, Recipe, find_recipe
from merino_edge.exporters.to_onnx import export
from merino_edge.exporting import ExportOptions
from merino_edge.reference import forward, random_tensors

PAIRS = [(recipe, form) for recipe in RECIPES.values() for form in recipe.forms if recipe.block in (0, 32)]
PIECES = (5, 6, 7, 23, 40)


@st.composite
def architectures(draw: st.DrawFn, recipe: Recipe) -> Architecture:
    """One to eight blocks of unequal widths, or of one width with an embedding skip; heads of any size; any vocabulary.

    Rounding to small integers needs some width and some logits to average out: only floats go down to next to nothing.
    """
    floats = recipe.bits >= 16 and not recipe.half
    head_dim = draw(st.sampled_from([4, 10, 16, 32, 48, 128] if floats else [32, 64, 128]))
    ratio = st.floats(0.3, 4) if floats else st.sampled_from([1, 2, 4])
    heads = st.integers(1 if floats else -(-96 // head_dim), 4)
    block = st.builds(Block, heads.map(lambda count: count * head_dim), ratio, st.integers(1, 3))
    blocks = draw(st.lists(block, min_size=1, max_size=8 if floats else 4))
    skip = draw(st.booleans())
    if skip:  # which blocks of one width can have
        blocks = [replace(other, width=blocks[0].width) for other in blocks]
    return Architecture(
        tuple(blocks),
        embedding_width=recipe.table_block * draw(st.integers(1, 4))
        if recipe.table_block
        else draw(st.integers(33 if recipe.bits < 16 else 3, 130)),
        vocab_size=draw(st.integers(2 if floats else 65, 700)),
        head_dim=head_dim,
        per_layer_norms=draw(st.booleans()),
        embedding_skip=skip,
    )


@pytest.mark.parametrize(("recipe", "form"), PAIRS, ids=[f"{recipe.name}-{form}" for recipe, form in PAIRS])
@settings(deadline=None, max_examples=4, derandomize=True, phases=(Phase.generate,))
@given(st.data())
def test_any_architecture_computes_the_model_in_any_form(recipe: Recipe, form: str, data: st.DataObject) -> None:
    architecture = data.draw(architectures(recipe))
    tensors = random_tensors(architecture, seed=1, scale=0.05)
    tensors = {n: 20 * t if n.endswith("skip_gains") else t for n, t in tensors.items()}  # a skip that does much
    ids = np.random.default_rng(2).integers(0, architecture.vocab_size, PIECES[-1])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        result = export(architecture, tensors, folder, recipe.name, ExportOptions(form=form))
        manifest = {"format": "onnx", "form": form, "recipe": recipe.name, "files": [{"name": result.files[0]}]}
        session = open_session(folder, manifest, threads=1)
        rows, start = [], 0
        for end in PIECES:
            rows.append(session.feed(ids[start:end], list(range(end - start))).copy())
            start = end
        session.truncate(9)
        rows.append(session.feed(ids[9:30], list(range(21))).copy())
        session.close()
    quantized, _ = quantize_model(architecture, tensors, recipe, ExportOptions())
    expected = forward(architecture, {name: recipe.rounded(tensor) for name, tensor in quantized.items()}, ids)
    expected = np.concatenate([expected, expected[9:30]])
    bound = recipe.check_tolerance if recipe.dynamic else recipe.parity_bound  # one scale a piece: pieces matter
    assert np.abs(np.concatenate(rows) - expected).max() <= bound * expected.std()


@pytest.mark.parametrize(
    ("recipe", "runtime", "form"),
    [
        ("dynamic_wi8_afp32", "1.32.0", "fast"),
        ("dynamic_wi8_afp32", "1.23.2", "fast"),
        ("dynamic_wi8_afp32", "1.22.1", "legacy"),
        ("fp32", "1.19.2", "legacy"),
        ("dynamic_wi8_afp32", None, "standard"),
        ("weight_only_wi4_b32_afp32", "1.23.2", "fast"),
    ],
)
def test_form_follows_the_runtime_of_the_device(recipe: str, runtime: str | None, form: str) -> None:
    architecture = Architecture((Block(64, 1, 1),), 64, 50, head_dim=32)
    assert find_form(find_recipe(recipe, architecture), "standard", architecture, runtime) == form


@pytest.mark.parametrize(
    ("recipe", "form", "runtime", "nearest"),
    [
        ("weight_only_wi4_b32_afp32", "standard", "1.19.2", "recipe 'dynamic_wi8_afp32' in the form 'legacy'"),
        ("weight_only_wi4_b32_afp32", "legacy", None, "form 'fast'"),
        ("dynamic_wi8_afp32", "fast", "1.19.2", "recipe 'dynamic_wi8_afp32' in the form 'legacy'"),
        ("fp16", "fast", None, "form 'unrolled'"),
        ("fp32", "standard", "1.16.3", "onnxruntime 1.17 or later"),
    ],
)
def test_an_impossible_pair_names_the_nearest_possible_one(
    recipe: str, form: str, runtime: str | None, nearest: str
) -> None:
    architecture = Architecture((Block(64, 1, 1),), 64, 50, head_dim=32)
    with pytest.raises(UsageError) as caught:
        find_form(find_recipe(recipe, architecture), form, architecture, runtime)
    assert nearest in caught.value.hint


def test_a_form_asked_for_by_name_gives_way_to_no_other() -> None:
    architecture = Architecture((Block(64, 1, 1),), 64, 50, head_dim=32)
    weight_only, int8 = (find_recipe(name, architecture) for name in ("weight_only_wi4_b32_afp32", "dynamic_wi8_afp32"))
    assert find_form(weight_only, "standard", architecture) == "fast"
    assert find_form(int8, "standard", architecture, asked=True) == "standard"
    with pytest.raises(UsageError, match="cannot be written in the form 'standard'") as caught:
        find_form(weight_only, "standard", architecture, asked=True)
    assert "form 'fast' of this recipe" in str(caught.value.hint)


def test_every_pair_says_which_runtime_it_needs() -> None:
    assert {form for _, form in PAIRS} == set(FORMS)
    assert all(runtime_min_version(recipe, form)[:2] == "1." for recipe, form in PAIRS)
