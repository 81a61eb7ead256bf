"""What an export costs a trained model in perplexity decides whether there is an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from merino_edge.architecture import Architecture, Block
from merino_edge.bundle import read_bundle
from merino_edge.checkpoint import CONFIG, WEIGHTS
from merino_edge.errors import DataError, ExportError, UsageError
from merino_edge.flows.export import ExportWish, brought_up_to_date, current_bundle, export, export_subject
from merino_edge.flows.quality import CALIBRATION_TOKENS, EVALUATED_TOKENS, HeldOut, limit_of
from merino_edge.flows.subject import resolve_subject
from merino_edge.run import runs_root

ECHO = Architecture((Block(128, 1, 1),), 128, 64)
B32, B64, B128 = (f"weight_only_wi4_b{block}_afp32" for block in (32, 64, 128))


def echo_tensors(outlier: float) -> dict[str, np.ndarray]:
    """A model that expects every token once more: silent layers, random rows, one column of outliers.

    The outliers say nothing (every row has the same), but the scale of their block must hold them.
    """
    tensors = {name: np.zeros(shape, np.float32) for name, shape in ECHO.tensor_shapes.items()}
    table = np.random.default_rng(0).uniform(-1, 1, tensors["embedding.weight"].shape).astype(np.float32)
    table[:, 5] = outlier
    tensors["embedding.weight"] = table
    tensors["final_norm.weight"] += 0.4
    return tensors


def echo_text(tokens: int) -> np.ndarray:
    """Each token about eight times in a row."""
    return np.repeat(np.random.default_rng(1).integers(0, 64, tokens // 8), 8).astype(np.int32)


def write_checkpoint(folder: Path, outlier: float, tokens: int | None = 2048) -> Path:
    folder.mkdir()
    config = {"architecture": ECHO.to_json(), "trained_tokens": 9, "max_position_embeddings": 128}
    (folder / CONFIG).write_text(json.dumps(config))
    save_file(echo_tensors(outlier), folder / WEIGHTS)
    if tokens is not None:
        np.save(folder / "validation_tokens.npy", echo_text(tokens))
        (folder / "validation.json").write_text(json.dumps({"tokens": tokens, "bytes": tokens}))
    return folder


def wish(recipe: str, **more: Any) -> ExportWish:
    return ExportWish(recipe=recipe, **{"quantizer": "rtn", **more})


def exported() -> list[str]:
    """Everything in the one run's export folder, hidden files too."""
    return sorted(path.name for path in (runs_root() / "echo" / "export").iterdir())


@pytest.fixture
def spoiled(tmp_path: Path) -> str:
    """A checkpoint whose outliers leave nothing of their block at 4 bits."""
    return str(write_checkpoint(tmp_path / "echo", 20.0))


def test_a_file_that_foretells_worse_is_refused_and_nothing_is_left(spoiled: str) -> None:
    with pytest.raises(ExportError, match=r"raises the perplexity of held-out text by .* at most 3 %") as caught:
        export(spoiled, wish(B128))
    assert "--max-perplexity-change" in str(caught.value.hint)
    assert caught.value.details["quality"]["perplexity_change"] > 0.03
    assert exported() == []


def test_what_the_user_allows_is_written_and_the_manifest_says_what_it_cost(spoiled: str) -> None:
    document = export(spoiled, wish(B128, max_perplexity_change=1e6))
    quality = document["quality"]
    assert quality["measured"]
    assert quality["tokens"] == 1024
    assert quality["limit"] == 1e6
    change = quality["perplexity"] / quality["perplexity_fp32"] - 1
    assert quality["perplexity_change"] == pytest.approx(change) and change > 0.03
    assert read_bundle(Path(document["bundle"])).manifest.quality == quality


def test_a_refused_export_leaves_the_older_one_in_its_place(spoiled: str) -> None:
    folder = Path(export(spoiled, wish(B128, max_perplexity_change=1e6))["bundle"])
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(ExportError):
        export(spoiled, wish(B128))
    assert (folder / "manifest.json").read_bytes() == before
    assert exported() == [folder.name]


