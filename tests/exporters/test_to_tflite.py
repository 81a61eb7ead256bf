"""The TFLite export computes the model, stores each tensor once, and leaves nothing when it fails."""

from __future__ import annotations

import builtins
import hashlib
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merino_edge.architecture import Architecture, Block
from merino_edge.errors import ExportError, InvalidFileError, UsageError
from merino_edge.exporters import parity
from merino_edge.exporters.tflite_recipes import FORMS, RECIPES
from merino_edge.exporters.to_tflite import export
from merino_edge.exporting import ExportOptions, ExportResult
from merino_edge.reference import forward, random_tensors

schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="ai-edge-litert is not installed")
from merino_edge.exporters.tflite_runner import TfliteRunner  # noqa: E402

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
    "head_dim 2": Architecture((Block(6, 2.5, 2),), 6, 7, head_dim=2),
    "one head of 80": Architecture((Block(80, 1, 2),), 80, 50, head_dim=80),
    "eight blocks, very unequal": Architecture(
        tuple(Block(width, 2, 2) for width in (32, 64, 128, 512, 32, 16, 64, 96)), 24, 1009, head_dim=16
    ),
}
TINY = ARCHITECTURES["three unequal blocks"]
BLOCKY = Architecture((Block(128, 1, 2), Block(256, 1.5, 3), Block(64, 4, 1)), 96, 333, head_dim=32)
SKIPS = [architecture for architecture in ARCHITECTURES.values() if architecture.embedding_skip]
PAIRS = [(recipe, form) for recipe in ("fp32", "dynamic_wi8_afp32") for form in FORMS]


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


def write(architecture: Architecture, folder: Path, recipe: str = "fp32", **options: Any) -> ExportResult:
    return export(architecture, weights(architecture), folder, recipe, ExportOptions(**options))


def read_model(folder: Path) -> Any:
    """Read the file with the runtime's own copy of the schema."""
    data = (folder / "model.tflite").read_bytes()
    assert data[4:8] == b"TFL3"
    return schema.ModelT.InitFromPackedBuf(data, 0)


@pytest.mark.parametrize(("recipe", "form"), PAIRS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_export_agrees_with_the_reference_however_tokens_are_fed(
    name: str, recipe: str, form: str, tmp_path: Path
) -> None:
    result = write(ARCHITECTURES[name], tmp_path, recipe, form=form)
    bound = {"fp32": 1e-4, "dynamic_wi8_afp32": 0.2}[recipe]
    assert [p["fed"] for p in result.parity["prompts"]] == ["whole", "token by token", "two pieces"]
    assert 0 <= result.parity["max_abs_diff"] <= bound * result.parity["logits_std"]
    assert result.parity["bound"] == max(bound, 2 * result.parity.get("rounding", 0.0))
    assert (result.form, result.files) == (form, ("model.tflite",))


@pytest.mark.parametrize("architecture", [BLOCKY, *SKIPS], ids=Architecture.describe)
def test_int4_agrees_with_the_reference_however_tokens_are_fed(architecture: Architecture, tmp_path: Path) -> None:
    result = write(architecture, tmp_path, "dynamic_wi4_b32_afp32")
    assert 0 <= result.parity["max_abs_diff"] <= 0.1 * result.parity["logits_std"]
    assert (result.runtime, result.runtime_min_version) == ("ai-edge-litert", "2.1.6")
    size = (tmp_path / "model.tflite").stat().st_size
    assert result.unique_bytes < size <= 1.01 * result.unique_bytes + 4096 * len(architecture.tensor_shapes)
    versions = {code.builtinCode: code.version for code in read_model(tmp_path).operatorCodes}
    assert versions[schema.BuiltinOperator.FULLY_CONNECTED] == 14  # which releases that compute blocks wrongly refuse
    assert versions[schema.BuiltinOperator.EMBEDDING_LOOKUP] == 4


def test_int4_scales_are_exact_in_half_precision_and_in_bfloat16() -> None:
    matrix = np.random.default_rng(0).standard_normal((64, 256), np.float32) * np.float32(0.03)
    matrix[3] = 0
    quantized = RECIPES["dynamic_wi4_b32_afp32"].quantize(matrix)
    assert quantized.scale.min() > 0
    np.testing.assert_array_equal(quantized.scale.astype(np.float16).astype(np.float32), quantized.scale)
    assert not (quantized.scale.view(np.uint32) & 0xFFFF).any()
    step = np.repeat(quantized.scale, 32, axis=1)
    assert (np.abs(quantized.dequantize() - matrix) <= 0.55 * step).all()  # half, and what eight digits add at 7


def test_blocks_that_divide_nothing_and_forms_that_cannot_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="do not divide") as caught:
        write(BLOCKY, tmp_path, "dynamic_wi4_b128_afp32")
    assert caught.value.details["nearest"] == "dynamic_wi4_b32_afp32"
    with pytest.raises(UsageError, match="has no form 'legacy'"):
        write(BLOCKY, tmp_path, "dynamic_wi4_b32_afp32", form="legacy")


