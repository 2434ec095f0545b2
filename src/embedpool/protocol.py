"""The wire: every message, its limits, and bytes to messages and back. No socket, no clock, no policy.

A message is one msgpack map in one frame, `kind` first; unknown fields are ignored, so that a newer peer may say more.
Two messages may be followed by a second frame, raw rows as they would lie in a segment (shm.layout): `vectors` with `inline`
true, and a worker's `done`. Control is small; vectors otherwise stay in shared memory.

Between client and router: hello embed cancel ping ask_status bye  /  who welcome vectors refused pong status.
Between router and worker: ready done  /  who job forget.

`decode` returns a message whose every field has the stated type and bounds, or raises ProtocolError: nothing behind it
checks types again. The router trusts a worker (it started it); it trusts no client.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgpack
import msgspec
from msgspec import Meta, Struct

from embedpool.errors import ProtocolError, VersionMismatch
from embedpool.shm.layout import DTYPES, Dtype

VERSION = 1
MAX_I64 = 2**63 - 1
MAX_NAME_CHARS = 512  # names of models, prompts, segments: a hub id is at most 96 + 1 + 96 characters
MAX_MESSAGE_CHARS = 4096  # an error message, a warning
MAX_BUDGET_MS = 86_400_000.0  # a day
MAX_TEXTS = 1 << 17  # in one message, whatever the configuration: checked before a single one is decoded
FAULT_BYTES = 1 << 16  # how much of a rejected message is read once more, to say what is wrong with it

Id = Annotated[int, Meta(ge=0, le=MAX_I64)]
Count = Annotated[int, Meta(ge=0, le=MAX_I64)]
Name = Annotated[str, Meta(max_length=MAX_NAME_CHARS)]
Sentence = Annotated[str, Meta(max_length=MAX_MESSAGE_CHARS)]
Path = Annotated[str, Meta(max_length=4096)]
Milliseconds = Annotated[float, Meta(ge=0.0, le=1e12)]
Moment = Annotated[float, Meta(ge=0.0, le=1e12)]  # seconds of CLOCK_MONOTONIC
Priority = Literal["auto", "interactive", "bulk"]
Truncate = bool | Literal["left", "right"]  # True: right. The side that is cut off


class _Record(Struct, frozen=True, gc=False):
    """Part of a message: a map."""


class _Message(Struct, frozen=True, gc=False, tag_field="kind", omit_defaults=True):
    """A whole message: a map with `kind`."""


# ── client → router ──────────────────────────────────────────────────────────────────────────────────────────────────


class Hello(_Message, frozen=True, tag="hello"):
    """Opens a session. `segment_bytes` 0 asks for none: vectors then come inline."""

    version: Id
    segment_bytes: Count = 0
    client: Name = ""


class Embed(_Message, frozen=True, tag="embed"):
    """Asks for one vector per text, row i at `offset + i * row_bytes(dim, dtype)` of the session's segment (shm.layout).

    `offset` None asks for inline vectors; `model` "" is the pool's only one; `dim` 0 is the model's own; `budget_ms` is
    how long the answer is of use, counted from `sent_s`, the sender's CLOCK_MONOTONIC (0: from the arrival). `prompt_name` is
    one of the model's, `prompt` any text put before each text; `titles` has one per text, for prompts that take a title.
    `traceparent` and `tracestate` are W3C Trace Context's: the span in which the client asks. What is none is ignored.
    """

    id: Id
    texts: Annotated[tuple[str, ...], Meta(max_length=MAX_TEXTS)]
    offset: Count | None = None
    budget_ms: Annotated[float, Meta(ge=0.0, le=MAX_BUDGET_MS)] = 30_000.0
    model: Name = ""
    prompt_name: Name | None = None
    dim: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    normalize: bool = True
    truncate: Truncate = True
    priority: Priority = "auto"
    dtype: Dtype = "float32"
    prompt: str | None = None
    titles: Annotated[tuple[str, ...], Meta(max_length=MAX_TEXTS)] = ()
    sent_s: Moment = 0.0
    traceparent: Name = ""
    tracestate: Name = ""


class Cancel(_Message, frozen=True, tag="cancel"):
    id: Id


class Ping(_Message, frozen=True, tag="ping"):
    id: Id


class AskStatus(_Message, frozen=True, tag="ask_status"):
    id: Id


class Bye(_Message, frozen=True, tag="bye"):
    """Ends the session."""


# ── router → client ──────────────────────────────────────────────────────────────────────────────────────────────────


class Who(_Message, frozen=True, tag="who"):
    """The router does not know the sender: a client says hello (again) and repeats what is open, a worker says ready.

    `router` is a number drawn at the router's start, so that one question asked twice is told from a new router's.
    """

    router: Id


class Limits(_Record, frozen=True):
    request_rows: Count
    request_bytes: Count
    text_chars: Count
    inline_bytes: Count


class ModelCard(_Record, frozen=True):
    """What a client must know of a model: vectors of two fingerprints must not be mixed. `titled` are the prompts that take a
    title; `dtypes` the types in which its vectors can be had; `default_prompt` is the one of `prompts` that a text gets if
    nothing is said; `pooling` how tokens become one vector, "" if the graph does it and nobody says how."""

    name: Name
    dim: Count
    max_tokens: Count
    fingerprint: Name
    prompts: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = DTYPES
    titled: tuple[str, ...] = ()
    precision: Name = "fp32"
    default_prompt: Name = ""
    pooling: Name = ""


class Welcome(_Message, frozen=True, tag="welcome"):
    """`segment` is a path, or "" where vectors come inline; `warning` then says why, if a segment was asked for."""

    version: Id
    limits: Limits
    models: tuple[ModelCard, ...]
    segment: Path = ""
    segment_bytes: Count = 0
    warning: Sentence = ""


class Vectors(_Message, frozen=True, tag="vectors"):
    """The rows are in place. `tokens` counts what the model read, prompts and special tokens included.

    `queue_ms`: from the request's arrival until a worker took up its first row. `tokenize_ms` and `run_ms`: what the jobs that
    its rows were in took for it, all rows of those jobs; workers that share a request each count, so the sum can be more than
    the time that passed.
    """

    id: Id
    rows: Count
    dim: Count
    tokens: Count
    fingerprint: Name
    inline: bool = False
    queue_ms: Milliseconds = 0.0
    tokenize_ms: Milliseconds = 0.0
    run_ms: Milliseconds = 0.0


class Refused(_Message, frozen=True, tag="refused"):
    """The one answer of a request that got no vectors. `id` None: the message at fault had no readable id."""

    id: Id | None
    code: Name
    message: Sentence
    retryable: bool = False
    retry_after_ms: Count | None = None
    row: Count | None = None


class Pong(_Message, frozen=True, tag="pong"):
    id: Id


class Status(_Message, frozen=True, tag="status"):
    """`body` is a JSON document: what `embedpool status --json` prints."""

    id: Id
    body: Annotated[str, Meta(max_length=1 << 24)]


# ── router ↔ worker ──────────────────────────────────────────────────────────────────────────────────────────────────


class Ready(_Message, frozen=True, tag="ready"):
    """A worker can take jobs. `unit_ms` is the warm-up's measured cost of one unit of work (see router.cost)."""

    worker: Id
    pid: Id
    unit_ms: Milliseconds


