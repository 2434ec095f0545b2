"""Writes an ONNX graph node by node, or adds nodes to one that exists. Knows no model family.

Every value is named by the node that makes it; a method returns the name of what it made. With a data file, weights go
straight into it and are never in memory together: a 0.6 B model is built within what its largest tensor needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators, docs/ContribOperators.md in its repository
OPSET = 20
DATA = "model.onnx_data"
ALIGN = 4096  # external data is mapped: each tensor at a page of its own
IDS, MASK, OUTPUT = "input_ids", "attention_mask", "sentence_embedding"


class Writer:
    """A graph with the inputs int64[batch, tokens] IDS and MASK. `data` is the open file for the weights; without one they
    are kept in the graph. `opset` is the version of ONNX's own operators, of a graph that exists its own."""

    def __init__(self, data: BinaryIO | None = None, opset: int = OPSET, prefix: str = "", data_name: str = DATA) -> None:
        self.opset = opset
        self.made: list[onnx.NodeProto] = []
        self.tensors: list[TensorProto] = []
        self._data = data
        self._data_name = data_name
        self._prefix = prefix
        self._known: dict[tuple[str, bytes], str] = {}
        self._count = 0

    def weight(self, name: str, values: NDArray[Any]) -> str:
        """A large constant, stored in the data file if there is one."""
        values, name = np.ascontiguousarray(values), self._prefix + name
        if self._data is None:
            self.tensors.append(numpy_helper.from_array(values, name))
            return name
        self._data.write(b"\0" * (-self._data.tell() % ALIGN))
        tensor = TensorProto()
        tensor.name = name
        tensor.dims.extend(values.shape)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": self._data_name, "offset": self._data.tell(), "length": values.nbytes}
        for key, value in place.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
        self._data.write(values.data)
        self.tensors.append(tensor)
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """A small constant, inside the graph; the same one only once."""
        array = np.asarray(value, dtype)
        key = (f"{array.dtype}{array.shape}", array.tobytes())
        if key not in self._known:
            self._known[key] = f"{self._prefix}constant_{len(self._known)}"
            self.tensors.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def node(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """The one output of a new node. An input "" is left out."""
        return self.nodes(op, inputs, 1, domain, **attributes)[0]

    def nodes(self, op: str, inputs: Sequence[str], outputs: int, domain: str = "", **attributes: Any) -> list[str]:
        self._count += 1
        name = f"{self._prefix}{op}_{self._count}"
        made = [name.lower() + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
        self.made.append(helper.make_node(op, inputs, made, name=name, domain=domain, **attributes))
        return made

    def linear(self, x: str, name: str, weight: NDArray[Any], bias: NDArray[Any] | None = None) -> str:
        """x · weightᵀ + bias, the weight as PyTorch stores it: [out, in]."""
        y = self.node("MatMul", x, self.weight(name + ".weight", weight.T))
        return y if bias is None else self.node("Add", y, self.weight(name + ".bias", bias))

    def sum(self, x: str, axis: int) -> str:
        """The sum over one axis, which is kept. (The axis was an attribute until version 13.)"""
        if self.opset < 13:
            return self.node("ReduceSum", x, axes=[axis], keepdims=1)
        return self.node("ReduceSum", x, self.ints(axis), keepdims=1)

    def split(self, x: str, widths: Sequence[int]) -> list[str]:
        """x cut along its last axis."""
        return self.nodes("Split", [x, self.ints(*widths)], len(widths), axis=-1)

    def model(self, output: str, width: int) -> onnx.ModelProto:
        """The finished model; `output` is renamed OUTPUT, float32[batch, width]."""
        self.made.append(helper.make_node("Identity", [output], [OUTPUT]))
        made = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", width])
        graph = helper.make_graph(self.made, "embedpool", [int64_input(IDS), int64_input(MASK)], [made], self.tensors)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="embedpool")


def int64_input(name: str) -> onnx.ValueInfoProto:
    """int64[batch, tokens]."""
    return helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])


def save(model: onnx.ModelProto, path: Path) -> None:
    """The graph; its data is in place already."""
    path.write_bytes(model.SerializeToString())
