"""AkiDB's gRPC service `akidb.embedding.v1.EmbeddingService` beside HTTP, in the same process and over the same Service. Loaded
only where it is asked for.

Rules
1. The same keys, places and deadlines as over HTTP: another port is no way around them.
2. Whatever goes wrong is a status, by one table from the errors' HTTP status; no other text than that of the error leaves.
3. The handlers are given a stream though each request is one message: so it is theirs to wait for the message, within the time
   that a peer may take, and to ask for the key first. On the wire there is no difference.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, NoReturn

import grpc
from grpc import StatusCode

from embedpool.errors import BadRequest, EmbedpoolError, TimedOut, Unavailable, VersionMismatch
from embedpool.gateway.akidb import AkiDB
from embedpool.gateway.akidb_messages import SERVICE, embed_response, model_response, read_embed
from embedpool.gateway.reading import Asked, Wishes, wishes
from embedpool.gateway.service import Service

log = logging.getLogger(__name__)

DRAIN_S = 30.0  # accepted requests may end after SIGTERM, as over HTTP
MOST_BYTES = 4 << 20  # of a message: gRPC's own default, and that of AkiDB's library
STREAMS = 256  # requests at once on one connection
KEEPALIVE_MS = 60_000  # a peer that is gone without a word is found by then
STATUS: Mapping[int, StatusCode] = {
    400: StatusCode.INVALID_ARGUMENT,
    404: StatusCode.NOT_FOUND,
    409: StatusCode.ABORTED,
    413: StatusCode.INVALID_ARGUMENT,
    422: StatusCode.INVALID_ARGUMENT,
    429: StatusCode.RESOURCE_EXHAUSTED,
    499: StatusCode.CANCELLED,
    500: StatusCode.INTERNAL,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
    507: StatusCode.RESOURCE_EXHAUSTED,
}

NO_KEY = "a key is needed: send one of the server's as the metadata `authorization: Bearer KEY`"

Context = grpc.aio.ServicerContext[Any, Any]
Work = Callable[[AsyncIterator[bytes], Context], Awaitable[bytes]]


@asynccontextmanager
async def serving(address: str, service: Service) -> AsyncIterator[None]:
    """Serves on this HOST:PORT; at the end, what was accepted is answered first. Raises RuntimeError when it cannot be had.

    The port is bound beside other sockets of the same user (SO_REUSEPORT): whoever calls must hold it (address.reserve).
    """
    options = service.options
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", min(MOST_BYTES, options.max_body_bytes)),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", STREAMS),
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.so_reuseport", 1),
        ],
        maximum_concurrent_rpcs=options.max_concurrent,  # of those, too, whose message has not come yet
    )
    server.add_generic_rpc_handlers((EmbeddingService(service).handlers(),))
    server.add_insecure_port(address)
    await server.start()
    try:
        yield
    finally:
        await server.stop(DRAIN_S)


class EmbeddingService:
    """The methods over a service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.dialect = AkiDB(service)

    def handlers(self) -> grpc.GenericRpcHandler:
        """Messages stay bytes: gRPC's own boundary would answer INTERNAL to those that are none."""
        methods = {"Embed": self.embed, "GetModelInfo": self.model_info}
        made = grpc.stream_unary_rpc_method_handler
        return grpc.method_handlers_generic_handler(
            SERVICE, {name: made(self._around(name, methods[name])) for name in methods}
        )

    async def embed(self, messages: AsyncIterator[bytes], context: Context) -> bytes:
        with self.service.place():
            asked = read_embed(await self._message(messages))
            texts = self.dialect.texts(asked)
            found = await self.service.embed(self._wishes(context), texts)
            return embed_response(asked, texts, found)

    async def model_info(self, messages: AsyncIterator[bytes], context: Context) -> bytes:
        await self._message(messages)
        return model_response(await self.service.card(self._wishes(context)))

    async def _message(self, messages: AsyncIterator[bytes]) -> bytes:
        try:
            async with asyncio.timeout(self.service.options.receive_timeout_s):
                return await anext(messages, b"")
        except TimeoutError:
            raise TimedOut(f"the message did not come within {self.service.options.receive_timeout_s:g} s") from None

    def _wishes(self, context: Context) -> Wishes:
        """The headers of every dialect as metadata, and the client's own deadline where that is nearer. Raises BadRequest."""
        now, left_s = time.monotonic(), context.time_remaining()
        wished = wishes(_metadata(context), Asked(), self.service.options, now)
        if left_s is None:
            return wished
        if "x-embedpool-timeout-ms" in _metadata(context):
            return replace(wished, deadline_at=min(wished.deadline_at, now + left_s))
        return replace(wished, deadline_at=now + min(left_s, self.service.options.max_timeout_s))

    # ── the boundary ──

    def _around(self, name: str, work: Work) -> Work:
        metrics, route = self.service.metrics, f"/{SERVICE}/{name}"

        async def handle(messages: AsyncIterator[bytes], context: Context) -> bytes:
            began_at, said = time.perf_counter(), StatusCode.CANCELLED
            try:
                if not self._may(context):
                    said = StatusCode.UNAUTHENTICATED
                    await context.abort(said, NO_KEY)
                with metrics.open.track_inprogress():
                    data = await self._checked(work, messages, context)
                said = StatusCode.OK
                return data
            except asyncio.CancelledError:
                metrics.hung_up.inc()
                raise
            except EmbedpoolError as error:
                said = STATUS[error.http_status]
                return await _abort(context, said, error)
            finally:
                metrics.requests.labels(route, said.name).inc()
                metrics.seconds.labels(route).observe(time.perf_counter() - began_at)

        return handle

    def _may(self, context: Context) -> bool:
        return not self.service.keys or self.service.keys.fit(_metadata(context).get("authorization", ""))

    async def _checked(self, work: Work, messages: AsyncIterator[bytes], context: Context) -> bytes:
        """What the work gives. Raises EmbedpoolError alone."""
        try:
            return await work(messages, context)
        except VersionMismatch as error:  # between gateway and pool: nothing that the client could mend
            raise Unavailable(f"the gateway cannot use this pool: {error.message}") from error
        except EmbedpoolError:
            raise
        except Exception as error:
            log.exception("a gRPC request could not be answered")
            raise EmbedpoolError("an internal error: see the gateway's log") from error


def _metadata(context: Context) -> dict[str, str]:
    """Those that are text: names that end in -bin hold bytes."""
    return {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}


async def _abort(context: Context, status: StatusCode, error: EmbedpoolError) -> NoReturn:
    """AkiDB's texts: its own two as they are, failures behind "Embedding failed: ". When to try again is where gRPC's clients
    look for it themselves (gRFC A6)."""
    text = error.message if isinstance(error, BadRequest) else f"Embedding failed: {error.message}"
    pause = error.retry_after_ms
    await context.abort(status, text, () if pause is None else (("grpc-retry-pushback-ms", str(pause)),))
