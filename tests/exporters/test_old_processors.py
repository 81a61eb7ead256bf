"""Files in 8 bits on x86 processors without VNNI, which add the products of two neighbours in 16 bits.

Emulated by QEMU, whatever the processor of this machine: one with AVX2, one with SSE 4.2 only. Agent and
onnxruntime run there as they would on such a device; the exporter and the reference here.
"""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from merino_edge.architecture import Architecture, Block
from merino_edge.exporters import to_onnx
from merino_edge.exporters.recipes import RECIPES
from merino_edge.exporting import ExportOptions
from merino_edge.reference import forward

QEMU = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
PAIRS = [
    ("dynamic_wi8_afp32", "standard"),
    ("dynamic_wi8_afp32", "fast"),
    ("dynamic_wi8_afp32", "legacy"),
    ("dynamic_wi8_head_b64_afp32", "fast"),
]
THERE = """
import sys
from pathlib import Path
import numpy as np
from merino_edge.agent.runtime_check import check_runtime
from merino_edge.agent.session_onnx import OnnxSession
check_runtime("onnxruntime")
token_ids = np.load(sys.argv[1])
for folder in map(Path, sys.argv[2:]):
    whole, single = (OnnxSession(folder / "model.onnx", threads=1) for _ in range(2))
    np.save(folder / "whole.npy", whole.feed(token_ids, range(len(token_ids))))
    np.save(folder / "single.npy", np.stack([single.feed([t], [0])[0].copy() for t in token_ids]))
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="QEMU runs this interpreter on x86 only")
@pytest.mark.skipif(QEMU is None, reason="QEMU's qemu-x86_64 is not installed (make system-packages)")
@pytest.mark.parametrize("processor", ["Haswell", "Nehalem"])
def test_integer_products_do_not_overflow(processor: str, tmp_path: Path) -> None:
    architecture = Architecture((Block(128, 2, 2), Block(64, 1, 1)), embedding_width=128, vocab_size=400)
    random = np.random.default_rng(3)
    tensors = {
        name: random.uniform(-1, 1, shape).astype(np.float32) * np.float32((3 / shape[-1]) ** 0.5)
        if len(shape) == 2
        else np.ones(shape, np.float32)
        for name, shape in architecture.tensor_shapes.items()
    }
    token_ids = random.integers(0, architecture.vocab_size, 24)
    np.save(tmp_path / "tokens.npy", token_ids)
    folders = [tmp_path / f"{recipe}-{form}" for recipe, form in PAIRS]
    for folder, (recipe, form) in zip(folders, PAIRS, strict=True):
        to_onnx.export(architecture, tensors, folder, recipe, ExportOptions(form=form, parity=False))

    command = [QEMU, "-cpu", processor, sys.executable, "-c", THERE, str(tmp_path / "tokens.npy"), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr[-1000:]

    for folder, (recipe, _) in zip(folders, PAIRS, strict=True):
        rounded = {name: RECIPES[recipe].rounded(tensor) for name, tensor in tensors.items()}
        expected = forward(architecture, rounded, token_ids)
        for fed in ("whole", "single"):
            difference = np.abs(np.load(folder / f"{fed}.npy") - expected).max() / expected.std()
            assert difference < RECIPES[recipe].parity_bound, (folder.name, fed)
