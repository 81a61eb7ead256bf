"""Residual channels in another order: the same model, whose blocks hold values of like size."""

import numpy as np
import pytest

from merino_edge.architecture import Architecture, Block
from merino_edge.exporters.ordering import order_by_size
from merino_edge.exporters.quantize import quantize_blocks
from merino_edge.reference import forward, random_tensors

ARCHITECTURES = {
    "one width": Architecture((Block(64, 2, 2), Block(64, 1, 1)), 64, 97, head_dim=32),
    "narrow table": Architecture((Block(64, 2, 3), Block(128, 1, 1)), 32, 97, head_dim=32),
    "there and back": Architecture((Block(64, 1, 1), Block(192, 1, 2), Block(64, 2, 2)), 64, 101, head_dim=32),
    "back from a wider table": Architecture((Block(64, 1, 1), Block(64, 2, 1), Block(128, 1, 1)), 128, 33, head_dim=32),
    "two widths": Architecture((Block(64, 1, 2), Block(128, 1, 1)), 64, 97, head_dim=32, per_layer_norms=True),
    "embedding skip": Architecture((Block(64, 1, 3), Block(64, 2, 1)), 64, 97, head_dim=32, embedding_skip=True),
    "narrow table, embedding skip": Architecture((Block(64, 1, 3),), 32, 97, head_dim=32, embedding_skip=True),
}


def uneven(architecture: Architecture, seed: int) -> dict[str, np.ndarray]:
    """Random weights whose channels all differ in size, gains too."""
    rng = np.random.default_rng(seed)
    tensors = dict(random_tensors(architecture, seed, scale=0.1))
    for name, tensor in tensors.items():
        size = 10 if name.endswith("skip_gains") else 1  # a skip that does much
        tensors[name] = (tensor * size * rng.lognormal(0, 0.7, tensor.shape[-1])).astype(np.float32)
    return tensors


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_order_of_residual_channels_changes_no_logit(name: str) -> None:
    architecture = ARCHITECTURES[name]
    tensors = uneven(architecture, 3)
    ordered = order_by_size(architecture, tensors)
    assert {n: t.shape for n, t in ordered.items()} == {n: t.shape for n, t in tensors.items()}
    token_ids = np.random.default_rng(4).integers(0, architecture.vocab_size, 20)
    expected = forward(architecture, {n: t.astype(np.float64) for n, t in tensors.items()}, token_ids)
    found = forward(architecture, {n: t.astype(np.float64) for n, t in ordered.items()}, token_ids)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_columns_of_the_table_come_in_the_order_of_their_size(name: str) -> None:
    tensors = uneven(ARCHITECTURES[name], 5)
    table = order_by_size(ARCHITECTURES[name], tensors)["embedding.weight"]
    assert (np.diff(np.square(table).mean(0)) >= 0).all()
    assert not np.array_equal(table, tensors["embedding.weight"])


def test_a_few_large_columns_no_longer_spoil_every_block() -> None:
    architecture = Architecture((Block(128, 1, 1),), 128, 300, head_dim=32)
    tensors = dict(random_tensors(architecture, 0))
    tensors["embedding.weight"][:, ::4] *= 8  # as many large columns as one block holds, in every block
    order = np.argsort(np.square(tensors["embedding.weight"]).mean(0), kind="stable")
    tables = order_by_size(architecture, tensors)["embedding.weight"], tensors["embedding.weight"]
    ordered, scattered = (np.square(table - quantize_blocks(table, 32, 4).dequantize()) for table in tables)
    large = np.arange(128) % 4 == 0
    assert ordered[:, ~large[order]].sum() < 0.1 * scattered[:, ~large].sum()
    assert ordered.sum() < 0.6 * scattered.sum()
