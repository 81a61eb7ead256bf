"""A block's weights stay shared: in the file, and in the runtime's memory.

Memory is read in fresh processes: anonymous resident memory after the session is made, less what
the process held before. Mapped pages of the file are apart; they cost nothing the kernel cannot
take back.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from merino_edge.architecture import Architecture, Block
from merino_edge.exporters.recipes import RECIPES
from merino_edge.exporters.to_onnx import export
from merino_edge.exporting import ExportOptions
from merino_edge.reference import random_tensors

WIDTHS = (512, 384, 512, 640, 512)  # with the table about 20 M parameters
PAIRS = [
    ("fp32", "standard"),
    ("dynamic_wi8_afp32", "standard"),
    ("dynamic_wi8_afp32", "fast"),
    ("weight_only_wi8_b128_afp32", "fast"),
    ("weight_only_wi4_b32_afp32", "fast"),
]
MEGABYTE = 1_000_000

CHILD = """
import re, sys
import onnxruntime as ort
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024
options = ort.SessionOptions()
options.intra_op_num_threads = 1
before = anonymous()
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
print(anonymous() - before)
"""


def model(depth: int) -> Architecture:
    return Architecture(tuple(Block(width, 4, depth) for width in WIDTHS), 512, 8192)


def write(depth: int, folder: Path, recipe: str, form: str) -> int:
    """Export with the same weights at any depth; return the bytes of the files."""
    architecture = model(depth)
    options = ExportOptions(form=form, parity=False)
    result = export(architecture, random_tensors(architecture, seed=0), folder, recipe, options)
    return sum((folder / name).stat().st_size for name in result.files)


def anonymous_bytes(folder: Path) -> int:
    """Median over three fresh processes of the anonymous memory a session takes."""
    readings = []
    for _ in range(3):
        child = subprocess.run(
            [sys.executable, "-c", CHILD, str(folder / "model.onnx")], capture_output=True, text=True, check=True
        )
        readings.append(int(child.stdout))
    return int(np.median(readings))


@pytest.mark.parametrize(("recipe", "form"), PAIRS)
def test_sharing_survives_the_file(recipe: str, form: str, tmp_path: Path) -> None:
    shallow, deep = (write(depth, tmp_path / str(depth), recipe, form) for depth in (1, 8))
    assert (tmp_path / "1/model.data").read_bytes() == (tmp_path / "8/model.data").read_bytes()
    assert abs(deep - shallow) <= 64


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from /proc (Linux)")
@pytest.mark.parametrize(("recipe", "form"), PAIRS)
def test_sharing_survives_the_runtime(recipe: str, form: str, tmp_path: Path) -> None:
    unique = RECIPES[recipe].unique_bytes(model(1))
    for depth in (1, 8):
        write(depth, tmp_path / str(depth), recipe, form)
    shallow, deep = (anonymous_bytes(tmp_path / str(depth)) for depth in (1, 8))
    print(f"{recipe} {form}: {unique / 1e6:.1f} MB unique, {shallow / 1e6:.1f} MB at depth 1, {deep / 1e6:.1f} MB at 8")
    assert deep - shallow <= 2 * MEGABYTE
    block = RECIPES[recipe].block
    sums = 4 / (block * RECIPES[recipe].bits / 8 + 4) if block else 0  # MatMulNBits packs a float32 sum of each block
    assert deep <= (1.05 + sums) * unique + 4 * MEGABYTE  # a session of nothing takes about 2 MB
