"""A flatbuffer written front to back, without a schema: tables are slots and values.

The public format (https://flatbuffers.dev/internals): a table begins with the distance to its
vtable, which tells where in the table each slot lies; strings, vectors and tables lie elsewhere, at
an unsigned distance ahead. Libraries write back to front into one growing buffer, which holds a
model twice and more. Here what a value points to comes after it, large payloads last of all, so
that they go from numpy to the file one by one, each aligned for memory mapping.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from merino_edge.bundle import Piece
from merino_edge.errors import ExportError
from merino_edge.exporters.graph import describe_weights

PAYLOAD_ALIGNMENT = 16
LITERAL_BYTES = 1024  # what is not larger is described word for word
MAX_BYTES = (1 << 31) - 1  # readers take distances as 31 bits


@dataclass(frozen=True)
class Scalar:
    """A number or truth value kept inside its table: a `struct` code of 1 to 4 bytes, and the value."""

    code: str
    value: float


@dataclass(frozen=True)
class Payload:
    """A vector of bytes that lies behind everything else: the pieces' contents, one after the other."""

    pieces: Sequence[npt.NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces."""
        return sum(piece.nbytes for piece in self.pieces)


Value = Scalar | str | Payload | npt.NDArray[Any] | Sequence["Table"] | Mapping[int, Any]
Table = Mapping[int, Value]
"""Slot -> value; a table inside is one more mapping, a vector of tables a list, one of numbers an array."""


@dataclass
class _Writer:
    data: bytearray = field(default_factory=bytearray)
    vtables: dict[bytes, int] = field(default_factory=dict)
    payloads: list[tuple[int, Payload]] = field(default_factory=list)

    def align(self, size: int, ahead: int = 0) -> int:
        """Pad until what comes `ahead` bytes later lies on a multiple of `size`; return the position."""
        self.data += bytes(-(len(self.data) + ahead) % size)
        return len(self.data)

    def point(self, place: int, target: int) -> None:
        """Write the distance from `place` to `target` at `place`."""
        struct.pack_into("<I", self.data, place, target - place)

    def write(self, value: Value) -> int:
        """Append what is pointed to; return its position."""
        if isinstance(value, Mapping):
            return self.table(value)
        if isinstance(value, str):
            text = value.encode()
            position = self.align(4)
            self.data += struct.pack("<I", len(text)) + text + b"\0"
            return position
        if isinstance(value, np.ndarray):
            self.align(max(4, value.itemsize), ahead=4)
            position = self.align(4)
            self.data += struct.pack("<I", value.size) + value.tobytes()
            return position
        assert not isinstance(value, Scalar | Payload)
        position = self.align(4)
        self.data += struct.pack("<I", len(value)) + bytes(4 * len(value))
        for number, entry in enumerate(value):
            self.point(position + 4 + 4 * number, self.table(entry))
        return position

    def table(self, table: Table) -> int:
        """Append a table and all it points to; return its position."""
        sizes = {n: struct.calcsize(v.code) if isinstance(v, Scalar) else 4 for n, v in table.items()}
        offsets, end = {}, 4
        for slot in sorted(table, key=lambda n: -sizes[n]):
            offsets[slot] = end
            end += sizes[slot]
        slots = range(max(table, default=-1) + 1)
        vtable = struct.pack(f"<{2 + len(slots)}H", 4 + 2 * len(slots), end, *(offsets.get(n, 0) for n in slots))
        if vtable not in self.vtables:
            self.vtables[vtable] = self.align(2)
            self.data += vtable
        position = self.align(4)
        self.data += struct.pack("<i", position - self.vtables[vtable]) + bytes(end - 4)
        for slot, value in table.items():
            place = position + offsets[slot]
            if isinstance(value, Scalar):
                struct.pack_into("<" + value.code, self.data, place, value.value)
            elif isinstance(value, Payload):
                self.payloads.append((place, value))
            else:
                self.point(place, self.write(value))
        return position


def write_flatbuffer(stream: BinaryIO, root: Table, identifier: bytes) -> tuple[Piece, ...]:
    """Write a flatbuffer.

    Args:
        stream: Where to; only appended to.
        root: The root table.
        identifier: Four bytes that name the schema.

    Returns:
        What lies where: everything but large payloads word for word, these described.

    Raises:
        ExportError: more bytes than the format can address.
    """
    writer = _Writer()
    writer.data += bytes(4) + identifier
    writer.point(0, writer.table(root))
    end = len(writer.data)
    starts = []
    for place, payload in writer.payloads:
        end += -(end + 4) % PAYLOAD_ALIGNMENT
        starts.append(end)
        writer.point(place, end) if end <= MAX_BYTES else None
        end += 4 + payload.nbytes
    if end > MAX_BYTES:
        raise ExportError(
            f"this model needs {end} bytes, one file of this format holds at most {MAX_BYTES}",
            hint="choose a recipe with fewer bits, or --format onnx",
        )
    stream.write(writer.data)
    position, layout, literal = len(writer.data), [], bytes(writer.data)
    for start, (_, payload) in zip(starts, writer.payloads, strict=True):
        before = bytes(start - position) + struct.pack("<I", payload.nbytes)
        stream.write(before)
        literal += before
        for piece in payload.pieces:
            array = np.ascontiguousarray(piece)
            stream.write(array.data)
            if array.nbytes <= LITERAL_BYTES:
                literal += array.tobytes()
                continue
            layout += [("literal", len(literal), literal.hex()), describe_weights(array)]
            literal = b""
        position = start + 4 + payload.nbytes
    return tuple([*layout, ("literal", len(literal), literal.hex())] if literal else layout)