class Part(_Record, frozen=True):
    """The rows of one request within a job. Row `rows[i]` is `texts[i]`, with `titles[i]` if there are any, written at
    `offset + rows[i] * row_bytes(dim, dtype)` of the segment, or, where `segment` is "", returned in the frame behind `done`,
    in the order of `rows`."""

    segment: Name
    segment_bytes: Count
    offset: Count
    dim: Count
    rows: tuple[int, ...]
    texts: tuple[str, ...]
    prompt_name: Name | None
    normalize: bool
    truncate: Truncate
    dtype: Dtype = "float32"
    prompt: str | None = None
    titles: tuple[str, ...] = ()


class Job(_Message, frozen=True, tag="job"):
    """`urgent` jobs overtake others, and interrupt what a worker runs. `repeats` names a job that this worker has just done,
    whose vectors are those of this one's texts (0: none). `timed`: a trace wants to know when it began and ended."""

    id: Id
    parts: tuple[Part, ...]
    urgent: bool = False
    repeats: Id = 0
    timed: bool = False


class Failure(_Record, frozen=True):
    """A row that got no vector: the part's index, the row's index in its request, and why (a code of errors.py)."""

    part: Count
    row: Count
    code: Name
    message: Sentence


class Run(_Record, frozen=True, array_like=True):
    """One call of the model: so many rows, padded to so many tokens, took so long. `own_tokens`: of all rows, unpadded."""

    rows: Count
    tokens: Count
    ms: Milliseconds
    own_tokens: Count = 0


