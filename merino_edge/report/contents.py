"""What a report says, as plain values: gathered by `flows/report.py`, drawn by the modules beside this one.

A section whose data a run does not have yet is `Missing`: one sentence and the command that produces it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from merino_edge.units import format_bytes, format_count, format_ms

KEPT, BROKEN, PREDICTED, ESTIMATED, OPEN = "kept", "broken", "predicted", "estimated", "open"
"""States of a promise: measured and kept, measured and not kept, only predicted, only estimated, nothing promised."""

FRONT, MEASURED, KNOWN, WINNER, RELAXED = "front", "measured", "known", "winner", "relaxed"
"""Kinds of a point: on the front, measured in this search, measured before it, found, possible with another limit."""


@dataclass(frozen=True)
class Missing:
    """A section that a run has no data for yet.

    Attributes:
        reason: One sentence.
        command: What to type.
    """

    reason: str
    command: str


@dataclass(frozen=True)
class Promise:
    """One limit, and what became of it.

    Attributes:
        name: `latency_ms`, `memory_bytes`, ...
        label: In words.
        unit: `ms`, `bytes`, `count` or `mJ`.
        upper: The limit.
        lower: Of a range, or None.
        predicted: By the model, or counted; None where no model can tell.
        predicted_upper: End of its band, which the search held against the limit.
        measured: By the device's clock, or None.
        exact: The value is a count, nothing that a device could show otherwise.
        state: `KEPT`, `BROKEN`, `PREDICTED` or `ESTIMATED`.
    """

    name: str
    label: str
    unit: str
    upper: float
    lower: float | None
    predicted: float | None
    predicted_upper: float | None
    measured: float | None
    exact: bool
    state: str


@dataclass(frozen=True)
class Verdict:
    """The answer at a glance: state, a headline, one sentence, and what to type next, if anything."""

    state: str
    headline: str
    sentence: str
    command: str | None = None


@dataclass(frozen=True)
class Axis:
    """A cost that scores are drawn against; `limit` and `lower` where it was limited."""

    key: str
    label: str
    unit: str
    limit: float | None = None
    lower: float | None = None


@dataclass(frozen=True)
class Point:
    """One architecture in the chart of scores.

    Attributes:
        kind: `FRONT`, `MEASURED`, `KNOWN`, `WINNER` or `RELAXED`.
        architecture: One line, or what stands for it.
        score: Larger is better.
        costs: By the key of an axis, where known.
        predicted: Where `costs` were measured, what had been predicted.
        upper: End of the band of the prediction.
    """

    kind: str
    architecture: str
    score: float
    costs: Mapping[str, float]
    predicted: Mapping[str, float] = field(default_factory=dict)
    upper: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Landscape:
    """Scores against costs; `left_out` points of the front are not drawn."""

    score_name: str
    axes: tuple[Axis, ...]
    points: tuple[Point, ...]
    left_out: int = 0


@dataclass(frozen=True)
class BlockShape:
    """One block: its one layer is executed `depth` times."""

    width: int
    heads: int
    ffn_width: int
    depth: int
    parameters: int
    projected_from: int | None
    latency_ms: float | None = None


@dataclass(frozen=True)
class Shape:
    """The whole model; sizes in parameters."""

    description: str
    vocab_size: int
    embedding_width: int
    table_parameters: int
    unique_parameters: int
    executed_parameters: int
    output_projection: bool
    per_layer_norms: bool
    blocks: tuple[BlockShape, ...]


@dataclass(frozen=True)
class Part:
    """A share of a whole: its kind (a key of `PART_LABELS`), its value, what it means."""

    kind: str
    value: float


PART_LABELS = {
    "attention": "attention projections",
    "ffn": "feed-forward network",
    "scores": "attention scores and cache",
    "projection": "changes of width",
    "head": "head (vocabulary)",
    "launch": "launching layers",
    "constant": "constant per pass",
    "runtime": "empty runtime",
    "weights": "weights",
    "table": "token table",
    "cache": "cache of keys and values",
    "rest": "buffers and the rest",
    "other": "attention and all else",
    "whole": "whole model",
}


@dataclass(frozen=True)
class Bar:
    """One whole and its parts, with the interval around it where there is one; values in the chart's unit."""

    label: str
    parts: tuple[Part, ...]
    low: float | None = None
    high: float | None = None

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return sum(part.value for part in self.parts)


@dataclass(frozen=True)
class Breakdown:
    """Predicted beside measured, part by part.

    Attributes:
        key: Of the image's file name.
        title: What is broken down.
        unit: `ms` or `bytes`.
        bars: Predicted first.
        note: How the measured bar came to its parts, or why it has none.
    """

    key: str
    title: str
    unit: str
    bars: tuple[Bar, ...]
    note: str


@dataclass(frozen=True)
class Curve:
    """A training: points of tokens and loss (nats per token), and what it ended with."""

    points: tuple[tuple[int, float], ...]
    held_out: float | None
    finished: bool
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Export:
    """One exported file; quality on held-out text where it was measured, else `reason` says why not."""

    label: str
    bits: int
    file_bytes: int
    perplexity: float | None
    bits_per_byte: float | None
    change: float | None
    reason: str | None


@dataclass(frozen=True)
class Quality:
    """Exported files beside each other, on `tokens` tokens of `text`."""

    exports: tuple[Export, ...]
    text: str
    tokens: int


Facts = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Contents:
    """Everything a page says."""

    run: str
    device: str
    created: str
    stage: str
    verdict: Verdict
    promises: tuple[Promise, ...]
    means: str
    shape: Shape
    found: Facts
    searched: Facts | Missing
    landscape: Landscape | Missing
    latency: tuple[Breakdown, ...] | Missing
    memory: Breakdown | Missing
    training: Curve | Missing
    quality: Quality | Missing
    conditions: Facts | Missing
    commands: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the object that a page carries for machines."""
        return asdict(self)


def quantity(value: float | None, unit: str) -> str:
    """Write a value with its unit."""
    if value is None:
        return "-"
    if unit == "ms":
        return format_ms(value)
    if unit == "bytes":
        return format_bytes(value)
    return f"{value:.3g} mJ" if unit == "mJ" else format_count(value)
