"""How good a search is whose right answers are known. Pure: arrays in, numbers out; quality.py calls it.

Every query has one document that answers it. Vectors of one bit per dimension give many equal scores, and how a sort happens to
break ties is no quality: each measure is therefore its mean over all orders of the tied documents, computed exactly (McSherry
and Najork 2008, Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied Scores).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Gain = Callable[[NDArray[np.int64]], Floats]  # what a rank, from 1, is worth

RESAMPLES = 1000  # the 2.5 and 97.5 per cent points of so many means are steady to about a tenth of the interval's width


@dataclass(frozen=True)
class Standing:
    """Per query: how many documents score above the right one, and how many as it does, itself included (so at least 1)."""

    above: NDArray[np.int64]
    tied: NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """The 95 per cent bootstrap interval of a mean."""

    low: float
    high: float


def dots(queries: NDArray[np.float32], documents: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32[queries, documents]: for vectors of unit length, their cosines."""
    return queries @ documents.T


def matching_bits(queries: NDArray[np.uint8], documents: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32[queries, documents]: the number of equal bits less the Hamming distance, of vectors of packed bits [n, bytes].

    It orders as the negative distance does. A product of ±1 is exact in float32 up to 2^24 dimensions.
    """
    return _signs(queries) @ _signs(documents).T


def _signs(packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    signs: NDArray[np.float32] = np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1
    return signs


def standing(scores: NDArray[np.float32]) -> Standing:
    """Of scores[queries, documents] where document i answers query i. Raises ValueError where a query has no document."""
    rows, columns = scores.shape
    if rows > columns:
        raise ValueError(f"{rows} queries for {columns} documents")
    right = scores[np.arange(rows), np.arange(rows)][:, None]
    return Standing((scores > right).sum(axis=1), (scores == right).sum(axis=1))


def expected(found: Standing, gain: Gain) -> Floats:
    """float64[queries]: the mean of `gain` over the ranks that the right document may have among those tied with it."""
    most = int((found.above + found.tied).max())
    so_far = np.concatenate([[0.0], np.cumsum(gain(np.arange(1, most + 1)))])
    worth: Floats = (so_far[found.above + found.tied] - so_far[found.above]) / found.tied
    return worth


def recall(found: Standing, k: int) -> Floats:
    """float64[queries]: 1 where the right document is among the first k."""
    return expected(found, lambda rank: (rank <= k).astype(np.float64))


def ndcg(found: Standing, k: int) -> Floats:
    """float64[queries]: 1 / log2(1 + rank) within the first k. With one right document the ideal gain is 1."""
    return expected(found, lambda rank: np.where(rank <= k, 1.0 / np.log2(1.0 + rank), 0.0))


def reciprocal_rank(found: Standing) -> Floats:
    """float64[queries]: 1 / rank, however far down; its mean is MRR."""
    return expected(found, lambda rank: 1.0 / rank)


def resampled(count: int, seed: int, times: int = RESAMPLES) -> Floats:
    """float64[times, count]: how much each of `count` queries weighs in each resample, drawn with replacement; rows sum to 1.

    The same draws serve every configuration, so that differences between two are of the same queries (paired).
    """
    weights: Floats = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=times) / count
    return weights


def interval(values: Floats, weights: Floats) -> Interval:
    """Of the mean of values[queries], by the percentile bootstrap over weights[times, queries] (see resampled)."""
    low, high = np.percentile(weights @ values, (2.5, 97.5))
    return Interval(float(low), float(high))


def within_noise(difference: Interval) -> bool:
    """Whether an interval of a difference has zero in it: these queries do not tell the two apart."""
    return difference.low <= 0.0 <= difference.high
