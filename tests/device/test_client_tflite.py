"""TFLite bundles on this machine, through the agent: deployed, fed, measured, and refused in words."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from merino_edge.bundle import Bundle
from merino_edge.device.client import AgentDevice, GenerateOptions, TestSpec, open_device
from merino_edge.device.registry import DeviceEntry
from merino_edge.errors import DeviceError
from merino_edge.exporters.to_onnx import export as export_onnx
from merino_edge.exporters.to_tflite import export
from merino_edge.exporting import ExportOptions
from merino_edge.flows.export import random_weights
from merino_edge.flows.export import write_bundle as write_run_bundle
from merino_edge.flows.measuring import with_synthetic_weights
from merino_edge.reference import forward, random_tensors
from merino_edge.testing import tiny_architecture, write_bundle

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
ARCHITECTURE = tiny_architecture()


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("fp32"), export, ARCHITECTURE)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[AgentDevice]:
    found = open_device(DeviceEntry("local", None, "local", str(tmp_path / "root"), "local"))
    assert isinstance(found, AgentDevice)
    with found:
        yield found


def test_greedy_tokens_are_those_of_the_reference(device: AgentDevice, fp32: Bundle) -> None:
    device.install(fp32)
    prompt = [3, 1, 4, 1, 5]
    tokens = list(device.generate(prompt, GenerateOptions(max_tokens=70, temperature=0)))
    weights, text = random_tensors(ARCHITECTURE, 0, scale=0.05), list(prompt)
    for token in tokens:
        assert token == int(np.argmax(forward(ARCHITECTURE, weights, text, [len(text) - 1])[0]))
        text.append(token)
    assert len(tokens) == 70


def test_a_measurement_names_the_runtime_that_the_manifest_names(device: AgentDevice, fp32: Bundle) -> None:
    (result,) = device.measure(fp32, [TestSpec("tg", 8, 16)], threads=1, budget_s=0.2)
    assert (result.runtime, result.provider) == ("ai-edge-litert", "XNNPACK")
    assert result.runtime_version == importlib.metadata.version("ai-edge-litert")


def test_both_runtimes_serve_one_device_side_by_side(device: AgentDevice, fp32: Bundle, tmp_path: Path) -> None:
    device.install(write_bundle(tmp_path, export_onnx, ARCHITECTURE))
    device.install(fp32)
    assert {r["runtime"] for r in device.facts()["runtimes"]} == {"onnxruntime", "ai-edge-litert"}
    device.activate(1)
    assert len(list(device.generate([1], GenerateOptions(max_tokens=3)))) == 3


def test_perplexity_is_that_of_the_reference(device: AgentDevice, fp32: Bundle) -> None:
    tokens = np.random.default_rng(0).integers(0, ARCHITECTURE.vocab_size, 300)
    found = device.perplexity(fp32, tokens, context_length=200)
    weights, total = random_tensors(ARCHITECTURE, 0, scale=0.05), 0.0
    for start in (0, 200):
        window = tokens[start : start + 201]
        logits = np.asarray(forward(ARCHITECTURE, weights, window[:-1]), np.float64)
        chosen = logits[np.arange(len(logits)), window[1:]]
        total += float((np.log(np.exp(logits).sum(1)) - chosen).sum())
    assert found.tokens == 299
    assert math.isclose(found.nll_nats_sum, total, rel_tol=1e-5)


def test_a_legacy_bundle_runs_on_what_stands_in_for_its_runtime(device: AgentDevice, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, export, ARCHITECTURE, "dynamic_wi8_afp32", form="legacy")
    assert bundle.manifest.runtime == "tflite-runtime"
    device.install(bundle)
    assert device.facts()["runtimes"][0]["runtime"] in ("ai-edge-litert", "tflite-runtime")


@pytest.mark.parametrize("recipe", ["fp32", "dynamic_wi8_afp32"])
def test_weights_of_a_measurement_are_made_on_the_device(device: AgentDevice, recipe: str, tmp_path: Path) -> None:
    weights, options = random_weights(ARCHITECTURE, 64), ExportOptions(context_length=64, parity=False)
    bundle = with_synthetic_weights(write_run_bundle(ARCHITECTURE, weights, tmp_path, "tflite", recipe, options))
    pushed = device.push(bundle)
    assert pushed.bytes_total - pushed.bytes_sent == bundle.manifest.file_bytes
    (result,) = device.measure(bundle, [TestSpec("tg", 4, 8)], threads=1, budget_s=0.1)
    assert result.samples_ns


def test_without_the_runtime_one_line_says_what_to_install(
    device: AgentDevice, fp32: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = importlib.metadata.version

    def without(name: str) -> str:
        if name in ("ai-edge-litert", "tflite-runtime"):
            raise importlib.metadata.PackageNotFoundError(name)
        return whole(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    with pytest.raises(DeviceError, match="ai-edge-litert is not installed here") as caught:
        device.install(fp32)
    assert caught.value.hint == "pip install 'merino-edge[tflite]'"
    assert device.current() is None
