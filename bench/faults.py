"""Run every fault campaign whole and record how many faults hit, what broke, and what a careless program broke.

.venv/bin/python bench/faults.py                   # an hour or so; writes results/faults.json
.venv/bin/python bench/faults.py --resume          # goes on where it was stopped: campaigns that are whole stay
.venv/bin/python bench/faults.py --only network    # this campaign alone; the others as they were recorded
.venv/bin/python bench/faults.py --seed 7 --share 0.05 --dry-run

Each file of campaigns runs by itself and is kept in build/faults/ as soon as it ends.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from record import RESULTS, commit, write_result  # noqa: E402

TESTS = HERE.parent / "tests" / "faults"
KEPT = HERE.parent / "build" / "faults"
Records = dict[str, dict[str, Any]]


def run(path: Path, folder: Path, seed: int, share: float) -> int:
    """Run one file of campaigns; its records and its end are left in `folder`; return pytest's exit code."""
    shutil.rmtree(folder, ignore_errors=True)
    own = {"FAULT_SEED": str(seed), "FAULT_SHARE": str(share), "FAULT_RECORDS": str(folder)}
    command = [sys.executable, "-P", "-m", "pytest", str(path.relative_to(HERE.parent)), "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=HERE.parent, env={**os.environ, **own}, check=False)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ended").write_text(json.dumps({"code": done.returncode, "commit": commit()}), encoding="utf-8")
    return done.returncode


def whole(folder: Path) -> bool:
    """Say whether a file of campaigns has been run there with every promise kept."""
    try:
        return bool(json.loads((folder / "ended").read_text(encoding="utf-8"))["code"] == 0)
    except (OSError, ValueError):
        return False


def records(folder: Path) -> Records:
    """Return the records that a file of campaigns left, each with the commit it ran on, by the campaign's name."""
    at = json.loads((folder / "ended").read_text(encoding="utf-8"))["commit"]
    found = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json")))
    return {str(record.pop("campaign")): {**record, "commit": at} for record in found}


def recorded() -> Records:
    """Return what was recorded before."""
    try:
        document = json.loads((RESULTS / "faults.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return dict(document["result"]["campaigns"])


def main() -> int:
    """Run, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--only", nargs="+", metavar="CAMPAIGN", help="files of tests/faults, without test_")
    parser.add_argument("--resume", action="store_true", help="keep campaigns that were whole")
    parser.add_argument("--dry-run", action="store_true", help="do not write the result")
    asked = parser.parse_args()
    names = [path.stem.removeprefix("test_") for path in sorted(TESTS.glob("test_*.py"))]
    if unknown := set(asked.only or ()) - set(names):
        parser.error(f"no campaign {', '.join(sorted(unknown))}; campaigns: {', '.join(names)}")
    code, found = 0, recorded() if asked.only else {}
    for name in asked.only or names:
        folder = KEPT / f"seed-{asked.seed}-share-{asked.share:g}" / name
        if not (asked.resume and whole(folder)):
            started = time.monotonic()
            ended = run(TESTS / f"test_{name}.py", folder, asked.seed, asked.share)
            print(f"== {name}: {'kept' if ended == 0 else 'BROKEN'}, {time.monotonic() - started:.0f} s", flush=True)
            code = code or ended
        found |= records(folder)
    for name, record in found.items():
        print(f"{name}: {record['hits']:,} faults, {record['failures']} broken promises, {record['seconds']:.0f} s")
    if not asked.dry_run:
        print(write_result("faults", {"seed": asked.seed, "share": asked.share, "campaigns": found}))
    return code


if __name__ == "__main__":
    sys.exit(main())
