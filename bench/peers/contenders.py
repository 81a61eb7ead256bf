"""Who is compared with whom, on which model, and what is asked of the result.

Three kinds of contenders: files that this project's exporter writes, the same weights through what a
user would take instead, and models of other shapes (GPT-2-124M, OPT-350M) that a user would
take instead of the preset. Weights are random everywhere: they do not change the time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from merino_edge.architecture import Architecture, Block
from merino_edge.files import read_json
from merino_edge.flows.suite import BASELINES
from merino_edge.search.cost import count_flops

GPT2_VOCABULARY = 50_257
PRESET = Path(__file__).resolve().parents[2] / "merino_edge" / "search" / "presets" / "merino-61m.json"
INT8, INT4 = "dynamic_wi8_afp32", "weight_only_wi4_b128_afp32"
INT8_HEAD, INT8_BLOCKS = "dynamic_wi8_head_b128_afp32", "weight_only_wi8_b128_afp32"
INT4_HEAD8 = "weight_only_wi4_b32_head8_afp32"
INT4_TFLITE = "dynamic_wi4_b32_afp32"
STORED = {
    "fp32": (32, 0, 32, 0, 0),
    INT8: (8, 0, 8, 0, 4),
    INT8_HEAD: (8, 0, 8, 128, 4),
    INT8_BLOCKS: (8, 128, 8, 128, 4),
    INT4: (4, 128, 4, 128, 4),
    INT4_HEAD8: (4, 32, 8, 32, 4),
    INT4_TFLITE: (4, 32, 4, 32, 2),
}
"""By recipe: bits of a weight, weights that share a scale (0: a row), both of the token table's, bytes of a scale."""
DEPTH = 128  # positions before the first timed token
PROMPT = 1024
READ_MB = (64, 512)  # of memory read at once: within a large cache, and beyond any


def decoder(shapes: Sequence[tuple[int, float, int]], embedding: int, vocabulary: int) -> Architecture:
    """Return an architecture from (width, ffn_ratio, depth) of each block."""
    return Architecture(tuple(Block(*shape) for shape in shapes), embedding, vocabulary)


@cache
def models() -> dict[str, Architecture]:
    """The models by the name a reader sees."""
    a60 = [(512, 4, 3), (640, 4, 3), (768, 5, 4), (1024, 5, 4)]
    return {
        "A60": decoder(a60, 512, GPT2_VOCABULARY),
        "merino-61m": Architecture.from_json(read_json(PRESET, "preset")["architecture"], str(PRESET)),
        "GPT-2-124M shape": BASELINES["gpt2-124m"],
        "OPT-350M shape": BASELINES["opt-350m"],
    }


def macs_per_token(architecture: Architecture) -> int:
    """Multiplications of one token by weights, the head among them."""
    return sum(uses * math.prod(shape) for shape, uses in executed(architecture))


def flops_ratio(larger: str, smaller: str) -> float:
    """FLOPs of one pass over the prompt with all logits, one model's over another's."""
    return count_flops(models()[larger], PROMPT, head=True) / count_flops(models()[smaller], PROMPT, head=True)


def executed(architecture: Architecture) -> list[tuple[tuple[int, ...], int]]:
    """Shape of each matrix, and how many times one token is multiplied by it."""
    found: list[tuple[tuple[int, ...], int]] = []
    for name, shape in architecture.tensor_shapes.items():
        parts = name.split(".")
        if len(shape) == 2:
            shared = parts[0] == "blocks" and parts[2] != "projection"
            found.append((shape, architecture.blocks[int(parts[1])].depth if shared else 1))
    return found


