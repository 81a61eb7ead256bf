"""What a training says of its machine, and that what makes it fast changes no result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from merino_edge.architecture import Architecture, Block
from merino_edge.training.loop import Plan, Watch
from merino_edge.training.model import MerinoConfig, MerinoForCausalLM, next_token_loss, padded_head_loss
from merino_edge.training.speed import peak_flops, utilisation


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H200", 989e12), ("NVIDIA H100 PCIe", None), ("Some GPU", None)],
)
def test_peak_is_known_for_the_part_the_sheet_speaks_of(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_utilisation_counts_three_passes_and_every_gpu() -> None:
    assert utilisation(1e6, 1e8, 2, 1e15) == pytest.approx(0.15)
    assert utilisation(1e6, None, 1, 1e15) is None
    assert utilisation(1e6, 1e8, 1, None) is None


def test_padded_head_has_the_loss_and_the_gradients_of_the_plain_one() -> None:
    torch.manual_seed(0)
    x, table = torch.randn(2, 5, 8, requires_grad=True), torch.randn(61, 8, requires_grad=True)
    labels = torch.randint(0, 61, (2, 5))
    plain = next_token_loss(x @ table.T, labels)
    wanted = torch.autograd.grad(plain, (x, table))
    padded = padded_head_loss(x, table, labels, 3)
    found = torch.autograd.grad(padded, (x, table))
    torch.testing.assert_close(padded, plain)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_loss_alone_is_the_loss_with_logits() -> None:
    torch.manual_seed(0)
    model = MerinoForCausalLM(MerinoConfig(architecture=Architecture((Block(16, 2, 2),), 16, 61, head_dim=8).to_json()))
    ids = torch.randint(0, 61, (2, 7))
    alone = model(ids, labels=ids, loss_only=True)
    assert alone.logits is None
    assert torch.equal(alone.loss, model(ids, labels=ids).loss)


def test_steady_speed_leaves_the_first_steps_out(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(Plan(100, None, None, "cosine"), 1000, 60.0, lambda _: None, 10, lambda _: None, began=0.0)
    assert watch.steady_tokens_per_s() is None
    watch._marks = [(10, 30.0), (60, 40.0)]  # 30 s for the first ten steps, then five a second
    assert watch.steady_tokens_per_s() == pytest.approx(5000.0)
    assert watch.startup_seconds() == pytest.approx(28.0)


def test_steps_that_a_gpu_was_only_given_do_not_count_as_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merino_edge.training.loop.time.monotonic", lambda: 102.0)
    heard: list[Mapping[str, Any]] = []
    watch = Watch(Plan(1000, None, None, "cosine"), 1000, 60.0, heard.append, 10, lambda _: None, began=0.0)
    watch._started, watch._marks = 100.0, [(10, 101.0)]  # ten steps in the first second; of 300 given the rest waits
    watch._tell(300, 300)
    assert (heard[0]["tokens_per_s"], heard[0]["steady"]) == (pytest.approx(10_000.0), False)
    assert heard[0]["seconds_left"] == pytest.approx(70.0)
    watch._marks.append((20, 102.0))
    watch._tell(300, 300)
    assert heard[1]["steady"]
