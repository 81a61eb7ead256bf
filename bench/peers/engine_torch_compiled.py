"""The same through `torch.compile`, lengths dynamic; compiling is part of loading."""

from __future__ import annotations

from typing import Any

import engine_torch
import torch
from torch import nn


class Engine(engine_torch.Engine):
    """See `worker.py`."""

    def __init__(self, path: str, threads: int) -> None:
        super().__init__(path, threads)
        for length in (1024, 128):  # the second shows whether lengths are dynamic, and compiles again where not
            self.reset()
            self.feed([1] * length, [length - 1])
            for _ in range(3):
                self.feed([1], [0])
        self.reset()

    def prepare(self, model: nn.Module) -> Any:
        """Compile on first use."""
        return torch.compile(model, dynamic=True)
