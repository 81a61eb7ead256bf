"""Ratios and their intervals: what is noise, and what is not."""

from __future__ import annotations

import numpy as np
import pytest

from merino_edge.flows.ratios import blocks, paired, unpaired


def test_the_same_times_are_noise() -> None:
    assert paired([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).is_noise
    assert unpaired(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0])).is_noise


def test_what_disturbs_both_in_the_same_round_leaves_the_interval_narrow() -> None:
    noise = np.random.default_rng(1).uniform(1, 3, 12)
    found = paired(list(1.5 * noise), list(noise))
    assert found.low == pytest.approx(1.5) == found.high
    assert not found.is_noise
    assert unpaired(1.1 * noise, noise[::-1]).is_noise


@pytest.mark.parametrize("seed", range(20))
def test_two_draws_of_one_machine_are_seldom_told_apart(seed: int) -> None:
    random = np.random.default_rng(seed)
    first, second = (list(random.normal(10, 1, 10)) for _ in range(2))
    found = paired(first, second)
    assert found.low < found.value < found.high
    assert found.high - found.low < 0.5


def test_intervals_of_one_machine_hold_one_nine_times_in_ten() -> None:
    random = np.random.default_rng(0)
    held = [paired(list(random.normal(10, 1, 10)), list(random.normal(10, 1, 10))).is_noise for _ in range(300)]
    assert np.mean(held) > 0.9


def test_generated_tokens_are_drawn_by_eights_and_prompts_one_by_one() -> None:
    assert list(blocks(list(range(80)), "tg")) == [3.5 + 8 * block for block in range(10)]
    assert list(blocks(list(range(16)), "tg16")) == [1.0, 4.0, 7.0, 10.0, 13.0]  # at least five
    assert list(blocks([1, 2, 3], "tg4")) == [1.0, 2.0, 3.0]
    assert list(blocks([1, 2, 3], "pp128")) == [1.0, 2.0, 3.0]
