"""Runs a written TFLite file, keeping its cache: what parity and the tests feed tokens to.

ai-edge-litert where it is installed, else tflite-runtime, under which name it was published before.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from merino_edge.errors import ExportError
from merino_edge.exporters.tflite_decoder import HIDDEN

Float32 = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]
RUNTIMES = ("ai-edge-litert", "tflite-runtime")
INSTALL = "pip install 'merino-edge[tflite]'"
CACHE_STEP = 32  # places by which the cache grows


def load_interpreter() -> Any:
    """Return the runtime's `Interpreter` class.

    Raises:
        ExportError: none is installed.
    """
    for name in RUNTIMES:
        try:
            return _import_interpreter(name)
        except ImportError:
            continue
    raise ExportError("a TFLite file is run before it is handed out, and ai-edge-litert is not installed", hint=INSTALL)


def _import_interpreter(package: str) -> Any:
    if package == "ai-edge-litert":
        from ai_edge_litert.interpreter import Interpreter
    else:
        from tflite_runtime.interpreter import Interpreter
    return Interpreter


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the runtime announces while it starts off the terminal; what fails is raised."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class TfliteRunner:
    """A loaded file and its cache."""

    def __init__(self, path: Path) -> None:
        """Load the file."""
        self.path = path
        interpreter = load_interpreter()
        try:
            with _quiet():
                self._runtime = interpreter(model_path=str(path), num_threads=min(4, os.cpu_count() or 1))
        except (ValueError, RuntimeError) as error:
            raise ExportError(f"the runtime does not load {path.name}: {error}") from error
        signature = next(iter(self._runtime.get_signature_list()))
        runner = self._runtime.get_signature_runner(signature)
        self._inputs = {name: detail["index"] for name, detail in runner.get_input_details().items()}
        self._outputs = {name: detail["index"] for name, detail in runner.get_output_details().items()}
        self._shapes = {
            name: tuple(detail["shape_signature"])
            for name, detail in runner.get_input_details().items()
            if re.fullmatch(r"past\.\d+\.(key|value)", name)
        }
        self.reset()

    def reset(self) -> None:
        """Empty the cache."""
        self._length = 0
        self._caches = {name: np.zeros((1, s[1], CACHE_STEP, s[3]), np.float32) for name, s in self._shapes.items()}

    def feed(self, token_ids: Tokens, logits_index: Tokens | None = None) -> Float32:
        """Run the next tokens and return logits `(N, V)`; all positions if no index is given."""
        count, places = len(token_ids), next(iter(self._caches.values())).shape[2]
        index = np.arange(count) if logits_index is None else logits_index
        values = {
            "input_ids": np.asarray(token_ids, np.int32)[None],
            "positions": np.arange(self._length, self._length + count, dtype=np.int32)[None],
            "logits_index": np.asarray(index, np.int32),
            "cache_mask": np.where(np.arange(places) < self._length, 0, HIDDEN).astype(np.float32)[None, None, None],
            **self._caches,
        }
        try:
            for name, value in values.items():
                self._runtime.resize_tensor_input(self._inputs[name], value.shape)
            with _quiet():
                self._runtime.allocate_tensors()
            for name, value in values.items():
                self._runtime.set_tensor(self._inputs[name], value)
            self._runtime.invoke()
        except (ValueError, RuntimeError) as error:
            raise ExportError(f"the runtime does not run the exported graph: {error}") from error
        self._keep(count)
        logits: Float32 = self._runtime.get_tensor(self._outputs["logits"])
        return logits

    def _keep(self, count: int) -> None:
        """Put the new keys and values behind those before, in a larger cache where it is full."""
        for name, cache in self._caches.items():
            new = self._runtime.get_tensor(self._outputs["new" + name[4:]])  # (1, H, T, D)
            if self._length + count > cache.shape[2]:
                places = -(-(self._length + count) // CACHE_STEP) * CACHE_STEP
                cache = np.pad(cache, [(0, 0), (0, 0), (0, places - cache.shape[2]), (0, 0)])
                self._caches[name] = cache
            cache[:, :, self._length : self._length + count] = new
        self._length += count
