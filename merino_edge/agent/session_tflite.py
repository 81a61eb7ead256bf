"""Sessions on ai-edge-litert, or on tflite-runtime, under which name it was published before.

The cache lies in the runtime's own input tensors: each call returns keys and values of the new
tokens alone, which are copied behind those before. The tensors have room for little more than the
positions held, because attention reads every place, filled or not; they grow in steps.

The runtime's CompiledModel could keep packed weights in a file, XNNPACK's weight cache, and is not
used for two reasons. The cache is found by position in a model, not by content: with the cache of one
export the next one computes wrong logits and says nothing. And buffers are only written whole there,
so that keys and values would be held twice and copied for every token.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

import numpy as np

from merino_edge.agent.errors import AgentError
from merino_edge.agent.session import Session

if TYPE_CHECKING:
    import numpy.typing as npt

    from merino_edge.agent.session import Tokens

PACKAGES = ("ai-edge-litert", "tflite-runtime")
_CACHE_STEP = 64  # places by which the cache grows
_CACHE_NAME = re.compile(r"past\.(\d+)\.(key|value)")
_HIDDEN = -1e9  # added to the scores of places that are not filled


def find_interpreter(wanted: str) -> tuple[Any, str, str]:
    """Return the `Interpreter` class, the package it comes from and its version.

    Args:
        wanted: `ai-edge-litert`, or `tflite-runtime`, for which ai-edge-litert will do as well.

    Raises:
        AgentError: no such package can be imported.
    """
    from importlib.metadata import PackageNotFoundError, version

    packages = PACKAGES if wanted == PACKAGES[1] else PACKAGES[:1]
    reasons = []
    for package in packages:
        try:
            interpreter = _import_interpreter(package)
        except ImportError as error:
            reasons.append(str(error))
            continue
        try:
            return interpreter, package, version(package)
        except PackageNotFoundError:
            return interpreter, package, "unknown"
    raise AgentError("runtime", f"cannot import {' or '.join(packages)}: {reasons[-1]}", f"pip install {wanted}")


def _import_interpreter(package: str) -> Any:
    if package == "ai-edge-litert":
        from ai_edge_litert.interpreter import Interpreter
    else:
        from tflite_runtime.interpreter import Interpreter
    return Interpreter


class TfliteSession(Session):
    """TFLite files whose caller holds the cache.

    Inputs input_ids and positions (1,T), logits_index (N), cache_mask (1,1,1,S), past.{n}.key|value
    (1,H,S,D) for each executed layer; outputs logits (N,V), new.{n}.key|value (1,H,T,D).

    Args:
        model: The file.
        threads: For the runtime's operators.
        package: The runtime that the manifest names: tflite-runtime crashes on called subgraphs of
            dynamic size, so that only files made for it may be run with it.
    """

    def __init__(self, model: Path, threads: int, package: str) -> None:
        interpreter, package, version = find_interpreter(package)
        try:
            self._runtime: Any = interpreter(model_path=str(model), num_threads=threads)
            inputs, outputs = self._signature()
        except Exception as error:
            raise AgentError("runtime", f"{package} {version} cannot open {model.name}: {error}") from error
        caches = {name: detail for name, detail in inputs.items() if _CACHE_NAME.fullmatch(name)}
        if not caches or "cache_mask" not in inputs or "logits" not in outputs:
            raise AgentError("request", f"{model.name} has no inputs past.N.key and no output logits: another form")
        self._in: dict[str, int] = {name: int(detail["index"]) for name, detail in inputs.items()}
        self._out: dict[str, int] = {name: int(detail["index"]) for name, detail in outputs.items()}
        self._caches: dict[str, tuple[int, int]] = {  # past name -> (H, D)
            name: (int(detail["shape_signature"][1]), int(detail["shape_signature"][3]))
            for name, detail in caches.items()
        }
        self.vocab_size = int(outputs["logits"]["shape_signature"][-1])
        self._shape = (0, 0, 0)  # T, N, S that the runtime is laid out for
        try:
            self._lay_out(1, 1, 1)
        except (ValueError, RuntimeError) as error:
            raise AgentError("runtime", f"{package} {version} cannot prepare {model.name}: {error}") from error
        delegated = any(op["op_name"] == "DELEGATE" for op in self._runtime._get_ops_details())
        self.provider = "XNNPACK" if delegated else "CPU"

    def _signature(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the details of inputs and outputs by name; the runner itself may not outlive this."""
        runner = self._runtime.get_signature_runner(next(iter(self._runtime.get_signature_list())))
        return runner.get_input_details(), runner.get_output_details()

    def _lay_out(self, tokens: int, logits: int, places: int) -> None:
        """Have the runtime lay out its memory for these sizes, keeping the cache's content."""
        if self._shape == (tokens, logits, places):
            return
        held = {name: self._view(name)[:, :, : self.length].copy() for name in self._caches} if self.length else {}
        resize, index = self._runtime.resize_tensor_input, self._in
        resize(index["input_ids"], [1, tokens])
        resize(index["positions"], [1, tokens])
        resize(index["logits_index"], [logits])
        resize(index["cache_mask"], [1, 1, 1, places])
        for name, (heads, width) in self._caches.items():
            resize(index[name], [1, heads, places, width])
        self._runtime.allocate_tensors()
        for name in self._caches:
            self._view(name)[:, :, self.length :] = 0  # what is hidden must still be a number
            if held:
                self._view(name)[:, :, : self.length] = held.pop(name)
        self._view("cache_mask")[...] = np.where(np.arange(places) < self.length, 0, _HIDDEN)
        self._shape = (tokens, logits, places)

    def _view(self, name: str) -> npt.NDArray[Any]:
        """Return an input as the runtime holds it; the runtime refuses its next call while a view is kept."""
        view: npt.NDArray[Any] = self._runtime.tensor(self._in[name])()
        return view

    def feed(self, token_ids: Tokens, want: Sequence[int]) -> npt.NDArray[Any]:
        """See `Session.feed`."""
        ids = np.asarray(token_ids, np.int32)  # (T,)
        if ids.size == 0 or ids.min() < 0 or ids.max() >= self.vocab_size:
            raise AgentError("request", f"token ids must lie between 0 and {self.vocab_size - 1}")
        past, total = self.length, self.length + len(ids)
        self._lay_out(len(ids), len(want), -(-total // _CACHE_STEP) * _CACHE_STEP)
        self._view("input_ids")[0] = ids
        self._view("positions")[0] = np.arange(past, total)
        self._view("logits_index")[...] = want
        self._runtime.invoke()
        tensor = self._runtime.tensor
        for name in self._caches:
            self._view(name)[:, :, past:total] = tensor(self._out["new" + name[4:]])()
        self._view("cache_mask")[..., past:total] = 0
        self.length = total
        logits: npt.NDArray[Any] = self._runtime.get_tensor(self._out["logits"])
        return logits

    def truncate(self, length: int) -> None:
        """See `Session.truncate`."""
        assert 0 <= length <= self.length
        self._view("cache_mask")[..., length:] = _HIDDEN
        self.length = length

    def close(self) -> None:
        """See `Session.close`."""
        self._runtime = None
