"""The ring once round on this machine, recorded: what `make demo` does, and what came of it.

    .venv/bin/python bench/ring.py

Runs `bench/demo.py` and keeps its documents without the raw samples: the profile's error, what the
search predicted and what was measured, the training, both exports, and the bench rows.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from demo import AGAIN, RUN, read, read_manifest
from record import write_result


def main() -> int:
    """Run the demo and record it; the exit code is the demo's."""
    started = time.monotonic()
    code = subprocess.run([sys.executable, Path(__file__).with_name("demo.py")]).returncode
    if code:
        return code
    seconds = time.monotonic() - started
    first, again = (read("runs", name, "search.json") for name in (RUN, AGAIN))
    print(write_result("ring", {"seconds": seconds, **summary(first, again)}))
    return 0


def summary(first: dict[str, Any], again: dict[str, Any]) -> dict[str, Any]:
    """Return the documents of the demo, raw samples and curves left out."""
    profile, train, bench = (read(f"{name}.json") for name in ("profile", "train", "bench"))
    exports = [read_manifest(recipe) for recipe in ("fp32", "dynamic_wi8_afp32")]
    keep = (
        "architecture",
        "parameters",
        "flops",
        "limits",
        "predicted_blind",
        "measured",
        "verified",
        "seconds",
        "rounds",
    )
    return {
        "profile": {key: profile[key] for key in ("models", "seconds", "latency_models", "reach", "conditions")},
        "search": {key: first[key] for key in (*keep, "rounds")},
        "search_again": {key: again[key] for key in (*keep, "prediction_checks")},
        "train": {key: value for key, value in train.items() if key not in ("curve", "checkpoint")},
        "export": [
            {key: m[key] for key in ("recipe", "form", "file_bytes", "unique_bytes", "parity")} for m in exports
        ],
        "bench": [{key: value for key, value in row.items() if key != "samples_ns"} for row in bench["rows"]],
    }


if __name__ == "__main__":
    sys.exit(main())
