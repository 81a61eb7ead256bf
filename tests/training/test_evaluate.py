"""Perplexity: each token but the first scored once, by the context it is given."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merino_edge import reference
from merino_edge.architecture import Architecture, Block
from merino_edge.errors import DataError, InvalidFileError
from merino_edge.training.evaluate import evaluate_checkpoint, evaluate_tokens, load_model, windows
from merino_edge.training.model import MerinoConfig, MerinoForCausalLM


@pytest.fixture(scope="module")
def model() -> MerinoForCausalLM:
    torch.manual_seed(0)
    architecture = Architecture((Block(32, 2, 2),), 32, 61, head_dim=16)
    model = MerinoForCausalLM(MerinoConfig(architecture=architecture.to_json(), max_position_embeddings=16))
    with torch.no_grad():
        model.embedding.weight.mul_(20)
    return model


IDS = np.random.default_rng(0).integers(0, 61, 50)


@given(st.integers(2, 200), st.integers(1, 30), st.integers(1, 30))
def test_windows_score_every_token_but_the_first_once(tokens: int, context_length: int, stride: int) -> None:
    stride = min(stride, context_length)
    scored: list[int] = []
    for begin, end, first in windows(tokens, context_length, stride):
        assert 0 <= begin < first < end <= begin + context_length + 1
        scored += range(first, end)
    assert scored == list(range(1, tokens))


@pytest.mark.parametrize("stride", [16, 5, 1])
def test_loss_equals_the_reference_with_the_same_context(model: MerinoForCausalLM, stride: int) -> None:
    tensors = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    total = 0.0
    for begin, end, first in windows(len(IDS), 16, stride):
        logits = reference.forward(model.config.merino, tensors, IDS[begin : end - 1]).astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        total -= sum(log_p[t - 1 - begin, IDS[t]] for t in range(first, end))
    result = evaluate_tokens(model, IDS, 16, stride)
    assert result.tokens == 49
    assert result.nll_nats_sum == pytest.approx(total, rel=1e-5)


def test_looking_back_further_helps_or_not_but_is_counted_alike(model: MerinoForCausalLM) -> None:
    assert evaluate_tokens(model, IDS, 16, 4).tokens == evaluate_tokens(model, IDS, 16, 16).tokens


def test_bits_per_byte_and_perplexities_follow_from_the_sum(model: MerinoForCausalLM) -> None:
    result = evaluate_tokens(model, IDS, 16)
    assert result.bits_per_byte(100) == pytest.approx(result.nll_nats_sum / math.log(2) / 100)
    assert result.word_perplexity(20) == pytest.approx(math.exp(result.nll_nats_sum / 20))
    assert result.perplexity == pytest.approx(math.exp(result.nll_nats_sum / 49))


@pytest.mark.parametrize(("count", "stride"), [(1, 4), (0, 4), (50, 0), (50, 17)])
def test_what_cannot_be_scored_is_refused(model: MerinoForCausalLM, count: int, stride: int) -> None:
    with pytest.raises(DataError):
        evaluate_tokens(model, IDS[:count], 16, stride)


def test_mode_of_the_model_is_restored(model: MerinoForCausalLM) -> None:
    model.train()
    evaluate_tokens(model, IDS, 16)
    assert model.training


def test_a_time_limit_scores_the_beginning_and_says_how_much(model: MerinoForCausalLM) -> None:
    ids = np.random.default_rng(0).integers(0, 20, 400)
    hasty = evaluate_tokens(model, ids, 16, seconds=0.0)
    assert 0 < hasty.tokens < 399
    assert hasty.nll_nats_sum == pytest.approx(evaluate_tokens(model, ids[: hasty.tokens + 1], 16).nll_nats_sum)
    assert evaluate_tokens(model, ids, 16, seconds=60.0).tokens == 399


def test_checkpoint_is_scored_on_its_held_out_tokens(model: MerinoForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    np.save(tmp_path / "validation_tokens.npy", IDS.astype(np.int32))
    assert evaluate_checkpoint(tmp_path).nll_nats_sum == pytest.approx(evaluate_tokens(model, IDS, 16).nll_nats_sum)


def test_ids_outside_the_vocabulary_are_refused(model: MerinoForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="vocabulary"):
        evaluate_checkpoint(tmp_path, np.array([1, 61]))


def test_truncated_weights_are_refused(model: MerinoForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InvalidFileError, match="truncated"):
        load_model(tmp_path)


def test_folder_without_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidFileError, match="config"):
        load_model(tmp_path)
