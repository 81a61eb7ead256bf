"""Does our TFLite file compute what litert-torch, Google's converter, makes of the same model in torch?

The same random weights go two ways: written by our exporter, and as a plain torch module through
litert-torch. Both files run in ai-edge-litert on the same tokens; compared are the logits of every
position, the size of the files, and seconds and peak memory of making them. The converter and its
dependencies take 2 GB, so that they live in an environment of their own, made where it is missing:

    .venv/bin/python bench/tflite_conformance.py build/litert-torch
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = 48
CONVERT = """
import json, resource, sys, time
import numpy as np
import torch
import torch.nn.functional as F
import litert_torch

folder = sys.argv[1]
a = json.load(open(f"{folder}/architecture.json"))
weights = {name: torch.from_numpy(value) for name, value in np.load(f"{folder}/weights.npz").items()}

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.names = list(weights)
        for number, value in enumerate(weights.values()):
            self.register_buffer(f"w{number}", value)

    def w(self, name):
        return getattr(self, f"w{self.names.index(name)}")

    def norm(self, x, gain):
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * gain

    def forward(self, ids):
        count, dim = ids.shape[1], a["head_dim"]
        half = dim // 2
        angle = torch.arange(count)[:, None] * 10000.0 ** (-torch.arange(half) / half)
        cos, sin = torch.cos(angle), torch.sin(angle)
        swap = lambda t: torch.cat([-t[..., half:], t[..., :half]], -1)
        turn = lambda t: t * torch.cat([cos, cos], -1) + swap(t) * torch.cat([sin, sin], -1)
        hidden = torch.full((count, count), -1e9).triu(1)
        x = self.w("embedding.weight")[ids[0]]
        for i, block in enumerate(a["blocks"]):
            if f"blocks.{i}.projection.weight" in self.names:
                x = F.linear(x, self.w(f"blocks.{i}.projection.weight"))
            for _ in range(block["depth"]):
                gains = self.w(f"blocks.{i}.norms")[0]
                h = self.norm(x, gains[0])
                q, k, v = (F.linear(h, self.w(f"blocks.{i}.{n}.weight")).view(count, -1, dim).transpose(0, 1)
                           for n in ("query", "key", "value"))
                share = torch.softmax(turn(q) @ turn(k).transpose(1, 2) / dim ** 0.5 + hidden, -1)
                mixed = (share @ v).transpose(0, 1).reshape(count, -1)
                x = x + F.linear(mixed, self.w(f"blocks.{i}.output.weight"))
                h = F.gelu(F.linear(self.norm(x, gains[1]), self.w(f"blocks.{i}.ffn_in.weight")))
                x = x + F.linear(h, self.w(f"blocks.{i}.ffn_out.weight"))
        x = self.norm(x, self.w("final_norm.weight"))
        if "output_projection.weight" in self.names:
            x = F.linear(x, self.w("output_projection.weight"))
        return F.linear(x, self.w("embedding.weight"))

ids = torch.from_numpy(np.load(f"{folder}/ids.npy"))[None]
model = Model().eval()
with torch.no_grad():
    np.save(f"{folder}/torch.npy", model(ids).numpy())
start = time.perf_counter()
litert_torch.convert(model, (ids,)).export(f"{folder}/converted.tflite")
seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": round(seconds, 2), "peak_memory_bytes": peak, "version": litert_torch.__version__}))
"""


def environment(folder: Path) -> Path:
    """Return the Python of the converter's environment, made where it is missing; torch first, without CUDA."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if subprocess.run([python, "-c", "import litert_torch"], capture_output=True).returncode:
        for wanted in (["torch==2.13.0", "numpy"], ["litert-torch==0.10.0"]):
            subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
    return python


def run_converted(path: Path, token_ids: np.ndarray) -> np.ndarray:
    """Run the converter's file on all tokens at once."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (wanted,) = interpreter.get_input_details()
    interpreter.set_tensor(wanted["index"], token_ids[None].astype(wanted["dtype"]))
    interpreter.invoke()
    return np.asarray(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))


def compare(python: Path, folder: Path) -> dict[str, Any]:
    """Make both files and return how they differ."""
    from merino_edge.architecture import Architecture, Block
    from merino_edge.exporters.tflite_runner import TfliteRunner
    from merino_edge.exporters.to_tflite import MODEL, export
    from merino_edge.exporting import ExportOptions
    from merino_edge.reference import random_tensors

    blocks = (Block(192, 3, 3), Block(256, 2, 2), Block(384, 2.5, 3), Block(320, 1, 1))
    architecture = Architecture(blocks, embedding_width=256, vocab_size=5003)
    tensors = random_tensors(architecture, seed=0, scale=0.04)
    token_ids = np.random.default_rng(0).integers(0, architecture.vocab_size, TOKENS)
    np.savez(folder / "weights.npz", **tensors)
    np.save(folder / "ids.npy", token_ids)
    (folder / "architecture.json").write_text(json.dumps(architecture.to_json()), encoding="utf-8")
    done = subprocess.run([python, "-c", CONVERT, str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"litert-torch failed:\n{done.stderr[-3000:]}")
    theirs = json.loads(done.stdout.splitlines()[-1])
    converted = run_converted(folder / "converted.tflite", token_ids)
    rows = []
    for recipe in ("fp32", "dynamic_wi8_afp32"):
        start = time.perf_counter()
        result = export(architecture, tensors, folder, recipe, ExportOptions(parity=False))
        seconds = time.perf_counter() - start
        logits = TfliteRunner(folder / MODEL).feed(token_ids)
        difference = float(np.abs(logits - converted).max() / converted.std())
        same = float((logits.argmax(-1) == converted.argmax(-1)).mean())
        rows.append(
            {
                "recipe": recipe,
                "difference_in_deviations": difference,
                "same_top_token": same,
                "file_bytes": (folder / MODEL).stat().st_size,
                "unique_bytes": result.unique_bytes,
                "seconds": round(seconds, 2),
            }
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    own = float(np.abs(np.load(folder / "torch.npy") - converted).max() / converted.std())
    theirs |= {"file_bytes": (folder / "converted.tflite").stat().st_size, "difference_to_torch_in_deviations": own}
    return {"model": architecture.to_json(), "tokens": TOKENS, "litert_torch": theirs, "peak_here": peak, "rows": rows}


def main() -> None:
    """Compare, print and record."""
    from record import write_result

    if len(sys.argv) != 2:
        raise SystemExit(f"{__doc__}")
    python = environment(Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        result = compare(python, Path(scratch))
    print(f"litert-torch: {result['litert_torch']}")
    for row in result["rows"]:
        print(f"ours: {row}")
    print(f"recorded in {write_result('tflite_conformance', result)}")


if __name__ == "__main__":
    main()
