"""The score against drawn matrices and a calculation by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merino_edge.architecture import Architecture, Block
from merino_edge.errors import UsageError
from merino_edge.search.entropy import ScoreOptions, explain, matrix_entropy
from merino_edge.search.scores import score_architecture, score_names
from merino_edge.search.space import load_space


def drawn_entropy(rows: int, columns: int, eps: float, draws: int) -> float:
    rng = np.random.default_rng(rows * 10_007 + columns)
    values = []
    for _ in range(draws):
        s = np.linalg.svd(rng.standard_normal((rows, columns)), compute_uv=False)
        values.append(np.log1p((s / eps) ** 2).sum())
    return float(np.mean(values))


@pytest.mark.parametrize("eps", [1.0, 0.1, 0.01, 1e-6])
@pytest.mark.parametrize("shape", [(128, 128), (128, 512), (256, 256), (384, 256), (256, 1024)])
def test_closed_form_is_within_a_fifth_of_a_percent_of_drawn_matrices(shape: tuple[int, int], eps: float) -> None:
    assert matrix_entropy(*shape, eps) == pytest.approx(drawn_entropy(*shape, eps, draws=16), rel=2e-3)


@pytest.mark.parametrize("shape", [(4, 4), (16, 16), (16, 64), (64, 64)])
def test_closed_form_holds_for_small_matrices_at_the_default_eps(shape: tuple[int, int]) -> None:
    assert matrix_entropy(*shape, 0.01) == pytest.approx(drawn_entropy(*shape, 0.01, draws=2000), rel=3e-3)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000), st.sampled_from([1e-12, 1e-3, 0.01, 1.0, 100.0]))
def test_entropy_is_symmetric_finite_and_grows_with_the_shape(rows: int, columns: int, eps: float) -> None:
    value = matrix_entropy(rows, columns, eps)
    assert math.isfinite(value) and value >= 0
    assert value == matrix_entropy(columns, rows, eps)
    assert matrix_entropy(rows + 1, columns, eps) > value


def test_score_of_a_worked_example_term_by_term() -> None:
    architecture = Architecture((Block(64, 2, 3), Block(128, 1, 1)), 64, 1000)
    h = {shape: matrix_entropy(*shape, 0.01) for shape in ((64, 64), (128, 64), (128, 128))}
    mhsa = 3 * 4 * h[64, 64] + 4 * h[128, 128]
    ffn = 3 * 2 * h[128, 64] + 2 * h[128, 128]
    w_mhsa = (3 * math.log(64) + math.log(128)) / 4
    w_ffn = math.log(128)
    gamma_mhsa, gamma_ffn = 4 / 16 / w_mhsa, 4 / 16 / w_ffn
    expected = (1 - gamma_mhsa) * mhsa + (1 - gamma_ffn) * ffn
    terms = explain(architecture, ScoreOptions())
    assert terms["sum_mhsa_nats"] == pytest.approx(mhsa, rel=1e-9)
    assert terms["sum_ffn_nats"] == pytest.approx(ffn, rel=1e-9)
    assert terms["gamma_mhsa"] == pytest.approx(gamma_mhsa, rel=1e-9)
    assert terms["gamma_ffn"] == pytest.approx(gamma_ffn, rel=1e-9)
    assert terms["score"] == pytest.approx(expected, rel=1e-9)
    assert terms["in_domain"] is True
    assert score_architecture(architecture, ScoreOptions()) == terms["score"]


def test_weights_of_attention_and_ffn_are_applied() -> None:
    architecture = Architecture((Block(64, 2, 2),), 64, 10)
    whole = explain(architecture, ScoreOptions())
    weighted = score_architecture(architecture, ScoreOptions(alpha1=0.5, alpha2=2.0))
    assert weighted == pytest.approx(0.5 * whole["h_mhsa"] + 2.0 * whole["h_ffn"], rel=1e-12)


def test_where_gamma_reaches_one_the_score_is_zero_and_outside_the_domain() -> None:
    deep = Architecture((Block(64, 1, 80),), 64, 10)  # beta L / log 64 = 1.2
    terms = explain(deep, ScoreOptions())
    assert terms["gamma_mhsa"] > 1
    assert (terms["score"], terms["in_domain"]) == (0.0, False)


def test_embedding_head_and_projections_do_not_count() -> None:
    a = Architecture((Block(64, 2, 2),), 64, 10)
    b = Architecture((Block(64, 2, 2),), 128, 5000)
    assert score_architecture(a, ScoreOptions()) == score_architecture(b, ScoreOptions())


def test_the_poster_score_ignores_the_weights_asked_for() -> None:
    architecture = load_space("poster").decode(1234)
    literal = score_architecture(architecture, ScoreOptions(name="entropy-poster", beta=0.5, eps=1.0))
    assert literal == score_architecture(architecture, ScoreOptions())


def test_the_shipped_score_grows_with_width_at_fixed_depth_throughout_the_poster_space() -> None:
    space = load_space("poster")
    groups = [space.build(g, [len(o) - 1 for o in g.options]) for g in space.groups]
    for index in range(0, space.groups[0].size, 97):
        scores = [score_architecture(space.decode(g.offset + index), ScoreOptions()) for g in space.groups]
        assert scores == sorted(scores) and len(set(scores)) == len(scores)
    assert all(explain(a, ScoreOptions())["in_domain"] for a in groups)


@pytest.mark.parametrize("name", score_names())
def test_every_named_score_gives_a_finite_number(name: str) -> None:
    assert math.isfinite(score_architecture(load_space("poster").decode(77), ScoreOptions(name=name)))


@pytest.mark.parametrize("bad", [{"beta": -1.0}, {"eps": 0.0}, {"eps": math.nan}, {"alpha1": 0.0, "alpha2": 0.0}])
def test_impossible_weights_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        ScoreOptions(**bad)


def test_an_unknown_score_offers_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'entropy'"):
        score_architecture(load_space("poster").decode(0), ScoreOptions(name="entrpy"))
