"""A vector in its final form: cut, normalised, converted, written once. Pure numpy.

The order matters: a Matryoshka vector is not of unit length when it is cut, so it is normalised behind that. Everything is
computed in float64: the square of a float32 may be none, and the length is right to the last digit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedpool.shm.layout import CODES_AT, Dtype

LARGEST_CODE = 127  # of int8: symmetric, -128 is not used


class NotFinite(Exception):
    """A value is NaN or infinite, or becomes so in the type that was asked for."""


def write(
    place: NDArray[np.uint8], vector: NDArray[Any], dim: int, dtype: Dtype, normalize: bool, known: tuple[float, float] | None
) -> None:
    """Writes the first `dim` values into a row's bytes (shm.layout). Raises NotFinite, and then nothing is written.

    `vector` is float32, or a graph's uint8 whose values lie in the range `known`; those are passed on as they are where
    uint8 is asked for.
    """
    if vector.dtype == np.uint8 and dtype == "uint8":
        low, high = known or (math.nan, math.nan)
        _codes(place, vector[:dim], (high - low) / 255, low)
        return
    whole = _values(vector[:dim], known)
    square = float(np.dot(whole, whole))  # not finite if any value is not
    if not math.isfinite(square):
        raise NotFinite("is not finite: this model cannot embed it")
    if normalize and square > 0.0:
        whole /= math.sqrt(square)
    if dtype == "float32":
        place.view(np.float32)[:] = whole
    elif dtype == "float16":
        _half(place, whole)
    elif dtype in ("int8", "uint8"):
        _quantized(place, whole, dtype)
    else:
        bits = np.packbits(whole > 0)
        place[: len(bits)] = bits if dtype == "ubinary" else bits ^ 0x80  # minus 128, as int8


def _values(vector: NDArray[Any], known: tuple[float, float] | None) -> NDArray[np.float64]:
    whole = vector.astype(np.float64)
    if vector.dtype == np.uint8:
        if known is None:
            raise NotFinite("has values of an unknown range: ask for dtype uint8")
        whole *= (known[1] - known[0]) / 255
        whole += known[0]
    return whole


def _half(place: NDArray[np.uint8], whole: NDArray[np.float64]) -> None:
    with np.errstate(over="ignore"):
        half = whole.astype(np.float16)
    if not np.isfinite(half).all():
        raise NotFinite("does not fit into float16: ask for float32, or let it be normalised")
    place[: half.nbytes] = half.view(np.uint8)


def _quantized(place: NDArray[np.uint8], whole: NDArray[np.float64], dtype: Dtype) -> None:
    """Symmetric around zero, one scale per row; uint8 has the same codes, counted from -128."""
    scale = np.float32(np.abs(whole).max() / LARGEST_CODE)
    codes = np.clip(np.rint(whole / scale), -LARGEST_CODE, LARGEST_CODE) if scale > 0 else np.zeros_like(whole)
    if dtype == "int8":
        _codes(place, codes.astype(np.int8).view(np.uint8), float(scale), 0.0)
    else:
        _codes(place, (codes + 128).astype(np.uint8), float(scale), -128.0 * float(scale))


def _codes(place: NDArray[np.uint8], codes: NDArray[np.uint8], scale: float, shift: float) -> None:
    place[:CODES_AT].view(np.float32)[:] = (scale, shift)
    place[CODES_AT : CODES_AT + len(codes)] = codes
