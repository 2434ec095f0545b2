"""The wire: every message, its limits, and bytes to messages and back. No socket, no clock, no policy.

A message is one msgpack map in one frame, `kind` first; unknown fields are ignored, so that a newer peer may say more.
Two messages may be followed by a second frame, raw little-endian float32 rows: `vectors` with `inline` true, and a worker's
`done`. Control is small; vectors otherwise stay in shared memory.

Between client and router: hello embed cancel ping ask_status bye  /  who welcome vectors refused pong status.
Between router and worker: ready done  /  who job forget.

`decode` returns a message whose every field has the stated type and bounds, or raises ProtocolError: nothing behind it
checks types again. The router trusts a worker (it started it); it trusts no client.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, Union, get_args, get_origin

import msgpack

from embedpool.errors import BadText, ProtocolError, VersionMismatch

VERSION = 1
MAX_U63 = 2**63 - 1
MAX_NAME_CHARS = 512  # names of models, prompts, segments: a hub id is at most 96 + 1 + 96 characters
MAX_MESSAGE_CHARS = 4096  # an error message, a warning
FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Range:
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Length:
    most: int


Id = Annotated[int, Range(0, MAX_U63)]
Count = Annotated[int, Range(0, MAX_U63)]
Name = Annotated[str, Length(MAX_NAME_CHARS)]
Sentence = Annotated[str, Length(MAX_MESSAGE_CHARS)]
Milliseconds = Annotated[float, Range(0.0, 1e12)]
Priority = Literal["auto", "interactive", "bulk"]


# ── client → router ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Hello:
    """Opens a session. `segment_bytes` 0 asks for none: vectors then come inline."""

    kind: ClassVar[str] = "hello"
    version: Id
    segment_bytes: Count = 0
    client: Name = ""


@dataclass(frozen=True, slots=True)
class Embed:
    """Asks for one vector per text: float32[len(texts), dim], row i at `offset + i * dim * 4` of the session's segment.

    `offset` None asks for inline vectors; `model` "" is the pool's only one; `dim` 0 is the model's own; `budget_ms` is
    how long the answer is of use, counted by the router from arrival.
    """

    kind: ClassVar[str] = "embed"
    id: Id
    texts: tuple[str, ...]
    offset: Count | None = None
    budget_ms: Annotated[float, Range(0.0, 86_400_000.0)] = 30_000.0
    model: Name = ""
    prompt_name: Name | None = None
    dim: Annotated[int, Range(0, 1 << 20)] = 0
    normalize: bool = True
    truncate: bool = True
    priority: Priority = "auto"


@dataclass(frozen=True, slots=True)
class Cancel:
    kind: ClassVar[str] = "cancel"
    id: Id


@dataclass(frozen=True, slots=True)
class Ping:
    kind: ClassVar[str] = "ping"
    id: Id


@dataclass(frozen=True, slots=True)
class AskStatus:
    kind: ClassVar[str] = "ask_status"
    id: Id


@dataclass(frozen=True, slots=True)
class Bye:
    kind: ClassVar[str] = "bye"


# ── router → client ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Who:
    """The router does not know the sender: a client says hello (again) and repeats what is open, a worker says ready.

    `router` is a number drawn at the router's start, so that one question asked twice is told from a new router's.
    """

    kind: ClassVar[str] = "who"
    router: Id


@dataclass(frozen=True, slots=True)
class Limits:
    request_rows: Count
    request_bytes: Count
    text_chars: Count
    inline_bytes: Count


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a client must know of a model: vectors of two fingerprints must not be mixed."""

    name: Name
    dim: Count
    max_tokens: Count
    fingerprint: Name
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Welcome:
    """`segment` is a path, or "" where vectors come inline; `warning` then says why, if a segment was asked for."""

    kind: ClassVar[str] = "welcome"
    version: Id
    limits: Limits
    models: tuple[ModelCard, ...]
    segment: Annotated[str, Length(4096)] = ""
    segment_bytes: Count = 0
    warning: Sentence = ""


@dataclass(frozen=True, slots=True)
class Vectors:
    """The rows are in place. `tokens` counts what the model read, prompts and special tokens included."""

    kind: ClassVar[str] = "vectors"
    id: Id
    rows: Count
    dim: Count
    tokens: Count
    fingerprint: Name
    inline: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """The one answer of a request that got no vectors. `id` None: the message at fault had no readable id."""

    kind: ClassVar[str] = "refused"
    id: Id | None
    code: Name
    message: Sentence
    retryable: bool = False
    retry_after_ms: Count | None = None
    row: Count | None = None


