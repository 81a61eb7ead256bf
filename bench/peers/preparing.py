"""Everything that must lie there before anything is timed: checkpoints, the peers' files, our own bundles.

The peers' files are made once and kept (delete the folder to make them again). Ours are exported
anew for every run, so that what is measured is this tree. Each failure becomes a reason, kept too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from safetensors.numpy import save_file

from merino_edge.errors import MerinoEdgeError
from merino_edge.exporting import ExportOptions
from merino_edge.files import write_json
from merino_edge.flows.export import random_weights, write_bundle
from merino_edge.reference import random_tensors
from peers import environments
from peers.contenders import Contender, models
from peers.environments import NotMeasured

HERE = Path(__file__).resolve().parent
SEED = 0
CONTEXT = 1280
MAKE_SECONDS = 1800


def prepare_peer(folder: Path, contender: Contender) -> Path:
    """Return the file or folder that the contender's engine opens, made where it is missing.

    Raises:
        NotMeasured: with the reason.
    """
    if contender.engine == "bandwidth":
        return Path(contender.file)
    path = folder / "models" / contender.file
    reason = path.with_name(f"{path.name}.reason")
    if path.exists():
        return path
    if not environments.is_made(folder, contender.environment):
        raise NotMeasured(f"no environment '{contender.environment}': run bench/peers.py --setup")
    if reason.exists():
        raise NotMeasured(reason.read_text(encoding="utf-8"))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _make(folder, contender, path)
    except NotMeasured as error:
        shutil.rmtree(path, ignore_errors=True)
        reason.write_text(str(error), encoding="utf-8")
        raise
    return path


def export_ours(folder: Path, contender: Contender) -> Path:
    """Export one of our bundles with the tree's exporter and return its folder.

    Raises:
        NotMeasured: the exporter refuses, with what it says.
    """
    architecture, wish = models()[contender.model], contender.export
    parent = folder / "models" / contender.model / "ours"
    options = ExportOptions(form=wish["form"], context_length=CONTEXT, parity=False)
    weights = random_weights(architecture, CONTEXT, SEED)
    try:
        return write_bundle(architecture, weights, parent, wish["format"], wish["recipe"], options).folder
    except MerinoEdgeError as error:
        raise NotMeasured(error.message) from error


def _make(folder: Path, contender: Contender, path: Path) -> None:
    makers: dict[str, Callable[[], list[list[str]]]] = {
        "torch": lambda: _torch_commands(folder, contender, path),
        "llama": lambda: [["make_gguf.py", path.stem[-4:].upper(), str(path)]],
        "optimum": lambda: [["make_optimum.py", _optimum_source(folder, contender), str(path)]],
        "litert": lambda: _litert_commands(folder, contender, path),
    }
    for arguments in makers[contender.environment]():
        _run(environments.python_of(folder, contender.environment), arguments, path)
    if not path.exists():
        raise NotMeasured("its exporter wrote nothing and reported no error")


def _torch_commands(folder: Path, contender: Contender, path: Path) -> list[list[str]]:
    checkpoint = write_checkpoint(folder, contender.model)
    if path == checkpoint:
        return []
    names = [path.name] if (path.parent / "dynamo.onnx").exists() else list(dict.fromkeys(("dynamo.onnx", path.name)))
    return [["make_torch.py", str(checkpoint), str(path.parent), name] for name in names]


def _litert_commands(folder: Path, contender: Contender, path: Path) -> list[list[str]]:
    checkpoint, fp32 = write_checkpoint(folder, contender.model), path.with_name("litert-fp32")
    kinds = {fp32: "fp32", path: contender.precision}
    return [["make_litert.py", str(checkpoint), str(p), kind] for p, kind in kinds.items() if not p.exists()]


def _optimum_source(folder: Path, contender: Contender) -> str:
    return "gpt2" if contender.file.startswith("gpt2") else str(write_checkpoint(folder, contender.model))


def write_checkpoint(folder: Path, model: str) -> Path:
    """Write the weights that our bundles of a model have as a checkpoint that torch reads."""
    path = folder / "models" / model / "checkpoint"
    if not (path / "config.json").exists():
        path.mkdir(parents=True, exist_ok=True)
        architecture = models()[model]
        save_file(random_tensors(architecture, SEED), path / "model.safetensors", {"format": "pt"})
        config = {"model_type": "merino", "architectures": ["MerinoForCausalLM"], "tie_word_embeddings": True}
        write_json(path / "config.json", {**config, "architecture": architecture.to_json(), "dtype": "float32"})
    return path


def _run(python: Path, arguments: list[str], path: Path) -> None:
    """Run a `make_*.py` in its environment; its last line of complaint is the reason where it fails."""
    log = path.with_name(f"{path.name}.log")
    command = [str(python), str(HERE / arguments[0]), *arguments[1:]]
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        with log.open("w", encoding="utf-8") as stream:
            child = subprocess.run(command, stdout=stream, stderr=stream, env=variables, timeout=MAKE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise NotMeasured(f"its conversion took more than {MAKE_SECONDS // 60} minutes") from error
    if child.returncode:
        said = log.read_text(encoding="utf-8", errors="replace")
        raise NotMeasured(environments.complaint(said, f"{arguments[0]} ended with {child.returncode}"))


def file_bytes(path: Path, contender: Contender) -> int:
    """Bytes of graph and weights: what is not a manifest, tokenizer or configuration."""
    if contender.engine == "bandwidth":
        return 0
    if path.is_file():
        return path.stat().st_size
    sizes = [p.stat().st_size for p in path.iterdir() if p.is_file() and p.suffix not in {".json", ".txt"}]
    return max(sizes) if contender.engine == "litert" else sum(sizes)  # one file could hold both its signatures
