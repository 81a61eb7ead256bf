"""Colours are read by everybody: contrasts by the formula of WCAG 2.2, in both themes, and parts told apart."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from merino_edge.report.contents import PART_LABELS
from merino_edge.report.theme import DARK, FILLS, LIGHT, MARKS, TEXT_ON, chart_rules, contrast, letter_on

THEMES = {"light": LIGHT, "dark": DARK}


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize(("under", "text"), [(under, text) for under, texts in TEXT_ON.items() for text in texts])
def test_text_has_a_contrast_of_four_and_a_half(theme: str, under: str, text: str) -> None:
    assert contrast(THEMES[theme][under], THEMES[theme][text]) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("mark", MARKS)
def test_marks_have_a_contrast_of_three(theme: str, mark: str) -> None:
    assert contrast(THEMES[theme]["background"], THEMES[theme][mark]) >= 3.0
    assert contrast(THEMES[theme]["surface"], THEMES[theme][mark]) >= 3.0


@pytest.mark.parametrize("kind", FILLS)
def test_letters_are_read_on_their_fill(kind: str) -> None:
    assert contrast(FILLS[kind], letter_on(FILLS[kind])) >= 4.5


def test_every_part_has_a_fill_and_neighbours_differ() -> None:
    assert set(PART_LABELS) == set(FILLS)
    for one, other in (*pairwise(["attention", "ffn", "scores", "projection", "head", "launch", "constant"]),):
        assert FILLS[one] != FILLS[other]


def test_both_themes_name_the_same_colours_and_charts_use_no_other() -> None:
    assert set(LIGHT) == set(DARK)
    used = set(re.findall(r"var\(--([a-z-]+)\)", chart_rules(lambda name: f"var(--{name})")))
    assert used <= set(LIGHT)


def test_an_image_by_itself_needs_no_custom_property() -> None:
    assert "var(" not in chart_rules(LIGHT.__getitem__)
