"""Any number of texts as chunks, and the chunks' vectors as one array. No socket; used by both clients."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, TypedDict

from embedpool.client.ambient import current
from embedpool.client.arena import Lease, Vectors
from embedpool.client.core import Options, Ticket
from embedpool.client.strings import as_strings
from embedpool.errors import BadRequest, EmbedpoolError, ModelChanged
from embedpool.protocol import Limits, Priority, Truncate
from embedpool.shm.layout import DTYPES, Dtype, room_bytes
from embedpool.shm.rows import empty
from embedpool.traces.context import passed_on

CHUNK_ROWS = 128  # enough to sort by length within; few enough for a bar that moves
CHUNK_CHARS = 1 << 20
LONGEST_WAIT_S = 1.0
CHUNKS_AHEAD = 8  # open at a time: keeps every worker busy while answers are on their way


class Keywords(TypedDict, total=False):
    """See Client.embed."""

    model: str
    prompt_name: str | None
    dim: int
    normalize: bool
    truncate: Truncate
    priority: Priority
    dtype: Dtype
    prompt: str | None
    titles: Sequence[str]
    traceparent: str
    tracestate: str


DEFAULTS = Options()


def options_of(keywords: Keywords) -> Options:
    """What is not said of a trace is the current span's, where there is one: looked for once per call, in the caller's thread
    or task. Raises BadRequest for a keyword that does not exist or has a value of the wrong kind."""
    if "traceparent" in keywords:
        keywords = {**keywords, **_passed_on(keywords)}
    elif span := current():
        keywords = {**keywords, "traceparent": span[0], "tracestate": span[1]}
    if not keywords:
        return DEFAULTS
    unknown = set(keywords) - set(Keywords.__annotations__)
    if unknown:
        raise BadRequest(f"no such keyword: {', '.join(sorted(unknown))}")
    titles, prompt = keywords.get("titles"), keywords.get("prompt")
    if titles is not None:
        keywords = {**keywords, "titles": as_strings(titles, "titles")}
    if prompt is not None:
        (plain,) = as_strings((prompt,), "prompt")
        keywords = {**keywords, "prompt": plain}
    options = Options(**{**keywords, "titles": keywords.get("titles") or ()})  # type: ignore[arg-type]  # a tuple by now
    if type(options.dtype) is not str or options.dtype not in DTYPES:
        raise BadRequest(f"dtype is one of {', '.join(DTYPES)}, not {options.dtype!r}")
    if type(options.truncate) not in (bool, str) or options.truncate not in (True, False, "left", "right"):
        raise BadRequest(f"truncate is True, False, left or right, not {options.truncate!r}")
    if not isinstance(options.prompt, str | None):
        raise BadRequest(f"prompt is a string, not {options.prompt!r}")
    if options.priority not in ("auto", "interactive", "bulk"):
        raise BadRequest(f"priority is interactive, bulk or auto, not {options.priority!r}")
    if type(options.dim) is not int or options.dim < 0:
        raise BadRequest(f"dim is a whole number, not {options.dim!r}")
    return options


def _passed_on(keywords: Keywords) -> Keywords:
    given = (keywords.get("traceparent", ""), keywords.get("tracestate", ""))
    if not all(isinstance(text, str) for text in given):
        raise BadRequest(f"traceparent and tracestate are strings, not {given!r}")
    traceparent, tracestate = passed_on(*given)
    return {"traceparent": traceparent, "tracestate": tracestate}


@dataclass(slots=True, eq=False)
class Chunk:
    start: int
    texts: tuple[str, ...]
    options: Options
    place: tuple[Lease, int] | None
    ticket: Ticket | None = None
    give_up_at: float = 0.0  # set when it is the oldest and has to be asked for again


class Assembly:
    """Cuts texts into chunks and puts their vectors together.

    Where the session's segment has room for the whole result (`lease`), chunks are placed in it and the result is a view of
    it, without a copy; otherwise each chunk is copied into an ordinary array as it comes.
    """

    def __init__(
        self, texts: tuple[str, ...], options: Options, dim: int, lease: Lease | None, limits: Limits, progress: bool
    ) -> None:
        if options.titles and len(options.titles) != len(texts):
            raise BadRequest(f"{len(options.titles)} titles for {len(texts)} texts")
        self._texts = texts
        self._options = options
        self._dim = dim
        self._lease = lease
        self._limits = limits
        self._next = 0
        self._out: Vectors | None = None if lease is not None else empty(len(texts), dim, options.dtype)
        self._done = 0
        self._fingerprint = ""
        self._progress = progress
        self._bar: Any = None
        self.open: deque[Chunk] = deque()

    def __enter__(self) -> Self:
        if self._progress:
            from tqdm import tqdm

            self._bar = tqdm(total=len(self._texts), unit="text", file=sys.stderr, smoothing=0.1, desc="embedding")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def finished(self) -> bool:
        return self._done == len(self._texts)

    @property
    def open_chunks(self) -> int:
        return len(self.open)

    def next_chunk(self) -> Chunk | None:
        """The next texts to ask for, or None when all are asked for. The caller sets the chunk's ticket."""
        start, chars = self._next, 0
        if start == len(self._texts):
            return None
        most = min(CHUNK_ROWS, self._limits.request_rows)
        stop = start
        while stop < len(self._texts) and stop - start < most and (stop == start or chars < CHUNK_CHARS):
            chars += len(self._texts[stop]) + (len(self._options.titles[stop]) if self._options.titles else 0)
            stop += 1
        place = None
        if self._lease is not None:
            place = (self._lease, self._lease.offset + room_bytes(start, self._dim, self._options.dtype))
        self._next = stop
        titles = self._options.titles
        options = replace(self._options, titles=titles[start:stop]) if titles else self._options
        chunk = Chunk(start, self._texts[start:stop], options, place)
        self.open.append(chunk)
        return chunk

    def again(self, chunk: Chunk, error: EmbedpoolError, now: float, timeout_s: float) -> float | None:
        """Seconds until the oldest chunk should be asked for again, or None: its time is up.

        A chunk that was refused while others of ours were ahead of it has had no chance yet: its `timeout_s` begins when it
        is the oldest. A slow model therefore takes a long list of texts however long the whole list takes.
        """
        chunk.give_up_at = chunk.give_up_at or now + timeout_s
        wait_s = min((error.retry_after_ms or 1) / 1e3, LONGEST_WAIT_S)
        return wait_s if now + wait_s < chunk.give_up_at else None

    def took(self, chunk: Chunk, vectors: Vectors) -> None:
        """A chunk's answer: in its place already, or vectors to copy."""
        self.open.remove(chunk)
        assert chunk.ticket is not None and chunk.ticket.told is not None
        fingerprint = chunk.ticket.told.fingerprint
        if self._fingerprint not in ("", fingerprint):
            raise ModelChanged("the pool came back with another model in the middle: embed all the texts again")
        self._fingerprint = fingerprint
        if not chunk.ticket.placed:
            rows = self._whole()
            rows[chunk.start : chunk.start + len(chunk.texts)] = vectors
        self._done += len(chunk.texts)
        if self._bar is not None:
            self._bar.update(len(chunk.texts))

    def _whole(self) -> Vectors:
        """The ordinary array; made, with all that is in place so far, when the first chunk is not in its place."""
        if self._out is None:
            assert self._lease is not None
            self._out = self._view(self._lease.offset, len(self._texts)).copy()
        return self._out

    def _view(self, offset: int, rows: int) -> Vectors:
        assert self._lease is not None
        return self._lease.arena.array(self._lease, offset, rows, self._dim, self._options.dtype)

    def in_the_whole(self, error: EmbedpoolError, chunk: Chunk) -> EmbedpoolError:
        """The same error with the row counted from the first text."""
        if error.row is None or not chunk.start:
            return error
        row = chunk.start + error.row
        message = error.message.replace(f"text {error.row} ", f"text {row} ", 1)
        return type(error)(message, row=row)

    def result(self) -> Vectors:
        """All the rows, read-only; call when finished."""
        if self._out is None:
            assert self._lease is not None
            return self._view(self._lease.offset, len(self._texts))
        self._out.flags.writeable = False
        return self._out
