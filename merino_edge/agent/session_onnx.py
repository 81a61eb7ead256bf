"""Sessions on onnxruntime for graphs with one cache a block.

The cache lies in buffers that this process owns. Where the graph writes into the cache it reads,
there is one of each, longer than it is filled; otherwise two, read and written in turn. Either way
no token allocates a cache, and what is bound stays bound while shapes stay.
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

CACHE_STEP = 256  # positions by which the cache grows
PREFILL_CHUNK = 256  # at 1,024 at once, a prompt of 1,024 costs 1.2 (fp32) to 1.6 times (int8) the processor time
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


def open_runtime(graph: Path, threads: int, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Any:
    """Return onnxruntime's session of a graph; its external data lies beside it.

    Raises:
        AgentError: the file is none that this runtime opens.
    """
    import onnxruntime  # only here, so that an agent without a runtime can still answer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    tune_malloc(loading=True)
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=list(providers))
    except Exception as error:
        version = onnxruntime.__version__
        raise AgentError("runtime", f"onnxruntime {version} cannot open {graph.name}: {error}") from error
    finally:
        tune_malloc(loading=False)


class OnnxSession(Session):
    """ONNX graphs with one cache a block: inputs input_ids (1,T), logits_index (N), past.{b}.key|value [L,1,H,P,D].

    With a further input past_length (1), the caches are bound as past and present at once.

    Args:
        graph: The model file; its external data lies beside it.
        threads: For the runtime's operators.
    """

    prefill_chunk = PREFILL_CHUNK

    def __init__(self, graph: Path, threads: int) -> None:
        self._runtime: Any = open_runtime(graph, threads)
        self.provider = str(self._runtime.get_providers()[0])
        self._shapes: dict[str, tuple[int, int, int]] = {}  # past name -> (L, H, D)
        inputs = {value.name: value for value in self._runtime.get_inputs()}
        for name, value in inputs.items():
            if _CACHE_NAME.fullmatch(name):
                layers, _, heads, _, width = value.shape
                self._shapes[name] = (int(layers), int(heads), int(width))
        outputs = {value.name: value for value in self._runtime.get_outputs()}
        if not self._shapes or "logits" not in outputs:
            raise AgentError("request", f"{graph.name} has no inputs past.N.key and no output logits: another form")
        self.vocab_size = int(outputs["logits"].shape[-1])
        self._in_place = "past_length" in inputs
        self._capacity = 0
        self._held: dict[str, npt.NDArray[Any]] = {}
        self._spare: dict[str, npt.NDArray[Any]] = {}
        self._binding: Any = self._runtime.io_binding()
        self._bound: tuple[int, int] = (0, 0)  # T and N of what is bound
        self._ids = np.zeros((1, 0), np.int64)
        self._want = np.zeros(0, np.int64)
        self._past_length = np.zeros(1, np.int64)
        self._logits = np.zeros((0, self.vocab_size), np.float32)
        if self._in_place:
            self._binding.bind_cpu_input("past_length", self._past_length)
        self._grow(0)

    def _grow(self, positions: int) -> None:
        """Make room for so many positions; untouched pages cost nothing."""
        if self._held and positions <= self._capacity:
            return
        before = self._capacity
        self._capacity = -(-max(positions, 1) // CACHE_STEP) * CACHE_STEP
        for name, (layers, heads, width) in self._shapes.items():
            held = np.empty((layers, 1, heads, self._capacity, width), np.float32)
            if self._in_place:
                if self.length:
                    held[:, :, :, : self.length] = self._held[name][:, :, :, : self.length]
                self._held[name] = held
                self._bind_cache(name, held, held, self._capacity, self._capacity)
                continue
            used = layers * heads * self.length * width
            if before and used:
                held.reshape(-1)[:used] = self._held[name].reshape(-1)[:used]
            self._held[name] = held
            self._spare[name] = np.empty_like(held)

    def _bind_cache(
        self, name: str, past: npt.NDArray[Any], present: npt.NDArray[Any], before: int, after: int
    ) -> None:
        layers, heads, width = self._shapes[name]
        shapes = [(layers, 1, heads, positions, width) for positions in (before, after)]
        self._binding.bind_input(name, "cpu", 0, np.float32, shapes[0], past.ctypes.data)
        self._binding.bind_output("present" + name[4:], "cpu", 0, np.float32, shapes[1], present.ctypes.data)

    def _bind_tokens(self, tokens: int, logits: int) -> None:
        """Bind arrays of these sizes; the binding only borrows them, so they are kept."""
        if self._bound == (tokens, logits):
            return
        self._bound = (tokens, logits)
        self._ids, self._want = np.zeros((1, tokens), np.int64), np.zeros(logits, np.int64)
        self._logits = np.empty((logits, self.vocab_size), np.float32)
        self._binding.bind_cpu_input("input_ids", self._ids)
        self._binding.bind_cpu_input("logits_index", self._want)
        self._binding.bind_output("logits", "cpu", 0, np.float32, self._logits.shape, self._logits.ctypes.data)

    def feed(self, token_ids: Tokens, want: Sequence[int]) -> npt.NDArray[Any]:
        """See `Session.feed`."""
        ids = np.asarray(token_ids, np.int64)
        if ids.size == 0 or ids.min() < 0 or ids.max() >= self.vocab_size:
            raise AgentError("request", f"token ids must lie between 0 and {self.vocab_size - 1}")
        total = self.length + ids.size
        self._grow(total)
        self._bind_tokens(ids.size, len(want))
        self._ids[0], self._want[:], self._past_length[0] = ids, want, self.length
        if not self._in_place:
            for name in self._shapes:
                self._bind_cache(name, self._held[name], self._spare[name], self.length, total)
        self._runtime.run_with_iobinding(self._binding)
        if not self._in_place:
            self._held, self._spare = self._spare, self._held
        self.length = total
        return self._logits

    def truncate(self, length: int) -> None:
        """See `Session.truncate`."""
        assert 0 <= length <= self.length
        if not self._in_place:
            for name, (layers, heads, width) in self._shapes.items():
                flat, spare = self._held[name].reshape(-1), self._spare[name].reshape(-1)
                old = flat[: layers * heads * self.length * width].reshape(layers, heads, -1, width)
                new = spare[: layers * heads * length * width].reshape(layers, heads, length, width)
                new[...] = old[:, :, :length]
            self._held, self._spare = self._spare, self._held
        self.length = length

    def close(self) -> None:
        """See `Session.close`."""
        self._binding = self._runtime = None
        self._held, self._spare = {}, {}
