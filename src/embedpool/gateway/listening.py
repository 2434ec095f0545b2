"""The server on its socket. A peer that sends the head of a request slowly, or without end, is hung up on: uvicorn
bounds neither with its fast parser, and the app only sees what has a whole head.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 65_536  # h11's own limit, which uvicorn has with its slow parser
KEEP_ALIVE_S = 95  # longer than clients keep idle connections (reqwest 90 s): none is closed under a request
DRAIN_S = 30  # accepted requests may end after SIGTERM; the pool's own default
CONNECTIONS = 4096  # beyond these, requests are answered 503


class Bounded(HttpToolsProtocol):
    """uvicorn's protocol with a limit on a head's bytes and time."""

    head_s = 10.0
    _head_bytes = 0
    _reading_head = True
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._reading_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_came()
        super().on_headers_complete()

    def _expect_head(self) -> None:
        self._head_came()
        self._reading_head, self._head_bytes = True, 0
        self._head_timer = self.loop.call_later(self.head_s, self.transport.abort)

    def _head_came(self) -> None:
        self._reading_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:  # not where what runs beside HTTP could not begin
            self._on_ready()


def run(app: Starlette, sock: socket.socket, head_s: float, on_ready: Callable[[], None]) -> bool:
    """Serves until SIGTERM or SIGINT; whether it could begin to. What was accepted is answered first, for at most DRAIN_S.
    `head_s`: how long the head of a request, or a connection's first one, may take to come in."""
    protocol = type("Bounded", (Bounded,), {"head_s": head_s})
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stopped)  # uvicorn raises the signal again once it has ended
    config = uvicorn.Config(
        app,
        http=protocol,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
        limit_concurrency=CONNECTIONS,
        log_config=None,
        log_level="error",  # what peers get wrong is their business, and not a line of ours each time
        access_log=False,
        server_header=False,
        ws="none",
    )
    server = _Server(config, on_ready)
    server.run([sock])
    return server.started


def _stopped(*_: object) -> None:
    """Nothing more: the server has ended."""
