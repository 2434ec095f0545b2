"""The numbers of TEI's routes under TEI's own names, for the dashboards and autoscalers that read them there.

TEI's counters have no `_total`, which the library gives to each of its own: they are exported as untyped, which `rate()` takes
as well. Seconds, as in TEI; queue and batches are the pool's, whoever asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, UnknownMetricFamily
from prometheus_client.metrics_core import Metric
from starlette.responses import Response

from embedpool.client.core import Answer
from embedpool.errors import EmbedpoolError
from embedpool.metrics import buckets


class TeMetrics:
    """A collector: `te_request_*` and `te_embed_*`."""

    def __init__(self, registry: CollectorRegistry, bounds: tuple[float, ...]) -> None:
        self.counts: Counter[str] = Counter()
        self.successes: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.texts = self.texts_done = 0

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(f"te_request_{name}duration", text, buckets=bounds, registry=registry)

        self.total = seconds("", "From asking the pool to its answer.")
        self.tokenize = seconds("tokenization_", "Being tokenised, in all workers.")
        self.queue = seconds("queue_", "Until a worker took up the first text.")
        self.inference = seconds("inference_", "Being run, in all workers.")
        registry.register(self)

    async def counted(self, texts: object, work: Awaitable[Response]) -> Response:
        """What the work gives or raises. `texts` as they were asked for: a list of them, or one."""
        method = "batch" if isinstance(texts, list) else "single"
        self.counts[method] += 1
        try:
            response = await work
        except EmbedpoolError as error:
            self.failures[error.code] += 1
            raise
        if response.status_code == 200:
            self.successes[method] += 1
        else:
            self.failures["validation"] += 1
        return response

    def embedded(self, texts: int, answer: Answer, seconds: float) -> None:
        self.texts_done += texts
        self.total.observe(seconds)
        self.tokenize.observe(answer.tokenize_ms / 1e3)
        self.queue.observe(answer.queue_ms / 1e3)
        self.inference.observe(answer.run_ms / 1e3)

    def collect(self) -> Iterator[Metric]:
        yield _untyped("te_request_count", "Requests.", "method", self.counts)
        yield _untyped("te_request_success", "Requests answered with vectors.", "method", self.successes)
        yield _untyped("te_request_failure", "Requests refused, by reason.", "err", self.failures)
        yield UnknownMetricFamily("te_embed_count", "Texts asked for.", value=self.texts)
        yield UnknownMetricFamily("te_embed_success", "Texts embedded.", value=self.texts_done)


class TePool:
    """A collector: what TEI knows of its queue and batches, from the pool's status."""

    def __init__(self, status: Mapping[str, Any]) -> None:
        self.status = status

    def collect(self) -> Iterator[Metric]:
        if not self.status:
            return
        runs = self.status["runs"]
        yield GaugeMetricFamily("te_queue_size", "Texts that wait.", value=self.status["queue"]["rows"])
        for name, text, found, total in (
            ("te_batch_next_size", "Texts of a run.", runs["rows_per_run"], runs["rows"]),
            ("te_batch_next_tokens", "Tokens of a run, padding included.", runs["tokens_per_run"], runs["padded_tokens"]),
        ):
            yield HistogramMetricFamily(name, text, buckets=buckets(found["le"], found["counts"]), sum_value=total)


def _untyped(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = UnknownMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
