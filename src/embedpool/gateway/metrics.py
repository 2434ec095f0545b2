"""Counters and histograms of one gateway, and the pool's status as gauges, in Prometheus' text form.

A registry per gateway, not the library's global one: two in one process (tests) must not count together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

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
        self.texts = Histogram(
            "embedpool_gateway_request_texts", "Texts of one request.", buckets=TEXTS, registry=self.registry
        )
        self.tokens = Counter("embedpool_gateway_tokens", "Tokens that the model has read.", registry=self.registry)
        self.open = Gauge("embedpool_gateway_requests_open", "Requests being worked on.", registry=self.registry)
        self.hung_up = Counter(
            "embedpool_gateway_hung_up", "Requests whose client left before the answer.", registry=self.registry
        )

    def exposition(self, status: Mapping[str, Any]) -> bytes:
        """Everything as text. `status` is the pool's, {} where it does not answer."""
        pool = CollectorRegistry()
        pool.register(_Pool(status))
        return generate_latest(self.registry) + generate_latest(pool)


class _Pool:
    """A pool's status as gauges: what the pool counts itself since its router started, which a restart sets back."""

    def __init__(self, status: Mapping[str, Any]) -> None:
        self.status = status

    def collect(self) -> Iterable[Metric]:
        status = self.status
        yield _gauge("up", "Whether the pool answers and serves.", float(status.get("state") == "serving"))
        if not status:
            return
        yield _gauge("uptime_seconds", "Since the router's start.", status["uptime_s"])
        for name, value in status["queue"].items():
            yield _gauge(f"queue_{name}", f"Waiting: {name}.", value)
        for name, value in status["sessions"].items():
            yield _gauge(f"sessions_{name}", f"Sessions: {name}.", value)
        for name, value in status["counters"].items():
            if isinstance(value, int | float):
                yield _gauge(f"total_{name}", f"Since the router's start: {name}.", value)
        yield _labelled("refused", "Requests refused, by reason.", "code", status["counters"].get("refused", {}))
        states = [worker["state"] for worker in status["workers"]]
        yield _labelled("workers", "Workers by state.", "state", {state: states.count(state) for state in states})
        yield _gauge("worker_restarts", "Restarts of all workers.", sum(worker["restarts"] for worker in status["workers"]))


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(f"embedpool_pool_{name}", help, value=value)


def _labelled(name: str, help: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"embedpool_pool_{name}", help, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
