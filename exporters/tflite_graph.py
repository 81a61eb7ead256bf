"""A TFLite model put together operator by operator: subgraphs, tensors, and each weight's bytes once.

The numbers are those of the public schema (`tensorflow/compiler/mlir/lite/schema/schema.fbs`), the
operator versions those of `tensorflow/lite/tools/versioning/op_version.cc`: an old runtime must be
able to refuse what it cannot do, so every operator states the lowest version that has what is used.
A size of -1 is dynamic. float32 and int32 alone are computed with; integers of 8 and 4 bits are weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from merino_edge.bundle import Piece
from merino_edge.exporters.flatbuffer import Payload, Scalar, Table, write_flatbuffer

SCHEMA_VERSION, IDENTIFIER = 3, b"TFL3"
Shape = tuple[int, ...]
Array = npt.NDArray[Any]


class Type(IntEnum):
    """Element types that are used."""

    FLOAT32 = 0
    FLOAT16 = 1
    INT32 = 2
    BOOL = 6
    INT8 = 9
    INT4 = 17


DTYPES = {Type.FLOAT32: "<f4", Type.INT32: "<i4", Type.BOOL: "|b1", Type.INT8: "|i1"}


class Operator(IntEnum):
    """Built-in operators that are used."""

    ADD = 0
    CONCATENATION = 2
    EMBEDDING_LOOKUP = 7
    FLOOR = 8
    FULLY_CONNECTED = 9
    MUL = 18
    RESHAPE = 22
    GATHER = 36
    TRANSPOSE = 39
    MEAN = 40
    SUB = 41
    DIV = 42
    EXP = 47
    SPLIT = 49
    CAST = 53
    MAXIMUM = 55
    MINIMUM = 57
    SIN = 66
    SUM = 74
    RSQRT = 76
    REDUCE_MAX = 82
    IF = 118
    BATCH_MATMUL = 126
    GELU = 150


OPTIONS = {
    Operator.FULLY_CONNECTED: 8,
    Operator.CONCATENATION: 10,
    Operator.ADD: 11,
    Operator.RESHAPE: 17,
    Operator.MUL: 21,
    Operator.GATHER: 23,
    Operator.TRANSPOSE: 26,
    Operator.MEAN: 27,
    Operator.SUM: 27,
    Operator.REDUCE_MAX: 27,
    Operator.SUB: 28,
    Operator.DIV: 29,
    Operator.EXP: 33,
    Operator.SPLIT: 35,
    Operator.CAST: 37,
    Operator.MAXIMUM: 39,
    Operator.MINIMUM: 39,
    Operator.IF: 92,
    Operator.BATCH_MATMUL: 101,
    Operator.GELU: 116,
}
"""Which options table an operator takes (its number in the union); the others take none."""

BLOCKWISE = 2  # the number of BlockwiseQuantization in its union


def _true() -> Scalar:
    return Scalar("?", True)


@dataclass(frozen=True)
class Tensor:
    """A tensor of one subgraph."""

    index: int
    shape: Shape
    type: Type


@dataclass
class Model:
    """All subgraphs, and the buffers that their constants share.

    Attributes:
        metadata: Short texts that go into the file.
    """

    metadata: Mapping[str, str]
    subgraphs: list[Subgraph] = field(default_factory=list)
    _buffers: list[Payload | None] = field(default_factory=lambda: [None])  # 0 stands for no content
    _numbers: dict[object, int] = field(default_factory=dict)
    _codes: dict[tuple[Operator, int], int] = field(default_factory=dict)

    def subgraph(self, name: str) -> Subgraph:
        """Begin a subgraph; the first is what a runtime executes."""
        graph = Subgraph(self, name, len(self.subgraphs))
        self.subgraphs.append(graph)
        return graph

    def buffer(self, key: object, pieces: Sequence[Array]) -> int:
        """Return the number of a buffer; a key names its content, which is kept once."""
        if key not in self._numbers:
            self._numbers[key] = len(self._buffers)
            self._buffers.append(Payload(pieces))
        return self._numbers[key]

    def code(self, operator: Operator, version: int) -> int:
        """Return the number of an operator in its version."""
        return self._codes.setdefault((operator, version), len(self._codes))

    def write(self, stream: BinaryIO, signature: str) -> tuple[Piece, ...]:
        """Write the model, its first subgraph called by `signature`; return what lies where."""
        notes: list[Table] = [
            {0: name, 1: Scalar("I", self.buffer(("metadata", text), [np.frombuffer(text.encode(), np.uint8)]))}
            for name, text in self.metadata.items()
        ]
        codes: list[Table] = [
            {0: Scalar("b", min(code, 127)), 2: Scalar("i", version), 3: Scalar("i", code)}
            for code, version in self._codes
        ]
        buffers: list[Table] = [{} if payload is None else {0: payload} for payload in self._buffers]
        main = self.subgraphs[0]
        signatures: list[Table] = [
            {0: main.names(main.inputs), 1: main.names(main.outputs), 2: signature, 4: Scalar("I", 0)}
        ]
        root: Table = {
            0: Scalar("I", SCHEMA_VERSION),
            1: codes,
            2: [graph.to_table() for graph in self.subgraphs],
            3: "merino-edge",
            4: buffers,
            6: notes,
            7: signatures,
        }
        return write_flatbuffer(stream, root, IDENTIFIER)


@dataclass
class Subgraph:
    """Tensors and operators in the order of execution."""

    model: Model
    name: str
    index: int
    inputs: list[tuple[str, Tensor]] = field(default_factory=list)
    outputs: list[tuple[str, Tensor]] = field(default_factory=list)
    _tensors: list[dict[int, Any]] = field(default_factory=list)
    _operators: list[Table] = field(default_factory=list)
    _constants: dict[object, Tensor] = field(default_factory=dict)

    def to_table(self) -> Table:
        """Return the schema's SubGraph."""
        ends = ([t.index for _, t in side] for side in (self.inputs, self.outputs))
        inputs, outputs = (np.array(side, "<i4") for side in ends)
        tensors: list[Table] = list(self._tensors)
        return {0: tensors, 1: inputs, 2: outputs, 3: self._operators, 4: self.name}

    def names(self, side: list[tuple[str, Tensor]]) -> list[Table]:
        """Return the schema's TensorMaps of a signature."""
        return [{0: name, 1: Scalar("I", tensor.index)} for name, tensor in side]

    # -- tensors --

    def input(self, name: str, type_: Type, *shape: int) -> Tensor:
        """Add an input."""
        tensor = self._tensor(name, type_, shape)
        self.inputs.append((name, tensor))
        return tensor

    def output(self, name: str, tensor: Tensor) -> None:
        """Make a tensor an output under a name."""
        self._tensors[tensor.index][3] = name
        self.outputs.append((name, tensor))

    def constant(self, value: Array, type_: Type = Type.FLOAT32) -> Tensor:
        """Return a small constant; equal bytes are kept once in the file."""
        array = np.ascontiguousarray(value, DTYPES[type_])
        content = array.tobytes()
        key = (content, array.shape, type_)
        if key not in self._constants:
            self._constants[key] = self._tensor("", type_, array.shape, self.model.buffer(content, [array]))
        return self._constants[key]

    def weight(
        self, name: str, pieces: Sequence[Array], type_: Type, shape: Shape | None = None, scale: float | None = None
    ) -> Tensor:
        """Return a weight whose bytes are the pieces', one after the other.

        Args:
            name: Of the buffer: the same name means the same bytes, in whatever subgraph and shape.
            pieces: Arrays; by default stacked along their first axis.
            type_: Of the elements.
            shape: Another shape of all of them.
            scale: Of the whole tensor, where integers stand for numbers.
        """
        if shape is None:
            shape = (sum(len(piece) for piece in pieces), *pieces[0].shape[1:])
        key = (name, shape, scale)
        if key not in self._constants:
            tensor = self._tensor(name, type_, shape, self.model.buffer(name, pieces))
            if scale is not None:
                self._tensors[tensor.index][4] = {2: np.array([scale], "<f4"), 3: np.array([0], "<i8")}
            self._constants[key] = tensor
        return self._constants[key]

    def block_weight(self, name: str, values: Sequence[Array], scales: Sequence[Array], block: int) -> Tensor:
        """Return int4 weights, two to a byte, whose blocks along a row share a float16 scale.

        Args:
            name: As for `weight`.
            values: uint8 `[out, in / 2]` each.
            scales: float16 `[out, in / block]` each.
            block: Inputs that share a scale.
        """
        key = (name, block)
        if key not in self._constants:
            rows = sum(len(piece) for piece in values)
            scale = self.weight(f"{name}.scale", scales, Type.FLOAT16)
            number = self.model.buffer(name, values)
            tensor = self._tensor(name, Type.INT4, (rows, 2 * values[0].shape[1]), number)
            shared = {0: Scalar("i", scale.index), 1: Scalar("i", -1), 2: Scalar("i", block)}
            self._tensors[tensor.index][4] = {4: Scalar("B", BLOCKWISE), 5: shared}
            self._constants[key] = tensor
        return self._constants[key]

    def _tensor(self, name: str, type_: Type, shape: Shape, buffer: int = 0) -> Tensor:
        now = np.array([max(size, 1) if size != -1 else 1 for size in shape], "<i4")
        table: dict[int, Any] = {
            0: now,
            1: Scalar("b", type_),
            2: Scalar("I", buffer),
            3: name or f"{self.index}:{len(self._tensors)}",
            8: _true(),
        }
        if -1 in shape:
            table[7] = np.array(shape, "<i4")
        self._tensors.append(table)
        return Tensor(len(self._tensors) - 1, shape, type_)

    # -- operators --

    def apply(
        self,
        operator: Operator,
        inputs: Sequence[Tensor],
        *shapes: Shape,
        version: int = 1,
        options: Table | None = None,
        type_: Type = Type.FLOAT32,
    ) -> list[Tensor]:
        """Add an operator; return its outputs, one of each shape."""
        outputs = [self._tensor("", type_, shape) for shape in shapes]
        table: dict[int, Any] = {
            0: Scalar("I", self.model.code(operator, version)),
            1: np.array([t.index for t in inputs], "<i4"),
            2: np.array([t.index for t in outputs], "<i4"),
        }
        if operator in OPTIONS:
            table |= {3: Scalar("B", OPTIONS[operator]), 4: options or {}}
        self._operators.append(table)
        return outputs

    def unary(self, operator: Operator, x: Tensor, options: Table | None = None) -> Tensor:
        """EXP, FLOOR, GELU (exact), RSQRT, SIN."""
        return self.apply(operator, [x], x.shape, options=options)[0]

    def binary(self, operator: Operator, a: Tensor, b: Tensor) -> Tensor:
        """ADD, DIV, MAXIMUM, MINIMUM, MUL, SUB, with broadcasting."""
        return self.apply(operator, [a, b], broadcast(a.shape, b.shape))[0]

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a + b."""
        return self.binary(Operator.ADD, a, b)

    def sub(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a - b."""
        return self.binary(Operator.SUB, a, b)

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a * b."""
        return self.binary(Operator.MUL, a, b)

    def reduce(self, operator: Operator, x: Tensor) -> Tensor:
        """MEAN, REDUCE_MAX or SUM over the last axis, which stays as 1."""
        axis = self.constant(np.array([len(x.shape) - 1]), Type.INT32)
        return self.apply(operator, [x, axis], (*x.shape[:-1], 1), options={0: _true()})[0]

    def reshape(self, x: Tensor, *shape: int) -> Tensor:
        """Return the same elements in another shape, in which one size may be -1."""
        sizes = np.array(shape, "<i4")
        inputs = [x, self.constant(sizes, Type.INT32)]
        return self.apply(Operator.RESHAPE, inputs, shape, options={0: sizes}, type_=x.type)[0]

    def transpose(self, x: Tensor, *order: int) -> Tensor:
        """Return the axes in another order; four at most."""
        axes = self.constant(np.array(order), Type.INT32)
        return self.apply(Operator.TRANSPOSE, [x, axes], tuple(x.shape[n] for n in order))[0]

    def split(self, x: Tensor, axis: int, count: int) -> list[Tensor]:
        """Return `count` equal parts along an axis."""
        axis %= len(x.shape)
        shape = (*x.shape[:axis], x.shape[axis] // count, *x.shape[axis + 1 :])
        number = self.constant(np.array(axis), Type.INT32)
        return self.apply(Operator.SPLIT, [number, x], *[shape] * count, options={0: Scalar("i", count)})

    def concat(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        """Return parts of known size joined along an axis."""
        axis %= len(parts[0].shape)
        sizes = [part.shape[axis] for part in parts]
        shape = (*parts[0].shape[:axis], sum(sizes), *parts[0].shape[axis + 1 :])
        return self.apply(Operator.CONCATENATION, parts, shape, options={0: Scalar("i", axis)})[0]

    def gather(self, x: Tensor, indices: Tensor) -> Tensor:
        """Return rows of x."""
        version = 2 if x.type == Type.INT8 else 1
        shape = (*indices.shape, *x.shape[1:])
        return self.apply(Operator.GATHER, [x, indices], shape, version=version, options={}, type_=x.type)[0]

    def lookup(self, indices: Tensor, table: Tensor) -> Tensor:
        """Return rows of an int4 table as float32."""
        shape = (*indices.shape, *table.shape[1:])
        return self.apply(Operator.EMBEDDING_LOOKUP, [indices, table], shape, version=4)[0]

    def cast(self, x: Tensor) -> Tensor:
        """Return integers as float32."""
        options = {0: Scalar("b", x.type), 1: Scalar("b", Type.FLOAT32)}
        return self.apply(Operator.CAST, [x], x.shape, version=3 if x.type == Type.INT8 else 1, options=options)[0]

    def fully_connected(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return `x @ weight.T`: (N, in) by `[out, in]`; integer weights have inputs rounded to 8 bits, row by row.

        Without a bias this is version 6; inputs quantized with a zero point make it 9. Per-channel
        scales, version 12, are never written: tflite-runtime 2.14 computes them wrongly. Scales by
        block are of no version of their own; ai-edge-litert 1.4, which knows 13, computes them
        wrongly, and 2.1, which knows 14, rightly.
        """
        version = {Type.INT4: 14, Type.INT8: 9}.get(weight.type, 6)
        options: Table = {3: _true()} if version > 6 else {}
        shape = (*x.shape[:-1], weight.shape[0])
        return self.apply(Operator.FULLY_CONNECTED, [x, weight], shape, version=version, options=options)[0]

    def batch_matmul(self, a: Tensor, b: Tensor, transposed: bool = False) -> Tensor:
        """Return `a @ b` over the last two axes, or `a @ b.T`."""
        shape = (*a.shape[:-1], b.shape[-2 if transposed else -1])
        return self.apply(Operator.BATCH_MATMUL, [a, b], shape, options={1: _true()} if transposed else {})[0]

    def call(self, graph: Subgraph, arguments: Sequence[Tensor]) -> list[Tensor]:
        """Execute another subgraph: IF whose two branches are both it, the call that every runtime has."""
        always = self.constant(np.array(True), Type.BOOL)
        number = Scalar("i", graph.index)
        shapes = [tensor.shape for _, tensor in graph.outputs]
        return self.apply(Operator.IF, [always, *arguments], *shapes, options={0: number, 1: number})


def broadcast(a: Shape, b: Shape) -> Shape:
    """Return the shape of an elementwise result; a dynamic size wins over 1."""
    size = max(len(a), len(b))
    pairs = zip((1,) * (size - len(a)) + a, (1,) * (size - len(b)) + b, strict=True)
    result = tuple(y if x == 1 else x for x, y in pairs)
    assert all(y in (1, z) for shape in (a, b) for y, z in zip(reversed(shape), reversed(result), strict=False))
    return result
