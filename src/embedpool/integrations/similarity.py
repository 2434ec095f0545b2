"""How alike vectors are, by the four measures that sentence-transformers names. Arrays only; distances are negative."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedpool.errors import BadRequest

Name = Literal["cosine", "dot", "euclidean", "manhattan"]
Float32 = NDArray[np.float32]


def matrix(name: Name, left: Any, right: Any) -> Float32:
    """float32[n, m], from [n, dim] or [dim], and [m, dim] or [dim]. Raises BadRequest for a name that is none of the four."""
    _check(name)
    left, right = np.atleast_2d(_floats(left)), np.atleast_2d(_floats(right))
    if name == "dot":
        return _float32(left @ right.T)
    if name == "cosine":
        return _float32(_unit(left) @ _unit(right).T)
    # Row by row: all differences at once would be n * m * dim numbers.
    return np.stack([_pairs(name, row, right) for row in left]) if len(left) else np.zeros((0, len(right)), np.float32)


def pairwise(name: Name, left: Any, right: Any) -> Float32:
    """float32[n], from two of [n, dim]. Raises BadRequest as matrix does."""
    _check(name)
    return _pairs(name, _floats(left), _floats(right))


def _pairs(name: Name, left: Float32, right: Float32) -> Float32:
    if name == "dot":
        return _float32(np.sum(left * right, axis=-1))
    if name == "cosine":
        return _float32(np.sum(_unit(left) * _unit(right), axis=-1))
    order = 1 if name == "manhattan" else 2
    return _float32(-np.linalg.norm(left - right, ord=order, axis=-1))


def _check(name: str) -> None:
    if name not in ("cosine", "dot", "euclidean", "manhattan"):
        raise BadRequest(f"similarity_fn_name is cosine, dot, euclidean or manhattan, not {name!r}")


def _floats(vectors: Any) -> Float32:
    """Also of codes, whose sums would overflow, and of tensors and lists of either."""
    return np.asarray([np.asarray(row) for row in vectors] if isinstance(vectors, list) else vectors, np.float32)


def _unit(vectors: Float32) -> Float32:
    return _float32(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))


def _float32(found: Any) -> Float32:
    return np.asarray(found, np.float32)
