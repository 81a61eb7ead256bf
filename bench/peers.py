"""Speed and memory beside what a user would take instead, interleaved in one run on this machine.

    .venv/bin/python bench/peers.py --setup     # once: environments and files of the peers, in .peers/ (an hour, 9 GB)
    .venv/bin/python bench/peers.py             # measures whatever is there, records it and writes docs/peers.md
    .venv/bin/python bench/peers.py --rounds 2 --only A60    # a short look; records nothing

Whole here: the order of a run. One process a contender and thread count stays alive and all are asked
in turn, so that all see the same noise: tokens one by one after 128, then prompts of 1,024 with the
last position's logits, then with all. Our files are exported anew first. A peer that is not there
is reported as not measured, with the reason.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peers import environments, judging, page, preparing
from peers.contenders import DEPTH, PROMPT, Contender, contenders, models
from peers.environments import NotMeasured
from peers.running import CHECK_TEXT, Field, load_times
from record import write_result

from merino_edge.files import write_json
from merino_edge.reference import forward, random_tensors

FOLDER = Path(__file__).resolve().parents[1] / ".peers"
TOKENS = 16  # of one turn of decoding
Ready = list[tuple[Contender, str]]


def main() -> int:
    """Set up, measure, or write the page."""
    options = parse()
    if options.check or options.page:
        return page.write(check=options.check)
    if options.setup:
        return set_up(options.folder, options.threads)
    chosen = [c for c in contenders() if not options.only or any(text in c.name for text in options.only)]
    if not chosen:
        print(f"no contender's name contains {' or '.join(options.only)}; names:", file=sys.stderr)
        print(*(f"    {c.name}" for c in contenders()), sep="\n", file=sys.stderr)
        return 2
    result = measure(options, chosen)
    page.show(result)
    write_json(options.folder / "latest.json", result)
    if options.only or options.rounds < 5 or len(options.threads) < 2:
        print(f"\na part, not recorded; its samples are in {options.folder / 'latest.json'}")
        return 0
    print(f"\nrecorded in {write_result('peers', result)}")
    return page.write(check=False)


def parse() -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--setup", action="store_true", help="make environments and files of the peers")
    parser.add_argument("--page", action="store_true", help="write docs/peers.md's tables from the record")
    parser.add_argument("--check", action="store_true", help="exit 1 where docs/peers.md differs from the record")
    parser.add_argument("--rounds", type=int, default=20, help="of decoding; prompts take a third, all logits a fifth")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", default=[], help="contenders whose name contains one of these")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the peers' environments and files")
    options = parser.parse_args()
    if options.rounds < 1 or min(options.threads) < 1:
        parser.error("rounds and threads are at least 1")
    options.folder = options.folder.resolve()
    return options


def compile_once(folder: Path, contender: Contender, path: str, threads: Sequence[int]) -> None:
    """Let torch.compile fill its cache, so that a run need not wait for a compiler."""
    for count in threads:
        field = Field(folder, count, say, {})
        field.open([(contender, path)])
        field.close()


def set_up(folder: Path, threads: Sequence[int]) -> int:
    """Make everything that can be made; say what cannot and why."""
    missing = 0
    for name in environments.ENVIRONMENTS:
        say(f"environment '{name}'")
        try:
            environments.make(folder, name)
        except NotMeasured as error:
            print(f"{name}: {error}", file=sys.stderr)
    for contender in contenders():
        if contender.ours:
            continue
        say(contender.name)
        try:
            path = preparing.prepare_peer(folder, contender)
            if contender.engine == "torch_compiled":
                compile_once(folder, contender, str(path), threads)
        except NotMeasured as error:
            missing += 1
            print(f"not measured: {contender.name}: {error}", file=sys.stderr)
    print(f"{missing} contenders cannot be measured here" if missing else "all peers are ready")
    return 0


def measure(options: argparse.Namespace, chosen: Sequence[Contender]) -> dict[str, Any]:
    """Run everything and return what is recorded."""
    begin = time.perf_counter()
    reasons: dict[str, str] = {}
    ready = prepare(options.folder, chosen, reasons)
    rows: dict[str, dict[str, Any]] = {
        contender.name: {
            **contender.to_json(),
            "file_bytes": preparing.file_bytes(Path(path), contender),
            "load_ns": [],
            "samples": {},
        }
        for contender, path in ready
    }
    few = max(1, options.rounds // 5)
    quick = [(c, path) for c, path in ready if c.engine not in ("bandwidth", "torch_compiled")]
    for threads in options.threads:
        field = Field(options.folder, threads, say, reasons)
        try:
            field.open(ready)
            if threads == options.threads[0]:
                compare(field, rows)
            field.run("decode", options.rounds, TOKENS)
            field.run("prefill", max(2, options.rounds // 3))
            used = field.memory()  # before anybody holds the logits of every position
            field.run("full", max(2, few))
        finally:
            field.close()
        for name, samples in field.samples.items():
            loaded, row = field.loaded[name], rows[name]
            row["samples"][str(threads)] = samples
            row["load_ns"].append(loaded["load_ns"])
            row.setdefault("memory", {"loaded": loaded["loaded"], "used": used[name]})
            row["bytes_read"] = loaded["bytes_read"]
    for name, taken in load_times(options.folder, quick, few, say).items():
        rows[name]["load_ns"] += taken
    used_environments = {c.environment for c, _ in ready} - {"project"}
    return {
        "depth": DEPTH,
        "prompt": PROMPT,
        "threads": options.threads,
        "models": {name: architecture.to_json() for name, architecture in models().items()},
        "versions": {name: environments.versions(options.folder, name) for name in sorted(used_environments)},
        "contenders": {name: row for name, row in rows.items() if row["samples"]},
        "not_measured": reasons,
        "seconds": round(time.perf_counter() - begin),
    }


def prepare(folder: Path, chosen: Sequence[Contender], reasons: dict[str, str]) -> Ready:
    """Return what can be opened, our files exported anew."""
    ready = []
    for contender in chosen:
        say(f"preparing {contender.name}")
        try:
            make = preparing.export_ours if contender.ours else preparing.prepare_peer
            ready.append((contender, str(make(folder, contender))))
        except NotMeasured as error:
            reasons[contender.name] = str(error)
    return ready


def compare(field: Field, rows: dict[str, dict[str, Any]]) -> None:
    """Note how far everybody's logits are from the reference with the same weights; other models have none."""
    with tempfile.TemporaryDirectory() as scratch:
        found = field.check(Path(scratch))
        references: dict[str, Any] = {}
        for name, path in found.items():
            model = rows[name]["model"]
            if not (rows[name]["ours"] or name.startswith(f"{model}:")):
                continue
            if model not in references:
                architecture = models()[model]
                tensors = random_tensors(architecture, preparing.SEED)
                references[model] = forward(architecture, tensors, CHECK_TEXT, [len(CHECK_TEXT) - 1])[0]
            rows[name]["logits_difference"] = judging.difference(np.load(path), references[model])


def say(text: str) -> None:
    """Tell how far it is, on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
