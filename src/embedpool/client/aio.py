"""The asyncio client: the same methods as Client, as coroutines. Belongs to the event loop of its first call.

The loop watches the socket's descriptor itself; there is no thread and no task that would outlive the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Self, Unpack

import numpy as np
import zmq

from embedpool import errors
from embedpool.client.arena import Lease, Vectors
from embedpool.client.core import GONE_AFTER_S, PING_AFTER_S, Answer, ClientCore, Options, Ticket
from embedpool.client.documents import CHUNKS_AHEAD, Assembly, Keywords, options_of
from embedpool.client.link import nobody_at, open_link, own_name, receive, send
from embedpool.client.strings import as_strings
from embedpool.client.sync import CLOSED, CONNECT_S, SEGMENT_BYTES
from embedpool.config import find_endpoint
from embedpool.edge import descriptor
from embedpool.errors import EmbedpoolError, NotRunning, TimedOut
from embedpool.protocol import ModelCard
from embedpool.shm.segment import ReadMap


def _of(me: weakref.ref[AsyncClient], method: Callable[[AsyncClient], None]) -> None:
    client = me()
    if client is not None:
        method(client)


class AsyncClient:
    """See Client. `async with AsyncClient() as pool: await pool.embed(["a text"])`. Cancelling a call cancels its work."""

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        connect_timeout_s: float = CONNECT_S,
        expect_fingerprint: str = "",
    ) -> None:
        self.endpoint = endpoint or find_endpoint()
        self._connect_timeout_s = connect_timeout_s
        self._core = ClientCore(ReadMap, segment_bytes, own_name(), expect_fingerprint)
        self._sock: zmq.Socket[bytes] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._changed: asyncio.Event = asyncio.Event()
        self._closed = False
        self._pinged_at = 0.0

    # ── public ──

    async def embed(self, texts: Sequence[str], *, timeout_s: float = 30.0, **keywords: Unpack[Keywords]) -> Vectors:
        """As Client.embed."""
        return (await self.answer(texts, timeout_s=timeout_s, **keywords)).vectors

    async def answer(self, texts: Sequence[str], *, timeout_s: float = 30.0, **keywords: Unpack[Keywords]) -> Answer:
        """As Client.answer."""
        options = options_of(keywords)
        deadline_at = time.monotonic() + timeout_s
        await self._connect(deadline_at)
        ticket = self._start(texts, options, deadline_at)
        await self._await(ticket)
        return ticket.answer()

    async def embed_query(self, text: str, *, timeout_s: float = 30.0, **keywords: Unpack[Keywords]) -> Vectors:
        """As Client.embed_query."""
        if not isinstance(text, str):
            raise errors.BadRequest(f"a query is one string, not {type(text).__name__}")
        await self._connect(time.monotonic() + timeout_s)
        self._prompt(keywords, "query")
        found = await self.embed([text], timeout_s=timeout_s, **keywords)
        result: Vectors = found[0]
        return result

    async def embed_documents(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        progress: bool = False,
        timeout_s: float = 60.0,
        **keywords: Unpack[Keywords],
    ) -> Vectors:
        """As Client.embed_documents; `texts` may also be an asynchronous iterable."""
        await self._connect(time.monotonic() + timeout_s)
        self._prompt(keywords, "document")
        keywords.setdefault("priority", "bulk")
        options = options_of(keywords)
        texts = as_strings([text async for text in texts] if isinstance(texts, AsyncIterable) else texts)
        dim = self._core.check(texts, options)
        room = self._core.reserve(len(texts), dim, options.dtype)
        assembly = Assembly(texts, options, dim, room, self._core.limits, progress)
        with assembly:
            try:
                while not assembly.finished:
                    while assembly.open_chunks < CHUNKS_AHEAD and (chunk := assembly.next_chunk()):
                        deadline_at = time.monotonic() + timeout_s
                        chunk.ticket = self._start(chunk.texts, chunk.options, deadline_at, chunk.place)
                    await self._take_chunk(assembly, timeout_s)
            except BaseException:
                self._abandon([chunk.ticket for chunk in assembly.open if chunk.ticket is not None])
                raise
        return assembly.result()

    async def model(self, name: str = "", *, timeout_s: float = 5.0) -> ModelCard:
        """As Client.model."""
        await self._connect(time.monotonic() + timeout_s)
        return self._core.card(name)

    async def status(self, *, timeout_s: float = 5.0) -> str:
        """As Client.status."""
        deadline_at = time.monotonic() + timeout_s
        await self._connect(deadline_at)
        ticket, frames = self._core.ask_status(deadline_at, time.monotonic())
        self._send(frames)
        found = await self._await(ticket)
        assert isinstance(found, str)
        return found

    @property
    def warning(self) -> str:
        """As Client.warning."""
        return self._core.warning

    async def close(self) -> None:
        """As Client.close."""
        if self._closed:
            return
        self._closed = True
        if self._sock is not None:
            self._send([self._core.bye()])
        self._drop_link()
        if self._core.arena is not None:
            self._core.arena.close()
            self._core.arena = None
        self._core.end(errors.Cancelled(CLOSED))
        self._changed.set()

    def __del__(self) -> None:
        # Not closed, and nobody left to do it: the session must not live as long as the process.
        with contextlib.suppress(Exception):
            self._drop_link()
            if self._core.arena is not None:
                self._core.arena.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        await self.close()

    # ── one request ──

    def _prompt(self, keywords: Keywords, name: str) -> None:
        """The usual prompt, unless the caller has said another."""
        unsaid = keywords.get("prompt_name") is None and keywords.get("prompt") is None
        if unsaid and name in self._core.card(keywords.get("model", "")).prompts:
            keywords["prompt_name"] = name

    def _start(
        self, texts: Sequence[str], options: Options, deadline_at: float, place: tuple[Lease, int] | None = None
    ) -> Ticket:
        self._check_open()
        ticket, frames = self._core.ask(texts, options, deadline_at, time.monotonic(), place)
        self._send(frames)
        return ticket

    async def _take_chunk(self, assembly: Assembly, timeout_s: float) -> None:
        chunk = assembly.open[0]
        assert chunk.ticket is not None
        try:
            found = await self._await(chunk.ticket)
        except (errors.Overloaded, TimedOut) as error:
            wait_s = assembly.again(chunk, error, time.monotonic(), timeout_s)
            if wait_s is None:
                raise
            await asyncio.sleep(wait_s)
            chunk.ticket = self._start(chunk.texts, chunk.options, chunk.give_up_at, chunk.place)
            return
        except EmbedpoolError as error:
            raise assembly.in_the_whole(error, chunk) from error
        assert isinstance(found, np.ndarray)
        assembly.took(chunk, found)

    def _abandon(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            if ticket.result is None and self._sock is not None:
                self._send([self._core.abandon(ticket)])

    async def _await(self, ticket: Ticket) -> Vectors | str:
        if ticket.result is None:
            assert self._loop is not None
            answered = self._loop.create_future()
            ticket.on_done = lambda: None if answered.done() else answered.set_result(None)
            try:
                async with asyncio.timeout(max(0.0, ticket.deadline_at - time.monotonic())):
                    await answered
            except TimeoutError:
                self._abandon([ticket])
                reason = "the pool did not finish the request" if self._core.is_open else nobody_at(self.endpoint)
                raise TimedOut(f"no answer in time: {reason}") from None
            except BaseException:
                self._abandon([ticket])
                raise
        assert ticket.result is not None
        if isinstance(ticket.result, EmbedpoolError):
            raise ticket.result
        return ticket.result

    # ── the socket ──

    def _check_open(self) -> None:
        if self._closed:
            raise errors.Cancelled(CLOSED)

    async def _connect(self, deadline_at: float) -> None:
        self._check_open()
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise errors.BadRequest("this AsyncClient belongs to another event loop: make one per loop")
        self._loop = loop
        if self._core.is_open:
            return
        limit_at = deadline_at if self._sock is not None else min(deadline_at, time.monotonic() + self._connect_timeout_s)
        while not self._core.is_open:
            if self._sock is None:
                self._open_link()
            self._changed.clear()
            try:
                async with asyncio.timeout(max(0.0, limit_at - time.monotonic())):
                    await self._changed.wait()
            except TimeoutError:
                raise NotRunning(nobody_at(self.endpoint)) from None
            self._check_open()
            if self._core.refused_hello is not None:
                error, self._core.refused_hello = self._core.refused_hello, None
                self._give_up_link()
                raise error

    def _open_link(self) -> None:
        assert self._loop is not None
        self._sock = open_link(self.endpoint)
        self._core.heard_at = time.monotonic()
        # The loop holds us weakly: a client that is dropped without close() is collected, and its session with it.
        me = weakref.ref(self)
        self._loop.add_reader(descriptor(self._sock), lambda: _of(me, AsyncClient._drain))
        self._tick_later()

    def _give_up_link(self) -> None:
        self._drop_link()
        self._core.lost()
        self._changed.set()  # whoever waits for a session opens the next link

    def _drop_link(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        if self._sock is not None and self._loop is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(descriptor(self._sock))
            self._sock.close()
        self._sock = None

    def _tick(self) -> None:
        """Pings after silence while something is awaited; connects anew after more of it."""
        assert self._loop is not None
        silent_s = time.monotonic() - self._core.heard_at
        awaited = self._core.tickets or not self._core.is_open
        if awaited and (self._sock is None or silent_s >= GONE_AFTER_S):
            self._give_up_link()
            with contextlib.suppress(errors.Unavailable):  # no descriptor left: tried again at the next tick
                self._open_link()
                return
        if awaited and self._sock is not None and silent_s >= PING_AFTER_S:
            self._send([self._core.ping()])
        self._tick_later()

    def _tick_later(self) -> None:
        assert self._loop is not None
        me = weakref.ref(self)
        self._ticker = self._loop.call_later(PING_AFTER_S, lambda: _of(me, AsyncClient._tick))

    def _send(self, frames: list[bytes]) -> None:
        if self._sock is None:
            self._open_link()
        assert self._sock is not None
        send(self._sock, frames)
        self._drain()  # the descriptor is edge-triggered, and sending may have taken its edge

    def _drain(self) -> None:
        if self._sock is None:
            return
        state = self._core.state
        try:
            while (found := receive(self._sock)) is not None:
                send(self._sock, self._core.received(*found, time.monotonic()))
        except errors.ProtocolError:
            # Whoever answers there is no router, or of another version: a new link in a while, and timeouts until then.
            self._give_up_link()
            self._tick_later()
            return
        if self._core.state != state or self._core.refused_hello is not None:
            self._changed.set()
