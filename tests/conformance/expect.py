"""Whether what came is what a transcript says. Pure: values in, "" or a sentence of what differs out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.conformance.transcript import Rows

# Fields that a sender may leave out, and what their absence says (docs/protocol.md).
DEFAULTS: dict[str, dict[str, Any]] = {
    "welcome": {"segment": "", "segment_bytes": 0, "warning": ""},
    "vectors": {"inline": False},
    "refused": {"retryable": False, "retry_after_ms": None, "row": None},
}
NAME = re.compile(r"\$(\w+)([+-]\d+)?")
TYPES = {"any": object, "int": int, "text": str}


def filled(value: Any, known: Mapping[str, Any]) -> Any:
    """A value as it is sent, with what the session's welcome has said. Raises KeyError for what it has not."""
    match value:
        case {"many": [text, n]}:
            return [filled(text, known)] * int(filled(n, known))
        case {"long": n}:
            return "x" * int(filled(n, known))
        case {"words": n}:
            return "word " * int(filled(n, known))
        case dict():
            return {name: filled(each, known) for name, each in value.items()}
        case list():
            return [filled(each, known) for each in value]
        case str() if (found := NAME.fullmatch(value)) is not None:
            return known[found[1]] + int(found[2]) if found[2] else known[found[1]]
    return value


def difference(pattern: Any, came: Any, known: Mapping[str, Any], where: str = "it") -> str:
    """Where a received value is not what the pattern says; "" for nowhere."""
    if isinstance(pattern, dict):
        return _fields(pattern, came, known, where)
    if isinstance(pattern, list):
        if not isinstance(came, list) or len(came) != len(pattern):
            return f"{where} is {came!r}, not a list of {len(pattern)}"
        each = [
            difference(one, other, known, f"{where}[{i}]") for i, (one, other) in enumerate(zip(pattern, came, strict=True))
        ]
        return next(filter(None, each), "")
    if isinstance(pattern, str) and pattern.startswith("$"):
        return _named(pattern, came, known, where)
    same = type(came) is type(pattern) and came == pattern
    return "" if same else f"{where} is {came!r}, not {pattern!r}"


def _fields(pattern: Mapping[str, Any], came: Any, known: Mapping[str, Any], where: str) -> str:
    if not isinstance(came, dict):
        return f"{where} is {came!r}, not a map"
    came = {**DEFAULTS.get(str(came.get("kind")), {}), **came}
    for name, wanted in pattern.items():
        if name not in came:
            return f"{where} has no {name}"
        found = difference(wanted, came[name], known, name if where == "it" else f"{where}.{name}")
        if found:
            return found
    return ""


def _named(pattern: str, came: Any, known: Mapping[str, Any], where: str) -> str:
    if pattern.startswith("$is "):
        return "" if came in pattern.split()[1:] else f"{where} is {came!r}, not one of {pattern[4:]}"
    kind = TYPES.get(pattern[1:])
    if kind is None:
        return difference(filled(pattern, known), came, known, where)
    right = isinstance(came, kind) and type(came) is not (bool if kind is int else None) and came != ""
    return "" if right or kind is object else f"{where} is {came!r}, not {pattern[1:]}"


def row_bytes(dim: int, dtype: str) -> int:
    """Of one row, filled up to four bytes; the table of docs/protocol.md."""
    n = {"float32": 4 * dim, "float16": 2 * dim, "int8": 8 + dim, "uint8": 8 + dim}.get(dtype, -(-dim // 8))
    return -(-n // 4) * 4


def wrong_rows(wanted: Rows, raw: bytes, dim: int) -> str:
    """What is wrong with a room's bytes; "" for nothing."""
    size = row_bytes(dim, wanted.dtype)
    if len(raw) != wanted.rows * size:
        return f"{len(raw)} bytes of vectors, not {wanted.rows} rows of {size} bytes"
    rows = [raw[i * size : (i + 1) * size] for i in range(wanted.rows)]
    if wanted.equal and len(set(rows)) > 1:
        return "equal texts have vectors that differ"
    if not wanted.equal and len(set(rows)) < len(rows):
        return "different texts have the same vector"
    for i, row in enumerate(rows):
        length = _length(row, dim, wanted.dtype)
        if not abs(length - 1.0) < 0.02:  # int8 has steps of 1/127 of the largest value; NaN is not less than anything
            return f"row {i} has length {length:.4f}, not 1"
    return ""


def _length(row: bytes, dim: int, dtype: str) -> float:
    """Of the vector that a row says; 1 for bits, which say none."""
    if dtype in ("float32", "float16"):
        kind = "<f4" if dtype == "float32" else "<f2"
        return float(np.linalg.norm(np.frombuffer(row, kind, dim).astype(np.float64)))
    if dtype in ("int8", "uint8"):
        scale, shift = np.frombuffer(row, "<f4", 2).astype(np.float64)
        return float(np.linalg.norm(np.frombuffer(row, dtype, dim, 8) * scale + shift))
    return 1.0
