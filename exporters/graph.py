"""Writing an ONNX graph node by node, its weights going once each to a data file beside it.

The data file is ONNX "external data": tensors at multiples of 4,096 bytes, so that the runtime maps
them instead of copying them, and two initializers may lie on the same bytes. Small tensors (norm
gains, scales) stand in the graph itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from merino_edge.bundle import Piece

Array = npt.NDArray[Any]
PAGE_BYTES = 4096
INLINE_BYTES = 4096  # a tensor below one page stands in the graph


class WeightFile:
    """Appends tensors to the data file; each starts a page."""

    def __init__(self, stream: BinaryIO, location: str) -> None:
        """Write to `stream`, which will be found under the file name `location`."""
        self._stream = stream
        self._location = location
        self._end = 0
        self.layout: list[Piece] = []

    def append(self, name: str, array: Array) -> ir.ExternalTensor:
        """Write one tensor and return where it lies."""
        offset = -(-self._end // PAGE_BYTES) * PAGE_BYTES
        self._stream.write(bytes(offset - self._end))
        data = np.ascontiguousarray(array)
        self._stream.write(data.data)
        self.layout += [("zeros", offset - self._end, ""), describe_weights(data)]
        self._end = offset + data.nbytes
        return ir.ExternalTensor(
            self._location,
            offset,
            data.nbytes,
            ir.DataType.from_numpy(data.dtype),
            shape=ir.Shape(data.shape),
            name=name,
        )


class GraphWriter:
    """Collects nodes and initializers; `op` returns the value a node makes.

    A body (`with writer.body() as nodes`) collects its own nodes but shares the initializers: what a
    Scan's body reads of the outer graph is stored, and packed by the runtime, once.
    """

    def __init__(self, weights: WeightFile) -> None:
        """Start an empty graph whose weights go to `weights`."""
        self._weights = weights
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}
        self._count = 0

    def op(
        self, op_type: str, *inputs: ir.Value | None, domain: str = "", name: str | None = None, **attributes: Any
    ) -> ir.Value:
        """Add a node of one output.

        Args:
            op_type: Operator.
            inputs: Its inputs; None for an optional one left out.
            domain: Operator domain, empty for ONNX's own.
            name: Of the output; made up if None.
            attributes: Of the node.
        """
        return self.ops(op_type, *inputs, outputs=1, domain=domain, names=[name], **attributes)[0]

    def ops(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        outputs: int,
        domain: str = "",
        names: Sequence[str | None] | None = None,
        **attributes: Any,
    ) -> tuple[ir.Value, ...]:
        """Add a node of several outputs; see `op`."""
        self._count += 1
        label = f"{op_type}_{self._count}"
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs, name=label)
        for number, value in enumerate(node.outputs):
            given = names[number] if names else None
            value.name = given or (label if outputs == 1 else f"{label}.{number}")
        self._nodes.append(node)
        return tuple(node.outputs)

    def weight(self, name: str, array: Array) -> ir.Value:
        """Return the initializer `name`, storing `array` the first time it is asked for."""
        if name not in self._initializers:
            tensor = (
                ir.tensor(np.ascontiguousarray(array), name=name)
                if array.nbytes < INLINE_BYTES
                else self._weights.append(name, array)
            )
            self._initializers[name] = _initializer(name, tensor, array.shape)
        return self._initializers[name]

    def alias(self, name: str, of: str, shape: Sequence[int]) -> ir.Value:
        """Return an initializer on the same bytes as the weight `of`, in another shape."""
        if name not in self._initializers:
            tensor = self._initializers[of].const_value
            assert tensor is not None
            if isinstance(tensor, ir.ExternalTensor):
                self._initializers[name] = _initializer(name, _moved(tensor, name, shape), tuple(shape))
            else:
                self.weight(name, tensor.numpy().reshape(shape))
        return self._initializers[name]

    def stored(self, name: str) -> ir.Value:
        """Return a weight stored before."""
        return self._initializers[name]

    def constant(self, value: Any, dtype: npt.DTypeLike) -> ir.Value:
        """Return a small constant as an initializer; equal ones are one."""
        array = np.array(value, dtype)
        name = f"constant.{array.dtype.name}{list(array.shape)}.{array.tobytes().hex()[:64]}"
        if name not in self._initializers:
            self._initializers[name] = _initializer(name, ir.tensor(array, name=name), array.shape)
        return self._initializers[name]

    @contextmanager
    def body(self) -> Iterator[list[ir.Node]]:
        """Collect the nodes added inside into a list of their own."""
        outer, self._nodes = self._nodes, []
        try:
            yield self._nodes
        finally:
            self._nodes = outer

    def finish(
        self,
        inputs: Sequence[ir.Value],
        outputs: Sequence[ir.Value],
        opsets: Mapping[str, int],
        ir_version: int,
        metadata: Mapping[str, str],
    ) -> bytes:
        """Return the whole model, serialized."""
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports=dict(opsets),
            name="decoder",
        )
        model = ir.Model(graph, ir_version=ir_version, producer_name="merino-edge", metadata_props=dict(metadata))
        data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
        return data


def describe_weights(array: Array) -> Piece:
    """Describe a tensor so that one of the same kind can be made elsewhere.

    What has one sign throughout (scales, norm gains, equal zero points) becomes its median repeated; random
    integers then mean weights of the usual size, and no activation overflows or vanishes.
    """
    if array.dtype.kind == "f":
        same_sign = array.size and float(array.min()) > 0
        if not same_sign:
            return (f"float{8 * array.itemsize}", array.nbytes, "")
        value = np.median(array).astype(array.dtype)
    else:
        if array.size == 0 or array.min() != array.max():
            return ("integers", array.nbytes, "")
        value = array.flat[0]
    return ("repeat", array.nbytes, value.tobytes().hex())


def typed(name: str, dtype: ir.DataType, *shape: int | str) -> ir.Value:
    """Return a graph input of a type and shape; a string names a dimension that varies."""
    return ir.val(name, dtype, list(shape))


def annotate(value: ir.Value, dtype: ir.DataType, *shape: int | str) -> ir.Value:
    """Give a graph's output its type and shape."""
    value.type = ir.TensorType(dtype)
    value.shape = ir.Shape(shape)
    return value


def _moved(tensor: ir.ExternalTensor, name: str, shape: Sequence[int]) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        tensor.location, tensor.offset, tensor.length, tensor.dtype, shape=ir.Shape(shape), name=name
    )


def _initializer(name: str, tensor: ir.TensorProtocol, shape: tuple[int, ...]) -> ir.Value:
    return ir.val(name, tensor.dtype, shape, const_value=tensor)
