"""Products of 8-bit weights that overflow 16 bits on x86 without VNNI: how far off, and what keeping them within costs.

    bench/overflow.py NAME=CHECKPOINT [NAME=CHECKPOINT ...]      into bench/results/overflow.json

Each preset, with random weights, is exported as `dynamic_wi8_afp32` twice: with scales that keep two neighbours
within what 16 bits hold (`PAIR_LIMIT` of `exporters/quantize.py`), and without. onnxruntime runs both on an emulated
processor with AVX2 (QEMU's Haswell), and the logits of a prompt are held against the model in numpy with the same
rounded weights. What rounding activations does by itself is beside it.

The price is in the wider steps: perplexity of each trained checkpoint by the exported TFLite file, which overflows on
no processor, both ways, against float32 (checkpoints as for `row_exports.py`).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from poster.rows import PRESET_FILES, PRESETS
from quantization import exporting, measure
from record import write_result

from merino_edge.architecture import Architecture
from merino_edge.exporters import quantize, to_onnx
from merino_edge.exporters.activations import forward_with_rounded_activations
from merino_edge.exporters.recipes import RECIPES
from merino_edge.exporting import ExportOptions
from merino_edge.files import read_json
from merino_edge.flows.export import ExportWish
from merino_edge.reference import forward, random_tensors

RECIPE = RECIPES["dynamic_wi8_afp32"]
PROCESSOR = "Haswell"
TOKENS = 24
NO_LIMIT = 2 * 127
THERE = """
import sys
from pathlib import Path
import numpy as np
from merino_edge.agent.session_onnx import OnnxSession
session, token_ids = OnnxSession(Path(sys.argv[1]), 1), np.load(sys.argv[2])
np.save(sys.argv[3], session.feed(token_ids, range(len(token_ids))))
"""


@contextmanager
def limit_of_pairs(limit: int) -> Iterator[None]:
    """Let the integers of two neighbours add up to this."""
    before, quantize.PAIR_LIMIT = quantize.PAIR_LIMIT, limit
    try:
        yield
    finally:
        quantize.PAIR_LIMIT = before


def off_by(name: str, limit: int, qemu: str) -> dict[str, float]:
    """Return how far the logits of a preset are off, and would be by rounding alone, in standard deviations."""
    architecture = Architecture.from_json(read_json(PRESET_FILES / f"{name}.json")["architecture"])
    tensors = random_tensors(architecture, seed=0)
    token_ids = np.random.default_rng(1).integers(0, architecture.vocab_size, TOKENS)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch, limit_of_pairs(limit):
        folder = Path(scratch)
        to_onnx.export(architecture, tensors, folder / "model", RECIPE.name, ExportOptions(parity=False))
        np.save(folder / "tokens.npy", token_ids)
        arguments = [folder / "model" / "model.onnx", folder / "tokens.npy", folder / "logits.npy"]
        command = [qemu, "-cpu", PROCESSOR, sys.executable, "-c", THERE, *map(str, arguments)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        found = np.load(folder / "logits.npy")
        rounded = {tensor: RECIPE.rounded(values) for tensor, values in tensors.items()}
    expected = forward(architecture, rounded, token_ids)
    alone = forward_with_rounded_activations(architecture, rounded, token_ids)
    return {
        "off_by": float(np.abs(found - expected).max() / expected.std()),
        "rounding_alone": float(np.abs(alone - expected).max() / expected.std()),
    }


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", metavar="NAME=CHECKPOINT")
    options = parser.parse_args()
    qemu = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if qemu is None:
        sys.exit("needs QEMU's qemu-x86_64: make system-packages")
    limits = {"kept_within": quantize.PAIR_LIMIT, "as_they_come": NO_LIMIT}
    logits: dict[str, Any] = {}
    for name in PRESETS:
        logits[name] = {way: off_by(name, limit, qemu) for way, limit in limits.items()}
        print(name, logits[name], flush=True)
    trained: dict[str, Any] = {}
    for text in options.checkpoints:
        name, _, folder = text.partition("=")
        trained[name] = {}
        for way, limit in limits.items():
            with limit_of_pairs(limit), exporting(Path(folder)) as subject:
                trained[name][way] = measure(subject, ExportWish("tflite", RECIPE.name))["perplexity_change"]
    print(write_result("overflow", {"processor": PROCESSOR, "logits": logits, "perplexity_change": trained}))


if __name__ == "__main__":
    main()
