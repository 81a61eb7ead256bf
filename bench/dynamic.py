"""Does dynamic programming over blocks beat the evolutionary search at equal time? `search` asks both (`together.py`).

On `wide` (4e10 architectures), three budgets and three scores, the default, parameter count and the paper's
entropy: the best score found, and those of the evolution given the same time of one core, 20 seeds.
On the poster's space, where the optimum is known: whether the dynamic programming finds it.

    OMP_NUM_THREADS=1 .venv/bin/python bench/dynamic.py
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

from evolution import POSTER_LIMITS, SEEDS, WIDE_LIMITS, estimates, words
from record import write_result

from merino_edge.search.engine import SearchOutcome, SearchRequest, search
from merino_edge.search.scores import ScoreOptions
from merino_edge.search.space import load_space

SCORES = ("balanced-parameters", "parameters", "entropy-poster")
TRIAL = 4000  # evaluations by which the evolution's speed is told


def timed(request: SearchRequest) -> tuple[SearchOutcome, float]:
    """Return the outcome and the seconds of one core."""
    used = time.process_time()
    outcome = search(request)
    return outcome, time.process_time() - used


def compare(score: str, limits: dict[str, Any], models: dict[str, Any]) -> dict[str, Any]:
    """Give both the same time on `wide`."""
    request = SearchRequest(load_space("wide"), score=ScoreOptions(score), limits=limits, mode="dp", **models)
    found, seconds = timed(request)
    _, trial = timed(replace(request, mode="evolution", evaluations=TRIAL))
    evaluations = max(500, int(TRIAL * seconds / trial))
    runs = [timed(replace(request, mode="evolution", seed=s, evaluations=evaluations)) for s in range(SEEDS)]
    scores = [outcome.winner.score for outcome, _ in runs]
    row = {
        "score": score, "limits": words(limits), "dp": found.winner.score, "dp_s": seconds,
        "dp_architecture": found.winner.architecture.describe(), "dp_evaluated": found.evaluated,
        "evolution_evaluations": evaluations, "evolution": scores,
        "evolution_s": statistics.mean(spent for _, spent in runs),
        "evolution_better": sum(s > found.winner.score for s in scores),
        "mean_ratio": found.winner.score / statistics.mean(scores),
    }  # fmt: skip
    print(
        f"{score} {words(limits)}: dp {row['dp']:.0f} in {seconds:.1f} s; evolution {statistics.mean(scores):.0f} "
        f"in {row['evolution_s']:.1f} s, better in {row['evolution_better']}/{SEEDS}",
        flush=True,
    )
    return row


def exact(score: str, limits: dict[str, Any], models: dict[str, Any]) -> dict[str, Any]:
    """Compare with the optimum of the poster's space."""
    request = SearchRequest(load_space("poster"), score=ScoreOptions(score), limits=limits, **models)
    best, found = (search(replace(request, mode=mode)).winner for mode in ("exact", "dp"))
    return {
        "score": score,
        "limits": words(limits),
        "found": best.index == found.index,
        "ratio": found.score / best.score,
    }


def main() -> None:
    """Compare, print and record."""
    models = estimates()
    result = {
        "seeds": SEEDS,
        "wide": [compare(score, limits, models) for score in SCORES for limits in WIDE_LIMITS],
        "poster": [exact(score, limits, models) for score in SCORES for limits in POSTER_LIMITS],
    }
    print(result["poster"])
    print(write_result("dynamic", result))


if __name__ == "__main__":
    main()
