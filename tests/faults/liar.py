"""A device that lies: a channel that reads the host's requests and answers what it was told to."""

from __future__ import annotations

import io
import json
import queue
from collections.abc import Callable
from typing import Any

from merino_edge.agent import PROTOCOL, frames
from merino_edge.device.agent_link import AgentLink
from merino_edge.device.client import AgentDevice
from merino_edge.device.registry import DeviceEntry
from merino_edge.device.transport import Completed

HELLO = frames.encode_json(frames.HELLO, 0, {"protocol": PROTOCOL, "pid": 1, "root": "/r", "digest": "x"})
END = frames.encode(frames.END, 0)
PING = frames.encode_json(frames.PING, 0, {})

FACTS: dict[str, Any] = {
    "device_id": "0123456789abcdef", "os_image": "Debian", "power_mode": "ondemand", "governor": "ondemand",
    "cpu": {"model": "Cortex-A72", "cores": 4, "last_level_cache_bytes": 1 << 20},
    "memory": {"total": 4 << 30, "available": 3 << 30, "swap_used": 0}, "board_model": "Raspberry Pi 4 Model B",
    "python": {"version": "3.11.2", "platform": "linux-aarch64", "libc": "glibc", "libc_version": "2.36", "bits": 64},
    "runtimes": [{"name": "r", "runtime": "onnxruntime", "python": "/usr/bin/python3"}],
    "temperature_c": 48.0, "throttled": False, "throttled_bits": 0, "load1": 0.1,
}  # fmt: skip
TEST: dict[str, Any] = {
    "samples_ns": [1_000_000] * 64, "warmup_ns": [1_500_000], "conditions": {"before": {}, "after": {}},
    "invalid_reason": None,
}  # fmt: skip
MEASURED: dict[str, Any] = {
    "load_ns": 1_000_000, "peak_memory_bytes": 50 << 20, "model_memory_bytes": 10 << 20, "file_backed_bytes": 1 << 20,
    "threads": 4, "runtime": "onnxruntime", "runtime_version": "1.22.0", "provider": "CPUExecutionProvider",
    "memory": {}, "tests": [TEST],
}  # fmt: skip
RELEASE: dict[str, Any] = {
    "release": 1, "runtime": "r", "manifest_sha256": "a" * 64,
    "manifest": {"context_length": 64, "trained": True, "files": [{"name": "model.onnx", "sha256": "b" * 64}]},
}  # fmt: skip
HONEST: dict[str, dict[str, Any]] = {
    "facts": FACTS,
    "have": {"missing": []},
    "measure": MEASURED,
    "releases": {"current": 1, "releases": [RELEASE]},
    "install": {"release": 2, "sha256": "", "previous": 1},
    "activate": {"release": 1, "previous": 2},
    "collect": {"bytes_freed": 0},
    "perplexity": {"nll_nats_sum": 10.0, "tokens": 5},
    "generate": {"tokens": 1, "seconds": 0.1, "load_ns": 1, "prefill_ms": 1.0},
    "runtime": {"name": "r"},
}

Answer = Callable[[int, dict[str, Any]], bytes]
"""From a request's number and words to the bytes that come back."""


def result(request: int, value: object) -> bytes:
    """Return a result frame of whatever Python's json writes, NaN and all."""
    return frames.encode(frames.RESULT, request, json.dumps(value).encode("utf-8", "surrogatepass"))


def honest(request: int, words: dict[str, Any]) -> bytes:
    """Answer as a device would."""
    value = dict(HONEST[str(words["op"])])
    if words["op"] == "install":
        value["sha256"] = words["manifest_sha256"]
    if words["op"] == "generate":
        return frames.encode_json(frames.EVENT, request, {"token": 5}) + result(request, value)
    return result(request, value)


def instead(op: str, answer: Answer) -> Answer:
    """Lie about one question, and answer the others."""
    return lambda request, words: (answer if words["op"] == op else honest)(request, words)


class Liar:
    """A channel to such a device."""

    def __init__(self, answer: Answer, hello: bytes = HELLO, stderr: str = "") -> None:
        self._answer, self._stderr = answer, stderr
        self._decoder = frames.Decoder()
        self._out: queue.Queue[bytes] = queue.Queue()
        self._rest = io.BytesIO(hello)

    def send(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            if frame.type == frames.REQUEST:
                self._out.put(self._answer(frame.request, frame.json()))
            elif frame.type == frames.CANCEL:
                self._out.put(frames.encode_json(frames.ERROR, frame.request, {"kind": "cancelled", "message": "x"}))
            elif frame.type == frames.END:
                self._out.put(END)

    def recv(self, max_bytes: int, timeout_s: float) -> bytes:
        data = self._rest.read(max_bytes)
        if data:
            return data
        try:
            said = self._out.get(timeout=min(timeout_s, 0.02))  # who closes the link waits for this
        except queue.Empty:
            raise TimeoutError from None
        self._rest = io.BytesIO(said)
        return self._rest.read(max_bytes)

    def stderr_tail(self) -> str:
        return self._stderr

    def close(self) -> None:
        pass


class Nowhere:
    """A transport that is never used."""

    description = "the board"

    def run(self, argv: object, input: bytes = b"", timeout_s: float = 30.0) -> Completed:
        raise NotImplementedError

    def open(self, argv: object) -> Any:
        raise NotImplementedError

    def put(self, *arguments: object) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


ENTRY = DeviceEntry("board", "pi@board.local", "pi4", None, "paramiko")


def device(channel: Any) -> AgentDevice:
    """Return a device behind a channel."""
    return AgentDevice(ENTRY, Nowhere(), AgentLink(channel, "the board"))  # type: ignore[arg-type]