def test_int4_is_rounded_to_nearest_and_says_so(tmp_path: Path) -> None:
    assert write(BLOCKY, tmp_path, "dynamic_wi4_b32_afp32", parity=False, quantizer="auto").quantizer == "rtn"
    with pytest.raises(UsageError, match="rounded to nearest"):
        write(BLOCKY, tmp_path, "dynamic_wi4_b32_afp32", quantizer="gptq")


@pytest.mark.parametrize("architecture", [TINY, *SKIPS], ids=Architecture.describe)
@pytest.mark.parametrize(("recipe", "form"), PAIRS)
def test_file_holds_unique_bytes_and_little_more(
    recipe: str, form: str, architecture: Architecture, tmp_path: Path
) -> None:
    result = write(architecture, tmp_path, recipe, form=form, parity=False)
    size = (tmp_path / "model.tflite").stat().st_size
    assert result.unique_bytes == RECIPES[recipe].unique_bytes(architecture)
    assert result.unique_bytes < size <= 1.01 * result.unique_bytes + 4096 * len(architecture.tensor_shapes)


@pytest.mark.parametrize("architecture", [BLOCKY, *SKIPS], ids=Architecture.describe)
@pytest.mark.parametrize("recipe", ["fp32", "dynamic_wi8_afp32", "dynamic_wi4_b32_afp32"])
def test_every_weight_lies_in_one_buffer_aligned_to_sixteen_bytes(
    recipe: str, architecture: Architecture, tmp_path: Path
) -> None:
    write(architecture, tmp_path, recipe, parity=False)
    data = (tmp_path / "model.tflite").read_bytes()
    contents = [bytes(b.data) for b in read_model(tmp_path).buffers if b.data is not None and len(b.data) > 64]
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    assert len(set(digests)) == len(digests)
    for content in contents:
        assert data.count(content) == 1
        assert data.index(content) % 16 == 0


