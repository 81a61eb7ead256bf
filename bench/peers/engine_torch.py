"""The project's own model in torch, eager, with a cache that grows by concatenation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the package's source; not installed in a peer's environment

from merino_edge.training.model import MerinoForCausalLM

Pairs = list[tuple[Tensor, Tensor]]


class GrowingCache:
    """Keys and values of each executed layer, as the model asks for them."""

    def __init__(self, past: Pairs) -> None:
        self.past, self.present = past, list[tuple[Tensor, Tensor]]()

    def get_seq_length(self) -> int:
        """Positions before this call."""
        return self.past[0][0].shape[2]

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append; layers come in order."""
        old_key, old_value = self.past[layer]
        self.present.append((torch.cat([old_key, key], 2), torch.cat([old_value, value], 2)))
        return self.present[-1]


class Incremental(nn.Module):
    """The model as a function of ids, wanted positions and cache."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, logits_index: Tensor, past: Pairs) -> tuple[Tensor, Pairs]:
        """Return logits `(1, N, V)` and the cache after the new tokens."""
        cache = GrowingCache(past)
        logits = self.model(input_ids, past_key_values=cache, logits_to_keep=logits_index).logits
        return logits, cache.present


def load_model(checkpoint: Path) -> Any:
    """Read a checkpoint for inference."""
    return MerinoForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


class Engine:
    """See `worker.py`."""

    def __init__(self, path: str, threads: int) -> None:
        torch.set_num_threads(threads)
        model = load_model(Path(path))
        config = model.config.merino
        self.vocab_size = int(config.vocab_size)
        self._empty = [(torch.zeros(1, config.heads(b), 0, config.head_dim),) * 2 for b, _ in config.layers()]
        self._run = self.prepare(Incremental(model))
        self._past: Any = self._empty
        self._kept: Any = self._empty

    def prepare(self, model: nn.Module) -> Any:
        """Return what is called; eager: the module itself."""
        return model

    def reset(self) -> None:
        """Empty the cache."""
        self._past = self._empty

    def keep(self) -> None:
        """Remember the cache as it is."""
        self._kept = self._past

    def back(self) -> None:
        """Return to what was remembered."""
        self._past = self._kept

    @torch.inference_mode()
    def feed(self, ids: list[int], want: list[int]) -> Any:
        """Append tokens, return `(len(want), V)`."""
        logits, self._past = self._run(torch.tensor([ids]), torch.tensor(want), self._past)
        return np.asarray(logits[0])