def test_fp32_changes_nothing_and_int8_next_to_nothing(tmp_path: Path) -> None:
    name = str(write_checkpoint(tmp_path / "echo", 2.0))
    fp32 = export(name, ExportWish(recipe="fp32"))
    int8 = export(name, ExportWish(recipe="dynamic_wi8_afp32"))
    assert fp32["quality"]["perplexity_change"] == 0
    assert fp32["quality"]["limit"] == int8["quality"]["limit"] == 0.01
    assert abs(int8["quality"]["perplexity_change"]) < 0.01
    assert int8["quality"]["perplexity_fp32"] == pytest.approx(fp32["quality"]["perplexity"], rel=1e-6)
    assert (fp32["quantizer"], int8["quantizer"]) == (None, "rtn")


def test_int4_takes_the_largest_block_that_keeps_the_limit(tmp_path: Path) -> None:
    name = str(write_checkpoint(tmp_path / "echo", 20.0))
    with pytest.raises(ExportError):
        export(name, wish(B128))
    document = export(name, wish("int4"))
    assert document["recipe"] in (B64, B32)
    assert document["quality"]["perplexity_change"] <= 0.03
    assert exported() == [Path(document["bundle"]).name]
    again = current_bundle(resolve_subject("echo"), "onnx", "int4")
    assert again.manifest.recipe == document["recipe"]


def test_int4_without_text_takes_the_largest_block_that_divides(tmp_path: Path) -> None:
    name = str(write_checkpoint(tmp_path / "echo", 2.0, tokens=None))
    document = export(name, ExportWish(recipe="int4"))
    assert document["recipe"] == B128
    assert document["quality"] == {"measured": False, "reason": "no held-out tokens lie beside the weights"}
    assert document["quantizer"] == "mse"


def test_random_weights_are_not_judged_and_the_document_says_so(tmp_path: Path) -> None:
    path = tmp_path / "echo.json"
    path.write_text(json.dumps({"schema_version": 1, **ECHO.to_json()}))
    document = export(str(path), ExportWish(recipe="fp32"))
    assert document["quality"] == {"measured": False, "reason": "random weights"}
    with pytest.raises(UsageError, match="random weights"):
        export(str(path), ExportWish(recipe="fp32", text="some.txt"))


def test_too_little_text_judges_nothing(tmp_path: Path) -> None:
    name = str(write_checkpoint(tmp_path / "echo", 20.0, tokens=200))
    quality = export(name, wish(B128))["quality"]
    assert not quality["measured"]
    assert "too few" in quality["reason"]


def test_a_newer_checkpoint_is_exported_as_the_older_one_was(spoiled: str) -> None:
    subject = resolve_subject(spoiled)
    bundle = export_subject(subject, wish(B128, max_perplexity_change=1e6))
    save_file(echo_tensors(21.0), Path(spoiled) / WEIGHTS)
    newer = brought_up_to_date(subject, bundle)
    assert newer.manifest.weights_sha256 != bundle.manifest.weights_sha256
    assert newer.manifest.quality is not None and newer.manifest.quality["limit"] == 1e6
    assert newer.manifest.quantizer == "rtn"


def test_tokens_of_another_vocabulary_are_refused(spoiled: str) -> None:
    np.save(Path(spoiled) / "validation_tokens.npy", np.full(2048, 64, np.int32))
    with pytest.raises(DataError, match="no tokens of a vocabulary of 64") as caught:
        export(spoiled, wish(B128))
    assert "--text" in str(caught.value.hint)


def test_no_pickle_is_read_among_held_out_tokens(spoiled: str) -> None:
    np.save(Path(spoiled) / "validation_tokens.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(UsageError, match="cannot be read"):
        export(spoiled, wish(B128))


def test_no_token_is_both_judged_and_calibrated_by() -> None:
    for count in (0, 1, 700, 2048, 10_000, 65_536, 120_402):
        held_out = HeldOut(np.arange(count, dtype=np.int32), "")
        assert len(held_out.evaluated) <= EVALUATED_TOKENS + 1
        assert not set(held_out.evaluated) & set(held_out.calibration)
        assert len(held_out.calibration) == min(CALIBRATION_TOKENS, count - len(held_out.evaluated))


def test_four_bits_may_cost_three_times_as_much_as_eight() -> None:
    assert limit_of(B32) == 0.03
    assert limit_of("weight_only_wi8_b32_afp32") == limit_of("dynamic_wi8_afp32") == limit_of("fp32") == 0.01