@dataclass(frozen=True, slots=True)
class Pong:
    kind: ClassVar[str] = "pong"
    id: Id


@dataclass(frozen=True, slots=True)
class Status:
    """`body` is a JSON document: what `embedpool status --json` prints."""

    kind: ClassVar[str] = "status"
    id: Id
    body: Annotated[str, Length(1 << 24)]


# ── router ↔ worker ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker can take jobs. `unit_ms` is the warm-up's measured cost of one unit of work (see router.cost)."""

    kind: ClassVar[str] = "ready"
    worker: Id
    pid: Id
    unit_ms: Milliseconds


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one request within a job. Row `rows[i]` is `texts[i]`, written at `offset + rows[i] * dim * 4` of the
    segment, or, where `segment` is "", returned in the frame behind `done`, in the order of `rows`."""

    segment: Name
    segment_bytes: Count
    offset: Count
    dim: Count
    rows: tuple[int, ...]
    texts: tuple[str, ...]
    prompt_name: Name | None
    normalize: bool
    truncate: bool


@dataclass(frozen=True, slots=True)
class Job:
    kind: ClassVar[str] = "job"
    id: Id
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that got no vector: the part's index, the row's index in its request, and why (a code of errors.py)."""

    part: Count
    row: Count
    code: Name
    message: Sentence


@dataclass(frozen=True, slots=True)
class Done:
    """A job's end. `tokens` has one count per part; `run_ms` is the time from taking the job up to its last row."""

    kind: ClassVar[str] = "done"
    id: Id
    run_ms: Milliseconds
    tokens: tuple[int, ...]
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class Forget:
    """These segments are gone: unmap them."""

    kind: ClassVar[str] = "forget"
    segments: tuple[str, ...]


FromClient: TypeAlias = Hello | Embed | Cancel | Ping | AskStatus | Bye
ToClient: TypeAlias = Who | Welcome | Vectors | Refused | Pong | Status
FromWorker: TypeAlias = Ready | Done
ToWorker: TypeAlias = Who | Job | Forget
Message: TypeAlias = FromClient | ToClient | FromWorker | ToWorker

# ── bytes ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_Parse: TypeAlias = Callable[[Any], Any]  # value from msgpack -> value of the field; raises _Wrong


class _Wrong(Exception):
    """Private to decode: what the field should have been."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """How one message class is read: fields in order with their parser and default (MISSING where there is none)."""

    make: Callable[..., Any]
    fields: tuple[tuple[str, _Parse, Any], ...]


def _number(kind: type, low: float, high: float) -> _Parse:
    wanted = f"a number from {low:g} to {high:g}"

    def parse(value: Any) -> Any:
        if type(value) is kind and low <= value <= high:
            return value
        if kind is float and type(value) is int and low <= value <= high:
            return float(value)
        raise _Wrong(wanted)

    return parse


def _text(most: int) -> _Parse:
    def parse(value: Any) -> Any:
        if type(value) is str and len(value) <= most:
            return value
        raise _Wrong(f"a string of at most {most} characters")

    return parse


def _boolean(value: Any) -> Any:
    if value is True or value is False:
        return value
    raise _Wrong("true or false")


def _sequence(item: Any) -> _Parse:
    if item in (str, int):
        # One pass in C per list: this is the texts of every request. A bool is no int here.
        def parse_plain(value: Any) -> Any:
            if type(value) is list and (not value or set(map(type, value)) == {item}):
                return tuple(value)
            raise _Wrong(f"an array of {'strings' if item is str else 'integers'}")

        return parse_plain
    parse_item = _parser(item)

    def parse(value: Any) -> Any:
        if type(value) is list:
            return tuple(map(parse_item, value))
        raise _Wrong("an array")

    return parse


def _optional(inner: _Parse) -> _Parse:
    return lambda value: None if value is None else inner(value)


def _one_of(choices: tuple[str, ...]) -> _Parse:
    def parse(value: Any) -> Any:
        if type(value) is str and value in choices:
            return value
        raise _Wrong("one of " + ", ".join(choices))

    return parse


def _nested(cls: type) -> _Parse:
    shape = _shape(cls)
    return lambda value: _build(shape, value)


def _parser(annotation: Any) -> _Parse:
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [a for a in get_args(annotation) if a is not type(None)]
        return _optional(_parser(inner[0]))
    if get_origin(annotation) is Annotated:
        base, bound = get_args(annotation)
        if isinstance(bound, Length):
            return _text(bound.most)
        return _number(base, bound.low, bound.high)
    if get_origin(annotation) is Literal:
        return _one_of(get_args(annotation))
    if get_origin(annotation) is tuple:
        return _sequence(get_args(annotation)[0])
    if annotation is bool:
        return _boolean
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _nested(annotation)
    raise TypeError(f"no wire form for {annotation!r}")


def _shape(cls: type) -> _Shape:
    hints = typing.get_type_hints(cls, include_extras=True)
    rows = tuple((f.name, _parser(hints[f.name]), f.default) for f in dataclasses.fields(cls))
    return _Shape(cls, rows)


def _build(shape: _Shape, values: Any) -> Any:
    if type(values) is not dict:
        raise _Wrong("a map")
    arguments = []
    for name, parse, default in shape.fields:
        value = values.get(name, dataclasses.MISSING)
        if value is dataclasses.MISSING:
            if default is dataclasses.MISSING:
                raise _Wrong(f"a map with the field {name}")
            arguments.append(default)
            continue
        try:
            arguments.append(parse(value))
        except _Wrong as wrong:
            raise _Wrong(f"{name}: {wrong}") from None
    return shape.make(*arguments)


_SHAPES: dict[str, _Shape] = {cls.kind: _shape(cls) for cls in get_args(Message)}
_NAMES: dict[type, tuple[str, ...]] = {cls: tuple(f.name for f in dataclasses.fields(cls)) for cls in get_args(Message)}
_NAMES |= {cls: tuple(f.name for f in dataclasses.fields(cls)) for cls in (Limits, ModelCard, Part, Failure)}


def encode(message: Message) -> bytes:
    """The message's one frame."""
    fields = {"kind": message.kind}
    for name in _NAMES[type(message)]:
        fields[name] = getattr(message, name)
    packed: bytes = msgpack.packb(fields, default=_to_map)
    return packed


