"""Graphs that others exported, brought to one form: int64[batch, tokens] IDS and MASK in, one vector per text out.

What an export asks for beyond these two is computed in the graph (token types, positions, empty caches), and what it leaves
to its user (pooling and what follows, by the model's own files) is put behind it. Outputs are chosen by name, because exports
differ in their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import TensorProto, helper

from embedpool.errors import ModelError
from embedpool.models.build.tail import FLOAT, INT64, OLDEST_OPSET, Tail, vectors
from embedpool.models.build.writer import IDS, MASK, OUTPUT, Writer, int64_input

TOKEN_OUTPUTS = ("last_hidden_state", "token_embeddings")  # one vector per token
_PREFIX = "embedpool_"  # of what is added: names of the export are never taken
# Operators whose scale is computed over everything they are given, neighbours and padding included.
_WHOLE_TENSOR = {"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}


@dataclass(frozen=True, slots=True)
class Completed:
    """`one_by_one`: values depend on what runs together, so that each text must run alone."""

    model: onnx.ModelProto
    output: Literal["float32", "uint8"]
    one_by_one: bool


def read(path: Path) -> onnx.ModelProto:
    """The graph without its external data. Raises ModelError."""
    try:
        return onnx.load_model(str(path), load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # protobuf's own types, which differ between its versions
        raise ModelError(f"{path} is not an ONNX file, or was not downloaded whole: {error}") from error


def external_files(model: onnx.ModelProto, path: Path) -> list[Path]:
    """The data files that the graph names, each beside it. Raises ModelError if one is missing or lies elsewhere."""
    names: dict[str, int] = {}
    for tensor in (t for part in (model.graph, *model.functions) for t in _tensors(part)):
        if tensor.data_location == TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            try:
                end = int(place.get("offset", 0)) + int(place.get("length", 0))
            except ValueError as error:
                raise ModelError(f"{path} does not say where its weights lie: {error}") from error
            names[place.get("location", "")] = max(names.get(place.get("location", ""), 0), end)
    files = []
    for name, end in sorted(names.items()):
        file = path.parent / name
        if not name or file.parent != path.parent or name == "..":
            raise ModelError(f"{path} keeps weights in {name!r}, which is not in its own directory: export it again")
        if not file.is_file():
            raise ModelError(f"{path} keeps its weights in {name}, which is missing: put it beside the graph, by that name")
        size = file.stat().st_size
        if size < end:
            raise ModelError(f"{file} has {size} bytes, and {path.name} needs {end}: it was not downloaded whole")
        files.append(file)
    return files


def complete(model: onnx.ModelProto, path: Path, tail: Tail | None, hidden: int = 0) -> Completed:
    """Changes the model in place. `tail` None: the files say nothing of it, and a graph that needs it is refused."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        raise ModelError(f"{path} uses version {opset} of ONNX's operators, at least {OLDEST_OPSET} is needed: export it again")
    graph = model.graph
    front = Writer(opset=opset, prefix=_PREFIX)
    back = Writer(opset=opset, prefix=_PREFIX + "behind_")
    _inputs(graph, front, path)
    output, kind = _output(graph, back, path, tail, hidden)
    for node in reversed(front.made):
        graph.node.insert(0, node)
    graph.node.extend(back.made)
    graph.initializer.extend([*front.tensors, *back.tensors])
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(output, kind, ["batch", None]))
    uint8 = kind != FLOAT
    return Completed(model, "uint8" if uint8 else "float32", one_by_one(model))


def one_by_one(model: onnx.ModelProto) -> bool:
    """Whether values depend on what runs together, so that each text must run alone."""
    return any(op in _WHOLE_TENSOR for op in _operators(model))


def precision(model: onnx.ModelProto) -> str:
    """What the graph computes with: q4, q8, fp16 or fp32."""
    bits = {
        attribute.i
        for node in model.graph.node
        if node.op_type == "MatMulNBits"
        for attribute in node.attribute
        if attribute.name == "bits"
    }
    if bits:
        return f"q{min(bits)}"
    codes = (TensorProto.INT8, TensorProto.UINT8)
    if any(tensor.data_type in codes and len(tensor.dims) > 1 for tensor in _tensors(model.graph)):
        return "q8"
    return "fp16" if has_float16(model) else "fp32"


def no_pooling(directory: Path) -> str:
    return f"{directory} does not say how tokens become one vector (no 1_Pooling/config.json): give --pooling"