def weight_bytes(
    architecture: Architecture, bits: int, block: int, table_bits: int, table_block: int, scale_bytes: int
) -> int:
    """Bytes of matrices that one token reads, scales included; the token table is the head and read once."""
    total = 0
    for (rows, columns), uses in executed(architecture):
        is_table = (rows, columns) == architecture.tensor_shapes["embedding.weight"]
        stored, shared = (table_bits, table_block) if is_table else (bits, block)
        total += uses * (rows * columns * stored // 8 + scale_bytes * rows * (columns // shared if shared else 1))
    return total


@dataclass(frozen=True)
class Contender:
    """One thing that is timed.

    Attributes:
        name: As in the table, unique.
        model: Key of `models`.
        environment: Key of `environments.ENVIRONMENTS`; `project` is the interpreter of this script.
        engine: Module `engine_NAME.py` that runs it.
        file: Folder or file below the folder of models.
        tests: Of `decode`, `prefill`, `full`.
        bytes_per_mac: Weight bytes that one multiplication reads, scales included; None where unknown.
        export: Recipe, format and form for our exporter; empty for peers.
        precision: `fp32`, `int8` or `int4`: like is compared with like.
    """

    name: str
    model: str
    environment: str
    engine: str
    file: str
    tests: tuple[str, ...] = ("decode", "prefill")
    bytes_per_mac: float | None = None
    export: Mapping[str, str] = field(default_factory=dict)
    precision: str = "fp32"

    @property
    def ours(self) -> bool:
        """Whether this project's exporter wrote it."""
        return self.environment == "project" and self.engine == "ours"

    @property
    def weight_bytes_per_token(self) -> int | None:
        """Bytes of weights that one token reads, a shared matrix at every use."""
        if self.export:
            return weight_bytes(models()[self.model], *STORED[self.export["recipe"]])
        if self.bytes_per_mac is None:
            return None
        return round(self.bytes_per_mac * macs_per_token(models()[self.model]))

    def to_json(self) -> dict[str, Any]:
        """What the record keeps of it."""
        return {
            "model": self.model,
            "engine": self.engine,
            "environment": self.environment,
            "export": dict(self.export),
            "ours": self.ours,
            "precision": self.precision,
            "weight_bytes_per_token": self.weight_bytes_per_token,
        }


def ours(model: str, recipe: str, form: str = "standard", format_name: str = "onnx", full: bool = False) -> Contender:
    """Return the contender of one of our files."""
    labels = {
        INT8: "int8", INT8_HEAD: "int8 fast, head b128", INT8_BLOCKS: "int8 b128",
        INT4: "int4 b128", INT4_HEAD8: "int4 b32, head int8", INT4_TFLITE: "int4 b32",
    }  # fmt: skip
    label = labels.get(recipe, recipe)
    shown = f"{label} {form}" if recipe == INT8 and format_name == "onnx" else label
    name = f"{model}: ours, {'TFLite' if format_name == 'tflite' else 'ONNX'} {shown}"
    tests = ("decode", "prefill", "full") if full else ("decode", "prefill")
    form = "fast" if recipe.startswith("weight_only") or recipe == INT8_HEAD else form
    export = {"recipe": recipe, "form": form, "format": format_name}
    return Contender(name, model, "project", "ours", "", tests, export=export, precision=label.split()[0])


def of_torch(model: str) -> list[Contender]:
    """Return the peers that start from the same model in torch."""

    def peer(what: str, engine: str, file: str, bytes_per_mac: float | None, precision: str = "fp32") -> Contender:
        path = f"{model}/{file}"
        return Contender(
            f"{model}: {what}", model, "torch", engine, path, bytes_per_mac=bytes_per_mac, precision=precision
        )

    found = [
        peer("torch.onnx fp32", "graph", "dynamo.onnx", 4.0),
        peer("torch.onnx fp32, prompt by 256", "graph_chunked", "dynamo.onnx", 4.0),
        peer("torch.onnx + quantize_dynamic", "graph", "quantized.onnx", None, "int8"),
        peer("torch.onnx + quant_pre_process + quantize_dynamic", "graph", "preprocessed-quantized.onnx", 1.0, "int8"),
        peer("torch eager", "torch", "checkpoint", 4.0),
    ]
    if model == "A60":  # once is enough: it compiles for minutes
        found.append(peer("torch.compile", "torch_compiled", "checkpoint", 4.0))
    return found


def llama(kind: str, tests: tuple[str, ...], bytes_per_mac: float, precision: str) -> Contender:
    """Return llama.cpp with GPT-2-124M's shape."""
    name, file = f"llama.cpp GPT-2-124M {kind}", f"gpt2-{kind.lower()}.gguf"
    return Contender(
        name, "GPT-2-124M shape", "llama", "llama", file, tests, bytes_per_mac=bytes_per_mac, precision=precision
    )


def litert(precision: str, bytes_per_mac: float) -> Contender:
    """Return A60 through litert-torch."""
    name, file = f"A60: litert-torch {precision}", f"A60/litert-{precision}"
    return Contender(name, "A60", "litert", "litert", file, bytes_per_mac=bytes_per_mac, precision=precision)


def contenders() -> list[Contender]:
    """Everybody, in the order of the table."""
    full = ("decode", "prefill", "full")
    gpt2, opt = "GPT-2-124M shape", "OPT-350M shape"
    return [
        *(ours("A60", INT8, form) for form in ("standard", "fast")),
        ours("A60", INT8_HEAD, full=True),
        *(ours("A60", recipe) for recipe in (INT8_BLOCKS, INT4, INT4_HEAD8, "fp32")),
        *(ours("A60", recipe, format_name="tflite") for recipe in (INT8, INT4_TFLITE)),
        *of_torch("A60"),
        Contender("A60: optimum-onnx fp32", "A60", "optimum", "optimum", "A60/optimum"),
        litert("fp32", 4.0),
        litert("int8", 1.0),
        ours("merino-61m", INT8),
        ours("merino-61m", INT8, "fast", full=True),
        ours("merino-61m", INT8_HEAD, full=True),
        *(ours("merino-61m", recipe) for recipe in (INT8_BLOCKS, INT4, "fp32")),
        ours("merino-61m", INT8, format_name="tflite"),
        *of_torch("merino-61m"),
        llama("Q8_0", full, 34 / 32, "int8"),
        llama("Q4_0", ("decode", "prefill"), 18 / 32, "int4"),
        Contender("optimum-onnx GPT-2-124M fp32", gpt2, "optimum", "optimum", "gpt2/optimum", ("decode", "full"), 4.0),
        ours(gpt2, INT8_HEAD),
        *(ours(opt, recipe, "fast", full=True) for recipe in (INT8_HEAD, INT8)),
        *(Contender(f"memory read, {mb} MB", "", "project", "bandwidth", str(mb), ("decode",)) for mb in READ_MB),
    ]


@dataclass(frozen=True)
class Goal:
    """A ratio that is asked for: time of the peer over time of ours, on one test and thread count.

    Attributes:
        ours: Name of our contender.
        peer: Name of the other.
        test: `decode`, `prefill` or `full`.
        at_least: By number of threads.
        why: What keeps it from there, for the page to say where it is not reached.
    """

    ours: str
    peer: str
    test: str
    at_least: Mapping[int, float]
    why: str = ""


def goals() -> list[Goal]:
    """What is asked for."""
    dynamo, q8 = "A60: torch.onnx fp32", "llama.cpp GPT-2-124M Q8_0"
    opt = "OPT-350M shape: ours, ONNX int8 fast, head b128"
    best = "merino-61m: ours, ONNX int8 fast, head b128"
    a60 = "A60: ours, ONNX "
    one_row = (
        "nearly all of a token's time is DynamicQuantizeMatMul with one row: the runtime's kernel, "
        "which on one thread reads weights at half of what that thread can"
    )
    promised = f"FLOPs with the head at every position promise {flops_ratio('OPT-350M shape', 'merino-61m'):.1f}"
    every_row = (
        f"{promised}, and MatMulNBits, which is the faster head for one row, takes twice as long as "
        "DynamicQuantizeMatMul for many"
    )

    def of_rows(name: str) -> str:
        return name.removesuffix(", head b128")

    return [
        Goal(f"{a60}int8 standard", dynamo, "decode", {1: 3.4, 2: 3.4}, one_row),
        Goal(f"{a60}int8 fast, head b128", dynamo, "decode", {1: 3.7, 2: 4.0}, one_row),
        Goal(f"{a60}int4 b128", dynamo, "decode", {1: 5.5, 2: 5.5}),
        Goal(f"{a60}int4 b32, head int8", dynamo, "decode", {1: 3.8, 2: 3.8}),
        Goal(f"{a60}int8 standard", dynamo, "prefill", {1: 2.3, 2: 2.3}),
        Goal(f"{a60}int8 fast, head b128", dynamo, "prefill", {1: 2.6, 2: 2.6}),
        Goal(best, q8, "decode", {1: 1.7, 2: 2.0}, one_row),
        Goal(best, q8, "prefill", {1: 4.0, 2: 4.0}),
        Goal(best, opt, "decode", {1: 4.0, 2: 4.0}),
        Goal(best, opt, "prefill", {1: 5.0, 2: 5.0}),
        Goal(best, opt, "full", {1: 4.7, 2: 4.7}, every_row),
        Goal(of_rows(best), of_rows(opt), "full", {1: 4.7, 2: 4.7}, promised),
    ]


LIMIT_GOAL = ("A60: ours, ONNX int8 b128", 2, 0.70)
"""Contender, threads, and the share of the measured bandwidth that its weights should be read at."""