def _to_map(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in _NAMES[type(value)]}


def decode(frame: bytes) -> Message:
    """The message in a frame.

    Raises ProtocolError for anything else, with `request` set where an id could be read, so that even a malformed request
    gets its one answer. Raises VersionMismatch for a hello of another version.
    """
    try:
        fields = msgpack.unpackb(frame)
    except UnicodeDecodeError:
        raise _not_utf8(frame) from None
    except Exception as error:  # msgpack raises ValueError, its own types, RecursionError-like StackError, TypeError
        raise ProtocolError(f"not msgpack: {type(error).__name__}") from None
    if type(fields) is not dict:
        raise ProtocolError("a message is a msgpack map")
    kind = fields.get("kind")
    shape = _SHAPES.get(kind) if type(kind) is str else None
    if shape is None:
        raise ProtocolError("a message has a field kind with a known name", request=_id_of(fields))
    if kind == "hello" and type(fields.get("version")) is int and fields["version"] != VERSION:
        raise VersionMismatch(f"this server speaks protocol version {VERSION}, not {fields['version']}")
    try:
        message: Message = _build(shape, fields)
    except _Wrong as wrong:
        raise ProtocolError(f"{kind} must be {wrong}", request=_id_of(fields)) from None
    return message


def _id_of(fields: dict[Any, Any]) -> int | None:
    value = fields.get("id")
    return value if type(value) is int and 0 <= value <= MAX_U63 else None


def _not_utf8(frame: bytes) -> ProtocolError:
    """A string that is not UTF-8: read once more leniently, to say which row of which request."""
    try:
        fields = msgpack.unpackb(frame, unicode_errors="surrogateescape")
        for row, text in enumerate(fields["texts"]):
            if not is_utf8(text):
                return ProtocolError(f"text {row} is not valid UTF-8", request=_id_of(fields), row=row)
        return ProtocolError("a string is not valid UTF-8", request=_id_of(fields))
    except Exception:  # whatever else is wrong with it, it is not a message
        return ProtocolError("a string is not valid UTF-8")


def is_utf8(text: str) -> bool:
    """False for a text with a lone surrogate, which has no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_texts(texts: tuple[object, ...]) -> None:
    """Raises BadText naming the first row that is not a string, or has a lone surrogate and so no UTF-8 form."""
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadText(f"text {row} is of type {type(text).__name__}, not str", row=row)
        if not text.isascii() and not is_utf8(text):
            raise BadText(f"text {row} has a lone surrogate, which is not valid Unicode text", row=row)
