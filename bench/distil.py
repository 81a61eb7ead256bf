"""Does `merino-edge train --teacher` pay? A preset trained by the command alone, and learning from a larger decoder.

    bench/distil.py --train .poster --out distil.jsonl [--presets merino-52m,merino-61m]    on a machine with a GPU
    bench/distil.py --collect distil.jsonl --device "NVIDIA H100"    into bench/results/distil.json

The folder is that of `bench/poster_train.py`, with `gpt2/`. The teacher is the plain decoder of the poster's
largest budget, trained by the same command on the same tokens; all have one learning rate, one seed and one
epoch at most. Each training writes its document as it ends; the same command goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

TEACHER = "merino-64m"  # whose budget the plain decoder has
TOKENS = 80_000_000
BATCH = 32_768
RATE = 0.0012  # what the sweeps chose for these rows (`bench/poster_train.py`)
SHARE = 0.5
KEPT = (
    "tokens", "steps", "validation_loss", "bits_per_byte", "train_loss", "parameters", "seconds", "startup_seconds",
    "steady_tokens_per_s", "mfu", "memory_bytes", "teacher", "curve",
)  # fmt: skip
Figure = tuple[str, str]


def train(options: argparse.Namespace) -> None:
    """Train what has no document yet: the teacher, then each preset alone and with it."""
    from poster.rows import PRESET_FILES, UNIFORM_DEPTHS, VOCAB_SIZE, plain

    from merino_edge.architecture import Architecture
    from merino_edge.files import read_json

    shapes = {"teacher": plain(768, UNIFORM_DEPTHS[TEACHER], VOCAB_SIZE)}
    for name in options.presets.split(","):
        shapes[name] = Architecture.from_json(read_json(PRESET_FILES / f"{name}.json")["architecture"])
    done = set()
    if options.out.exists():
        done = {json.loads(line)["id"] for line in options.out.read_text(encoding="utf-8").splitlines()}
    for name, shape in shapes.items():
        for way in ("alone",) if name == "teacher" else ("distilled", "alone"):
            if f"{name} {way}" not in done and time.time() < options.until:
                _run(options, name, way, shape)


def _run(options: argparse.Namespace, name: str, way: str, shape: Any) -> None:
    """Train one by the command in a process of its own, and write its document."""
    from merino_edge.run import create_run

    folder = options.train / "distil"
    folder.mkdir(exist_ok=True)
    run = create_run(f"{name}-{way}", "local", folder)
    run.set_architecture(shape)
    command = [sys.executable, "-m", "merino_edge.cli", "train", run.name, "--data", str(options.train / options.data)]
    command += [
        "--tokens",
        str(options.tokens),
        "--context",
        str(options.context),
        "--batch-tokens",
        str(options.batch),
    ]
    command += ["--learning-rate", str(RATE), "--json"]
    if way == "distilled":
        command += ["--teacher", str(folder / "teacher-alone" / "checkpoint"), "--teacher-share", str(SHARE)]
    began = time.monotonic()
    environment = {**os.environ, "MERINO_EDGE_RUNS": str(folder)}
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        raise SystemExit(f"{name} {way}: exit {ended.returncode}")
    document = json.loads(ended.stdout)
    found = {"id": f"{name} {way}", "preset": name, "way": way, "describe": shape.describe()}
    found |= {key: document[key] for key in KEPT} | {"wall_s": time.monotonic() - began}
    with options.out.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(found) + "\n")
    print(f"{found['id']}: {found['validation_loss']:.4f} {found['steady_tokens_per_s'] / 1e3:.0f} k", flush=True)


def collect(paths: list[Path], device: str) -> None:
    """Write what was brought back into the recorded results."""
    from record import write_result

    rows = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    recipe = {"tokens": TOKENS, "batch": BATCH, "rate": RATE, "share": SHARE, "teacher": TEACHER}
    print(write_result("distil", {"device": device, "recipe": recipe, "rows": rows}))


def figure_rows(result: dict[str, Any]) -> list[Figure]:
    """Return the README's rows."""
    rows = {row["id"]: row for row in result["rows"]}
    teacher, told = rows["teacher alone"], []
    for name in dict.fromkeys(row["preset"] for row in result["rows"] if row["way"] == "distilled"):
        pair = [rows[f"{name} {way}"] for way in ("alone", "distilled") if f"{name} {way}" in rows]
        what = (
            f"`merino-edge train` of {name} on {teacher['tokens'] / 1e6:.0f} M tokens, held-out loss: "
            + "; ".join("as it is" if row["way"] == "alone" else "with `--teacher`" for row in pair)
            + f"; the teacher, a plain decoder of {teacher['parameters'] / 1e6:.0f} M; tokens/s of each"
        )
        several = [*pair, teacher]
        losses = "; ".join(f"{row['validation_loss']:.3f}" for row in several)
        speeds = ", ".join(f"{row['steady_tokens_per_s'] / 1e3:.0f} k" for row in several)
        told.append((what, f"{losses}; {speeds}"))
    return told


def main() -> None:
    """Do the step asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("distil.jsonl"))
    parser.add_argument("--presets", default="merino-52m,merino-61m")
    parser.add_argument("--data", default="gpt2", help="the folder of tokens in the folder")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--batch", type=int, default=BATCH, help="tokens of a step")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=3600, help="begin none later")
    parser.add_argument("--collect", type=Path, nargs="+", metavar="RESULTS.jsonl")
    parser.add_argument("--device", default="")
    options = parser.parse_args()
    options.until = time.time() + options.seconds
    if options.train:
        train(options)
    elif options.collect:
        collect(options.collect, options.device)
    else:
        parser.error("give one of --train, --collect")


if __name__ == "__main__":
    main()
