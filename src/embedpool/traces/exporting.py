"""Where spans go, and what is lost when they cannot. OpenTelemetry's own processor batches them; endpoint, headers, sampler and
batches are set by its own variables (OTEL_*), read by it.

Rules
1. What waits is bounded, by OTEL_BSP_MAX_QUEUE_SIZE spans: a request whose spans have no room gets none, not half of them.
2. What is lost is counted, and said when it begins and when it has been over for QUIET_S: two lines, however long a collector
   is down or how often it comes and goes.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter, SpanExportResult

from embedpool import __version__
from embedpool.config import most_waiting_spans

log = logging.getLogger("embedpool.tracer")

QUIET_S = 5.0  # without a loss: where more comes than can be exported, room and none take turns many times a second


class Exports:
    """How many spans wait, and how many were lost. Used by the thread that makes spans and by the one that exports them."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._lost_at = 0.0
        self._lock = threading.Lock()
        self._is_losing = False
        self.waiting = 0
        self.exported = 0
        self.lost = 0

    def take(self, count: int) -> bool:
        """Whether there is room for so many more spans; it is theirs then."""
        with self._lock:
            if self.waiting + count <= self._most:
                self.waiting += count
                return True
        self.lose(count, "more spans come than can be exported")
        return False

    def give_back(self, count: int) -> None:
        """Of spans that were not made."""
        with self._lock:
            self.waiting -= count

    def handed(self, count: int) -> None:
        """They are out of the queue, and being exported."""
        self.give_back(count)

    def lose(self, count: int, reason: str) -> None:
        with self._lock:
            self.lost += count
            self._lost_at = self._clock()
            first, self._is_losing = not self._is_losing, True
        if first:
            log.warning("traces are lost: %s", reason, extra={"event": "traces lost"})

    def went_well(self, count: int) -> None:
        with self._lock:
            self.exported += count
            over = self._is_losing and self._clock() >= self._lost_at + QUIET_S
            self._is_losing = self._is_losing and not over
        if over:
            said = "traces are exported again; spans lost, since the tracer's start: %d"
            log.warning(said, self.lost, extra={"event": "traces back"})


class Counted(SpanExporter):
    """An exporter whose losses are counted, and whose own complaints are kept for the one line about them."""

    def __init__(self, inner: SpanExporter, exports: Exports, words: LastWords) -> None:
        self._inner = inner
        self._exports = exports
        self._words = words

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._exports.handed(len(spans))
        try:
            result = self._inner.export(spans)
        except Exception as error:  # whatever it raises, the next batch is tried
            self._words.text, result = repr(error), SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self._exports.went_well(len(spans))
        else:
            self._exports.lose(len(spans), self._words.text or "the exporter does not say why")
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()


class LastWords(logging.Handler):
    """Keeps what a library logs last, instead of a line for every try."""

    def __init__(self, library: str) -> None:
        super().__init__()
        self.text = ""
        logger = logging.getLogger(library)
        logger.addHandler(self)
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


def provider(kind: str) -> tuple[TracerProvider, Exports]:
    """Of spans that go to a collector (`otlp`) or to stderr (`console`)."""
    most = most_waiting_spans()
    exports = Exports(most)
    inner = OTLPSpanExporter() if kind == "otlp" else ConsoleSpanExporter(out=sys.stderr)
    counted = Counted(inner, exports, LastWords("opentelemetry.exporter"))
    made = TracerProvider(resource=_resource(), shutdown_on_exit=False)
    made.add_span_processor(BatchSpanProcessor(counted, max_queue_size=most))
    return made, exports


def _resource() -> Resource:
    """As OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have it; else the service is called embedpool."""
    found = Resource.create({"service.version": __version__})
    if str(found.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return found.merge(Resource({SERVICE_NAME: "embedpool"}))
    return found
