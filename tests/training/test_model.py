"""The torch model computes what `reference.py` computes, and behaves as a Hugging Face model."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from merino_edge import reference
from merino_edge.architecture import Architecture, Block
from merino_edge.checkpoint import read_checkpoint
from merino_edge.training.model import MerinoConfig, MerinoForCausalLM

SHAPES = {
    "one width": Architecture((Block(32, 2, 2), Block(32, 4, 1)), 32, 97, head_dim=16),
    "projections": Architecture((Block(32, 1.5, 1), Block(64, 1, 2), Block(48, 3, 1)), 40, 97, head_dim=16),
    "norms of their own": Architecture((Block(32, 2, 3), Block(16, 2, 2)), 32, 97, head_dim=8, per_layer_norms=True),
    "embedding skip": Architecture((Block(32, 2, 1), Block(32, 1, 3)), 40, 97, head_dim=8, embedding_skip=True),
}


def build(architecture: Architecture, attention: str = "sdpa", seed: int = 0) -> MerinoForCausalLM:
    torch.manual_seed(seed)
    config = MerinoConfig(architecture=architecture.to_json(), max_position_embeddings=64)
    model = MerinoForCausalLM._from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # gains other than 1, logits of some size
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tensors_of(model: MerinoForCausalLM) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def ids_of(count: int, vocab_size: int = 97, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab_size, count)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_the_reference(shape: str, attention: str) -> None:
    architecture = SHAPES[shape]
    model = build(architecture, attention)
    expected = reference.forward(architecture, tensors_of(model), ids_of(40))
    logits = model(torch.tensor(ids_of(40))[None]).logits[0].detach().numpy()
    assert expected.std() > 0.3
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_cache_gives_the_logits_of_one_pass(attention: str) -> None:
    model = build(SHAPES["projections"], attention)
    ids = torch.tensor(ids_of(12))[None]
    whole = model(ids).logits
    cache = DynamicCache()
    parts = [model(part, past_key_values=cache, use_cache=True).logits for part in ids.split([5, 1, 6], dim=1)]
    assert len(cache.layers) == SHAPES["projections"].depth
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=0)


def test_generate_is_greedy_by_the_reference() -> None:
    architecture = SHAPES["norms of their own"]
    model = build(architecture)
    ids = list(ids_of(7))
    made = model.generate(torch.tensor(ids)[None], max_new_tokens=12, do_sample=False)[0, 7:].tolist()
    cache, expected, new = reference.Cache(), [], ids
    for _ in range(12):
        new = [int(reference.forward(architecture, tensors_of(model), new, [len(new) - 1], cache).argmax())]
        expected += new
    assert made == expected


def test_generate_of_a_padded_batch_equals_single_prompts() -> None:
    model = build(SHAPES["one width"])
    short, long = torch.tensor(ids_of(4)), torch.tensor(ids_of(9, seed=2))
    padded = torch.stack([torch.cat([torch.zeros(5, dtype=torch.long), short]), long])
    mask = torch.tensor([[0] * 5 + [1] * 4, [1] * 9])
    made = model.generate(padded, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0)
    for row, prompt in zip(made, (short, long), strict=True):
        alone = model.generate(prompt[None], max_new_tokens=5, do_sample=False, pad_token_id=0)
        assert row[-5:].tolist() == alone[0, -5:].tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_saved_checkpoint_is_read_without_torch(shape: str, tmp_path: Path) -> None:
    architecture = SHAPES[shape]
    model = build(architecture)
    model.save_pretrained(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.architecture == architecture
    assert checkpoint.context_length == 64
    for name, tensor in tensors_of(model).items():
        np.testing.assert_array_equal(checkpoint.tensors[name], tensor)


def test_auto_classes_load_what_was_saved(tmp_path: Path) -> None:
    model = build(SHAPES["projections"])
    model.config.trained_tokens = 123
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, MerinoForCausalLM)
    assert AutoConfig.from_pretrained(tmp_path).trained_tokens == 123
    ids = torch.tensor(ids_of(9))[None]
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=0, rtol=0)


BLOCKS = st.builds(Block, st.sampled_from([16, 32, 48]), st.sampled_from([1, 1.5, 3]), st.integers(1, 3))


@settings(max_examples=25, deadline=None)
@given(st.lists(BLOCKS, min_size=1, max_size=4), st.sampled_from([16, 24, 32]), st.booleans())
def test_unique_parameters_are_those_of_torch(blocks: list[Block], width: int, norms: bool) -> None:
    architecture = Architecture(tuple(blocks), width, 50, head_dim=8, per_layer_norms=norms)
    with torch.device("meta"):
        model = MerinoForCausalLM(MerinoConfig(architecture=architecture.to_json()))
    assert sum(p.numel() for p in model.parameters()) == architecture.unique_parameters
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == architecture.tensor_shapes


def test_loss_is_the_mean_of_the_next_tokens() -> None:
    model = build(SHAPES["one width"])
    ids = torch.tensor(ids_of(20).reshape(2, 10))
    output = model(ids, labels=ids)
    log_p = output.logits[:, :-1].log_softmax(-1)
    expected = -log_p.gather(-1, ids[:, 1:, None]).mean()
    torch.testing.assert_close(output.loss, expected)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for enable in (False, True):
        model = build(SHAPES["norms of their own"]).train()
        if enable:
            model._set_gradient_checkpointing(True, functools.partial(checkpoint, use_reentrant=False))
        ids = torch.tensor(ids_of(20).reshape(2, 10))
        model(ids, labels=ids).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_first_loss_is_near_that_of_knowing_nothing() -> None:
    architecture = Architecture((Block(128, 4, 3), Block(128, 2, 3)), 128, 1000)
    torch.manual_seed(0)
    model = MerinoForCausalLM(MerinoConfig(architecture=architecture.to_json()))
    ids = torch.randint(0, 1000, (2, 64))
    assert abs(model(ids, labels=ids).loss.item() - np.log(1000)) < 0.8


def test_same_seed_makes_the_same_weights() -> None:
    one, two = (tensors_of(build(SHAPES["projections"], seed=3)) for _ in range(2))
    assert all((one[name] == two[name]).all() for name in one)
