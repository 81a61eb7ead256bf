"""Colours of the page and its charts, in light and in dark, and the rules that charts are drawn by.

Text has a contrast of at least 4.5 : 1 with what it stands on and marks of at least 3 : 1 (WCAG 2.2, success criteria
1.4.3 and 1.4.11; a test computes both). Fills are those of Okabe and Ito (2008), told apart by colour-blind readers;
every series has a shape or a letter of its own besides.
"""

from __future__ import annotations

from collections.abc import Callable

LIGHT = {
    "background": "#ffffff",
    "surface": "#f5f7f9",
    "ink": "#1a1d21",
    "muted": "#545d68",
    "rule": "#c9d1d9",
    "grid": "#e3e7ec",
    "accent": "#0b5cad",
    "kept": "#0f5d27",
    "kept-surface": "#dff5e5",
    "broken": "#9c0c22",
    "broken-surface": "#ffe6e6",
    "open": "#6f4500",
    "open-surface": "#fdf0cf",
    "front": "#0072b2",
    "measured": "#b84300",
    "known": "#6a737d",
    "winner": "#8a2be2",
    "limit": "#9c0c22",
}
DARK = {
    "background": "#14171b",
    "surface": "#1e2329",
    "ink": "#e8ebee",
    "muted": "#a3adb8",
    "rule": "#414a54",
    "grid": "#2a3038",
    "accent": "#7cbcff",
    "kept": "#7ee2a0",
    "kept-surface": "#123021",
    "broken": "#ff9a9f",
    "broken-surface": "#3d181c",
    "open": "#f3c969",
    "open-surface": "#352a10",
    "front": "#56b4e9",
    "measured": "#ff9e57",
    "known": "#8f9aa5",
    "winner": "#c79bff",
    "limit": "#ff9a9f",
}

TEXT_ON = {
    "background": ("ink", "muted", "accent", "kept", "broken", "open", "limit", "front", "measured", "winner"),
    "surface": ("ink", "muted", "accent", "kept", "broken", "open", "limit", "front", "measured", "winner"),
    "kept-surface": ("kept", "ink"),
    "broken-surface": ("broken", "ink"),
    "open-surface": ("open", "ink"),
}
"""Which text stands on what."""

MARKS = ("front", "measured", "known", "winner", "limit", "ink")
"""What is drawn on `background` and `surface`."""

FILLS = {
    "attention": "#0072b2",
    "ffn": "#56b4e9",
    "scores": "#e69f00",
    "projection": "#f0e442",
    "head": "#009e73",
    "launch": "#cc79a7",
    "constant": "#bfbfbf",
    "runtime": "#bfbfbf",
    "weights": "#0072b2",
    "table": "#009e73",
    "cache": "#e69f00",
    "rest": "#cc79a7",
    "other": "#e7d3b1",
    "whole": "#d9dde2",
}
"""Fill of each part of a whole, the same in both themes, within an outline of `ink`."""


def luminance(colour: str) -> float:
    """Return the relative luminance of `#rrggbb` (WCAG 2.2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def letter_on(fill: str) -> str:
    """Return black or white, whichever is read better on a fill."""
    return max(("#000000", "#ffffff"), key=lambda colour: contrast(colour, fill))


def variables(theme: dict[str, str]) -> str:
    """Return a theme as CSS custom properties."""
    return "".join(f"--{name}:{colour};" for name, colour in theme.items())


SANS = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,'DejaVu Sans',sans-serif"


def chart_rules(colour: Callable[[str], str]) -> str:
    """Return the style sheet of charts.

    Args:
        colour: From a name to what CSS shall say: `var(--ink)` in a page, `#1a1d21` in an image by itself.
    """
    lines = [
        f"text{{font:13px {SANS};fill:{colour('ink')}}}",
        f".small{{font-size:12px;fill:{colour('muted')}}}.strong{{font-weight:600}}",
        ".title{font-size:15px;font-weight:600}.end{text-anchor:end}.middle{text-anchor:middle}",
        f".grid{{stroke:{colour('grid')};stroke-width:1}}.axis{{stroke:{colour('known')};stroke-width:1}}",
        f".limit{{stroke:{colour('limit')};stroke-width:2;stroke-dasharray:6 4;fill:none}}",
        f".limit-text{{fill:{colour('limit')};font-size:12px;font-weight:600}}",
        f".front{{fill:{colour('front')};stroke:{colour('background')};stroke-width:1}}",
        f".front-line{{fill:none;stroke:{colour('front')};stroke-width:1.5}}",
        f".measured{{fill:{colour('measured')};stroke:{colour('background')};stroke-width:1}}",
        f".known{{fill:none;stroke:{colour('known')};stroke-width:1.6}}",
        f".relaxed{{fill:{colour('background')};stroke:{colour('limit')};stroke-width:1.8}}",
        f".winner{{fill:{colour('winner')};stroke:{colour('background')};stroke-width:1}}",
        f".winner-line{{stroke:{colour('winner')};stroke-width:2;fill:none}}",
        f".measured-line{{stroke:{colour('measured')};stroke-width:2;fill:none}}",
        ".faint{stroke-dasharray:2 3}",
        f".part{{stroke:{colour('ink')};stroke-width:.75}}.whisker{{stroke:{colour('ink')};stroke-width:1.5;fill:none}}",
        f".card{{fill:{colour('background')};stroke:{colour('known')};stroke-width:1.25}}",
        f".behind{{fill:{colour('surface')};stroke:{colour('known')};stroke-width:1}}",
        f".arrow{{stroke:{colour('known')};stroke-width:1.5;fill:none}}.arrow-head{{fill:{colour('known')}}}",
        f".loop{{stroke:{colour('accent')};stroke-width:2;fill:none}}.loop-head,.loop-text{{fill:{colour('accent')}}}",
        f".tied{{stroke:{colour('known')};stroke-width:1.25;stroke-dasharray:3 3;fill:none}}",
        f".band{{fill:{colour('front')};opacity:.35}}",
        f".state-kept{{fill:{colour('kept')};font-weight:600}}.state-broken{{fill:{colour('broken')};font-weight:600}}",
        f".state-predicted,.state-estimated{{fill:{colour('open')};font-weight:600}}",
        f".sheet{{fill:{colour('background')}}}",
        f".track{{fill:{colour('surface')};stroke:{colour('rule')}}}",
    ]
    lines += [f".k-{kind}{{fill:{fill}}}.l-{kind}{{fill:{letter_on(fill)}}}" for kind, fill in FILLS.items()]
    return "\n".join(lines)
