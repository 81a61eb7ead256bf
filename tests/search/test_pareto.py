"""The front against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merino_edge.search.pareto import Screen, non_dominated


def by_definition(points: np.ndarray) -> np.ndarray:
    smaller = (points[None] <= points[:, None]).all(2) & (points[None] < points[:, None]).any(2)
    return ~smaller.any(1)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 60), st.integers(1, 4), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_front_is_what_the_definition_says(count: int, objectives: int, values: int, seed: int) -> None:
    points = np.random.default_rng(seed).integers(0, values, size=(count, objectives)).astype(float)
    assert (non_dominated(points) == by_definition(points)).all()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 5), st.sampled_from([2, 5, 40, 10**6]), st.integers(0, 2**32 - 1))
def test_screens_of_all_points_drop_nothing_of_the_front(count: int, objectives: int, values: int, seed: int) -> None:
    points = np.random.default_rng(seed).integers(0, values, size=(count, objectives)) ** 3.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("merino_edge.search.pareto.FEW", 10)
        patch.setattr("merino_edge.search.pareto.SAMPLE", 50)
        assert (non_dominated(points) == by_definition(points)).all()


def test_front_of_more_points_than_one_batch() -> None:
    points = np.random.default_rng(0).standard_normal((3000, 4))
    assert (non_dominated(points) == by_definition(points)).all()


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_a_screen_drops_dominated_points_only_and_most_of_them(objectives: int) -> None:
    points = np.random.default_rng(1).random((4000, objectives))
    front = non_dominated(points)
    dropped = Screen(points[front]).dominated(points)
    assert not (dropped & front).any()
    assert dropped.sum() > 0.8 * (~front).sum()