# ── inputs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _inputs(graph: onnx.GraphProto, g: Writer, path: Path) -> None:
    """Leaves IDS and MASK as the graph's inputs, and makes in `g` what else it expects."""
    constant = {tensor.name for tensor in graph.initializer}
    asked = [value for value in graph.input if value.name not in constant]
    if IDS not in (value.name for value in asked):
        raise ModelError(f"{path} has no input {IDS}: it is not a text encoder, or was exported in another form")
    unknown = []
    for value in asked:
        kind = value.type.tensor_type.elem_type
        if value.name in (IDS, MASK):
            if kind != INT64:
                _rename(graph, value.name, _PREFIX + value.name)
                _named(g, g.node("Cast", value.name, to=kind), _PREFIX + value.name)
        elif value.name == "token_type_ids":
            _named(g, g.node("Cast", g.node("Mul", IDS, g.constant(0, "int64")), to=kind), value.name)
        elif value.name == "position_ids":
            _named(g, g.node("Cast", _positions(g), to=kind), value.name)
        elif value.name.startswith("past_key_values."):
            _named(g, _no_past(g, value, path), value.name)
        else:
            unknown.append(value.name)
    if unknown:
        raise ModelError(f"{path} has inputs that are not known here: {', '.join(sorted(unknown))}")
    for value in asked:
        graph.input.remove(value)
    graph.input.extend([int64_input(IDS), int64_input(MASK)])


def _named(g: Writer, made: str, name: str) -> None:
    """Gives what was made last the name under which the graph reads it."""
    assert g.made[-1].output[0] == made
    g.made[-1].output[0] = name


def _positions(g: Writer) -> str:
    """int64[batch, tokens]: 0, 1, 2 … in every row; padding is behind the tokens."""
    tokens = g.node("Gather", g.node("Shape", IDS), g.constant(1, "int64"))
    row = g.node("Range", g.constant(0, "int64"), tokens, g.constant(1, "int64"))
    return g.node("Add", g.node("Mul", IDS, g.constant(0, "int64")), row)


def _no_past(g: Writer, value: onnx.ValueInfoProto, path: Path) -> str:
    """A cache of no tokens: [batch, heads, 0, head size]."""
    dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    if len(dims) != 4 or not dims[1] or not dims[3]:
        raise ModelError(f"{path} has the input {value.name} of a shape that is not known here")
    rows = g.node("Slice", g.node("Shape", IDS), g.ints(0), g.ints(1))
    shape = g.node("Concat", rows, g.ints(dims[1], 0, dims[3]), axis=0)
    kind = value.type.tensor_type.elem_type
    return g.node("ConstantOfShape", shape, value=helper.make_tensor("zero", kind, [1], [0.0]))


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Every use of a value, also in the branches of If and Loop."""
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new
        for branch in _branches(node):
            _rename(branch, old, new)


# ── output ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _output(graph: onnx.GraphProto, g: Writer, path: Path, tail: Tail | None, hidden: int) -> tuple[str, int]:
    """(name, element type) of the graph's one output from now on."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.output}
    if OUTPUT in kinds:
        if kinds[OUTPUT] in (FLOAT, TensorProto.UINT8):
            return OUTPUT, kinds[OUTPUT]
        if kinds[OUTPUT] not in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
            name = TensorProto.DataType.Name(kinds[OUTPUT]).lower()
            raise ModelError(f"{path} gives vectors of type {name}: known are float and uint8")
        return g.node("Cast", OUTPUT, to=FLOAT), FLOAT
    found = next((name for name in TOKEN_OUTPUTS if name in kinds), "")
    if not found:
        wanted = ", ".join((OUTPUT, *TOKEN_OUTPUTS))
        raise ModelError(f"{path} has the outputs {', '.join(kinds)}: one of {wanted} is needed")
    if tail is None:
        raise ModelError(no_pooling(path.parent))
    states = found if kinds[found] == FLOAT else g.node("Cast", found, to=FLOAT)
    return vectors(g, states, hidden, tail)[0], FLOAT


# ── walking ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _branches(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _tensors(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[TensorProto]:
    if isinstance(graph, onnx.GraphProto):
        yield from graph.initializer
    for node in graph.node:
        yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))
        for branch in _branches(node):
            yield from _tensors(branch)


def read_values(graph: onnx.GraphProto) -> Iterator[str]:
    """The name of every value that a node reads, also in the branches of If and Loop."""
    for node in graph.node:
        yield from node.input
        for branch in _branches(node):
            yield from read_values(branch)


def _operators(model: onnx.ModelProto) -> Iterator[str]:
    waiting: list[Any] = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        for node in graph.node:
            yield node.op_type
            waiting += _branches(node)


def has_float16(model: onnx.ModelProto) -> bool:
    """Whether any weight or cast makes values of 16 bits."""
    casts = (a.i for node in model.graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to")
    return TensorProto.FLOAT16 in casts or any(t.data_type == TensorProto.FLOAT16 for t in _tensors(model.graph))
