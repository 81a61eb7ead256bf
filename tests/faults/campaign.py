"""What all fault campaigns share: a seed, a share of the whole number of faults, a count of those that hit, one record.

FAULT_SEED=7      another seed, other places
FAULT_SHARE=1     the whole campaign (`make test-faults`); by default a fiftieth, so that `make test` stays quick
FAULT_RECORDS=DIR also write each record there
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections import Counter
from pathlib import Path

RECORDS: list[str] = []  # lines for the end of the run, see conftest.py


class Campaign:
    """One campaign: how many faults it owes, and how many really hit.

    Args:
        name: Of the campaign.
        promised: Faults that the whole campaign must hit at least.
    """

    def __init__(self, name: str, promised: int) -> None:
        self.name, self.promised = name, promised
        self.seed = int(os.environ.get("FAULT_SEED") or 1)
        self.share = min(1.0, float(os.environ.get("FAULT_SHARE") or 0.02))
        self.random = random.Random(f"{name} {self.seed}")
        self.hits: Counter[str] = Counter()
        self.facts: dict[str, object] = {}
        self.failures: list[str] = []
        self._started = time.monotonic()

    def portion(self, whole: int, least: int = 1) -> int:
        """Return how many of `whole` faults this run plans."""
        return max(least, math.ceil(whole * self.share))

    def pick(self, places: list[int], whole: int, least: int = 1) -> list[int]:
        """Return this run's share of `whole` places, drawn by the seed, in order."""
        return sorted(self.random.sample(places, min(len(places), self.portion(min(whole, len(places)), least))))

    def hit(self, kind: str, count: int = 1) -> None:
        """Count faults that really happened."""
        self.hits[kind] += count

    def fail(self, what: str) -> None:
        """Note a promise that did not hold; the campaign goes on, so that one run shows all of them."""
        self.failures.append(what)

    def finish(self) -> None:
        """Print the record, and raise where a promise was broken or too few faults hit."""
        total = sum(self.hits.values())
        record = {
            "campaign": self.name,
            "seed": self.seed,
            "share": self.share,
            "hits": total,
            "by_kind": dict(sorted(self.hits.items())),
            **self.facts,
            "failures": len(self.failures),
            "seconds": round(time.monotonic() - self._started, 1),
        }
        line = json.dumps(record)
        RECORDS.append(line)
        if folder := os.environ.get("FAULT_RECORDS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"{self.name}.json").write_text(line + "\n", encoding="utf-8")
        assert not self.failures, f"seed {self.seed}: {len(self.failures)} broken promises, the first:\n" + "\n".join(
            self.failures[:8]
        )
        owed = math.floor(self.promised * self.share)
        assert total >= owed, f"seed {self.seed}: only {total} of {owed} faults hit"
