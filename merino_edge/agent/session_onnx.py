"""Sessions on onnxruntime.

The cache lies in buffers that this process owns: two of each, read and written in turn, so that no
token allocates or copies a cache.
"""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

import numpy as np

from merino_edge.agent.errors import AgentError
from merino_edge.agent.session import Session

if TYPE_CHECKING:
    import numpy.typing as npt

    from merino_edge.agent.session import Tokens

_CACHE_STEP = 256  # positions by which the cache grows
_CACHE_NAME = re.compile(r"past\.(\d+)\.(key|value)")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def tune_malloc(loading: bool) -> None:
    """Keep freed packing buffers from staying resident (glibc only).

    While loading, whatever exceeds 64 KiB goes back to the kernel when freed; afterwards the
    activations of one token come from the heap, without page faults.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    mallopt(_M_MMAP_THRESHOLD, 64 << 10 if loading else 32 << 20)
    mallopt(_M_TRIM_THRESHOLD, 128 << 10 if loading else 64 << 20)


class OnnxSession(Session):
    """ONNX graphs with one cache a block: inputs input_ids (1,T), logits_index (N), past.{b}.key|value [L,1,H,P,D].

    Args:
        graph: The model file; its external data lies beside it.
        threads: For the runtime's operators.
    """

    def __init__(self, graph: Path, threads: int) -> None:
        import onnxruntime  # only here, so that an agent without a runtime can still answer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        tune_malloc(loading=True)
        try:
            self._runtime: Any = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            version = onnxruntime.__version__
            raise AgentError("runtime", f"onnxruntime {version} cannot open {graph.name}: {error}") from error
        tune_malloc(loading=False)
        self.provider = str(self._runtime.get_providers()[0])
        self._shapes: dict[str, tuple[int, int, int]] = {}  # past name -> (L, H, D)
        for value in self._runtime.get_inputs():
            if _CACHE_NAME.fullmatch(value.name):
                layers, _, heads, _, width = value.shape
                self._shapes[value.name] = (int(layers), int(heads), int(width))
        outputs = {value.name: value for value in self._runtime.get_outputs()}
        if not self._shapes or "logits" not in outputs:
            raise AgentError("request", f"{graph.name} has no inputs past.N.key and no output logits: another form")
        self.vocab_size = int(outputs["logits"].shape[-1])
        self._capacity = 0
        self._held: dict[str, npt.NDArray[Any]] = {}
        self._spare: dict[str, npt.NDArray[Any]] = {}
        self._grow(0)

    def _grow(self, positions: int) -> None:
        """Make room for so many positions; untouched pages cost nothing."""
        if self._held and positions <= self._capacity:
            return
        self._capacity = -(-max(positions, 1) // _CACHE_STEP) * _CACHE_STEP
        for name, (layers, heads, width) in self._shapes.items():
            held = np.empty(layers * heads * self._capacity * width, np.float32)
            used = layers * heads * self.length * width
            if used:
                held[:used] = self._held[name][:used]
            self._held[name] = held
            self._spare[name] = np.empty_like(held)

    def feed(self, token_ids: Tokens, want: Sequence[int]) -> npt.NDArray[Any]:
        """See `Session.feed`."""
        ids = np.asarray(token_ids, np.int64)[None]  # (1, T)
        if ids.size == 0 or ids.min() < 0 or ids.max() >= self.vocab_size:
            raise AgentError("request", f"token ids must lie between 0 and {self.vocab_size - 1}")
        past, total = self.length, self.length + ids.shape[1]
        self._grow(total)
        wanted = np.asarray(want, np.int64)  # (N,); kept by name, for the binding only borrows it
        logits = np.empty((len(wanted), self.vocab_size), np.float32)
        binding = self._runtime.io_binding()
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("logits_index", wanted)
        for name, (layers, heads, width) in self._shapes.items():
            before, after = (layers, 1, heads, past, width), (layers, 1, heads, total, width)
            present = "present" + name[4:]
            binding.bind_input(name, "cpu", 0, np.float32, before, self._held[name].ctypes.data)
            binding.bind_output(present, "cpu", 0, np.float32, after, self._spare[name].ctypes.data)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._runtime.run_with_iobinding(binding)
        self._held, self._spare = self._spare, self._held
        self.length = total
        return logits

    def truncate(self, length: int) -> None:
        """See `Session.truncate`."""
        assert 0 <= length <= self.length
        for name, (layers, heads, width) in self._shapes.items():
            old = self._held[name][: layers * heads * self.length * width].reshape(layers, heads, -1, width)
            new = self._spare[name][: layers * heads * length * width].reshape(layers, heads, length, width)
            new[...] = old[:, :, :length]
        self._held, self._spare = self._spare, self._held
        self.length = length

    def close(self) -> None:
        """See `Session.close`."""
        self._runtime = None
        self._held, self._spare = {}, {}
