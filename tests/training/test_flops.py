"""`count_flops` says what torch counts on the built model, attention written out."""

from __future__ import annotations

import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from merino_edge.architecture import Architecture, Block
from merino_edge.search.cost import count_flops
from merino_edge.training.model import MerinoConfig, MerinoForCausalLM

POSTER_WIDTHS = range(256, 769, 64)


def counted(architecture: Architecture, tokens: int) -> tuple[int, int]:
    """FLOPs by torch without and with the head, on the meta device: shapes alone, no memory."""
    with torch.device("meta"):
        config = MerinoConfig(architecture=architecture.to_json())
        model = MerinoForCausalLM._from_config(config, attn_implementation="eager").eval()
        ids = torch.zeros((1, tokens), dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        logits = model(ids).logits
    head = 2 * tokens * architecture.embedding_width * architecture.vocab_size
    assert logits.shape == (1, tokens, architecture.vocab_size)
    return counter.get_total_flops() - head, counter.get_total_flops()


def poster_like(seed: int) -> Architecture:
    rng = random.Random(seed)
    width = rng.choice(POSTER_WIDTHS)
    blocks = tuple(Block(width, rng.randint(1, 4), rng.randint(1, 3)) for _ in range(4))
    return Architecture(blocks, width, 8192)


def wide_like(seed: int) -> Architecture:
    """Widths that differ between blocks, an embedding of its own, fractional ratios."""
    rng = random.Random(1000 + seed)
    blocks = tuple(
        Block(rng.choice(POSTER_WIDTHS), rng.choice([1, 1.5, 2, 3.5, 4]), rng.randint(1, 5))
        for _ in range(rng.randint(1, 6))
    )
    return Architecture(blocks, rng.choice([64, 256, 512]), rng.choice([8192, 50257]), per_layer_norms=seed % 2 == 0)


MAKERS = (poster_like, wide_like)
RANDOM = [pytest.param(make(seed), id=f"{make.__name__}-{seed}") for make in MAKERS for seed in range(12)]


@pytest.mark.parametrize("architecture", RANDOM)
def test_flops_of_random_architectures_are_those_of_torch(architecture: Architecture) -> None:
    without, with_head = counted(architecture, 1024)
    assert count_flops(architecture) == without
    assert count_flops(architecture, head=True) == with_head


@pytest.mark.parametrize("tokens", [1, 7, 128])
def test_flops_of_other_lengths_are_those_of_torch(tokens: int) -> None:
    assert count_flops(wide_like(3), tokens=tokens) == counted(wide_like(3), tokens)[0]


def unshared(width: int, ratio: float, depth: int, vocab_size: int, embedding: int | None = None) -> Architecture:
    return Architecture(tuple(Block(width, ratio, 1) for _ in range(depth)), embedding or width, vocab_size)


BASELINES = {  # architecture, the design's anchors in GFLOPs without and with the head
    "GPT-2-124M": (unshared(768, 4, 12, 50257), 212.60, 291.65),
    "OPT-125M": (unshared(768, 4, 12, 50272), 212.60, 291.67),
    "Pythia-70M": (unshared(512, 4, 6, 50304), 51.5, 104.3),
    "OPT-350M": (unshared(1024, 4, 24, 50272, embedding=512), 723.7, 776.4),
}


@pytest.mark.parametrize("name", BASELINES)
def test_flops_of_known_models_are_the_anchors(name: str) -> None:
    architecture, without_g, with_head_g = BASELINES[name]
    without, with_head = counted(architecture, 1024)
    assert (count_flops(architecture), count_flops(architecture, head=True)) == (without, with_head)
    assert without / 1e9 == pytest.approx(without_g, abs=0.06)
    assert with_head / 1e9 == pytest.approx(with_head_g, abs=0.06)
