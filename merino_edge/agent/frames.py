"""What goes over the wire: a fixed binary header and a payload of JSON or raw bytes.

    magic 4 | type 1 | request id 4 | payload length 4 | CRC-32 of the payload 4 | CRC-32 of the header 4

All numbers big-endian. The header has a checksum of its own, so that a damaged length is noticed at
once instead of being waited for. A payload is at most 1 MiB; `data` frames are raw, all others carry
one JSON object. A stream ends with an `end` frame; without one it was cut.
"""

from __future__ import annotations

import json
import math
import struct
import time
import zlib
from typing import Union

Payload = Union[bytes, bytearray]

MAGIC = b"MRN\x01"
MAX_PAYLOAD = 1 << 20
LIFE_BYTES = 4096  # within the silence that is allowed
MAX_NOISE = 1 << 16  # bytes of a login banner that may stand before the first frame

HELLO, REQUEST, RESULT, EVENT, DATA, ERROR, PING, CANCEL, END = range(1, 10)
TYPE_NAMES = {
    HELLO: "hello",
    REQUEST: "request",
    RESULT: "result",
    EVENT: "event",
    DATA: "data",
    ERROR: "error",
    PING: "ping",
    CANCEL: "cancel",
    END: "end",
}

_FIELDS = struct.Struct("!4sBIII")
_CHECK = struct.Struct("!I")
HEADER_BYTES = _FIELDS.size + _CHECK.size


class FrameError(Exception):
    """The byte stream is not what the protocol says."""


class Frame:
    """One frame, as sent or received."""

    __slots__ = ("payload", "request", "type")

    def __init__(self, type: int, request: int, payload: Payload) -> None:
        self.type = type
        self.request = request
        self.payload = payload

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frame):
            return NotImplemented
        return (self.type, self.request, self.payload) == (other.type, other.request, other.payload)

    def __repr__(self) -> str:
        return f"Frame({TYPE_NAMES.get(self.type, self.type)}, {self.request}, {len(self.payload)} bytes)"

    def json(self) -> dict[str, object]:
        """Return the payload as a JSON object."""
        return parse_object(self.payload)


def encode(type: int, request: int, payload: bytes = b"") -> bytes:
    """Return the bytes of one frame."""
    return header(type, request, payload) + payload


def header(type: int, request: int, payload: Payload) -> bytes:
    """Return what stands before the payload of a frame, for whoever sends a large payload without copying it."""
    if type not in TYPE_NAMES or not 0 <= request < 1 << 32:
        raise FrameError(f"no frame of type {type} for request {request}")
    if len(payload) > MAX_PAYLOAD:
        raise FrameError(f"a payload of {len(payload)} bytes exceeds {MAX_PAYLOAD}")
    fields = _FIELDS.pack(MAGIC, type, request, len(payload), zlib.crc32(payload))
    return fields + _CHECK.pack(zlib.crc32(fields))


def encode_json(type: int, request: int, value: dict[str, object]) -> bytes:
    """Return the bytes of one frame that carries a JSON object."""
    return encode(type, request, json.dumps(value, allow_nan=False, separators=(",", ":")).encode("utf-8"))


def parse_object(payload: Payload) -> dict[str, object]:
    """Parse one JSON object, refusing NaN, infinities, duplicate keys and endless nesting."""
    try:
        value = json.loads(
            payload.decode("utf-8"),
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_whole,
            object_pairs_hook=_unique,
        )
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a payload is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise FrameError(f"a payload must be a JSON object, not {type(value).__name__}")
    return value


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is not a number that JSON knows")


def _finite(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):
        raise ValueError(f"{word} is out of range")
    return number


def _whole(word: str) -> int:
    if len(word) > 30:
        raise ValueError("a whole number has more than 30 digits")
    return int(word)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return value


