"""The ONNX export computes the model, stores each tensor once, and leaves nothing when it fails."""

import math
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from merino_edge.architecture import Architecture, Block
from merino_edge.bundle import OutputCheck
from merino_edge.errors import ExportError, InvalidFileError, UsageError
from merino_edge.exporters import parity
from merino_edge.exporters.activations import forward_with_rounded_activations
from merino_edge.exporters.parity import FileRunner, compare
from merino_edge.exporters.recipes import RECIPES, Recipe
from merino_edge.exporters.to_onnx import export
from merino_edge.exporting import ExportOptions, ExportResult
from merino_edge.reference import forward, random_tensors

ARCHITECTURES = {
    "one block": Architecture((Block(64, 2, 1),), 64, 97, head_dim=32),
    "three unequal blocks": Architecture((Block(64, 2, 2), Block(160, 1.5, 3), Block(96, 4, 1)), 48, 101, head_dim=32),
    "head_dim 64, odd vocabulary": Architecture((Block(128, 2, 2), Block(256, 1, 2)), 128, 333),
    "per-layer norms": Architecture((Block(64, 2, 3), Block(128, 1, 1)), 64, 97, head_dim=32, per_layer_norms=True),
    "embedding skip": Architecture((Block(64, 2, 3), Block(64, 1, 1)), 64, 97, head_dim=32, embedding_skip=True),
    "embedding skip, first projected": Architecture(
        (Block(128, 2, 3), Block(128, 1, 1)), 64, 97, head_dim=32, per_layer_norms=True, embedding_skip=True
    ),
    "odd ffn, five tokens": Architecture((Block(64, 1.3, 2),), 33, 5, head_dim=16),
}
TINY = ARCHITECTURES["three unequal blocks"]
EVERY = [
    (recipe, form)
    for recipe in RECIPES.values()
    for form in recipe.forms
    if form != "unrolled" or recipe.block in (0, 32)  # the block size does not meet the form
]
IDS = [f"{recipe.name}-{form}" for recipe, form in EVERY]


