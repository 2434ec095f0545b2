"""A room's bytes as the numpy array that a caller wants: a view, never a copy. The bytes are those of shm.layout."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedpool.shm.layout import CODES_AT, Dtype, row_bytes

_PLAIN = {"float32": "<f4", "float16": "<f2", "binary": "i1", "ubinary": "u1"}


@lru_cache(maxsize=64)
def coded(dim: int, dtype: Dtype) -> np.dtype[Any]:
    """The record of one int8 or uint8 row: fields scale, shift, values."""
    kinds = ["<f4", "<f4", ("i1" if dtype == "int8" else "u1", (dim,))]
    names = ["scale", "shift", "values"]
    return np.dtype({"names": names, "formats": kinds, "offsets": [0, 4, CODES_AT], "itemsize": row_bytes(dim, dtype)})


def view(raw: NDArray[np.uint8], rows: int, dim: int, dtype: Dtype) -> NDArray[Any]:
    """float32 and float16 [rows, dim]; binary and ubinary int8 and uint8[rows, ⌈dim / 8⌉]; int8 and uint8: records [rows] with
    the fields `values` (int8 or uint8[dim]), `scale` and `shift` (float32). `raw` is the whole room."""
    if dtype == "float32":
        return raw.view(np.float32).reshape(rows, dim)
    if dtype in ("int8", "uint8"):
        return raw.view(coded(dim, dtype))
    count = dim if dtype == "float16" else -(-dim // 8)
    kind = np.dtype(_PLAIN[dtype])
    return raw.reshape(rows, row_bytes(dim, dtype))[:, : count * kind.itemsize].view(kind)


def empty(rows: int, dim: int, dtype: Dtype) -> NDArray[Any]:
    """An array of the same form with memory of its own."""
    return view(np.zeros(rows * row_bytes(dim, dtype), np.uint8), rows, dim, dtype)


def dequantized(rows: NDArray[Any]) -> NDArray[np.float32]:
    """float32[n, dim] from the records of dtype "int8" or "uint8": values * scale + shift, row by row."""
    codes = rows["values"].astype(np.float32)
    result: NDArray[np.float32] = codes * rows["scale"][..., None] + rows["shift"][..., None]
    return result
