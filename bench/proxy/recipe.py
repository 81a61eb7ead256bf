"""The recipe of the proxy study, the same for every model, chosen by a sweep before the study.

Learning rates follow width as in maximal-update parametrisation (Yang et al. 2022): matrices at 1 / width,
the token table and the gains at one rate of their own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from merino_edge.architecture import Architecture
from merino_edge.search.cost import count_flops
from merino_edge.training.model import MerinoForCausalLM, ResidualLinear

WARM_UP = 0.08
RECIPE = {"init": "zero", "matrix_lr": 0.8e-3, "table_lr": 6e-3, "width_power": -1, "depth_power": 0}
RECIPE_NOTES = {
    "optimizer": "AdamW, betas 0.9 and 0.95, weight decay 0.1 on matrices and table, gradient norm clipped to 1",
    "schedule": "linear warm-up over 8 % of the steps, then a cosine to zero that ends with the budget",
    "batch": "16 windows of 512 tokens",
    "precision": "bf16 weights and activations, fp32 masters and optimizer",
    "initialisation": "zero: the package's, with every matrix that adds to the residual stream at 0",
    "text": "encyclopedia, news and novels, 54.8 M tokens; byte-level BPE of 4,096",
    "judged_on": "the first 2,048 windows of documents held out",
    "learning_rate": "matrix_lr * (width / 512)^width_power * (depth / 8)^depth_power; table and gains at table_lr",
    "chosen_by": "a sweep at 4 M tokens over initialisations and learning rates on four corners in width and depth",
}


def training_flops(architecture: Architecture, context_length: int) -> float:
    """FLOPs of one trained token: three forward passes, head included, causal attention counted half."""
    full = count_flops(architecture, context_length, head=True) / context_length
    scores = sum(4 * context_length * b.width * b.depth for b in architecture.blocks)
    return 3 * (full - scores / 2)


def peak_rates(architecture: Architecture, recipe: dict[str, Any]) -> tuple[float, float]:
    """Peak learning rates of matrices, by width and depth, and of table and gains."""
    width = sum(b.width * b.depth for b in architecture.blocks) / architecture.depth
    scale = (width / 512) ** recipe["width_power"] * (architecture.depth / 8) ** recipe["depth_power"]
    factor = recipe.get("factor", 1.0)
    return recipe["matrix_lr"] * scale * factor, recipe["table_lr"] * factor


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero; as a share of the peak."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def window_order(windows: int, needed: int, seed: int) -> Tensor:
    """Numbers of the windows to train on: whole epochs, each in its own order."""
    generator = torch.Generator().manual_seed(1_000_003 * (seed + 1))
    epochs = [torch.randperm(windows, generator=generator) for _ in range(-(-needed // windows))]
    return torch.cat(epochs)[:needed]


@torch.no_grad()
def initialise(model: MerinoForCausalLM, how: str) -> None:
    """Change the model's own initialisation.

    Args:
        model: Freshly made.
        how: `model` leaves it; `zero` begins with the identity, all that is added to the residual
            stream being 0; `table` gives the token table N(0, 1 / width); `zero-table` does both;
            `small` is N(0, 0.02^2) for all matrices, divided by sqrt(2 * depth) where added to the stream.
    """
    parts = how.split("-")
    for module in model.modules():
        if isinstance(module, ResidualLinear) and "zero" in parts:
            module.weight.zero_()
        elif isinstance(module, torch.nn.Linear) and "small" in parts:
            module.weight.mul_(0.02 * module.in_features**0.5)
        elif isinstance(module, torch.nn.Embedding) and "table" in parts:
            module.weight.mul_(module.embedding_dim**-0.5 / 0.02)
