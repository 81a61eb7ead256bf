"""What a prompt costs in chunks: processor time and memory of 1,024 tokens, by how many are fed at once.

The 60 M model of `export_sizes.py`, random weights, one thread, through the session that devices use.
Processor time of the thread is taken, not the clock's: it says what the work costs on a machine that
others use as well. Each file is a fresh process; the least of `--repeats` prompts counts.

    .venv/bin/python bench/prefill_chunks.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from export_sizes import DEPTHS, model
from record import write_result

from merino_edge.agent.measure import memory_bytes
from merino_edge.agent.opening import open_session
from merino_edge.exporting import ExportOptions
from merino_edge.flows.export import random_weights, write_bundle

PROMPT = 1024
CHUNKS = (64, 128, 256, 512, 1024)
FILES = (
    ("onnx", "fp32", "standard"),
    ("onnx", "dynamic_wi8_afp32", "standard"),
    ("onnx", "dynamic_wi8_afp32", "fast"),
    ("onnx", "weight_only_wi4_b128_afp32", "fast"),
    ("tflite", "dynamic_wi8_afp32", "standard"),
)


def child(folder: Path, repeats: int) -> None:
    """Feed prompts in one process and print what each size of chunk took."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    session = open_session(folder, manifest, threads=1)
    ids = np.random.default_rng(0).integers(0, session.vocab_size, PROMPT)
    shipped, found = session.prefill_chunk, []
    for size in CHUNKS:
        session.prefill_chunk, taken = size, []
        for _ in range(repeats + 1):
            session.truncate(0)
            begin = time.thread_time_ns()
            session.prefill(ids)
            taken.append((time.thread_time_ns() - begin) / 1e6)
        found.append({"chunk": size, "cpu_ms": min(taken[1:]), "anonymous_bytes": memory_bytes()["anonymous"]})
    print(json.dumps({"shipped": shipped, "chunks": found}))


def main() -> None:
    """Export, run each file in a process of its own, record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child, options.repeats)
    architecture = model(DEPTHS)
    weights, rows = random_weights(architecture, PROMPT, 0), []
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        for format_name, recipe, form in FILES:
            wish = ExportOptions(form=form, context_length=PROMPT, parity=False)
            bundle = write_bundle(architecture, weights, Path(scratch), format_name, recipe, wish)
            command = [sys.executable, __file__, "--child", str(bundle.folder), "--repeats", str(options.repeats)]
            answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            row = {"format": format_name, "recipe": recipe, "form": form, **json.loads(answer.splitlines()[-1])}
            print(f"{format_name} {recipe} {form}:", *(f"{c['chunk']}: {c['cpu_ms']:.0f} ms" for c in row["chunks"]))
            rows.append(row)
    print(f"recorded in {write_result('prefill_chunks', {'model': architecture.to_json(), 'rows': rows})}")


if __name__ == "__main__":
    main()
