"""The session on ai-edge-litert: its cache grows, shrinks and forgets without a trace in the logits."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merino_edge.agent.errors import AgentError
from merino_edge.agent.opening import open_session
from merino_edge.agent.runtime_check import check_runtime
from merino_edge.agent.session_tflite import TfliteSession
from merino_edge.exporters.to_tflite import export
from merino_edge.exporting import ExportOptions
from merino_edge.reference import forward, random_tensors
from merino_edge.testing import tiny_architecture

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
MODEL = tiny_architecture()
WEIGHTS = random_tensors(MODEL, 0, scale=0.05)
TOKENS = np.random.default_rng(0).integers(0, MODEL.vocab_size, 300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tflite")
    export(MODEL, WEIGHTS, folder, "fp32", ExportOptions(parity=False))
    return folder


@pytest.fixture
def session(folder: Path) -> TfliteSession:
    return TfliteSession(folder / "model.tflite", 1, "ai-edge-litert")


def expected(tokens: np.ndarray, *index: int) -> np.ndarray:
    return np.asarray(forward(MODEL, WEIGHTS, tokens, index))


def test_logits_do_not_depend_on_how_tokens_are_fed(session: TfliteSession) -> None:
    session.prefill(TOKENS[:290])
    assert session.length == 290
    one_by_one = [session.feed([int(token)], [0])[0] for token in TOKENS[290:]]
    np.testing.assert_allclose(one_by_one, expected(TOKENS, *range(290, 300)), atol=1e-5)


def test_a_truncated_cache_has_no_memory_of_what_followed(session: TfliteSession) -> None:
    session.feed(TOKENS[100:], range(200))
    session.truncate(0)
    session.feed(TOKENS[:130], [129])
    session.truncate(70)
    logits = session.feed(TOKENS[70:140], [3, 69]).copy()
    np.testing.assert_allclose(logits, expected(TOKENS[:140], 73, 139), atol=1e-5)
    assert session.length == 140


def test_the_cache_is_little_larger_than_what_it_holds(session: TfliteSession) -> None:
    places = []
    for length in (300, 20, 64, 65):
        session.truncate(0)
        session.feed(TOKENS[:length], [0])
        places.append(session._view("cache_mask").shape[-1])
    assert places == [320, 64, 64, 128]


def test_a_token_beyond_the_vocabulary_is_refused(session: TfliteSession) -> None:
    with pytest.raises(AgentError, match="between 0 and 255"):
        session.feed([256], [0])
    assert session.length == 0


def test_xnnpack_executes_it(session: TfliteSession) -> None:
    assert session.provider == "XNNPACK"
    assert session.vocab_size == 256


def test_a_damaged_file_is_one_clear_error(folder: Path, tmp_path: Path) -> None:
    data = (folder / "model.tflite").read_bytes()
    for name, content in (("cut", data[: len(data) // 3]), ("other", b"\0" * 64)):
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(content)
        with pytest.raises(AgentError, match=f"cannot open {name}.tflite"):
            TfliteSession(path, 1, "ai-edge-litert")


def test_a_bundle_is_opened_by_its_format_alone(folder: Path) -> None:
    manifest: dict[str, Any] = {"format": "tflite", "runtime": "ai-edge-litert", "files": [{"name": "model.tflite"}]}
    assert isinstance(open_session(folder, manifest, 1), TfliteSession)
    with pytest.raises(AgentError, match="cannot run format gguf, only onnx and tflite"):
        open_session(folder, {**manifest, "format": "gguf"}, 1)
    with pytest.raises(AgentError, match=r"must name one \.onnx file"):
        open_session(folder, {**manifest, "format": "onnx"}, 1)


def test_every_runtime_is_checked_by_name() -> None:
    assert check_runtime("onnxruntime")["runtime"] == "onnxruntime"
    assert check_runtime("ai-edge-litert")["runtime"] == "ai-edge-litert"
    assert check_runtime("tflite-runtime")["runtime"] == "ai-edge-litert"  # which runs its files, too
    with pytest.raises(AgentError, match="knows no runtime 'tensorrt'"):
        check_runtime("tensorrt")


def test_a_runtime_that_computes_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from ai_edge_litert.interpreter import Interpreter

    right = Interpreter.get_tensor
    monkeypatch.setattr(Interpreter, "get_tensor", lambda self, index: right(self, index) + np.float32(0.01))
    with pytest.raises(AgentError, match="computes wrong numbers"):
        check_runtime("ai-edge-litert")


def test_without_a_runtime_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith(("ai_edge_litert", "tflite_runtime")):
            raise ImportError(f"No module named '{name}'")
        return whole(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(AgentError, match="cannot import ai-edge-litert or tflite-runtime") as caught:
        check_runtime("tflite-runtime")
    assert caught.value.hint == "pip install tflite-runtime"