def test_each_block_is_one_subgraph_called_once_per_layer(tmp_path: Path) -> None:
    write(TINY, tmp_path, parity=False)
    model = read_model(tmp_path)
    names = [graph.name.decode() for graph in model.subgraphs]
    assert names == ["main", *(f"block{i}.layer" for i in range(3))]
    calls = [
        op.builtinOptions for op in model.subgraphs[0].operators if isinstance(op.builtinOptions, schema.IfOptionsT)
    ]
    assert all(call.thenSubgraphIndex == call.elseSubgraphIndex for call in calls)
    assert [call.thenSubgraphIndex for call in calls] == [1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize("form", FORMS)
def test_no_weight_has_scales_per_channel_and_every_operator_its_true_version(form: str, tmp_path: Path) -> None:
    write(TINY, tmp_path, "dynamic_wi8_afp32", parity=False, form=form)
    model = read_model(tmp_path)
    seen = set()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            if tensor.quantization is not None and tensor.quantization.scale is not None:
                assert list(tensor.quantization.scale) == [1.0]
                assert list(tensor.quantization.zeroPoint) == [0]
        for op in graph.operators:
            code = model.operatorCodes[op.opcodeIndex]
            kinds = [graph.tensors[i].type for i in op.inputs]
            int8 = schema.TensorType.INT8 in kinds
            true = {"FULLY_CONNECTED": 9, "GATHER": 2, "CAST": 3}
            name = next(n for n, v in vars(schema.BuiltinOperator).items() if v == code.builtinCode)
            seen.add((name, int8))
            assert code.version == (true[name] if int8 else 1), name
    assert {("FULLY_CONNECTED", True), ("GATHER", True), ("CAST", True), ("GATHER", False)} <= seen


def test_float_products_without_bias_are_version_six(tmp_path: Path) -> None:
    write(TINY, tmp_path, parity=False)
    codes = read_model(tmp_path).operatorCodes
    versions = {code.builtinCode: code.version for code in codes}
    assert versions.pop(schema.BuiltinOperator.FULLY_CONNECTED) == 6
    assert set(versions.values()) == {1}


def test_rotary_angles_are_computed_not_stored(tmp_path: Path) -> None:
    write(TINY, tmp_path, parity=False)
    model = read_model(tmp_path)
    first_words = tuple({name.partition(".")[0].encode() for name in TINY.tensor_shapes})
    named = {t.buffer for g in model.subgraphs for t in g.tensors if t.name.startswith(first_words)}
    small = [len(b.data) for n, b in enumerate(model.buffers) if b.data is not None and n not in named]
    assert max(small) <= 8 * TINY.head_dim * 4


def test_graph_names_its_inputs_and_outputs_as_agreed(tmp_path: Path) -> None:
    write(TINY, tmp_path, parity=False)
    model = read_model(tmp_path)
    (signature,) = model.signatureDefs
    cache = [f"{n}.{part}" for n in range(6) for part in ("key", "value")]
    names = [entry.name.decode() for entry in signature.inputs]
    assert names == ["input_ids", "positions", "logits_index", "cache_mask", *(f"past.{c}" for c in cache)]
    assert [entry.name.decode() for entry in signature.outputs] == ["logits", *(f"new.{c}" for c in cache)]
    tensor = model.subgraphs[0].tensors[signature.inputs[names.index("past.2.key")].tensorIndex]
    assert list(tensor.shapeSignature) == [1, 5, -1, 32]
    described = {m.name.decode(): bytes(model.buffers[m.buffer].data).decode() for m in model.metadata}
    assert described["merino_edge.architecture_digest"] == TINY.digest


def test_only_asked_for_positions_get_logits(tmp_path: Path) -> None:
    write(TINY, tmp_path, parity=False)
    token_ids = np.arange(7)
    every = TfliteRunner(tmp_path / "model.tflite").feed(token_ids)
    some = TfliteRunner(tmp_path / "model.tflite").feed(token_ids, np.array([5, 2]))
    np.testing.assert_allclose(some, every[[5, 2]], atol=1e-5 * every.std())


def test_far_positions_keep_their_angles(tmp_path: Path) -> None:
    architecture = ARCHITECTURES["one block"]
    write(architecture, tmp_path, parity=False)
    token_ids = np.random.default_rng(3).integers(0, architecture.vocab_size, 1500)
    expected = forward(architecture, weights(architecture), token_ids, [1499])
    runner = TfliteRunner(tmp_path / "model.tflite")
    runner.feed(token_ids[:1490], np.array([0]))
    logits = runner.feed(token_ids[1490:], np.array([9]))
    assert np.abs(logits - expected).max() <= 1e-4 * expected.std()


def test_same_weights_give_the_same_bytes_twice(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(TINY, tmp_path / folder, "dynamic_wi8_afp32", parity=False)
    assert (tmp_path / "a" / "model.tflite").read_bytes() == (tmp_path / "b" / "model.tflite").read_bytes()


def test_check_is_the_files_own_answer_with_and_without_parity(tmp_path: Path) -> None:
    check = write(TINY, tmp_path / "a", "dynamic_wi8_afp32").check
    unchecked = write(TINY, tmp_path / "b", "dynamic_wi8_afp32", parity=False)
    assert unchecked.parity == {"checked": False}
    assert unchecked.check == check
    logits = TfliteRunner(tmp_path / "a" / "model.tflite").feed(np.array(check.token_ids), np.array([7]))[0]
    assert check.top[0] == (int(logits.argmax()), pytest.approx(float(logits.max()), rel=1e-5))


def test_all_zero_weights_export(tmp_path: Path) -> None:
    zeros = {name: np.zeros_like(t) for name, t in weights(TINY).items()}
    result = export(TINY, zeros, tmp_path, "dynamic_wi8_afp32", ExportOptions())
    assert result.parity["max_abs_diff"] == 0


def test_a_file_that_disagrees_is_refused_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "forward", lambda a, t, ids: 1.1 * forward(a, t, ids))
    with pytest.raises(ExportError, match="disagrees with the reference"):
        write(TINY, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", SKIPS, ids=Architecture.describe)
def test_an_embedding_skip_left_out_or_of_another_layer_is_refused(
    architecture: Architecture, form: str, tmp_path: Path
) -> None:
    tensors = weights(architecture)
    gains = tensors["blocks.0.skip_gains"]
    for number, wrong in enumerate((np.zeros_like(gains), gains[[1, 0, 2]])):
        changed = {**tensors, "blocks.0.skip_gains": wrong}
        export(architecture, changed, tmp_path / str(number), "fp32", ExportOptions(form=form))
        runner = TfliteRunner(tmp_path / str(number) / "model.tflite")
        with pytest.raises(ExportError, match="disagrees with the reference"):
            parity.compare(runner, architecture, tensors, RECIPES["fp32"], seed=0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_refused_by_name(value: float, tmp_path: Path) -> None:
    tensors = weights(TINY)
    tensors["blocks.1.key.weight"][3, 4] = value
    with pytest.raises(ExportError, match=r"blocks\.1\.key\.weight"):
        export(TINY, tensors, tmp_path / "out", "fp32", ExportOptions())
    assert not (tmp_path / "out").exists()


def test_missing_and_misshapen_tensors_are_refused_by_name(tmp_path: Path) -> None:
    tensors = weights(TINY)
    del tensors["blocks.2.norms"]
    with pytest.raises(InvalidFileError, match=r"'blocks\.2\.norms' is missing"):
        export(TINY, tensors, tmp_path / "out", "fp32", ExportOptions())
    with pytest.raises(InvalidFileError, match=r"'final_norm\.weight' has shape"):
        export(TINY, {**weights(TINY), "final_norm.weight": np.zeros(3, np.float32)}, tmp_path, "fp32", ExportOptions())
    assert not (tmp_path / "out").exists()


def test_unknown_recipe_and_form_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'dynamic_wi8_afp32'") as caught:
        write(TINY, tmp_path, "dynamic_wi8_afp23")
    assert "fp32" in caught.value.hint
    with pytest.raises(UsageError, match="did you mean 'standard'"):
        write(TINY, tmp_path, "fp32", form="standart")


def test_a_recipe_of_another_format_names_both_ways_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written as TFLite") as caught:
        write(TINY, tmp_path, "weight_only_wi4_b32_afp32")
    assert "--recipe dynamic_wi4_b32_afp32" in caught.value.hint
    assert "--format onnx" in caught.value.hint


def test_without_a_runtime_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith(("ai_edge_litert", "tflite_runtime")):
            raise ImportError(name)
        return whole(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ExportError, match="ai-edge-litert is not installed") as caught:
        write(TINY, tmp_path / "out")
    assert "pip install" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_file_size_limit_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, hard))
    try:
        with pytest.raises(ExportError, match="File too large"):
            write(TINY, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
