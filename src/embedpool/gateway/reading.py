"""From bytes of a peer to a typed request. Everything that a peer can get wrong in HTTP and JSON ends here as `Unreadable`,
which each dialect puts into its own words; what is wrong for the pool is an EmbedpoolError and comes later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar, cast, get_args

import msgspec
from msgspec import Struct
from starlette.requests import ClientDisconnect, Request

from embedpool.client.ambient import current
from embedpool.client.documents import Keywords
from embedpool.errors import BadRequest, Cancelled
from embedpool.gateway.options import Options
from embedpool.protocol import Priority
from embedpool.traces.context import passed_on

Kind = Literal["key", "path", "method", "media", "large", "slow", "syntax", "shape"]
STATUS: dict[Kind, int] = {
    "key": 401,
    "path": 404,
    "method": 405,
    "slow": 408,
    "large": 413,
    "media": 415,
    "syntax": 400,
    "shape": 422,
}
PRIORITIES: tuple[str, ...] = get_args(Priority)
HUNG_UP = "the client has hung up"
T = TypeVar("T")


class Unreadable(Exception):
    """A request that is none: `kind` says what is wrong, `detail` where."""

    def __init__(self, kind: Kind, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind: Kind = kind
        self.detail = detail

    @property
    def status(self) -> int:
        return STATUS[self.kind]


class Asked(Struct, frozen=True, kw_only=True):
    """Fields that every dialect's request may have beside its own; where one is missing, a header of that meaning is used."""

    prompt_name: str | None = None
    priority: Priority | None = None
    timeout_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Wishes:
    """How the pool is to be asked. `deadline_at` is on the clock of time.monotonic."""

    deadline_at: float
    keywords: Keywords


async def read(request: Request, kind: type[T], most_bytes: int, within_s: float) -> T:
    """The request's body as `kind`. Raises Unreadable; Cancelled when the client hangs up in the middle.

    Only JSON's own content type is taken: a page in a browser can send any other one to a loopback port without being asked
    whether it may.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        raise Unreadable("media", media)
    try:
        async with asyncio.timeout(within_s):
            return parse(await _body(request, most_bytes), kind)
    except TimeoutError:
        raise Unreadable("slow", f"{within_s:g} s") from None
    except ClientDisconnect:
        raise Cancelled(HUNG_UP) from None


async def _body(request: Request, most_bytes: int) -> bytes:
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated[:20]) > most_bytes:
        raise Unreadable("large", f"{most_bytes} bytes")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most_bytes:
            raise Unreadable("large", f"{most_bytes} bytes")
        parts.append(part)
    return b"".join(parts)


def parse(body: bytes, kind: type[T]) -> T:
    """Raises Unreadable of the kinds syntax and shape."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise Unreadable("shape", _plain(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unreadable("syntax", str(error)) from None


def _plain(reason: str) -> str:
    """The reason with the field in front, as `texts[0]: expected str, got int`."""
    what, _, where = reason.partition(" - at `$.")
    what = what[:1].lower() + what[1:]
    return f"{where.rstrip('`')}: {what}" if where else what


def wishes(headers: Mapping[str, str], asked: Asked, options: Options, now: float) -> Wishes:
    """Raises BadRequest for a header or field out of its bounds."""
    priority = asked.priority or headers.get("x-embedpool-priority", "auto")
    if priority not in PRIORITIES:
        raise BadRequest(f"x-embedpool-priority is one of {', '.join(PRIORITIES)}")
    keywords: Keywords = {"priority": cast(Priority, priority)}
    prompt_name = asked.prompt_name if asked.prompt_name is not None else headers.get("x-embedpool-prompt-name")
    if prompt_name is not None:
        keywords["prompt_name"] = prompt_name
    traceparent, tracestate = passed_on(headers.get("traceparent", ""), headers.get("tracestate", ""))
    if traceparent and current() is None:  # else this gateway is traced itself, and its span is the nearer one
        keywords["traceparent"], keywords["tracestate"] = traceparent, tracestate
    return Wishes(now + _timeout_s(headers, asked, options), keywords)


def _timeout_s(headers: Mapping[str, str], asked: Asked, options: Options) -> float:
    stated = headers.get("x-embedpool-timeout-ms")
    if asked.timeout_ms is None and stated is None:
        return options.timeout_s
    try:
        timeout_s = float(stated or "" if asked.timeout_ms is None else asked.timeout_ms) / 1e3
    except ValueError:
        timeout_s = 0.0
    if not 0.0 < timeout_s <= options.max_timeout_s:
        raise BadRequest(f"timeout_ms is a number of milliseconds, above 0 and at most {options.max_timeout_s * 1e3:.0f}")
    return timeout_s
