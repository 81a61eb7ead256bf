"""The packer writes what another reader of the format reads: that of the flatbuffers library."""

import io

import flatbuffers.number_types as types
import flatbuffers.table
import numpy as np
import pytest

from merino_edge.agent import synthetic
from merino_edge.errors import ExportError
from merino_edge.exporters import flatbuffer
from merino_edge.exporters.flatbuffer import Payload, Scalar, write_flatbuffer


def written(root: flatbuffer.Table) -> bytes:
    stream = io.BytesIO()
    write_flatbuffer(stream, root, b"TEST")
    return stream.getvalue()


def root_of(data: bytes) -> flatbuffers.table.Table:
    return flatbuffers.table.Table(data, int.from_bytes(data[:4], "little"))


def place(table: flatbuffers.table.Table, slot: int) -> int:
    offset = table.Offset(4 + 2 * slot)
    assert offset
    return int(offset + table.Pos)


def test_scalars_of_every_size_lie_aligned_in_their_table() -> None:
    data = written({0: Scalar("b", -3), 2: Scalar("I", 1 << 31), 3: Scalar("?", True), 5: Scalar("f", 0.5)})
    root = root_of(data)
    assert root.Get(types.Int8Flags, place(root, 0)) == -3
    assert root.Get(types.Uint32Flags, place(root, 2)) == 1 << 31
    assert root.Get(types.BoolFlags, place(root, 3))
    assert root.Get(types.Float32Flags, place(root, 5)) == 0.5
    assert place(root, 2) % 4 == place(root, 5) % 4 == 0
    assert not root.Offset(4 + 2 * 1)
    assert not root.Offset(4 + 2 * 4)


def test_strings_vectors_and_tables_are_found() -> None:
    data = written({0: "größe", 1: np.array([1, -2, 3], "<i8"), 2: [{0: "a"}, {0: Scalar("i", 7)}], 3: {0: "inner"}})
    root = root_of(data)
    assert root.String(place(root, 0)) == "größe".encode()
    assert root.VectorLen(place(root, 1) - root.Pos) == 3
    start = root.Vector(place(root, 1) - root.Pos)
    assert start % 8 == 0
    assert list(np.frombuffer(data, "<i8", 3, start)) == [1, -2, 3]
    start = root.Vector(place(root, 2) - root.Pos)
    second = flatbuffers.table.Table(data, root.Indirect(start + 4))
    assert second.Get(types.Int32Flags, place(second, 0)) == 7
    inner = flatbuffers.table.Table(data, root.Indirect(place(root, 3)))
    assert inner.String(place(inner, 0)) == b"inner"


def test_payloads_come_last_each_aligned_and_in_one_vector() -> None:
    pieces = [np.arange(5, dtype=np.int8), np.ones((2, 3), np.float32)]
    data = written({0: Payload(pieces), 1: Payload([np.zeros(0, np.int8)]), 2: "text"})
    root = root_of(data)
    start = root.Vector(place(root, 0) - root.Pos)
    assert root.VectorLen(place(root, 0) - root.Pos) == 5 + 24
    assert data[start : start + 29] == pieces[0].tobytes() + pieces[1].tobytes()
    assert start % 16 == root.Vector(place(root, 1) - root.Pos) % 16 == 0
    assert start > data.index(b"text")


def test_a_file_can_be_made_again_from_its_description() -> None:
    large = np.random.default_rng(0).integers(-127, 128, 5000).astype(np.int8)
    stream = io.BytesIO()
    layout = write_flatbuffer(stream, {0: Payload([large]), 1: Payload([np.arange(3, dtype=np.int32)])}, b"TEST")
    made = b"".join(synthetic.generate([list(piece) for piece in layout], seed=1))
    data = stream.getvalue()
    start = data.index(large.tobytes())
    assert made[:start] == data[:start]
    assert made[start + 5000 :] == data[start + 5000 :]
    assert [kind for kind, _, _ in layout] == ["literal", "integers", "literal"]


def test_more_than_the_format_can_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flatbuffer, "MAX_BYTES", 4000)
    stream = io.BytesIO()
    with pytest.raises(ExportError, match="holds at most 4000") as caught:
        write_flatbuffer(stream, {0: Payload([np.zeros(4000, np.int8)])}, b"TEST")
    assert "--format onnx" in caught.value.hint
    assert stream.getvalue() == b""
