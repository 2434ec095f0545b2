"""What a client says and understands: bytes in, bytes out. No socket, no thread, no clock; both clients run on it.

Rules
1. A request is open from `ask` until its one answer has come, whatever its caller has done meanwhile. Its room is not used
   again before that (shm is written by workers until they have answered).
2. A router that does not know us says Who. We say hello once per router, and after its welcome every open request that
   somebody still waits for is asked again, in the new session: the work is a pure function, so that is safe.
3. Where no room is left, vectors come inline: a copy instead of a failure.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

import numpy as np

from embedpool import errors
from embedpool import protocol as wire
from embedpool.client.arena import Arena, Lease, Mapping, Vectors
from embedpool.client.strings import as_strings, check_texts, is_unicode
from embedpool.errors import EmbedpoolError
from embedpool.protocol import Embed, Limits, ModelCard, Priority, Truncate
from embedpool.shm.layout import Dtype, room_bytes
from embedpool.shm.rows import empty, view

PING_AFTER_S = 1.0  # of silence while something is open
NO_LIMITS = Limits(0, 0, 0, 0)  # before the first welcome
GONE_AFTER_S = 4.0  # of silence: the router is taken for dead, and connected to anew


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The keywords of every embed method; see Client.embed."""

    model: str = ""
    prompt_name: str | None = None
    dim: int = 0
    normalize: bool = True
    truncate: Truncate = True
    priority: Priority = "auto"
    dtype: Dtype = "float32"
    prompt: str | None = None
    titles: tuple[str, ...] = ()
    traceparent: str = ""
    tracestate: str = ""


@dataclass(slots=True, eq=False)
class Ticket:
    """One open request. `result` is set when it is answered. `waker` is the waiting thread's, if it sleeps."""

    id: int
    texts: tuple[str, ...]
    options: Options
    dim: int
    deadline_at: float
    lease: Lease | None = None
    offset: int = 0
    placed: bool = False  # within a larger room: the caller makes the array
    result: Vectors | EmbedpoolError | str | None = None
    told: wire.Vectors | None = None  # what came with the result
    done_at: float = 0.0
    abandoned: bool = False
    waker: threading.Event | None = None
    on_done: Callable[[], None] | None = None

    def answer(self) -> Answer:
        """Of a request that got its vectors."""
        assert isinstance(self.result, np.ndarray) and self.told is not None
        told = self.told
        return Answer(self.result, told.tokens, told.fingerprint, told.queue_ms, told.tokenize_ms, told.run_ms)


@dataclass(frozen=True, slots=True)
class Answer:
    """Vectors as `embed` gives them, with what the pool says of them: `tokens` is how many the model read, prompts and
    special tokens included. `queue_ms`, `tokenize_ms` and `run_ms` are as in protocol.Vectors."""

    vectors: Vectors
    tokens: int
    fingerprint: str
    queue_ms: float = 0.0
    tokenize_ms: float = 0.0
    run_ms: float = 0.0


