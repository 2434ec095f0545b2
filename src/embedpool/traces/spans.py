"""Records to OpenTelemetry's spans. Which of them are recorded is the sampler's decision, and by default the client's."""

from __future__ import annotations

from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from embedpool.traces.exporting import Exports
from embedpool.traces.records import ANSWERED, Record
from embedpool.traces.stages import outcome, stages, whole

_propagator = TraceContextTextMapPropagator()


def write(record: Record, tracer: Tracer, exports: Exports, day_ns: int) -> None:
    """The record's spans, ended and on their way. `day_ns` is what is to be added to CLOCK_MONOTONIC for the time of day."""
    parts, all_of_it = stages(record), whole(record)
    if not exports.take(1 + len(parts)):
        return
    carrier = {"traceparent": record.traceparent, "tracestate": record.tracestate} if record.traceparent else {}
    parent = _propagator.extract(carrier)
    began_ns = _ns(all_of_it.began_s, day_ns)
    span = tracer.start_span(all_of_it.name, parent, kind=SpanKind.SERVER, attributes=all_of_it.attributes, start_time=began_ns)
    if not span.is_recording():
        exports.give_back(1 + len(parts))
        return
    inside = set_span_in_context(span)
    for part in parts:
        child = tracer.start_span(part.name, inside, attributes=part.attributes, start_time=_ns(part.began_s, day_ns))
        child.end(_ns(part.ended_s, day_ns))
    span.set_attributes(outcome(record))
    if record.outcome != ANSWERED:
        span.set_status(Status(StatusCode.ERROR, record.message))
    span.end(_ns(all_of_it.ended_s, day_ns))


def _ns(moment_s: float, day_ns: int) -> int:
    return round(moment_s * 1e9) + day_ns
