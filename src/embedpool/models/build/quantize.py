"""Smaller weights, where a model brings none of the precision that is asked for.

q8: weights of 8 bits per output channel, and activations of 8 bits with one scale per token (eight_bits.py).
q4: MatMulNBits: weights of 4 bits in blocks of 32 with one scale each, computed in int8 (accuracy_level 4), which gives the
same bits in any batch. Made here, because the runtime's tool for it needs a computer algebra system installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from embedpool.errors import ModelError
from embedpool.models.build.complete import read_values
from embedpool.models.build.eight_bits import eight_bits
from embedpool.models.build.writer import MICROSOFT, Writer

MADE = ("q8", "q4")
BLOCK = 32
Q4 = "q4_"  # before the names of the new weights
# Of a block's largest value: cutting it off a little costs it less than a finer step gains the others.
SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8)


def quantize(
    model: onnx.ModelProto,
    source: Path,
    target: Path,
    precision: str,
    texts: Sequence[Sequence[int]] = (),
    *,
    signed: bool = True,
) -> onnx.ModelProto:
    """The model, stored at `source`, with smaller weights; new data is written beside `target`. `texts` and `signed` are those
    of eight_bits. Raises ModelError."""
    try:
        if precision == "q8":
            return eight_bits(model, source, target, texts, signed=signed)
        return _q4(model, source, target)
    except ModelError as error:
        raise ModelError(f"the model could not be quantised to {precision}: {error.message}") from error
    except OSError as error:
        raise ModelError(f"{target} cannot be written: {error.strerror}") from error
    except Exception as error:  # a graph that somebody else has made can be wrong in many ways
        raise ModelError(f"the model could not be quantised to {precision}: {error}") from error


def _q4(model: onnx.ModelProto, source: Path, target: Path) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    data_name = target.name + "_q4_data"
    replaced: set[str] = set()
    with (target.parent / data_name).open("wb") as data:
        g = Writer(data, data_name=data_name, prefix=Q4)
        for node in made.graph.node:
            tensor = constants.get(node.input[1]) if node.op_type == "MatMul" and not node.domain else None
            if tensor is None or len(tensor.dims) != 2 or tensor.dims[0] % BLOCK or tensor.data_type != TensorProto.FLOAT:
                continue
            if tensor.name not in replaced:
                codes, scales = blocks_of_4_bits(numpy_helper.to_array(tensor, str(source.parent)))
                g.weight(tensor.name, codes)
                g.weight(tensor.name + ".scales", scales)
            inputs = [node.input[0], f"{Q4}{tensor.name}", f"{Q4}{tensor.name}.scales"]
            size = {"K": tensor.dims[0], "N": tensor.dims[1], "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
            replaced.add(tensor.name)
            name = node.name
            node.CopyFrom(helper.make_node("MatMulNBits", inputs, list(node.output), name=name, domain=MICROSOFT, **size))
    if not replaced:
        raise ModelError("it has no matrix product with a constant that could be quantised")
    used = set(read_values(made.graph))
    kept = [tensor for tensor in made.graph.initializer if tensor.name not in replaced or tensor.name in used]
    del made.graph.initializer[:]
    made.graph.initializer.extend([*kept, *g.tensors])
    if MICROSOFT not in (entry.domain for entry in made.opset_import):
        made.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return made


def blocks_of_4_bits(weight: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """(codes uint8[N, K/32, 16], two to a byte, low half first; scales float32[N, K/32]) of float32[K, N].

    A value is (code - 8) * scale (ONNX Runtime, docs/ContribOperators.md, MatMulNBits). Of a few steps the one with the least
    squared error is taken, per block.
    """
    values = np.ascontiguousarray(weight.T, np.float32).reshape(weight.shape[1], -1, BLOCK)
    extreme = np.take_along_axis(values, np.abs(values).argmax(axis=2, keepdims=True), axis=2)
    widest = extreme / np.float32(-8)  # the extreme itself has the code 0
    widest[widest == 0] = 1.0
    best_scale, best_codes = widest, _codes(values, widest)
    best = _error(values, best_codes, widest)
    for share in SHRINK[1:]:
        scale = widest * np.float32(share)
        codes = _codes(values, scale)
        error = _error(values, codes, scale)
        better = error < best
        best = np.where(better, error, best)
        best_scale, best_codes = np.where(better, scale, best_scale), np.where(better, codes, best_codes)
    packed = best_codes[:, :, 0::2] | best_codes[:, :, 1::2] << 4
    return packed.astype(np.uint8), best_scale[:, :, 0].astype(np.float32)


def _codes(values: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.uint8]:
    codes: NDArray[np.uint8] = np.clip(np.rint(values / scale) + 8, 0, 15).astype(np.uint8)
    return codes


def _error(values: NDArray[np.float32], codes: NDArray[np.uint8], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.square((codes.astype(np.float32) - 8) * scale - values).sum(axis=2, keepdims=True)
    return found
