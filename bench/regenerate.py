"""Regenerate every figure of the README that this machine can make, one script after the other.

    make bench                          goes on where it stopped; --list says what there is and how long each takes
    .venv/bin/python bench/regenerate.py --fresh        begins anew
    .venv/bin/python bench/regenerate.py ring evolution only these

Durations are those of the last complete run, kept in `results/durations.json` with the machine they were taken on. A
script that fails is named at the end and tried again by the next call; the others go on. Leave the machine alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
STATE = ROOT / "build" / "bench" / "done.json"
sys.path.insert(0, str(HERE))

from record import RESULTS, write_result  # noqa: E402


@dataclass(frozen=True)
class Step:
    """One script with its arguments.

    Attributes:
        name: As it is called on the command line, and its result in `results/`.
        command: Script and arguments, from the root.
        needs: What must be there, as words; empty for nothing.
    """

    name: str
    command: tuple[str, ...]
    needs: str = ""

    def missing(self) -> bool:
        """Say whether what it needs is not there."""
        if self.needs == DATA:
            return not os.environ.get("MERINO_EDGE_DATA")
        return self.needs == PEERS and not (ROOT / ".peers").is_dir()


DATA = "real text and tables: MERINO_EDGE_DATA=FOLDER"
PEERS = "other tools: make peers"
# Bytes and scores first, which any load leaves as they are; then what is timed; the longest last.
STEPS = (
    Step("search_speed", ("bench/search_speed.py",)),
    Step("presets", ("bench/presets.py",)),
    Step("evolution", ("bench/evolution.py",)),
    Step("dynamic", ("bench/dynamic.py",)),
    Step("together", ("bench/together.py",)),
    Step("constraints", ("bench/constraints.py",)),
    Step("constraints_free", ("bench/constraints.py", "--space", "free")),
    Step("constraints_1_thread", ("bench/constraints.py", "--threads", "1")),
    Step("constraints_1_thread_free", ("bench/constraints.py", "--threads", "1", "--space", "free")),
    Step("latency_hat", ("bench/latency_hat.py",), DATA),
    Step("proxy_lts", ("bench/proxy_lts.py",), DATA),
    Step("proxy_stats", ("bench/proxy_study.py", "--stats", "bench/results/proxy_study.csv")),
    Step("shared_study", ("bench/shared_study.py", "--stats")),
    Step("shape_study", ("bench/shape_study.py", "--stats")),
    Step("export_sizes", ("bench/export_sizes.py",)),
    Step("export_sizes_tflite", ("bench/export_sizes.py", "tflite")),
    Step("prefill_chunks", ("bench/prefill_chunks.py",)),
    Step("te_nas", ("bench/te_nas.py",)),
    Step("upload", ("bench/upload.py",)),
    Step("quantization", ("bench/quantization.py",), DATA),
    Step("ring", ("bench/ring.py",)),
    Step("skip_time", ("bench/skip_time.py",)),
    Step("placement", ("bench/placement.py",)),
    Step("latency_local", ("bench/latency_local.py",)),
    Step("latency_local_1_thread", ("bench/latency_local.py", "--threads", "1")),
    Step("latency_local_free", ("bench/latency_local.py", "--space", "free")),
    Step("cache_study", ("bench/cache_study.py",)),
    Step("poster", ("bench/poster.py",)),
    Step("proxy_latency", ("bench/proxy_study.py", "--measure", "local")),
    Step("peers", ("bench/peers.py",), PEERS),
    Step("faults", ("bench/faults.py",)),
)
# Figures that no call here makes, and what does.
ELSEWHERE = {
    "poster_train": "a GPU: bench/poster_train.py",
    "variants": "a GPU: bench/variants.py",
    "space_study": "a GPU: bench/space_study.py",
    "held_out": "the folder of bench/poster_train.py: bench/held_out.py",
    "distil": "a GPU: bench/distil.py",
    "row_exports": "checkpoints of rows trained on a GPU: bench/row_exports.py",
    "overflow": "the same: bench/overflow.py",
    "poster_train_20m": "the same, earlier and on fewer tokens: kept for what the later one lacks",
    "demo_model": "a GPU: make demo-model",
    "arm": "emulated boards: bench/arm.py",
    "latency_local_fastest": "a quieter hour, with an earlier rule: kept for what a restless one cannot show",
    "latency_local_1_thread_fastest": "the same with one thread",
    "constraints_quieter": "a quieter day, with less room for a restless machine",
    "other_tools": "other tools: make other-tools",
}


def durations() -> dict[str, float]:
    """Return the seconds that each step took when it was last recorded."""
    path = RESULTS / "durations.json"
    if not path.exists():
        return {}
    return dict(json.loads(path.read_text(encoding="utf-8"))["result"]["seconds"])


def done() -> dict[str, float]:
    """Return the seconds of the steps that are complete since the last fresh start."""
    return dict(json.loads(STATE.read_text(encoding="utf-8"))) if STATE.exists() else {}


def list_steps() -> None:
    """Print what there is, how long each takes, and what is made elsewhere."""
    known, complete = durations(), done()
    for step in STEPS:
        seconds = known.get(step.name)
        took = "not timed yet" if seconds is None else f"{seconds / 60:.1f} min"
        state = "done" if step.name in complete else "needs " + step.needs if step.missing() else "to do"
        print(f"{step.name:<32}{took:<16}{' '.join(step.command)}  [{state}]")
    if known:
        print(f"together {sum(known.values()) / 60:.0f} min")
    for name, where in ELSEWHERE.items():
        print(f"{name:<32}not here: {where}")


def run(step: Step) -> bool:
    """Run one step; keep how long it took."""
    print(f"== {step.name}: {' '.join(step.command)}", flush=True)
    started = time.monotonic()
    output: Any = None
    if step.name == "proxy_stats":  # prints a page of its own
        (ROOT / "build").mkdir(exist_ok=True)
        output = (ROOT / "build" / "proxy_study.txt").open("w", encoding="utf-8")
    code = subprocess.run([sys.executable, *step.command], cwd=ROOT, stdout=output).returncode
    if code == 0:
        STATE.parent.mkdir(parents=True, exist_ok=True)
        STATE.write_text(json.dumps({**done(), step.name: round(time.monotonic() - started, 1)}, indent=2))
    return code == 0


def main() -> int:
    """Run what is asked for and not done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these (see --list)")
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    parser.add_argument("--list", action="store_true", help="list the scripts with their durations, and stop")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {step.name for step in STEPS}:
        parser.error(f"no such script: {', '.join(sorted(unknown))}; --list names all")
    if arguments.fresh:
        STATE.unlink(missing_ok=True)
    if arguments.list:
        list_steps()
        return 0
    wanted = [step for step in STEPS if step.name in arguments.names] or [s for s in STEPS if s.name not in done()]
    skipped = [step for step in wanted if step.missing()]
    failed = [step for step in wanted if not step.missing() and not run(step)]
    subprocess.run([sys.executable, "bench/figures.py"], cwd=ROOT, check=True)
    for step in skipped:
        print(f"not regenerated: {step.name} needs {step.needs}")
    for step in failed:
        print(f"FAILED: {' '.join(step.command)}; the next call tries it again")
    if not failed and {step.name for step in STEPS if not step.missing()} <= set(done()):
        write_result("durations", {"seconds": {**durations(), **done()}})
        STATE.unlink()
        print("all done: bench/results/durations.json says how long each took")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
