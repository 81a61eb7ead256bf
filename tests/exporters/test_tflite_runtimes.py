"""TFLite files run in older releases of the runtime, driven by the agent's own session.

`make old-runtimes` fetches them, each into a folder of its own, because tflite-runtime 2.14 wants a
numpy before 2. A child without site-packages imports the agent's program and that folder alone.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from merino_edge.architecture import Architecture, Block
from merino_edge.device.provision import agent_program
from merino_edge.exporters.tflite_recipes import RECIPES
from merino_edge.exporters.to_tflite import export
from merino_edge.exporting import ExportOptions
from merino_edge.reference import forward, random_tensors

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")

FOLDER = Path(__file__).resolve().parent.parent.parent / "build" / "runtimes"
MODELS = {
    "unequal": Architecture((Block(64, 2, 2), Block(160, 1.5, 3), Block(96, 4, 1)), 48, 101, head_dim=32),
    "per-layer norms": Architecture((Block(64, 2, 3), Block(128, 1, 1)), 64, 97, head_dim=32, per_layer_norms=True),
    "embedding skip": Architecture((Block(128, 2, 3), Block(128, 1, 1)), 64, 97, head_dim=32, embedding_skip=True),
}
CASES = [
    ("ai-edge-litert-1.4.0", "standard"),
    ("ai-edge-litert-1.4.0", "legacy"),
    ("ai-edge-litert-2.1.6", "standard"),
    ("tflite-runtime-2.14.0", "legacy"),
]
INT4 = "dynamic_wi4_b32_afp32"
BOUNDS = {"fp32": 1e-4, "dynamic_wi8_afp32": 0.2}
CHILD = """
import sys
import numpy as np
from pathlib import Path
from merino_edge.agent.runtime_check import check_runtime
from merino_edge.agent.session_tflite import TfliteSession
model, package, ids, out = sys.argv[1:]
print(check_runtime(package))
session = TfliteSession(Path(model), 1, package)
ids = np.load(ids)
rows = [session.feed(ids[:70], range(70)).copy()]
rows += [session.feed(ids[n : n + 1], [0]).copy() for n in range(70, len(ids))]
session.truncate(5)
again = session.feed(ids[5:], [len(ids) - 6]).copy()
np.save(out, np.concatenate([*rows, again]))
"""


def run_in(runtime: str, arguments: list[str], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    folder = FOLDER / runtime
    if not folder.is_dir():
        pytest.skip(f"{runtime} is not in build/runtimes: make old-runtimes")
    program = tmp_path / "agent.pyz"
    program.write_bytes(agent_program()[0])
    paths = f"import sys; sys.path[:0] = [{str(program)!r}, {str(folder)!r}]\n"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", paths + CHILD, *arguments], capture_output=True, text=True, timeout=100
    )


@pytest.mark.parametrize("recipe", BOUNDS)
@pytest.mark.parametrize(("runtime", "form"), CASES)
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_the_references(name: str, runtime: str, form: str, recipe: str, tmp_path: Path) -> None:
    architecture, tensors = MODELS[name], random_tensors(MODELS[name], 0, 0.05)
    tensors = {n: 20 * t if n.endswith("skip_gains") else t for n, t in tensors.items()}  # a skip that does much
    package = runtime.rpartition("-")[0]
    export(architecture, tensors, tmp_path, recipe, ExportOptions(form=form, parity=False))
    ids = np.random.default_rng(1).integers(0, architecture.vocab_size, 90)
    np.save(tmp_path / "ids.npy", ids)
    arguments = [str(tmp_path / "model.tflite"), package, str(tmp_path / "ids.npy"), str(tmp_path / "out.npy")]
    done = run_in(runtime, arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"'runtime_version': '{runtime.rpartition('-')[2]}'" in done.stdout
    logits = np.load(tmp_path / "out.npy")
    rounded = {n: RECIPES[recipe].rounded(tensor) for n, tensor in tensors.items()}
    expected = forward(architecture, rounded, ids)
    expected = np.concatenate([expected, expected[-1:]])
    assert np.abs(logits - expected).max() <= BOUNDS[recipe] * expected.std()


@pytest.mark.parametrize("runtime", ["ai-edge-litert-2.1.6", "ai-edge-litert-1.4.0"])
def test_four_bits_are_right_where_they_are_known_and_refused_where_not(runtime: str, tmp_path: Path) -> None:
    architecture, recipe = Architecture((Block(64, 2, 2), Block(128, 1, 2)), 96, 101, head_dim=32), INT4
    tensors = random_tensors(architecture, 0, 0.05)
    export(architecture, tensors, tmp_path, recipe, ExportOptions(parity=False))
    ids = np.random.default_rng(1).integers(0, architecture.vocab_size, 80)
    np.save(tmp_path / "ids.npy", ids)
    names = [str(tmp_path / name) for name in ("model.tflite", "ids.npy", "out.npy")]
    done = run_in(runtime, [names[0], "ai-edge-litert", *names[1:]], tmp_path)
    if runtime.endswith("1.4.0"):
        assert done.returncode == 1
        assert "cannot open model.tflite" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    rounded = {n: RECIPES[recipe].rounded(tensor) for n, tensor in tensors.items()}
    expected = forward(architecture, rounded, ids)
    assert np.abs(np.load(tmp_path / "out.npy")[:80] - expected).max() <= 0.2 * expected.std()


def test_tflite_runtime_refuses_a_file_that_it_would_crash_on(tmp_path: Path) -> None:
    architecture = MODELS["unequal"]
    export(architecture, random_tensors(architecture, 0), tmp_path, "fp32", ExportOptions(parity=False))
    np.save(tmp_path / "ids.npy", np.arange(80))
    arguments = [str(tmp_path / "model.tflite"), "ai-edge-litert", str(tmp_path / "ids.npy"), str(tmp_path / "out")]
    done = run_in("tflite-runtime-2.14.0", arguments, tmp_path)
    assert done.returncode == 1
    assert "cannot import ai-edge-litert" in done.stderr
