"""Scores by name, behind one interface: sums over the parts of an architecture, and what to make of them.

`entropy` is the paper's score with the weights asked for, `entropy-poster` the literal one. The others
are the plain scores that any proxy has to beat. A package adds its own by an entry point of the group
`merino_edge.scores`: an object that takes `ScoreOptions` and returns either a `SumScore`, which exact
search can use, or a plain function of one architecture, which only the evolutionary search can; a plain
function may say in an attribute `cost` what one architecture costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

import numpy as np

from merino_edge.architecture import Architecture
from merino_edge.errors import UsageError, did_you_mean
from merino_edge.search.cost import Array, Flops, Sum, Whole, parameters_sum, total
from merino_edge.search.entropy import ENTROPIES, BlocksOnly, Layers, ScoreOptions, entropy_score, explain

__all__ = ["ScoreOptions", "SumScore", "explain_score", "make_score", "score_architecture", "score_names"]

ENTRY_POINTS = "merino_edge.scores"


@runtime_checkable
class SumScore(Protocol):
    """A score made of sums over an architecture's parts; larger is better."""

    @property
    def parts(self) -> tuple[Sum, ...]:
        """The sums."""
        ...

    def combine(self, *sums: Array) -> Array:
        """Return the score of each element of the sums, element by element."""
        ...


PlainScore = Callable[[Architecture], float]


@dataclass(frozen=True)
class Combined:
    """A score written as its sums and a function of them."""

    parts: tuple[Sum, ...]
    function: Callable[..., Array]

    def combine(self, *sums: Array) -> Array:
        """Return the function's value as float64."""
        return np.asarray(self.function(*(np.asarray(s, np.float64) for s in sums)), np.float64)


@dataclass(frozen=True)
class _Width(BlocksOnly):
    """Sum of E over executed layers."""

    def blocks(self, width: Array, ffn_width: Array, depth: Array) -> Array:
        return np.asarray(width * depth, np.float64)


@dataclass(frozen=True)
class _WidthSquared(BlocksOnly):
    """Sum of E squared over layers with weights of their own."""

    def blocks(self, width: Array, ffn_width: Array, depth: Array) -> Array:
        return np.broadcast_to(
            np.asarray(width, np.float64) ** 2, np.broadcast_shapes(np.shape(width), np.shape(depth))
        )


@dataclass(frozen=True)
class _OwnLayers(BlocksOnly):
    """Layers with weights of their own: one for each block."""

    def blocks(self, width: Array, ffn_width: Array, depth: Array) -> Array:
        return np.ones(np.broadcast_shapes(np.shape(width), np.shape(ffn_width), np.shape(depth)))


@dataclass(frozen=True)
class _BlockParameters(BlocksOnly):
    """Unique parameters of the blocks.

    Without the projections between widths: counted, they would reward a change of width for its own
    sake, and a wider block could score less than a narrower one.
    """

    def blocks(self, width: Array, ffn_width: Array, depth: Array) -> Array:
        """Four attention matrices, two of the FFN, two gains."""
        return np.asarray(parameters_sum(per_layer_norms=False).blocks(width, ffn_width, depth), np.float64)


def _decoder() -> Sum:
    return parameters_sum(per_layer_norms=False, table=False)


@dataclass(frozen=True)
class _Vocabulary(BlocksOnly):
    """V, the size of the vocabulary."""

    def blocks(self, width: Array, ffn_width: Array, depth: Array) -> Array:
        return np.zeros(np.broadcast_shapes(np.shape(width), np.shape(ffn_width), np.shape(depth)))

    def ends(self, last_width: Array, embedding_width: Whole, vocab_size: Whole) -> Array:
        return np.full(np.shape(last_width), np.asarray(vocab_size, np.float64))


ASPECT = 44.0  # width over layers of its own; between 40 and 48 the trained decoders hardly tell
BALANCE = 0.3
REUSE = 0.3
USUAL_VOCABULARY = 16_384  # whose factor is 1


