"""Which rows run together. Pure.

Measured (MiniLM fp32, one core): 8 tokens run at 2,900 tokens/s alone and 5,500 in a batch of 128 tokens; 64 tokens at
5,200 and 5,500; 256 tokens alone at 4,600 and four of them at 3,900. So batches of about BATCH_TOKENS tokens, of rows of
like length, and a long row alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BATCH_TOKENS = 128  # unless a model's spec says otherwise: other providers have other optima
LEAST_FILL = 0.85  # a row shorter than this share of the batch's width starts a batch of its own


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows (indices into the lengths given) that run as one matrix of `width` tokens each."""

    rows: tuple[int, ...]
    width: int


def micro_batches(lengths: Sequence[int], *, alone: bool = False, tokens: int = BATCH_TOKENS) -> list[Batch]:
    """Every row in exactly one batch of at most so many tokens, or of one row, longest first; padding is at most 15 % of any
    row's width. `alone`: one row in each."""
    if alone:
        return [Batch((row,), max(length, 1)) for row, length in enumerate(lengths)]
    if len(lengths) == 1:
        return [Batch((0,), max(lengths[0], 1))]
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batches: list[Batch] = []
    start = 0
    while start < len(order):
        width = max(lengths[order[start]], 1)
        stop = start + 1
        while stop < len(order) and (stop - start + 1) * width <= tokens:
            if lengths[order[stop]] < LEAST_FILL * width:
                break
            stop += 1
        batches.append(Batch(tuple(order[start:stop]), width))
        start = stop
    return batches
