"""The statistics of the proxy study, against scipy and by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from proxy import judge, ordering, table

TABLE = Path(__file__).resolve().parents[2] / "bench" / "results" / "proxy_study.csv"
small = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=12)


@given(small)
def test_ranks_agree_with_scipy_ties_included(pairs: list[tuple[int, int]]) -> None:
    values = np.array([a for a, _ in pairs], np.float64)
    assert np.array_equal(ordering.ranks(values), stats.rankdata(values))


@given(small)
def test_spearman_agrees_with_scipy(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, np.float64).T
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert ordering.spearman(a, b) == 0.0
    else:
        assert ordering.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


@given(small)
def test_kendall_agrees_with_scipy_tau_b(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, np.float64).T
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert ordering.kendall(a, b) == 0.0
    else:
        assert ordering.kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-12)


def test_only_pairs_within_ten_per_cent_are_counted() -> None:
    size = np.array([100.0, 110.0, 121.1, 200.0])
    assert np.argwhere(ordering.pairs_in_band(size)).tolist() == [[0, 1], [1, 0]]


def test_share_counts_right_pairs_and_half_of_ties() -> None:
    size = np.full(3, 100.0)
    quality = np.array([1.0, 2.0, 3.0])
    assert ordering.share_ordered(np.array([1.0, 2.0, 3.0]), quality, size) == 1.0
    assert ordering.share_ordered(np.array([1.0, 1.0, 0.0]), quality, size) == pytest.approx(0.5 / 3)


def test_share_without_near_pairs_is_no_number() -> None:
    assert np.isnan(ordering.share_ordered(np.arange(2.0), np.arange(2.0), np.array([1.0, 2.0])))


@given(small, st.integers(0, 99))
def test_figures_by_counts_are_those_of_the_resamples_written_out(pairs: list[tuple[int, int]], seed: int) -> None:
    score, quality = np.array(pairs, np.float64).T
    size = np.full(len(score), 100.0)
    draws = ordering.resamples(len(score), draws=5, seed=seed)
    sampled = ordering.bootstrap_all(score, quality, size, draws)
    for row, draw in enumerate(draws):
        assert sampled["spearman"][row] == pytest.approx(ordering.spearman(score[draw], quality[draw]), abs=1e-12)
        assert sampled["kendall"][row] == pytest.approx(ordering.kendall(score[draw], quality[draw]), abs=1e-12)
        written_out = [
            float((score[i] - score[j]) * (quality[i] - quality[j]) > 0) or 0.5 * (score[i] == score[j])
            for i in draw for j in draw if i < j and quality[i] != quality[j]
        ]  # fmt: skip
        expected = np.mean(written_out) if written_out else np.nan
        assert sampled["in_10pct"][row] == pytest.approx(expected, nan_ok=True)


def test_bootstrap_of_the_whole_sample_gives_the_figures_themselves() -> None:
    random = np.random.default_rng(1)
    score, quality, size = random.normal(size=9), random.normal(size=9), random.uniform(90, 110, 9)
    sampled = ordering.bootstrap_all(score, quality, size, np.arange(9)[None])
    assert sampled["spearman"][0] == pytest.approx(ordering.spearman(score, quality))
    assert sampled["kendall"][0] == pytest.approx(ordering.kendall(score, quality))
    assert sampled["in_10pct"][0] == pytest.approx(ordering.share_ordered(score, quality, size))


def test_a_model_drawn_twice_makes_no_pair_with_itself() -> None:
    score, quality, size = np.array([1.0, 2.0, 9.0]), np.array([2.0, 1.0, 9.0]), np.array([100.0, 100.0, 900.0])
    sampled = ordering.bootstrap_all(score, quality, size, np.array([[0, 0, 1], [0, 0, 2]]))
    assert sampled["in_10pct"][0] == 0.0
    assert np.isnan(sampled["in_10pct"][1])


def test_a_score_paired_with_itself_differs_by_nothing() -> None:
    random = np.random.default_rng(2)
    score, quality, size = random.normal(size=8), random.normal(size=8), np.full(8, 100.0)
    result = ordering.paired(score, score, quality, size, ordering.resamples(8, 50))
    assert result["spearman"] == {"difference": 0.0, "interval": [0.0, 0.0], "won": 0.5}


def test_best_on_grid_takes_the_middle_of_a_plateau() -> None:
    assert ordering.best_on_grid((1.0, 2.0, 3.0, 4.0), lambda x: min(x, 2.0)) == (3.0, 2.0)


def test_same_seed_gives_the_same_resamples() -> None:
    assert np.array_equal(ordering.resamples(5, 10), ordering.resamples(5, 10))


def test_the_grid_of_beta_stays_inside_the_domain_of_the_poster_space() -> None:
    assert max(judge.BETAS) < judge.domain()["largest_beta"] == pytest.approx(np.log(256) / 12, abs=1e-4)


def test_scores_of_the_shipped_table_follow_from_its_architectures() -> None:
    rows = table.read_table(TABLE)
    assert len({row["blocks"] for row in rows}) >= 60
    literal = judge.Entropy(rows)((1 / 16, 1.0, 0.01))
    assert literal == pytest.approx(table.column(rows, "entropy_poster"), abs=1e-3)
    assert table.entropy(rows, 1 / 16) == pytest.approx(literal, rel=1e-6)


def test_second_seeds_of_the_shipped_table_are_at_least_ten() -> None:
    assert sum(row["seed"] == 1 for row in table.read_table(TABLE)) >= 10