def _balanced(parameters: Array, squares: Array, layers: Array, own: Array, vocabulary: Array) -> Array:
    """Unique parameters of the blocks, by shape, by how often they are executed, by vocabulary.

    The width is the root mean square of the blocks': with their mean, a wider block could score less. A decoder
    twice as wide for its layers with weights of their own as `ASPECT`, or half as wide, counts for 13 % less, one of
    four times for 44 % less. Executing every block twice counts for 23 % more parameters. The three numbers are
    fitted to decoders trained at a learning rate fit for their width, without shared blocks and with them
    (`bench/space_study.py`, the first draw of `bench/shared_study.py`), and judged on others. Where vocabularies
    compete, the blocks of one four times as large may be half as large for the same bits a byte
    (`bench/poster_train.py`: nine decoders, three budgets).
    """
    shape = np.exp(-BALANCE * np.log(np.sqrt(squares / own) / (ASPECT * own)) ** 2)
    return np.asarray(parameters * shape * (layers / own) ** REUSE * np.sqrt(vocabulary / USUAL_VOCABULARY), np.float64)


# Gains of norms are told apart only where parameters are reported: a score counts one set per block.
PLAIN: dict[str, Callable[[], Combined]] = {
    "parameters": lambda: Combined((parameters_sum(False),), lambda p: p),
    "decoder-parameters": lambda: Combined((_decoder(),), lambda p: p),
    "executed-parameters": lambda: Combined((parameters_sum(False, executed=True),), lambda p: p),
    "flops": lambda: Combined((Flops(),), lambda f: f),
    "width": lambda: Combined((_Width(), Layers()), lambda w, n: w / n),
    "minus-depth": lambda: Combined((Layers(),), lambda n: -n),
    "width-per-root-depth": lambda: Combined((_Width(), Layers()), lambda w, n: w / n / np.sqrt(n)),
    "balanced-parameters": lambda: Combined(
        (_BlockParameters(), _WidthSquared(), Layers(), _OwnLayers(), _Vocabulary()), _balanced
    ),
    "parameters-per-depth": lambda: Combined((_BlockParameters(), Layers()), lambda p, n: p / n),
}


def score_names() -> list[str]:
    """Names of all scores at hand, installed ones included."""
    return [*ENTROPIES, *PLAIN, *sorted(entry_points(group=ENTRY_POINTS).names)]


def make_score(options: ScoreOptions) -> SumScore | PlainScore:
    """Return the score of this name and weights.

    Raises:
        UsageError: there is none of that name.
    """
    if options.name in ENTROPIES:
        return entropy_score(options)
    if options.name in PLAIN:
        return PLAIN[options.name]()
    for point in entry_points(group=ENTRY_POINTS, name=options.name):
        try:
            made: SumScore | PlainScore = point.load()(options)
        except ImportError as error:
            raise UsageError(
                f"score '{options.name}' needs a package that is not installed: {error}",
                hint="pip install 'merino-edge[train]'",
            ) from error
        return made
    raise UsageError(f"unknown score '{options.name}'{did_you_mean(options.name, score_names())}")


def is_sum(options: ScoreOptions) -> bool:
    """Say whether a score is a sum over parts, so that whole spaces can be filled with it."""
    return isinstance(make_score(options), SumScore)


def score_cost(options: ScoreOptions) -> str | None:
    """Return what a score that is no sum costs an architecture, in words; None for sums."""
    score = make_score(options)
    return None if isinstance(score, SumScore) else str(getattr(score, "cost", "a call of its function"))


def score_architecture(architecture: Architecture, options: ScoreOptions) -> float:
    """Return the score of one architecture."""
    score = make_score(options)
    if isinstance(score, SumScore):
        return float(score.combine(*(np.asarray(total(part, architecture), np.float64) for part in score.parts)))
    return float(score(architecture))


def explain_score(architecture: Architecture, options: ScoreOptions) -> dict[str, Any]:
    """Return the score's terms: for an entropy each term and gamma, for others the value."""
    if options.name in ENTROPIES:
        return explain(architecture, options)
    return {"name": options.name, "score": score_architecture(architecture, options), "in_domain": True}
