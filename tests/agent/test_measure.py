"""The timing protocol on a session whose clock is known, and sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from merino_edge.agent import measure
from merino_edge.agent.errors import AgentError
from merino_edge.agent.measure import Pass, Timed, Timer
from merino_edge.agent.sampling import Sampler
from merino_edge.agent.session import Session


class Recorder(Session):
    """A session that writes down what it is fed."""

    vocab_size = 7

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int]] = []  # (cache before, tokens, logits wanted)

    def feed(self, token_ids: Any, want: Sequence[int]) -> Any:
        self.calls.append((self.length, len(token_ids), len(want)))
        self.length += len(token_ids)
        return np.zeros((len(want), 7), np.float32)

    def truncate(self, length: int) -> None:
        self.length = length


def run(test: str, tokens: int, depth: int, budget_s: float = 0.0) -> tuple[Recorder, list[int], list[int]]:
    session = Recorder()
    found = Timer(session, budget_s or 1e-9, lambda share: None, lambda: None).run(test, tokens, depth)
    return session, found.samples, found.warmup


def test_tg_times_single_tokens_after_the_context() -> None:
    session, samples, warmup = run("tg", 64, 128)
    assert (len(samples), len(warmup)) == (64, 8)
    assert session.calls[0] == (0, 128, 1)
    assert [call for call in session.calls if call[1] > 1] == [(0, 128, 1)]
    assert [past for past, _, _ in session.calls[-64:]] == list(range(128, 192))


def test_pp_times_whole_prompts_from_an_empty_cache_at_least_five_times() -> None:
    session, samples, warmup = run("pp", 96, 0)
    assert (len(samples), len(warmup)) == (5, 1)
    assert set(session.calls) == {(0, 96, 1)}


def test_pp_reads_a_long_prompt_in_the_chunks_of_generation() -> None:
    session, samples, _ = run("pp", 300, 0)
    pieces = [(0, 128, 1), (128, 128, 1), (256, 44, 1)]
    assert session.calls == pieces * 6
    assert len(samples) == 5
    generating = Recorder()
    generating.prefill(list(range(300)))
    assert generating.calls == pieces


def test_full_wants_the_logits_of_all_positions() -> None:
    session, _, _ = run("full", 32, 0)
    assert set(session.calls) == {(0, 32, 32)}
    session, _, _ = run("full", 130, 0)
    assert set(session.calls) == {(0, 128, 128), (128, 2, 2)}


@pytest.mark.parametrize(("test", "each"), [("tg", 16), ("pp", 1)])
def test_passes_are_as_many_as_asked_for_whatever_they_take(test: str, each: int) -> None:
    session = Recorder()
    timer = Timer(session, 1e9, lambda share: None, lambda: None)
    found = timer.run(test, 16, 8, warmup=3, repeats=2)
    assert (len(found.samples), len(found.warmup)) == (2 * each, 3 * each)
    begun = [past for past, _, _ in session.calls[1:] if test == "pp" or past == 8]
    assert begun == [8] * 5  # every pass begins at the depth
    assert sum(count for _, count, _ in session.calls) == 8 + 5 * 16


def test_one_pass_is_enough_where_one_is_asked_for() -> None:
    found = Timer(Recorder(), 1e-9, lambda share: None, lambda: None).run("pp", 16, 0, repeats=1)
    assert len(found.samples) == 1


def test_samples_are_bounded_however_long_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "is_settled", lambda samples: False)
    _, samples, _ = run("tg", 64, 0, budget_s=60)
    assert len(samples) == measure.MAX_SAMPLES


def timed(least: int, *passes: tuple[list[int], float | None]) -> Timed:
    result = Timed([1], least)
    for samples, queued_ns in passes:
        result.add(Pass(samples, 100, queued_ns))
    return result


def test_disturbed_passes_are_set_aside_and_kept() -> None:
    found = timed(2, ([1, 2], 90.0), ([3, 4], 10.0), ([5, 6], 60.0), ([7, 8], 20.0))
    assert (found.samples, found.set_aside, found.queued_share) == ([3, 4, 7, 8], [1, 2, 5, 6], 0.15)


def test_where_too_few_passes_were_undisturbed_all_stand_and_the_share_tells() -> None:
    found = timed(2, ([1, 2], 90.0), ([3, 4], 10.0))
    assert (found.samples, found.set_aside, found.queued_share) == ([1, 2, 3, 4], [], 0.5)
    assert not found.settled


def test_where_the_kernel_tells_nothing_every_pass_counts() -> None:
    found = timed(1, ([1, 2], None))
    assert (found.samples, found.queued_share) == ([1, 2], None)


@pytest.mark.parametrize(("test", "tokens", "depth"), [("xx", 1, 0), ("tg", 0, 0), ("pp", 5, -1)])
def test_what_is_no_test_is_refused(test: str, tokens: int, depth: int) -> None:
    with pytest.raises(AgentError, match="no test"):
        run(test, tokens, depth)


def test_equal_samples_are_settled_and_scattered_ones_are_not() -> None:
    assert measure.is_settled([1000] * 64)
    assert not measure.is_settled([1000, 1100] * 32)


def test_likelihood_predicts_every_token_but_the_first_once() -> None:
    session, count = Recorder(), 1 + 300
    total, tokens = measure.negative_log_likelihood(session, np.zeros(count, np.int32), 200, lambda done: None)
    assert tokens == 300
    assert total == pytest.approx(300 * math.log(7))
    assert [past for past, _, _ in session.calls] == [0, 128, 0]


def test_temperature_zero_takes_the_largest() -> None:
    assert Sampler(0.0, 1.0, 0, 0)(np.array([0.0, 3.0, 1.0], np.float32)) == 1


def test_same_seed_draws_the_same_tokens_and_another_seed_others() -> None:
    logits = np.zeros(1000, np.float32)
    draws = [[sampler(logits) for _ in range(20)] for sampler in (Sampler(1, 1, 0, s) for s in (1, 1, 2))]
    assert draws[0] == draws[1] != draws[2]


def test_frequencies_are_the_probabilities() -> None:
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    sampler = Sampler(1.0, 1.0, 0, 3)
    counts = np.bincount([sampler(np.log(probabilities)) for _ in range(4000)], minlength=4) / 4000
    assert np.abs(counts - probabilities).max() < 0.03


@pytest.mark.parametrize(("top_p", "top_k", "kept"), [(0.79, 0, {0, 1}), (0.81, 0, {0, 1, 2}), (1.0, 1, {0})])
def test_top_p_and_top_k_keep_the_likeliest(top_p: float, top_k: int, kept: set[int]) -> None:
    sampler = Sampler(1.0, top_p, top_k, 5)
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    assert {sampler(logits) for _ in range(400)} == kept


def draw_by_sorting_all(logits: np.ndarray, temperature: float, top_p: float, top_k: int, random: float) -> int:
    """What the definitions of top-k and top-p say, with the whole vocabulary sorted."""
    scaled = logits.astype(np.float64) / temperature
    order = np.argsort(-scaled, kind="stable")[: top_k or None]
    weights = np.exp(scaled[order] - scaled[order[0]])
    reached = np.cumsum(weights / weights.sum())
    kept = min(int(np.searchsorted(reached, top_p)) + 1, len(reached))
    return int(order[min(int(np.searchsorted(reached, random * reached[kept - 1], side="right")), kept - 1)])


@pytest.mark.parametrize("top_k", [0, 1, 40, 2000])
@pytest.mark.parametrize("top_p", [0.3003, 0.9503, 1.0])
@pytest.mark.parametrize("spread", [0.0, 0.1, 2.0, 40.0])  # none: all are equal
def test_finding_the_likeliest_few_draws_what_sorting_all_does(spread: float, top_p: float, top_k: int) -> None:
    made = np.random.default_rng(1)
    sampler, stream = Sampler(0.8, top_p, top_k, 9), np.random.Generator(np.random.PCG64(9))
    for _ in range(20):
        logits = np.round(made.normal(size=2000) * spread, 1).astype(np.float32)  # rounded: some are equal
        assert sampler(logits) == draw_by_sorting_all(logits, 0.8, top_p, top_k, stream.random())


@pytest.mark.parametrize("wrong", [(-1.0, 1.0, 0, 0), (1.0, 0.0, 0, 0), (1.0, 1.5, 0, 0), (1.0, 1.0, -1, 0)])
def test_what_cannot_be_sampled_with_is_refused(wrong: tuple[float, float, int, int]) -> None:
    with pytest.raises(AgentError, match="cannot sample"):
        Sampler(*wrong)
