"""Counters and histograms of one gateway, in Prometheus' text form; the pool's own, which stand behind them, are in metrics.py.

A registry per gateway, not the library's global one: two in one process (tests) must not count together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from embedpool.gateway.te_metrics import TeMetrics, TePool
from embedpool.memory import Memory
from embedpool.metrics import exposition

# From a query on static embeddings to a bulk request of minutes.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


class Metrics:
    """What the gateway counts. Names and labels are part of its interface."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("embedpool_gateway_requests", "Requests answered.", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "embedpool_gateway_request_seconds",
            "From a request's head to its answer.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.deliver = Histogram(
            "embedpool_gateway_deliver_seconds",
            "What is left of a request's time in the pool without queue, tokenising and running: the way there and back.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.texts = Histogram(
            "embedpool_gateway_request_texts", "Texts of one request.", buckets=TEXTS, registry=self.registry
        )
        self.tokens = Counter("embedpool_gateway_tokens", "Tokens that the model has read.", registry=self.registry)
        self.open = Gauge("embedpool_gateway_requests_open", "Requests being worked on.", registry=self.registry)
        self.hung_up = Counter(
            "embedpool_gateway_hung_up", "Requests whose client left before the answer.", registry=self.registry
        )
        self.te = TeMetrics(self.registry, SECONDS)

    def exposition(self, status: Mapping[str, Any], memory: Mapping[int, Memory]) -> bytes:
        """Everything as text, the pool's own behind the gateway's. `status` is the pool's, {} where it does not answer."""
        pool = CollectorRegistry()
        pool.register(TePool(status))
        return generate_latest(self.registry) + generate_latest(pool) + exposition(status, memory)
