"""Find the presets again: what the search makes of the poster's own budgets, and how firm that is.

Each preset is the best of the poster's space with GPT-2's vocabulary, unique parameters within 3 % of
its name and FLOPs at most the poster's. Writes the preset files, and records the runners-up, how the
winner moves with `beta`, `alpha1`, `alpha2` and `eps` and under other scores, and where the evolutionary
search ends under 20 seeds.

    .venv/bin/python bench/presets.py
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from record import write_result

from merino_edge.files import write_json
from merino_edge.search.engine import Candidate, SearchRequest, search
from merino_edge.search.scores import ScoreOptions
from merino_edge.search.space import load_space
from merino_edge.units import Limit

FOLDER = Path(__file__).parent.parent / "merino_edge" / "search" / "presets"
VOCAB_SIZE = 50_257
TOLERANCE = 0.03
SCORE = ScoreOptions(name="entropy-poster")
MOVES: dict[str, list[float]] = {
    "beta": [0.0, 1 / 8, 0.25, 0.44],
    "alpha1": [0.5, 2.0],
    "alpha2": [0.25, 0.5, 2.0],
    "eps": [1e-4, 0.1, 1.0],
}
OTHER_SCORES = ("balanced-parameters", "parameters-per-depth", "parameters", "flops")
SEEDS = 20  # of the evolutionary search, 5 % of the space looked at
NOTE = (
    "Found by this project's search for the budget of the poster's row of the same name. It is not the authors' "
    "network, which is not published, and has none of their weights."
)


@dataclass(frozen=True)
class Budget:
    """A row of the poster."""

    name: str
    parameters: float
    flops: float

    @property
    def limits(self) -> dict[str, Limit]:
        """The limits of the search."""
        return {
            "parameters": Limit(self.parameters * (1 + TOLERANCE), self.parameters * (1 - TOLERANCE)),
            "flops": Limit(self.flops),
        }

    @property
    def command(self) -> str:
        """What a user types to find it."""
        low, high = (f"{self.limits['parameters'].lower / 1e6:.2f}M", f"{self.limits['parameters'].upper / 1e6:.2f}M")
        return (
            f"merino-edge search --space poster --vocab {VOCAB_SIZE} --parameters {low}..{high} "
            f"--flops {self.flops / 1e9:.0f}G --score {SCORE.name} --no-embedding-skip"
        )


BUDGETS = (
    Budget("merino-52m", 52e6, 60e9),
    Budget("merino-61m", 61e6, 110e9),
    Budget("merino-64m", 64e6, 160e9),
)


def main() -> None:
    """Find, write, print and record."""
    record: dict[str, Any] = {}
    for budget in BUDGETS:
        outcome = search(request(budget, SCORE))
        winner = outcome.winner
        write_json(
            FOLDER / f"{budget.name}.json",
            {
                "name": budget.name,
                "architecture": winner.architecture.to_json(),
                "command": budget.command,
                "note": NOTE,
                "score": {"name": SCORE.name, "value": winner.score},
                "parameters": winner.parameters,
                "flops": winner.flops,
                "flops_with_head": winner.flops_with_head,
            },
        )
        record[budget.name] = {
            "command": budget.command,
            "feasible": outcome.feasible,
            "winner": brief(winner),
            "runners_up": [brief(candidate) for candidate in outcome.runners_up],
            "moves": moves(budget),
            "seeds": seeds(budget),
        }
        print(f"{budget.name}: {winner.architecture.describe()}  {winner.parameters / 1e6:.1f} M")
        for name, found in record[budget.name]["moves"].items():
            print(f"    {name:14s} {found['architecture']}")
    print(write_result("presets", record))


def request(budget: Budget, score: ScoreOptions) -> SearchRequest:
    """Return the search for a budget."""
    return SearchRequest(load_space("poster", VOCAB_SIZE), score=score, limits=budget.limits)


def moves(budget: Budget) -> dict[str, Any]:
    """Return the winner for other weights of the score, one changed at a time, and for other scores."""
    options = {
        f"{name}={value:g}": ScoreOptions(**{name: value})  # type: ignore[arg-type]
        for name, values in MOVES.items()
        for value in values
    }
    options |= {f"score={name}": ScoreOptions(name) for name in OTHER_SCORES}
    return {name: brief(search(request(budget, score)).winner) for name, score in options.items()}


def seeds(budget: Budget) -> dict[str, int]:
    """Return how often the evolutionary search ends at each architecture, over its seeds."""
    asked = request(budget, SCORE)
    asked = replace(asked, mode="evolution", evaluations=asked.space.size // 20)
    found = Counter(search(replace(asked, seed=seed)).winner.architecture.describe() for seed in range(SEEDS))
    return dict(found.most_common())


def brief(candidate: Candidate) -> dict[str, Any]:
    """Return what a table needs."""
    return {
        "architecture": candidate.architecture.describe(),
        "score": candidate.score,
        "parameters": candidate.parameters,
        "flops": candidate.flops,
        "class_size": candidate.class_size,
    }


if __name__ == "__main__":
    main()
