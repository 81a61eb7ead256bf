"""A checkpoint is read whole and checked, or refused with the tensor named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from merino_edge.architecture import Architecture, Block
from merino_edge.checkpoint import CONFIG, WEIGHTS, is_checkpoint, read_checkpoint
from merino_edge.errors import InvalidFileError
from merino_edge.reference import random_tensors

ARCHITECTURE = Architecture((Block(8, 1, 2), Block(16, 2, 1)), embedding_width=8, vocab_size=16, head_dim=4)


def write(folder: Path, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    """Write a checkpoint; keys of `config` replace or add to the good ones."""
    folder.mkdir(exist_ok=True)
    good = {"architecture": ARCHITECTURE.to_json(), "trained_tokens": 5, "max_position_embeddings": 64}
    (folder / CONFIG).write_text(json.dumps({**good, **config}))
    save_file(random_tensors(ARCHITECTURE, 0) if tensors is None else tensors, folder / WEIGHTS)
    return folder


def test_a_checkpoint_reads_back(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write(tmp_path / "c"))
    assert checkpoint.architecture == ARCHITECTURE
    assert (checkpoint.trained_tokens, checkpoint.context_length, checkpoint.tokenizer) == (5, 64, None)
    for name, tensor in random_tensors(ARCHITECTURE, 0).items():
        np.testing.assert_array_equal(checkpoint.tensors[name], tensor)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_float_types_are_widened_or_narrowed_to_float32(tmp_path: Path, dtype: Any) -> None:
    tensors = {name: t.astype(dtype) for name, t in random_tensors(ARCHITECTURE, 0).items()}
    checkpoint = read_checkpoint(write(tmp_path / "c", tensors))
    for name, tensor in tensors.items():
        assert checkpoint.tensors[name].dtype == np.float32
        np.testing.assert_array_equal(checkpoint.tensors[name], tensor.astype(np.float32))


def test_a_truncated_weight_file_is_refused_at_any_length(tmp_path: Path) -> None:
    path = write(tmp_path / "c") / WEIGHTS
    content = path.read_bytes()
    for length in (0, 4, 9, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(InvalidFileError, match=r"model\.safetensors is truncated") as caught:
            read_checkpoint(path.parent)
        assert "copy it again" in str(caught.value.hint)


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "c") / WEIGHTS
    path.write_bytes(b"\x80\x04cos\nsystem\n(S'touch owned'\ntR." + b"\0" * 100)
    with pytest.raises(InvalidFileError, match="not a safetensors file"):
        read_checkpoint(path.parent)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_refused_and_named(tmp_path: Path, value: float) -> None:
    tensors = random_tensors(ARCHITECTURE, 0)
    tensors["blocks.1.key.weight"][3, 4] = value
    with pytest.raises(InvalidFileError, match=r"'blocks\.1\.key\.weight' holds NaN or infinity"):
        read_checkpoint(write(tmp_path / "c", tensors))


def test_a_weight_too_large_for_float32_is_refused(tmp_path: Path) -> None:
    tensors = {name: t.astype(np.float64) for name, t in random_tensors(ARCHITECTURE, 0).items()}
    tensors["final_norm.weight"][0] = 1e300
    with pytest.raises(InvalidFileError, match="infinity"):
        read_checkpoint(write(tmp_path / "c", tensors))


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    tensors: dict[str, Any] = dict(random_tensors(ARCHITECTURE, 0))
    tensors["final_norm.weight"] = np.ones(16, np.int32)
    with pytest.raises(InvalidFileError, match="int32, which is no weight type"):
        read_checkpoint(write(tmp_path / "c", tensors))


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    other = Architecture((Block(8, 1, 2), Block(16, 4, 1)), embedding_width=8, vocab_size=16, head_dim=4)
    with pytest.raises(InvalidFileError, match=r"blocks\.1\.ffn_in\.weight' has shape \[64, 16\].*says \[32, 16\]"):
        read_checkpoint(write(tmp_path / "c", dict(random_tensors(other, 0))))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"trained_tokens": -1}, "trained_tokens must be a whole number"),
        ({"trained_tokens": "5"}, "trained_tokens must be a whole number"),
        ({"max_position_embeddings": 0}, "max_position_embeddings must be a whole number"),
        ({"max_position_embeddings": float("nan")}, "NaN"),
        ({"architecture": None}, "must be a JSON object"),
        ({"architecture": {"blocks": []}}, "1 to 1024 blocks|missing"),
    ],
)
def test_a_wrong_config_is_refused(tmp_path: Path, config: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidFileError, match=problem):
        read_checkpoint(write(tmp_path / "c", **config))


def test_a_foreign_model_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "c")
    (folder / CONFIG).write_text('{"model_type": "gpt2"}')
    with pytest.raises(InvalidFileError, match="describes no MeRino model"):
        read_checkpoint(folder)


def test_missing_files_name_the_command_that_makes_them(tmp_path: Path) -> None:
    assert not is_checkpoint(tmp_path)
    with pytest.raises(InvalidFileError, match=r"has no config\.json") as caught:
        read_checkpoint(tmp_path)
    assert caught.value.hint == "train with: merino-edge train"
    folder = write(tmp_path / "c")
    (folder / WEIGHTS).unlink()
    with pytest.raises(InvalidFileError, match="does not exist"):
        read_checkpoint(folder)
