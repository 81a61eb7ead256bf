"""A block's weights stay shared in a TFLite file, and in the runtime's memory.

Memory is read in fresh processes: anonymous resident memory once the file is loaded, and its peak
until then, less what the process held before: the empty runtime, checked with a tiny model. Mapped
pages of the file are apart; they cost nothing the kernel cannot take back. Then a token is computed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from merino_edge.architecture import Architecture, Block
from merino_edge.exporters.tflite_recipes import RECIPES
from merino_edge.exporters.to_tflite import export
from merino_edge.exporting import ExportOptions
from merino_edge.reference import random_tensors

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
if not Path("/proc/self/status").exists():
    pytest.skip("anonymous memory is read from /proc (Linux)", allow_module_level=True)

WIDTHS = (512, 384, 512, 640, 512)  # with the table about 20 M parameters
MEGABYTE = 1_000_000
BOOKKEEPING = 250_000  # of XNNPACK, for the operators of a subgraph, whatever their size
PLACES = 64  # of the cache a session begins with

CHILD = """
import re, sys, threading, time
from pathlib import Path
from merino_edge.agent.runtime_check import check_runtime
from merino_edge.agent.session_tflite import TfliteSession
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024
check_runtime("ai-edge-litert")
before, highest, done = anonymous(), [0], threading.Event()
def watch():
    while not done.wait(0.0005):
        highest[0] = max(highest[0], anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
session = TfliteSession(Path(sys.argv[1]), 1, "ai-edge-litert")
done.set()
watcher.join()
loaded = anonymous()
session.feed([1], [0])
print(loaded - before, max(highest[0], loaded) - before, anonymous() - before)
"""


def model(depth: int) -> Architecture:
    return Architecture(tuple(Block(width, 4, depth) for width in WIDTHS), 512, 8192)


def write(depth: int, folder: Path, recipe: str) -> int:
    """Export with the same weights at any depth; return the bytes of the file."""
    architecture = model(depth)
    tensors = random_tensors(architecture, seed=0)
    export(architecture, tensors, folder, recipe, ExportOptions(parity=False))
    return (folder / "model.tflite").stat().st_size


def anonymous_bytes(folder: Path) -> tuple[int, int, int]:
    """Medians over three fresh processes: anonymous memory after loading, its peak, and after a token."""
    readings = []
    for _ in range(3):
        child = subprocess.run(
            [sys.executable, "-c", CHILD, str(folder / "model.tflite")], capture_output=True, text=True, check=True
        )
        readings.append([int(number) for number in child.stdout.split()])
    loaded, peak, used = np.median(readings, axis=0)
    return int(loaded), int(peak), int(used)


@pytest.mark.parametrize("recipe", ["fp32", "dynamic_wi8_afp32", "dynamic_wi4_b128_afp32"])
def test_sharing_survives_the_file_and_the_runtime(recipe: str, tmp_path: Path) -> None:
    unique = RECIPES[recipe].unique_bytes(model(1))
    shallow_file, deep_file = (write(depth, tmp_path / str(depth), recipe) for depth in (1, 8))
    assert deep_file - shallow_file <= 32 * 1024  # inputs and outputs of 35 more layers, no weights
    (shallow, _, shallow_used), (deep, peak, used) = (anonymous_bytes(tmp_path / str(depth)) for depth in (1, 8))
    cache = model(8).kv_cache_bytes(PLACES) - model(1).kv_cache_bytes(PLACES)
    print(f"{recipe}: {unique / 1e6:.1f} MB unique, {shallow / 1e6:.1f} MB at depth 1, {deep / 1e6:.1f} MB at 8")
    assert deep - shallow <= 2 * MEGABYTE
    assert used - shallow_used <= 2 * MEGABYTE + cache
    assert deep <= 1.05 * unique + BOOKKEEPING * (1 + len(WIDTHS))
    assert peak <= 1.05 * deep
