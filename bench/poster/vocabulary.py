"""What a vocabulary is worth: decoders of equal FLOPs for the same text, fitted by size of blocks and vocabulary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from merino_edge.architecture import Architecture
from merino_edge.search.scores import USUAL_VOCABULARY, ScoreOptions, score_architecture

SCORE = ScoreOptions(name="balanced-parameters")
Row = dict[str, Any]


def _bits(row: Row) -> float:
    return float(row["judged"]["validation"]["bits_per_byte"])


def _shape(row: Row) -> Architecture:
    return Architecture.from_json(row["model"]["architecture"])


def budget(row: Row) -> str:
    """Return the preset whose budget a row has."""
    return str(row["id"].split(" at ")[1].split(",")[0])


def best_rates(rows: list[Row]) -> list[Row]:
    """Return one row of each architecture, that of the learning rate with the least loss."""
    best: dict[str, Row] = {}
    for row in rows:
        digest = _shape(row).digest
        if digest not in best or _bits(row) < _bits(best[digest]):
            best[digest] = row
    return list(best.values())


def fit(rows: list[Row]) -> tuple[float, float]:
    """Fit bits a byte by log blocks (as the score counts them) and log vocabulary.

    Returns:
        The exponent of the vocabulary that is worth one of the blocks, and the root mean square error in bits a byte.
    """
    shapes = [_shape(row) for row in rows]
    sizes = np.log([a.vocab_size for a in shapes])
    alike = [replace(a, vocab_size=USUAL_VOCABULARY) for a in shapes]  # without the score's own factor
    blocks = np.log([score_architecture(a, SCORE) for a in alike])
    columns = np.stack([np.ones(len(rows)), blocks, sizes], axis=1)
    bits = np.array([_bits(row) for row in rows])
    weights, *_ = np.linalg.lstsq(columns, bits, rcond=None)
    return float(weights[2] / weights[1]), float(np.sqrt(np.mean((columns @ weights - bits) ** 2)))


def chosen(rows: list[Row]) -> dict[str, tuple[int, int]]:
    """Return for each budget the vocabulary that the score chooses among its rows, and the one that is best."""
    found = {}
    for name in dict.fromkeys(map(budget, rows)):
        several = [row for row in rows if budget(row) == name]
        by_score = max(several, key=lambda row: score_architecture(_shape(row), SCORE))
        found[name] = (_shape(by_score).vocab_size, _shape(min(several, key=_bits)).vocab_size)
    return found


def without_each(rows: list[Row]) -> dict[str, float]:
    """Return the exponent fitted without each budget."""
    names = dict.fromkeys(map(budget, rows))
    return {name: fit([row for row in rows if budget(row) != name])[0] for name in names}


def told(rows: list[Row]) -> str:
    """Return in a sentence what the fit says."""
    kept = best_rates(rows)
    exponent, error = fit(kept)
    others = "; ".join(f"{value:.2f} without {name}'s budget" for name, value in without_each(kept).items())
    picks = "; ".join(f"{name} {ours:,} (best {best:,})" for name, (ours, best) in chosen(kept).items())
    return (
        f"Bits a byte fitted by log blocks and log vocabulary: the vocabulary's exponent is {exponent:.2f} of that of "
        f"the blocks ({others}; error {error:.4f}); the score has 0.5. With it the score chooses among these: {picks}."
    )
