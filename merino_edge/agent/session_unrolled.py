"""Sessions on onnxruntime for graphs of plain layers: the names that other tools expect, one cache a layer.

The cache never leaves the provider's memory: on a GPU it stays on the device, and only token ids go
there and logits come back. Where the graph writes into the cache it reads (its metadata says so),
each buffer is bound as past and present at once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

import numpy as np

from merino_edge.agent.errors import AgentError
from merino_edge.agent.session import Session
from merino_edge.agent.session_onnx import CACHE_STEP, PREFILL_CHUNK, open_runtime

if TYPE_CHECKING:
    import numpy.typing as npt

    from merino_edge.agent.session import Tokens

GPU_PROVIDER = "CUDAExecutionProvider"
_CACHE_NAME = re.compile(r"past_key_values\.(\d+\.(?:key|value))")
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class UnrolledSession(Session):
    """ONNX graphs with inputs input_ids (1,T), attention_mask (1,P+T), past_key_values.{n}.key|value [1,H,P,D].

    Args:
        graph: The model file; its external data lies beside it.
        threads: For the runtime's operators on the CPU.
        on_gpu: Use a GPU where the runtime has one.
    """

    prefill_chunk = PREFILL_CHUNK

    def __init__(self, graph: Path, threads: int, on_gpu: bool = False) -> None:
        import onnxruntime  # only here, so that an agent without a runtime can still answer

        gpu = on_gpu and GPU_PROVIDER in onnxruntime.get_available_providers()
        providers = ([GPU_PROVIDER] if gpu else []) + ["CPUExecutionProvider"]
        self._runtime: Any = open_runtime(graph, threads, providers)
        self._values = onnxruntime.OrtValue
        self.provider = str(self._runtime.get_providers()[0])
        self._device = "cuda" if self.provider == GPU_PROVIDER else "cpu"
        outputs = {value.name: value for value in self._runtime.get_outputs()}
        self._caches: dict[str, tuple[int, int, Any]] = {}  # past name -> (H, D, dtype)
        for value in self._runtime.get_inputs():
            if _CACHE_NAME.fullmatch(value.name):
                self._caches[value.name] = (int(value.shape[1]), int(value.shape[3]), _TYPES[value.type])
        if not self._caches or "logits" not in outputs:
            raise AgentError("request", f"{graph.name} has no inputs past_key_values.N.key and no output logits")
        self.vocab_size = int(outputs["logits"].shape[-1])
        metadata = self._runtime.get_modelmeta().custom_metadata_map
        self._in_place = metadata.get("merino_edge.cache_in_place") == "true"
        self._capacity = 0
        self._held: dict[str, Any] = {}
        self._resize(0)

    def _resize(self, positions: int) -> None:
        """Lay the cache out anew for so many positions, keeping what fits of the present ones."""
        kept = min(self.length, positions)
        for name, (heads, width, dtype) in self._caches.items():
            array = np.zeros((1, heads, positions, width), dtype)
            if kept:
                array[:, :, :kept] = self._held[name].numpy()[:, :, :kept]
            self._held[name] = self._values.ortvalue_from_numpy(array, self._device, 0)
        self._capacity = positions

    def feed(self, token_ids: Tokens, want: Sequence[int]) -> npt.NDArray[Any]:
        """See `Session.feed`."""
        ids = np.asarray(token_ids, np.int64)[None]  # (1, T)
        if ids.size == 0 or ids.min() < 0 or ids.max() >= self.vocab_size:
            raise AgentError("request", f"token ids must lie between 0 and {self.vocab_size - 1}")
        total = self.length + ids.size
        if self._in_place and total > self._capacity:
            self._resize(-(-total // CACHE_STEP) * CACHE_STEP)
        mask = np.ones((1, total), np.int64)  # kept by name, for the binding only borrows it
        binding = self._runtime.io_binding()
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", mask)
        binding.bind_output("logits", "cpu")
        for name, value in self._held.items():
            binding.bind_ortvalue_input(name, value)
            present = "present." + name[len("past_key_values.") :]
            if self._in_place:
                binding.bind_ortvalue_output(present, value)
            else:
                binding.bind_output(present, self._device)
        self._runtime.run_with_iobinding(binding)
        logits, *presents = binding.get_outputs()  # in the order they were bound
        if not self._in_place:
            self._held = dict(zip(self._held, presents))
        self.length = total
        rows: npt.NDArray[Any] = logits.numpy()[0][np.asarray(want, np.int64)]
        return rows

    def truncate(self, length: int) -> None:
        """See `Session.truncate`."""
        assert 0 <= length <= self.length
        if not self._in_place:
            self._resize(length)
        self.length = length

    def close(self) -> None:
        """See `Session.close`."""
        self._runtime = None
        self._held = {}
