"""The model in torch through litert-torch, and from there to int8 by ai-edge-quantizer.

    python make_litert.py CHECKPOINT FOLDER fp32|int8

Shapes are fixed there, so two files are written: `prefill.tflite` reads 1,024 tokens at once into an empty
cache, `decode.tflite` one token after up to 256. Both return keys and values of the new tokens alone, which whoever
runs them copies into the cache: updating a cache inside the graph becomes a scatter that the fast
kernels do not take. `int8` starts from the folder of `fp32` beside. Runs in the environment `litert`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from engine_torch import GrowingCache, load_model
from torch import Tensor, nn

import merino_edge.training.model as model_module

PROMPT, CACHE = 1024, 256
FILES = ("prefill.tflite", "decode.tflite")


class Fixed(nn.Module):
    """The model as a function of tensors of fixed shape; a cache of length 0 is left out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        config = model.config.merino
        self.empty = [(torch.zeros(1, config.heads(b), 0, config.head_dim),) * 2 for b, _ in config.layers()]

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor, index: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Return logits `(1, 1, V)` at `index`, then keys and values `(1, H, T, D)` of the new tokens by layer."""
        pairs = list(zip(past[0::2], past[1::2], strict=True)) or self.empty
        cache = GrowingCache(pairs)
        out = self.model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=index)
        new = ids.shape[1]
        return (out.logits, *(part[:, :, -new:] for pair in cache.present for part in pair))


def rotation_float32(positions: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the model's rotary angles in float32: the runtime has no float64 kernels."""
    half = head_dim // 2
    frequency = model_module.ROPE_THETA ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = positions[:, None, :, None].to(torch.float32) * frequency
    return angle.cos(), angle.sin()


def convert(checkpoint: Path, folder: Path) -> None:
    """Write both files in float32."""
    import litert_torch

    model_module.rotation = rotation_float32
    fixed = Fixed(load_model(checkpoint)).eval()
    config = fixed.model.config.merino
    past = [torch.zeros(1, config.heads(b), CACHE, config.head_dim) for b, _ in config.layers() for _ in range(2)]

    def arguments(tokens: int, positions: int) -> tuple[Tensor, ...]:
        ids = torch.zeros(1, tokens, dtype=torch.int64)
        return ids, torch.arange(tokens)[None], torch.ones(1, positions, dtype=torch.int64), torch.tensor([tokens - 1])

    for name, sample in zip(FILES, (arguments(PROMPT, PROMPT), (*arguments(1, CACHE + 1), *past)), strict=True):
        litert_torch.convert(fixed, sample).export(str(folder / name))
    shapes = {"cache": CACHE, "prompt": PROMPT, "vocab_size": config.vocab_size}
    (folder / "shapes.json").write_text(json.dumps(shapes), encoding="utf-8")


def quantize(source: Path, folder: Path) -> None:
    """Write both files with int8 weights, activations quantized inside each product."""
    from ai_edge_quantizer import quantizer, recipe

    for name in FILES:
        work = quantizer.Quantizer(str(source / name))
        work.load_quantization_recipe(recipe.dynamic_wi8_afp32())
        work.quantize().export_model(str(folder / name))
    (folder / "shapes.json").write_bytes((source / "shapes.json").read_bytes())


def main() -> None:
    """Write one folder, which appears when it is whole."""
    checkpoint, folder, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    temporary = folder.with_name(f"{folder.name}.tmp")
    temporary.mkdir(exist_ok=True)
    if kind == "fp32":
        convert(checkpoint, temporary)
    else:
        quantize(folder.with_name("litert-fp32"), temporary)
    temporary.rename(folder)


if __name__ == "__main__":
    with torch.no_grad():
        main()