class Pulse:
    """When the other side last showed that it lives: by a whole frame, or by enough bytes of one.

    Single bytes do not count: a link that passes one a second would keep everybody waiting for ever.

    Args:
        enough: Bytes that are a sign of life by themselves.
    """

    def __init__(self, enough: int = LIFE_BYTES) -> None:
        self._enough = enough
        self._bytes = 0
        self._at = time.monotonic()

    def note(self, received: int, whole: int = 0) -> None:
        """Count received bytes, and the frames that they completed."""
        self._bytes += received
        if whole or self._bytes >= self._enough:
            self._bytes = 0
            self._at = time.monotonic()

    @property
    def silent_s(self) -> float:
        """How long ago that was."""
        return time.monotonic() - self._at


class Decoder:
    """Turns bytes, in whatever pieces they come, into frames.

    Args:
        noise: Bytes before the first frame that are passed over (a login banner); 0 for none.
    """

    def __init__(self, noise: int = 0) -> None:
        self._buffer = bytearray()
        self._noise_left = noise
        self._started = noise == 0
        self._begun: tuple[int, int, int] | None = None  # type, request, checksum of the frame that is coming
        self._payload = bytearray()  # its payload, as long as it will be, and how much of that is there
        self._filled = 0
        self.ended = False

    def feed(self, data: bytes) -> list[Frame]:
        """Take more bytes and return the frames they complete.

        A long payload is copied once, to where it stays: uploads go this way.

        Raises:
            FrameError: a magic, type, length or checksum is wrong, or bytes follow the end frame.
        """
        self._buffer += self._fill(memoryview(data))
        frames: list[Frame] = []
        while True:
            frame = self._take()
            if frame is None:
                return frames
            self.ended = frame.type == END
            frames.append(frame)

    def close(self) -> None:
        """Say that no more bytes will come.

        Raises:
            FrameError: the stream did not end with its end frame.
        """
        if self._buffer or self._begun is not None or not self.ended:
            raise FrameError("the stream was cut: it has no end frame")

    def _skip_noise(self) -> bool:
        at = self._buffer.find(MAGIC)
        dropped = at if at >= 0 else max(0, len(self._buffer) - len(MAGIC) + 1)
        if dropped > self._noise_left:
            raise FrameError("this is not the agent: other bytes come first")
        self._noise_left -= dropped
        del self._buffer[:dropped]
        self._started = at >= 0
        return self._started

    def _begin(self) -> bool:
        """Read a header; say whether one has come."""
        if not self._started and not self._skip_noise():
            return False
        if self.ended and self._buffer:
            raise FrameError("bytes follow the end frame")
        if len(self._buffer) < HEADER_BYTES:
            return False
        magic, kind, request, length, checksum = _FIELDS.unpack_from(self._buffer)
        (check,) = _CHECK.unpack_from(self._buffer, _FIELDS.size)
        if magic != MAGIC or zlib.crc32(self._buffer[: _FIELDS.size]) != check:
            raise FrameError("a frame's header is damaged")
        if kind not in TYPE_NAMES or length > MAX_PAYLOAD:
            raise FrameError(f"a frame of type {kind} with {length} bytes is none of this protocol")
        del self._buffer[:HEADER_BYTES]
        self._begun, self._payload, self._filled = (kind, request, checksum), bytearray(length), 0
        return True

    def _fill(self, data: memoryview) -> memoryview:
        """Put bytes where the payload that is coming lacks them; return the others."""
        if self._begun is None:
            return data
        take = min(len(data), len(self._payload) - self._filled)
        with memoryview(self._payload) as payload:  # assigning to the bytearray itself would copy twice
            payload[self._filled : self._filled + take] = data[:take]
        self._filled += take
        return data[take:]

    def _take(self) -> Frame | None:
        if self._begun is None and not self._begin():
            return None
        assert self._begun is not None
        with memoryview(self._buffer) as held, self._fill(held) as rest:
            taken = len(held) - len(rest)
        del self._buffer[:taken]
        if self._filled < len(self._payload):
            return None
        kind, request, checksum = self._begun
        payload, self._payload, self._begun = self._payload, bytearray(), None
        if zlib.crc32(payload) != checksum:
            raise FrameError("a frame's payload is damaged")
        return Frame(kind, request, payload)
