"""A collector of OpenTelemetry's spans for tests: OTLP over HTTP on loopback, decoded by OpenTelemetry's own messages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support import wait_until


@dataclass(slots=True)
class Collector:
    """`spans` are those that have come, `resources` the attributes of who sent them."""

    url: str
    spans: list[Any] = field(default_factory=list)
    resources: list[dict[str, str]] = field(default_factory=list)

    def take(self, body: bytes) -> None:
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append({each.key: each.value.string_value for each in group.resource.attributes})
            self.spans += [span for scope in group.scope_spans for span in scope.spans]

    def wait_for(self, count: int, name: str = "embedpool.embed", within_s: float = 10.0) -> list[Any]:
        """The spans of that name, once there are so many."""
        wait_until(lambda: len(self.named(name)) >= count, within_s, f"{count} spans {name}; there are {len(self.named(name))}")
        return self.named(name)

    def named(self, name: str) -> list[Any]:
        return [span for span in list(self.spans) if span.name == name]

    def inside(self, parent: Any) -> list[Any]:
        """Its children in the order of their beginnings."""
        found = [span for span in list(self.spans) if span.parent_span_id == parent.span_id]
        return sorted(found, key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


@contextmanager
def collecting(port: int = 0) -> Iterator[Collector]:
    """One that listens until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            is_ours = self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
            if is_ours:
                collector.take(body)
            self.send_response(200 if is_ours else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.daemon_threads = True
        collector = Collector(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
