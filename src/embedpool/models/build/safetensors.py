"""Reads safetensors files: tensors by name as float32, through a memory map, so that only one is in memory at a time.

The format is a little-endian length, a JSON header, and raw tensors (https://github.com/huggingface/safetensors). The
library of that name gives no bfloat16 to numpy, which is what most weights are stored as.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedpool.errors import ModelError

LONGEST_HEADER_BYTES = 100_000_000  # the format's own limit
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies: bytes [begin, end) of a file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Weights:
    """The tensors of one or several files, by name. `prefix` is left out of the names of those that have it."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self._stored: dict[str, Stored] = {}
        self.files = files
        for file in files:
            self._stored |= _header(file)
        self._unread = set(self._stored)

    def has(self, name: str) -> bool:
        return self._name(name) in self._stored

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """float32 of the stored shape. Raises ModelError if there is no such tensor."""
        found = self._stored.get(self._name(name))
        if found is None:
            raise ModelError(f"{self.files[0]} has no tensor {name}: it is damaged, or not of the architecture in config.json")
        self._unread.discard(self._name(name))
        return _values(found)

    def unread(self) -> list[str]:
        """The tensors that nobody asked for: a graph that leaves weights out is not the model."""
        return sorted(self._unread)

    def _name(self, name: str) -> str:
        # Saved from a model with a head, every name begins with the body's: "bert.", "model.", "roberta.".
        if name in self._stored:
            return name
        for prefix in ("model.", "bert.", "roberta.", "0.auto_model."):
            if prefix + name in self._stored:
                return prefix + name
        return name


def _header(file: Path) -> dict[str, Stored]:
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > min(LONGEST_HEADER_BYTES, size - 8):
                raise ModelError(f"{file} is not a safetensors file, or was not downloaded whole")
            rows: dict[str, Any] = json.loads(opened.read(length))
        rows.pop("__metadata__", None)
        stored = {name: _stored(file, row, 8 + length) for name, row in rows.items()}
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ModelError(f"{file} has a header that cannot be read: {error}") from error
    if any(not 8 + length <= tensor.begin <= tensor.end <= size for tensor in stored.values()):
        raise ModelError(f"{file} has {size} bytes, fewer than its header names: it was not downloaded whole")
    return stored


def _stored(file: Path, row: dict[str, Any], start: int) -> Stored:
    begin, end = row["data_offsets"]
    return Stored(file, str(row["dtype"]), tuple(map(int, row["shape"])), start + int(begin), start + int(end))


def _values(stored: Stored) -> NDArray[np.float32]:
    item = _ITEM_BYTES.get(stored.dtype)
    if item is None:
        raise ModelError(f"{stored.file} holds weights of type {stored.dtype}; known are {', '.join(_ITEM_BYTES)}")
    count = math.prod(stored.shape)
    if min(stored.shape, default=0) < 0 or count * item != stored.end - stored.begin:
        raise ModelError(f"{stored.file} has a tensor of {stored.end - stored.begin} bytes for the shape {stored.shape}")
    raw = np.memmap(stored.file, np.uint8, "r", stored.begin, (stored.end - stored.begin,))
    if stored.dtype == "BF16":  # the upper half of a float32
        bits = raw.view("<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(stored.shape)
    kind = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[stored.dtype]
    return np.asarray(raw.view(kind), np.float32).reshape(stored.shape)
