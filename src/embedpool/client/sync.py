"""The blocking client. Many threads may share one; a process that forks may go on using it on both sides.

Rules
1. The socket is touched only under the lock, and every touch ends by emptying it: its descriptor is edge-triggered.
2. Of the threads that wait, one (the reader) polls the descriptor; the others sleep on their ticket's event. Whoever leaves,
   for whatever reason, passes through `_leave`, which sees to it that there is a reader while anybody sleeps. There is no
   thread of our own: a query costs no hand-over.
3. An exception in the middle of reading (KeyboardInterrupt) may lose part of a message. The link is then given up: the next
   session answers everything that is open.
4. Every wait has a deadline.

(Over the usual length: a third of it is what the public methods promise. What needs no thread is in core, arena, documents.)
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self, Unpack

import numpy as np
import zmq

from embedpool import errors
from embedpool.client.arena import Lease, Vectors
from embedpool.client.core import GONE_AFTER_S, PING_AFTER_S, Answer, ClientCore, Options, Ticket
from embedpool.client.documents import CHUNKS_AHEAD, Assembly, Keywords, options_of
from embedpool.client.link import no_descriptor, nobody_at, open_link, own_name, receive, send
from embedpool.client.strings import as_strings
from embedpool.config import find_endpoint
from embedpool.edge import descriptor
from embedpool.errors import EmbedpoolError, NotRunning, TimedOut
from embedpool.protocol import ModelCard
from embedpool.shm.segment import ReadMap

SEGMENT_BYTES = 16 << 20  # room for 10,900 rows of 384 dimensions; it is real memory of the pool's machine
CONNECT_S = 5.0
CONNECT_POLL_S = 0.05
STALE_S = 0.5  # after its answer, how long a reader may take to leave; it takes microseconds
CLOSED = "this client was closed"


class Client:
    """A pool's client: `with Client() as pool: pool.embed(["a text"])`.

    `endpoint` None finds the pool by the rule of config.find_endpoint. `segment_bytes` is the shared memory to ask for; with
    0, and over TCP, vectors come through the socket. Connects at the first call and waits at most `connect_timeout_s` for a
    pool that is not there yet; a pool that is restarted later is waited for within each call's own timeout. With
    `expect_fingerprint`, a pool whose vectors are not of that fingerprint (see `model`) answers WrongFingerprint to all calls.
    """

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
        self._segment_bytes = segment_bytes
        self.expect_fingerprint = expect_fingerprint
        self._closed = False
        self._reset()
        _clients.add(self)

    def _reset(self) -> None:
        """A client that has not connected yet."""
        self._lock = threading.Lock()
        self._core = ClientCore(ReadMap, self._segment_bytes, own_name(), self.expect_fingerprint)
        self._sock: zmq.Socket[bytes] | None = None
        self._wake = -1
        self._poll = select.poll()
        self._reader: Ticket | None = None
        self._sleepers: dict[Ticket, None] = {}  # in the order of their coming
        self._pinged_at = 0.0

    # ── public ──

    def embed(self, texts: Sequence[str], *, timeout_s: float = 30.0, **keywords: Unpack[Keywords]) -> Vectors:
        """float32[len(texts), dim], one vector per text in order; of unit length unless `normalize` is False, which leaves
        them as the model gives them.

        A read-only view of shared memory, valid as long as the array or any view of it lives, also after close(). Where the
        session's segment is full of arrays still held, the result is an ordinary array instead. An array of a forked child
        is only valid until the parent lets go of its own: copy it before the fork.

        Keywords: `model` (a name, default the pool's only one), `prompt_name` (one of the model's prompts), `dim` (the first
        dim values, then normalised), `normalize`, `truncate` (False refuses texts longer than the model reads; "left" cuts off
        their beginning), `priority` ("interactive" or "bulk"; by default few texts are interactive), `prompt` (any text to
        put before each), `titles` (one per text, for a `prompt_name` that takes a title), `traceparent` and `tracestate`
        (W3C's; by default those of OpenTelemetry's current span, if there is one: docs/traces.md), `dtype`:

        "float16": float16[n, dim]. "int8", "uint8": records [n] with `values` (int8 or uint8[dim]), `scale` and `shift`; the
        vector is values * scale + shift (embedpool.dequantized). "binary", "ubinary": one bit per value, set where it is
        positive, packed into int8 or uint8[n, dim / 8] as sentence-transformers does.

        Raises BadText and its children naming the row, TooLarge, UnknownModel, UnknownPrompt, BadDimension; Overloaded with
        retry_after_ms; TimedOut after `timeout_s`; NotRunning; PoolFailed; Unavailable where this process has no file
        descriptors left to connect with.
        """
        return self.answer(texts, timeout_s=timeout_s, **keywords).vectors

    def answer(self, texts: Sequence[str], *, timeout_s: float = 30.0, **keywords: Unpack[Keywords]) -> Answer:
        """`embed`, for whoever has to account for the tokens, or wants to know where the time went."""
        options = options_of(keywords)
        deadline_at = time.monotonic() + timeout_s
        self._connect(deadline_at)
        ticket = self._start(texts, options, deadline_at)
        self._await(ticket)
        return ticket.answer()

    def embed_query(self, text: str, *, timeout_s: float = 30.0, **keywords: Unpack[Keywords]) -> Vectors:
        """float32[dim]: one text, with the model's query prompt if it has one and `prompt_name` is not given."""
        if not isinstance(text, str):
            raise errors.BadRequest(f"a query is one string, not {type(text).__name__}")
        self._connect(time.monotonic() + timeout_s)
        self._prompt(keywords, "query")
        result: Vectors = self.embed([text], timeout_s=timeout_s, **keywords)[0]
        return result

    def embed_documents(
        self,
        texts: Iterable[str],
        *,
        progress: bool = False,
        timeout_s: float = 60.0,
        **keywords: Unpack[Keywords],
    ) -> Vectors:
        """float32[n, dim] for any number of texts: sent in chunks, several at a time, in the "bulk" class; order kept.

        With the model's document prompt if it has one and `prompt_name` is not given. `timeout_s` bounds each chunk, from when
        it is the oldest, and not the whole; a pool that is overloaded is asked again within it. `progress` draws a bar on
        stderr. Errors as for embed, with `row` counted from the first text; ModelChanged when the pool came back with
        another model in the middle.
        """
        self._connect(time.monotonic() + timeout_s)
        self._prompt(keywords, "document")
        keywords.setdefault("priority", "bulk")
        options = options_of(keywords)
        texts = as_strings(texts)
        with self._lock:
            dim = self._core.check(texts, options)
            room = self._core.reserve(len(texts), dim, options.dtype)
            assembly = Assembly(texts, options, dim, room, self._core.limits, progress)
        with assembly:
            try:
                while not assembly.finished:
                    while assembly.open_chunks < CHUNKS_AHEAD and (chunk := assembly.next_chunk()):
                        deadline_at = time.monotonic() + timeout_s
                        chunk.ticket = self._start(chunk.texts, chunk.options, deadline_at, chunk.place)
                    self._take_chunk(assembly, timeout_s)
            except BaseException:
                self._abandon([chunk.ticket for chunk in assembly.open if chunk.ticket is not None])
                raise
        return assembly.result()

    def model(self, name: str = "", *, timeout_s: float = 5.0) -> ModelCard:
        """What the pool says of a model: name, dim, max_tokens, fingerprint, prompts, dtypes. Vectors of two fingerprints must
        not be mixed. Raises UnknownModel."""
        self._connect(time.monotonic() + timeout_s)
        return self._core.card(name)

    def status(self, *, timeout_s: float = 5.0) -> str:
        """The pool's state as a JSON document (docs/protocol.md lists its keys)."""
        deadline_at = time.monotonic() + timeout_s
        self._connect(deadline_at)
        with self._lock:
            self._check_open()
            ticket, frames = self._core.ask_status(deadline_at, time.monotonic())
            self._send(frames)
        found = self._await(ticket)
        assert isinstance(found, str)
        return found

    @property
    def warning(self) -> str:
        """Why the session has no shared memory although it was asked for; "" otherwise."""
        return self._core.warning

    def close(self) -> None:
        """Ends the session. Arrays stay valid; threads that wait get an error. Idempotent."""
        with self._lock:
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        # A socket that is only collected would leave the session to the server's liveness check; say goodbye.
        with contextlib.suppress(Exception):
            if not self._closed and self._lock.acquire(blocking=False):
                self._lock.release()
                self.close()

    # ── one request ──

    def _prompt(self, keywords: Keywords, name: str) -> None:
        """The usual prompt, unless the caller has said another."""
        unsaid = keywords.get("prompt_name") is None and keywords.get("prompt") is None
        if unsaid and name in self._core.card(keywords.get("model", "")).prompts:
            keywords["prompt_name"] = name

    def _start(
        self, texts: Sequence[str], options: Options, deadline_at: float, place: tuple[Lease, int] | None = None
    ) -> Ticket:
        with self._lock:
            self._check_open()
            ticket, frames = self._core.ask(texts, options, deadline_at, time.monotonic(), place)
            self._send(frames)
        return ticket

    def _vectors(self, result: Vectors | str) -> Vectors:
        assert isinstance(result, np.ndarray)
        return result

    def _take_chunk(self, assembly: Assembly, timeout_s: float) -> None:
        """Waits for the oldest open chunk; one that came too late, or to a full pool, is asked for again."""
        chunk = assembly.open[0]
        assert chunk.ticket is not None
        try:
            found = self._await(chunk.ticket)
        except (errors.Overloaded, TimedOut) as error:
            wait_s = assembly.again(chunk, error, time.monotonic(), timeout_s)
            if wait_s is None:
                raise
            time.sleep(wait_s)
            chunk.ticket = self._start(chunk.texts, chunk.options, chunk.give_up_at, chunk.place)
            return
        except EmbedpoolError as error:
            raise assembly.in_the_whole(error, chunk) from error
        assembly.took(chunk, self._vectors(found))

    def _abandon(self, tickets: Iterable[Ticket]) -> None:
        with self._lock:
            for ticket in tickets:
                if ticket.result is None and self._sock is not None:
                    self._send([self._core.abandon(ticket)])

    def _await(self, ticket: Ticket) -> Vectors | str:
        """The ticket's result. Raises its error; TimedOut when its deadline passes first, or the wait is interrupted."""
        try:
            while ticket.result is None:
                self._wait(ticket)
                if ticket.result is None and time.monotonic() >= ticket.deadline_at:
                    raise TimedOut(self._why_silent())
        except BaseException:
            ticket.abandoned = True  # first, without the lock: another interrupt may come at any line
            self._abandon([ticket])
            raise
        finally:
            self._leave(ticket)
        if isinstance(ticket.result, EmbedpoolError):
            raise ticket.result
        return ticket.result

    def _why_silent(self) -> str:
        if not self._core.is_open:
            return f"no answer in time: {nobody_at(self.endpoint)}"
        return "no answer in time: the pool did not finish the request within timeout_s"

    # ── waiting (rule 2) ──

    def _wait(self, ticket: Ticket) -> None:
        """Returns when the ticket may have its result, or its deadline has passed."""
        with self._lock:
            self._check_open()
            self._drain(ticket)
            if ticket.result is not None:
                return
            if self._is_vacant(self._reader):
                self._reader = ticket
            if self._reader is not ticket:
                ticket.waker = ticket.waker or threading.Event()
                ticket.waker.clear()
                self._sleepers[ticket] = None
        patience_s = max(0.0, ticket.deadline_at - time.monotonic())
        if self._reader is ticket:
            self._read(ticket, min(PING_AFTER_S, patience_s))
        elif ticket.waker is not None:
            ticket.waker.wait(min(PING_AFTER_S, patience_s))  # not longer: an interrupt may have lost the sign for us

    def _read(self, ticket: Ticket, patience_s: float) -> None:
        ready = self._poll.poll(patience_s * 1e3 + 0.999)
        with self._lock:
            if self._closed:
                return
            if (self._wake, select.POLLIN) in ready:
                self._be_roused()
            self._drain(ticket)
            if not ready and ticket.result is None:
                self._keep_alive()

    def _is_vacant(self, reader: Ticket | None) -> bool:
        """Whether nobody reads, also where an interrupt kept the reader's thread from saying so. A reader whose answer came
        a while ago has left the poll: whoever takes the answer in rouses it."""
        if reader is None or reader.abandoned:
            return True
        return reader.result is not None and time.monotonic() - reader.done_at > STALE_S

    def _leave(self, ticket: Ticket) -> None:
        """This thread waits no longer: somebody else must read, if anybody sleeps."""
        with self._lock:
            self._sleepers.pop(ticket, None)
            if self._reader is ticket:
                self._reader = None
            if not self._is_vacant(self._reader):
                return
            for lost in [sleeper for sleeper in self._sleepers if sleeper.abandoned or sleeper.result is not None]:
                del self._sleepers[lost]
            for heir in self._sleepers:
                if heir.waker is not None:
                    heir.waker.set()
                    return

    def _keep_alive(self) -> None:
        """Pings after silence; takes the router for dead, and connects anew, after more of it."""
        now = time.monotonic()
        silent_s = now - self._core.heard_at
        if silent_s >= GONE_AFTER_S:
            self._give_up_link()
            self._open_link()
        elif silent_s >= PING_AFTER_S and now - self._pinged_at >= PING_AFTER_S:
            self._pinged_at = now
            self._send([self._core.ping()])

    # ── the socket (rule 1) ──

    def _check_open(self) -> None:
        if self._closed:
            raise errors.Cancelled(CLOSED)

    def _socket(self) -> zmq.Socket[bytes]:
        if self._sock is None:
            self._open_link()
        assert self._sock is not None
        return self._sock

    def _open_link(self) -> None:
        sock = open_link(self.endpoint)
        try:
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError as error:  # another thread took the last one
            sock.close()
            raise no_descriptor(error) from error
        self._sock = sock
        self._poll = select.poll()
        for fd in (descriptor(self._sock), self._wake):
            self._poll.register(fd, select.POLLIN)
        self._core.heard_at = time.monotonic()

    def _drop_link(self) -> None:
        if self._sock is not None:
            self._rouse()
            self._sock.close()
            os.close(self._wake)
        self._sock, self._wake = None, -1

    def _give_up_link(self) -> None:
        self._drop_link()
        self._core.lost()

    def _rouse(self) -> None:
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def _be_roused(self) -> None:
        """Takes the sign back; only the reader does, or a sign meant for it could be lost."""
        with contextlib.suppress(OSError):
            os.eventfd_read(self._wake)

    def _send(self, frames: list[bytes]) -> None:
        send(self._socket(), frames)
        self._drain()

    def _drain(self, drainer: Ticket | None = None) -> None:
        sock = self._socket()
        emptied = False
        try:
            while (found := receive(sock)) is not None:
                emptied = True
                send(sock, self._core.received(*found, time.monotonic()))
        except BaseException:
            self._give_up_link()  # rule 3
            raise
        if emptied and self._reader not in (None, drainer):
            self._rouse()  # this may have been the reader's answer, and its descriptor will not tell again

    def _connect(self, deadline_at: float) -> None:
        """Returns with a session, at the latest at the deadline; raises NotRunning, or what the pool refused it for."""
        if self._core.is_open and not self._closed:
            return
        limit_at = deadline_at if self._sock is not None else min(deadline_at, time.monotonic() + self._connect_timeout_s)
        while (fd := self._session_awaited()) is not None:
            left_s = limit_at - time.monotonic()
            if left_s <= 0:
                raise NotRunning(nobody_at(self.endpoint))
            poll = select.poll()  # not the reader's: one such object serves one thread at a time
            poll.register(fd, select.POLLIN)
            poll.poll(min(left_s, CONNECT_POLL_S) * 1e3)

    def _session_awaited(self) -> int | None:
        """None with a session; else the descriptor that will tell of one."""
        with self._lock:
            self._check_open()
            self._drain()
            if self._core.is_open:
                return None
            if self._core.refused_hello is not None:
                error, self._core.refused_hello = self._core.refused_hello, None
                self._give_up_link()
                raise error
            self._keep_alive()
            return descriptor(self._socket())


# ── fork ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_of_parents: list[object] = []  # sockets of the parent process: never closed here, where their I/O thread does not exist


def _after_fork() -> None:
    for client in list(_clients):
        _of_parents.append(client._sock)
        if client._core.arena is not None:
            client._core.arena.close()  # our copy of the descriptor: the parent's lock stays the parent's alone
        if client._wake >= 0:
            os.close(client._wake)
        client._reset()


os.register_at_fork(after_in_child=_after_fork)
