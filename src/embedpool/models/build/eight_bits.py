"""Weights and activations of 8 bits (q8), where a model brings none: each token's activations have a scale of their own.

    scale[row] = max |x[row]| / 127          codes = round(x / scale) + 128      (or by the row's own range, see 3)
    x · W      = scale[row] · (codes - 128) · W8 · scale[column]     with W8 = round(W / scale[column])

1. Nothing is computed over more than one token: a text's vector is the same alone and in any batch, and texts run together.
   (ONNX Runtime's own dynamic quantiser has one scale for the whole tensor: one outlier makes every token's steps coarse.)
2. Channels that are large in every text are divided by a factor that their weights are multiplied with: exact before rounding
   (SmoothQuant, arXiv 2211.10438). The factors, from the root mean square of each channel on a few texts, go into the norm in
   front where nothing else reads it, and are a product of their own elsewhere.
3. Activations that lie on one side of zero, as behind GELU, have a zero point per row: twice as many steps. What that adds to
   the product is taken off it again.

Measured (MiniLM, 100 docstrings, cosine to fp32, mean and worst): one scale per tensor 0.9924 and 0.981; per row 0.9979 and
0.9969; with 2 0.9990 and 0.9982; with 3 0.9993 and 0.9987. It takes about as long as one scale per tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from embedpool.errors import ModelError
from embedpool.models.build.complete import read_values
from embedpool.models.build.statistics import Channels, measured
from embedpool.models.build.writer import MICROSOFT, Writer

PREFIX = "q8_"  # before the names of what is added
SMOOTH = 0.5  # how much of a channel's size its weights take over: 0.45 to 0.6 are alike
ONE_SIDED = 0.75  # of twice the largest magnitude, a row's range: below it a zero point per row gains more than it costs
PER_ROW = 13  # the version of ONNX from which on QuantizeLinear has scales along an axis
LEAST = 1e-12  # for what is divided by: a row, a channel or a column of nothing but zeros
# norm -> the inputs that scale its output. SkipLayerNormalization's fifth is added in front of it.
NORMS = {
    "LayerNormalization": (1, 2),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
}

Floats = NDArray[np.float32]


@dataclass(slots=True)
class _Input:
    """A value that products read. `factors` are multiplied into their weights, and divided out of it: by the norm that makes
    it (`in_norm`), or by a product of its own."""

    name: str
    products: list[onnx.NodeProto]
    factors: Floats | None = None
    in_norm: bool = False
    one_sided: bool = False


@dataclass(frozen=True, slots=True)
class _Coded:
    """Names of a value's codes uint8[rows, width] and of float32[rows, 1] to multiply with; of the codes' zero points
    float32[rows, 1], "" where all have 128; and of the value's shape but for its last axis."""

    codes: str
    scale: str
    zero: str
    shape: str


