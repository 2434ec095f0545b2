"""What a worker needs of a model, whatever computes it: OnnxEncoder, EchoEncoder, or a test's fake."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vectors: TypeAlias = NDArray[np.float32]


class Encoder(Protocol):
    """What a worker needs of a model."""

    def tokens(self, texts: Sequence[str], *, truncate: bool) -> list[list[int]]:
        """Token ids per text; at most the model's maximum where `truncate`."""

    def run(self, rows: Sequence[Sequence[int]], width: int) -> Vectors:
        """float32[len(rows), dim], pooled, not normalised. No row is longer than `width`."""
