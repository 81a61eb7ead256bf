"""What optimum-onnx exported, through its `ORTModelForCausalLM`. Its graph computes the logits of every position."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForCausalLM


class Engine:
    """See `worker.py`."""

    def __init__(self, path: str, threads: int) -> None:
        torch.set_num_threads(threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._model = ORTModelForCausalLM.from_pretrained(path, session_options=options, use_cache=True)
        self.vocab_size = int(self._model.config.vocab_size)
        self._past: Any = None
        self._kept: Any = None
        self._length = self._kept_length = 0

    def reset(self) -> None:
        """Empty the cache."""
        self._past, self._length = None, 0

    def keep(self) -> None:
        """Remember the cache as it is."""
        self._kept, self._kept_length = self._past, self._length

    def back(self) -> None:
        """Return to what was remembered."""
        self._past, self._length = self._kept, self._kept_length

    @torch.inference_mode()
    def feed(self, ids: list[int], want: list[int]) -> Any:
        """Append tokens, return `(len(want), V)`."""
        total = self._length + len(ids)
        out = self._model(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, total, dtype=torch.int64),
            past_key_values=self._past,
        )
        self._past, self._length = out.past_key_values, total
        return np.asarray(out.logits[0, want])
