"""A GGUF file in llama.cpp, through the C functions that llama-cpp-python hands on, with llama.cpp's own defaults."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp
import numpy as np

CONTEXT = 1280


class Engine:
    """See `worker.py`."""

    def __init__(self, path: str, threads: int) -> None:
        llama_cpp.llama_backend_init()
        self._silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch = CONTEXT, 1024
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(1024, 0, 1)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._length = self._kept = 0

    def reset(self) -> None:
        """Empty the cache."""
        llama_cpp.llama_memory_clear(self._memory, False)
        self._length = 0

    def keep(self) -> None:
        """Remember the cache as it is."""
        self._kept = self._length

    def back(self) -> None:
        """Return to what was remembered."""
        llama_cpp.llama_memory_seq_rm(self._memory, 0, self._kept, -1)
        self._length = self._kept

    def feed(self, ids: list[int], want: list[int]) -> Any:
        """Append tokens, return `(len(want), V)`."""
        batch, wanted = self._batch, set(want)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, self._length + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i in wanted
        if llama_cpp.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        self._length += len(ids)
        size = len(want) * self.vocab_size
        logits = ctypes.cast(llama_cpp.llama_get_logits(self._context), ctypes.POINTER(ctypes.c_float * size))
        return np.frombuffer(logits.contents, np.float32).reshape(len(want), -1)