def eight_bits(
    model: onnx.ModelProto, source: Path, target: Path, texts: Sequence[Sequence[int]], *, signed: bool
) -> onnx.ModelProto:
    """The model, stored at `source`, with every product with a constant in 8 bits; the new weights are written beside `target`.

    `texts` are token ids on which the sizes of channels are measured; without any, 2 and 3 are left out. `signed`: weights are
    int8, else uint8 with the same values and sums. Raises ModelError where nothing can be quantised.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    inputs = _inputs(made.graph, constants)
    if not inputs:
        raise ModelError("it has no matrix product with a constant that could be quantised")
    channels = measured(model, source, list(inputs), texts) if texts else {}
    data_name = target.name + "_q8_data"
    opset = next(entry.version for entry in made.opset_import if entry.domain in ("", "ai.onnx"))
    with (target.parent / data_name).open("wb") as data:
        work = _Work(made.graph, constants, source.parent, Writer(data, opset, PREFIX, data_name), signed)
        work.smooth(inputs, channels)
        work.replace(inputs)
    used = set(read_values(made.graph))
    kept = [tensor for tensor in made.graph.initializer if tensor.name in used]
    del made.graph.initializer[:]
    made.graph.initializer.extend([*kept, *work.g.tensors])
    if MICROSOFT not in (entry.domain for entry in made.opset_import):
        made.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return made


def _inputs(graph: onnx.GraphProto, constants: Mapping[str, TensorProto]) -> dict[str, _Input]:
    """What the products with a constant matrix read, by name."""
    found: dict[str, _Input] = {}
    for node in graph.node:
        tensor = constants.get(node.input[1]) if node.op_type == "MatMul" and not node.domain else None
        if tensor is not None and len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT:
            found.setdefault(node.input[0], _Input(node.input[0], [])).products.append(node)
    return found


@dataclass(slots=True)
class _Work:
    graph: onnx.GraphProto
    constants: Mapping[str, TensorProto]
    place: Path
    g: Writer
    signed: bool

    def values(self, name: str) -> Floats:
        values: Floats = numpy_helper.to_array(self.constants[name], str(self.place))
        return values

    # ── factors ──

    def smooth(self, inputs: Mapping[str, _Input], channels: Mapping[str, Channels]) -> None:
        """Decides on factors and zero points; factors go into norms where that changes nothing else."""
        readers = Counter([*read_values(self.graph), *(output.name for output in self.graph.output)])
        makers = {node.output[0]: node for node in self.graph.node}
        for name in channels:
            each = inputs[name]
            largest = np.maximum.reduce([np.abs(self.values(node.input[1])).max(axis=1) for node in each.products])
            each.factors = factors_of(channels[name].size, largest)
            each.one_sided = channels[name].share_of_range < ONE_SIDED and self.g.opset >= PER_ROW
            if name in makers and readers[name] == len(each.products):
                each.in_norm = self._into_norm(makers[name], each.factors)

    def _into_norm(self, norm: onnx.NodeProto, factors: Floats) -> bool:
        places = [i for i in NORMS.get(norm.op_type, ()) if i < len(norm.input) and norm.input[i]]
        if not places or any(norm.input[i] not in self.constants for i in places):
            return False
        for i in places:
            name = f"{norm.output[0]}.{norm.input[i]}"
            norm.input[i] = self.g.weight(name, self.values(norm.input[i]) / factors)
        return True

    # ── products ──

    def replace(self, inputs: Mapping[str, _Input]) -> None:
        """Each product by what gives the same value in 8 bits, in its place: nodes stay in an order in which they can run."""
        products = {id(node): each for each in inputs.values() for node in each.products}
        coded: dict[str, _Coded] = {}
        weights: dict[tuple[str, str], tuple[str, str, str]] = {}
        nodes: list[onnx.NodeProto] = []
        for node in self.graph.node:
            each = products.get(id(node))
            if each is None:
                nodes.append(node)
                continue
            if each.name not in coded:
                coded[each.name] = self._coded(each)
            key = (node.input[1], each.name)
            if key not in weights:
                weights[key] = self._weight(node.input[1], each, str(len(weights)))
            self._product(node, coded[each.name], weights[key])
            nodes += self.g.made
            self.g.made.clear()
        del self.graph.node[:]
        self.graph.node.extend(nodes)

    def _coded(self, each: _Input) -> _Coded:
        g, x = self.g, each.name
        width = self.constants[each.products[0].input[1]].dims[0]
        shape = g.node("Slice", g.node("Shape", x), g.ints(0), g.ints(-1))
        if each.factors is not None and not each.in_norm:
            x = g.node("Mul", x, g.weight(f"{x}.factors", 1 / each.factors))
        rows = g.node("Reshape", x, g.ints(-1, width))
        if each.one_sided:
            # Zero is always among the values that have a code: the zero point has to be one.
            high = g.node("Max", self._most("ReduceMax", rows), g.constant(0.0))
            low = g.node("Min", self._most("ReduceMin", rows), g.constant(0.0))
            scale = self._divisible(g.node("Mul", g.node("Sub", high, low), g.constant(1 / 254)))
            zero = g.node("Round", g.node("Neg", g.node("Div", low, scale)))
            codes = g.node("Cast", zero, to=TensorProto.UINT8)
        else:
            scale = self._divisible(g.node("Mul", self._most("ReduceMax", g.node("Abs", rows)), g.constant(1 / 127)))
            zero, codes = "", g.node("Expand", g.constant(128, np.uint8), g.node("Shape", scale))
        return _Coded(self._quantized(rows, scale, codes), self._column(scale), zero and self._column(zero), shape)

    def _quantized(self, rows: str, scale: str, zero: str) -> str:
        if self.g.opset < PER_ROW:
            rows = self.g.node("Div", rows, self._column(scale))
            return self.g.node("QuantizeLinear", rows, self.g.constant(1.0), self.g.constant(128, np.uint8))
        return self.g.node("QuantizeLinear", rows, scale, zero, axis=0)

    def _most(self, op: str, rows: str) -> str:
        """float32[rows]. (Axes were an attribute until version 18.)"""
        if self.g.opset < 18:
            return self.g.node(op, rows, axes=[1], keepdims=0)
        return self.g.node(op, rows, self.g.ints(1), keepdims=0)

    def _divisible(self, scale: str) -> str:
        return self.g.node("Max", scale, self.g.constant(LEAST))

    def _column(self, row: str) -> str:
        return self.g.node("Reshape", row, self.g.ints(-1, 1))

    def _weight(self, name: str, each: _Input, number: str) -> tuple[str, str, str]:
        """Names of the codes, the scale of each column, and what each column adds up to per step of a row's zero point."""
        values = self.values(name)
        if each.factors is not None:
            values = values * each.factors[:, None]
        codes, scales = columns_of_8_bits(values)
        stored = codes if self.signed else (codes.astype(np.int16) + 128).astype(np.uint8)
        sums = codes.sum(axis=0, dtype=np.int32).astype(np.float32) * scales
        own = f"{name}.{number}"
        return self.g.weight(own, stored), self.g.weight(own + ".scale", scales), self.g.weight(own + ".sums", sums)

    def _product(self, node: onnx.NodeProto, x: _Coded, weight: tuple[str, str, str]) -> None:
        g, (codes, scales, sums) = self.g, weight
        zero_of_x = g.constant(0 if x.zero else 128, np.uint8)
        zero_of_w = g.constant(0, np.int8) if self.signed else g.constant(128, np.uint8)
        given = (x.codes, codes, g.constant(1.0), scales, zero_of_x, zero_of_w)
        y = g.node("MatMulIntegerToFloat", *given, domain=MICROSOFT)
        if x.zero:
            y = g.node("Sub", y, g.node("Mul", x.zero, sums))
        y = g.node("Mul", y, x.scale)
        g.node("Reshape", y, g.node("Concat", x.shape, g.ints(-1), axis=0))
        g.made[-1].output[0] = node.output[0]


def factors_of(sizes: Floats, largest: Floats) -> Floats:
    """float32[channels] to divide activations by and to multiply weights with, of geometric mean 1, from the root mean square
    of each channel and the largest magnitude of its weights."""
    factors = np.maximum(sizes, LEAST) ** SMOOTH / np.maximum(largest, LEAST) ** (1 - SMOOTH)
    even: Floats = (factors / np.exp(np.log(factors).mean())).astype(np.float32)
    return even


def columns_of_8_bits(weight: NDArray[Any]) -> tuple[NDArray[np.int8], Floats]:
    """(codes int8[K, N] from -127 to 127, scales float32[N]) of float32[K, N]; a value is code * scale."""
    scales = (np.maximum(np.abs(weight).max(axis=0), LEAST) / 127).astype(np.float32)
    return np.clip(np.rint(weight / scales), -127, 127).astype(np.int8), scales
