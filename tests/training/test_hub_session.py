"""Models of transformers as sessions: the same logits however a prompt is cut, and `bench hf:PATH` around them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from merino_edge.cli.main import main
from merino_edge.errors import UsageError
from merino_edge.flows import bench_torch
from merino_edge.training.data import train_tokenizer
from merino_edge.training.hub_session import HubSession

SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "opt": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 32,
        "word_embed_proj_dim": 8,
        "do_layer_norm_before": False,
        "max_position_embeddings": 64,
    },
    "gpt_neox": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    },
}
TEXT = "the cat sat on the mat and the dog sat on the cat, " * 20


def config_folder(folder: Path, kind: str) -> Path:
    AutoConfig.for_model(kind, vocab_size=270, **SMALL[kind]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", SMALL)
def test_logits_are_those_of_the_model_however_a_prompt_is_cut(tmp_path: Path, kind: str) -> None:
    session = HubSession(str(config_folder(tmp_path, kind)), threads=1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path)).eval()
    ids = np.random.default_rng(0).integers(3, 270, 12)
    with torch.no_grad():
        expected = model(torch.tensor(ids[None])).logits[0].numpy()
    assert not session.trained
    whole = session.feed(ids, range(12)).copy()
    session.truncate(5)
    rest = session.feed(ids[5:], [0, 6])
    assert session.length == 12
    session.truncate(0)
    last = session.feed(ids, [11])
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    np.testing.assert_allclose(rest, expected[[5, 11]], atol=1e-5)
    np.testing.assert_allclose(last, expected[[11]], atol=1e-5)
    assert session.parameters == sum(p.numel() for p in model.parameters())
    assert (session.context_length, session.vocab_size, session.file_bytes) == (64, 270, None)


def test_weights_in_the_folder_are_used_and_weighed(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", vocab_size=270, **SMALL["gpt2"])).eval()
    model.save_pretrained(tmp_path)
    session = HubSession(str(tmp_path), threads=1)
    with torch.no_grad():
        expected = model(torch.tensor([[5, 6, 7]])).logits[0].numpy()
    np.testing.assert_allclose(session.feed([5, 6, 7], range(3)), expected, atol=1e-5)
    assert session.trained
    assert session.file_bytes == (tmp_path / "model.safetensors").stat().st_size


@pytest.mark.parametrize("name", ["/nowhere/model", "./model"])
def test_a_folder_that_is_not_there_is_called_so(name: str) -> None:
    with pytest.raises(UsageError, match="there is no such folder"):
        HubSession(name, threads=1)


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any], str]]:
    def run(*words: str) -> tuple[int, dict[str, Any], str]:
        with pytest.raises(SystemExit) as ended:
            main(["bench", *words, "--json"])
        said = capsys.readouterr()
        return int(str(ended.value.code)), json.loads(said.out), said.err

    return run


def test_bench_says_that_it_is_torch_and_that_weights_are_random(
    bench: Callable[..., tuple[int, dict[str, Any], str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[dict[str, Any]] = []
    ask = bench_torch._ask_child
    monkeypatch.setattr(bench_torch, "_ask_child", lambda *words: answers.append(ask(*words)) or answers[-1])
    words = ("-t", "tg4@8,pp8,full8", "--repeats", "2", "--warmup", "1")
    _, document, _ = bench(f"hf:{config_folder(tmp_path, 'gpt2')}", *words)
    rows = document["rows"]
    disturbed = [len(test["conditions"]["disturbed_ns"]) for test in answers[0]["tests"]]  # by others on this machine
    taken = [(row["test"], row["samples"] + aside) for row, aside in zip(rows, disturbed, strict=True)]
    assert taken == [("tg4", 8), ("pp8", 2), ("full8", 2)]
    for row in rows:
        assert (row["device"], row["format"], row["recipe"], row["form"]) == ("local", "torch", "fp32", "eager")
        assert row["runtime"].startswith("torch ")
        assert not row["trained"]
        assert (row["file_bytes"], row["perplexity"]) == (None, None)


def test_bench_scores_a_trained_folder_on_the_text_given(
    bench: Callable[..., tuple[int, dict[str, Any], str]], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", vocab_size=270, **SMALL["gpt2"])).save_pretrained(
        folder
    )
    PreTrainedTokenizerFast(tokenizer_object=train_tokenizer([TEXT], 270)).save_pretrained(folder)
    (tmp_path / "text.txt").write_text(TEXT)
    words = ("-t", "pp8", "--repeats", "1", "--text", str(tmp_path / "text.txt"), "--tokens", "64")
    _, document, _ = bench(f"hf:{folder}", *words)
    (row,) = document["rows"]
    assert row["perplexity"] == pytest.approx(270, rel=0.1)  # fresh weights know nothing
    nats = np.log(row["perplexity"]) * row["perplexity_tokens"]
    assert row["bits_per_byte"] == pytest.approx(nats / np.log(2) / 256)
    assert row["text"].startswith("text.txt ")


def test_a_test_longer_than_the_model_reads_is_refused(
    bench: Callable[..., tuple[int, dict[str, Any], str]], tmp_path: Path
) -> None:
    code, _, said = bench(f"hf:{config_folder(tmp_path, 'gpt2')}", "-t", "pp65")
    assert code == 2
    assert "reads 64 tokens, a test needs 65" in said


def test_a_name_that_leads_nowhere_is_one_line(
    bench: Callable[..., tuple[int, dict[str, Any], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, document, said = bench("hf:nobody/nothing", "-t", "pp8")
    assert code == 2
    assert "cannot open hf:nobody/nothing" in document["error"]["message"]
    assert sum(line.startswith("error:") for line in said.splitlines()) == 1
