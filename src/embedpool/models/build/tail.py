"""From token states to one vector per text: pooling, Dense layers, normalisation, as sentence-transformers' modules say.

Written with operators that every version of ONNX since 11 has, because it is also put behind graphs that others exported.
A row's value does not depend on its padding: masked states add nothing, in whatever order they come.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedpool.errors import ModelError
from embedpool.models.build.safetensors import Weights
from embedpool.models.build.writer import MASK, Writer

FLOAT, INT64 = 1, 7  # onnx.TensorProto
OLDEST_OPSET = 11  # of Range


@dataclass(frozen=True, slots=True)
class Dense:
    """A sentence_transformers Dense module: its weights' file and the name of its activation, "" for none."""

    weights: Path
    activation: str


@dataclass(frozen=True, slots=True)
class Tail:
    """What comes behind the last layer, in this order. `pooling` is mean, cls or last."""

    pooling: str
    dense: tuple[Dense, ...]
    normalize: bool


def vectors(g: Writer, states: str, hidden: int, tail: Tail) -> tuple[str, int]:
    """(name, width) of float32[batch, width] from float32[batch, tokens, hidden]. `hidden` 0: not known, no Dense follows."""
    x, width = _pooled(g, states, tail.pooling), hidden
    for number, layer in enumerate(tail.dense):
        weights = Weights((layer.weights,))
        matrix = weights["linear.weight"]
        if hidden and matrix.shape[1] != width:
            raise ModelError(f"{layer.weights} takes vectors of {matrix.shape[1]}, and gets {width}: the modules do not fit")
        bias = weights["linear.bias"] if weights.has("linear.bias") else None
        x = _activated(g, g.linear(x, f"dense_{number}", matrix, bias), layer)
        width = matrix.shape[0]
    if tail.normalize:
        x = g.node("LpNormalization", x, axis=-1, p=2)
    return x, width


def _pooled(g: Writer, states: str, pooling: str) -> str:
    if pooling == "cls":
        return g.node("Gather", states, g.constant(0, "int64"), axis=1)
    mask = g.node("Cast", MASK, to=INT64)
    if pooling == "last":
        return _last(g, states, mask)
    return _mean(g, states, mask)


def _mean(g: Writer, states: str, mask: str) -> str:
    """As a matrix product: it adds tokens one after the other, so that zeros behind them change nothing, where ReduceSum's
    order depends on the length (1e-7). The product takes four at a time: a rest is filled up, or it would be told apart."""
    shares = g.node("Cast", g.node("Reshape", mask, g.ints(0, 1, -1)), to=FLOAT)
    tokens = g.node("Slice", g.node("Shape", mask), g.ints(1), g.ints(2))
    missing = g.node("Sub", g.ints(3), g.node("Mod", g.node("Add", tokens, g.ints(3)), g.ints(4)))
    behind = g.node("Concat", g.ints(0, 0, 0, 0), missing, g.ints(0), axis=0)
    along = g.node("Concat", g.ints(0, 0, 0, 0, 0), missing, axis=0)
    product = g.node("MatMul", g.node("Pad", shares, along), g.node("Pad", states, behind))
    mean = g.node("Div", product, g.sum(shares, 2))
    return g.node("Reshape", mean, g.ints(0, -1))


def _last(g: Writer, states: str, mask: str) -> str:
    """The state of each row's last real token, by its place among all rows' tokens."""
    shape = g.node("Shape", mask)
    rows, tokens = (g.node("Gather", shape, g.constant(axis, "int64")) for axis in (0, 1))
    starts = g.node("Mul", g.node("Range", g.constant(0, "int64"), rows, g.constant(1, "int64")), tokens)
    lengths = g.node("Reshape", g.sum(mask, 1), g.ints(-1))
    places = g.node("Sub", g.node("Add", starts, lengths), g.constant(1, "int64"))
    width = g.node("Slice", g.node("Shape", states), g.ints(2), g.ints(3))
    flat = g.node("Reshape", states, g.node("Concat", g.ints(-1), width, axis=0))
    return g.node("Gather", flat, places, axis=0)


def _activated(g: Writer, x: str, layer: Dense) -> str:
    name = layer.activation.rsplit(".", 1)[-1]
    if name in ("", "Identity"):
        return x
    if name in ("Tanh", "Sigmoid"):
        return g.node(name, x)
    if name == "ReLU":
        return g.node("Relu", x)
    if name == "GELU":
        half = g.node("Mul", x, g.constant(0.5))
        return g.node("Mul", half, g.node("Add", g.node("Erf", g.node("Mul", x, g.constant(0.5**0.5))), g.constant(1.0)))
    raise ModelError(f"the Dense layer of {layer.weights} has the activation {layer.activation}, which is not known here")


def dense_of(config: dict[str, Any], folder: Path) -> Dense:
    """The module in a folder such as 2_Dense. Raises ModelError if its weights are not there."""
    weights = folder / "model.safetensors"
    if not weights.is_file():
        also = " (pytorch_model.bin is not read: save the model again as safetensors)"
        reason = also if (folder / "pytorch_model.bin").is_file() else ""
        raise ModelError(f"{folder} has no model.safetensors, the Dense layer's weights{reason}")
    return Dense(weights, str(config.get("activation_function") or ""))
