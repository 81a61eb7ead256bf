"""The emitted files run, and stay shared, on the oldest and the newest onnxruntime that boards get.

`make old-runtimes` puts the older releases into folders of their own; each runs in a process of its own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from merino_edge.architecture import Architecture, Block
from merino_edge.exporters.forms import carries
from merino_edge.exporters.quantizers import quantize_model
from merino_edge.exporters.recipes import RECIPES
from merino_edge.exporters.to_onnx import export
from merino_edge.exporting import ExportOptions
from merino_edge.reference import forward, random_tensors

FOLDERS = Path(__file__).resolve().parent.parent.parent / "build" / "runtimes"
OLDER = ("1.19.2", "1.23.2")  # the newest for Python 3.8 and 3.9, and for 3.10
VERSIONS = (*OLDER, onnxruntime.__version__)
PIECES = (9, 10, 60)
RECIPES_HERE = [recipe for recipe in RECIPES.values() if recipe.block in (0, 32) and recipe.table_block <= 64]
MODELS = {
    "unequal": Architecture((Block(64, 2, 2), Block(160, 1, 3), Block(96, 4, 1)), 64, 101, head_dim=32),
    "embedding skip": Architecture((Block(96, 2, 3), Block(96, 1, 1)), 64, 101, head_dim=32, embedding_skip=True),
}
MEGABYTE = 1_000_000

RUN = """
import json, sys
folder, version, bundles, ids, pieces = json.loads(sys.argv[1])
sys.path[:0] = [folder] if folder else []
import numpy, onnxruntime
from pathlib import Path
from merino_edge.agent.opening import open_session
assert onnxruntime.__version__ == version, onnxruntime.__version__
results = {}
for path in bundles:
    recipe, form = Path(path).name.rsplit("-", 1)
    manifest = {"format": "onnx", "recipe": recipe, "form": form, "files": [{"name": "model.onnx"}]}
    try:
        session = open_session(Path(path), manifest, 1)
        rows, start = [], 0
        for end in pieces:
            rows += session.feed(ids[start:end], list(range(end - start))).tolist()
            start = end
        session.truncate(pieces[0])
        rows += session.feed(ids[pieces[0] : pieces[1]], list(range(pieces[1] - pieces[0]))).tolist()
        results[Path(path).name] = rows
    except Exception as error:
        results[Path(path).name] = str(error)[:300]
print(json.dumps(results))
"""

MEMORY = """
import json, re, sys
folder, graph = json.loads(sys.argv[1])
sys.path[:0] = [folder] if folder else []
import onnxruntime
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
before = anonymous()
session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
print(anonymous() - before)
"""


def folder_of(version: str) -> str:
    """Return the folder of a runtime; empty for the one that is installed; skip where it is missing."""
    if version == onnxruntime.__version__:
        return ""
    folder = FOLDERS / f"onnxruntime-{version}"
    if not folder.is_dir():
        pytest.skip(f"onnxruntime {version} is not in {FOLDERS}: make old-runtimes")
    return str(folder)


def child(program: str, argument: object) -> object:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, json.dumps(argument)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def weights(architecture: Architecture) -> dict[str, np.ndarray]:
    """Random weights whose embedding skip, where there is one, does much."""
    tensors = random_tensors(architecture, 0, scale=0.05)
    return {name: 20 * tensor if name.endswith("skip_gains") else tensor for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[Path]]:
    """One file of every recipe and form, for each model."""
    parent = tmp_path_factory.mktemp("bundles")
    for model, architecture in MODELS.items():
        for recipe in RECIPES_HERE:
            for form in recipe.forms:
                folder = parent / model / f"{recipe.name}-{form}"
                export(architecture, weights(architecture), folder, recipe.name, ExportOptions(form=form))
    return {model: sorted((parent / model).iterdir()) for model in MODELS}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_runtime_computes_every_file_that_it_is_said_to_carry_and_opens_no_older_ones(
    version: str, model: str, bundles: Mapping[str, list[Path]]
) -> None:
    architecture = MODELS[model]
    ids = np.random.default_rng(5).integers(0, architecture.vocab_size, PIECES[-1])
    found = child(RUN, (folder_of(version), version, [str(b) for b in bundles[model]], ids.tolist(), PIECES))
    assert isinstance(found, dict)
    for recipe in RECIPES_HERE:
        quantized, _ = quantize_model(architecture, weights(architecture), recipe, ExportOptions())
        expected = forward(architecture, {name: recipe.rounded(tensor) for name, tensor in quantized.items()}, ids)
        expected = np.concatenate([expected, expected[PIECES[0] : PIECES[1]]])
        for form in recipe.forms:
            rows = found[f"{recipe.name}-{form}"]
            if carries(version, recipe, form):
                assert isinstance(rows, list), f"{recipe.name} {form}: {rows}"
                difference = np.abs(np.array(rows) - expected).max() / expected.std()
                assert difference <= recipe.parity_bound, f"{recipe.name} {form}: {difference:.2g}"
            elif form != "unrolled":  # that one may run, with a copy a layer, or attend wrongly
                assert isinstance(rows, str), f"{recipe.name} {form} runs on {version} after all"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from /proc (Linux)")
@pytest.mark.parametrize(
    ("version", "recipe", "form"),
    [
        ("1.19.2", "fp32", "legacy"),
        ("1.19.2", "dynamic_wi8_afp32", "legacy"),
        ("1.23.2", "dynamic_wi8_afp32", "standard"),
        ("1.23.2", "dynamic_wi8_afp32", "fast"),
        ("1.23.2", "weight_only_wi4_b128_afp32", "fast"),
    ],
)
def test_depth_costs_no_memory_on_an_older_runtime(version: str, recipe: str, form: str, tmp_path: Path) -> None:
    folder, readings = folder_of(version), []
    for depth in (1, 8):
        architecture = Architecture((Block(512, 4, depth), Block(384, 4, depth)), 512, 2048)
        options = ExportOptions(form=form, parity=False)
        export(architecture, random_tensors(architecture, 0), tmp_path / str(depth), recipe, options)
        readings.append(min(child(MEMORY, (folder, str(tmp_path / str(depth) / "model.onnx"))) for _ in range(2)))
    print(
        f"onnxruntime {version}, {recipe} {form}: {readings[0] / 1e6:.1f} MB at depth 1, {readings[1] / 1e6:.1f} at 8"
    )
    assert readings[1] - readings[0] <= 2 * MEGABYTE
