"""A conversation with a running agent: handshake, heartbeat, one request at a time, uploads.

Two threads stand beside the caller: one receives, one sends a heartbeat. A link on which nothing
was heard for `SILENCE_S` is dead; a stream that ends without its end frame was cut.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from merino_edge.agent import PROTOCOL, frames
from merino_edge.agent.server import BEAT_S, DATA_WINDOW
from merino_edge.device.records import clean, clean_text
from merino_edge.device.transport import Channel
from merino_edge.errors import (
    DeployError,
    DeviceBusyError,
    DeviceError,
    MeasurementError,
    MerinoEdgeError,
    ProtocolError,
    UsageError,
)

SILENCE_S = 10.0
HELLO_LIMIT_S = 20.0  # a first start compiles the agent and may wait for a slow card
CANCEL_LIMIT_S = 10.0
AGAIN = "run the same command again: it goes on from there"
MAX_EVENTS = 1_000_000  # on the way to one result
INBOX_FRAMES = 64  # that a caller may be behind: bounds what a flood from the device takes

_ERRORS: Mapping[str, type[MerinoEdgeError]] = {
    "busy": DeviceBusyError,
    "corrupt": DeployError,
    "missing": DeployError,
    "smoke": DeployError,
    "disk": DeployError,
    "memory": MeasurementError,
    "runtime": DeviceError,
    "request": ProtocolError,
    "usage": UsageError,
    "cancelled": DeviceError,
    "failed": DeviceError,
}
_HINTS: Mapping[str, str] = {
    "busy": "wait until the other work on the device has ended",
    "corrupt": "merino-edge deploy sends it again",
    "missing": "merino-edge deploy",
    "memory": "choose a smaller model with: merino-edge search --memory",
    "runtime": "install another version of the runtime on the device",
    "smoke": "export again with: merino-edge export",
}
_RESERVED = ("self", "kind", "message", "hint", "exit_code", "partial")  # an error's own words


def _details(value: object) -> dict[str, Any]:
    try:
        cleaned: dict[str, Any] = clean(value) if isinstance(value, dict) else {}
    except ProtocolError:
        return {}
    return cleaned


class AgentRefusal(Exception):
    """The agent answered with an error frame."""

    def __init__(self, value: Mapping[str, Any], where: str) -> None:
        """Keep what it said, cleaned."""
        self.kind = str(value.get("kind"))
        self.error = _ERRORS.get(self.kind, DeviceError)(
            f"{where}: {clean_text(value.get('message'))}",
            hint=clean_text(value.get("hint")) or _HINTS.get(self.kind, AGAIN),
            **{k: v for k, v in _details(value.get("details")).items() if k.isidentifier() and k not in _RESERVED},
        )
        super().__init__(self.error.message)


class AgentLink:
    """Frames to and from one agent.

    Args:
        channel: The agent's stdin and stdout.
        where: The device, for messages.

    Attributes:
        where: The same.
        hello: What the agent said of itself.
    """

    def __init__(self, channel: Channel, where: str) -> None:
        """Start receiving and wait for the agent's hello."""
        self._channel = channel
        self.where = where
        self._send_lock = threading.Lock()
        self._inbox: queue.Queue[frames.Frame | MerinoEdgeError] = queue.Queue(INBOX_FRAMES)
        self._closed = threading.Event()
        self._pulse = frames.Pulse()
        self._request = 0
        self._broken: MerinoEdgeError | None = None
        self._receiver = threading.Thread(target=self._receive, name="agent-receive", daemon=True)
        self._receiver.start()
        try:
            self.hello = self._shake_hands()
        except BaseException:
            self._abandon()
            raise
        threading.Thread(target=self._beat, name="agent-beat", daemon=True).start()

    # -- threads --

    def _receive(self) -> None:
        decoder = frames.Decoder(noise=frames.MAX_NOISE)
        try:
            while not self._closed.is_set():
                try:
                    data = self._channel.recv(1 << 18, 0.5)
                except TimeoutError:
                    continue
                if not data:
                    decoder.close()
                    return
                received = decoder.feed(data)
                self._pulse.note(len(data), len(received))
                for frame in received:
                    if frame.type != frames.PING:
                        self._deliver(frame)
        except frames.FrameError as error:
            tail = clean_text(self._channel.stderr_tail())
            self._deliver(
                ProtocolError(
                    f"{self.where}: {error}" + (f"; the agent last said: {tail}" if tail else ""),
                )
            )
        except DeviceError as error:
            self._deliver(error)

    def _deliver(self, item: frames.Frame | MerinoEdgeError) -> None:
        """Hand something to the caller; where it takes nothing, nothing more is read from the device."""
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._inbox.put(item, timeout=0.5)
                return

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_S):
            with contextlib.suppress(DeviceError):  # the caller hears of it from the receiving thread
                self._send(frames.encode_json(frames.PING, 0, {}))

    # -- one frame --

    def _send(self, data: bytes, payload: bytes = b"") -> None:
        try:
            with self._send_lock:
                self._channel.send(data)
                if payload:  # apart, so that a mebibyte is not copied to stand behind its header
                    self._channel.send(payload)
        except DeviceError as error:
            error.hint = error.hint or AGAIN
            raise

    def _next(self, limit_s: float | None = None) -> frames.Frame:
        """Return the next frame that is no heartbeat.

        Raises:
            DeviceError: the link is dead, damaged or cut, or `limit_s` is over.
        """
        if self._broken is not None:
            raise self._broken
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while True:
            try:
                item = self._inbox.get(timeout=0.25)
            except queue.Empty:
                quiet = self._pulse.silent_s
                if quiet > (SILENCE_S if deadline is None else max(SILENCE_S, limit_s or 0)):
                    raise self._break(
                        DeviceError(f"{self.where}: nothing was heard for {quiet:.0f} s", hint="is it still on?")
                    ) from None
                if deadline is not None and time.monotonic() > deadline:
                    raise self._break(DeviceError(f"{self.where}: no answer within {limit_s:g} s")) from None
                continue
            if isinstance(item, MerinoEdgeError):
                raise self._break(item)
            if item.type == frames.END:
                raise self._break(ProtocolError(f"{self.where}: the agent ended before it had answered"))
            return item

    def _break(self, error: MerinoEdgeError) -> MerinoEdgeError:
        """Remember why nothing more can be asked."""
        error.hint = error.hint or AGAIN
        self._broken = error
        return error

    def _read_json(self, frame: frames.Frame) -> dict[str, Any]:
        try:
            return frame.json()
        except frames.FrameError as error:
            raise self._break(ProtocolError(f"{self.where}: {error}")) from error

    def _shake_hands(self) -> dict[str, Any]:
        try:
            frame = self._next(HELLO_LIMIT_S)
        except DeviceError as error:
            if self._pulse.silent_s >= HELLO_LIMIT_S:
                error.hint = "is it still on, and does a start-up file there (~/.bashrc) make every login wait?"
            raise
        value = self._read_json(frame)
        if frame.type == frames.ERROR:
            raise AgentRefusal(value, self.where).error
        if frame.type != frames.HELLO or value.get("protocol") != PROTOCOL:
            raise ProtocolError(f"{self.where}: the agent speaks another protocol", hint="deploy again")
        self._send(frames.encode_json(frames.HELLO, 0, {"protocol": PROTOCOL}))
        return value

    # -- requests --

    def ask(
        self, op: str, on_event: Callable[[dict[str, Any]], None] | None = None, **parameters: Any
    ) -> dict[str, Any]:
        """Ask and wait for the result.

        Raises:
            MerinoEdgeError: what the agent said, in our own tree; or the link is gone.
        """
        exchange = self.exchange(op, **parameters)
        try:
            while True:
                event = next(exchange)
                if on_event is not None:
                    on_event(event)
        except StopIteration as end:
            result: dict[str, Any] = end.value
            return result
        finally:
            exchange.close()

    def exchange(self, op: str, **parameters: Any) -> Generator[dict[str, Any], None, dict[str, Any]]:
        """Ask and yield each event; the generator's value is the result. Closing it takes the request back."""
        request = self._begin(op, parameters)
        try:
            for _ in range(MAX_EVENTS):
                frame = self._answer_to(request)
                if frame.type == frames.EVENT:
                    yield self._read_json(frame)
                else:
                    return self._finish(frame)
            raise self._break(ProtocolError(f"{self.where}: its answer does not come to an end"))
        except AgentRefusal as refusal:
            raise refusal.error from None
        except BaseException:
            self._cancel(request)
            raise

    def upload(self, digest: str, path: Path, size: int, offset: int, sent: Callable[[int], None]) -> None:
        """Send a file's bytes from `offset` on, at most `DATA_WINDOW` frames ahead of their acknowledgement.

        Args:
            digest: Its SHA-256.
            path: Where it lies here.
            size: Its size.
            offset: What is there already.
            sent: Called with the bytes of each acknowledged frame.

        Raises:
            AgentRefusal: the agent did not take it; the caller knows what the file is.
        """
        request = self._begin("put", {"sha256": digest, "bytes": size, "offset": offset})
        waiting: list[int] = []
        try:
            with open(path, "rb") as stream:
                stream.seek(offset)
                left = size - offset
                while True:
                    while left and len(waiting) < DATA_WINDOW:
                        chunk = stream.read(min(frames.MAX_PAYLOAD, left))
                        if not chunk:
                            raise DeployError(f"{path} became shorter while it was sent", hint="export again")
                        self._send(frames.header(frames.DATA, request, chunk), chunk)
                        waiting.append(len(chunk))
                        left -= len(chunk)
                    frame = self._answer_to(request)
                    if frame.type != frames.EVENT:
                        self._finish(frame)
                        return
                    if not waiting:
                        raise self._break(ProtocolError(f"{self.where}: it takes more than it was sent"))
                    sent(waiting.pop(0))
        except AgentRefusal:
            raise
        except BaseException:
            self._cancel(request)
            raise

    def _begin(self, op: str, parameters: Mapping[str, Any]) -> int:
        if self._broken is not None:
            raise self._broken
        self._request += 1
        try:
            data = frames.encode_json(frames.REQUEST, self._request, {"op": op, **parameters})
        except frames.FrameError as error:
            raise DeviceError(f"{self.where}: the request is too long: {error}") from error
        self._send(data)
        return self._request

    def _answer_to(self, request: int) -> frames.Frame:
        frame = self._next()
        if frame.request not in (request, 0) or frame.type not in (frames.EVENT, frames.RESULT, frames.ERROR):
            raise self._break(ProtocolError(f"{self.where}: an answer to another question came ({frame!r})"))
        return frame

    def _finish(self, frame: frames.Frame) -> dict[str, Any]:
        value = self._read_json(frame)
        if frame.type == frames.ERROR:
            raise AgentRefusal(value, self.where)
        return value

    def _cancel(self, request: int) -> None:
        """Take a request back and wait until the agent has let go of it."""
        if self._broken is not None:
            return
        deadline = time.monotonic() + CANCEL_LIMIT_S
        with contextlib.suppress(MerinoEdgeError):
            self._send(frames.encode_json(frames.CANCEL, request, {}))
            while self._answer_to(request).type == frames.EVENT:
                if time.monotonic() > deadline:
                    self._break(DeviceError(f"{self.where}: the agent does not stop"))
                    return

    def _abandon(self) -> None:
        self._closed.set()
        self._receiver.join(1.0)  # it must not read from a descriptor that is closed and given to another file
        self._channel.close()

    def close(self) -> None:
        """Say goodbye and end the agent; never raises, never waits for long."""
        if self._closed.is_set():
            return
        with contextlib.suppress(MerinoEdgeError, queue.Empty):
            if self._broken is None:
                self._send(frames.encode_json(frames.END, 0, {}))
                deadline = time.monotonic() + CANCEL_LIMIT_S
                while time.monotonic() < deadline:
                    item = self._inbox.get(timeout=CANCEL_LIMIT_S)
                    if isinstance(item, MerinoEdgeError) or item.type == frames.END:
                        break
        self._abandon()
