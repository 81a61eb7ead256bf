"""The unrolled form has the names and shapes that other tools expect, and pads on the left."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from merino_edge.architecture import Architecture, Block
from merino_edge.exporters.to_onnx import export
from merino_edge.exporting import ExportOptions, ExportResult
from merino_edge.reference import forward, random_tensors

TINY = Architecture((Block(64, 2, 2), Block(128, 1, 1)), 64, 97, head_dim=32)


def write(folder: Path, recipe: str = "fp32") -> ExportResult:
    return export(TINY, random_tensors(TINY, 0), folder, recipe, ExportOptions(form="unrolled"))


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]


def test_every_executed_layer_has_its_cache(tmp_path: Path) -> None:
    write(tmp_path)
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    graph = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False).graph
    inputs = {value.name: dims(value) for value in graph.input}
    assert inputs["input_ids"] == ["batch_size", "sequence_length"]
    assert inputs["attention_mask"] == ["batch_size", "total_sequence_length"]
    assert inputs["past_key_values.1.value"] == ["batch_size", 2, "past_sequence_length", 32]
    assert inputs["past_key_values.2.key"] == ["batch_size", 4, "past_sequence_length", 32]
    assert dims(graph.output[0]) == ["batch_size", "sequence_length", 97]
    cache = [f"present.{n}.{part}" for n in range(3) for part in ("key", "value")]
    assert [value.name for value in graph.output] == ["logits", *cache]


def test_layers_of_a_block_name_the_same_weights(tmp_path: Path) -> None:
    write(tmp_path)
    graph = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False).graph
    products = [node.input[1] for node in graph.node if node.op_type == "MatMul" and "blocks.0." in node.input[1]]
    assert len(products) == 8
    assert len(set(products)) == 4


def test_a_prompt_padded_on_the_left_gets_the_same_logits(tmp_path: Path) -> None:
    write(tmp_path)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 97, n) for n in (9, 5)]
    token_ids = np.zeros((2, 9), np.int64)
    mask = np.zeros((2, 9), np.int64)
    for row, ids in enumerate(prompts):
        token_ids[row, 9 - len(ids) :] = ids
        mask[row, 9 - len(ids) :] = 1
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    past = {
        f"past_key_values.{n}.{part}": np.zeros((2, heads, 0, 32), np.float32)
        for n, heads in enumerate((2, 2, 4))
        for part in ("key", "value")
    }
    logits = session.run(["logits"], {"input_ids": token_ids, "attention_mask": mask, **past})[0]
    for row, ids in enumerate(prompts):
        expected = forward(TINY, random_tensors(TINY, 0), ids)
        assert np.abs(logits[row, 9 - len(ids) :] - expected).max() <= 1e-4 * expected.std()


def test_manifest_warns_of_runtimes_that_copy(tmp_path: Path) -> None:
    result = write(tmp_path, "dynamic_wi8_afp32")
    assert result.form == "unrolled"
    assert "one packed copy per layer" in result.notes[0]
