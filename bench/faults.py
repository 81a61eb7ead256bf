"""Run every fault campaign whole and record how many faults hit, what broke, and what a careless program broke.

.venv/bin/python bench/faults.py                   # an hour at most; writes results/faults.json
.venv/bin/python bench/faults.py --seed 7 --share 0.05 --dry-run
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from record import write_result  # noqa: E402


def run(seed: int, share: float) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run the campaigns; return pytest's exit code and each campaign's record by its name."""
    with tempfile.TemporaryDirectory(prefix="merino-faults-") as folder:
        own = {"FAULT_SEED": str(seed), "FAULT_SHARE": str(share), "FAULT_RECORDS": folder}
        command = [sys.executable, "-m", "pytest", "tests/faults", "-q"]
        done = subprocess.run(command, cwd=HERE.parent, env={**os.environ, **own}, check=False)
        found = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("*.json")))
        return done.returncode, {str(record.pop("campaign")): record for record in found}


def main() -> int:
    """Run, print, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--dry-run", action="store_true", help="do not write the result")
    arguments = parser.parse_args()
    code, records = run(arguments.seed, arguments.share)
    for name, record in records.items():
        print(f"{name}: {record['hits']:,} faults, {record['failures']} broken promises, {record['seconds']:.0f} s")
    if not arguments.dry_run:
        print(write_result("faults", {"seed": arguments.seed, "share": arguments.share, "campaigns": records}))
    return code


if __name__ == "__main__":
    sys.exit(main())