class Done(_Message, frozen=True, tag="done"):
    """A job's end. `tokens` has one count per part; `run_ms` is the time from taking the job up to its last row, without that
    of jobs that overtook it; `tokenize_ms` is the part of it before the model's first run. A `timed` job's says when it was
    taken up and when its last row was written."""

    id: Id
    run_ms: Milliseconds
    tokens: tuple[int, ...]
    failures: tuple[Failure, ...] = ()
    runs: tuple[Run, ...] = ()
    tokenize_ms: Milliseconds = 0.0
    began_s: Moment = 0.0
    ended_s: Moment = 0.0


class Forget(_Message, frozen=True, tag="forget"):
    """These segments are gone: unmap them."""

    segments: tuple[str, ...]


FromClient: TypeAlias = Hello | Embed | Cancel | Ping | AskStatus | Bye
ToClient: TypeAlias = Who | Welcome | Vectors | Refused | Pong | Status
FromWorker: TypeAlias = Ready | Done
ToWorker: TypeAlias = Who | Job | Forget
Message: TypeAlias = FromClient | ToClient | FromWorker | ToWorker

# ── bytes ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """The message's one frame."""
    return _encoder.encode(message)


def decode(frame: bytes) -> Message:
    """The message in a frame.

    Raises ProtocolError for anything else, with `request` set where an id can be read, so that even a malformed request gets
    its one answer, and `row` where one text is not UTF-8. Raises VersionMismatch for a hello of another version.
    """
    try:
        message: Message = _decoder.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _fault(frame, str(error)) from None
    if type(message) is Hello and message.version != VERSION:
        raise VersionMismatch(f"this server speaks protocol version {VERSION}, not {message.version}")
    return message


def _fault(frame: bytes, reason: str) -> ProtocolError:
    """What is wrong with a rejected frame. Read once more, without types and only its beginning: it may be large, and whoever
    sends such frames must not keep the router busy."""
    fields = _beginning(frame)
    id = fields.get(b"id")
    request = id if type(id) is int and 0 <= id <= MAX_I64 else None
    if fields.get(b"kind") == b"hello" and type(fields.get(b"version")) is int and fields[b"version"] != VERSION:
        return VersionMismatch(f"this server speaks protocol version {VERSION}, not {fields[b'version']}")
    texts = fields.get(b"texts")
    for row, text in enumerate(texts if isinstance(texts, list) else ()):
        if not isinstance(text, bytes) or not _is_utf8(text):
            return ProtocolError(f"text {row} is not a string of valid UTF-8", request=request, row=row)
    return ProtocolError(f"not a message of this protocol: {reason}"[:MAX_MESSAGE_CHARS], request=request)


def _beginning(frame: bytes) -> dict[Any, Any]:
    """The fields of a map that lie whole within its first FAULT_BYTES, strings as bytes; {} if it is no map."""
    reader = msgpack.Unpacker(raw=True, strict_map_key=False, max_buffer_size=FAULT_BYTES)
    reader.feed(frame[:FAULT_BYTES])
    fields: dict[Any, Any] = {}
    try:
        for _ in range(reader.read_map_header()):
            key = reader.unpack()
            fields[key] = reader.unpack()
    except Exception:  # its own types, ValueError, TypeError for a key that cannot be hashed: all mean that it ends here
        pass
    return fields


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
