"""A graph with one cache a layer (`past.{i}.key|value`) in onnxruntime: what comes out goes in again, uncopied."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime


class Engine:
    """See `worker.py`."""

    def __init__(self, path: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._outputs = [value.name for value in self._session.get_outputs()]
        past = [value for value in self._session.get_inputs() if value.name.startswith("past.")]
        self._names = [value.name for value in past]
        assert self._outputs == ["logits", *("present" + name[4:] for name in self._names)]
        self._empty = [self._value(np.zeros((1, v.shape[1], 0, v.shape[3]), np.float32)) for v in past]
        self._past: list[Any] = self._empty
        self._kept: list[Any] = self._empty
        self.vocab_size = int(self._session.get_outputs()[0].shape[-1])

    @staticmethod
    def _value(array: Any) -> Any:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)

    def reset(self) -> None:
        """Empty the cache."""
        self._past = self._empty

    def keep(self) -> None:
        """Remember the cache as it is."""
        self._kept = self._past

    def back(self) -> None:
        """Return to what was remembered."""
        self._past = self._kept

    def feed(self, ids: list[int], want: list[int]) -> Any:
        """Append tokens, return `(len(want), V)`."""
        fed = dict(zip(self._names, self._past, strict=True))
        fed["input_ids"] = self._value(np.array([ids], np.int64))
        fed["logits_index"] = self._value(np.array(want, np.int64))
        logits, *self._past = self._session.run_with_ort_values(self._outputs, fed)
        return logits.numpy()[0]
