"""Do tools that this project does not ship load an unrolled bundle, and generate the same tokens?

onnxruntime-genai, optimum's ORTModelForCausalLM and transformers.js on Node, each in an environment
of its own under `build/other_tools`, made where it is missing (about 1 GB; Node itself must be
there). Two small models with random weights, one of one width and one of two, and a byte-level BPE
tokenizer trained on this project's own pages: the prompt's token ids and the greedy continuation
are held against the agent's session. A tool that cannot take several widths is expected to refuse.

    .venv/bin/python bench/other_tools.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from record import write_result
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from merino_edge.agent.opening import open_session
from merino_edge.architecture import Architecture, Block
from merino_edge.exporting import ExportOptions
from merino_edge.flows.export import Weights, write_bundle
from merino_edge.reference import random_tensors

ROOT = Path(__file__).resolve().parent.parent
CHILDREN = Path(__file__).parent / "tools_of_others"
ENVIRONMENTS = ROOT / "build" / "other_tools"
RECIPES = ("fp32", "dynamic_wi8_afp32", "weight_only_wi4_b32_afp32", "fp16", "weight_only_wi4_b32_afp16")
TEXT, TOKENS, VOCABULARY = "Block sharing is worth nothing", 48, 600
WIDTHS = {"one width": (128, 128), "two widths": (64, 128)}


@dataclass(frozen=True)
class Tool:
    """One tool: what it is installed from, what runs it, and whether it takes layers of several widths."""

    name: str
    packages: tuple[str, ...]  # installed one after the other
    child: str
    several_widths: bool


TOOLS = (
    Tool("onnxruntime-genai", ("onnxruntime-genai onnxruntime",), "onnxruntime_genai_child.py", True),
    Tool("optimum", ("torch==2.13.0", "optimum-onnx[onnxruntime]"), "optimum_child.py", False),
    Tool("transformers.js", ("@huggingface/transformers@4",), "transformers_js_child.mjs", True),
)


def prepare(tool: Tool) -> list[str]:
    """Make a tool's environment where it is missing; return the command that runs its child."""
    folder = ENVIRONMENTS / tool.name
    done = folder / ".done"
    node = tool.child.endswith(".mjs")
    if not done.exists():
        print(f"installing {tool.name} into {folder}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if not node:
            venv.create(folder, with_pip=True)
        for packages in tool.packages:
            command = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", *packages.split()]
            if node:
                command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *packages.split()]
            without_cuda = {**os.environ, "ONNXRUNTIME_NODE_INSTALL": "skip", "ONNXRUNTIME_NODE_INSTALL_CUDA": "skip"}
            subprocess.run(command, check=True, env=without_cuda, stdout=sys.stderr)
        done.touch()
    if node:
        shutil.copyfile(CHILDREN / tool.child, folder / tool.child)
        return ["node", str(folder / tool.child)]
    return [str(folder / "bin/python"), str(CHILDREN / tool.child)]


def train_tokenizer(path: Path) -> None:
    """Train a byte-level BPE on the pages of this project."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    lines = [line for page in sorted(ROOT.glob("*.md")) for line in page.read_text(encoding="utf-8").splitlines()]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.save(str(path))


def write(parent: Path, tokenizer: Path, widths: tuple[int, int], recipe: str) -> Path:
    """Write an unrolled bundle of random weights; the token table is small, so that tokens do not repeat themselves."""
    blocks = (Block(widths[0], 2, 2), Block(widths[1], 1, 3))
    architecture = Architecture(blocks, embedding_width=widths[0], vocab_size=VOCABULARY)
    tensors = random_tensors(architecture, seed=3, scale=0.12)
    tensors["embedding.weight"] *= np.float32(0.2)
    weights = Weights(tensors, context_length=256, tokenizer=tokenizer)
    options = ExportOptions(form="unrolled", context_length=weights.context_length)
    return write_bundle(architecture, weights, parent, "onnx", recipe, options).folder


def generate(folder: Path) -> dict[str, Any]:
    """Return prompt and greedy continuation of the agent's own session."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    session = open_session(folder, manifest, threads=1)
    prompt = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids
    logits, generated = session.prefill(prompt), []
    while len(generated) < TOKENS:
        generated.append(int(np.argmax(logits)))
        logits = session.feed(generated[-1:], [0])[0]
    return {"prompt": prompt, "generated": generated, "provider": session.provider}


def ask(command: list[str], folder: Path) -> dict[str, Any]:
    """Run a tool's child on a bundle; return what it printed, or the last line of its error."""
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    arguments = [*command, str(folder), TEXT, str(TOKENS)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=offline, timeout=600)
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer
    return {"error": (done.stderr.strip().splitlines() or ["no answer"])[-1][:300]}


def judge(answer: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Return `same`, `other tokens`, `other prompt` or `refused`."""
    if "error" in answer:
        return "refused"
    if answer["prompt"] != ours["prompt"]:
        return "other prompt"
    return "same" if answer["generated"] == ours["generated"] else "other tokens"


def main() -> int:
    """Run every tool on every bundle; record what came of it; fail where a tool should agree and does not."""
    commands = {tool.name: prepare(tool) for tool in TOOLS}
    rows, failed = [], False
    with tempfile.TemporaryDirectory(prefix="merino-edge-") as scratch:
        tokenizer = Path(scratch) / "tokenizer.json"
        train_tokenizer(tokenizer)
        for label, widths in WIDTHS.items():
            for recipe in RECIPES:
                folder = write(Path(scratch) / label.replace(" ", "-"), tokenizer, widths, recipe)
                ours = generate(folder)
                for tool in TOOLS:
                    answer = ask(commands[tool.name], folder)
                    verdict = judge(answer, ours)
                    expected = tool.several_widths or widths[0] == widths[1]
                    failed |= expected and verdict != "same"
                    version, error = answer.get("version"), answer.get("error")
                    row = {"tool": tool.name, "version": version, "model": label, "recipe": recipe, "tokens": TOKENS}
                    distinct = len(set(ours["generated"]))
                    rows.append({**row, "distinct_tokens": distinct, "verdict": verdict, "error": error})
                    print(f"{tool.name:20}{label:14}{recipe:28}{verdict}" + (f": {error}" if error else ""), flush=True)
    print(f"recorded in {write_result('other_tools', {'rows': rows})}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
