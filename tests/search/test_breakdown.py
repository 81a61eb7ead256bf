"""The shares of a prediction add up to it, whatever the model and the architecture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from merino_edge.architecture import Architecture, Block
from merino_edge.search.breakdown import LAYER_KINDS, latency_by_kind, latency_of_block, memory_by_kind
from merino_edge.search.latency import FEATURES, LatencyModel
from merino_edge.search.memory import MemoryModel
from merino_edge.search.space import load_space
from merino_edge.testing import write_tiny_space

RNG = np.random.default_rng(0)
ODD = Architecture((Block(32, 2, 3), Block(64, 1.5, 1)), embedding_width=48, vocab_size=300, head_dim=16)


def model(test: str, recipe: str, cache_bytes: int, kept_bytes: int | None = None, **only: float) -> LatencyModel:
    scale = {"constant": 0.1, "layers": 0.01}
    drawn = [only.get(n, 0.0) if only else float(RNG.uniform(0, scale.get(n, 1e-6))) for n in FEATURES]
    return LatencyModel(
        test, 128 if test == "tg" else 0, recipe, cache_bytes, tuple(drawn), 0.1, False, {}, None, kept_bytes
    )


@pytest.mark.parametrize("test", ["tg", "pp128", "full1024"])
@pytest.mark.parametrize("recipe", ["fp32", "dynamic_wi8_afp32"])
@pytest.mark.parametrize("cache_bytes", [0, 10_000, 1 << 30])
@pytest.mark.parametrize("kept_bytes", [None, 0, 60_000])
def test_shares_of_a_latency_add_up(
    test: str, recipe: str, cache_bytes: int, kept_bytes: int | None, tmp_path: Path
) -> None:
    space = load_space(str(write_tiny_space(tmp_path)), None)
    for architecture in (ODD, *space.sample(10, 0)):
        found = latency_by_kind(made := model(test, recipe, cache_bytes, kept_bytes), architecture)
        assert tuple(found) == LAYER_KINDS
        assert all(ms >= 0 for ms in found.values())
        assert sum(found.values()) == pytest.approx(made.predict_ms(architecture), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(
    ("feature", "kinds"),
    [
        ("attention_macs", {"attention"}),
        ("ffn_macs", {"ffn", "projection"}),
        ("score_macs", {"scores"}),
        ("kv_bytes", {"scores"}),
        ("weight_bytes_once", {"attention", "ffn", "projection"}),
        ("weight_bytes_again", {"attention", "ffn"}),
        ("layers", {"launch"}),
        ("head_macs", {"head"}),
        ("constant", {"constant"}),
    ],
)
def test_each_cost_belongs_to_its_kind(feature: str, kinds: set[str]) -> None:
    found = latency_by_kind(model("tg", "fp32", 0, **{feature: 1e-3}), ODD)
    assert {kind for kind, ms in found.items() if ms > 0} == kinds


def test_blocks_and_ends_make_the_whole() -> None:
    made = model("tg", "fp32", 0, kept_bytes=60_000)
    whole, blocks = latency_by_kind(made, ODD), [latency_of_block(made, ODD, i) for i in range(2)]
    for kind in ("attention", "ffn", "scores", "launch"):
        assert whole[kind] == pytest.approx(sum(block[kind] for block in blocks))
    assert whole["projection"] > sum(block["projection"] for block in blocks)  # the one before the head
    assert blocks[0]["launch"] == pytest.approx(3 * blocks[1]["launch"])


@pytest.mark.parametrize("recipe", ["fp32", "dynamic_wi8_afp32"])
def test_shares_of_memory_add_up(recipe: str) -> None:
    made = MemoryModel(recipe, 256, (1.5, 1.25, 2.0, 3e7), 0.1, False, {})
    found = memory_by_kind(made, ODD)
    assert sum(found.values()) == pytest.approx(made.predict_bytes(ODD), abs=4)
    assert found["runtime"] == 3e7
    assert found["cache"] == 2.0 * ODD.kv_cache_bytes(256)