def weights(architecture: Architecture, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights whose norm gains are not all one, and whose embedding skip, where there is one, does much."""
    tensors = random_tensors(architecture, seed, scale=0.05)
    rng = np.random.default_rng(seed)
    for name, tensor in tensors.items():
        if "norm" in name:
            tensors[name] = tensor + rng.normal(0, 0.3, tensor.shape).astype(np.float32)
        elif name.endswith("skip_gains"):
            tensors[name] = rng.normal(0, 1, tensor.shape).astype(np.float32)
    return tensors


def write(architecture: Architecture, folder: Path, recipe: str = "fp32", **options: object) -> ExportResult:
    return export(architecture, weights(architecture), folder, recipe, ExportOptions(**options))


def can_carry(recipe: Recipe, architecture: Architecture) -> bool:
    shapes = {name: shape for name, shape in architecture.tensor_shapes.items() if len(shape) == 2}
    return all(shape[1] % (recipe.stored(name)[1] or 1) == 0 for name, shape in shapes.items())


@pytest.mark.parametrize(
    ("name", "recipe", "form"),
    [(n, r, f) for n, a in ARCHITECTURES.items() for r, f in EVERY if can_carry(r, a)],
    ids=lambda value: getattr(value, "name", value),
)
def test_file_agrees_with_the_reference_within_the_bound(name: str, recipe: Recipe, form: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    parity = write(architecture, tmp_path, recipe.name, form=form).parity
    assert parity["checked"]
    assert len(parity["prompts"]) == 3
    assert 0 <= parity["max_abs_diff"] <= recipe.parity_bound * parity["logits_std"]


@pytest.mark.parametrize("skip", [False, True], ids=["", "skip"])
@pytest.mark.parametrize(("recipe", "form"), EVERY, ids=IDS)
def test_file_is_no_larger_than_its_unique_tensors(recipe: Recipe, form: str, skip: bool, tmp_path: Path) -> None:
    architecture = Architecture((Block(128, 2, 4), Block(128 if skip else 256, 2, 4)), 128, 2001, embedding_skip=skip)
    result = write(architecture, tmp_path, recipe.name, form=form, parity=False)
    file_bytes = sum((tmp_path / name).stat().st_size for name in result.files)
    assert result.unique_bytes <= file_bytes <= 1.01 * result.unique_bytes + 4096 * len(architecture.tensor_shapes)


def test_unique_bytes_follow_the_formula() -> None:
    shapes = TINY.tensor_shapes
    matrices = [s for s in shapes.values() if len(s) == 2]
    norms = sum(math.prod(s) for s in shapes.values() if len(s) != 2)
    assert RECIPES["fp32"].unique_bytes(TINY) == 4 * TINY.unique_parameters
    int8 = sum(out * columns + 4 * out for out, columns in matrices) + 4 * norms
    assert RECIPES["dynamic_wi8_afp32"].unique_bytes(TINY) == int8


@pytest.mark.parametrize("recipe", ["fp32", "dynamic_wi8_afp32"])
def test_standard_form_uses_the_standard_alone_and_passes_the_checker(recipe: str, tmp_path: Path) -> None:
    write(TINY, tmp_path, recipe)
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    model = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 23)]
    assert sum(node.op_type == "Scan" for node in model.graph.node) == len(TINY.blocks)


def test_graph_names_its_inputs_and_outputs_as_agreed(tmp_path: Path) -> None:
    write(TINY, tmp_path)
    graph = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False).graph
    cache = [f"{i}.{part}" for i in range(3) for part in ("key", "value")]
    assert [value.name for value in graph.input] == ["input_ids", "logits_index", *(f"past.{c}" for c in cache)]
    assert [value.name for value in graph.output] == ["logits", *(f"present.{c}" for c in cache)]
    dims = graph.input[4].type.tensor_type.shape.dim  # past.1.key: (L, 1, H, P, D)
    assert [d.dim_value or d.dim_param for d in dims] == [3, 1, 5, "past", 32]


def test_only_asked_for_positions_get_logits(tmp_path: Path) -> None:
    write(TINY, tmp_path)
    token_ids = np.arange(7)
    every = FileRunner(tmp_path / "model.onnx").feed(token_ids)
    some = FileRunner(tmp_path / "model.onnx").feed(token_ids, np.array([5, 2]))
    none = FileRunner(tmp_path / "model.onnx").feed(token_ids, np.array([], np.int64))
    np.testing.assert_allclose(some, every[[5, 2]], atol=1e-5 * every.std())
    assert none.shape == (0, TINY.vocab_size)


def test_far_positions_keep_their_angles(tmp_path: Path) -> None:
    architecture = ARCHITECTURES["one block"]
    write(architecture, tmp_path, parity=False)
    token_ids = np.random.default_rng(3).integers(0, architecture.vocab_size, 1500)
    expected = forward(architecture, weights(architecture), token_ids, [1499])
    runner = FileRunner(tmp_path / "model.onnx")
    runner.feed(token_ids[:1490], np.array([0]))
    logits = runner.feed(token_ids[1490:], np.array([9]))
    assert np.abs(logits - expected).max() <= 1e-4 * expected.std()


def test_same_weights_give_the_same_bytes_twice(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(TINY, tmp_path / folder, "dynamic_wi8_afp32", parity=False)
    for name in ("model.onnx", "model.data"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("recipe", ["fp32", "dynamic_wi8_afp32"])
def test_check_is_the_files_own_answer_with_and_without_parity(recipe: str, tmp_path: Path) -> None:
    check = write(TINY, tmp_path / "a", recipe).check
    unchecked = write(TINY, tmp_path / "b", recipe, parity=False)
    assert unchecked.parity == {"checked": False}
    assert unchecked.check == check
    logits = FileRunner(tmp_path / "a" / "model.onnx").feed(np.array(check.token_ids), np.array([7]))[0]
    assert len(check.token_ids) == len(check.top) == 8
    assert check.top[0] == (int(logits.argmax()), float(logits.max()))


def test_check_catches_one_layer_too_few(tmp_path: Path) -> None:
    check: OutputCheck = write(TINY, tmp_path / "a", "dynamic_wi8_afp32").check
    fewer = Architecture((Block(64, 2, 2), Block(160, 1.5, 2), Block(96, 4, 1)), 48, 101, head_dim=32)
    export(fewer, weights(TINY), tmp_path / "b", "dynamic_wi8_afp32", ExportOptions())
    logits = FileRunner(tmp_path / "b" / "model.onnx").feed(np.array(check.token_ids), np.array([7]))[0]
    assert max(abs(logits[token] - value) for token, value in check.top) > check.tolerance


@pytest.mark.parametrize("form", ["standard", "fast", "legacy", "unrolled"])
@pytest.mark.parametrize("name", ["embedding skip", "embedding skip, first projected"])
def test_an_embedding_skip_left_out_or_of_another_layer_is_refused(name: str, form: str, tmp_path: Path) -> None:
    architecture, tensors = ARCHITECTURES[name], weights(ARCHITECTURES[name])
    gains = tensors["blocks.0.skip_gains"]
    for number, wrong in enumerate((np.zeros_like(gains), gains[[1, 0, 2]])):
        changed = {**tensors, "blocks.0.skip_gains": wrong}
        export(architecture, changed, tmp_path / str(number), "fp32", ExportOptions(form=form))
        with pytest.raises(ExportError, match="disagrees with the reference"):
            compare(FileRunner(tmp_path / str(number) / "model.onnx"), architecture, tensors, RECIPES["fp32"], seed=0)


def test_an_embedding_skip_costs_one_operator_a_layer(tmp_path: Path) -> None:
    counts = []
    for skip in (False, True):
        architecture = replace(ARCHITECTURES["embedding skip"], embedding_skip=skip)
        write(architecture, tmp_path / str(skip), form="fast")
        graph = onnx.load(str(tmp_path / str(skip) / "model.onnx"), load_external_data=False).graph
        bodies = [attribute.g for node in graph.node for attribute in node.attribute if attribute.name == "body"]
        counts.append([len(body.node) for body in bodies])
    assert counts[1] == [count + 1 for count in counts[0]]


def test_all_zero_weights_export(tmp_path: Path) -> None:
    zeros = {name: np.zeros_like(t) for name, t in weights(TINY).items()}
    result = export(TINY, zeros, tmp_path, "dynamic_wi8_afp32", ExportOptions())
    assert result.parity["max_abs_diff"] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_refused_by_name(value: float, tmp_path: Path) -> None:
    tensors = weights(TINY)
    tensors["blocks.1.key.weight"][3, 4] = value
    with pytest.raises(ExportError, match=r"blocks\.1\.key\.weight"):
        export(TINY, tensors, tmp_path / "out", "fp32", ExportOptions())
    assert not (tmp_path / "out").exists()


def test_missing_foreign_and_misshapen_tensors_are_refused_by_name(tmp_path: Path) -> None:
    for change, words in (
        (lambda t: t.pop("blocks.2.norms"), r"'blocks\.2\.norms' is missing"),
        (lambda t: t.update(stranger=np.zeros(1, np.float32)), "'stranger' belongs to no part"),
        (lambda t: t.update({"final_norm.weight": np.zeros(3, np.float32)}), r"'final_norm\.weight' has shape"),
    ):
        tensors = weights(TINY)
        change(tensors)
        with pytest.raises(InvalidFileError, match=words):
            export(TINY, tensors, tmp_path / "out", "fp32", ExportOptions())
    assert not (tmp_path / "out").exists()


def test_unknown_recipe_and_form_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'dynamic_wi8_afp32'") as caught:
        write(TINY, tmp_path, "dynamic_wi8_afp23")
    assert "fp32" in caught.value.hint
    with pytest.raises(UsageError, match="did you mean 'standard'"):
        write(TINY, tmp_path, "fp32", form="standart")


def test_weight_only_recipe_implies_the_fast_form_and_checks_the_graph_exactly(tmp_path: Path) -> None:
    architecture = Architecture((Block(64, 2, 2), Block(128, 1, 2)), 64, 97, head_dim=32)
    result = write(architecture, tmp_path, "weight_only_wi4_b64_afp32")
    assert (result.form, result.runtime_min_version) == ("fast", "1.23")
    assert result.parity["exact"]["max_abs_diff"] <= 1e-4 * result.parity["logits_std"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.data", "model.onnx"]


def test_token_table_in_blocks_is_stored_once_under_two_names(tmp_path: Path) -> None:
    write(Architecture((Block(128, 2, 2),), 128, 1001), tmp_path, "weight_only_wi4_b32_afp32", parity=False)
    model = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False)
    where = {t.name: [(e.key, e.value) for e in t.external_data] for t in model.graph.initializer}
    assert where["embedding.rows"] == where["embedding.weight"] != []


def test_blocks_that_do_not_divide_name_the_largest_that_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"blocks of 128 do not divide the 48 inputs of 'embedding\.weight'") as caught:
        write(TINY, tmp_path, "weight_only_wi4_b128_afp32")
    assert "dynamic_wi8_afp32" in caught.value.hint
    fits_64 = Architecture((Block(192, 1, 1),), 192, 50)
    with pytest.raises(UsageError) as caught:
        write(fits_64, tmp_path, "weight_only_wi4_b128_afp32")
    assert "weight_only_wi4_b64_afp32" in caught.value.hint


def test_weights_whose_logits_overflow_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    tensors = weights(TINY)
    tensors["blocks.2.ffn_out.weight"] = np.full_like(tensors["blocks.2.ffn_out.weight"], 3e38)
    with pytest.raises(ExportError, match="disagrees with the reference"):
        export(TINY, tensors, tmp_path / "out", "fp32", ExportOptions())
    assert not (tmp_path / "out").exists()


LARGE = Architecture((Block(128, 2, 2), Block(256, 1, 2)), 128, 333)


def test_weights_too_large_for_8_bit_activations_are_told_from_a_wrong_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = random_tensors(LARGE, 0, scale=0.2)  # attention looks at one token, layers amplify
    monkeypatch.setattr(parity, "MOST_ROUNDING", 0.3)
    with pytest.raises(ExportError, match=r"rounding activations to 8 bits alone.*standard deviations") as caught:
        export(LARGE, tensors, tmp_path / "out", "dynamic_wi8_afp32", ExportOptions())
    assert "--recipe fp32" in caught.value.hint
    assert not (tmp_path / "out").exists()
    export(LARGE, tensors, tmp_path / "out", "fp32", ExportOptions())


@pytest.mark.parametrize("form", ["standard", "fast", "legacy", "unrolled"])
def test_activations_that_lose_much_pass_where_the_graph_itself_is_right(form: str, tmp_path: Path) -> None:
    tensors, recipe = random_tensors(LARGE, 0, scale=0.2), RECIPES["dynamic_wi8_afp32"]
    result = export(LARGE, tensors, tmp_path, recipe.name, ExportOptions(form=form))
    assert 0.2 < result.parity["rounding"] < 1
    assert result.parity["bound"] == 2 * result.parity["rounding"]
    assert result.parity["exact"]["max_abs_diff"] <= 1e-4 * result.parity["logits_std"]
    name = "blocks.1.ffn_in.weight"
    wrong = tensors | {name: tensors[name][::-1]}  # rows in the wrong order
    with pytest.raises(ExportError, match="multiplied in float32"):
        compare(FileRunner(tmp_path / "model.onnx"), LARGE, wrong, recipe, seed=0)
    slightly = tensors | {name: tensors[name] * np.float32(1.001)}
    with pytest.raises(ExportError, match="multiplied in float32"):
        compare(FileRunner(tmp_path / "model.onnx"), LARGE, slightly, recipe, seed=0)


def test_the_int8_file_does_what_rounding_activations_does_in_numpy(tmp_path: Path) -> None:
    architecture, recipe = ARCHITECTURES["one block"], RECIPES["dynamic_wi8_afp32"]
    tensors = weights(architecture)
    write(architecture, tmp_path, recipe.name)
    token_ids = np.random.default_rng(3).integers(0, architecture.vocab_size, 24)
    rounded = {name: recipe.rounded(tensor) for name, tensor in tensors.items()}
    expected = forward_with_rounded_activations(architecture, rounded, token_ids)
    logits = FileRunner(tmp_path / "model.onnx").feed(token_ids)
    near = np.abs(logits - expected).max()
    assert near < 0.5 * np.abs(logits - forward(architecture, rounded, token_ids)).max()


def test_refusal_keeps_files_of_others_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    tensors = weights(TINY)
    tensors["blocks.2.ffn_out.weight"] = np.full_like(tensors["blocks.2.ffn_out.weight"], 3e38)
    with pytest.raises(ExportError):
        export(TINY, tensors, tmp_path, "fp32", ExportOptions(parity=False))
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]


class Interrupted(dict):
    """Tensors of which the last read is met by Ctrl-C."""

    def __getitem__(self, name: str) -> np.ndarray:
        if name == "final_norm.weight":
            raise KeyboardInterrupt
        return super().__getitem__(name)


def test_ctrl_c_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        export(TINY, Interrupted(weights(TINY)), tmp_path / "out", "fp32", ExportOptions())
    assert not (tmp_path / "out").exists()


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount half a megabyte over `folder`."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path):
        with pytest.raises(ExportError, match="No space left") as caught:
            write(TINY, tmp_path)
        assert "free some space" in caught.value.hint
        assert list(tmp_path.iterdir()) == []


def test_file_size_limit_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, hard))
    try:
        with pytest.raises(ExportError, match="File too large"):
            write(TINY, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
