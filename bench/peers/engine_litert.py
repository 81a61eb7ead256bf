"""What litert-torch wrote, in ai-edge-litert: one interpreter for the prompt, one for single tokens.

New keys and values are copied into the cache where it lies, the input tensors of the second interpreter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter


class Graph:
    """One file with its tensors by their place in the signature."""

    def __init__(self, path: Path, threads: int) -> None:
        self.interpreter = Interpreter(model_path=str(path), num_threads=threads)
        self.interpreter.allocate_tensors()
        self.inputs = self._ordered(self.interpreter.get_input_details(), "args_")
        self.outputs = self._ordered(self.interpreter.get_output_details(), "output_")

    def _ordered(self, details: list[dict[str, Any]], prefix: str) -> list[dict[str, Any]]:
        """Return details in the order of the converted function: the signature names them by number."""
        signature = next(iter(self.interpreter._get_full_signature_list().values()))
        names = signature["inputs" if prefix == "args_" else "outputs"]
        by_index = {detail["index"]: detail for detail in details}
        numbers = sorted((int(name.removeprefix(prefix)), index) for name, index in names.items())
        return [by_index[index] for _, index in numbers]

    def put(self, number: int, value: Any) -> None:
        """Set one input."""
        detail = self.inputs[number]
        self.interpreter.set_tensor(detail["index"], np.asarray(value, detail["dtype"]))

    def view(self, detail: dict[str, Any]) -> Any:
        """Return a tensor where it lies; not to be held across a run."""
        return self.interpreter.tensor(detail["index"])()


class Engine:
    """See `worker.py`."""

    def __init__(self, path: str, threads: int) -> None:
        folder = Path(path)
        shapes = json.loads((folder / "shapes.json").read_text(encoding="utf-8"))
        self.vocab_size, self._cache, self._prompt = shapes["vocab_size"], shapes["cache"], shapes["prompt"]
        self._prefill, self._decode = (Graph(folder / f"{name}.tflite", threads) for name in ("prefill", "decode"))
        self._length = self._kept = 0

    def reset(self) -> None:
        """Empty the cache."""
        self._length = 0

    def keep(self) -> None:
        """Remember the cache as it is."""
        self._kept = self._length

    def back(self) -> None:
        """Return to what was remembered; what lies behind is masked and overwritten."""
        self._length = self._kept

    def feed(self, ids: list[int], want: list[int]) -> Any:
        """Append one token, or a text to an empty cache; return `(1, V)`."""
        assert len(want) == 1
        return self._one(ids[0]) if len(ids) == 1 else self._text(ids, want[0])

    def _text(self, ids: list[int], want: int) -> Any:
        assert self._length == 0
        graph, count = self._prefill, len(ids)
        padded = np.zeros((1, self._prompt), np.int64)
        padded[0, :count] = ids
        graph.put(0, padded)
        graph.put(1, np.arange(self._prompt)[None])
        graph.put(2, np.ones((1, self._prompt)))
        graph.put(3, [want])
        graph.interpreter.invoke()
        kept = min(count, self._cache)  # a prompt that is only read may be longer than the cache
        for into, out in zip(self._decode.inputs[4:], graph.outputs[1:], strict=True):
            self._decode.view(into)[:, :, :kept] = graph.view(out)[:, :, :kept]
        self._length = count
        return np.array(graph.view(graph.outputs[0])[0])

    def _one(self, token: int) -> Any:
        graph, length = self._decode, self._length
        mask = np.zeros((1, self._cache + 1))
        mask[0, :length] = mask[0, -1] = 1
        graph.put(0, [[token]])
        graph.put(1, [[length]])
        graph.put(2, mask)
        graph.put(3, [0])
        graph.interpreter.invoke()
        for into, out in zip(graph.inputs[4:], graph.outputs[1:], strict=True):
            graph.view(into)[:, :, length : length + 1] = graph.view(out)
        self._length += 1
        return np.array(graph.view(graph.outputs[0])[0])
