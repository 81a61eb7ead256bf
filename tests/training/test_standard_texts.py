"""Perplexity of texts: what transformers itself computes, counted by token, word and byte."""

from __future__ import annotations

import lzma
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from merino_edge.architecture import Architecture, Block
from merino_edge.errors import DataError, UsageError
from merino_edge.flows.evaluate import EvaluateOptions, evaluate
from merino_edge.training.data import train_tokenizer
from merino_edge.training.model import MerinoConfig, MerinoForCausalLM
from merino_edge.training.standard_texts import open_checkpoint, open_hub, read_texts, score_text

TEXT = " the cat sat on the mat \n the dog sat on the cat \n" * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hub") / "small"
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=270, n_embd=16, n_layer=2, n_head=2, n_positions=256))
    model.save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=train_tokenizer([TEXT], 270)).save_pretrained(path)
    return path


def test_perplexity_is_the_one_of_transformers(folder: Path) -> None:
    opened = open_hub(str(folder))
    ids = torch.tensor([opened.encode(TEXT)])
    assert 2 < ids.shape[1] < 256
    with torch.no_grad():
        loss = float(opened.model(ids, labels=ids).loss)
    row = score_text(opened, "cats", TEXT, 256, 256).to_json()
    assert row["loss"] == pytest.approx(loss, rel=1e-5)
    assert row["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    nats = row["loss"] * row["tokens"]
    assert row["words"] == len(TEXT.split()) + 8
    assert row["word_perplexity"] == pytest.approx(math.exp(nats / row["words"]), rel=1e-6)
    assert row["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(TEXT.encode()), rel=1e-6)


def test_strided_windows_are_those_of_the_usual_recipe(folder: Path) -> None:
    opened = open_hub(str(folder))
    ids = torch.tensor([opened.encode(TEXT)])
    total, scored, context, stride = 0.0, 1, 32, 16
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + context + 1, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : scored - begin] = -100
        if (new := end - scored) > 0:
            with torch.no_grad():
                total += new * float(opened.model(ids[:, begin:end], labels=labels).loss)
        scored = end
        if end == ids.shape[1]:
            break
    row = score_text(opened, "cats", TEXT, context, stride).to_json()
    assert row["loss"] * row["tokens"] == pytest.approx(total, rel=1e-5)


def test_a_shortened_text_is_counted_as_short_as_it_is(folder: Path) -> None:
    opened = open_hub(str(folder))
    row = score_text(opened, "cats", TEXT, 32, 32, max_tokens=20).to_json()
    assert row["tokens"] == 19
    assert row["bytes"] < len(TEXT.encode()) / 2


def test_a_text_that_is_too_short_to_score_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"note\.txt holds too little text to score: 0 tokens") as caught:
        score_text(open_hub(str(folder)), "note.txt", "", 256, 256)
    assert caught.value.hint == "name another with --data"


def test_a_stride_that_skips_tokens_is_refused_before_any_text_is_read(folder: Path) -> None:
    with pytest.raises(UsageError, match="--stride 300 skips tokens of windows of 256"):
        evaluate(None, EvaluateOptions(model=f"hf:{folder}", stride=300, data=("nowhere.txt",)))


def test_standard_texts_come_from_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ptb").mkdir()
    (tmp_path / "ptb" / "ptb.test.txt.xz").write_bytes(lzma.compress(b" no it was n't \n"))
    monkeypatch.setenv("MERINO_EDGE_DATA", str(tmp_path))
    assert read_texts(()) == {"ptb": " no it was n't \n"}
    with pytest.raises(DataError, match="wikitext2"):
        read_texts(("wikitext2",))
    monkeypatch.delenv("MERINO_EDGE_DATA")
    assert read_texts(()) == {}
    with pytest.raises(DataError, match="MERINO_EDGE_DATA"):
        read_texts(("ptb",))


def test_unknown_model_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot open"):
        open_hub(str(tmp_path / "nothing"))


def test_scores_need_two_tokens(folder: Path) -> None:
    with pytest.raises(DataError):
        score_text(open_hub(str(folder)), "empty", "", 32, 32)
    assert np.isfinite(score_text(open_hub(str(folder)), "two", "cat sat", 32, 32).evaluation.loss)


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "a/b/c"])
def test_a_folder_that_is_not_there_is_not_taken_for_a_name_of_the_hub(name: str) -> None:
    with pytest.raises(UsageError, match="there is no such folder"):
        open_hub(name)


def test_damaged_weights_in_a_folder_are_a_usage_error(folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    weights = (folder / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UsageError, match="cannot open"):
        open_hub(str(damaged))


def test_a_checkpoint_whose_tokenizer_transformers_wrote_again_is_opened(folder: Path, tmp_path: Path) -> None:
    architecture = Architecture((Block(16, 2, 1),), 16, 270, head_dim=8)
    MerinoForCausalLM(MerinoConfig(architecture=architecture.to_json(), max_position_embeddings=64)).save_pretrained(
        tmp_path
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / name, tmp_path / name)
    assert open_checkpoint(tmp_path).encode(TEXT) == open_hub(str(folder)).encode(TEXT)
