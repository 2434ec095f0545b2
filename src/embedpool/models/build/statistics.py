"""How large values inside a graph are on a few texts, which decides how they are quantised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from embedpool.models.build.writer import IDS, MASK

MEASURED = "measured.onnx"


@dataclass(frozen=True, slots=True)
class Channels:
    """Of a value [..., channels]: `size` is the root mean square of each channel over all tokens, float32[channels];
    `share_of_range` how wide a token's own range, zero included, is, as a share of twice its largest magnitude: 1 if it is
    symmetric, a half if it lies on one side of zero; the mean over all tokens."""

    size: NDArray[np.float32]
    share_of_range: float


def measured(model: onnx.ModelProto, source: Path, names: Sequence[str], texts: Sequence[Sequence[int]]) -> dict[str, Channels]:
    """Of these values of the model, which is stored at `source`; a graph that gives them is written beside it for as long as
    this takes. `texts` are token ids. Raises ModelError."""
    from embedpool.models.session import open_session

    graph = source.with_name(MEASURED)
    told = onnx.ModelProto()
    told.CopyFrom(model)
    told.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    graph.write_bytes(told.SerializeToString())
    try:
        session = open_session(graph, 1)
        squares: dict[str, NDArray[np.float64]] = {}
        shares: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
        tokens = dict.fromkeys(names, 0)
        for text in texts:
            feed = {IDS: np.array([text], np.int64), MASK: np.ones((1, len(text)), np.int64)}
            for name, value in zip(names, session.run(list(names), feed), strict=True):
                rows = value.reshape(-1, value.shape[-1])
                squares[name] = squares.get(name, 0.0) + np.square(rows, dtype=np.float64).sum(axis=0)
                tokens[name] += len(rows)
                high, low = np.maximum(rows.max(axis=1), 0.0), np.minimum(rows.min(axis=1), 0.0)
                shares[name].append((high - low) / np.maximum(2 * np.maximum(high, -low), 1e-30))
    finally:
        graph.unlink()
    return {
        name: Channels(np.sqrt(squares[name] / tokens[name]).astype(np.float32), float(np.concatenate(shares[name]).mean()))
        for name in names
    }
