"""Is a shared weight stored once, in the file and in memory? Every recipe and form of the exporters.

On a block-shared model of 60 M parameters (four unequal blocks, 14 executed layers, vocabulary
50,257) and on the same weights with every depth 1 and 8. Each reading is from a fresh process:
seconds and peak memory of writing, then of loading the file in onnxruntime or ai-edge-litert: anonymous
memory after loading less what the process held before (ai-edge-litert: once it ran a tiny model), and
its peak. Mapped pages of the file are apart.

    .venv/bin/python bench/export_sizes.py [onnx] [tflite]
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import write_result

from merino_edge.architecture import Architecture, Block
from merino_edge.exporters import tflite_recipes, to_onnx, to_tflite
from merino_edge.exporters.recipes import RECIPES
from merino_edge.exporting import ExportOptions
from merino_edge.reference import random_tensors

WIDTHS, RATIOS, DEPTHS = (512, 640, 768, 1024), (4, 4, 5, 5), (3, 3, 4, 4)

LOAD = {}
LOAD["onnx"] = """
import sys
import onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 4
print("ready", flush=True)
sys.stdin.readline()
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
print("loaded", flush=True)
sys.stdin.readline()
"""
LOAD["tflite"] = """
import sys
from ai_edge_litert.interpreter import Interpreter
from merino_edge.agent.runtime_check import check_runtime
check_runtime("ai-edge-litert")
print("ready", flush=True)
sys.stdin.readline()
session = Interpreter(sys.argv[1], num_threads=1)
session.allocate_tensors()
print("loaded", flush=True)
sys.stdin.readline()
"""


def model(depths: tuple[int, ...]) -> Architecture:
    """Return the model with these depths; its weights do not depend on them."""
    blocks = tuple(Block(*shape) for shape in zip(WIDTHS, RATIOS, depths, strict=True))
    return Architecture(blocks, embedding_width=512, vocab_size=50257)


def pairs(format_name: str) -> list[tuple[str, str]]:
    """Return the recipes and forms of a format."""
    recipes = tflite_recipes.RECIPES if format_name == "tflite" else RECIPES
    return [(recipe.name, form) for recipe in recipes.values() for form in recipe.forms]


def write_here(folder: Path, format_name: str, recipe: str, form: str, depths: tuple[int, ...]) -> dict[str, Any]:
    """Export in this process; return seconds, peak memory and bytes."""
    architecture = model(depths)
    tensors = random_tensors(architecture, seed=0)
    start = time.perf_counter()
    export = to_tflite.export if format_name == "tflite" else to_onnx.export
    result = export(architecture, tensors, folder, recipe, ExportOptions(form=form, parity=False))
    return {
        "export_seconds": round(time.perf_counter() - start, 2),
        "export_peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "file_bytes": sum((folder / name).stat().st_size for name in result.files),
        "unique_bytes": result.unique_bytes,
    }


def write_apart(folder: Path, format_name: str, recipe: str, form: str, depths: tuple[int, ...]) -> dict[str, Any]:
    """Export in a fresh process."""
    arguments = ["--write", str(folder), format_name, recipe, form, *map(str, depths)]
    child = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    document: dict[str, Any] = json.loads(child.stdout)
    return document


def load_apart(graph: Path) -> dict[str, int]:
    """Load the file in a fresh process, watching its anonymous memory."""
    load = LOAD[graph.suffix[1:]]
    child = subprocess.Popen([sys.executable, "-c", load, str(graph)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin and child.stdout

    def anonymous() -> int:
        status = Path(f"/proc/{child.pid}/status").read_text(encoding="ascii")
        return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) * 1024

    child.stdout.readline()
    before, start, peak = anonymous(), time.perf_counter(), 0
    child.stdin.write(b"\n")
    child.stdin.flush()
    watcher = _Watcher(child.stdout)
    while not watcher.done():
        peak = max(peak, anonymous())
    seconds = time.perf_counter() - start
    after = anonymous()
    child.communicate(b"\n")
    return {
        "load_ms": round(seconds * 1e3),
        "anonymous_bytes": after - before,
        "peak_anonymous_bytes": max(peak, after) - before,
    }


class _Watcher:
    """Says when a pipe has something to read, waiting at most a millisecond."""

    def __init__(self, pipe: Any) -> None:
        import select

        self._poll = select.poll()
        self._poll.register(pipe, select.POLLIN)

    def done(self) -> bool:
        return bool(self._poll.poll(1))


def main(format_name: str) -> None:
    """Measure every recipe and form of a format; print a table and record it."""
    rows = []
    heads = ("file/unique", "export s", "anon MB", "peak MB", "/unique", "1 -> 8 MB")
    print(f"{'recipe':28}{'form':10}", *(f"{h:>11}" for h in heads))
    for recipe, form in pairs(format_name):
        with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
            row = measure(Path(scratch), format_name, recipe, form)
        rows.append(row)
        numbers = (
            f"{row['file_bytes'] / row['unique_bytes']:.4f}",
            f"{row['export_seconds']:.2f}",
            f"{row['anonymous_bytes'] / 1e6:.1f}",
            f"{row['peak_anonymous_bytes'] / 1e6:.1f}",
            f"{row['anonymous_bytes'] / row['unique_bytes']:.3f}",
            f"{row['growth_bytes'] / 1e6:.2f}",
        )
        print(f"{row['recipe']:28}{row['form']:10}", *(f"{n:>11}" for n in numbers), flush=True)
    name = "export_sizes" if format_name == "onnx" else f"export_sizes_{format_name}"
    path = write_result(name, {"model": model(DEPTHS).to_json(), "rows": rows})
    print(f"recorded in {path}")


def measure(scratch: Path, format_name: str, recipe: str, form: str) -> dict[str, Any]:
    """Return one row: sizes at the model's depths, and growth of memory from depth 1 to 8."""
    sizes = write_apart(scratch / "model", format_name, recipe, form, DEPTHS)
    loaded = load_apart(scratch / "model" / f"model.{format_name}")
    by_depth = []
    for depth in (1, 8):
        write_apart(scratch / str(depth), format_name, recipe, form, (depth,) * len(WIDTHS))
        by_depth.append(load_apart(scratch / str(depth) / f"model.{format_name}")["anonymous_bytes"])
    return {"recipe": recipe, "form": form, **sizes, **loaded, "growth_bytes": by_depth[1] - by_depth[0]}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        folder, format_name, recipe, form, *depths = sys.argv[2:]
        print(json.dumps(write_here(Path(folder), format_name, recipe, form, tuple(map(int, depths)))))
    else:
        for wanted in sys.argv[1:] or LOAD:
            main(wanted)
