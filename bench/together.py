"""What do dynamic programming and evolution find together, as `search` asks them beyond listing, and what each alone?

Three spaces that nothing was tuned on, limits that a random member just keeps, three scores: the best score by dynamic
programming, by evolution, and by both, evolution looking at as many architectures with and without the other.

    OMP_NUM_THREADS=1 .venv/bin/python bench/together.py
    bench/together.py --space FILE.toml [--seed 5]    # another space, other limits: printed, not recorded
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

from dynamic import SCORES, timed
from evolution import estimates, limits_of_members, words
from record import write_result

from merino_edge.errors import MerinoEdgeError
from merino_edge.search.engine import SearchRequest
from merino_edge.search.scores import ScoreOptions
from merino_edge.search.space import Space, load_space, parse_space

SEED = 3  # of the members whose costs are the limits
BUDGETS = 2
MODES = ("dp", "evolution", "dp+evolution")
SPACES: dict[str, dict[str, Any]] = {
    "seven blocks of one width": {
        "vocab_size": [8192, 16384], "head_dim": 64, "embedding_width": "width", "width": [256, 384, 448, 512, 640],
        "block": [{"count": 7, "depth": [1, 2, 3, 4, 6], "ffn_ratio": [1, 1.5, 2, 3, 4]}],
    },
    "five of own widths": {
        "vocab_size": [6000, 16384], "head_dim": [32, 48], "embedding_width": [96, 192],
        "block": [{"count": 5, "width": [96, 192, 288, 384, 480, 576], "depth": [1, 2, 3], "ffn_ratio": [1, 2, 4]}],
    },
    "nine of own widths": {
        "vocab_size": 12000, "head_dim": 32, "embedding_width": [64, 128],
        "block": [{"count": 9, "width": [64, 96, 128, 192, 256, 384], "depth": [1, 2], "ffn_ratio": [1, 2, 3, 4]}],
    },
}  # fmt: skip


def main() -> None:
    """Compare, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--space", metavar="FILE.toml", help="instead of the three")
    parser.add_argument("--seed", type=int, default=SEED, help="of the members whose costs are the limits")
    asked = parser.parse_args()
    models = estimates()
    try:
        spaces = [load_space(asked.space)] if asked.space else [named(name) for name in SPACES]
        rows = [
            compare(space, score, limits, models)
            for space in spaces
            for limits in limits_of_members(space, models, asked.seed)[:BUDGETS]
            for score in SCORES
        ]
    except MerinoEdgeError as error:
        sys.exit(f"--space {asked.space}: {error}")
    if asked.space or asked.seed != SEED:
        print("not recorded: another space or other limits than the record's")
        return
    print(write_result("together", {"rows": rows}))


def named(name: str) -> Space:
    """Return one of the three spaces."""
    return parse_space({"schema_version": 1, "name": name, "title": name, **SPACES[name]}, name)


def compare(space: Space, score: str, limits: dict[str, Any], models: dict[str, Any]) -> dict[str, Any]:
    """Return the best score and the seconds of one core by each mode."""
    request = SearchRequest(space, score=ScoreOptions(score), limits=limits, **models)
    row: dict[str, Any] = {"space": space.name, "size": space.size, "score": score, "limits": words(limits)}
    for mode in MODES:
        outcome, seconds = timed(replace(request, mode=mode))
        row[mode] = {"score": outcome.winner.score, "evaluated": outcome.evaluated, "seconds": seconds}
    best = row["dp+evolution"]["score"]
    print(
        f"{space.name}, {score}, {words(limits)}: both {best:.6g}, over dp {best / row['dp']['score'] - 1:+.2%}, "
        f"over evolution {best / row['evolution']['score'] - 1:+.2%}",
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
