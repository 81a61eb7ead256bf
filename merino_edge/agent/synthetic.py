"""Weights made on the device: a file described by its pieces, so that only the description travels.

The time of a model depends on its shapes, not on what its weights are; so a profile sends graphs and lets
the device make the weights from a seed. Host and device run this very code, and the device compares the
SHA-256 with the one that the host has computed.

A piece is `[kind, bytes, pattern]`:

    zeros     padding
    literal   the bytes of `pattern` (hexadecimal)
    repeat    `pattern` again and again: scales, norm gains
    integers  random bytes: quantized weights
    float32   random numbers of either sign and magnitude 2^-7 to 2^-5, like trained weights
    float16   the same in half precision
"""

from __future__ import annotations

import hashlib
import random
from typing import Callable, Iterator, Sequence

CHUNK_BYTES = 1 << 20  # a multiple of every element's size
MAX_BYTES = 1 << 36
KINDS = ("zeros", "literal", "repeat", "integers", "float32", "float16")
# The last byte of a number holds its sign and most of its exponent, and the top of the byte before the rest.
_LAST_BYTE = {
    "float32": bytes(0x3C if byte < 128 else 0xBC for byte in range(256)),
    "float16": bytes(0x20 | (byte & 7) | (byte & 0x80) for byte in range(256)),
}
_WIDTH = {"float32": 4, "float16": 2}

Piece = Sequence[object]


class DescriptionError(ValueError):
    """What came is no description of a file."""


def check(pieces: object) -> list[tuple[str, int, bytes]]:
    """Return the pieces of a request as (kind, bytes, pattern).

    Raises:
        DescriptionError: an unknown kind, a length or pattern that is none, or more than a device may hold.
    """
    if not isinstance(pieces, (list, tuple)):
        raise DescriptionError("the pieces of a file must be a list")
    checked: list[tuple[str, int, bytes]] = []
    for piece in pieces:
        if not isinstance(piece, (list, tuple)) or len(piece) != 3:
            raise DescriptionError(f"{piece!r} is no [kind, bytes, pattern]")
        kind, count, pattern = piece
        if kind not in KINDS:
            raise DescriptionError(f"{kind!r} is no kind of piece; kinds: {', '.join(KINDS)}")
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise DescriptionError(f"{count!r} is no number of bytes")
        try:
            raw = bytes.fromhex(pattern) if isinstance(pattern, str) else None
        except ValueError:
            raw = None
        needs_pattern = kind in ("literal", "repeat")
        if raw is None or bool(raw) != (needs_pattern and bool(count)) or (kind == "literal" and len(raw) != count):
            raise DescriptionError(f"{str(pattern)[:40]!r} is no pattern of {count} bytes of {kind}")
        checked.append((str(kind), count, raw))
    if sum(count for _, count, _ in checked) > MAX_BYTES:
        raise DescriptionError(f"a file of more than {MAX_BYTES} bytes is made on no device")
    return checked


def generate(pieces: object, seed: int) -> Iterator[bytes]:
    """Yield the bytes of a file in chunks of at most 1 MiB.

    Args:
        pieces: See this module's docstring.
        seed: Of the random ones; the same seed gives the same file on every machine and Python.
    """
    draw = random.Random(seed)  # noqa: S311  weights, not secrets
    for kind, count, pattern in check(pieces):
        make = _maker(kind, pattern, draw)
        for start in range(0, count, CHUNK_BYTES):
            yield make(min(CHUNK_BYTES, count - start), start)


def digest(pieces: object, seed: int) -> str:
    """Return the SHA-256 of the file, in hexadecimal."""
    result = hashlib.sha256()
    for chunk in generate(pieces, seed):
        result.update(chunk)
    return result.hexdigest()


def _maker(kind: str, pattern: bytes, draw: random.Random) -> Callable[[int, int], bytes]:
    """Return what makes `count` bytes that begin `start` bytes into a piece."""

    def noise(count: int) -> bytes:
        return draw.getrandbits(8 * count).to_bytes(count, "little") if count else b""

    def repeated(count: int, start: int) -> bytes:
        skip = start % len(pattern)
        return (pattern * (count // len(pattern) + 2))[skip : skip + count]

    def numbers(count: int, start: int) -> bytes:
        width = _WIDTH[kind]
        raw = bytearray(noise(count))
        raw[width - 1 :: width] = raw[width - 1 :: width].translate(_LAST_BYTE[kind])
        return bytes(raw)

    if kind == "zeros":
        return lambda count, start: bytes(count)
    if kind == "integers":
        return lambda count, start: noise(count)
    return numbers if kind in _WIDTH else repeated