@dataclass(slots=True)
class ClientCore:
    """`map_segment(path, size)` gives a Mapping or raises SegmentError; `name` is shown in the pool's status; `expected`, if
    given, is the one fingerprint whose vectors are wanted."""

    map_segment: Callable[[str, int], Mapping]
    segment_bytes: int
    name: str = ""
    expected: str = ""
    state: Literal["away", "greeting", "open"] = "away"
    warning: str = ""
    limits: Limits = NO_LIMITS
    models: tuple[ModelCard, ...] = ()
    refused_hello: EmbedpoolError | None = None
    arena: Arena | None = None
    heard_at: float = 0.0
    tickets: dict[int, Ticket] = field(default_factory=dict)
    _ids: count[int] = field(default_factory=lambda: count(1))
    _greeted: int | None = None
    _unmapped: str = ""  # why a segment that was given could not be used

    # ── asking ──

    @property
    def is_open(self) -> bool:
        return self.state == "open"

    def card(self, model: str) -> ModelCard:
        """The model of that name, the pool's first for "". Raises UnknownModel."""
        for card in self.models:
            if model in ("", card.name):
                return card
        raise errors.UnknownModel(f"no model {model!r} here: this pool serves {', '.join(c.name for c in self.models)}")

    def check(self, texts: Sequence[str], options: Options) -> int:
        """The dimension of the answer. Raises BadRequest (or a child of it) for what the pool would refuse anyway."""
        check_texts(texts)
        card = self.card(options.model)
        if not 0 <= options.dim <= card.dim:
            raise errors.BadDimension(f"dim {options.dim} is not from 1 to {card.dim}, the dimension of {card.name}")
        for name in ("prompt", "prompt_name", "model"):
            text = getattr(options, name)
            if text is not None and not is_unicode(text):
                raise errors.BadRequest(f"{name} is not a string of valid Unicode text: {text!r}")
        for i, title in enumerate(options.titles):
            if not is_unicode(title):
                raise errors.BadRequest(f"title {i} is not a string of valid Unicode text: {title!r}")
        return options.dim or card.dim

    def reserve(self, rows: int, dim: int, dtype: Dtype) -> Lease | None:
        """Room for so many rows, if the session has a segment with such a gap."""
        return self.arena.take(room_bytes(rows, dim, dtype)) if self.arena is not None else None

    def ask(
        self, texts: Sequence[str], options: Options, deadline_at: float, now: float, place: tuple[Lease, int] | None = None
    ) -> tuple[Ticket, list[bytes]]:
        """Opens a request and gives its message. `place` is (lease, offset) within a room reserved by the caller.

        Between two sessions there is no message: what is said before the welcome would name rooms of the old segment, and
        the welcome's own round of messages (rule 2) includes this request. Raises BadRequest for what can never succeed.
        """
        texts = as_strings(texts)
        dim = self.check(texts, options)
        if len(texts) > self.limits.request_rows:
            raise errors.TooLarge(f"{len(texts)} texts in one request, at most {self.limits.request_rows}: use embed_documents")
        ticket = Ticket(next(self._ids), tuple(texts), options, dim, deadline_at)
        if place is not None and place[0].arena is self.arena:
            ticket.lease, ticket.offset, ticket.placed = place[0], place[1], True
        frames = [self._message(ticket, now)] if self.is_open else []
        self._register(ticket, now)
        return ticket, frames

    def _register(self, ticket: Ticket, now: float) -> None:
        if not self.tickets:
            self.heard_at = now  # silence counts from when there is something to answer
        self.tickets[ticket.id] = ticket

    def _message(self, ticket: Ticket, now: float) -> bytes:
        if ticket.lease is None and ticket.texts:
            ticket.lease = self.reserve(len(ticket.texts), ticket.dim, ticket.options.dtype)
            ticket.offset = ticket.lease.offset if ticket.lease else 0
        options = ticket.options
        frame = wire.encode(
            Embed(
                ticket.id,
                ticket.texts,
                ticket.offset if ticket.lease is not None else None,
                min(max(0.0, (ticket.deadline_at - now) * 1e3), wire.MAX_BUDGET_MS),
                options.model,
                options.prompt_name,
                options.dim,
                options.normalize,
                options.truncate,
                options.priority,
                options.dtype,
                options.prompt,
                options.titles,
                now,
                options.traceparent,
                options.tracestate,
            )
        )
        if len(frame) > self.limits.request_bytes:
            raise errors.TooLarge(
                f"the request has {len(frame)} bytes, at most {self.limits.request_bytes}: send fewer texts at a time"
            )
        return frame

    def ask_status(self, deadline_at: float, now: float) -> tuple[Ticket, list[bytes]]:
        ticket = Ticket(next(self._ids), (), Options(), 0, deadline_at)
        self._register(ticket, now)
        return ticket, [wire.encode(wire.AskStatus(ticket.id))] if self.is_open else []

    def abandon(self, ticket: Ticket) -> bytes:
        """Nobody waits for it any more. Its room comes back with its answer, which the message asks to hurry."""
        ticket.abandoned = True
        return wire.encode(wire.Cancel(ticket.id))

    def ping(self) -> bytes:
        return wire.encode(wire.Ping(next(self._ids)))

    def bye(self) -> bytes:
        return wire.encode(wire.Bye())

    # ── hearing ──

    def received(self, frame: bytes, payload: bytes, now: float) -> list[bytes]:
        """Takes in one message; gives what is to be sent in reply. Raises ProtocolError for bytes that are no message."""
        self.heard_at = now
        match wire.decode(frame):
            case wire.Vectors() as vectors:
                self._answered(vectors, payload)
            case wire.Refused() as refused:
                self._refused(refused)
            case wire.Status() as status:
                self._finish(status.id, status.body)
            case wire.Who() as who:
                return self._greet(who)
            case wire.Welcome() as welcome:
                return self._welcomed(welcome, now)
            case _:
                pass  # pong: having been heard is all it says
        return []

    def lost(self) -> None:
        """The connection was given up: whoever answers next is asked for a session again."""
        self.state, self._greeted = "away", None

    def end(self, error: EmbedpoolError) -> None:
        """Answers everything that is open with an error: the client is being closed."""
        for id in list(self.tickets):
            self._finish(id, error)

    def _greet(self, who: wire.Who) -> list[bytes]:
        if self.state == "greeting" and who.router == self._greeted:
            return []
        self.state, self._greeted = "greeting", who.router
        return [wire.encode(wire.Hello(wire.VERSION, self.segment_bytes, self.name))]

    def _welcomed(self, welcome: wire.Welcome, now: float) -> list[bytes]:
        if self.arena is not None:
            self.arena.close()
            self.arena = None
        if self.expected and self.expected not in [card.fingerprint for card in welcome.models]:
            return self._unexpected(welcome.models)
        self.warning = welcome.warning or self._unmapped
        if welcome.segment:
            try:
                self.arena = Arena(self.map_segment(welcome.segment, welcome.segment_bytes))
            except errors.SegmentError as error:
                self.segment_bytes = 0
                self._unmapped = f"{error.message}; vectors come inline"
                return [wire.encode(wire.Hello(wire.VERSION, 0, self.name))]
        self.limits, self.models = welcome.limits, welcome.models
        self.state, self.refused_hello = "open", None
        return self._again(now)

    def _unexpected(self, models: tuple[ModelCard, ...]) -> list[bytes]:
        """Other vectors than those that are wanted: whoever waits or comes is told, and there is no session."""
        found = ", ".join(f"{card.name} with {card.fingerprint}" for card in models)
        error = errors.WrongFingerprint(
            f"vectors of the fingerprint {self.expected} are expected, and this pool gives {found}: start it with the model and"
            " versions that made the vectors you have, or embed all of them again"
        )
        self.state, self.refused_hello = "away", error
        self.end(error)
        return [self.bye()]

    def _again(self, now: float) -> list[bytes]:
        """The messages of everything that is still wanted, for a new session."""
        frames = []
        for ticket in list(self.tickets.values()):
            ticket.lease, ticket.placed = None, False
            if ticket.abandoned:
                self._finish(ticket.id, errors.Cancelled("given up by its caller"))
            elif not ticket.dim:
                frames.append(wire.encode(wire.AskStatus(ticket.id)))
            else:
                try:
                    # The pool may have come back with another model: its dimension is the new room's.
                    ticket.dim = self.check(ticket.texts, ticket.options)
                    frames.append(self._message(ticket, now))
                except EmbedpoolError as error:  # the pool came back with another model or other limits
                    self._finish(ticket.id, error)
        return frames

    def _answered(self, vectors: wire.Vectors, payload: bytes) -> None:
        ticket = self.tickets.get(vectors.id)
        if ticket is None:
            return
        rows, dtype = len(ticket.texts), ticket.options.dtype
        ticket.told = vectors
        result: Vectors | EmbedpoolError | str
        if (vectors.rows, vectors.dim) != (rows, ticket.dim) or (vectors.inline and rows and ticket.lease is not None):
            result = errors.ProtocolError(f"asked for [{rows}, {ticket.dim}], got [{vectors.rows}, {vectors.dim}]")
        elif ticket.placed or not rows:
            result = empty(0, ticket.dim, dtype)
        elif ticket.lease is not None:
            result = ticket.lease.arena.array(ticket.lease, ticket.offset, rows, ticket.dim, dtype)
        elif len(payload) == room_bytes(rows, ticket.dim, dtype):
            result = view(np.frombuffer(payload, np.uint8), rows, ticket.dim, dtype)
        else:
            result = errors.ProtocolError(f"{len(payload)} bytes of vectors for [{rows}, {ticket.dim}]")
        self._finish(vectors.id, result)

    def _refused(self, refused: wire.Refused) -> None:
        error = errors.from_wire(refused.code, refused.message, row=refused.row, retry_after_ms=refused.retry_after_ms)
        if refused.id is None and self.state != "open":
            self.refused_hello = error
        elif refused.id is not None:
            self._finish(refused.id, error)

    def _finish(self, id: int, result: Vectors | EmbedpoolError | str) -> None:
        ticket = self.tickets.pop(id, None)
        if ticket is None:
            return
        ticket.result, ticket.done_at = result, self.heard_at
        ticket.lease = None if not ticket.placed else ticket.lease
        if ticket.waker is not None:
            ticket.waker.set()
        if ticket.on_done is not None:
            ticket.on_done()
