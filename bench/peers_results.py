"""From what was seen of peers to the rows of the result file. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common import in_ms, median
from limit import Cost, Rates, least_bulk_s, least_s
from peers_table import Peer
from peers_visit import Seen

SAME = 0.999  # cosine, of the least alike text, of what counts as equally accurate


@dataclass(frozen=True)
class Given:
    """What all peers were given: the tokens of each document, further document and query, and what the machine can do at the
    most."""

    document_tokens: Sequence[int]
    further_tokens: Sequence[int]
    query_tokens: Sequence[int]
    cost: Cost
    rates: Rates

    def limits(self, precision: str) -> dict[str, float | None]:
        bulk_s = least_bulk_s(self.cost, self.document_tokens, precision, self.rates)
        query_s = least_s(self.cost, round(median(self.query_tokens)), precision, self.rates)
        return {
            "bulk_tokens_per_s": None if bulk_s is None else round(sum(self.document_tokens) / bulk_s),
            "query_ms": None if query_s is None else round(query_s * 1e3, 3),
        }


def row(peer: Peer, visits: Sequence[Seen], given: Given, reference: np.ndarray | None) -> dict[str, Any]:
    """One peer's numbers: medians over its visits, and each visit's own."""
    tokens = sum(given.document_tokens)
    rates = [sum(given.further_tokens[: seen.bulk_texts]) / seen.bulk_s for seen in visits]
    p50s = [in_ms(seen.query_ms)["p50"] for seen in visits]
    first = visits[0]
    found: dict[str, Any] = {
        "bulk_tokens_per_s": round(median(rates)),
        "bulk_tokens_per_s_of_each_repeat": [round(rate) for rate in rates],
        "bulk_texts_per_s": round(median([seen.bulk_texts / seen.bulk_s for seen in visits]), 1),
        "bulk_s_of_each_repeat": [round(seen.bulk_s, 2) for seen in visits],
        "batch": min(first.tried, key=lambda size: first.tried[size]),
        "bulk_tokens_per_s_by_batch_tried": {str(size): round(tokens / seconds) for size, seconds in first.tried.items()},
        "query_ms": in_ms([ms for seen in visits for ms in seen.query_ms]),
        "query_p50_ms_of_each_repeat": p50s,
        "start_s": round(median([seen.start_s for seen in visits]), 2),
        "start_s_of_each_repeat": [round(seen.start_s, 2) for seen in visits],
        "pss_mb": round(first.pss_mb),
        "cosine": _cosine(first.vectors, reference),
        "of_limit": _shares(given.limits(peer.precision), median(rates), median(p50s)),
        "precision": peer.precision,
        "versions": first.versions,
    }
    return found | (_of_server(visits) if peer.server else {})


def _of_server(visits: Sequence[Seen]) -> dict[str, Any]:
    beside = [seen.beside_texts_per_s for seen in visits]
    return {
        "open_ms": in_ms([ms for seen in visits for ms in seen.open_ms]),
        "open_p95_ms_of_each_repeat": [in_ms(seen.open_ms)["p95"] for seen in visits],
        "beside_ms": in_ms([ms for seen in visits for ms in seen.beside_ms]),
        "beside_p95_ms_of_each_repeat": [in_ms(seen.beside_ms)["p95"] for seen in visits],
        "bulk_texts_per_s_beside_queries": round(median(beside), 1),
    }


def _cosine(vectors: np.ndarray | None, reference: np.ndarray | None) -> dict[str, Any] | None:
    """None where there is nothing to compare with."""
    if vectors is None or reference is None:
        return None
    if vectors.shape != reference.shape:
        return {"error": f"vectors of shape {vectors.shape}, the reference {reference.shape}"}
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
    cosines = np.sum(vectors * reference, axis=1) / lengths
    least = float(cosines.min())
    return {"mean": round(float(cosines.mean()), 6), "least": round(least, 6), "same": least >= SAME}


def _shares(limits: dict[str, float | None], tokens_per_s: float, query_ms: float) -> dict[str, float | None]:
    """How much of the limit is reached: 1 is all of it."""
    bulk, query = limits["bulk_tokens_per_s"], limits["query_ms"]
    return {
        "bulk": None if bulk is None else round(tokens_per_s / bulk, 3),
        "query": None if query is None else round(query / query_ms, 3),
    }


def of_loops(rates: Sequence[float], given: Given) -> dict[str, Any]:
    """The row of the pinned loops: a rate, and nothing else."""
    limit = given.limits("fp32")["bulk_tokens_per_s"]
    return {
        "bulk_tokens_per_s": round(median(rates)),
        "bulk_tokens_per_s_of_each_repeat": [round(rate) for rate in rates],
        "of_limit": {"bulk": None if limit is None else round(median(rates) / limit, 3)},
    }
